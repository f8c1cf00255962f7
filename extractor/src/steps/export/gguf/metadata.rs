//! What the file says of the model, in the order of llama.cpp's converter.
//!
//! Source of keys and types: `ModelBase.prepare_metadata` and `TextModel.set_gguf_parameters` in
//! `conversion/base.py`, the models of `conversion/{llama,qwen,olmo,glm,gpt_oss}.py`, `Metadata.load`
//! in `gguf-py/gguf/metadata.py` (llama.cpp as in llama-cpp-python 0.3.36).

use segpack_formats::gguf::{Array, Value};
use segpack_manifests::Pack;
use segpack_manifests::families::{MediaFacts, RotaryScaling, WeightDivisor};
use segpack_manifests::folder::TextDecoder;
use serde_json::Value as Json;

use super::architecture::Architecture;
use super::vocabulary::Vocabulary;
use super::{Metadata, Planned};
use crate::steps::export::GgufExportError;
use crate::steps::export::origin::MANIFEST_SHA256;

/// `GGML_QNT_VERSION`.
pub(super) const QUANTIZATION_VERSION: u32 = 2;
/// `ExpertGatingFuncType.SIGMOID`.
const SIGMOID: u32 = 2;

/// Keys of `generation_config.json`, those of the metadata under `general.sampling`, and whether
/// they are integers. The first one of a key that is there counts.
const SAMPLING: [(&str, &str, bool); 12] = [
    ("top_k", "top_k", true),
    ("top_p", "top_p", false),
    ("min_p", "min_p", false),
    ("xtc_probability", "xtc_probability", false),
    ("xtc_threshold", "xtc_threshold", false),
    ("temperature", "temp", false),
    ("penalty_last_n", "penalty_last_n", true),
    ("penalty_repeat", "penalty_repeat", false),
    ("repetition_penalty", "penalty_repeat", false),
    ("mirostat", "mirostat", true),
    ("mirostat_tau", "mirostat_tau", false),
    ("mirostat_eta", "mirostat_eta", false),
];

/// Where metadata comes from.
pub(super) struct Model<'a> {
    pub pack: &'a Pack,
    /// That of the class that the converter reads.
    pub config: &'a Json,
    /// `generation_config.json`.
    pub generation: Option<&'a Json>,
    pub architecture: Architecture,
    pub decoder: &'a TextDecoder,
    /// Where encoders are written, too.
    pub omni: Option<Omni<'a>>,
}

/// A decoder with encoders beside it.
pub(super) struct Omni<'a> {
    pub media: &'a MediaFacts,
    /// The decoder's own configuration.
    pub text: &'a Json,
    /// Whether that of images is among them.
    pub takes_images: bool,
}

impl Model<'_> {
    pub(super) fn metadata(
        &self,
        tensors: &[Planned<'_>],
        file_type: u32,
        vocabulary: &Vocabulary,
    ) -> Result<Metadata, GgufExportError> {
        let mut all: Metadata = Vec::new();
        let mut add = |key: &str, value: Value| all.push((key.to_owned(), value));
        let architecture = self.architecture.as_str();
        let experts = self.decoder.facts.experts;
        add("general.architecture", architecture.into());
        add("general.type", "model".into());
        for (key, value) in self.sampling()? {
            add(&key, value);
        }
        if let Some(name) = self.name() {
            add("general.name", Value::Text(name));
        }
        add(
            "general.size_label",
            Value::Text(size_label(tensors, experts)),
        );
        for (key, value) in self.parameters() {
            add(&format!("{architecture}.{key}"), value);
        }
        if vocabulary.is_none() && self.architecture != Architecture::Llama {
            let rows = size(self.decoder.facts.vocab);
            add(&format!("{architecture}.vocab_size"), rows);
        }
        add("general.file_type", file_type.into());
        add("general.quantization_version", QUANTIZATION_VERSION.into());
        let manifest = self.pack.manifest_sha256().to_string();
        add(MANIFEST_SHA256, Value::Text(manifest));
        all.extend(vocabulary.metadata());
        Ok(all)
    }

    /// The repository's name as a title.
    fn name(&self) -> Option<String> {
        let repo = self.pack.manifest().provenance.as_ref()?.repo.as_deref()?;
        let name = repo.rsplit('/').next().unwrap_or(repo);
        Some(title(name)).filter(|t| !t.is_empty())
    }

    /// # Errors
    /// `Sampling` names a number that the format cannot hold, or that is none.
    fn sampling(&self) -> Result<Metadata, GgufExportError> {
        let mut found: Metadata = Vec::new();
        for (from, to, integer) in SAMPLING {
            let value = self.generation.and_then(|g| g.get(from));
            let Some(value) = value.filter(|value| !value.is_null()) else {
                continue;
            };
            let number =
                sampling_number(value, integer).ok_or_else(|| sampling_error(from, value))?;
            let key = format!("general.sampling.{to}");
            if !found.iter().any(|(k, _)| *k == key) {
                found.push((key, number));
            }
        }
        Ok(found)
    }

    /// The numbers of the model, those of all architectures first.
    fn parameters(&self) -> Metadata {
        let TextDecoder {
            facts, settings, ..
        } = self.decoder;
        let mut all = Metadata::new();
        let mut add = |key: &str, value: Value| all.push((key.to_owned(), value));
        add("block_count", (facts.layers + self.extra_layers()).into());
        let context = settings.max_positions;
        let context = context.unwrap_or(self.architecture.default_context());
        add("context_length", size(context));
        add("embedding_length", size(facts.hidden_size));
        add("feed_forward_length", size(self.feed_forward_length()));
        add("attention.head_count", size(facts.heads));
        add("attention.head_count_kv", size(facts.kv_heads));
        if let RotaryScaling::Yarn(yarn) = &settings.options.rotary.scaling {
            add("rope.scaling.type", "yarn".into());
            add("rope.scaling.factor", single(yarn.factor));
            let positions = size(yarn.original_positions);
            add("rope.scaling.original_context_length", positions);
            add("rope.scaling.yarn_beta_fast", single(yarn.beta_fast));
            add("rope.scaling.yarn_beta_slow", single(yarn.beta_slow));
        }
        add("rope.freq_base", single(facts.rope_theta));
        let eps = single(facts.rms_norm_eps);
        add("attention.layer_norm_rms_epsilon", eps);
        add("expert_count", facts.experts.into());
        add("expert_used_count", facts.experts_per_token.into());
        if self.has_head_dim() {
            add("attention.key_length", size(facts.head_dim));
            add("attention.value_length", size(facts.head_dim));
        }
        all.extend(self.own_parameters());
        all
    }

    /// The numbers of its architecture alone.
    fn own_parameters(&self) -> Metadata {
        let TextDecoder {
            facts, settings, ..
        } = self.decoder;
        let options = &settings.options;
        let mut all = Metadata::new();
        let mut add = |key: &str, value: Value| all.push((key.to_owned(), value));
        let inner = size(facts.moe_intermediate);
        let shared = options.shared_expert.as_ref();
        let shared = shared.map_or(0, |shared| shared.intermediate);
        match self.architecture {
            Architecture::Qwen3Moe => add("expert_feed_forward_length", inner),
            Architecture::Qwen3VlMoe => {
                add("expert_feed_forward_length", inner);
                if let Some(omni) = &self.omni {
                    let [time, height, width] = omni.media.mrope_section.map(signed);
                    let sections = vec![time, height, width, 0];
                    add(
                        "rope.dimension_sections",
                        Value::Array(Array::I32(sections)),
                    );
                    let shared = &omni.text["shared_expert_intermediate_size"];
                    if let Some(shared) = shared.as_u64() {
                        add("expert_shared_feed_forward_length", size(shared));
                    }
                    // a row of an image has values for so many layers, too; the converter writes 0, with
                    // which llama.cpp takes no image
                    let deepstack = omni.media.vision.deepstack.len();
                    let deepstack = if omni.takes_images { deepstack } else { 0 };
                    add("n_deepstack_layers", size(deepstack as u64));
                }
            }
            Architecture::Olmoe => {}
            Architecture::Llama => {
                add("vocab_size", size(facts.vocab));
                add("rope.dimension_count", size(facts.head_dim));
            }
            Architecture::Qwen2Moe => {
                add("expert_feed_forward_length", inner);
                add("expert_shared_feed_forward_length", size(shared));
            }
            Architecture::Glm4Moe => {
                // one group is none; others are refused
                add("expert_group_count", Value::U32(1));
                add("expert_group_used_count", Value::U32(1));
                add("rope.dimension_count", size(options.rotary.width));
                add("expert_feed_forward_length", inner);
                let count = shared.checked_div(facts.moe_intermediate);
                add("expert_shared_count", size(count.unwrap_or_default()));
                let dense = facts.layers - facts.moe_layers;
                add("leading_dense_block_count", dense.into());
                add("expert_gating_func", Value::U32(SIGMOID));
                add("expert_weights_scale", single(options.router.scale));
                let is_normalized = options.router.divisor != WeightDivisor::One;
                add("expert_weights_norm", is_normalized.into());
                if self.config.get("num_nextn_predict_layers").is_some() {
                    add("nextn_predict_layers", options.extra_layers.into());
                }
            }
            Architecture::GptOss => {
                let window = options.windows.iter().flatten().next();
                add(
                    "attention.sliding_window",
                    size(window.copied().unwrap_or(0)),
                );
                add("expert_feed_forward_length", inner);
            }
        }
        all
    }

    /// Layers that predict later tokens, which are numbered on.
    fn extra_layers(&self) -> u32 {
        match self.architecture {
            Architecture::Glm4Moe => self.decoder.settings.options.extra_layers,
            Architecture::Qwen3Moe
            | Architecture::Qwen3VlMoe
            | Architecture::Llama
            | Architecture::Olmoe
            | Architecture::Qwen2Moe
            | Architecture::GptOss => 0,
        }
    }

    /// The inner width of a dense MLP, or of an expert where the model has one width.
    fn feed_forward_length(&self) -> u64 {
        let facts = &self.decoder.facts;
        match self.architecture {
            Architecture::Qwen3Moe
            | Architecture::Qwen3VlMoe
            | Architecture::Qwen2Moe
            | Architecture::Glm4Moe => facts.intermediate,
            Architecture::Llama | Architecture::Olmoe | Architecture::GptOss => {
                facts.moe_intermediate
            }
        }
    }

    /// Whether the width of a head is told: where the class always has one, or the configuration.
    fn has_head_dim(&self) -> bool {
        match self.architecture {
            Architecture::Qwen3Moe
            | Architecture::Qwen3VlMoe
            | Architecture::Glm4Moe
            | Architecture::GptOss => true,
            Architecture::Llama | Architecture::Olmoe | Architecture::Qwen2Moe => {
                self.config.get("head_dim").is_some_and(Json::is_number)
            }
        }
    }
}

/// A number of `generation_config.json`, if 32 bits can hold it.
fn sampling_number(value: &Json, integer: bool) -> Option<Value> {
    if integer {
        let number = value.as_i64().and_then(|n| i32::try_from(n).ok());
        return number.map(Value::I32);
    }
    let number = value.as_f64().filter(|n| n.abs() <= f64::from(f32::MAX));
    number.map(single)
}

fn sampling_error(key: &str, value: &Json) -> GgufExportError {
    GgufExportError::Sampling {
        key: key.to_owned(),
        seen: value.to_string().chars().take(60).collect(),
    }
}

/// Sizes of a configuration fit 32 bits.
pub(super) fn size(number: u64) -> Value {
    Value::U32(u32::try_from(number).unwrap_or(u32::MAX))
}

fn signed(number: u64) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "the format has 32 bits for it"
)]
pub(super) fn single(number: f64) -> Value {
    Value::F32(number as f32)
}

/// Words with capitals, as `Metadata.id_to_title`: those in small letters that are no version.
fn title(id: &str) -> String {
    let spaced = id.replace('-', " ");
    let words: Vec<String> = spaced.split_whitespace().map(capital).collect();
    words.join(" ")
}

fn capital(word: &str) -> String {
    let small = word.chars().any(char::is_alphabetic) && !word.chars().any(char::is_uppercase);
    let is_version = word.starts_with(|c: char| c.is_ascii_digit()) || is_version_number(word);
    match word.chars().next() {
        Some(first) if small && !is_version => {
            first.to_uppercase().chain(word.chars().skip(1)).collect()
        }
        _ => word.to_owned(),
    }
}

/// `v2`, `v1.5`.
fn is_version_number(word: &str) -> bool {
    let number = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    word.strip_prefix('v')
        .is_some_and(|rest| rest.split('.').all(number))
}

/// Parameters as `size_label` of gguf-py/gguf/utility.py writes them: experts times what one of
/// them and the rest have.
fn size_label(tensors: &[Planned<'_>], experts: u32) -> String {
    let values = |t: &Planned<'_>| t.plan.values();
    let (stacked, shared): (Vec<_>, Vec<_>) = tensors.iter().partition(|t| is_stack(t));
    let shared: u64 = shared.into_iter().map(values).sum();
    let one: u64 = stacked
        .into_iter()
        .map(|t| values(t) / u64::from(experts.max(1)))
        .sum();
    format!("{experts}x{}", rounded(shared + one))
}

/// Matrices of experts; their biases are counted as what all of them share.
fn is_stack(tensor: &Planned<'_>) -> bool {
    tensor.spec.name.contains("_exps.") && tensor.spec.shape.len() == 3
}

/// At least two digits: 1.8B, 30B, 235B.
#[expect(clippy::cast_precision_loss, reason = "two digits are wanted")]
pub(super) fn rounded(parameters: u64) -> String {
    let count = parameters as f64;
    let (scaled, suffix) = match count {
        c if c > 1e12 => (c * 1e-12, "T"),
        c if c > 1e9 => (c * 1e-9, "B"),
        c if c > 1e6 => (c * 1e-6, "M"),
        c => (c * 1e-3, "K"),
    };
    let whole = scaled.round_ties_even();
    let digits = if whole == 0.0 {
        0
    } else {
        format!("{whole:.0}").len()
    };
    format!("{scaled:.*}{suffix}", 2_usize.saturating_sub(digits))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_rounded_as_gguf_py_does() {
        // by gguf.utility.model_weight_count_rounded_notation
        let labels = [
            (30_532_122_624, "31B"),
            (1_800_000_000, "1.8B"),
            (95_000, "95K"),
            (400, "0.40K"),
            (9_960_000, "10M"),
        ];
        for (count, label) in labels {
            assert_eq!(rounded(count), label);
        }
    }

    #[test]
    fn a_repository_becomes_a_title() {
        assert_eq!(
            title("Qwen3-Omni-30B-A3B-Instruct"),
            "Qwen3 Omni 30B A3B Instruct"
        );
        assert_eq!(title("my-model-v1.5-7b"), "My Model v1.5 7b");
    }
}
