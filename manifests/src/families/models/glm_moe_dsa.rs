//! GLM-5: transformers 5.23, modeling_glm_moe_dsa.py; the layer that predicts a later token may leave
//! embedding and head to the model.

use super::deepseek_v32;
use crate::families::blocks::attention::{INDEXER, LATENT};
use crate::families::blocks::decoder_ends::{ENDS, LAYER_NORMS, LM_HEAD, MTP_LAYER, MTP_LAYERS};
use crate::families::blocks::ffn::{
    MLP_DENSE, MLP_EXPERTS, MLP_ROUTER, MLP_ROUTER_BIAS, MLP_SHARED,
};
use crate::families::config::{ConfigError, Section};
use crate::families::packed::{PackedModel, block, packed_family};
use crate::families::rules::Mount;
use crate::families::sizes::{Flag, Sizes};
use crate::names::Component;

packed_family!(
    "glm_moe_dsa",
    model_types["glm_moe_dsa"],
    architectures["GlmMoeDsaForCausalLM"]
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
        &block(INDEXER),
        &block(MTP_LAYER),
    ],
};

fn sizes(text: &Section<'_>) -> Result<Sizes, ConfigError> {
    let mut sizes = deepseek_v32::sizes(text)?;
    sizes.flag(Flag::MtpShares, true);
    Ok(sizes)
}
