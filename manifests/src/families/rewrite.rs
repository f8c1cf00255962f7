//! `config.json` for a part of a model, or for another class that computes the same.

use segpack_formats::numeric::Dtype;
use serde_json::{Map, Value, json};

use super::{ConfigError, Family, TextFacts};

/// Keys of [`without_audio_output`] that describe what is gone.
const AUDIO_OUTPUT: [&str; 2] = ["talker_config", "code2wav_config"];

/// Keys of multimodal rotary scaling: for text all three positions are the same, and it is the
/// ordinary rotation. Source: Qwen3OmniMoeThinkerTextRotaryEmbedding, transformers 5.23,
/// modeling_qwen3_omni_moe.py.
const MROPE: [&str; 3] = ["mrope_section", "mrope_interleaved", "interleaved"];

/// Keys of `Qwen3MoeConfig` (transformers 4.57 and 5) that the thinker's `text_config` has too,
/// with the default of `Qwen3OmniMoeTextConfig`; numbers that decide shapes come from
/// [`TextFacts`].
fn common_defaults() -> [(&'static str, Value); 8] {
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

/// The configuration of an omni model of which only the thinker is there: `enable_audio_output` is
/// false, and the parts that are gone are not described. `Qwen3OmniMoeForConditionalGeneration`
/// builds neither talker nor vocoder then.
#[must_use]
pub fn without_audio_output(config: &Value) -> Value {
    let mut config = config.clone();
    if let Some(keys) = config.as_object_mut() {
        keys.retain(|key, _| !AUDIO_OUTPUT.contains(&key.as_str()));
        keys.insert("enable_audio_output".to_owned(), json!(false));
    }
    config
}

/// Whether a configuration promises a talker or a vocoder.
#[must_use]
pub fn has_audio_output(config: &Value) -> bool {
    let described = AUDIO_OUTPUT
        .iter()
        .any(|key| config.get(key).is_some_and(|v| !v.is_null()));
    config
        .get("enable_audio_output")
        .and_then(Value::as_bool)
        .unwrap_or(described)
}

/// The same text decoder as a `Qwen3MoeForCausalLM`: the thinker's `text_config` in the keys of
/// `Qwen3MoeConfig`, so that transformers 4 and 5 and everybody who reads their configurations find
/// what they look for. A configuration that is one already stays as it is. `generation` is
/// `generation_config.json`, whose special ids are taken where the thinker has none.
///
/// # Errors
/// As [`Family::text_facts`].
pub fn as_causal_lm(
    family: Family,
    config: &Value,
    generation: Option<&Value>,
) -> Result<Value, ConfigError> {
    if family == Family::Qwen3Moe {
        return Ok(config.clone());
    }
    let facts = family.text_facts(config)?;
    let thinker = config.get("thinker_config").unwrap_or(config);
    let text = thinker.get("text_config").unwrap_or(&Value::Null);
    let mut new = Map::new();
    let mut set = |key: &str, value: Value| new.insert(key.to_owned(), value);
    set("architectures", json!(["Qwen3MoeForCausalLM"]));
    set("model_type", json!("qwen3_moe"));
    for (key, default) in common_defaults() {
        set(
            key,
            text.get(key)
                .filter(|v| !v.is_null())
                .cloned()
                .unwrap_or(default),
        );
    }
    set(
        "mlp_only_layers",
        text.get("mlp_only_layers")
            .filter(|v| v.is_array())
            .cloned()
            .unwrap_or(json!([])),
    );
    for (key, value) in numbers(&facts) {
        set(key, value);
    }
    // the thinker's attention ignores both (modeling_qwen3_omni_moe.py,
    // Qwen3OmniMoeThinkerTextAttention)
    set("use_sliding_window", json!(false));
    set("sliding_window", Value::Null);
    set("rope_scaling", rope_scaling(text));
    for key in ["bos_token_id", "eos_token_id", "pad_token_id"] {
        let places = [Some(text), Some(thinker), Some(config), generation];
        let stated = places
            .into_iter()
            .flatten()
            .find_map(|place| place.get(key).filter(|v| !v.is_null()));
        set(key, stated.cloned().unwrap_or(Value::Null));
    }
    let stated = [text, thinker, config].into_iter().find_map(|place| {
        ["dtype", "torch_dtype"]
            .iter()
            .find_map(|key| place.get(key).filter(|v| v.is_string()))
    });
    if let Some(dtype) = stated {
        set("torch_dtype", dtype.clone());
    }
    if let Some(version) = config.get("transformers_version") {
        set("transformers_version", version.clone());
    }
    Ok(Value::Object(new))
}

fn numbers(facts: &TextFacts) -> [(&'static str, Value); 16] {
    [
        ("attention_bias", json!(facts.attention_bias)),
        ("head_dim", json!(facts.head_dim)),
        ("hidden_size", json!(facts.hidden_size)),
        ("intermediate_size", json!(facts.intermediate)),
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

/// What is left of the thinker's rotary scaling for text: nothing where it is only multimodal.
fn rope_scaling(text: &Value) -> Value {
    let scaling = text
        .get("rope_scaling")
        .or_else(|| text.get("rope_parameters"))
        .and_then(Value::as_object);
    let Some(mut scaling) = scaling.cloned() else {
        return Value::Null;
    };
    scaling.retain(|key, _| !MROPE.contains(&key.as_str()) && key != "rope_theta");
    let kind = |key: &str| scaling.get(key).and_then(Value::as_str);
    match kind("rope_type").or(kind("type")) {
        None | Some("default" | "mrope" | "axial") => Value::Null,
        Some(_) => Value::Object(scaling),
    }
}

/// Says in a configuration, wherever it names a dtype of its weights, that they are of this one
/// (F16, BF16 or F32).
pub fn set_dtype(config: &mut Value, dtype: Dtype) {
    let name = match dtype {
        Dtype::F16 => "float16",
        Dtype::BF16 => "bfloat16",
        _ => "float32",
    };
    if replace_dtype(config, name) == 0
        && let Some(keys) = config.as_object_mut()
    {
        keys.insert("torch_dtype".to_owned(), json!(name));
    }
}

fn replace_dtype(value: &mut Value, name: &str) -> usize {
    let Some(keys) = value.as_object_mut() else {
        return 0;
    };
    let mut replaced = 0;
    for (key, value) in keys {
        if matches!(key.as_str(), "dtype" | "torch_dtype") && value.is_string() {
            *value = json!(name);
            replaced += 1;
        } else {
            replaced += replace_dtype(value, name);
        }
    }
    replaced
}

#[cfg(test)]
mod tests {
    use super::*;

    fn omni() -> Value {
        json!({
            "model_type": "qwen3_omni_moe", "enable_audio_output": true, "dtype": "bfloat16",
            "talker_config": {"text_config": {"dtype": "bfloat16"}}, "code2wav_config": {},
            "thinker_config": {"text_config": {
                "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
                "head_dim": 32, "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
                "rope_theta": 500000.0, "sliding_window": 4096, "use_sliding_window": true,
                "rope_scaling": {"mrope_section": [6, 5, 5], "rope_type": "default", "interleaved": true},
            }, "audio_config": {}, "vision_config": {}},
        })
    }

    #[test]
    fn the_thinker_becomes_a_causal_model() {
        let generation = json!({"eos_token_id": [1, 2], "pad_token_id": 3});
        let new = as_causal_lm(Family::Qwen3OmniMoe, &omni(), Some(&generation)).unwrap();
        assert_eq!(Family::of_config(&new), Some(Family::Qwen3Moe));
        assert_eq!(
            Family::Qwen3Moe.text_facts(&new).unwrap(),
            Family::Qwen3OmniMoe.text_facts(&omni()).unwrap()
        );
        assert_eq!(
            (&new["rope_scaling"], &new["sliding_window"]),
            (&Value::Null, &Value::Null)
        );
        assert_eq!(
            (&new["eos_token_id"], &new["torch_dtype"]),
            (&json!([1, 2]), &json!("bfloat16"))
        );
        // what is one already stays
        assert_eq!(as_causal_lm(Family::Qwen3Moe, &new, None).unwrap(), new);
    }

    #[test]
    fn real_scaling_stays_without_its_multimodal_part() {
        let mut config = omni();
        config["thinker_config"]["text_config"]["rope_scaling"] =
            json!({"rope_type": "yarn", "factor": 4.0, "mrope_section": [6, 5, 5]});
        let new = as_causal_lm(Family::Qwen3OmniMoe, &config, None).unwrap();
        assert_eq!(
            new["rope_scaling"],
            json!({"rope_type": "yarn", "factor": 4.0})
        );
    }

    #[test]
    fn a_thinker_alone_promises_no_audio() {
        assert!(has_audio_output(&omni()));
        let new = without_audio_output(&omni());
        assert!(!has_audio_output(&new) && new.get("talker_config").is_none());
        assert_eq!(new["thinker_config"], omni()["thinker_config"]);
    }

    #[test]
    fn every_mention_of_the_dtype_follows() {
        let mut config = omni();
        set_dtype(&mut config, Dtype::F32);
        assert_eq!(config["dtype"], "float32");
        assert_eq!(config["talker_config"]["text_config"]["dtype"], "float32");
        let mut silent = json!({"model_type": "qwen3_moe"});
        set_dtype(&mut silent, Dtype::F16);
        assert_eq!(silent["torch_dtype"], "float16");
    }
}
