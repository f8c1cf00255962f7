//! Kimi-K2: DeepSeek-V3's class under a type of its own; `rotary_emb.inv_freq` is stored.

use super::deepseek_v3;
use crate::families::blocks::attention::LATENT;
use crate::families::blocks::decoder_ends::{ENDS, LAYER_NORMS, LM_HEAD, MTP_LAYER, MTP_LAYERS};
use crate::families::blocks::ffn::{
    MLP_DENSE, MLP_EXPERTS, MLP_ROUTER, MLP_ROUTER_BIAS, MLP_SHARED,
};
use crate::families::config::{ConfigError, Section};
use crate::families::packed::{PackedModel, block, packed_family};
use crate::families::rules::Mount;
use crate::families::sizes::{Flag, Sizes, table};
use crate::names::Component;

packed_family!(
    "kimi_k2",
    model_types ["kimi_k2"],
    architectures []
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
        &block(FREQUENCIES),
    ],
};

table! {
    FREQUENCIES {
        "layers.{layer}.self_attn.rotary_emb.inv_freq" Rotary [Frequencies] or [Any] maybe Recomputed;
    }
}

/// DeepSeek-V3's. The class of transformers computes frequencies anew, and does not save them.
fn sizes(text: &Section<'_>) -> Result<Sizes, ConfigError> {
    let mut sizes = deepseek_v3::sizes(text)?;
    sizes.flag(Flag::Recomputed, true);
    Ok(sizes)
}
