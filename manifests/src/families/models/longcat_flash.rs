//! LongCat-Flash: two attentions and two dense MLPs in each layer, beside experts of which some compute
//! nothing and are not stored. transformers 5.23, modeling_longcat_flash.py, the hub's names from memory.

use crate::families::blocks::decoder_ends::{ENDS, LM_HEAD};
use crate::families::blocks::ffn::MLP_EXPERTS;
use crate::families::config::{ConfigError, Section};
use crate::families::packed::{PackedModel, block, packed_family};
use crate::families::rules::Mount;
use crate::families::sizes::{Side, Sizes, table};
use crate::names::Component;

packed_family!(
    "longcat_flash",
    model_types["longcat_flash"],
    architectures["LongcatFlashForCausalLM"]
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
        &block(HALVES),
        &block(ROUTER),
        &block(MLP_EXPERTS),
    ],
};

table! {
    HALVES {
        "layers.{layer}.input_layernorm.0.weight" InputNorm [Hidden];
        "layers.{layer}.post_attention_layernorm.0.weight" PostAttentionNorm [Hidden];
        "layers.{layer}.self_attn.0.q_proj.weight" AttentionQ [Queries, Hidden] when unranked;
        "layers.{layer}.self_attn.0.q_a_proj.weight" AttentionQA [QueryRank, Hidden] when ranked;
        "layers.{layer}.self_attn.0.q_a_layernorm.weight" QANorm [QueryRank] when ranked;
        "layers.{layer}.self_attn.0.q_b_proj.weight" AttentionQB [Queries, QueryRank] when ranked;
        "layers.{layer}.self_attn.0.kv_a_proj_with_mqa.weight" AttentionKvA [KvCompressed, Hidden];
        "layers.{layer}.self_attn.0.kv_a_layernorm.weight" KvANorm [KvRank];
        "layers.{layer}.self_attn.0.kv_b_proj.weight" AttentionKvB [KvExpanded, KvRank];
        "layers.{layer}.self_attn.0.o_proj.weight" AttentionO [Hidden, Outputs];
        "layers.{layer}.mlps.0.gate_proj.weight" MlpGate [Dense, Hidden];
        "layers.{layer}.mlps.0.up_proj.weight" MlpUp [Dense, Hidden];
        "layers.{layer}.mlps.0.down_proj.weight" MlpDown [Hidden, Dense];
        "layers.{layer}.input_layernorm.1.weight" InputNorm [Hidden];
        "layers.{layer}.post_attention_layernorm.1.weight" PostAttentionNorm [Hidden];
        "layers.{layer}.self_attn.1.q_proj.weight" AttentionQ [Queries, Hidden] when unranked;
        "layers.{layer}.self_attn.1.q_a_proj.weight" AttentionQA [QueryRank, Hidden] when ranked;
        "layers.{layer}.self_attn.1.q_a_layernorm.weight" QANorm [QueryRank] when ranked;
        "layers.{layer}.self_attn.1.q_b_proj.weight" AttentionQB [Queries, QueryRank] when ranked;
        "layers.{layer}.self_attn.1.kv_a_proj_with_mqa.weight" AttentionKvA [KvCompressed, Hidden];
        "layers.{layer}.self_attn.1.kv_a_layernorm.weight" KvANorm [KvRank];
        "layers.{layer}.self_attn.1.kv_b_proj.weight" AttentionKvB [KvExpanded, KvRank];
        "layers.{layer}.self_attn.1.o_proj.weight" AttentionO [Hidden, Outputs];
        "layers.{layer}.mlps.1.gate_proj.weight" MlpGate [Dense, Hidden];
        "layers.{layer}.mlps.1.up_proj.weight" MlpUp [Dense, Hidden];
        "layers.{layer}.mlps.1.down_proj.weight" MlpDown [Hidden, Dense];
    }
    ROUTER {
        "layers.{layer}.mlp.router.classifier.weight" Router [Routed, Hidden];
        "layers.{layer}.mlp.router.e_score_correction_bias" RouterBias [Routed];
    }
}

fn sizes(text: &Section<'_>) -> Result<Sizes, ConfigError> {
    let mut sizes = Sizes::read_named(text, "hidden_size", "num_layers")?;
    sizes.read_latent_heads(text)?;
    sizes.take(Side::Dense, text, ("ffn_hidden_size", None))?;
    sizes.read_experts(text, &["n_routed_experts"], "expert_ffn_hidden_size")?;
    let idle = text.count("zero_expert_num", Some(0), 0)?;
    sizes.set(Side::Routed, u64::from(sizes.experts) + u64::from(idle));
    sizes.place_experts(text, |_| true)?;
    Ok(sizes)
}
