//! GLM-4.5V: transformers 5.23, modeling_glm4v_moe.py.

use super::glm4_moe;
use crate::families::blocks::attention::{GROUPED, HEAD_NORMS};
use crate::families::blocks::decoder_ends::{ENDS, LAYER_NORMS, LM_HEAD};
use crate::families::blocks::ffn::{
    MLP_DENSE, MLP_EXPERTS, MLP_ROUTER, MLP_ROUTER_BIAS, MLP_SHARED,
};
use crate::families::blocks::pictures::GLM_VISION;
use crate::families::config::{ConfigError, Section};
use crate::families::packed::{PackedModel, Tower, block, packed_family};
use crate::families::rules::Mount;
use crate::families::sizes::{Flag, Side, Sizes};
use crate::names::Component;

packed_family!(
    "glm4v_moe",
    model_types["glm4v_moe"],
    architectures["Glm4vMoeForConditionalGeneration"]
);

static MODEL: PackedModel = PackedModel {
    text: Some("text_config"),
    sizes: glm4_moe::sizes,
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
        &block(MLP_ROUTER_BIAS),
        &block(MLP_EXPERTS),
        &block(MLP_SHARED),
    ],
};

static VISION: Mount<Sizes> = Mount {
    prefix: "model.visual.",
    component: Component::Vision,
    blocks: &[&block(GLM_VISION)],
};

fn tower_sizes(vision: &Section<'_>, text: &Sizes) -> Result<Sizes, ConfigError> {
    let mut sizes = Sizes::of_tower(vision, "depth", "hidden_size")?;
    let side = vision.size("image_size", None)? / sizes.side(Side::Patch);
    sizes.set(Side::Positions, side.saturating_mul(side));
    sizes.flag(Flag::QkvBias, vision.flag("attention_bias", false)?);
    sizes.take(Side::Dense, vision, ("intermediate_size", None))?;
    sizes.take(Side::Merge, vision, ("spatial_merge_size", Some(2)))?;
    let width = text.side(Side::Hidden);
    sizes.take(Side::Output, vision, ("out_hidden_size", Some(width)))?;
    Ok(sizes)
}
