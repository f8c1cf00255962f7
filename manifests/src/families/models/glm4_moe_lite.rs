//! GLM-4.7-Flash: transformers 5.23, modeling_glm4_moe_lite.py.

use super::deepseek_v3;
use crate::families::blocks::attention::LATENT;
use crate::families::blocks::decoder_ends::{ENDS, LAYER_NORMS, LM_HEAD, MTP_LAYER, MTP_LAYERS};
use crate::families::blocks::ffn::{
    MLP_DENSE, MLP_EXPERTS, MLP_ROUTER, MLP_ROUTER_BIAS, MLP_SHARED,
};
use crate::families::packed::{PackedModel, block, packed_family};
use crate::families::rules::Mount;
use crate::families::sizes::Sizes;
use crate::names::Component;

packed_family!(
    "glm4_moe_lite",
    model_types["glm4_moe_lite"],
    architectures["Glm4MoeLiteForCausalLM"]
);

static MODEL: PackedModel = PackedModel {
    text: None,
    sizes: deepseek_v3::sizes,
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
