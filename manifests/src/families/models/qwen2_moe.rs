//! Qwen2-MoE and Qwen1.5-MoE: transformers 5.23, modeling_qwen2_moe.py.

use crate::families::TextFacts;
use crate::families::blocks::attention::GROUPED;
use crate::families::blocks::decoder_ends::{ENDS, LAYER_NORMS, LM_HEAD};
use crate::families::blocks::ffn::{MLP_DENSE, MLP_EXPERTS, MLP_ROUTER, MLP_SHARED_GATED};
use crate::families::config::{ConfigError, Section};
use crate::families::options::{
    DecoderOptions, QkNorm, RouterOptions, SharedExpertOptions, refuse_flag,
};
use crate::families::packed::{PackedModel, block, packed_family};
use crate::families::rope::{RotaryDefaults, RotaryOptions};
use crate::families::rules::Mount;
use crate::families::sizes::experts_per_token;
use crate::families::sizes::{Flag, Side, Sizes};
use crate::names::Component;

packed_family!(
    "qwen2_moe",
    model_types["qwen2_moe"],
    architectures["Qwen2MoeForCausalLM"],
    run options
);

static MODEL: PackedModel = PackedModel {
    text: None,
    sizes,
    mounts: &[&TEXT, &LM_HEAD],
    mtp: None,
    tower: None,
};

static TEXT: Mount<Sizes> = Mount {
    prefix: "model.",
    component: Component::Text,
    blocks: &[
        &block(ENDS),
        &block(LAYER_NORMS),
        &block(GROUPED),
        &block(MLP_DENSE),
        &block(MLP_ROUTER),
        &block(MLP_EXPERTS),
        &block(MLP_SHARED_GATED),
    ],
};

fn sizes(text: &Section<'_>) -> Result<Sizes, ConfigError> {
    let mut sizes = Sizes::read(text)?;
    sizes.read_heads(text)?;
    sizes.flag(Flag::QkvBias, text.flag("qkv_bias", true)?);
    sizes.take(Side::Dense, text, ("intermediate_size", None))?;
    sizes.read_experts(
        text,
        &["num_experts", "num_local_experts"],
        "moe_intermediate_size",
    )?;
    sizes.set_shared(text.size("shared_expert_intermediate_size", None)?);
    sizes.place_experts_by_step(text)?;
    Ok(sizes)
}

/// Source: `Qwen2MoeAttention`, `Qwen2MoeSparseMoeBlock`, `Qwen2MoeConfig`.
fn options(
    text: &Section<'_>,
    sizes: &Sizes,
    facts: &TextFacts,
) -> Result<DecoderOptions, ConfigError> {
    refuse_flag(text, "use_sliding_window")?;
    let rotary = RotaryOptions::read(text, facts.head_dim, &RotaryDefaults::theta(10_000.0))?;
    let is_normalized = text.flag("norm_topk_prob", false)?;
    let router = RouterOptions::softmax(experts_per_token(text, 4)?, is_normalized);
    let mut options = DecoderOptions::plain(sizes.layers.len(), rotary, router);
    options.read_eps(text, 1e-6)?;
    options.read_biases(sizes);
    options.qk_norm = QkNorm::Absent;
    options.shared_expert = SharedExpertOptions::of(sizes.side(Side::Shared), true);
    Ok(options)
}
