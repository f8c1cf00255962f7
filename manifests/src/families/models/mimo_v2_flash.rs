//! MiMo-V2-Flash: transformers 5.23, modeling_mimo_v2_flash.py; keys as the hub's `config.json` has them.

use crate::families::blocks::attention::TWO_WIDTHS;
use crate::families::blocks::decoder_ends::{ENDS, LAYER_NORMS, LM_HEAD};
use crate::families::blocks::ffn::{MLP_DENSE, MLP_EXPERTS, MLP_ROUTER, MLP_ROUTER_BIAS};
use crate::families::config::{ConfigError, Section};
use crate::families::packed::{PackedModel, block, packed_family};
use crate::families::rules::Mount;
use crate::families::sizes::{Flag, Mixer, Side, Sizes};
use crate::names::Component;

packed_family!(
    "mimo_v2_flash",
    model_types["mimo_v2_flash"],
    architectures["MiMoV2FlashForCausalLM"]
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
        &block(TWO_WIDTHS),
        &block(MLP_DENSE),
        &block(MLP_ROUTER),
        &block(MLP_ROUTER_BIAS),
        &block(MLP_EXPERTS),
    ],
};

fn sizes(text: &Section<'_>) -> Result<Sizes, ConfigError> {
    let mut sizes = Sizes::read(text)?;
    let heads = sizes.take(Side::Heads, text, ("num_attention_heads", None))?;
    let kv_heads = text.size("num_key_value_heads", None)?;
    let width = sizes.take(Side::HeadDim, text, ("head_dim", None))?;
    let value = text.size("v_head_dim", Some(width))?;
    sizes.set_heads(heads, kv_heads, width);
    sizes.set(Side::Values, text.product("v_head_dim", kv_heads, value)?);
    sizes.set(Side::Outputs, text.product("v_head_dim", heads, value)?);
    read_sliding(&mut sizes, text)?;
    let sliding = text.integers("hybrid_layer_pattern", &[], 0..=1)?;
    sizes.place_mixers(text, |layer| match at(&sliding, layer) {
        Some(1) => Mixer::Sliding,
        _ => Mixer::Full,
    })?;
    sizes.take(Side::Dense, text, ("intermediate_size", None))?;
    sizes.read_experts(
        text,
        &["n_routed_experts", "num_local_experts"],
        "moe_intermediate_size",
    )?;
    sizes.flag(Flag::RouterBias, true);
    let sparse = text.integers("moe_layer_freq", &[], 0..=1)?;
    sizes.place_experts(text, |layer| at(&sparse, layer) != Some(0))?;
    Ok(sizes)
}

fn read_sliding(sizes: &mut Sizes, text: &Section<'_>) -> Result<(), ConfigError> {
    let kv_heads = text.size("swa_num_key_value_heads", None)?;
    let width = text.size("swa_head_dim", Some(sizes.side(Side::HeadDim)))?;
    let value = text.size("swa_v_head_dim", Some(width))?;
    sizes.set(
        Side::SlidingKeys,
        text.product("swa_head_dim", kv_heads, width)?,
    );
    sizes.set(
        Side::SlidingValues,
        text.product("swa_v_head_dim", kv_heads, value)?,
    );
    let heads = Some(sizes.side(Side::Heads));
    sizes.take(Side::SlidingHeads, text, ("swa_num_attention_heads", heads))?;
    sizes.flag(
        Flag::SlidingSinks,
        text.flag("add_swa_attention_sink_bias", false)?,
    );
    sizes.flag(
        Flag::FullSinks,
        text.flag("add_full_attention_sink_bias", false)?,
    );
    Ok(())
}

/// What a list has for a layer.
fn at(list: &[u64], layer: u64) -> Option<u64> {
    list.get(usize::try_from(layer).ok()?).copied()
}
