//! Qwen3.5-MoE: transformers 5.23, modeling_qwen3_5_moe.py; experts stacked `[experts, out, in]` in the
//! model's layers and one by one in `mtp.*`, as the hub has them.

use super::{qwen3_next, qwen3_vl_moe};
use crate::families::blocks::attention::{DELTA, DELTA_APART, GATED, HEAD_NORMS};
use crate::families::blocks::decoder_ends::{ENDS, LAYER_NORMS, LM_HEAD, MTP_ENDS};
use crate::families::blocks::ffn::{MLP_EXPERTS, MLP_ROUTER, MLP_SHARED_GATED};
use crate::families::blocks::pictures::QWEN_VISION;
use crate::families::config::{ConfigError, Section};
use crate::families::packed::{Mtp, PackedModel, Tower, block, packed_family};
use crate::families::rules::Mount;
use crate::families::sizes::{Ffn, Sizes};
use crate::names::Component;

packed_family!(
    "qwen3_5_moe",
    model_types["qwen3_5_moe"],
    architectures["Qwen3_5MoeForConditionalGeneration"]
);

static MODEL: PackedModel = PackedModel {
    text: Some("text_config"),
    sizes,
    mounts: &[&TEXT, &LM_HEAD],
    mtp: Some(Mtp {
        count: |text| text.count("mtp_num_hidden_layers", Some(1), 0),
        marks: &[
            "mtp.fc.weight",
            "mtp.norm.weight",
            "mtp.pre_fc_norm_hidden.weight",
        ],
        mount: Some((&MTP, Ffn::Apart)),
    }),
    tower: Some(Tower {
        sizes: qwen3_vl_moe::tower_sizes,
        mounts: &[&VISION],
    }),
};

static TEXT: Mount<Sizes> = Mount {
    prefix: "model.language_model.",
    component: Component::Text,
    blocks: &[
        &block(ENDS),
        &block(LAYER_NORMS),
        &block(GATED),
        &block(HEAD_NORMS),
        &block(DELTA_APART),
        &block(DELTA),
        &block(MLP_ROUTER),
        &block(MLP_EXPERTS),
        &block(MLP_SHARED_GATED),
    ],
};

static MTP: Mount<Sizes> = Mount {
    prefix: "mtp.",
    component: Component::TextMtp,
    blocks: &[
        &block(MTP_ENDS),
        &block(LAYER_NORMS),
        &block(GATED),
        &block(HEAD_NORMS),
        &block(MLP_ROUTER),
        &block(MLP_EXPERTS),
        &block(MLP_SHARED_GATED),
    ],
};

static VISION: Mount<Sizes> = Mount {
    prefix: "model.visual.",
    component: Component::Vision,
    blocks: &[&block(QWEN_VISION)],
};

fn sizes(text: &Section<'_>) -> Result<Sizes, ConfigError> {
    let mut sizes = qwen3_next::read_hybrid(text)?;
    sizes.place_experts(text, |_| true)?;
    Ok(sizes)
}
