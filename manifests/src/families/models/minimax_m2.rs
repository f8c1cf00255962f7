//! MiniMax-M2: transformers 5.23, modeling_minimax_m2.py. `config.json` announces layers that predict later
//! tokens; none is published.

use crate::families::blocks::attention::{GROUPED, WHOLE_NORMS};
use crate::families::blocks::decoder_ends::{ENDS, LAYER_NORMS, LM_HEAD};
use crate::families::blocks::ffn::{BLOCK_SPARSE, STACKED_ROUTER};
use crate::families::config::{ConfigError, Section};
use crate::families::packed::{PackedModel, block, packed_family};
use crate::families::rules::Mount;
use crate::families::sizes::{Flag, Sizes, table};
use crate::names::Component;

packed_family!(
    "minimax_m2",
    model_types["minimax_m2"],
    architectures["MiniMaxM2ForCausalLM"]
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
        &block(WHOLE_NORMS),
        &block(BLOCK_SPARSE),
        &block(STACKED_ROUTER),
        &block(ROUTER_BIAS),
    ],
};

table! {
    ROUTER_BIAS {
        "layers.{layer}.block_sparse_moe.e_score_correction_bias" RouterBias [Experts] when apart & router_bias;
        "layers.{layer}.mlp.e_score_correction_bias" RouterBias [Experts] when stacked & router_bias;
    }
}

fn sizes(text: &Section<'_>) -> Result<Sizes, ConfigError> {
    let mut sizes = Sizes::read(text)?;
    sizes.read_heads(text)?;
    sizes.flag(Flag::QkNorm, text.flag("use_qk_norm", true)?);
    sizes.flag(Flag::RouterBias, text.flag("use_routing_bias", true)?);
    sizes.read_experts(
        text,
        &["num_local_experts", "num_experts"],
        "intermediate_size",
    )?;
    sizes.place_experts(text, |_| true)?;
    Ok(sizes)
}
