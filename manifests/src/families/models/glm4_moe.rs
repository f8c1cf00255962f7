//! GLM-4.5 and GLM-4.6: transformers 5.23, modeling_glm4_moe.py; queries, keys and values have biases.

use crate::families::TextFacts;
use crate::families::blocks::attention::{GROUPED, HEAD_NORMS};
use crate::families::blocks::decoder_ends::{ENDS, LAYER_NORMS, LM_HEAD, MTP_LAYER, MTP_LAYERS};
use crate::families::blocks::ffn::{
    MLP_DENSE, MLP_EXPERTS, MLP_ROUTER, MLP_ROUTER_BIAS, MLP_SHARED,
};
use crate::families::config::{ConfigError, Section};
use crate::families::options::{DecoderOptions, QkNorm, RouterOptions, SharedExpertOptions};
use crate::families::packed::{PackedModel, block, packed_family};
use crate::families::rope::{RotaryDefaults, RotaryOptions};
use crate::families::rules::Mount;
use crate::families::sizes::{Flag, Sizes};
use crate::families::sizes::{Side, experts_per_token};
use crate::names::Component;

packed_family!(
    "glm4_moe",
    model_types["glm4_moe"],
    architectures["Glm4MoeForCausalLM"],
    run options
);

static MODEL: PackedModel = PackedModel {
    text: None,
    sizes,
    mounts: &[&TEXT, &LM_HEAD],
    mtp: Some(MTP_LAYERS),
    tower: None,
};

static TEXT: Mount<Sizes> = Mount {
    prefix: "model.",
    component: Component::Text,
    blocks: &[
        &block(ENDS),
        &block(LAYER_NORMS),
        &block(GROUPED),
        &block(HEAD_NORMS),
        &block(MLP_DENSE),
        &block(MLP_ROUTER),
        &block(MLP_ROUTER_BIAS),
        &block(MLP_EXPERTS),
        &block(MLP_SHARED),
        &block(MTP_LAYER),
    ],
};

/// Grouped heads, experts as DeepSeek-V3 has them.
pub(super) fn sizes(text: &Section<'_>) -> Result<Sizes, ConfigError> {
    let mut sizes = Sizes::read(text)?;
    sizes.read_heads(text)?;
    sizes.flag(Flag::QkvBias, text.flag("attention_bias", false)?);
    sizes.flag(Flag::QkNorm, text.flag("use_qk_norm", false)?);
    sizes.read_deepseek_experts(text)?;
    Ok(sizes)
}

/// Source: `Glm4MoeAttention`, `Glm4MoeMoE`, `Glm4MoeConfig`.
fn options(
    text: &Section<'_>,
    sizes: &Sizes,
    facts: &TextFacts,
) -> Result<DecoderOptions, ConfigError> {
    let defaults = RotaryDefaults {
        part: 0.5,
        ..RotaryDefaults::theta(10_000.0)
    };
    let rotary = RotaryOptions::read(text, facts.head_dim, &defaults)?;
    let counts = (sizes.experts, experts_per_token(text, 8)?);
    let router = RouterOptions::sigmoid(text, counts, true)?;
    let mut options = DecoderOptions::plain(sizes.layers.len(), rotary, router);
    options.read_eps(text, 1e-5)?;
    options.read_biases(sizes);
    options.qk_norm = match sizes.has(Flag::QkNorm) {
        true => QkNorm::PerHead,
        false => QkNorm::Absent,
    };
    options.shared_expert = SharedExpertOptions::of(sizes.side(Side::Shared), false);
    Ok(options)
}
