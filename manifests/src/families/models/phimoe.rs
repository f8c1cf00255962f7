//! Phi-3.5-MoE: transformers 5.23, modeling_phimoe.py; norms have biases.

use crate::families::blocks::attention::GROUPED;
use crate::families::blocks::decoder_ends::{ENDS, LAYER_NORMS, LM_HEAD};
use crate::families::blocks::ffn::BLOCK_SPARSE;
use crate::families::config::{ConfigError, Section};
use crate::families::packed::{PackedModel, block, packed_family};
use crate::families::rules::Mount;
use crate::families::sizes::{Flag, Sizes, table};
use crate::names::Component;

packed_family!(
    "phimoe",
    model_types ["phimoe"],
    architectures ["PhiMoEForCausalLM", "PhimoeForCausalLM"]
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
        &block(NORM_BIASES),
        &block(GROUPED),
        &block(BLOCK_SPARSE),
        &block(STACKED_ROUTER),
    ],
};

table! {
    /// The router where experts are stacked.
    STACKED_ROUTER {
        "layers.{layer}.mlp.router.weight" Router [Experts, Hidden] when stacked;
    }
    NORM_BIASES {
        "norm.bias" FinalNorm/Bias [Hidden];
        "layers.{layer}.input_layernorm.bias" InputNorm/Bias [Hidden];
        "layers.{layer}.post_attention_layernorm.bias" PostAttentionNorm/Bias [Hidden];
    }
}

fn sizes(text: &Section<'_>) -> Result<Sizes, ConfigError> {
    let mut sizes = Sizes::read(text)?;
    sizes.read_heads(text)?;
    let bias = text.flag("attention_bias", false)?;
    sizes.flag(Flag::QkvBias, bias);
    sizes.flag(Flag::OutBias, bias);
    sizes.flag(Flag::HeadBias, text.flag("lm_head_bias", false)?);
    sizes.read_experts(
        text,
        &["num_local_experts", "num_experts"],
        "intermediate_size",
    )?;
    sizes.place_experts(text, |_| true)?;
    Ok(sizes)
}
