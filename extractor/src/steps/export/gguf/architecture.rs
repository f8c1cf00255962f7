//! llama.cpp's architectures that are written, and what each of them computes.
//!
//! Source: `src/models/{qwen3moe,qwen3vlmoe,llama,olmoe,qwen2moe,glm4-moe,openai-moe}.cpp` of llama.cpp (as in
//! llama-cpp-python 0.3.36).

use segpack_manifests::families::{
    DecoderOptions, ExpertActivation, Family, RotaryScaling, TextFacts, WeightDivisor,
};
use segpack_manifests::folder::TextDecoder;
use serde_json::Value as Json;

use crate::steps::export::GgufExportError;

/// An architecture of llama.cpp.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Architecture {
    /// Qwen3-MoE and the thinker of Qwen3-Omni.
    Qwen3Moe,
    /// The thinker of Qwen3-Omni, with encoders beside it.
    Qwen3VlMoe,
    /// Mixtral, among others.
    Llama,
    /// OLMoE.
    Olmoe,
    /// Qwen2-MoE and Qwen1.5-MoE.
    Qwen2Moe,
    /// GLM-4.5 and GLM-4.6.
    Glm4Moe,
    /// gpt-oss.
    GptOss,
}

/// What an OLMoE adds in its norms, whatever `config.json` says.
const OLMOE_EPS: f64 = 1e-5;
/// Factor and bound of gpt-oss's activation (`ggml_swiglu_oai`).
const GPT_OSS_SWIGLU: ExpertActivation = ExpertActivation::ClampedSwiglu {
    alpha: 1.702,
    limit: 7.0,
};

impl Architecture {
    /// That of a family, where llama.cpp's converter writes it under the same names.
    pub(super) fn of(family: Family) -> Option<Self> {
        if family.is_qwen3_moe() {
            return Some(Self::Qwen3Moe);
        }
        match family.as_str() {
            "mixtral" => Some(Self::Llama),
            "olmoe" => Some(Self::Olmoe),
            "qwen2_moe" => Some(Self::Qwen2Moe),
            "glm4_moe" => Some(Self::Glm4Moe),
            "gpt_oss" => Some(Self::GptOss),
            _ => None,
        }
    }

    /// `general.architecture`, which the keys of its numbers begin with.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Qwen3Moe => "qwen3moe",
            Self::Qwen3VlMoe => "qwen3vlmoe",
            Self::Llama => "llama",
            Self::Olmoe => "olmoe",
            Self::Qwen2Moe => "qwen2moe",
            Self::Glm4Moe => "glm4moe",
            Self::GptOss => "gpt-oss",
        }
    }

    /// What the norm behind the attention is called.
    pub(super) const fn post_attention_norm(self) -> &'static str {
        match self {
            Self::Qwen3Moe | Self::Qwen3VlMoe | Self::Llama | Self::Olmoe | Self::Qwen2Moe => {
                "ffn_norm.weight"
            }
            Self::Glm4Moe | Self::GptOss => "post_attention_norm.weight",
        }
    }

    /// `max_position_embeddings` of a configuration without it: the default of the official class.
    pub(super) const fn default_context(self) -> u64 {
        match self {
            Self::Qwen3Moe | Self::Qwen3VlMoe | Self::Qwen2Moe => 32_768,
            Self::Olmoe => 4096,
            Self::Llama | Self::Glm4Moe | Self::GptOss => 131_072,
        }
    }

    /// Whether the embedding is the head of a file that has no other.
    const fn may_be_tied(self) -> bool {
        match self {
            Self::Qwen3Moe | Self::Qwen3VlMoe | Self::Llama | Self::Glm4Moe => true,
            Self::Olmoe | Self::Qwen2Moe | Self::GptOss => false,
        }
    }

    /// Refuses a model that it does not compute.
    ///
    /// # Errors
    /// `Setting` with what it computes, and what the model does instead.
    pub(super) fn check(
        self,
        config: &Json,
        decoder: &TextDecoder,
        has_head: bool,
    ) -> Result<(), GgufExportError> {
        match self.inexpressible(config, decoder, has_head) {
            None => Ok(()),
            Some(what) => Err(GgufExportError::Setting {
                architecture: self.as_str(),
                what,
            }),
        }
    }

    /// What llama.cpp computes a little otherwise.
    pub(super) fn note(decoder: &TextDecoder) -> Option<String> {
        match &decoder.settings.options.rotary.scaling {
            RotaryScaling::Yarn(yarn) if !yarn.truncates => says(
                "llama.cpp rounds the bounds of YaRN, this model does not (\"truncate\": false): some positions turn by \
                 slightly other angles there",
            ),
            RotaryScaling::Yarn(_) | RotaryScaling::Unscaled => None,
        }
    }

    /// The first thing that llama.cpp does otherwise, and what this model does.
    fn inexpressible(self, config: &Json, decoder: &TextDecoder, has_head: bool) -> Option<String> {
        if !has_head && !self.may_be_tied() {
            return says(
                "has a head of its own, the head of this model is its embedding (tie_word_embeddings)",
            );
        }
        let (facts, options) = (&decoder.facts, &decoder.settings.options);
        match self {
            Self::Qwen3Moe | Self::Qwen3VlMoe => qwen3_moe(config, facts),
            Self::Llama => unscaled(facts, options).or_else(|| mixtral(options)),
            Self::Olmoe => unscaled(facts, options).or_else(|| olmoe(facts, options)),
            Self::Qwen2Moe => unscaled(facts, options).or_else(|| qwen2_moe(facts, options)),
            Self::Glm4Moe => unscaled(facts, options).or_else(|| glm4_moe(decoder)),
            Self::GptOss => gpt_oss(facts, options),
        }
    }
}

fn says(what: &str) -> Option<String> {
    Some(what.to_owned())
}

fn qwen3_moe(config: &Json, facts: &TextFacts) -> Option<String> {
    experts_everywhere(facts).or_else(|| operations_of_qwen3(config, facts))
}

fn operations_of_qwen3(config: &Json, facts: &TextFacts) -> Option<String> {
    if facts.attention_bias {
        return says("has no biases, this model has attention_bias");
    }
    if !facts.norm_topk_prob {
        return says(
            "scales the chosen experts' weights to sum to 1, this model does not (norm_topk_prob is false)",
        );
    }
    if facts.rope_type != "default" {
        return scaled(facts);
    }
    if config.get("use_sliding_window").and_then(Json::as_bool) == Some(true) {
        return says("attends to everything, this model has use_sliding_window");
    }
    match config.get("hidden_act").and_then(Json::as_str) {
        None | Some("silu") => None,
        Some(other) => Some(format!("computes silu, this model {other:?} (hidden_act)")),
    }
}

fn experts_everywhere(facts: &TextFacts) -> Option<String> {
    (facts.moe_layers != facts.layers).then(|| {
        format!(
            "has experts in every layer, this model in {} of {} (mlp_only_layers, decoder_sparse_step)",
            facts.moe_layers, facts.layers
        )
    })
}

/// llama.cpp's factor of YaRN's attention is not the official classes' where a file names one.
fn unscaled(facts: &TextFacts, options: &DecoderOptions) -> Option<String> {
    match options.rotary.scaling {
        RotaryScaling::Unscaled => None,
        RotaryScaling::Yarn(_) => scaled(facts),
    }
}

fn scaled(facts: &TextFacts) -> Option<String> {
    Some(format!(
        "gets no scaled positions from segpack (rope type {:?})",
        facts.rope_type
    ))
}

fn mixtral(options: &DecoderOptions) -> Option<String> {
    let window = options.windows.iter().flatten().next()?;
    Some(format!(
        "attends to everything, this model to the last {window} positions (sliding_window)"
    ))
}

/// Heads that together are as wide as the model, which the architecture takes for granted.
fn even_heads(facts: &TextFacts) -> Option<String> {
    let width = facts.heads.saturating_mul(facts.head_dim);
    (width != facts.hidden_size).then(|| {
        format!(
            "has heads that are {} wide in all, those of this model are {width} (head_dim)",
            facts.hidden_size
        )
    })
}

fn unnormalized(options: &DecoderOptions) -> Option<String> {
    let is_normalized = options.router.divisor != WeightDivisor::One;
    is_normalized.then(|| {
        "takes the chosen experts' weights as they are, this model scales them to sum to 1 (norm_topk_prob is true)"
            .to_owned()
    })
}

fn olmoe(facts: &TextFacts, options: &DecoderOptions) -> Option<String> {
    if options.has_qkv_bias || options.has_output_bias {
        return says("has no biases, this model has attention_bias");
    }
    if facts.kv_heads != facts.heads {
        return Some(format!(
            "has as many key heads as query heads, this model {} and {} (num_key_value_heads)",
            facts.kv_heads, facts.heads
        ));
    }
    let eps = options.rms_norm_eps;
    if (eps - OLMOE_EPS).abs() > f64::from(f32::EPSILON) * OLMOE_EPS {
        return Some(format!(
            "adds {OLMOE_EPS} in norms, this model {eps} (rms_norm_eps)"
        ));
    }
    unnormalized(options).or_else(|| even_heads(facts))
}

fn qwen2_moe(facts: &TextFacts, options: &DecoderOptions) -> Option<String> {
    if options.shared_expert.is_none() {
        return says("has a shared expert, this model has none (shared_expert_intermediate_size)");
    }
    let uneven = experts_everywhere(facts).or_else(|| unnormalized(options));
    uneven.or_else(|| even_heads(facts))
}

fn glm4_moe(decoder: &TextDecoder) -> Option<String> {
    let options = &decoder.settings.options;
    let has_experts = &decoder.settings.has_experts;
    if has_experts.windows(2).any(|two| two[0] && !two[1]) {
        return says(
            "has experts in every layer behind the first, this model not (mlp_layer_types)",
        );
    }
    if let Some(groups) = options.router.groups {
        return Some(format!(
            "gets no groups of experts from segpack, this model has {} (n_group)",
            groups.count
        ));
    }
    if options.shared_expert.is_none() {
        return says("has shared experts, this model has none (n_shared_experts)");
    }
    None
}

fn gpt_oss(facts: &TextFacts, options: &DecoderOptions) -> Option<String> {
    if !(options.has_qkv_bias && options.has_output_bias) {
        return says("has biases, this model has none (attention_bias)");
    }
    if options.experts.activation != GPT_OSS_SWIGLU {
        return says(
            "computes SwiGLU with a factor of 1.702 and a limit of 7, this model not (swiglu_limit)",
        );
    }
    let window = options.windows.first().copied().flatten();
    let wanted = [window, None].into_iter().cycle();
    if window.is_none()
        || !options
            .windows
            .iter()
            .copied()
            .eq(wanted.take(options.windows.len()))
    {
        return says(
            "has a sliding window in every other layer from the first, this model not (layer_types)",
        );
    }
    match &options.rotary.scaling {
        RotaryScaling::Yarn(yarn) if !yarn.has_usual_attention_factor() => {
            says("derives YaRN's attention factor, this model names one (attention_factor, mscale)")
        }
        RotaryScaling::Yarn(_) | RotaryScaling::Unscaled => experts_everywhere(facts),
    }
}

#[cfg(test)]
mod tests {
    use segpack_manifests::families::Family;
    use serde_json::json;

    use super::*;

    /// A small model with other settings: whether llama.cpp computes it.
    fn check(family: &str, changes: &Json) -> Result<(), String> {
        let mut config = json!({
            "vocab_size": 100, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
            "num_key_value_heads": 4, "head_dim": 16, "num_experts_per_tok": 2, "intermediate_size": 32,
            "moe_intermediate_size": 32,
        });
        let own = match family {
            "qwen3_moe" => json!({"num_experts": 4, "norm_topk_prob": true}),
            "olmoe" => json!({"num_experts": 4, "rms_norm_eps": 1e-5}),
            "qwen2_moe" => json!({"num_experts": 4, "shared_expert_intermediate_size": 32}),
            "glm4_moe" => {
                json!({"n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1})
            }
            _ => json!({"num_local_experts": 4}),
        };
        for (key, value) in own
            .as_object()
            .into_iter()
            .chain(changes.as_object())
            .flatten()
        {
            config[key] = value.clone();
        }
        let family = Family::named(family).unwrap();
        let decoder = TextDecoder::of_config(family, &config).unwrap();
        let has_head = !decoder.facts.tie_word_embeddings;
        let architecture = Architecture::of(family).unwrap();
        architecture
            .check(&config, &decoder, has_head)
            .map_err(|e| e.to_string())
    }

    #[test]
    fn what_llama_cpp_does_not_compute_is_refused_by_its_setting() {
        let yarn = json!({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}});
        for (family, changes, words) in [
            (
                "qwen3_moe",
                json!({"mlp_only_layers": [1]}),
                "experts in every layer, this model in 2 of 3",
            ),
            ("qwen3_moe", json!({"attention_bias": true}), "no biases"),
            (
                "qwen3_moe",
                json!({"norm_topk_prob": false}),
                "norm_topk_prob",
            ),
            (
                "qwen3_moe",
                json!({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}),
                "\"yarn\"",
            ),
            ("mixtral", json!({"sliding_window": 7}), "last 7 positions"),
            ("mixtral", yarn.clone(), "\"yarn\""),
            ("olmoe", json!({"attention_bias": true}), "no biases"),
            ("olmoe", json!({"num_key_value_heads": 2}), "2 and 4"),
            ("olmoe", json!({"rms_norm_eps": 1e-6}), "rms_norm_eps"),
            (
                "olmoe",
                json!({"norm_topk_prob": true}),
                "norm_topk_prob is true",
            ),
            (
                "olmoe",
                json!({"head_dim": 8}),
                "those of this model are 32",
            ),
            (
                "olmoe",
                json!({"tie_word_embeddings": true}),
                "tie_word_embeddings",
            ),
            ("qwen2_moe", json!({"mlp_only_layers": [1]}), "2 of 3"),
            (
                "qwen2_moe",
                json!({"norm_topk_prob": true}),
                "norm_topk_prob is true",
            ),
            ("qwen2_moe", json!({"head_dim": 8}), "head_dim"),
            (
                "qwen2_moe",
                json!({"tie_word_embeddings": true}),
                "tie_word_embeddings",
            ),
            (
                "glm4_moe",
                json!({"mlp_layer_types": ["sparse", "dense", "sparse"]}),
                "mlp_layer_types",
            ),
            (
                "glm4_moe",
                json!({"n_group": 2, "topk_group": 1}),
                "n_group",
            ),
            ("glm4_moe", json!({"n_shared_experts": 0}), "shared experts"),
            (
                "gpt_oss",
                json!({"attention_bias": false}),
                "attention_bias",
            ),
            ("gpt_oss", json!({"swiglu_limit": 5.0}), "swiglu_limit"),
            (
                "gpt_oss",
                json!({"layer_types": ["full_attention", "sliding_attention", "full_attention"]}),
                "layer_types",
            ),
            (
                "gpt_oss",
                json!({"tie_word_embeddings": true}),
                "tie_word_embeddings",
            ),
            (
                "gpt_oss",
                json!({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "attention_factor": 2.0,
                "original_max_position_embeddings": 64}}),
                "attention_factor",
            ),
        ] {
            assert_eq!(check(family, &json!({})), Ok(()), "{family}");
            let printed = check(family, &changes).unwrap_err();
            assert!(printed.contains(words), "{family} {changes}: {printed}");
        }
        assert_eq!(check("gpt_oss", &yarn), Ok(()));
        assert_eq!(
            check("mixtral", &json!({"tie_word_embeddings": true})),
            Ok(())
        );
    }

    #[test]
    fn use_of_other_operations_of_qwen3_is_refused() {
        let facts = |config: &Json| {
            Family::named("qwen3_moe")
                .unwrap()
                .text_facts(config)
                .unwrap()
        };
        let config = json!({
            "vocab_size": 100, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2,
            "moe_intermediate_size": 32, "norm_topk_prob": true,
        });
        for (key, value) in [
            ("use_sliding_window", json!(true)),
            ("hidden_act", json!("gelu")),
        ] {
            let mut changed = config.clone();
            changed[key] = value;
            let printed = qwen3_moe(&changed, &facts(&changed)).unwrap();
            assert!(printed.contains(key), "{printed}");
        }
    }
}
