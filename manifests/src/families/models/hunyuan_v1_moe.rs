//! Hunyuan-A13B: transformers 5.23, modeling_hunyuan_v1_moe.py; counts and widths are lists per layer on the
//! hub.

use crate::families::blocks::attention::GROUPED;
use crate::families::blocks::decoder_ends::{ENDS, LAYER_NORMS, LM_HEAD};
use crate::families::blocks::ffn::MLP_EXPERTS;
use crate::families::config::{ConfigError, Section};
use crate::families::packed::{PackedModel, block, packed_family};
use crate::families::rules::Mount;
use crate::families::sizes::{Flag, Sizes, table};
use crate::names::Component;

packed_family!(
    "hunyuan_v1_moe",
    model_types["hunyuan_v1_moe"],
    architectures["HunYuanMoEV1ForCausalLM"]
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
        &block(NORMS),
        &block(ROUTER),
        &block(MLP_EXPERTS),
    ],
};

table! {
    NORMS {
        "layers.{layer}.self_attn.query_layernorm.weight" QNorm [HeadDim] when qk_norm;
        "layers.{layer}.self_attn.key_layernorm.weight" KNorm [HeadDim] when qk_norm;
    }
    ROUTER {
        "layers.{layer}.mlp.gate.wg.weight" Router [Experts, Hidden];
        "layers.{layer}.mlp.shared_mlp.gate_proj.weight" SharedExpertGate [Shared, Hidden] when shared;
        "layers.{layer}.mlp.shared_mlp.up_proj.weight" SharedExpertUp [Shared, Hidden] when shared;
        "layers.{layer}.mlp.shared_mlp.down_proj.weight" SharedExpertDown [Hidden, Shared] when shared;
    }
}

fn sizes(text: &Section<'_>) -> Result<Sizes, ConfigError> {
    let mut sizes = Sizes::read(text)?;
    sizes.read_heads(text)?;
    let bias = text.flag("attention_bias", false)?;
    sizes.flag(Flag::QkvBias, bias);
    sizes.flag(Flag::OutBias, bias);
    sizes.flag(Flag::QkNorm, text.flag("use_qk_norm", true)?);
    let width = match text.has("moe_intermediate_size") {
        true => "moe_intermediate_size",
        false => "intermediate_size",
    };
    sizes.read_experts(text, &["num_experts", "num_local_experts"], width)?;
    sizes.read_shared_like_routed(text, "num_shared_expert")?;
    sizes.place_experts(text, |_| true)?;
    Ok(sizes)
}
