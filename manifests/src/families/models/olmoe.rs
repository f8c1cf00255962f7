//! OLMoE: transformers 5.23, modeling_olmoe.py; one norm of all queries, one of all keys.

use crate::families::blocks::attention::{GROUPED, WHOLE_NORMS};
use crate::families::blocks::decoder_ends::{ENDS, LAYER_NORMS, LM_HEAD};
use crate::families::blocks::ffn::{MLP_EXPERTS, MLP_ROUTER};
use crate::families::config::{ConfigError, Section};
use crate::families::packed::{PackedModel, block, packed_family};
use crate::families::rules::Mount;
use crate::families::sizes::{Flag, Sizes};
use crate::names::Component;

packed_family!(
    "olmoe",
    model_types["olmoe"],
    architectures["OlmoeForCausalLM"]
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
        &block(MLP_ROUTER),
        &block(MLP_EXPERTS),
    ],
};

fn sizes(text: &Section<'_>) -> Result<Sizes, ConfigError> {
    let mut sizes = Sizes::read(text)?;
    sizes.read_heads(text)?;
    let bias = text.flag("attention_bias", false)?;
    sizes.flag(Flag::QkvBias, bias);
    sizes.flag(Flag::OutBias, bias);
    sizes.flag(Flag::QkNorm, true);
    sizes.read_experts(
        text,
        &["num_experts", "num_local_experts"],
        "intermediate_size",
    )?;
    sizes.place_experts(text, |_| true)?;
    Ok(sizes)
}
