//! Hunyuan-A13B: transformers 5.23, modeling_hunyuan_v1_moe.py; counts and widths are lists per layer on the
//! hub.

use crate::families::TextFacts;
use crate::families::blocks::attention::GROUPED;
use crate::families::blocks::decoder_ends::{ENDS, LAYER_NORMS, LM_HEAD};
use crate::families::blocks::ffn::MLP_EXPERTS;
use crate::families::config::{ConfigError, Section};
use crate::families::options::{
    DecoderOptions, QkNorm, RouterOptions, SharedExpertOptions, refuse_flag,
};
use crate::families::packed::{PackedModel, block, packed_family};
use crate::families::rope::{RotaryDefaults, RotaryOptions};
use crate::families::rules::Mount;
use crate::families::sizes::{Flag, Sizes, table};
use crate::families::sizes::{Side, experts_per_token};
use crate::names::Component;

packed_family!(
    "hunyuan_v1_moe",
    model_types["hunyuan_v1_moe"],
    architectures["HunYuanMoEV1ForCausalLM"],
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

/// Source: `HunYuanMoEV1Attention`, `HunYuanMoEV1Moe`, `HunYuanMoEV1Config`.
fn options(
    text: &Section<'_>,
    sizes: &Sizes,
    facts: &TextFacts,
) -> Result<DecoderOptions, ConfigError> {
    // keys and values shared by layers
    refuse_flag(text, "use_cla")?;
    refuse_flag(text, "mlp_bias")?;
    let defaults = RotaryDefaults::theta(10_000.0);
    let rotary = RotaryOptions::read_with_alpha(text, facts.head_dim, &defaults)?;
    // its weight is f32 in the class, too
    let router = RouterOptions {
        is_in_f32: true,
        has_f32_weights: true,
        ..RouterOptions::softmax(experts_per_token(text, 1)?, true)
    };
    let mut options = DecoderOptions::plain(sizes.layers.len(), rotary, router);
    options.read_eps(text, 1e-5)?;
    options.read_biases(sizes);
    options.qk_norm = match sizes.has(Flag::QkNorm) {
        true => QkNorm::PerHeadAfterRotary,
        false => QkNorm::Absent,
    };
    options.shared_expert = SharedExpertOptions::of(sizes.side(Side::Shared), false);
    Ok(options)
}
