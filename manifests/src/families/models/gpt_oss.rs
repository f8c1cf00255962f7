//! gpt-oss: transformers 5.23, modeling_gpt_oss.py; experts stacked `[experts, in, out]`, gate and up
//! alternating. Published as MXFP4.

use crate::families::blocks::attention::{GROUPED, SINKS};
use crate::families::blocks::decoder_ends::{ENDS, LAYER_NORMS, LM_HEAD};
use crate::families::config::{ConfigError, Section};
use crate::families::packed::{PackedModel, block, packed_family};
use crate::families::rules::{Mount, Stack};
use crate::families::sizes::{Flag, Sizes, table};
use crate::names::Component;
use crate::names::Role;

packed_family!(
    "gpt_oss",
    model_types["gpt_oss"],
    architectures["GptOssForCausalLM"]
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
        &block(SINKS),
        &block(EXPERTS),
    ],
};

table! {
    EXPERTS {
        "layers.{layer}.mlp.router.weight" Router [Experts, Hidden];
        "layers.{layer}.mlp.router.bias" Router/Bias [Experts];
        "layers.{layer}.mlp.experts.gate_up_proj" ExpertGateUpStacked [Experts, Hidden, TwoExpert] as GATE_UP;
        "layers.{layer}.mlp.experts.gate_up_proj_bias" ExpertGateUpStacked/Bias [Experts, TwoExpert] as GATE_UP_BIAS;
        "layers.{layer}.mlp.experts.down_proj" ExpertDownStacked [Experts, Expert, Hidden] as DOWN;
        "layers.{layer}.mlp.experts.down_proj_bias" ExpertDownStacked/Bias [Experts, Hidden] as DOWN_BIAS;
    }
}

const GATE_UP: Stack = gate_up("layers.{layer}.mlp.experts.{expert}.gate_up_proj");
const GATE_UP_BIAS: Stack = gate_up("layers.{layer}.mlp.experts.{expert}.gate_up_proj_bias");
const DOWN: Stack = down(&["layers.{layer}.mlp.experts.{expert}.down_proj"]);
const DOWN_BIAS: Stack = down(&["layers.{layer}.mlp.experts.{expert}.down_proj_bias"]);

/// Gate and up alternate, so that they stay together.
const fn gate_up(name: &'static str) -> Stack {
    let stack = Stack::of(&[Role::ExpertGate, Role::ExpertUp]).transposed();
    stack.interleaved().fused(name, Role::ExpertGateUp)
}

const fn down(names: &'static [&'static str]) -> Stack {
    Stack::of(&[Role::ExpertDown]).transposed().each(names)
}

fn sizes(text: &Section<'_>) -> Result<Sizes, ConfigError> {
    let mut sizes = Sizes::read(text)?;
    sizes.read_heads(text)?;
    let bias = text.flag("attention_bias", true)?;
    sizes.flag(Flag::QkvBias, bias);
    sizes.flag(Flag::OutBias, bias);
    sizes.read_experts(
        text,
        &["num_local_experts", "num_experts"],
        "intermediate_size",
    )?;
    sizes.place_experts(text, |_| true)?;
    Ok(sizes)
}
