//! gpt-oss: transformers 5.23, modeling_gpt_oss.py; experts stacked `[experts, in, out]`, gate and up
//! alternating. Published as MXFP4.

use crate::families::TextFacts;
use crate::families::blocks::attention::{GROUPED, SINKS};
use crate::families::blocks::decoder_ends::{ENDS, LAYER_NORMS, LM_HEAD};
use crate::families::config::{ConfigError, Section};
use crate::families::options::{
    DecoderOptions, ExpertActivation, ExpertOptions, NormRounding, QkNorm, RouterOptions,
    RouterScore, windows_by_type,
};
use crate::families::packed::{PackedModel, block, packed_family};
use crate::families::rope::{RotaryDefaults, RotaryOptions, RotaryScaling, Yarn};
use crate::families::rules::{Mount, Stack};
use crate::families::sizes::experts_per_token;
use crate::families::sizes::{Flag, Sizes, table};
use crate::names::Component;
use crate::names::Role;

packed_family!(
    "gpt_oss",
    model_types["gpt_oss"],
    architectures["GptOssForCausalLM"],
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

/// Source: `GptOssAttention`, `GptOssTopKRouter`, `GptOssExperts`, `GptOssConfig`.
fn options(
    text: &Section<'_>,
    sizes: &Sizes,
    facts: &TextFacts,
) -> Result<DecoderOptions, ConfigError> {
    let defaults = RotaryDefaults {
        scaling: || RotaryScaling::Yarn(Yarn::of_gpt_oss()),
        ..RotaryDefaults::theta(150_000.0)
    };
    let rotary = RotaryOptions::read(text, facts.head_dim, &defaults)?;
    let router = RouterOptions {
        score: RouterScore::SoftmaxOfChosen,
        has_bias: true,
        ..RouterOptions::softmax(experts_per_token(text, 4)?, false)
    };
    let layers = sizes.layers.len();
    let mut options = DecoderOptions::plain(layers, rotary, router);
    options.read_eps(text, 1e-5)?;
    options.norm_rounding = NormRounding::Once;
    options.read_biases(sizes);
    options.qk_norm = QkNorm::Absent;
    options.has_sinks = true;
    options.windows = windows_by_type(text, layers, Some(128), |layer| layer % 2 == 0)?;
    options.experts = ExpertOptions {
        activation: ExpertActivation::clamped(text)?,
        has_bias: true,
    };
    Ok(options)
}
