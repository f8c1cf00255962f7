//! Qwen3-Next: transformers 5.23, modeling_qwen3_next.py; `mtp.*` as the hub has it.

use crate::families::blocks::attention::{DELTA, DELTA_FUSED, GATED, HEAD_NORMS};
use crate::families::blocks::decoder_ends::{ENDS, LAYER_NORMS, LM_HEAD, MTP_ENDS};
use crate::families::blocks::ffn::{MLP_DENSE, MLP_EXPERTS, MLP_ROUTER, MLP_SHARED_GATED};
use crate::families::config::{ConfigError, Section};
use crate::families::packed::{Mtp, PackedModel, block, packed_family};
use crate::families::rules::Mount;
use crate::families::sizes::{Ffn, Flag, Mixer, Side, Sizes};
use crate::names::Component;

packed_family!(
    "qwen3_next",
    model_types["qwen3_next"],
    architectures["Qwen3NextForCausalLM"]
);

static MODEL: PackedModel = PackedModel {
    text: None,
    sizes,
    mounts: &[&TEXT, &LM_HEAD],
    mtp: Some(Mtp {
        count: |_| Ok(1),
        marks: &[
            "mtp.fc.weight",
            "mtp.norm.weight",
            "mtp.pre_fc_norm_hidden.weight",
        ],
        mount: Some((&MTP, Ffn::Apart)),
    }),
    tower: None,
};

static TEXT: Mount<Sizes> = Mount {
    prefix: "model.",
    component: Component::Text,
    blocks: &[
        &block(ENDS),
        &block(LAYER_NORMS),
        &block(GATED),
        &block(HEAD_NORMS),
        &block(DELTA_FUSED),
        &block(DELTA),
        &block(MLP_DENSE),
        &block(MLP_ROUTER),
        &block(MLP_EXPERTS),
        &block(MLP_SHARED_GATED),
    ],
};

static MTP: Mount<Sizes> = Mount {
    prefix: "mtp.",
    component: Component::TextMtp,
    blocks: &[
        &block(MTP_ENDS),
        &block(LAYER_NORMS),
        &block(GATED),
        &block(HEAD_NORMS),
        &block(MLP_ROUTER),
        &block(MLP_EXPERTS),
        &block(MLP_SHARED_GATED),
    ],
};

fn sizes(text: &Section<'_>) -> Result<Sizes, ConfigError> {
    let mut sizes = read_hybrid(text)?;
    sizes.place_experts_by_step(text)?;
    Ok(sizes)
}

/// What Qwen3-Next and Qwen3.5 have in common.
pub(super) fn read_hybrid(text: &Section<'_>) -> Result<Sizes, ConfigError> {
    let mut sizes = Sizes::read(text)?;
    sizes.read_heads(text)?;
    // each query has a gate beside it
    sizes.set(Side::Queries, sizes.side(Side::Queries).saturating_mul(2));
    sizes.flag(Flag::QkNorm, true);
    let interval = text.count("full_attention_interval", Some(4), 1)?;
    sizes.place_mixers(text, |layer| match (layer + 1) % u64::from(interval) {
        0 => Mixer::Full,
        _ => Mixer::Linear,
    })?;
    read_delta(&mut sizes, text)?;
    sizes.set(Side::Dense, text.size("intermediate_size", Some(1))?);
    sizes.read_experts(
        text,
        &["num_experts", "num_local_experts"],
        "moe_intermediate_size",
    )?;
    sizes.set_shared(text.size("shared_expert_intermediate_size", None)?);
    Ok(sizes)
}

fn read_delta(sizes: &mut Sizes, text: &Section<'_>) -> Result<(), ConfigError> {
    let heads = sizes.take(Side::LinearHeads, text, ("linear_num_value_heads", None))?;
    let width = sizes.take(Side::LinearDim, text, ("linear_value_head_dim", None))?;
    let key_heads = text.size("linear_num_key_heads", None)?;
    let keys = text.product(
        "linear_num_key_heads",
        key_heads,
        text.size("linear_key_head_dim", None)?,
    )?;
    let values = text.product("linear_num_value_heads", heads, width)?;
    sizes.take(Side::Taps, text, ("linear_conv_kernel_dim", Some(4)))?;
    sizes.set(Side::TwoLinearHeads, 2 * heads);
    sizes.set(Side::LinearValues, values);
    sizes.set(Side::LinearConv, 2 * keys + values);
    sizes.set(Side::LinearIn, 2 * (keys + values));
    Ok(())
}
