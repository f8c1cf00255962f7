//! What the file says of the model, in the order of llama.cpp's converter.
//!
//! Source of keys and types: `ModelBase.prepare_metadata` and `TextModel.set_gguf_parameters` in
//! `conversion/base.py`, `Qwen2MoeModel` in `conversion/qwen.py`, `Metadata.load` in
//! `gguf-py/gguf/metadata.py` (llama.cpp as in llama-cpp-python 0.3.36).

use segpack_formats::gguf::Value;
use segpack_manifests::Pack;
use segpack_manifests::families::TextFacts;
use serde_json::Value as Json;

use super::vocabulary::Vocabulary;
use super::{Metadata, Planned};
use crate::steps::export::GgufExportError;
use crate::steps::export::origin::MANIFEST_SHA256;

const ARCHITECTURE: &str = "qwen3moe";

/// `GGML_QNT_VERSION`.
const QUANTIZATION_VERSION: u32 = 2;

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

/// Whether llama.cpp's `qwen3moe` computes this model.
///
/// # Errors
/// `Setting` with the one that it does not know.
pub(super) fn check_expressible(config: &Json, facts: &TextFacts) -> Result<(), GgufExportError> {
    match inexpressible(config, facts) {
        Some(what) => Err(GgufExportError::Setting { what }),
        None => Ok(()),
    }
}

/// The first thing that llama.cpp does otherwise, and what this model does.
fn inexpressible(config: &Json, facts: &TextFacts) -> Option<String> {
    let text = |what: &str| Some(what.to_owned());
    if facts.moe_layers != facts.layers {
        return Some(format!(
            "has experts in every layer, this model in {} of {} (mlp_only_layers, decoder_sparse_step)",
            facts.moe_layers, facts.layers
        ));
    }
    if facts.attention_bias {
        return text("has no biases, this model has attention_bias");
    }
    if !facts.norm_topk_prob {
        return text(
            "scales the chosen experts' weights to sum to 1, this model does not (norm_topk_prob is false)",
        );
    }
    if facts.rope_type != "default" {
        return Some(format!(
            "gets no scaled positions from segpack (rope type {:?})",
            facts.rope_type
        ));
    }
    if config.get("use_sliding_window").and_then(Json::as_bool) == Some(true) {
        return text("attends to everything, this model has use_sliding_window");
    }
    match config.get("hidden_act").and_then(Json::as_str) {
        None | Some("silu") => None,
        Some(other) => Some(format!("computes silu, this model {other:?} (hidden_act)")),
    }
}

/// Where metadata comes from.
pub(super) struct Model<'a> {
    pub pack: &'a Pack,
    /// That of a `Qwen3MoeForCausalLM`.
    pub config: &'a Json,
    /// `generation_config.json`.
    pub generation: Option<&'a Json>,
    pub facts: &'a TextFacts,
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
        add("general.architecture", ARCHITECTURE.into());
        add("general.type", "model".into());
        for (key, value) in self.sampling()? {
            add(&key, value);
        }
        if let Some(name) = self.name() {
            add("general.name", Value::Text(name));
        }
        add(
            "general.size_label",
            Value::Text(size_label(tensors, self.facts.experts)),
        );
        for (key, value) in self.parameters() {
            add(&format!("{ARCHITECTURE}.{key}"), value);
        }
        if vocabulary.is_none() {
            add(
                &format!("{ARCHITECTURE}.vocab_size"),
                size(self.facts.vocab),
            );
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

    fn parameters(&self) -> [(&'static str, Value); 13] {
        let facts = self.facts;
        // the default of Qwen3MoeConfig
        let context = self
            .config
            .get("max_position_embeddings")
            .and_then(Json::as_u64)
            .unwrap_or(32_768);
        [
            ("block_count", facts.layers.into()),
            ("context_length", size(context)),
            ("embedding_length", size(facts.hidden_size)),
            ("feed_forward_length", size(facts.intermediate)),
            ("attention.head_count", size(facts.heads)),
            ("attention.head_count_kv", size(facts.kv_heads)),
            ("rope.freq_base", single(facts.rope_theta)),
            (
                "attention.layer_norm_rms_epsilon",
                single(facts.rms_norm_eps),
            ),
            ("expert_count", facts.experts.into()),
            ("expert_used_count", facts.experts_per_token.into()),
            ("attention.key_length", size(facts.head_dim)),
            ("attention.value_length", size(facts.head_dim)),
            ("expert_feed_forward_length", size(facts.moe_intermediate)),
        ]
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
fn size(number: u64) -> Value {
    Value::U32(u32::try_from(number).unwrap_or(u32::MAX))
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "the format has 32 bits for it"
)]
fn single(number: f64) -> Value {
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
    let (stacked, shared): (Vec<_>, Vec<_>) = tensors
        .iter()
        .partition(|t| t.plan.parts.len() > 1 || is_stack(t));
    let shared: u64 = shared.into_iter().map(values).sum();
    let one: u64 = stacked
        .into_iter()
        .map(|t| values(t) / u64::from(experts.max(1)))
        .sum();
    format!("{experts}x{}", rounded(shared + one))
}

/// A stack of one expert has one part.
fn is_stack(tensor: &Planned<'_>) -> bool {
    tensor.spec.name.contains("_exps.")
}

/// At least two digits: 1.8B, 30B, 235B.
#[expect(clippy::cast_precision_loss, reason = "two digits are wanted")]
fn rounded(parameters: u64) -> String {
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

    /// A small model with other settings: whether llama.cpp computes it.
    fn check(changes: &Json) -> Result<(), String> {
        let mut config = serde_json::json!({
            "model_type": "qwen3_moe", "vocab_size": 100, "hidden_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "num_experts": 4,
            "num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": true,
        });
        for (key, value) in changes.as_object().into_iter().flatten() {
            config[key] = value.clone();
        }
        let facts = segpack_manifests::families::Family::named("qwen3_moe")
            .unwrap()
            .text_facts(&config)
            .unwrap();
        check_expressible(&config, &facts).map_err(|e| e.to_string())
    }

    #[test]
    fn what_llama_cpp_does_not_compute_is_refused_by_its_setting() {
        assert_eq!(check(&serde_json::json!({})), Ok(()));
        for (changes, words) in [
            (
                serde_json::json!({"mlp_only_layers": [1]}),
                "experts in every layer, this model in 1 of 2",
            ),
            (serde_json::json!({"attention_bias": true}), "no biases"),
            (
                serde_json::json!({"norm_topk_prob": false}),
                "norm_topk_prob",
            ),
            (
                serde_json::json!({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}),
                "\"yarn\"",
            ),
            (
                serde_json::json!({"use_sliding_window": true}),
                "use_sliding_window",
            ),
            (serde_json::json!({"hidden_act": "gelu"}), "hidden_act"),
        ] {
            let said = check(&changes).unwrap_err();
            assert!(said.contains(words), "{said}");
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
