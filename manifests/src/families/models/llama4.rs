//! Llama-4: transformers 5.23, modeling_llama4.py; experts stacked `[experts, in, out]`, gate columns, then
//! up columns.

use crate::families::blocks::attention::GROUPED;
use crate::families::blocks::decoder_ends::{ENDS, HEAD, LAYER_NORMS};
use crate::families::blocks::pictures::{LLAMA_PROJECTOR, LLAMA_VISION};
use crate::families::config::{ConfigError, Section};
use crate::families::packed::{PackedModel, Tower, block, packed_family};
use crate::families::rules::{Mount, Stack};
use crate::families::sizes::{Flag, Side, Sizes, table};
use crate::names::Component;
use crate::names::Role;

packed_family!(
    "llama4",
    model_types["llama4"],
    architectures["Llama4ForConditionalGeneration"]
);

static MODEL: PackedModel = PackedModel {
    text: Some("text_config"),
    sizes,
    mounts: &[&TEXT, &LM_HEAD],
    mtp: None,
    tower: Some(Tower {
        sizes: tower_sizes,
        mounts: &[&VISION, &PROJECTOR],
    }),
};

static TEXT: Mount<Sizes> = Mount {
    prefix: "language_model.model.",
    component: Component::Text,
    blocks: &[
        &block(ENDS),
        &block(LAYER_NORMS),
        &block(GROUPED),
        &block(FEED_FORWARD),
    ],
};

static LM_HEAD: Mount<Sizes> = Mount {
    prefix: "language_model.",
    component: Component::Text,
    blocks: &[&block(HEAD)],
};

static VISION: Mount<Sizes> = Mount {
    prefix: "vision_model.",
    component: Component::Vision,
    blocks: &[&block(LLAMA_VISION)],
};

static PROJECTOR: Mount<Sizes> = Mount {
    prefix: "multi_modal_projector.",
    component: Component::Vision,
    blocks: &[&block(LLAMA_PROJECTOR)],
};

table! {
    FEED_FORWARD {
        "layers.{layer}.feed_forward.gate_proj.weight" MlpGate [Dense, Hidden] when dense;
        "layers.{layer}.feed_forward.up_proj.weight" MlpUp [Dense, Hidden] when dense;
        "layers.{layer}.feed_forward.down_proj.weight" MlpDown [Hidden, Dense] when dense;
        "layers.{layer}.feed_forward.router.weight" Router [Experts, Hidden] when moe;
        "layers.{layer}.feed_forward.experts.gate_up_proj" ExpertGateUpStacked [Experts, Hidden, TwoExpert]
            when moe as Stack::of(&[Role::ExpertGate, Role::ExpertUp]).transposed().fused(
                "layers.{layer}.feed_forward.experts.{expert}.gate_up_proj",
                Role::ExpertGateUp,
            );
        "layers.{layer}.feed_forward.experts.down_proj" ExpertDownStacked [Experts, Expert, Hidden]
            when moe as Stack::of(&[Role::ExpertDown]).transposed()
                .each(&["layers.{layer}.feed_forward.experts.{expert}.down_proj"]);
        "layers.{layer}.feed_forward.shared_expert.gate_proj.weight" SharedExpertGate [Shared, Hidden] when moe;
        "layers.{layer}.feed_forward.shared_expert.up_proj.weight" SharedExpertUp [Shared, Hidden] when moe;
        "layers.{layer}.feed_forward.shared_expert.down_proj.weight" SharedExpertDown [Hidden, Shared] when moe;
    }
}

fn sizes(text: &Section<'_>) -> Result<Sizes, ConfigError> {
    let mut sizes = Sizes::read(text)?;
    sizes.read_heads(text)?;
    let bias = text.flag("attention_bias", false)?;
    sizes.flag(Flag::QkvBias, bias);
    sizes.flag(Flag::OutBias, bias);
    sizes.take(Side::Dense, text, ("intermediate_size_mlp", None))?;
    sizes.read_experts(
        text,
        &["num_local_experts", "num_experts"],
        "intermediate_size",
    )?;
    sizes.set_shared(sizes.side(Side::Expert));
    let step = text.count("interleave_moe_layer_step", Some(1), 1)?;
    sizes.place_experts(text, |layer| (layer + 1).is_multiple_of(u64::from(step)))?;
    Ok(sizes)
}

fn tower_sizes(vision: &Section<'_>, text: &Sizes) -> Result<Sizes, ConfigError> {
    let mut sizes = Sizes::of_tower(vision, "num_hidden_layers", "hidden_size")?;
    sizes.take(Side::Dense, vision, ("intermediate_size", None))?;
    sizes.take(Side::Merged, vision, ("vision_output_dim", None))?;
    let patch = sizes.side(Side::Patch);
    let side = vision.size("image_size", None)? / patch;
    // one more for the class
    sizes.set(Side::Positions, side.saturating_mul(side).saturating_add(1));
    let channels = vision.size("num_channels", Some(3))?;
    sizes.set(Side::PatchValues, channels.saturating_mul(patch * patch));
    sizes.set(Side::Output, text.side(Side::Hidden));
    Ok(sizes)
}
