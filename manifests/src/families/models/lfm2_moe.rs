//! LFM2-MoE: transformers 5.23, modeling_lfm2_moe.py; short convolutions, attention here and there.

use crate::families::blocks::attention::SHORT_CONV;
use crate::families::blocks::decoder_ends::LM_HEAD;
use crate::families::config::{ConfigError, MAX_COUNT, Section};
use crate::families::packed::{PackedModel, block, packed_family};
use crate::families::rules::{Mount, Stack};
use crate::families::sizes::{Flag, Mixer, Side, Sizes, table};
use crate::names::{Component, Role};

packed_family!(
    "lfm2_moe",
    model_types["lfm2_moe"],
    architectures["Lfm2MoeForCausalLM"]
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
    blocks: &[&block(LAYERS), &block(SHORT_CONV)],
};

table! {
    LAYERS {
        "embed_tokens.weight" Embedding [Vocabulary, Hidden];
        "embedding_norm.weight" FinalNorm [Hidden];
        "layers.{layer}.operator_norm.weight" InputNorm [Hidden];
        "layers.{layer}.ffn_norm.weight" PostAttentionNorm [Hidden];
        "layers.{layer}.self_attn.q_proj.weight" AttentionQ [Queries, Hidden] when full;
        "layers.{layer}.self_attn.k_proj.weight" AttentionK [Keys, Hidden] when full;
        "layers.{layer}.self_attn.v_proj.weight" AttentionV [Values, Hidden] when full;
        "layers.{layer}.self_attn.out_proj.weight" AttentionO [Hidden, Outputs] when full;
        "layers.{layer}.self_attn.q_layernorm.weight" QNorm [HeadDim] when full;
        "layers.{layer}.self_attn.k_layernorm.weight" KNorm [HeadDim] when full;
        "layers.{layer}.feed_forward.w1.weight" MlpGate [Dense, Hidden] when dense;
        "layers.{layer}.feed_forward.w3.weight" MlpUp [Dense, Hidden] when dense;
        "layers.{layer}.feed_forward.w2.weight" MlpDown [Hidden, Dense] when dense;
        "layers.{layer}.feed_forward.gate.weight" Router [Experts, Hidden] when moe;
        "layers.{layer}.feed_forward.expert_bias" RouterBias [Experts] when moe & router_bias;
        "layers.{layer}.feed_forward.experts.{expert}.w1.weight" ExpertGate [Expert, Hidden] when apart;
        "layers.{layer}.feed_forward.experts.{expert}.w3.weight" ExpertUp [Expert, Hidden] when apart;
        "layers.{layer}.feed_forward.experts.{expert}.w2.weight" ExpertDown [Hidden, Expert] when apart;
        "layers.{layer}.feed_forward.experts.gate_up_proj" ExpertGateUpStacked [Experts, TwoExpert, Hidden]
            when stacked as Stack::of(&[Role::ExpertGate, Role::ExpertUp]);
        "layers.{layer}.feed_forward.experts.down_proj" ExpertDownStacked [Experts, Hidden, Expert]
            when stacked as Stack::of(&[Role::ExpertDown]);
    }
}

fn sizes(text: &Section<'_>) -> Result<Sizes, ConfigError> {
    let mut sizes = Sizes::read(text)?;
    sizes.read_heads(text)?;
    sizes.place_mixers(text, |_| Mixer::Full)?;
    sizes.set(Side::LinearIn, 3 * sizes.side(Side::Hidden));
    sizes.take(Side::Taps, text, ("conv_L_cache", Some(3)))?;
    sizes.take(Side::Dense, text, ("intermediate_size", None))?;
    sizes.read_experts(
        text,
        &["num_experts", "num_local_experts"],
        "moe_intermediate_size",
    )?;
    sizes.flag(Flag::RouterBias, text.flag("use_expert_bias", true)?);
    let dense = text.integer("num_dense_layers", Some(2), 0..=MAX_COUNT)?;
    sizes.place_experts(text, |layer| layer >= dense)?;
    // the class ties them unless told otherwise
    sizes.flag(
        Flag::Tied,
        text.flag("tie_word_embeddings", text.flag("tie_embedding", true)?)?,
    );
    Ok(sizes)
}
