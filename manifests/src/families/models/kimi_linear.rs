//! Kimi-Linear: transformers 5.23, modeling_kimi_linear.py; routed experts are called w1, w3, w2, shared
//! ones are not.

use crate::families::blocks::attention::{KIMI_DELTA, LATENT};
use crate::families::blocks::decoder_ends::{ENDS, LAYER_NORMS, LM_HEAD};
use crate::families::blocks::ffn::{BLOCK_SPARSE, MLP_DENSE};
use crate::families::config::{ConfigError, MAX_COUNT, Section};
use crate::families::packed::{PackedModel, block, packed_family};
use crate::families::rules::Mount;
use crate::families::sizes::{Mixer, Side, Sizes, table};
use crate::names::Component;

packed_family!(
    "kimi_linear",
    model_types["kimi_linear"],
    architectures["KimiLinearForCausalLM"]
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
        &block(LATENT),
        &block(KIMI_DELTA),
        &block(MLP_DENSE),
        &block(BLOCK_SPARSE),
        &block(SHARED),
    ],
};

table! {
    SHARED {
        "layers.{layer}.block_sparse_moe.gate.e_score_correction_bias" RouterBias [Experts] when moe;
        "layers.{layer}.block_sparse_moe.shared_experts.gate_proj.weight" SharedExpertGate [Shared, Hidden] when shared;
        "layers.{layer}.block_sparse_moe.shared_experts.up_proj.weight" SharedExpertUp [Shared, Hidden] when shared;
        "layers.{layer}.block_sparse_moe.shared_experts.down_proj.weight" SharedExpertDown [Hidden, Shared] when shared;
    }
}

fn sizes(text: &Section<'_>) -> Result<Sizes, ConfigError> {
    let mut sizes = Sizes::read(text)?;
    sizes.read_latent_heads(text)?;
    let linear = text.section("linear_attn_config")?;
    let full = linear.integers("full_attn_layers", &[], 1..=MAX_COUNT)?;
    // layers count from 1 there
    sizes.place_mixers(text, |layer| match full.contains(&(layer + 1)) {
        true => Mixer::Full,
        false => Mixer::Linear,
    })?;
    let heads = sizes.take(Side::LinearHeads, &linear, ("num_heads", None))?;
    let width = sizes.take(Side::LinearDim, &linear, ("head_dim", None))?;
    sizes.set(
        Side::LinearValues,
        linear.product("num_heads", heads, width)?,
    );
    sizes.take(Side::Taps, &linear, ("short_conv_kernel_size", Some(4)))?;
    sizes.take(Side::Dense, text, ("intermediate_size", None))?;
    sizes.read_experts(
        text,
        &["num_experts", "num_local_experts"],
        "moe_intermediate_size",
    )?;
    sizes.read_shared_like_routed(text, "num_shared_experts")?;
    sizes.place_experts_after_dense(text)?;
    Ok(sizes)
}
