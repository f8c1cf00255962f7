//! Granite-MoE: transformers 5.23, modeling_granitemoe.py; experts stacked `[experts, out, in]`.

use crate::families::TextFacts;
use crate::families::blocks::attention::GROUPED;
use crate::families::blocks::decoder_ends::{ENDS, LAYER_NORMS, LM_HEAD};
use crate::families::blocks::ffn::GRANITE_EXPERTS;
use crate::families::config::{ConfigError, Section};
use crate::families::options::{DecoderOptions, Multipliers, QkNorm, RouterOptions, RouterScore};
use crate::families::packed::{PackedModel, block, packed_family};
use crate::families::rope::{RotaryDefaults, RotaryOptions};
use crate::families::rules::Mount;
use crate::families::sizes::experts_per_token;
use crate::families::sizes::{Flag, Sizes};
use crate::names::Component;

packed_family!(
    "granitemoe",
    model_types["granitemoe"],
    architectures["GraniteMoeForCausalLM"],
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
        &block(GRANITE_EXPERTS),
    ],
};

/// Grouped heads and stacked experts.
pub(super) fn sizes(text: &Section<'_>) -> Result<Sizes, ConfigError> {
    let mut sizes = Sizes::read(text)?;
    sizes.read_heads(text)?;
    let bias = text.flag("attention_bias", false)?;
    sizes.flag(Flag::QkvBias, bias);
    sizes.flag(Flag::OutBias, bias);
    sizes.read_experts(
        text,
        &["num_local_experts", "num_experts"],
        "intermediate_size",
    )?;
    sizes.place_experts(text, |_| true)?;
    Ok(sizes)
}

/// Source: `GraniteMoeAttention`, `GraniteMoeTopKRouter`, `GraniteMoeConfig`.
fn options(
    text: &Section<'_>,
    sizes: &Sizes,
    facts: &TextFacts,
) -> Result<DecoderOptions, ConfigError> {
    let rotary = RotaryOptions::read(text, facts.head_dim, &RotaryDefaults::theta(10_000.0))?;
    let router = RouterOptions {
        score: RouterScore::SoftmaxOfChosen,
        ..RouterOptions::softmax(experts_per_token(text, 2)?, false)
    };
    let mut options = DecoderOptions::plain(sizes.layers.len(), rotary, router);
    options.read_eps(text, 1e-6)?;
    options.read_biases(sizes);
    options.qk_norm = QkNorm::Absent;
    options.multipliers = Multipliers::read(text)?;
    Ok(options)
}
