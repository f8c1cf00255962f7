//! Mixtral: transformers 5.23, modeling_mixtral.py.

use crate::families::TextFacts;
use crate::families::blocks::attention::GROUPED;
use crate::families::blocks::decoder_ends::{ENDS, LAYER_NORMS, LM_HEAD};
use crate::families::blocks::ffn::{BLOCK_SPARSE, STACKED_ROUTER};
use crate::families::config::{ConfigError, Section};
use crate::families::options::{DecoderOptions, QkNorm, RouterOptions, window};
use crate::families::packed::{PackedModel, block, packed_family};
use crate::families::rope::{RotaryDefaults, RotaryOptions};
use crate::families::rules::Mount;
use crate::families::sizes::Sizes;
use crate::families::sizes::experts_per_token;
use crate::names::Component;

packed_family!(
    "mixtral",
    model_types["mixtral"],
    architectures["MixtralForCausalLM"],
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
        &block(BLOCK_SPARSE),
        &block(STACKED_ROUTER),
    ],
};

fn sizes(text: &Section<'_>) -> Result<Sizes, ConfigError> {
    let mut sizes = Sizes::read(text)?;
    sizes.read_heads(text)?;
    sizes.read_experts(
        text,
        &["num_local_experts", "num_experts"],
        "intermediate_size",
    )?;
    sizes.place_experts(text, |_| true)?;
    Ok(sizes)
}

/// Source: `MixtralAttention`, `MixtralTopKRouter`, `MixtralConfig`.
fn options(
    text: &Section<'_>,
    sizes: &Sizes,
    facts: &TextFacts,
) -> Result<DecoderOptions, ConfigError> {
    let rotary = RotaryOptions::read(text, facts.head_dim, &RotaryDefaults::theta(1e6))?;
    let router = RouterOptions::softmax(experts_per_token(text, 2)?, true);
    let mut options = DecoderOptions::plain(sizes.layers.len(), rotary, router);
    options.read_eps(text, 1e-5)?;
    options.qk_norm = QkNorm::Absent;
    if text.has("sliding_window") {
        options.windows.fill(Some(window(text, None)?));
    }
    Ok(options)
}
