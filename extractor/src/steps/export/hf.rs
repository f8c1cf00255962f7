//! The target `hf`, a checkpoint of Hugging Face under the names of the source: shards, index,
//! configuration and side files.

use std::collections::{BTreeSet, HashMap};

use segpack_formats::safetensors::ShardHeader;
use segpack_manifests::documents::{SourceFile, SourceFileKind, TensorEntry};
use segpack_manifests::families::{self, FamilyName, PartialConfig};
use segpack_manifests::folder::shard_header;
use segpack_manifests::names::Component;
use segpack_manifests::{Pack, PackModel};
use serde_json::{Map, Value, json};

use super::expert_parallel::{EXPERT_PARALLEL, Share};
use super::origin::Origin;
use super::plan::{Content, Conversion, ExportPlan, NewTensorPlan, Part, PlannedFile, TensorFile};

use super::{ExportError, ExportSettings, selected};
use crate::steps::StepError;

pub(super) const CONFIG: &str = "config.json";
pub(super) const INDEX: &str = "model.safetensors.index.json";

/// The original layout, for the selected components.
///
/// # Errors
/// Where components or ranks are selected that there are not, or a stacked tensor is not there as a
/// whole.
pub(super) fn hf<'a>(
    pack: &'a Pack,
    model: &PackModel,
    settings: &ExportSettings,
) -> Result<ExportPlan<'a>, StepError> {
    let components = selected(pack, settings)?;
    let tensors: Vec<&TensorEntry> = pack
        .manifest()
        .tensors
        .iter()
        .filter(|t| components.contains(&t.component))
        .collect();
    let share = Share::of(&tensors, settings)?;
    let tensors = share.of_tensors(tensors);
    let mut plan = ExportPlan::default();
    let wanted = settings.dtype;
    let planned = if settings.expert_parallel.is_some() {
        in_source_order(tensors)
            .into_iter()
            .map(|t| NewTensorPlan::of(t.name.clone(), t, wanted))
            .collect()
    } else {
        as_in_source(pack, tensors, settings)?
    };
    let config = hf_config(pack, model, &components, settings, &mut plan.notes)?;
    for file in side_files(pack) {
        match (&config, file.path.as_str()) {
            (Some(config), CONFIG) => plan.files.push(document(CONFIG, config)?),
            _ => plan.files.push(PlannedFile {
                path: file.path.clone(),
                content: Content::Copy(file),
            }),
        }
    }
    finish(plan, planned, (pack, &share), settings)
}

pub(super) fn in_source_order(mut tensors: Vec<&TensorEntry>) -> Vec<&TensorEntry> {
    tensors
        .sort_by(|a, b| (&a.source.file, a.source.offset).cmp(&(&b.source.file, b.source.offset)));
    tensors
}

/// Tensors under the names and shapes that the checkpoint had, in its order.
fn as_in_source<'a>(
    pack: &'a Pack,
    tensors: Vec<&'a TensorEntry>,
    settings: &ExportSettings,
) -> Result<Vec<NewTensorPlan<'a>>, StepError> {
    let (mut planned, mut stacks, mut headers) = (Vec::new(), HashMap::new(), HashMap::new());
    for tensor in in_source_order(tensors) {
        let source = &tensor.source;
        if source.tensor == tensor.name {
            planned.push(NewTensorPlan::of(
                tensor.name.clone(),
                tensor,
                settings.dtype,
            ));
            continue;
        }
        let number = *stacks
            .entry((&source.file, &source.tensor))
            .or_insert(planned.len());
        if number == planned.len() {
            let mut first = NewTensorPlan::of(source.tensor.clone(), tensor, settings.dtype);
            first.shape = stacked_shape(pack, tensor, &mut headers)?;
            planned.push(first);
        } else {
            let conversion = Conversion::to(tensor.dtype, settings.dtype);
            planned[number].parts.push(Part::of(tensor, conversion));
        }
    }
    Ok(planned)
}

/// The shape that a stacked tensor had in its shard.
fn stacked_shape<'a>(
    pack: &'a Pack,
    slice: &'a TensorEntry,
    headers: &mut HashMap<&'a str, ShardHeader>,
) -> Result<Vec<u64>, StepError> {
    let file = slice.source.file.as_str();
    if !headers.contains_key(file) {
        let listed = pack.manifest().source_files.iter().find(|f| f.path == file);
        let listed = listed.ok_or_else(|| ExportError::NoSuchShard {
            file: file.to_owned(),
        })?;
        headers.insert(file, shard_header(pack, listed)?);
    }
    let tensors = headers
        .get(file)
        .map(|h| h.tensors.as_slice())
        .unwrap_or_default();
    let found = tensors.iter().find(|t| t.name == slice.source.tensor);
    match found {
        Some(tensor) => Ok(tensor.shape.clone()),
        None => Err(ExportError::NoSuchStack {
            file: file.to_owned(),
            tensor: slice.source.tensor.clone(),
        }
        .into()),
    }
}

/// Everything of the checkpoint that is neither a shard nor the index of shards.
pub(super) fn side_files(pack: &Pack) -> impl Iterator<Item = &SourceFile> {
    let files = pack.manifest().source_files.iter();
    files.filter(|f| f.kind == SourceFileKind::File && !f.path.ends_with(".safetensors.index.json"))
}

/// The configuration for these components; none where it stays as it is.
fn hf_config(
    pack: &Pack,
    model: &PackModel,
    components: &BTreeSet<Component>,
    settings: &ExportSettings,
    notes: &mut Vec<String>,
) -> Result<Option<Value>, StepError> {
    let Some(before) = model.config() else {
        return Ok(None);
    };
    let mut config = before.clone();
    let family = pack.manifest().model.family.and_then(FamilyName::family);
    match family.map(|f| f.partial_config(before, components)) {
        Some(PartialConfig::ThinkerOnly(thinker)) => {
            config = thinker;
            notes.push("the thinker alone: config.json says enable_audio_output: false".to_owned());
        }
        Some(PartialConfig::NoModel) => notes.push(
            "these components are no whole model: config.json is the checkpoint's, and no class of transformers \
             loads them without the rest"
                .to_owned(),
        ),
        _ => {}
    }
    if let Some(dtype) = settings.dtype {
        families::set_dtype(&mut config, dtype);
    }
    Ok((config != *before).then_some(config))
}

/// Cuts the tensors into shards, and adds what names them.
pub(super) fn finish<'a>(
    mut plan: ExportPlan<'a>,
    tensors: Vec<NewTensorPlan<'a>>,
    (pack, share): (&Pack, &Share),
    settings: &ExportSettings,
) -> Result<ExportPlan<'a>, StepError> {
    let origin = Origin::of_share(pack, share);
    if let Some(map) = share.map() {
        plan.notes.push(format!(
            "rank {} of {}: experts are stored one by one; {EXPERT_PARALLEL} says which rank holds which",
            map.rank, map.ranks
        ));
        let json = serde_json::to_value(&map).map_err(|e| not_encoded(EXPERT_PARALLEL, e))?;
        plan.files.push(document(EXPERT_PARALLEL, &json)?);
    }
    let values: u64 = tensors.iter().map(NewTensorPlan::values).sum();
    let bytes: u64 = tensors.iter().map(NewTensorPlan::length).sum();
    let shards = cut(tensors, settings.shard_bytes());
    let count = shards.len();
    let mut map = Map::new();
    for (number, tensors) in shards.into_iter().enumerate() {
        let path = match count {
            1 => "model.safetensors".to_owned(),
            _ => format!("model-{:05}-of-{count:05}.safetensors", number + 1),
        };
        map.extend(
            tensors
                .iter()
                .map(|t| (t.name.clone(), Value::from(path.as_str()))),
        );
        plan.files.push(PlannedFile {
            path,
            content: Content::Tensors(TensorFile::safetensors(tensors, &origin)?),
        });
    }
    if count > 1 {
        let metadata = json!({"total_parameters": values, "total_size": bytes});
        plan.files.push(document(
            INDEX,
            &json!({"metadata": metadata, "weight_map": map}),
        )?);
    }
    Ok(plan)
}

/// As transformers cuts: a shard is full when the next tensor would make it larger than `max_bytes`
/// bytes, and a tensor that is larger alone has one to itself (`split_torch_state_dict_into_shards`
/// of huggingface_hub).
fn cut(tensors: Vec<NewTensorPlan<'_>>, max_bytes: u64) -> Vec<Vec<NewTensorPlan<'_>>> {
    let mut shards: Vec<Vec<NewTensorPlan<'_>>> = Vec::new();
    let (mut open, mut bytes) = (Vec::new(), 0_u64);
    for tensor in tensors {
        let length = tensor.length();
        if length > max_bytes {
            shards.push(vec![tensor]);
            continue;
        }
        if bytes + length > max_bytes {
            shards.push(std::mem::take(&mut open));
            bytes = 0;
        }
        bytes += length;
        open.push(tensor);
    }
    shards.push(open);
    shards.retain(|shard| !shard.is_empty());
    shards
}

fn not_encoded(file: &str, source: serde_json::Error) -> ExportError {
    ExportError::Document {
        file: file.to_owned(),
        source,
    }
}

/// A document as transformers writes its own.
pub(super) fn document<'a>(path: &str, value: &Value) -> Result<PlannedFile<'a>, ExportError> {
    let mut text = serde_json::to_string_pretty(value).map_err(|e| not_encoded(path, e))?;
    text.push('\n');
    Ok(PlannedFile {
        path: path.to_owned(),
        content: Content::Bytes(text.into_bytes()),
    })
}
