//! DeepSeek-V3.2: V3 with an indexer; transformers 5.23, modeling_deepseek_v32.py.

use super::deepseek_v3;
use crate::families::blocks::attention::{INDEXER, LATENT};
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
    "deepseek_v32",
    model_types["deepseek_v32"],
    architectures["DeepseekV32ForCausalLM"]
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

/// DeepSeek-V3's sizes, and those of the indexer.
pub(super) fn sizes(text: &Section<'_>) -> Result<Sizes, ConfigError> {
    let mut sizes = deepseek_v3::sizes(text)?;
    sizes.read_indexer(text)?;
    Ok(sizes)
}
