//! The thinker's vision encoder: transformers 5.23, Qwen3OmniMoeVisionEncoder,
//! modeling_qwen3_omni_moe.py:1129.

use std::ops::Range;

use crate::families::config::{ConfigError, MAX_COUNT, Section};
use crate::families::rules::{Dims, Placeholder, Row, bias, row};
use crate::names::Role;

/// Sizes of the vision encoder.
pub(crate) struct VisionTower {
    blocks: u32,
    mergers: u32,
    width: u64,
    ffn: u64,
    /// hidden_size x spatial_merge_size², the width of a merged block of patches.
    merged: u64,
    output: u64,
    positions: u64,
    channels: u64,
    frames: u64,
    patch: u64,
}

impl VisionTower {
    /// Missing keys take the defaults of Qwen3OmniMoeVisionEncoderConfig; the published checkpoint
    /// relies on that for num_position_embeddings.
    pub(crate) fn read(section: &Section<'_>) -> Result<Self, ConfigError> {
        let width = section.size("hidden_size", Some(1152))?;
        let merge = section.size("spatial_merge_size", Some(2))?;
        let patches = section.product("spatial_merge_size", merge, merge)?;
        let deepstack =
            section.integers("deepstack_visual_indexes", &[8, 16, 24], 0..=MAX_COUNT)?;
        let too_many = |_| section.invalid("deepstack_visual_indexes", "a short list");
        Ok(Self {
            blocks: section.count(section.either("depth", "num_hidden_layers"), Some(27), 1)?,
            mergers: u32::try_from(deepstack.len()).map_err(too_many)?,
            width,
            ffn: section.size("intermediate_size", Some(4304))?,
            merged: section.product("spatial_merge_size", patches, width)?,
            output: section.size("out_hidden_size", Some(3584))?,
            positions: section.size("num_position_embeddings", Some(2304))?,
            channels: section.size("in_channels", Some(3))?,
            frames: section.size("temporal_patch_size", Some(2))?,
            patch: section.size("patch_size", Some(16))?,
        })
    }
}

impl Dims for VisionTower {
    fn range(&self, placeholder: Placeholder) -> Range<u32> {
        match placeholder {
            Placeholder::Layer => 0..self.blocks,
            Placeholder::Named("merger") => 0..self.mergers,
            _ => 0..0,
        }
    }
}

fn width_vector(dims: &VisionTower, _: &[u32]) -> Vec<u64> {
    vec![dims.width]
}

fn merged_vector(dims: &VisionTower, _: &[u32]) -> Vec<u64> {
    vec![dims.merged]
}

fn merged_square(dims: &VisionTower, _: &[u32]) -> Vec<u64> {
    vec![dims.merged, dims.merged]
}

fn merger_output(dims: &VisionTower, _: &[u32]) -> Vec<u64> {
    vec![dims.output, dims.merged]
}

fn output_vector(dims: &VisionTower, _: &[u32]) -> Vec<u64> {
    vec![dims.output]
}

pub(crate) static VISION_TOWER: &[Row<VisionTower>] = &[
    row("patch_embed.proj.weight", Role::Conv, |d, _| {
        vec![d.width, d.channels, d.frames, d.patch, d.patch]
    }),
    bias("patch_embed.proj.bias", Role::Conv, width_vector),
    row("pos_embed.weight", Role::PositionEmbedding, |d, _| {
        vec![d.positions, d.width]
    }),
    row(
        "blocks.{layer}.norm1.weight",
        Role::VisionBlock,
        width_vector,
    ),
    bias("blocks.{layer}.norm1.bias", Role::VisionBlock, width_vector),
    row(
        "blocks.{layer}.attn.qkv.weight",
        Role::VisionBlock,
        |d, _| vec![3 * d.width, d.width],
    ),
    bias("blocks.{layer}.attn.qkv.bias", Role::VisionBlock, |d, _| {
        vec![3 * d.width]
    }),
    row(
        "blocks.{layer}.attn.proj.weight",
        Role::VisionBlock,
        |d, _| vec![d.width, d.width],
    ),
    bias(
        "blocks.{layer}.attn.proj.bias",
        Role::VisionBlock,
        width_vector,
    ),
    row(
        "blocks.{layer}.norm2.weight",
        Role::VisionBlock,
        width_vector,
    ),
    bias("blocks.{layer}.norm2.bias", Role::VisionBlock, width_vector),
    row(
        "blocks.{layer}.mlp.linear_fc1.weight",
        Role::VisionBlock,
        |d, _| vec![d.ffn, d.width],
    ),
    bias(
        "blocks.{layer}.mlp.linear_fc1.bias",
        Role::VisionBlock,
        |d, _| vec![d.ffn],
    ),
    row(
        "blocks.{layer}.mlp.linear_fc2.weight",
        Role::VisionBlock,
        |d, _| vec![d.width, d.ffn],
    ),
    bias(
        "blocks.{layer}.mlp.linear_fc2.bias",
        Role::VisionBlock,
        width_vector,
    ),
    // The main merger normalises single patches, the deepstack mergers whole merged blocks.
    row("merger.ln_q.weight", Role::Merger, width_vector),
    bias("merger.ln_q.bias", Role::Merger, width_vector),
    row("merger.mlp.0.weight", Role::Merger, merged_square),
    bias("merger.mlp.0.bias", Role::Merger, merged_vector),
    row("merger.mlp.2.weight", Role::Merger, merger_output),
    bias("merger.mlp.2.bias", Role::Merger, output_vector),
    row(
        "merger_list.{merger}.ln_q.weight",
        Role::Merger,
        merged_vector,
    ),
    bias(
        "merger_list.{merger}.ln_q.bias",
        Role::Merger,
        merged_vector,
    ),
    row(
        "merger_list.{merger}.mlp.0.weight",
        Role::Merger,
        merged_square,
    ),
    bias(
        "merger_list.{merger}.mlp.0.bias",
        Role::Merger,
        merged_vector,
    ),
    row(
        "merger_list.{merger}.mlp.2.weight",
        Role::Merger,
        merger_output,
    ),
    bias(
        "merger_list.{merger}.mlp.2.bias",
        Role::Merger,
        output_vector,
    ),
];
