//! The target `qwen3-moe`: the thinker's text decoder as a `Qwen3MoeForCausalLM`, which computes the
//! same for text.

use segpack_manifests::documents::{SourceFile, TensorEntry};
use segpack_manifests::families;
use segpack_manifests::folder::{TextDecoder, source_file};
use segpack_manifests::names::Component;
use segpack_manifests::{Pack, PackModel};
use segpack_runtime_min::processing::text::chat_template;
use segpack_runtime_min::processing::text::tokenizer::Tokenizer;

use serde_json::Value;

use super::expert_parallel::Share;
use super::hf::{CONFIG, document, finish, in_source_order, side_files};
use super::plan::{Content, ExportPlan, NewTensorPlan, PlannedFile};
use super::source::source_json;
use super::{ExportError, ExportSettings, present, selected};
use crate::steps::StepError;

const GENERATION_CONFIG: &str = "generation_config.json";
const TOKENIZER: &str = "tokenizer.json";
const TEMPLATE: &str = "chat_template.jinja";
/// Files of a tokenizer and of those who generate with it.
pub(super) const TEXT_FILES: [&str; 9] = [
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

/// The text decoder as a plain `Qwen3MoeForCausalLM`.
///
/// # Errors
/// Where the selection or the pack has no text decoder, or the pack no configuration.
pub(super) fn qwen3_moe<'a>(
    pack: &'a Pack,
    model: &PackModel,
    settings: &ExportSettings,
) -> Result<ExportPlan<'a>, StepError> {
    let family = pack.manifest().model.known_family();
    let family = family.map_err(ExportError::Family)?;
    if !family.is_qwen3_moe() {
        let (family, target) = (family.name(), settings.target);
        return Err(ExportError::OtherArchitecture { target, family }.into());
    }
    let (component, decoder) = text_decoder(pack, model, settings)?;
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
    plan.notes.extend(of_biases(decoder.facts.attention_bias));
    let config = model.config().ok_or(ExportError::NoConfig)?;
    let generation = source_json(pack, GENERATION_CONFIG)?;
    let mut config = causal_lm(&decoder, (config, generation.as_ref()), settings)?;
    if let Some(dtype) = settings.dtype {
        families::set_dtype(&mut config, dtype);
    }
    plan.files.push(document(CONFIG, &config)?);
    text_files(pack, &mut plan)?;
    finish(plan, planned, (pack, &share), settings)
}

/// What becomes of biases of attention in runtimes that were tried.
fn of_biases(has_biases: bool) -> Option<String> {
    let note = "attention_bias is true: vLLM 0.32 leaves out the biases of o_proj and mistral.rs 0.9.5 those of q, k, v \
                and o, both without a message, and so compute another model; transformers computes with all of them";
    has_biases.then(|| note.to_owned())
}

/// The component that is the text decoder, and its numbers.
///
/// # Errors
/// As [`qwen3_moe`].
pub(super) fn text_decoder(
    pack: &Pack,
    model: &PackModel,
    settings: &ExportSettings,
) -> Result<(Component, TextDecoder), StepError> {
    let components = selected(pack, settings)?;
    let is_text = |c: &Component| matches!(c, Component::Text | Component::ThinkerText);
    let Some(component) = components.into_iter().find(is_text) else {
        let target = settings.target;
        return Err(if present(pack).iter().any(is_text) {
            ExportError::NotSelected { target }.into()
        } else {
            ExportError::NoTextDecoder { target }.into()
        });
    };
    let decoder = model.text_decoder().map_err(ExportError::Model)?;
    Ok((component, decoder))
}

/// The configuration of the decoder as a `Qwen3MoeForCausalLM`, of the checkpoint's and its
/// `generation_config.json`.
///
/// # Errors
/// `OtherArchitecture` where it computes something else; `Config` where a number cannot be used.
pub(super) fn causal_lm(
    decoder: &TextDecoder,
    (config, generation): (&Value, Option<&Value>),
    settings: &ExportSettings,
) -> Result<Value, ExportError> {
    let family = decoder.family;
    let made = family.as_causal_lm(config, generation);
    let made = made.map_err(ExportError::Config)?;
    made.ok_or_else(|| ExportError::OtherArchitecture {
        target: settings.target,
        family: family.name(),
    })
}

/// A thinker's tensor as `Qwen3MoeForCausalLM` calls it: `thinker.model.X` is `model.X`,
/// `thinker.lm_head.X` is `lm_head.X`.
pub(super) fn causal_name(name: &str) -> &str {
    name.strip_prefix("thinker.").unwrap_or(name)
}

/// The files of the tokenizer, with a `tokenizer.json` and a template where transformers would look
/// for them in vain.
fn text_files<'a>(pack: &'a Pack, plan: &mut ExportPlan<'a>) -> Result<(), StepError> {
    let listed: Vec<&SourceFile> = side_files(pack)
        .filter(|f| TEXT_FILES.contains(&f.path.as_str()) || f.path.starts_with("LICENSE"))
        .collect();
    let has = |name: &str| listed.iter().any(|f| f.path == name);
    let files = |name: &str| source_file(pack, name);
    if !has(TOKENIZER) && has("vocab.json") && has("merges.txt") {
        let built = Tokenizer::load(&files).and_then(|tokenizer| tokenizer.to_json());
        let json = built.map_err(ExportError::Tokenizer)?;
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
        && let Some(template) =
            chat_template::processor_template(&files).map_err(ExportError::Template)?
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
