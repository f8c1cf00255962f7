//! Granite 4: transformers 5.23, modeling_granitemoehybrid.py; state spaces, attention here and there, a shared
//! expert in every layer.

use super::granitemoe;
use crate::families::blocks::attention::{GROUPED, MAMBA2};
use crate::families::blocks::decoder_ends::{ENDS, LAYER_NORMS, LM_HEAD};
use crate::families::blocks::ffn::GRANITE_EXPERTS;
use crate::families::config::{ConfigError, Section};
use crate::families::packed::{PackedModel, block, packed_family};
use crate::families::rules::Mount;
use crate::families::sizes::{Mixer, Side, Sizes, table};
use crate::names::Component;

packed_family!(
    "granitemoehybrid",
    model_types["granitemoehybrid"],
    architectures["GraniteMoeHybridForCausalLM"]
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
        &block(MAMBA2),
        &block(GRANITE_EXPERTS),
        &block(SHARED),
    ],
};

table! {
    SHARED {
        "layers.{layer}.shared_mlp.input_linear.weight" SharedExpertGateUp [TwoShared, Hidden];
        "layers.{layer}.shared_mlp.output_linear.weight" SharedExpertDown [Hidden, Shared];
    }
}

fn sizes(text: &Section<'_>) -> Result<Sizes, ConfigError> {
    let mut sizes = granitemoe::sizes(text)?;
    sizes.set_shared(text.size("shared_intermediate_size", None)?);
    sizes.place_mixers(text, |_| Mixer::Linear)?;
    let heads = sizes.take(Side::LinearHeads, text, ("mamba_n_heads", Some(128)))?;
    let expand = text.size("mamba_expand", Some(2))?;
    let inner = text.product("mamba_expand", expand, sizes.side(Side::Hidden))?;
    let groups = text.size("mamba_n_groups", Some(1))?;
    let states = text.product(
        "mamba_n_groups",
        groups,
        text.size("mamba_d_state", Some(256))?,
    )?;
    sizes.set_state_space(inner, 2 * states, heads);
    sizes.take(Side::Taps, text, ("mamba_d_conv", Some(4)))?;
    Ok(sizes)
}
