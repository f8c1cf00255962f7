//! ERNIE-4.5: transformers 5.23, modeling_ernie4_5_moe.py; the module that predicts a later token from memory.

use crate::families::TextFacts;
use crate::families::blocks::attention::GROUPED;
use crate::families::blocks::decoder_ends::{ENDS, LAYER_NORMS, LM_HEAD};
use crate::families::blocks::ffn::{MLP_DENSE, MLP_EXPERTS, MLP_ROUTER, MLP_SHARED};
use crate::families::config::{ConfigError, MAX_COUNT, Section};
use crate::families::options::{
    DecoderOptions, QkNorm, RouterOptions, SharedExpertOptions, WeightDivisor, refuse_flag,
};
use crate::families::packed::{Mtp, PackedModel, block, packed_family};
use crate::families::rope::{RotaryDefaults, RotaryOptions, RotaryPairs};
use crate::families::rules::Mount;
use crate::families::sizes::experts_per_token;
use crate::families::sizes::{Ffn, Flag, Side, Sizes, table};
use crate::names::Component;

packed_family!(
    "ernie4_5_moe",
    model_types["ernie4_5_moe"],
    architectures["Ernie4_5_MoeForCausalLM"],
    run options
);

static MODEL: PackedModel = PackedModel {
    text: None,
    sizes,
    mounts: &[&TEXT, &LM_HEAD],
    mtp: Some(Mtp {
        count: |text| text.count("num_nextn_predict_layers", Some(0), 0),
        marks: &[
            "model.mtp_linear_proj.{layer}.weight",
            "model.mtp_emb_norm.{layer}.weight",
        ],
        mount: Some((&MTP, Ffn::Dense)),
    }),
    tower: None,
};

static TEXT: Mount<Sizes> = Mount {
    prefix: "model.",
    component: Component::Text,
    blocks: &[
        &block(ENDS),
        &block(LAYER_NORMS),
        &block(GROUPED),
        &block(MLP_DENSE),
        &block(MLP_ROUTER),
        &block(STATICS),
        &block(MLP_EXPERTS),
        &block(MLP_SHARED),
    ],
};

static MTP: Mount<Sizes> = Mount {
    prefix: "model.",
    component: Component::TextMtp,
    blocks: &[&block(MTP_BLOCK)],
};

table! {
    STATICS {
        "layers.{layer}.mlp.moe_statics.e_score_correction_bias" RouterBias [One, Experts] when apart;
        "layers.{layer}.mlp.gate.moe_statics.e_score_correction_bias" RouterBias [One, Experts] when stacked;
    }
    MTP_BLOCK {
        "mtp_emb_norm.{layer}.weight" Mtp [Hidden];
        "mtp_hidden_norm.{layer}.weight" Mtp [Hidden];
        "mtp_linear_proj.{layer}.weight" Mtp [Hidden, TwoHidden];
        "mtp_block.{layer}.input_layernorm.weight" InputNorm [Hidden];
        "mtp_block.{layer}.self_attn.q_proj.weight" AttentionQ [Queries, Hidden];
        "mtp_block.{layer}.self_attn.k_proj.weight" AttentionK [Keys, Hidden];
        "mtp_block.{layer}.self_attn.v_proj.weight" AttentionV [Values, Hidden];
        "mtp_block.{layer}.self_attn.o_proj.weight" AttentionO [Hidden, Outputs];
        "mtp_block.{layer}.post_attention_layernorm.weight" PostAttentionNorm [Hidden];
        "mtp_block.{layer}.mlp.gate_proj.weight" MlpGate [Dense, Hidden];
        "mtp_block.{layer}.mlp.up_proj.weight" MlpUp [Dense, Hidden];
        "mtp_block.{layer}.mlp.down_proj.weight" MlpDown [Hidden, Dense];
    }
}

fn sizes(text: &Section<'_>) -> Result<Sizes, ConfigError> {
    let mut sizes = Sizes::read(text)?;
    sizes.read_heads(text)?;
    let bias = text.flag("use_bias", false)?;
    sizes.flag(Flag::QkvBias, bias);
    sizes.flag(Flag::OutBias, bias);
    sizes.take(Side::Dense, text, ("intermediate_size", None))?;
    sizes.read_experts(
        text,
        &["moe_num_experts", "num_local_experts"],
        "moe_intermediate_size",
    )?;
    sizes.read_shared_like_routed(text, "moe_num_shared_experts")?;
    let interval = text.size("moe_layer_interval", Some(1))?;
    let first = text.integer("moe_layer_start_index", Some(0), 0..=MAX_COUNT)?;
    // -1 is the last layer
    let last = text
        .value("moe_layer_end_index")
        .and_then(serde_json::Value::as_u64);
    let is_inside = |layer: u64| first <= layer && last.is_none_or(|last| layer <= last);
    sizes.place_experts(text, |layer| {
        (layer + 1).is_multiple_of(interval) && is_inside(layer)
    })?;
    Ok(sizes)
}

/// Source: `Ernie4_5_MoeAttention`, `Ernie4_5_MoeTopKRouter`, `Ernie4_5_MoeConfig`.
fn options(
    text: &Section<'_>,
    sizes: &Sizes,
    facts: &TextFacts,
) -> Result<DecoderOptions, ConfigError> {
    // of the MLPs too
    refuse_flag(text, "use_bias")?;
    let mut rotary = RotaryOptions::read(text, facts.head_dim, &RotaryDefaults::theta(500_000.0))?;
    rotary.pairs = RotaryPairs::Neighbours;
    rotary.is_in_f32 = true;
    let floor = text.number("moe_norm_min", 1e-12, 1e-30..=1.0)?;
    let router = RouterOptions {
        is_in_f32: true,
        has_choice_bias: true,
        divisor: WeightDivisor::SumAtLeast(floor),
        ..RouterOptions::softmax(experts_per_token(text, 6)?, true)
    };
    let mut options = DecoderOptions::plain(sizes.layers.len(), rotary, router);
    options.read_eps(text, 1e-5)?;
    options.qk_norm = QkNorm::Absent;
    options.shared_expert = SharedExpertOptions::of(sizes.side(Side::Shared), false);
    Ok(options)
}
