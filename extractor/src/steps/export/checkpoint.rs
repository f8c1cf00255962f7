//! The targets that are checkpoints of Hugging Face: shards, index, configuration and side files.
//!
//! `hf` keeps the names of the source. `qwen3-moe` makes the thinker's text decoder a
//! `Qwen3MoeForCausalLM`, which computes the same for text.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use segpack_formats::safetensors::ShardHeader;
use segpack_manifests::Pack;
use segpack_manifests::documents::{
    ComponentExperts, ExpertParallelMap, FormatVersion, GENERATOR, Placement, RankExperts,
    SourceFile, SourceFileKind, TensorEntry,
};
use segpack_manifests::families::{self, Family};
use segpack_manifests::names::Component;
use segpack_runtime_min::processing::text::chat_template;
use segpack_runtime_min::processing::text::tokenizer::Tokenizer;
use serde_json::{Map, Value, json};

use super::plan::{Content, Conversion, ExportPlan, NewTensorPlan, Part, PlannedFile, TensorFile};
use super::source::{source_bytes, source_json, stored_bytes};
use super::{ExpertParallel, ExportSettings, present, selected};
use crate::steps::StepError;

const CONFIG: &str = "config.json";
const GENERATION_CONFIG: &str = "generation_config.json";
const INDEX: &str = "model.safetensors.index.json";
const TOKENIZER: &str = "tokenizer.json";
const TEMPLATE: &str = "chat_template.jinja";
/// Which rank holds which expert.
const EXPERT_PARALLEL: &str = "expert_parallel.json";

/// Files of a tokenizer and of those who generate with it.
const TEXT_FILES: [&str; 9] = [
    GENERATION_CONFIG,
    TOKENIZER,
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    TEMPLATE,
    "chat_template.json",
];

/// The original layout, for the selected components.
///
/// # Errors
/// `Usage` for components or ranks that there are not; `Input` where a stacked tensor is not there
/// as a whole.
pub fn hf<'a>(pack: &'a Pack, settings: &ExportSettings) -> Result<ExportPlan<'a>, StepError> {
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
    let config = hf_config(pack, &components, settings, &mut plan.notes)?;
    for file in side_files(pack) {
        match (&config, file.path.as_str()) {
            (Some(config), CONFIG) => plan.files.push(document(CONFIG, config)?),
            _ => plan.files.push(PlannedFile {
                path: file.path.clone(),
                content: Content::Copy(file),
            }),
        }
    }
    finish(plan, planned, &share, settings)
}

/// The text decoder as a plain `Qwen3MoeForCausalLM`.
///
/// # Errors
/// `Usage` where the selection has no text decoder; `Input` where the pack has none, or no
/// configuration.
pub fn qwen3_moe<'a>(
    pack: &'a Pack,
    settings: &ExportSettings,
) -> Result<ExportPlan<'a>, StepError> {
    let (component, family) = text_decoder(pack, settings)?;
    let tensors: Vec<&TensorEntry> = pack
        .manifest()
        .tensors
        .iter()
        .filter(|t| t.component == component)
        .collect();
    let share = Share::of(&tensors, settings)?;
    let tensors = in_source_order(share.of_tensors(tensors));
    let rename = |name: &str| causal_name(name).to_owned();
    let planned = tensors
        .into_iter()
        .map(|t| NewTensorPlan::of(rename(&t.name), t, settings.dtype))
        .collect();
    let mut plan = ExportPlan::default();
    if component == Component::ThinkerText {
        plan.notes.push(
            "this is the thinker's text part: for text it computes the same, images, audio and video need the full \
             thinker (--to hf --component thinker)"
                .to_owned(),
        );
    }
    let Some(config) = source_json(pack, CONFIG)? else {
        return Err(StepError::Input(
            "the pack has no config.json to make one from".to_owned(),
        ));
    };
    let generation = source_json(pack, GENERATION_CONFIG)?;
    let mut config = families::as_causal_lm(family, &config, generation.as_ref())
        .map_err(|e| StepError::Input(format!("{CONFIG}: {e}")))?;
    if let Some(dtype) = settings.dtype {
        families::set_dtype(&mut config, dtype);
    }
    plan.files.push(document(CONFIG, &config)?);
    text_files(pack, &mut plan)?;
    finish(plan, planned, &share, settings)
}

/// The component that is the text decoder, and the family of its configuration.
///
/// # Errors
/// As [`qwen3_moe`].
pub fn text_decoder(
    pack: &Pack,
    settings: &ExportSettings,
) -> Result<(Component, Family), StepError> {
    let components = selected(pack, settings)?;
    let is_text = |c: &Component| matches!(c, Component::Text | Component::ThinkerText);
    let Some(component) = components.into_iter().find(is_text) else {
        let target = settings.target;
        return Err(if present(pack).iter().any(is_text) {
            StepError::Usage(format!(
                "--to {target} is for the text decoder, which --component does not select"
            ))
        } else {
            StepError::Input(format!(
                "the pack has no text decoder, which --to {target} is for"
            ))
        });
    };
    match pack.manifest().model.family {
        Some(family) => Ok((component, family)),
        None => Err(StepError::Input(
            "the pack does not say which family of models it is".to_owned(),
        )),
    }
}

/// A thinker's tensor as `Qwen3MoeForCausalLM` calls it: `thinker.model.X` is `model.X`,
/// `thinker.lm_head.X` is `lm_head.X`.
pub fn causal_name(name: &str) -> &str {
    name.strip_prefix("thinker.").unwrap_or(name)
}

/// Which experts go along.
struct Share {
    parallel: Option<ExpertParallel>,
    /// Experts of each component that has any.
    experts: BTreeMap<Component, u32>,
}

/// Experts `start..end` of one rank: contiguous, the first `experts % ranks` ranks have one more.
/// vLLM's "linear" placement:
/// <https://docs.vllm.ai/en/latest/api/vllm/model_executor/layers/fused_moe/expert_map_manager/>.
pub fn linear_share(experts: u32, rank: u32, ranks: u32) -> std::ops::Range<u32> {
    let (base, more) = (experts / ranks, experts % ranks);
    let start = rank * base + rank.min(more);
    start..start + base + u32::from(rank < more)
}

impl Share {
    fn of(tensors: &[&TensorEntry], settings: &ExportSettings) -> Result<Self, StepError> {
        let mut experts: BTreeMap<Component, u32> = BTreeMap::new();
        for tensor in tensors {
            if let Some(expert) = tensor.expert {
                let count = experts.entry(tensor.component).or_default();
                *count = (*count).max(expert + 1);
            }
        }
        let parallel = settings.expert_parallel;
        if let Some(ExpertParallel { ranks, .. }) = parallel {
            if experts.is_empty() {
                return Err(StepError::Usage(
                    "--expert-parallel: what is selected has no experts".to_owned(),
                ));
            }
            if let Some((component, count)) = experts.iter().find(|(_, count)| **count < ranks) {
                return Err(StepError::Usage(format!(
                    "--expert-parallel: {component} has {count} experts, too few for {ranks} ranks; --component selects \
                     others"
                )));
            }
        }
        Ok(Self { parallel, experts })
    }

    fn of_tensors<'a>(&self, mut tensors: Vec<&'a TensorEntry>) -> Vec<&'a TensorEntry> {
        if let Some(ExpertParallel { rank, ranks }) = self.parallel {
            tensors.retain(|t| match (t.expert, self.experts.get(&t.component)) {
                (Some(expert), Some(count)) => linear_share(*count, rank, ranks).contains(&expert),
                _ => true,
            });
        }
        tensors
    }

    fn map(&self) -> Option<ExpertParallelMap> {
        let ExpertParallel { rank, ranks } = self.parallel?;
        let of_rank = |count: u32| {
            move |rank| RankExperts {
                rank,
                experts: linear_share(count, rank, ranks).collect(),
            }
        };
        let of_component = |(component, count): (&Component, &u32)| ComponentExperts {
            component: *component,
            experts: *count,
            ranks: (0..ranks).map(of_rank(*count)).collect(),
        };
        Some(ExpertParallelMap {
            format_version: FormatVersion::CURRENT,
            generator: GENERATOR.to_owned(),
            placement: Placement::Linear,
            rank,
            ranks,
            components: self.experts.iter().map(of_component).collect(),
        })
    }
}

fn in_source_order(mut tensors: Vec<&TensorEntry>) -> Vec<&TensorEntry> {
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
            planned[number].parts.push(Part {
                source: tensor,
                conversion,
            });
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
        let listed = listed
            .ok_or_else(|| StepError::Input(format!("the pack does not list shard {file}")))?;
        let bytes = stored_bytes(pack, listed)?;
        let path = pack.path(&listed.stored_as);
        let header = ShardHeader::parse(bytes.get(8..).unwrap_or_default(), listed.length)
            .map_err(|e| StepError::malformed(&path, e.to_string()))?;
        headers.insert(file, header);
    }
    let tensors = headers
        .get(file)
        .map(|h| h.tensors.as_slice())
        .unwrap_or_default();
    let found = tensors.iter().find(|t| t.name == slice.source.tensor);
    found.map(|t| t.shape.clone()).ok_or_else(|| {
        StepError::Input(format!(
            "shard {file} has no tensor {:?}, which the pack names",
            slice.source.tensor
        ))
    })
}

/// Everything of the checkpoint that is neither a shard nor the index of shards.
fn side_files(pack: &Pack) -> impl Iterator<Item = &SourceFile> {
    let files = pack.manifest().source_files.iter();
    files.filter(|f| f.kind == SourceFileKind::File && !f.path.ends_with(".safetensors.index.json"))
}

/// The configuration for these components; none where it stays as it is.
fn hf_config(
    pack: &Pack,
    components: &BTreeSet<Component>,
    settings: &ExportSettings,
    notes: &mut Vec<String>,
) -> Result<Option<Value>, StepError> {
    let Some(before) = source_json(pack, CONFIG)? else {
        return Ok(None);
    };
    let mut config = before.clone();
    if pack.manifest().model.family == Some(Family::Qwen3OmniMoe) {
        let has = |all: &[Component]| all.iter().all(|c| components.contains(c));
        let thinker = has(&[
            Component::ThinkerText,
            Component::ThinkerAudio,
            Component::ThinkerVision,
        ]);
        let speech = [
            Component::TalkerText,
            Component::TalkerCodePredictor,
            Component::Code2wav,
        ];
        let promised = families::has_audio_output(&before);
        if thinker && promised && !speech.iter().any(|c| components.contains(c)) {
            config = families::without_audio_output(&before);
            notes.push("the thinker alone: config.json says enable_audio_output: false".to_owned());
        } else if !thinker || (promised && !has(&speech)) {
            notes.push(
                "these components are no whole model: config.json is the checkpoint's, and no class of transformers \
                 loads them without the rest"
                    .to_owned(),
            );
        }
    }
    if let Some(dtype) = settings.dtype {
        families::set_dtype(&mut config, dtype);
    }
    Ok((config != before).then_some(config))
}

/// The files of the tokenizer, with a `tokenizer.json` and a template where transformers would look
/// for them in vain.
fn text_files<'a>(pack: &'a Pack, plan: &mut ExportPlan<'a>) -> Result<(), StepError> {
    let listed: Vec<&SourceFile> = side_files(pack)
        .filter(|f| TEXT_FILES.contains(&f.path.as_str()) || f.path.starts_with("LICENSE"))
        .collect();
    let has = |name: &str| listed.iter().any(|f| f.path == name);
    let files = |name: &str| source_bytes(pack, name);
    if !has(TOKENIZER) && has("vocab.json") && has("merges.txt") {
        let built = Tokenizer::load(&files).and_then(|tokenizer| tokenizer.to_json());
        let json =
            built.map_err(|e| StepError::Input(format!("{TOKENIZER} cannot be built: {e}")))?;
        plan.files.push(PlannedFile {
            path: TOKENIZER.to_owned(),
            content: Content::Bytes(json),
        });
        plan.notes.push(format!(
            "{TOKENIZER} is built from vocab.json and merges.txt"
        ));
    } else if !has(TOKENIZER) {
        plan.notes
            .push("the checkpoint has no tokenizer; give token ids instead of text".to_owned());
    }
    // AutoTokenizer reads the template of a processor (chat_template.json) nowhere
    if !has(TEMPLATE)
        && let Some(template) = chat_template::processor_template(&files)
            .map_err(|e| StepError::Input(format!("chat_template.json: {e}")))?
        && source_json(pack, "tokenizer_config.json")?
            .is_none_or(|c| c.get("chat_template").is_none())
    {
        let content = Content::Bytes(template.into_bytes());
        plan.files.push(PlannedFile {
            path: TEMPLATE.to_owned(),
            content,
        });
        plan.notes
            .push(format!("{TEMPLATE} is the template of chat_template.json"));
    }
    let copies = listed.into_iter().map(|f| PlannedFile {
        path: f.path.clone(),
        content: Content::Copy(f),
    });
    plan.files.extend(copies);
    Ok(())
}

/// Cuts the tensors into shards, and adds what names them.
fn finish<'a>(
    mut plan: ExportPlan<'a>,
    tensors: Vec<NewTensorPlan<'a>>,
    share: &Share,
    settings: &ExportSettings,
) -> Result<ExportPlan<'a>, StepError> {
    if let Some(map) = share.map() {
        plan.notes.push(format!(
            "rank {} of {}: experts are stored one by one; {EXPERT_PARALLEL} says which rank holds which",
            map.rank, map.ranks
        ));
        let json = serde_json::to_value(&map).map_err(|e| StepError::Refused(e.to_string()))?;
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
            content: Content::Tensors(TensorFile::safetensors(tensors)?),
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

/// As transformers cuts: a shard is full when the next tensor would make it larger than `most`
/// bytes, and a tensor that is larger alone has one to itself (`split_torch_state_dict_into_shards`
/// of huggingface_hub).
fn cut(tensors: Vec<NewTensorPlan<'_>>, most: u64) -> Vec<Vec<NewTensorPlan<'_>>> {
    let mut shards: Vec<Vec<NewTensorPlan<'_>>> = Vec::new();
    let (mut open, mut bytes) = (Vec::new(), 0_u64);
    for tensor in tensors {
        let length = tensor.length();
        if length > most {
            shards.push(vec![tensor]);
            continue;
        }
        if bytes + length > most {
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

/// A document as transformers writes its own.
fn document<'a>(path: &str, value: &Value) -> Result<PlannedFile<'a>, StepError> {
    let mut text =
        serde_json::to_string_pretty(value).map_err(|e| StepError::Refused(e.to_string()))?;
    text.push('\n');
    Ok(PlannedFile {
        path: path.to_owned(),
        content: Content::Bytes(text.into_bytes()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_share_all_experts_and_the_first_have_one_more() {
        let lengths = |experts, ranks| -> Vec<usize> {
            (0..ranks)
                .map(|rank| linear_share(experts, rank, ranks).len())
                .collect()
        };
        assert_eq!(lengths(128, 8), [16; 8]);
        assert_eq!(lengths(10, 4), [3, 3, 2, 2]);
        for (experts, ranks) in [(1, 1), (12, 5), (128, 3), (7, 7), (60, 8)] {
            let all: Vec<u32> = (0..ranks)
                .flat_map(|rank| linear_share(experts, rank, ranks))
                .collect();
            assert_eq!(
                all,
                (0..experts).collect::<Vec<_>>(),
                "{experts} over {ranks}"
            );
        }
    }
}
