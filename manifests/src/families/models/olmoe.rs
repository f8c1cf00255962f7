//! OLMoE: transformers 5.23, modeling_olmoe.py; one norm of all queries, one of all keys.

use crate::families::TextFacts;
use crate::families::blocks::attention::{GROUPED, WHOLE_NORMS};
use crate::families::blocks::decoder_ends::{ENDS, LAYER_NORMS, LM_HEAD};
use crate::families::blocks::ffn::{MLP_EXPERTS, MLP_ROUTER};
use crate::families::config::{ConfigError, Section};
use crate::families::options::{DecoderOptions, QkNorm, RouterOptions, refuse_value};
use crate::families::packed::{PackedModel, block, packed_family};
use crate::families::rope::{RotaryDefaults, RotaryOptions};
use crate::families::rules::Mount;
use crate::families::sizes::experts_per_token;
use crate::families::sizes::{Flag, Sizes};
use crate::names::Component;

packed_family!(
    "olmoe",
    model_types["olmoe"],
    architectures["OlmoeForCausalLM"],
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
        &block(WHOLE_NORMS),
        &block(MLP_ROUTER),
        &block(MLP_EXPERTS),
    ],
};

fn sizes(text: &Section<'_>) -> Result<Sizes, ConfigError> {
    let mut sizes = Sizes::read(text)?;
    sizes.read_heads(text)?;
    let bias = text.flag("attention_bias", false)?;
    sizes.flag(Flag::QkvBias, bias);
    sizes.flag(Flag::OutBias, bias);
    sizes.flag(Flag::QkNorm, true);
    sizes.read_experts(
        text,
        &["num_experts", "num_local_experts"],
        "intermediate_size",
    )?;
    sizes.place_experts(text, |_| true)?;
    Ok(sizes)
}

/// Source: `OlmoeAttention`, `OlmoeTopKRouter`, `OlmoeConfig`.
fn options(
    text: &Section<'_>,
    sizes: &Sizes,
    facts: &TextFacts,
) -> Result<DecoderOptions, ConfigError> {
    refuse_value(text, "clip_qkv")?;
    refuse_value(text, "sliding_window")?;
    let rotary = RotaryOptions::read(text, facts.head_dim, &RotaryDefaults::theta(10_000.0))?;
    let is_normalized = text.flag("norm_topk_prob", false)?;
    let router = RouterOptions::softmax(experts_per_token(text, 8)?, is_normalized);
    let mut options = DecoderOptions::plain(sizes.layers.len(), rotary, router);
    options.read_eps(text, 1e-5)?;
    options.read_biases(sizes);
    options.qk_norm = QkNorm::Whole;
    Ok(options)
}
