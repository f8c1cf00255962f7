//! DeepSeek-V3 and R1: transformers 5.23, modeling_deepseek_v3.py; the layer that predicts a later token
//! as the hub has it.

use crate::families::blocks::attention::LATENT;
use crate::families::blocks::decoder_ends::{ENDS, LAYER_NORMS, LM_HEAD, MTP_LAYER, MTP_LAYERS};
use crate::families::blocks::ffn::{
    MLP_DENSE, MLP_EXPERTS, MLP_ROUTER, MLP_ROUTER_BIAS, MLP_SHARED,
};
use crate::families::config::{ConfigError, Section};
use crate::families::packed::{PackedModel, block, packed_family};
use crate::families::rules::Mount;
use crate::families::sizes::Sizes;
use crate::names::Component;

packed_family!(
    "deepseek_v3",
    model_types["deepseek_v3"],
    architectures["DeepseekV3ForCausalLM"]
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
        &block(LATENT),
        &block(MLP_DENSE),
        &block(MLP_ROUTER),
        &block(MLP_ROUTER_BIAS),
        &block(MLP_EXPERTS),
        &block(MLP_SHARED),
        &block(MTP_LAYER),
    ],
};

/// Compressed heads, experts beside shared ones after the first dense layers.
pub(super) fn sizes(text: &Section<'_>) -> Result<Sizes, ConfigError> {
    let mut sizes = Sizes::read(text)?;
    sizes.read_latent_heads(text)?;
    sizes.read_deepseek_experts(text)?;
    Ok(sizes)
}
