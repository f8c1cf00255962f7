//! The configuration of a `Qwen3MoeForCausalLM`: the keys that transformers, vLLM, mistral.rs and
//! candle look for.

use serde_json::{Value, json};

use super::TextFacts;
use super::config::{ConfigError, Section};

/// Makes such a configuration of a checkpoint's and its `generation_config.json`.
pub(crate) type AsCausalLm = fn(&Value, Option<&Value>) -> Result<Value, ConfigError>;

/// Keys of `Qwen3MoeConfig` (transformers 4.57 and 5) that decide no shape,
/// with the defaults of `Qwen3OmniMoeTextConfig`.
pub(crate) fn defaults() -> [(&'static str, Value); 8] {
    [
        ("hidden_act", json!("silu")),
        ("max_position_embeddings", json!(32768)),
        ("initializer_range", json!(0.02)),
        ("use_cache", json!(true)),
        ("attention_dropout", json!(0.0)),
        ("decoder_sparse_step", json!(1)),
        ("output_router_logits", json!(false)),
        ("router_aux_loss_coef", json!(0.001)),
    ]
}

/// The keys that follow from the decoder's numbers.
pub(crate) fn numbers(facts: &TextFacts) -> [(&'static str, Value); 17] {
    [
        ("attention_bias", json!(facts.attention_bias)),
        ("head_dim", json!(facts.head_dim)),
        ("hidden_size", json!(facts.hidden_size)),
        ("intermediate_size", json!(facts.intermediate)),
        // of sliding windows, which nobody uses here: all layers, as in Qwen's own configurations;
        // mistral.rs and candle do not read one without it
        ("max_window_layers", json!(facts.layers)),
        ("moe_intermediate_size", json!(facts.moe_intermediate)),
        ("norm_topk_prob", json!(facts.norm_topk_prob)),
        ("num_attention_heads", json!(facts.heads)),
        ("num_experts", json!(facts.experts)),
        ("num_experts_per_tok", json!(facts.experts_per_token)),
        ("num_hidden_layers", json!(facts.layers)),
        ("num_key_value_heads", json!(facts.kv_heads)),
        ("rms_norm_eps", json!(facts.rms_norm_eps)),
        ("rope_theta", json!(facts.rope_theta)),
        ("tie_word_embeddings", json!(facts.tie_word_embeddings)),
        ("use_qk_norm", json!(true)),
        ("vocab_size", json!(facts.vocab)),
    ]
}

/// A configuration of `Qwen3MoeConfig` with what it leaves to the class's defaults written out, for
/// mistral.rs and candle have none and refuse a configuration without. What it says stays.
///
/// # Errors
/// `ConfigError` where it is no JSON object.
pub(crate) fn completed(config: &Value, facts: &TextFacts) -> Result<Value, ConfigError> {
    Section::root(config)?;
    let mut config = config.clone();
    let Some(keys) = config.as_object_mut() else {
        return Ok(config);
    };
    let others = [
        ("mlp_only_layers", json!([])),
        ("sliding_window", Value::Null),
        ("use_sliding_window", json!(false)),
    ];
    let all = numbers(facts).into_iter().chain(defaults()).chain(others);
    for (key, value) in all {
        if !keys.contains_key(key) {
            keys.insert(key.to_owned(), value);
        }
    }
    Ok(config)
}
