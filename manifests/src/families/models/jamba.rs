//! Jamba: transformers 5.23, modeling_jamba.py; state spaces, attention and experts here and there.

use crate::families::blocks::attention::{GROUPED, MAMBA};
use crate::families::blocks::decoder_ends::LM_HEAD;
use crate::families::config::{ConfigError, MAX_COUNT, Section};
use crate::families::packed::{PackedModel, block, packed_family};
use crate::families::rules::{Mount, Stack};
use crate::families::sizes::{Mixer, Side, Sizes, table};
use crate::names::{Component, Role};

packed_family!(
    "jamba",
    model_types["jamba"],
    architectures["JambaForCausalLM"]
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
    blocks: &[&block(LAYERS), &block(GROUPED), &block(MAMBA)],
};

table! {
    LAYERS {
        "embed_tokens.weight" Embedding [Vocabulary, Hidden];
        "final_layernorm.weight" FinalNorm [Hidden];
        "layers.{layer}.input_layernorm.weight" InputNorm [Hidden];
        "layers.{layer}.pre_ff_layernorm.weight" PostAttentionNorm [Hidden];
        "layers.{layer}.feed_forward.gate_proj.weight" MlpGate [Dense, Hidden] when dense;
        "layers.{layer}.feed_forward.up_proj.weight" MlpUp [Dense, Hidden] when dense;
        "layers.{layer}.feed_forward.down_proj.weight" MlpDown [Hidden, Dense] when dense;
        "layers.{layer}.feed_forward.router.weight" Router [Experts, Hidden] when moe;
        "layers.{layer}.feed_forward.experts.{expert}.gate_proj.weight" ExpertGate [Expert, Hidden] when apart;
        "layers.{layer}.feed_forward.experts.{expert}.up_proj.weight" ExpertUp [Expert, Hidden] when apart;
        "layers.{layer}.feed_forward.experts.{expert}.down_proj.weight" ExpertDown [Hidden, Expert] when apart;
        "layers.{layer}.feed_forward.experts.gate_up_proj" ExpertGateUpStacked [Experts, TwoExpert, Hidden]
            when stacked as Stack::of(&[Role::ExpertGate, Role::ExpertUp]);
        "layers.{layer}.feed_forward.experts.down_proj" ExpertDownStacked [Experts, Hidden, Expert]
            when stacked as Stack::of(&[Role::ExpertDown]);
    }
}

fn sizes(text: &Section<'_>) -> Result<Sizes, ConfigError> {
    let mut sizes = Sizes::read(text)?;
    sizes.read_heads(text)?;
    let every = |key, default| text.integer(key, Some(default), 0..=MAX_COUNT);
    let (period, offset) = (
        text.size("attn_layer_period", Some(8))?,
        every("attn_layer_offset", 4)?,
    );
    sizes.place_mixers(text, |layer| match layer % period == offset % period {
        true => Mixer::Full,
        false => Mixer::Linear,
    })?;
    read_state_space(&mut sizes, text)?;
    sizes.take(Side::Dense, text, ("intermediate_size", None))?;
    sizes.read_experts(
        text,
        &["num_experts", "num_local_experts"],
        "intermediate_size",
    )?;
    let (period, offset) = (
        text.size("expert_layer_period", Some(2))?,
        every("expert_layer_offset", 1)?,
    );
    let has_experts = sizes.experts > 1;
    sizes.place_experts(text, |layer| {
        has_experts && layer % period == offset % period
    })?;
    Ok(sizes)
}

fn read_state_space(sizes: &mut Sizes, text: &Section<'_>) -> Result<(), ConfigError> {
    let hidden = sizes.side(Side::Hidden);
    let inner = text.product("mamba_expand", text.size("mamba_expand", Some(2))?, hidden)?;
    let state = sizes.take(Side::State, text, ("mamba_d_state", Some(16)))?;
    // "auto" and absent: a sixteenth of the width
    let rank = match text
        .value("mamba_dt_rank")
        .and_then(serde_json::Value::as_u64)
    {
        Some(_) => text.size("mamba_dt_rank", None)?,
        None => hidden.div_ceil(16),
    };
    sizes.take(Side::Taps, text, ("mamba_d_conv", Some(4)))?;
    sizes.set(Side::StepRank, rank);
    sizes.set(Side::StepAndStates, rank + 2 * state);
    sizes.set(Side::LinearValues, inner);
    sizes.set(Side::LinearIn, 2 * inner);
    Ok(())
}
