//! `gguf`: the text decoder for llama.cpp, architecture `qwen3moe`.
//!
//! Metadata and tensors are those that llama.cpp's own `convert_hf_to_gguf.py` makes of the
//! `qwen3-moe` export of the same pack (compared with the one in llama-cpp-python 0.3.36 by
//! `tests/peers/heavy`). What differs, and why:
//!
//! | what | the converter | here |
//! |---|---|---|
//! | `general.name` | the name of the folder that it reads | the repository's, where the pack knows it, else none: a folder's name says nothing of the model |
//! | `general.basename`, `.finetune`, `.version`, `.organization` | guessed from that folder's name | none |
//! | `general.license`, `.tags`, `.base_model.*` and the like | from the head of `README.md` | none: they describe the checkpoint that is packed, not what was made of it |
//! | `qwen3moe.vocab_size` without a tokenizer | cannot convert | there, with `tokenizer.ggml.model` = `none` |
//! | `segpack.manifest_sha256` | none | the pack's identity |
//! | order of tensors | that of the source's shards | embedding, layers, final norm, head |
//! | a value that F16 cannot hold | infinity | an error |
//! | a NaN or infinity in blocks | whatever the processor makes of it | an error |
//!
//! Norms and routers are always F32. Of quantized files each tensor has the type that llama.cpp's own
//! quantizer gives it (`mix.rs`), which for Q8_0 is the converter's, too.
//!
//! llama.cpp's `qwen3moe` (`src/models/qwen3moe.cpp`) has experts in every layer, scales the chosen
//! experts to sum to 1, and knows neither biases nor shared experts. A model that needs what it
//! lacks is refused.

mod importance;
mod metadata;
mod mix;
mod vocabulary;

use std::collections::{BTreeMap, HashMap};

use segpack_formats::gguf::{
    self as format, Header, ImportanceMatrix, MAX_FILES, TensorSpec, TensorType, Value,
    split_metadata, split_name,
};
use segpack_formats::numeric::ggml::BlockType;
use segpack_formats::numeric::{Dtype, FloatConversion, FloatDtype};
use segpack_manifests::documents::TensorEntry;
use segpack_manifests::families::TextFacts;
use segpack_manifests::names::{Component, Part as WeightPart, Role};
use segpack_manifests::{Pack, PackModel};

use super::plan::{
    Content, Conversion, ExportPlan, FileFormat, NewTensorPlan, Part, Placed, PlannedFile,
    TensorFile,
};
use super::qwen3_moe::{causal_lm, text_decoder};
use super::source::source_json;
use super::{ExportError, ExportSettings, GgufExportError};
use crate::steps::StepError;
use metadata::Model;
use mix::{Chosen, Mix};
use vocabulary::Vocabulary;

/// The text decoder as one GGUF file, or as several.
///
/// # Errors
/// `Name` for a name that does not end in `.gguf`; where `qwen3moe` cannot express the model, the
/// pack lacks tensors of it, or its tokenizer is of a kind that llama.cpp's name is not known of.
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
    let (component, decoder) = text_decoder(pack, model, settings)?;
    let config = model.config().ok_or(ExportError::NoConfig)?;
    let generation = source_json(pack, "generation_config.json")?;
    let config = causal_lm(&decoder, (config, generation.as_ref()), settings)?;
    let facts = decoder.facts;
    metadata::check_expressible(&config, &facts)?;
    let mut plan = ExportPlan::default();
    let tensors = Tensors::of(pack, component, &facts)?;
    let types = tensors.types(settings)?;
    let tensors = tensors.plan(&types, &mut plan.notes)?;
    let vocabulary = Vocabulary::of(pack, &config, &facts, settings, &mut plan.notes)?;
    let model = Model {
        pack,
        config: &config,
        generation: generation.as_ref(),
        facts: &facts,
    };
    let mut metadata = model.metadata(&tensors, file_type(settings, &tensors), &vocabulary)?;
    metadata.extend(settings.importance.iter().flat_map(importance::metadata));
    if component == Component::ThinkerText {
        plan.notes.push(
            "this is the thinker's text part: for text it computes the same, images, audio and video need the full thinker"
                .to_owned(),
        );
    }
    plan.files = files(stem, metadata, tensors, settings)?;
    Ok(plan)
}

/// The tensors of a text decoder, each in its place in the model.
struct Tensors<'a, 'f> {
    by_place: HashMap<Place, &'a TensorEntry>,
    facts: &'f TextFacts,
}

/// What a tensor is: role, layer and expert.
type Place = (Role, Option<u32>, Option<u32>);

const HEAD: Place = (Role::LmHead, None, None);

/// Tensors of a layer in the order of the file: role, its name in llama.cpp, whether one for each
/// expert.
///
/// Source of the names: `TENSOR_NAMES` in gguf-py/gguf/constants.py.
const LAYER: [(Role, &str, bool); 12] = [
    (Role::InputNorm, "attn_norm", false),
    (Role::AttentionQ, "attn_q", false),
    (Role::AttentionK, "attn_k", false),
    (Role::AttentionV, "attn_v", false),
    (Role::AttentionO, "attn_output", false),
    (Role::QNorm, "attn_q_norm", false),
    (Role::KNorm, "attn_k_norm", false),
    (Role::PostAttentionNorm, "ffn_norm", false),
    (Role::Router, "ffn_gate_inp", false),
    (Role::ExpertGate, "ffn_gate_exps", true),
    (Role::ExpertUp, "ffn_up_exps", true),
    (Role::ExpertDown, "ffn_down_exps", true),
];

impl<'a, 'f> Tensors<'a, 'f> {
    fn of(
        pack: &'a Pack,
        component: Component,
        facts: &'f TextFacts,
    ) -> Result<Self, GgufExportError> {
        let mut by_place = HashMap::new();
        for tensor in pack
            .manifest()
            .tensors
            .iter()
            .filter(|t| t.component == component)
        {
            if !matches!(tensor.part, WeightPart::Weight | WeightPart::Bias) {
                return Err(GgufExportError::Part {
                    tensor: tensor.name.clone(),
                    part: tensor.part.to_string(),
                });
            }
            let place = (tensor.role, tensor.layer, tensor.expert);
            if let Some(other) = by_place.insert(place, tensor) {
                return Err(GgufExportError::Twice {
                    first: other.name.clone(),
                    second: tensor.name.clone(),
                    role: tensor.role.to_string(),
                });
            }
        }
        Ok(Self { by_place, facts })
    }

    fn take(&mut self, place: Place, wanted: &[u64]) -> Result<&'a TensorEntry, GgufExportError> {
        let (role, layer, expert) = place;
        let Some(tensor) = self.by_place.remove(&place) else {
            return Err(GgufExportError::Missing {
                role: role.to_string(),
                layer,
                expert,
            });
        };
        if tensor.shape != wanted {
            return Err(GgufExportError::Shape {
                tensor: tensor.name.clone(),
                seen: tensor.shape.clone(),
                wanted: wanted.to_vec(),
            });
        }
        Ok(tensor)
    }

    /// Which types they get.
    fn types(&self, settings: &'a ExportSettings) -> Result<Types<'a>, GgufExportError> {
        let facts = self.facts;
        if settings.importance.is_some() {
            importance::check(settings.quantize)?;
        }
        Ok(Types {
            dtype: settings.dtype,
            importance: settings.importance.as_ref().map(|i| &i.matrix),
            mix: settings.quantize.map(|quantization| Mix {
                quantization,
                layers: facts.layers,
                experts: facts.experts,
                tied: !self.has_head(),
            }),
        })
    }

    /// A tied head is the embedding, which llama.cpp takes where there is no other.
    fn has_head(&self) -> bool {
        !self.facts.tie_word_embeddings || self.by_place.contains_key(&HEAD)
    }

    /// All of them in the order of the file. What is left over has no place in `qwen3moe`.
    fn plan(
        mut self,
        types: &Types<'a>,
        notes: &mut Vec<String>,
    ) -> Result<Vec<Planned<'a>>, ExportError> {
        let facts = self.facts;
        let table = [facts.vocab, facts.hidden_size];
        let mut planned =
            vec![self.one((Role::Embedding, None, None), "token_embd", &table, types)?];
        for layer in 0..facts.layers {
            for (role, name, by_expert) in LAYER {
                let name = format!("blk.{layer}.{name}");
                let shape = shape_of(role, facts);
                planned.push(if by_expert {
                    self.stack(role, layer, &name, &shape, types)?
                } else {
                    self.one((role, Some(layer), None), &name, &shape, types)?
                });
            }
        }
        planned.push(self.one(
            (Role::FinalNorm, None, None),
            "output_norm",
            &[facts.hidden_size],
            types,
        )?);
        if self.has_head() {
            planned.push(self.one(HEAD, "output", &table, types)?);
        }
        if let Some(odd) = self.by_place.values().min_by_key(|t| &t.name) {
            return Err(GgufExportError::NoSuchTensor {
                tensor: odd.name.clone(),
                role: odd.role.to_string(),
            }
            .into());
        }
        note_rows(&planned, notes);
        importance::note_missing(&planned, types, notes)?;
        Ok(planned)
    }

    fn one(
        &mut self,
        place: Place,
        name: &str,
        shape: &[u64],
        types: &Types<'a>,
    ) -> Result<Planned<'a>, ExportError> {
        let source = self.take(place, shape)?;
        Planned::new(name, place.0, shape.to_vec(), vec![source], types)
    }

    /// The matrices of all experts of a layer as one tensor, `[experts, out, in]`.
    fn stack(
        &mut self,
        role: Role,
        layer: u32,
        name: &str,
        shape: &[u64],
        types: &Types<'a>,
    ) -> Result<Planned<'a>, ExportError> {
        let experts = 0..self.facts.experts;
        let sources: Vec<_> = experts
            .map(|expert| self.take((role, Some(layer), Some(expert)), shape))
            .collect::<Result<_, _>>()?;
        let mut stacked = vec![u64::from(self.facts.experts)];
        stacked.extend(shape);
        Planned::new(name, role, stacked, sources, types)
    }
}

/// Shape of a tensor of a layer, of one expert's where it is an expert's.
fn shape_of(role: Role, facts: &TextFacts) -> Vec<u64> {
    let (hidden, inner) = (facts.hidden_size, facts.moe_intermediate);
    let (queries, keys) = (
        facts.heads * facts.head_dim,
        facts.kv_heads * facts.head_dim,
    );
    match role {
        Role::AttentionQ => vec![queries, hidden],
        Role::AttentionK | Role::AttentionV => vec![keys, hidden],
        Role::AttentionO => vec![hidden, queries],
        Role::QNorm | Role::KNorm => vec![facts.head_dim],
        Role::Router => vec![u64::from(facts.experts), hidden],
        Role::ExpertGate | Role::ExpertUp => vec![inner, hidden],
        Role::ExpertDown => vec![hidden, inner],
        _ => vec![hidden],
    }
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
        role: Role,
        shape: Vec<u64>,
        sources: Vec<&'a TensorEntry>,
        types: &Types<'a>,
    ) -> Result<Self, ExportError> {
        let from = sources.first().map_or(Dtype::F32, |t| t.dtype);
        let chosen = types.of(name, role, from, &shape);
        let name = format!("{name}.weight");
        let Chosen { kind, in_place_of } = chosen.ok_or_else(|| {
            let tensor = sources.first().map_or_else(String::new, |t| t.name.clone());
            let to = format!("{name:?} of a GGUF file");
            ExportError::NoConversion { tensor, from, to }
        })?;
        let columns = shape.last().copied().unwrap_or(0);
        let matrices = sources.len();
        let importance = importance::of_tensor(types, &name, (matrices, columns))?;
        let parts = sources
            .into_iter()
            .enumerate()
            .map(|(number, source)| {
                let conversion = conversion(source, kind)?;
                let conversion = importance::apply(conversion, importance, number, matrices);
                Ok(Part { source, conversion })
            })
            .collect::<Result<_, ExportError>>()?;
        let plan = NewTensorPlan {
            name: name.clone(),
            dtype: kind.to_string(),
            shape: shape.clone(),
            parts,
        };
        Ok(Self {
            spec: TensorSpec { name, kind, shape },
            plan,
            in_place_of,
        })
    }
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
    /// The type of one, as `ModelBase.prepare_tensors` of the converter chooses it (norms and routers
    /// F32), and its quantizer.
    fn of(&self, name: &str, role: Role, from: Dtype, shape: &[u64]) -> Option<Chosen> {
        let always_f32 = matches!(
            role,
            Role::InputNorm
                | Role::PostAttentionNorm
                | Role::QNorm
                | Role::KNorm
                | Role::FinalNorm
                | Role::Router
        );
        if always_f32 {
            return Some(Chosen::plain(TensorType::F32));
        }
        match (&self.mix, self.dtype) {
            (Some(mix), _) => {
                let (layer, name) = of_layer(name);
                Some(mix.kind(name, layer, shape.last().copied().unwrap_or(0)))
            }
            (None, Some(dtype)) => Some(Chosen::plain(TensorType::of_float(dtype))),
            (None, None) => TensorType::of_dtype(from).map(Chosen::plain),
        }
    }
}

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

/// `general.file_type`: llama.cpp's name for what most tensors are (`LlamaFileType` in
/// gguf-py/gguf/constants.py).
fn file_type(settings: &ExportSettings, tensors: &[Planned<'_>]) -> u32 {
    if let Some(quantization) = settings.quantize {
        return quantization.file_type();
    }
    match tensors.first().map(|p| p.spec.kind) {
        Some(TensorType::F16) => 1,
        Some(TensorType::Bf16) => 32,
        Some(TensorType::Blocks(_) | TensorType::F32) | None => 0,
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
