//! Kimi-K2.5: DeepSeek-V3's decoder below `language_model`, and a tower; names as the hub has them.

use super::deepseek_v3;
use crate::families::blocks::attention::LATENT;
use crate::families::blocks::decoder_ends::{ENDS, HEAD, LAYER_NORMS};
use crate::families::blocks::ffn::{
    MLP_DENSE, MLP_EXPERTS, MLP_ROUTER, MLP_ROUTER_BIAS, MLP_SHARED,
};
use crate::families::blocks::pictures::{KIMI_PROJECTOR, KIMI_VISION};
use crate::families::config::{ConfigError, MAX_COUNT, Section};
use crate::families::packed::{PackedModel, Tower, block, packed_family};
use crate::families::rules::Mount;
use crate::families::sizes::{Side, Sizes};
use crate::names::Component;

packed_family!(
    "kimi_k25",
    model_types ["kimi_k25"],
    architectures ["KimiK25ForConditionalGeneration", "Kimi_K25ForConditionalGeneration"]
);

static MODEL: PackedModel = PackedModel {
    text: Some("text_config"),
    sizes: deepseek_v3::sizes,
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
        &block(LATENT),
        &block(MLP_DENSE),
        &block(MLP_ROUTER),
        &block(MLP_ROUTER_BIAS),
        &block(MLP_EXPERTS),
        &block(MLP_SHARED),
    ],
};

static LM_HEAD: Mount<Sizes> = Mount {
    prefix: "language_model.",
    component: Component::Text,
    blocks: &[&block(HEAD)],
};

static VISION: Mount<Sizes> = Mount {
    prefix: "vision_tower.",
    component: Component::Vision,
    blocks: &[&block(KIMI_VISION)],
};

static PROJECTOR: Mount<Sizes> = Mount {
    prefix: "mm_projector.",
    component: Component::Vision,
    blocks: &[&block(KIMI_PROJECTOR)],
};

fn tower_sizes(vision: &Section<'_>, text: &Sizes) -> Result<Sizes, ConfigError> {
    let mut sizes = Sizes::of_tower(vision, "vt_num_hidden_layers", "vt_hidden_size")?;
    sizes.take(Side::Dense, vision, ("vt_intermediate_size", None))?;
    sizes.take(Side::PositionRows, vision, ("init_pos_emb_height", None))?;
    sizes.take(Side::PositionColumns, vision, ("init_pos_emb_width", None))?;
    let merge = vision.integers("merge_kernel_size", &[2, 2], 1..=MAX_COUNT)?;
    let merged = merge
        .iter()
        .fold(sizes.side(Side::Hidden), |n, side| n.saturating_mul(*side));
    sizes.set(Side::Merged, merged);
    sizes.set(Side::Output, text.side(Side::Hidden));
    Ok(sizes)
}
