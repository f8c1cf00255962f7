//! Qwen3-VL-MoE: transformers 5.23, modeling_qwen3_vl_moe.py; experts stacked `[experts, in, out]` or
//! `[experts, out, in]`, by the version that saved them; gate and up of an expert stay together, so
//! that neither is a guess.

use crate::families::MediaFacts;
use crate::families::TextFacts;
use crate::families::blocks::attention::{GROUPED, HEAD_NORMS};
use crate::families::blocks::decoder_ends::{ENDS, LAYER_NORMS, LM_HEAD};
use crate::families::blocks::ffn::{MLP_DENSE, MLP_ROUTER};
use crate::families::blocks::pictures::QWEN_VISION;
use crate::families::config::{ConfigError, MAX_COUNT, Section};
use crate::families::options::{DecoderOptions, RouterOptions, refuse_flag};
use crate::families::packed::{PackedModel, Tower, block, packed_family};
use crate::families::rope::{RotaryDefaults, RotaryOptions};
use crate::families::rules::{Mount, Stack};
use crate::families::sizes::experts_per_token;
use crate::families::sizes::{Flag, Side, Sizes, table};
use crate::names::Component;
use crate::names::Role;

packed_family!(
    "qwen3_vl_moe",
    model_types["qwen3_vl_moe"],
    architectures["Qwen3VLMoeForConditionalGeneration"],
    run options,
    media media_facts
);

static MODEL: PackedModel = PackedModel {
    text: Some("text_config"),
    sizes,
    mounts: &[&TEXT, &LM_HEAD],
    mtp: None,
    tower: Some(Tower {
        sizes: tower_sizes,
        mounts: &[&VISION],
    }),
};

static TEXT: Mount<Sizes> = Mount {
    prefix: "model.language_model.",
    component: Component::Text,
    blocks: &[
        &block(ENDS),
        &block(LAYER_NORMS),
        &block(GROUPED),
        &block(HEAD_NORMS),
        &block(MLP_DENSE),
        &block(MLP_ROUTER),
        &block(EXPERTS),
    ],
};

static VISION: Mount<Sizes> = Mount {
    prefix: "model.visual.",
    component: Component::Vision,
    blocks: &[&block(QWEN_VISION)],
};

table! {
    EXPERTS {
        "layers.{layer}.mlp.experts.gate_up_proj" ExpertGateUpStacked [Experts, Hidden, TwoExpert]
            or [Experts, TwoExpert, Hidden]
            when moe as Stack::of(&[Role::ExpertGate, Role::ExpertUp]).transposed().fused(
                "layers.{layer}.mlp.experts.{expert}.gate_up_proj",
                Role::ExpertGateUp,
            );
        "layers.{layer}.mlp.experts.down_proj" ExpertDownStacked [Experts, Expert, Hidden] or [Experts, Hidden, Expert]
            when moe as Stack::of(&[Role::ExpertDown]).transposed()
                .each(&["layers.{layer}.mlp.experts.{expert}.down_proj"]);
    }
}

fn sizes(text: &Section<'_>) -> Result<Sizes, ConfigError> {
    let mut sizes = Sizes::read(text)?;
    sizes.read_heads(text)?;
    let bias = text.flag("attention_bias", false)?;
    sizes.flag(Flag::QkvBias, bias);
    sizes.flag(Flag::OutBias, bias);
    sizes.flag(Flag::QkNorm, true);
    sizes.take(Side::Dense, text, ("intermediate_size", Some(1)))?;
    sizes.read_experts(
        text,
        &["num_experts", "num_local_experts"],
        "moe_intermediate_size",
    )?;
    sizes.place_experts_by_step(text)?;
    Ok(sizes)
}

/// The tower of Qwen3-VL and Qwen3.5.
pub(super) fn tower_sizes(vision: &Section<'_>, text: &Sizes) -> Result<Sizes, ConfigError> {
    let mut sizes = Sizes::of_tower(vision, "depth", "hidden_size")?;
    let merge = vision.size("spatial_merge_size", Some(2))?;
    let width = vision.product(
        "spatial_merge_size",
        merge * merge,
        sizes.side(Side::Hidden),
    )?;
    sizes.set(Side::Merged, width);
    sizes.set(
        Side::Output,
        vision.size("out_hidden_size", Some(text.side(Side::Hidden)))?,
    );
    sizes.take(Side::Dense, vision, ("intermediate_size", None))?;
    sizes.take(
        Side::Positions,
        vision,
        ("num_position_embeddings", Some(2304)),
    )?;
    let mergers = vision.integers("deepstack_visual_indexes", &[], 0..=MAX_COUNT)?;
    sizes.groups = u32::try_from(mergers.len()).unwrap_or(u32::MAX);
    Ok(sizes)
}

/// What pictures change of it, [`media_facts`] says: tokens of text have the same position in time,
/// height and width.
///
/// Source: `Qwen3VLMoeTextAttention`, `Qwen3VLMoeTextTopKRouter`, `Qwen3VLMoeTextConfig`.
fn options(
    text: &Section<'_>,
    sizes: &Sizes,
    facts: &TextFacts,
) -> Result<DecoderOptions, ConfigError> {
    refuse_flag(text, "use_sliding_window")?;
    let rotary = RotaryOptions::read(text, facts.head_dim, &RotaryDefaults::theta(500_000.0))?;
    // whatever norm_topk_prob says
    let router = RouterOptions::softmax(experts_per_token(text, 4)?, true);
    let mut options = DecoderOptions::plain(sizes.layers.len(), rotary, router);
    options.read_eps(text, 1e-6)?;
    options.read_biases(sizes);
    Ok(options)
}

/// A checkpoint whose configuration describes no tower takes text alone.
fn media_facts(root: &Section<'_>) -> Result<Option<MediaFacts>, ConfigError> {
    if !root.has("vision_config") {
        return Ok(None);
    }
    let text = MODEL.text_facts(root)?;
    let sizes = [text.hidden_size, text.vocab];
    MediaFacts::of_vl(root, &MODEL.text_section(root)?, sizes).map(Some)
}
