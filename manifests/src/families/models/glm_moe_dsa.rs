//! GLM-5: transformers 5.23, modeling_glm_moe_dsa.py; the layer that predicts a later token may leave
//! embedding and head to the model.

use super::deepseek_v32;
use crate::families::blocks::attention::{INDEXER, LATENT};
use crate::families::blocks::decoder_ends::{ENDS, HEAD, LAYER_NORMS, MTP_LAYER};
use crate::families::blocks::ffn::{
    MLP_DENSE, MLP_EXPERTS, MLP_ROUTER, MLP_ROUTER_BIAS, MLP_SHARED,
};
use crate::families::config::{ConfigError, Section};
use crate::families::packed::{Mtp, PackedModel, block, packed_family};
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
    mtp: Some(Mtp {
        count: |text| text.count("num_nextn_predict_layers", Some(0), 0),
        marks: &[
            "model.layers.{layer}.eh_proj.weight",
            "model.layers.{layer}.enorm.weight",
            "model.layers.{layer}.input_layernorm.weight",
        ],
        mount: None,
    }),
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

static LM_HEAD: Mount<Sizes> = Mount {
    prefix: "",
    component: Component::Text,
    blocks: &[&block(HEAD)],
};

fn sizes(text: &Section<'_>) -> Result<Sizes, ConfigError> {
    let mut sizes = deepseek_v32::sizes(text)?;
    sizes.flag(Flag::MtpShares, true);
    Ok(sizes)
}
