//! `mmproj-OUT.gguf`: the encoders of images and audio of Qwen3-Omni for llama.cpp's `mtmd`.
//!
//! Metadata and tensors are those of `convert_hf_to_gguf.py --mmproj` (`Qwen3OmniMmprojModel` in
//! `conversion/qwen3vl.py`, as in llama-cpp-python 0.3.36), with what differs for every GGUF file
//! ([`super`]) and:
//!
//! | what | the converter | here |
//! |---|---|---|
//! | `thinker.visual.…` | not mapped: it gives up, since a prefix is taken off at another place | written |
//! | `a.position_embd.weight` | sinusoids by torch | the same formula; frequencies differ in the last bit |
//!
//! Vectors, biases and positions are F32, convolutions of audio F16, patches F32 or, in F16 files,
//! F16. The quantizer leaves encoders alone: beside blocks other than Q8_0 they stay as stored.

use segpack_formats::gguf::{Array, TensorSpec, TensorType, Value};
use segpack_formats::io::to_usize;
use segpack_formats::numeric::FloatDtype;
use segpack_formats::numeric::ggml::BlockType;
use segpack_manifests::Pack;
use segpack_manifests::documents::TensorEntry;
use segpack_manifests::families::{AudioTowerFacts, MediaFacts, TextFacts};
use segpack_manifests::names::Component;
use serde_json::Value as Json;

use super::metadata::{QUANTIZATION_VERSION, rounded, single, size};
use super::{Metadata, Planned, conversion, tensor_file};
use crate::steps::StepError;
use crate::steps::export::arrangement::{Arrangement, Every};
use crate::steps::export::origin::MANIFEST_SHA256;
use crate::steps::export::plan::{Content, NewTensorPlan, Part, PlannedFile};
use crate::steps::export::source::source_json;
use crate::steps::export::{Encoders, ExportError, ExportSettings, GgufExportError, Quantization};

/// The encoders' components.
const TOWERS: [Component; 2] = [Component::ThinkerAudio, Component::ThinkerVision];
/// Where the pixels' mean and deviation are.
const PREPROCESSOR: &str = "preprocessor_config.json";
/// Steps that the converter writes sinusoids for (`Qwen25AudioModel.generate_extra_tensors`).
const POSITIONS: usize = 1500;
/// `nn.LayerNorm`'s default, which the converter takes where the configuration says nothing.
const LAYER_NORM_EPS: f64 = 1e-5;

/// What the file is made of.
pub(super) struct Towers<'a, 't> {
    pub pack: &'a Pack,
    pub media: &'t MediaFacts,
    pub text: &'t TextFacts,
    /// The thinker's configuration.
    pub thinker: &'t Json,
    pub settings: &'t ExportSettings,
    pub encoders: Encoders,
}

impl<'a> Towers<'a, '_> {
    /// The file.
    ///
    /// # Errors
    /// `NoTowers` where the pack lacks one; `NoSuchTensor`, `Shape`; `Preprocessor`.
    pub(super) fn file(&self, stem: &str) -> Result<PlannedFile<'a>, StepError> {
        let tensors = self.tensors()?;
        let metadata = self.metadata(&tensors)?;
        Ok(PlannedFile {
            path: format!("mmproj-{stem}.gguf"),
            content: Content::Tensors(tensor_file(metadata, tensors)?),
        })
    }

    /// A note where the encoders have another type than was wanted of the text.
    pub(super) fn note(&self) -> Option<String> {
        match self.settings.quantize {
            None | Some(Quantization::Q8_0) => None,
            Some(_) => Some(
                "the encoders are not quantized: llama.cpp's quantizer leaves them as they are"
                    .to_owned(),
            ),
        }
    }

    fn tensors(&self) -> Result<Vec<Planned<'a>>, ExportError> {
        let pack = self.pack;
        let all = || pack.manifest().tensors.iter();
        let towers = TOWERS.into_iter().filter(|tower| self.encoders.has(*tower));
        for tower in towers {
            if !all().any(|tensor| tensor.component == tower) {
                return Err(GgufExportError::NoTowers {
                    lacks: tower.as_str(),
                }
                .into());
            }
        }
        let mut planned = Vec::new();
        if self.encoders.has_audio() {
            planned.push(self.positions(self.audio_tower()?));
        }
        for tensor in all().filter(|tensor| self.encoders.has(tensor.component)) {
            planned.extend(self.planned(tensor)?);
        }
        Ok(planned)
    }

    /// The encoder of audio.
    fn audio_tower(&self) -> Result<&AudioTowerFacts, ExportError> {
        let lacks = Component::ThinkerAudio.as_str();
        let audio = self.media.audio.as_ref();
        audio.ok_or_else(|| GgufExportError::NoTowers { lacks }.into())
    }

    /// Sinusoids of audio's steps.
    fn positions(&self, audio: &AudioTowerFacts) -> Planned<'a> {
        let width = audio.width;
        let values = sinusoids(to_usize(width));
        let shape = vec![POSITIONS as u64, width];
        let name = "a.position_embd.weight".to_owned();
        Planned {
            plan: NewTensorPlan {
                name: name.clone(),
                dtype: TensorType::F32.to_string(),
                shape: shape.clone(),
                made: values.into_iter().flat_map(f32::to_le_bytes).collect(),
                parts: Vec::new(),
            },
            spec: TensorSpec {
                name,
                kind: TensorType::F32,
                shape,
            },
            in_place_of: None,
        }
    }

    /// What becomes of a tensor: one, or of the patches' kernel one for each frame.
    fn planned(&self, tensor: &'a TensorEntry) -> Result<Vec<Planned<'a>>, ExportError> {
        let name = name_of(&tensor.name, &self.media.vision.deepstack);
        let name = name.ok_or_else(|| GgufExportError::NoSuchTensor {
            architecture: "clip",
            tensor: tensor.name.clone(),
            role: tensor.role.to_string(),
        })?;
        if name == PATCHES {
            return self.patches(tensor);
        }
        let mut shape = tensor.shape.clone();
        if is_convolution(&name) && name.ends_with(".bias") {
            shape.extend([1, 1]);
        }
        let kind = self.kind(&name, tensor, &shape)?;
        Ok(vec![one(name, (kind, shape), tensor, Arrangement::Kept)?])
    }

    /// The kernel `[width, channels, frames, height, width]`, taken apart by frame.
    fn patches(&self, tensor: &'a TensorEntry) -> Result<Vec<Planned<'a>>, ExportError> {
        let vision = &self.media.vision;
        let side = vision.patch_side;
        let wanted = [vision.width, vision.channels, 2, side, side];
        if tensor.shape != wanted {
            return Err(GgufExportError::Shape {
                tensor: tensor.name.clone(),
                seen: tensor.shape.clone(),
                wanted: wanted.to_vec(),
            }
            .into());
        }
        let is_f16 = self.settings.dtype == Some(FloatDtype::F16);
        let kind = if is_f16 {
            TensorType::F16
        } else {
            TensorType::F32
        };
        let frame = to_usize(tensor.length / (vision.width * vision.channels * 2));
        let of_frame = |(first, name): (usize, &str)| {
            let taken = Every { first, step: 2 };
            let arrangement = Arrangement::Rows {
                taken,
                row_bytes: frame,
            };
            let shape = vec![vision.width, vision.channels, side, side];
            one(name.to_owned(), (kind, shape), tensor, arrangement)
        };
        let names = [PATCHES.to_owned(), format!("{PATCHES}.1")];
        let names = names.iter().map(String::as_str).enumerate();
        names.map(of_frame).collect()
    }

    /// As `prepare_tensors` of the converter chooses it.
    fn kind(
        &self,
        name: &str,
        tensor: &TensorEntry,
        shape: &[u64],
    ) -> Result<TensorType, ExportError> {
        if !name.ends_with(".weight") || shape.len() <= 1 || name == "v.position_embd.weight" {
            return Ok(TensorType::F32);
        }
        if is_convolution(name) {
            return Ok(TensorType::F16);
        }
        let columns = shape.last().copied().unwrap_or(0);
        let q8_0 = TensorType::Blocks(BlockType::Q8_0);
        match (self.settings.quantize, self.settings.dtype) {
            (Some(Quantization::Q8_0), _) if q8_0.divides_rows_of(columns) => Ok(q8_0),
            (Some(Quantization::Q8_0), _) => Ok(TensorType::F16),
            (None, Some(dtype)) => Ok(TensorType::of_float(dtype)),
            (None | Some(_), _) => {
                TensorType::of_dtype(tensor.dtype).ok_or_else(|| ExportError::NoConversion {
                    tensor: tensor.name.clone(),
                    from: tensor.dtype,
                    to: format!("{name:?} of a GGUF file"),
                })
            }
        }
    }

    /// `general.file_type`, by what matrices are.
    fn file_type(&self, tensors: &[Planned<'_>]) -> u32 {
        if self.settings.quantize == Some(Quantization::Q8_0) {
            return Quantization::Q8_0.file_type();
        }
        let is_last = |name: &str| ["mm.0.weight", "mm.a.mlp.1.weight"].contains(&name);
        let matrix = tensors.iter().find(|t| is_last(&t.spec.name));
        match matrix.map(|t| t.spec.kind) {
            Some(TensorType::F16) => 1,
            Some(TensorType::Bf16) => 32,
            Some(TensorType::F32 | TensorType::Mxfp4 | TensorType::Blocks(_)) | None => 0,
        }
    }

    fn metadata(&self, tensors: &[Planned<'_>]) -> Result<Metadata, StepError> {
        let mut all = Metadata::new();
        let mut add = |key: &str, value: Value| all.push((key.to_owned(), value));
        add("general.architecture", "clip".into());
        add("general.type", "mmproj".into());
        let parameters = tensors.iter().map(|t| t.plan.values()).sum();
        add("general.size_label", Value::Text(rounded(parameters)));
        add("general.file_type", self.file_type(tensors).into());
        if self.encoders.has_image() {
            self.vision(&mut add)?;
        }
        if self.encoders.has_audio() {
            self.audio(self.audio_tower()?, &mut add);
        }
        add("general.quantization_version", QUANTIZATION_VERSION.into());
        let manifest = self.pack.manifest_sha256().to_string();
        add(MANIFEST_SHA256, Value::Text(manifest));
        Ok(all)
    }

    fn vision(&self, add: &mut dyn FnMut(&str, Value)) -> Result<(), StepError> {
        let vision = &self.media.vision;
        let [mean, deviation] = self.pixels()?;
        let side = self.thinker.pointer("/vision_config/image_size");
        let side = side.and_then(Json::as_u64);
        add("clip.has_vision_encoder", true.into());
        add("clip.vision.projection_dim", size(self.text.hidden_size));
        let positions = vision.position_side * vision.patch_side;
        add("clip.vision.image_size", size(side.unwrap_or(positions)));
        add("clip.vision.patch_size", size(vision.patch_side));
        add("clip.vision.embedding_length", size(vision.width));
        add("clip.vision.feed_forward_length", size(vision.ffn));
        add("clip.vision.block_count", vision.blocks.into());
        add("clip.vision.attention.head_count", size(vision.heads));
        add("clip.vision.image_mean", mean);
        add("clip.vision.image_std", deviation);
        add("clip.use_gelu", true.into());
        add("clip.vision.spatial_merge_size", size(vision.merge));
        let eps = single(self.text.rms_norm_eps);
        add("clip.vision.attention.layer_norm_epsilon", eps);
        let has = |block: u32| vision.deepstack.contains(&block);
        let has: Vec<bool> = (0..vision.blocks).map(has).collect();
        let has = Value::Array(Array::Bool(has));
        add("clip.vision.is_deepstack_layers", has);
        add("clip.vision.projector_type", "qwen3vl_merger".into());
        if !self.encoders.has_audio() {
            add("clip.projector_type", "qwen3vl_merger".into());
        }
        Ok(())
    }

    fn audio(&self, audio: &AudioTowerFacts, add: &mut dyn FnMut(&str, Value)) {
        add("clip.has_audio_encoder", true.into());
        add("clip.audio.projection_dim", size(self.text.hidden_size));
        add("clip.audio.embedding_length", size(audio.width));
        add("clip.audio.feed_forward_length", size(audio.ffn));
        add("clip.audio.block_count", audio.layers.into());
        add("clip.audio.attention.head_count", size(audio.heads));
        add("clip.audio.num_mel_bins", size(audio.mel_bins));
        let eps = self.thinker.pointer("/audio_config/layer_norm_eps");
        let eps = eps.and_then(Json::as_f64).unwrap_or(LAYER_NORM_EPS);
        add("clip.audio.attention.layer_norm_epsilon", single(eps));
        add("clip.audio.projector_type", "qwen3a".into());
    }

    /// Mean and deviation of the pixels of each channel.
    fn pixels(&self) -> Result<[Value; 2], StepError> {
        let file = source_json(self.pack, PREPROCESSOR)?;
        let of = |key: &'static str| {
            let numbers = file.as_ref().and_then(|file| file.get(key)?.as_array());
            let numbers =
                numbers.and_then(|all| all.iter().map(Json::as_f64).collect::<Option<Vec<f64>>>());
            numbers.ok_or(GgufExportError::Preprocessor {
                file: PREPROCESSOR,
                key,
            })
        };
        Ok([singles(&of("image_mean")?), singles(&of("image_std")?)])
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "the format has 32 bits for it"
)]
fn singles(numbers: &[f64]) -> Value {
    Value::Array(Array::F32(numbers.iter().map(|n| *n as f32).collect()))
}

/// A tensor of the file, made of one of the pack.
fn one<'a>(
    name: String,
    (kind, shape): (TensorType, Vec<u64>),
    source: &'a TensorEntry,
    arrangement: Arrangement,
) -> Result<Planned<'a>, ExportError> {
    let part = Part {
        source,
        beside: None,
        arrangement,
        conversion: conversion(source, kind)?,
    };
    Ok(Planned {
        plan: NewTensorPlan {
            name: name.clone(),
            dtype: kind.to_string(),
            shape: shape.clone(),
            made: Vec::new(),
            parts: vec![part],
        },
        spec: TensorSpec { name, kind, shape },
        in_place_of: None,
    })
}

/// The kernel of the vision encoder's patches, of the first of two frames.
const PATCHES: &str = "v.patch_embd.weight";

/// One of the audio encoder's convolutions, or the linear layer behind them.
fn is_convolution(name: &str) -> bool {
    name.starts_with("a.conv")
}

/// llama.cpp's name of an encoder's tensor.
fn name_of(name: &str, deepstack: &[u32]) -> Option<String> {
    let (stem, part) = name.rsplit_once('.')?;
    if let Some((_, audio)) = stem.split_once("audio_tower.") {
        return Some(format!("{}.{part}", audio_name(audio)?));
    }
    let (_, vision) = stem.split_once("visual.")?;
    Some(format!("{}.{part}", vision_name(vision, deepstack)?))
}

fn audio_name(name: &str) -> Option<String> {
    if let Some(layer) = name.strip_prefix("layers.") {
        let (number, of_layer) = layer.split_once('.')?;
        let of_layer = match of_layer {
            "fc1" => "ffn_up",
            "fc2" => "ffn_down",
            "self_attn_layer_norm" => "ln1",
            "final_layer_norm" => "ln2",
            "self_attn.q_proj" => "attn_q",
            "self_attn.k_proj" => "attn_k",
            "self_attn.v_proj" => "attn_v",
            "self_attn.out_proj" => "attn_out",
            _ => return None,
        };
        return Some(format!("a.blk.{number}.{of_layer}"));
    }
    let known = match name {
        "conv2d1" => "a.conv2d.1",
        "conv2d2" => "a.conv2d.2",
        "conv2d3" => "a.conv2d.3",
        "conv_out" => "a.conv_out",
        "ln_post" => "a.post_ln",
        "proj1" => "mm.a.mlp.1",
        "proj2" => "mm.a.mlp.2",
        _ => return None,
    };
    Some(known.to_owned())
}

fn vision_name(name: &str, deepstack: &[u32]) -> Option<String> {
    if let Some(block) = name.strip_prefix("blocks.") {
        let (number, of_block) = block.split_once('.')?;
        let of_block = match of_block {
            "attn.qkv" => "attn_qkv",
            "attn.proj" => "attn_out",
            "mlp.linear_fc1" => "ffn_up",
            "mlp.linear_fc2" => "ffn_down",
            "norm1" => "ln1",
            "norm2" => "ln2",
            _ => return None,
        };
        return Some(format!("v.blk.{number}.{of_block}"));
    }
    // feature k comes from the k-th block that gives one, by whose number it goes
    let list = name.strip_prefix("merger_list.");
    if let Some(merger) = list.or_else(|| name.strip_prefix("deepstack_merger_list.")) {
        let (number, of_merger) = merger.split_once('.')?;
        let block = deepstack.get(number.parse::<usize>().ok()?)?;
        let of_merger = match of_merger {
            "ln_q" | "norm" => "norm",
            "mlp.0" | "linear_fc1" => "fc1",
            "mlp.2" | "linear_fc2" => "fc2",
            _ => return None,
        };
        return Some(format!("v.deepstack.{block}.{of_merger}"));
    }
    let known = match name {
        "patch_embed.proj" => "v.patch_embd",
        "pos_embed" => "v.position_embd",
        "merger.ln_q" | "merger.norm" => "v.post_ln",
        "merger.mlp.0" | "merger.linear_fc1" => "mm.0",
        "merger.mlp.2" | "merger.linear_fc2" => "mm.2",
        _ => return None,
    };
    Some(known.to_owned())
}

/// `[POSITIONS, width]`: sines of all frequencies, then cosines, in F32 as torch computes them; each
/// function is rounded correctly.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "F32, as torch does"
)]
fn sinusoids(width: usize) -> Vec<f32> {
    let half = width / 2;
    let increment = (10_000_f64.ln() / (half as f64 - 1.0)) as f32;
    let exponents = (0..half).map(|i| f64::from(-increment * i as f32));
    let frequencies: Vec<f32> = exponents.map(|e| e.exp() as f32).collect();
    let mut values = Vec::with_capacity(POSITIONS * width);
    for step in 0..POSITIONS {
        let angles = || frequencies.iter().map(|f| f64::from(step as f32 * f));
        values.extend(angles().map(|angle| angle.sin() as f32));
        values.extend(angles().map(|angle| angle.cos() as f32));
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_both_spellings_are_those_of_the_converter() {
        for (name, wanted) in [
            ("thinker.visual.merger.mlp.0.bias", "mm.0.bias"),
            ("visual.merger.linear_fc1.bias", "mm.0.bias"),
            (
                "thinker.visual.merger_list.1.ln_q.weight",
                "v.deepstack.16.norm.weight",
            ),
            (
                "model.visual.deepstack_merger_list.2.linear_fc2.weight",
                "v.deepstack.24.fc2.weight",
            ),
            ("thinker.visual.patch_embed.proj.weight", PATCHES),
            (
                "audio_tower.layers.31.self_attn.out_proj.weight",
                "a.blk.31.attn_out.weight",
            ),
            ("thinker.audio_tower.conv_out.weight", "a.conv_out.weight"),
        ] {
            assert_eq!(name_of(name, &[8, 16, 24]).as_deref(), Some(wanted));
        }
        for name in [
            "thinker.visual.merger_list.3.ln_q.weight",
            "thinker.visual.blocks.0.norm3.weight",
            "thinker.audio_tower.conv2d4.weight",
            "thinker.model.norm.weight",
        ] {
            assert_eq!(name_of(name, &[8, 16, 24]), None);
        }
    }
}
