//! dots.llm1: transformers 5.23, modeling_dots1.py.

use super::glm4_moe;
use crate::families::TextFacts;
use crate::families::blocks::attention::{GROUPED, HEAD_NORMS};
use crate::families::blocks::decoder_ends::{ENDS, LAYER_NORMS, LM_HEAD};
use crate::families::blocks::ffn::{
    MLP_DENSE, MLP_EXPERTS, MLP_ROUTER, MLP_ROUTER_BIAS, MLP_SHARED,
};
use crate::families::config::{ConfigError, MAX_COUNT, Section};
use crate::families::options::{
    DecoderOptions, RouterOptions, SharedExpertOptions, windows_by_type,
};
use crate::families::packed::{PackedModel, block, packed_family};
use crate::families::rope::{RotaryDefaults, RotaryOptions};
use crate::families::rules::Mount;
use crate::families::sizes::{Flag, Sizes};
use crate::families::sizes::{Side, experts_per_token};
use crate::names::Component;

packed_family!(
    "dots1",
    model_types["dots1"],
    architectures["Dots1ForCausalLM"],
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
        &block(HEAD_NORMS),
        &block(MLP_DENSE),
        &block(MLP_ROUTER),
        &block(MLP_ROUTER_BIAS),
        &block(MLP_EXPERTS),
        &block(MLP_SHARED),
    ],
};

fn sizes(text: &Section<'_>) -> Result<Sizes, ConfigError> {
    let mut sizes = glm4_moe::sizes(text)?;
    sizes.flag(Flag::OutBias, sizes.has(Flag::QkvBias));
    sizes.flag(Flag::QkNorm, true);
    Ok(sizes)
}

/// Source: `Dots1Attention`, `Dots1MoE`, `Dots1Config`.
fn options(
    text: &Section<'_>,
    sizes: &Sizes,
    facts: &TextFacts,
) -> Result<DecoderOptions, ConfigError> {
    let rotary = RotaryOptions::read(text, facts.head_dim, &RotaryDefaults::theta(10_000.0))?;
    let counts = (sizes.experts, experts_per_token(text, 0)?);
    let router = RouterOptions::sigmoid(text, counts, false)?;
    let mut options = DecoderOptions::plain(sizes.layers.len(), rotary, router);
    options.read_eps(text, 1e-6)?;
    options.read_biases(sizes);
    options.shared_expert = SharedExpertOptions::of(sizes.side(Side::Shared), false);
    options.windows = windows(text, sizes.layers.len())?;
    Ok(options)
}

/// `layer_types`, or else a window from the layer `max_window_layers` on where there is one.
fn windows(text: &Section<'_>, layers: usize) -> Result<Vec<Option<u64>>, ConfigError> {
    if text.is_null("sliding_window") {
        return Ok(vec![None; layers]);
    }
    let first = text.integer("max_window_layers", Some(62), 0..=MAX_COUNT)?;
    let is_sliding = |layer: u64| layer >= first;
    windows_by_type(text, layers, Some(4096), is_sliding)
}
