//! `gguf`: the text decoder for llama.cpp, of the families of [`Architecture`].
//!
//! Metadata and tensors are those that llama.cpp's own `convert_hf_to_gguf.py` makes of the same
//! checkpoint, of a thinker those of the `qwen3-moe` export of the same pack (compared with the one in
//! llama-cpp-python 0.3.36 by `tests/peers/heavy`; `tests/fixtures/gguf` has its answers). What
//! differs, and why:
//!
//! | what | the converter | here |
//! |---|---|---|
//! | `general.name` | the name of the folder that it reads | the repository's, where the pack knows it, else none: a folder's name says nothing of the model |
//! | `general.basename`, `.finetune`, `.version`, `.organization` | guessed from that folder's name | none |
//! | `general.license`, `.tags`, `.base_model.*` and the like | from the head of `README.md` | none: they describe the checkpoint that is packed, not what was made of it |
//! | numbers that `config.json` leaves out | those of the installed transformers | those of the official class, which are the same |
//! | `….vocab_size` without a tokenizer | cannot convert | there, with `tokenizer.ggml.model` = `none` |
//! | `segpack.manifest_sha256` | none | the pack's identity |
//! | order of tensors | that of the source's shards | embedding, layers, final norm, head |
//! | a value that F16 cannot hold | infinity | an error |
//! | a NaN or infinity in blocks | whatever the processor makes of it | an error |
//!
//! Norms, biases and routers are always F32. Of quantized files each tensor has the type that
//! llama.cpp's own quantizer gives it (`mix.rs`), which for Q8_0 is the converter's, too. MXFP4 stays
//! MXFP4: scales and values are woven into ggml's blocks, and not a value changes.
//!
//! A model that computes what its architecture in llama.cpp does not is refused
//! (`architecture.rs`), and a family that is not among them.

mod architecture;
mod importance;
mod layers;
#[cfg(feature = "run")]
mod matrices;
mod metadata;
mod mix;
mod mmproj;
mod sentencepiece;
mod tensors;
mod vocabulary;

use std::collections::BTreeMap;

use segpack_formats::gguf::{
    self as format, Header, ImportanceMatrix, MAX_FILES, TensorSpec, TensorType, Value,
    split_metadata, split_name,
};
use segpack_formats::numeric::ggml::BlockType;
use segpack_formats::numeric::{Dtype, FloatConversion, FloatDtype};
use segpack_manifests::documents::TensorEntry;
use segpack_manifests::families::{Family, MediaFacts};
use segpack_manifests::folder::TextDecoder;
use segpack_manifests::names::{Component, Role};
use segpack_manifests::quantization::{Quantization, WeightCoding};
use segpack_manifests::{Pack, PackModel};
use serde_json::Value as Json;

use super::plan::{
    Content, Conversion, ExportPlan, FileFormat, NewTensorPlan, Part, Placed, PlannedFile,
    TensorFile,
};
use super::qwen3_moe::{causal_lm, text_decoder};
use super::source::source_json;
use super::{Encoders, ExportError, ExportSettings, GgufExportError, Quantization as Mixture};
use crate::steps::StepError;
use architecture::Architecture;
use layers::{MTP, Row, mtp_shape, rows};
#[cfg(feature = "run")]
pub(crate) use matrices::{LlamaMatrix, llama_matrices};
use metadata::{Model, Omni};
use mix::{Chosen, Mix};
use mmproj::Towers;
use tensors::{Place, Stored, Tensors};
use vocabulary::Vocabulary;

/// The text decoder as one GGUF file, or as several.
///
/// # Errors
/// `Name` for a name that does not end in `.gguf`; `Family`, or where the architecture cannot express
/// the model, the pack lacks tensors of it, or its tokenizer is of a kind that llama.cpp's name is not
/// known of.
pub(super) fn gguf<'a>(
    pack: &'a Pack,
    model: &PackModel,
    settings: &'a ExportSettings,
    name: &str,
) -> Result<ExportPlan<'a>, StepError> {
    let Some(stem) = name.strip_suffix(".gguf").filter(|stem| !stem.is_empty()) else {
        return Err(GgufExportError::Name {
            name: name.to_owned(),
        }
        .into());
    };
    let family = pack.manifest().model.known_family();
    let family = family.map_err(ExportError::Family)?;
    let architecture = Architecture::of(family).ok_or_else(|| GgufExportError::Family {
        family: family.name(),
    })?;
    let (component, decoder) = text_decoder(pack, model, settings)?;
    let checkpoint = model.config().ok_or(ExportError::NoConfig)?;
    let media = media(model, (family, component), settings)?;
    let architecture = match media {
        Some(_) => Architecture::Qwen3VlMoe,
        None => architecture,
    };
    let thinker = checkpoint.get("thinker_config").unwrap_or(checkpoint);
    let generation = source_json(pack, "generation_config.json")?;
    let has_mxfp4 = is_mxfp4(checkpoint)?;
    let config = match architecture {
        Architecture::Qwen3Moe | Architecture::Qwen3VlMoe => {
            causal_lm(&decoder, (checkpoint, generation.as_ref()), settings)?
        }
        _ => checkpoint.clone(),
    };
    let mut plan = ExportPlan::default();
    let place = (pack, component);
    let tensors = Tensors::of(place, architecture, &decoder, has_mxfp4)?;
    architecture.check(&config, &decoder, has_head(&tensors, &decoder))?;
    check_quantization(&tensors, settings)?;
    plan.notes.extend(Architecture::note(&decoder));
    let listing = Listing {
        types: types(&tensors, &decoder, settings)?,
        tensors: &tensors,
        architecture,
        decoder: &decoder,
        planned: Vec::new(),
    };
    let tensors = listing.all(&mut plan.notes)?;
    let of_model = (architecture, &decoder.facts);
    let vocabulary = Vocabulary::of(pack, &config, of_model, settings, &mut plan.notes)?;
    let model = Model {
        pack,
        config: &config,
        generation: generation.as_ref(),
        architecture,
        decoder: &decoder,
        omni: media.as_ref().map(|media| Omni {
            media,
            text: &thinker["text_config"],
            takes_images: settings.mmproj.is_some_and(Encoders::has_image),
        }),
    };
    let mut metadata = model.metadata(&tensors, file_type(settings, &tensors), &vocabulary)?;
    metadata.extend(settings.importance.iter().flat_map(importance::metadata));
    if component == Component::ThinkerText && media.is_none() {
        plan.notes.push(
            "this is the thinker's text part: for text it computes the same, images, audio and video need the full thinker"
                .to_owned(),
        );
    }
    plan.files = files(stem, metadata, tensors, settings)?;
    if let (Some(media), Some(encoders)) = (&media, settings.mmproj) {
        let towers = Towers {
            pack,
            media,
            text: &decoder.facts,
            thinker,
            settings,
            encoders,
        };
        plan.notes.extend(towers.note());
        plan.files.push(towers.file(stem)?);
    }
    Ok(plan)
}

/// The encoders, where they are wanted.
///
/// # Errors
/// `NoEncoders` where llama.cpp takes none of this model.
fn media(
    model: &PackModel,
    (family, component): (Family, Component),
    settings: &ExportSettings,
) -> Result<Option<MediaFacts>, StepError> {
    if settings.mmproj.is_none() {
        return Ok(None);
    }
    let media = model.media().map_err(ExportError::Model)?;
    match media.filter(|_| component == Component::ThinkerText) {
        Some(media) => Ok(Some(media)),
        None => Err(GgufExportError::NoEncoders {
            family: family.name(),
        }
        .into()),
    }
}

/// Whether the configuration says that weights are blocks of MXFP4.
fn is_mxfp4(config: &Json) -> Result<bool, ExportError> {
    let quantization = Quantization::of_config(config).map_err(ExportError::Config)?;
    let coding = quantization.and_then(|quantization| quantization.coding());
    Ok(coding == Some(WeightCoding::Mxfp4))
}

/// Experts that are MXFP4 stay so beside Q8_0, as llama.cpp's converter has it; its quantizer refuses
/// them.
fn check_quantization(
    tensors: &Tensors<'_, '_>,
    settings: &ExportSettings,
) -> Result<(), GgufExportError> {
    match settings.quantize {
        None | Some(Mixture::Q8_0) => Ok(()),
        Some(_) if !tensors.has_mxfp4() => Ok(()),
        Some(_) => Err(GgufExportError::Requantized),
    }
}

/// Which types tensors get.
fn types<'a>(
    tensors: &Tensors<'_, '_>,
    decoder: &TextDecoder,
    settings: &'a ExportSettings,
) -> Result<Types<'a>, GgufExportError> {
    if settings.importance.is_some() {
        importance::check(settings.quantize)?;
    }
    let TextDecoder {
        facts,
        settings: of_model,
        ..
    } = decoder;
    Ok(Types {
        importance: settings.importance.as_ref().map(|i| &i.matrix),
        dtype: settings.dtype,
        mix: settings.quantize.map(|quantization| Mix {
            quantization,
            layers: facts.layers + of_model.options.extra_layers,
            attentions: facts.layers.max(tensors.layers()),
            experts: facts.experts,
            tied: !has_head(tensors, decoder),
        }),
    })
}

/// The tensors of a file, as they are listed.
struct Listing<'a, 't> {
    tensors: &'t Tensors<'a, 't>,
    architecture: Architecture,
    decoder: &'t TextDecoder,
    types: Types<'a>,
    planned: Vec<Planned<'a>>,
}

impl<'a> Listing<'a, '_> {
    /// All of them in the order of the file. What is left over has no place in the architecture.
    fn all(mut self, notes: &mut Vec<String>) -> Result<Vec<Planned<'a>>, ExportError> {
        let facts = &self.decoder.facts;
        let table = [facts.vocab, facts.hidden_size];
        self.one(Place::outside(Role::Embedding), "token_embd.weight", &table)?;
        for layer in 0..facts.layers.max(self.tensors.layers()) {
            self.layer(layer)?;
        }
        let norm = [facts.hidden_size];
        self.one(Place::outside(Role::FinalNorm), "output_norm.weight", &norm)?;
        if has_head(self.tensors, self.decoder) {
            self.one(HEAD, "output.weight", &table)?;
        }
        if let Some(odd) = self.tensors.left_over() {
            return Err(GgufExportError::NoSuchTensor {
                tensor: odd.name.clone(),
                role: odd.role.to_string(),
                architecture: self.architecture.as_str(),
            }
            .into());
        }
        note_rows(&self.planned, notes);
        importance::note_missing(&self.planned, &self.types, notes)?;
        Ok(self.planned)
    }

    fn layer(&mut self, layer: u32) -> Result<(), ExportError> {
        let TextDecoder {
            facts, settings, ..
        } = self.decoder;
        if layer >= facts.layers {
            self.mtp(layer)?;
        }
        // layers beyond the model's are as its last ones
        let has_experts = settings.has_experts.get(layer as usize).copied();
        let has_experts = has_experts.unwrap_or(true);
        for row in rows(self.architecture, self.decoder, has_experts) {
            let name = format!("blk.{layer}.{}", row.name);
            if row.by_expert {
                self.stack(&row, layer, &name)?;
            } else {
                self.one(Place::of_layer(&row, layer, None), &name, &row.shape)?;
            }
        }
        Ok(())
    }

    /// What a layer beyond the model's has beside an ordinary one.
    fn mtp(&mut self, layer: u32) -> Result<(), ExportError> {
        for (end, name, is_optional) in MTP {
            let place = Place {
                layer: Some(layer),
                mtp: Some(end),
                ..Place::outside(Role::Mtp)
            };
            if is_optional && !self.tensors.has(&place) {
                continue;
            }
            let shape = mtp_shape(end, &self.decoder.facts);
            self.one(place, &format!("blk.{layer}.{name}"), &shape)?;
        }
        Ok(())
    }

    fn one(&mut self, place: Place<'a>, name: &str, shape: &[u64]) -> Result<(), ExportError> {
        let stored = self.tensors.stored(place, shape)?;
        let planned = Planned::new(name, shape.to_vec(), &[stored], &self.types)?;
        self.planned.push(planned);
        Ok(())
    }

    /// The tensors of all experts of a layer as one, the experts first.
    fn stack(&mut self, row: &Row, layer: u32, name: &str) -> Result<(), ExportError> {
        let experts = self.decoder.facts.experts;
        let stored: Vec<_> = (0..experts)
            .map(|expert| {
                let place = Place::of_layer(row, layer, Some(expert));
                self.tensors.stored(place, &row.shape)
            })
            .collect::<Result<_, _>>()?;
        let mut shape = vec![u64::from(experts)];
        shape.extend(&row.shape);
        self.planned
            .push(Planned::new(name, shape, &stored, &self.types)?);
        Ok(())
    }
}

/// The output head.
const HEAD: Place<'static> = Place::outside(Role::LmHead);

/// A tied head is the embedding, which llama.cpp takes where there is no other.
fn has_head(tensors: &Tensors<'_, '_>, decoder: &TextDecoder) -> bool {
    !decoder.facts.tie_word_embeddings || tensors.has(&HEAD)
}

/// A tensor of the file and what it is made of.
struct Planned<'a> {
    spec: TensorSpec,
    plan: NewTensorPlan<'a>,
    in_place_of: Option<BlockType>,
}

impl<'a> Planned<'a> {
    fn new(
        name: &str,
        shape: Vec<u64>,
        stored: &[Stored<'a>],
        types: &Types<'a>,
    ) -> Result<Self, ExportError> {
        let chosen = match stored.first() {
            Some(first) if first.scales.is_some() => Some(Chosen::plain(TensorType::Mxfp4)),
            Some(first) => types.of(name, first.source.dtype, &shape),
            None => None,
        };
        let name = name.to_owned();
        let Chosen { kind, in_place_of } = chosen.ok_or_else(|| {
            let first = stored.first().map(|stored| stored.source);
            ExportError::NoConversion {
                tensor: first.map_or_else(String::new, |t| t.name.clone()),
                from: first.map_or(Dtype::F32, |t| t.dtype),
                to: format!("{name:?} of a GGUF file"),
            }
        })?;
        let (columns, matrices) = (shape.last().copied().unwrap_or(0), stored.len());
        let importance = importance::of_tensor(types, &name, (matrices, columns))?;
        let parts = stored.iter().enumerate().map(|(number, stored)| {
            let part = part(stored, kind)?;
            let conversion = importance::apply(part.conversion, importance, number, matrices);
            Ok(Part { conversion, ..part })
        });
        let plan = NewTensorPlan {
            name: name.clone(),
            dtype: kind.to_string(),
            shape: shape.clone(),
            made: Vec::new(),
            parts: parts.collect::<Result<_, ExportError>>()?,
        };
        Ok(Self {
            spec: TensorSpec { name, kind, shape },
            plan,
            in_place_of,
        })
    }
}

/// What becomes of a tensor of the pack.
fn part<'a>(stored: &Stored<'a>, kind: TensorType) -> Result<Part<'a>, ExportError> {
    let Stored {
        source,
        scales,
        arrangement,
    } = *stored;
    Ok(Part {
        source,
        beside: scales,
        arrangement,
        conversion: conversion(source, kind)?,
    })
}

/// Which types tensors get.
struct Types<'a> {
    /// What floats become; `None`: they stay as they are.
    dtype: Option<FloatDtype>,
    /// The blocks that matrices become.
    mix: Option<Mix>,
    /// How much columns count.
    importance: Option<&'a ImportanceMatrix>,
}

impl Types<'_> {
    /// The type of one, as `ModelBase.prepare_tensors` of the converter chooses it (vectors, biases
    /// and routers F32), and its quantizer.
    fn of(&self, name: &str, from: Dtype, shape: &[u64]) -> Option<Chosen> {
        let (layer, in_layer) = of_layer(name);
        let weight = in_layer.strip_suffix(".weight");
        let name = match weight {
            Some(name) if shape.len() > 1 && !ROUTERS.contains(&name) => name,
            _ => return Some(Chosen::plain(TensorType::F32)),
        };
        match (&self.mix, self.dtype) {
            (Some(mix), _) => Some(mix.kind(name, layer, shape.last().copied().unwrap_or(0))),
            (None, Some(dtype)) => Some(Chosen::plain(TensorType::of_float(dtype))),
            (None, None) => TensorType::of_dtype(from).map(Chosen::plain),
        }
    }
}

/// Matrices that are F32 always.
const ROUTERS: [&str; 2] = ["ffn_gate_inp", "ffn_gate_inp_shexp"];

/// The layer of `blk.LAYER.NAME`, and the name.
fn of_layer(name: &str) -> (Option<u32>, &str) {
    let parts = name
        .strip_prefix("blk.")
        .and_then(|rest| rest.split_once('.'));
    match parts.map(|(layer, name)| (layer.parse().ok(), name)) {
        Some((Some(layer), name)) => (Some(layer), name),
        Some((None, _)) | None => (None, name),
    }
}

fn conversion<'a>(source: &TensorEntry, kind: TensorType) -> Result<Conversion<'a>, ExportError> {
    let TensorEntry { name, dtype, .. } = source;
    let possible = match kind {
        TensorType::Blocks(blocks) => FloatDtype::try_from(*dtype)
            .ok()
            .map(|from| Conversion::Blocks(blocks, from)),
        _ if TensorType::of_dtype(*dtype) == Some(kind) => Some(Conversion::Keep),
        TensorType::F32 => FloatConversion::new(*dtype, FloatDtype::F32).map(Conversion::Float),
        TensorType::F16 => FloatConversion::new(*dtype, FloatDtype::F16).map(Conversion::Float),
        TensorType::Bf16 => FloatConversion::new(*dtype, FloatDtype::BF16).map(Conversion::Float),
        // its values keep their bits, in another order
        TensorType::Mxfp4 => (dtype.bitsize() == 8).then_some(Conversion::Keep),
    };
    possible.ok_or_else(|| ExportError::NoConversion {
        tensor: name.clone(),
        from: *dtype,
        to: kind.to_string(),
    })
}

/// Notes which tensors are larger than requested, as their rows are no whole blocks.
fn note_rows(planned: &[Planned<'_>], notes: &mut Vec<String>) {
    let mut odd: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for tensor in planned {
        let (kind, name) = (tensor.spec.kind, tensor.spec.name.as_str());
        if let Some(wanted) = tensor.in_place_of {
            let what = format!(
                "no multiple of {} and are {kind}, not {wanted}",
                wanted.values()
            );
            odd.entry(what).or_default().push(name);
        }
    }
    for (what, names) in odd {
        notes.push(format!(
            "{} tensors have rows that are {what}, as llama.cpp has it ({} and others)",
            names.len(),
            names[0]
        ));
    }
}

/// `LlamaFileType.MOSTLY_MXFP4_MOE`.
const MOSTLY_MXFP4_MOE: u32 = 38;

/// `general.file_type`: llama.cpp's name for what most tensors are (`LlamaFileType` in
/// gguf-py/gguf/constants.py).
fn file_type(settings: &ExportSettings, tensors: &[Planned<'_>]) -> u32 {
    if let Some(quantization) = settings.quantize {
        return quantization.file_type();
    }
    let mut kinds = tensors.iter().map(|p| p.spec.kind);
    if kinds.any(|kind| kind == TensorType::Mxfp4) {
        return MOSTLY_MXFP4_MOE;
    }
    match tensors.first().map(|p| p.spec.kind) {
        Some(TensorType::F16) => 1,
        Some(TensorType::Bf16) => 32,
        Some(TensorType::Blocks(_) | TensorType::Mxfp4 | TensorType::F32) | None => 0,
    }
}

type Metadata = Vec<(String, Value)>;

/// One file, or several where a size was given: the first with the model's metadata, as gguf-py
/// cuts and names them.
fn files<'a>(
    stem: &str,
    metadata: Metadata,
    tensors: Vec<Planned<'a>>,
    settings: &ExportSettings,
) -> Result<Vec<PlannedFile<'a>>, ExportError> {
    let total = tensors.len();
    let groups = cut(tensors, settings.max_shard_size);
    let count = groups.len();
    let mut metadata = metadata;
    let mut files = Vec::with_capacity(count);
    for (number, group) in groups.into_iter().enumerate() {
        let mut own = std::mem::take(&mut metadata);
        if count > 1 {
            let split = split_metadata(number, count, total);
            own.extend(split.ok_or(GgufExportError::TooManyFiles {
                files: count,
                tensors: total,
                max: MAX_FILES,
            })?);
        }
        let path = if count > 1 {
            split_name(stem, number, count)
        } else {
            format!("{stem}.gguf")
        };
        files.push(PlannedFile {
            path,
            content: Content::Tensors(tensor_file(own, group)?),
        });
    }
    // files get their names in this order, and llama.cpp begins with the first of them: without it
    // there is no model
    files.rotate_left(1);
    Ok(files)
}

/// As `GGUFWriter.add_tensor_info` cuts: a file is full when the next tensor would make it larger
/// than `max_bytes`.
fn cut(tensors: Vec<Planned<'_>>, max_bytes: Option<u64>) -> Vec<Vec<Planned<'_>>> {
    let (mut groups, mut bytes) = (vec![Vec::new()], 0_u64);
    for tensor in tensors {
        let length = tensor.plan.length();
        if bytes > 0 && max_bytes.is_some_and(|max| bytes + length > max) {
            groups.push(Vec::new());
            bytes = 0;
        }
        bytes += length;
        if let Some(open) = groups.last_mut() {
            open.push(tensor);
        }
    }
    groups
}

fn tensor_file(
    metadata: Metadata,
    tensors: Vec<Planned<'_>>,
) -> Result<TensorFile<'_>, ExportError> {
    let (specs, plans): (Vec<_>, Vec<_>) = tensors.into_iter().map(|p| (p.spec, p.plan)).unzip();
    let header = Header::place(metadata, specs).map_err(ExportError::GgufHeader)?;
    let start = header.data_start;
    if let Some((info, plan)) = header
        .tensors
        .iter()
        .zip(&plans)
        .find(|(info, plan)| info.length != plan.length())
    {
        return Err(ExportError::Parts {
            tensor: info.name.clone(),
            parts: plan.parts.len(),
            shape: info.shape.clone(),
            dtype: info.kind.to_string(),
        });
    }
    let offsets = header.tensors.iter().map(|info| start + info.offset);
    let placed = plans.into_iter().zip(offsets);
    Ok(TensorFile {
        format: FileFormat::Gguf,
        head: header.to_bytes(),
        length: header.file_length(),
        tensors: placed
            .map(|(tensor, offset)| Placed { tensor, offset })
            .collect(),
    })
}

/// Reads a written file's own index.
///
/// # Errors
/// `Io`, `Malformed`.
pub(super) fn read_index(
    input: &segpack_formats::io::InputFile,
) -> Result<Vec<super::written::WrittenTensor>, StepError> {
    let header = format::read_header(input)?;
    let mut tensors = Vec::with_capacity(header.tensors.len());
    for info in header.tensors {
        tensors.push(super::written::WrittenTensor {
            name: Some(info.name),
            dtype: info.kind.to_string(),
            shape: info.shape,
            offset: header.data_start + info.offset,
        });
    }
    Ok(tensors)
}
