//! The thinker's audio encoder: transformers 5.23, Qwen3OmniMoeAudioEncoder,
//! modeling_qwen3_omni_moe.py:754.

use std::ops::Range;

use crate::families::config::{ConfigError, Section};
use crate::families::rules::{Dims, Placeholder, Row, bias, row};
use crate::names::Role;

/// Sizes of the audio encoder.
pub(crate) struct AudioTower {
    layers: u32,
    width: u64,
    ffn: u64,
    channels: u64,
    /// What the flattened output of the convolutions is wide.
    flattened: u64,
    output: u64,
}

impl AudioTower {
    /// Missing keys take the defaults of Qwen3OmniMoeAudioEncoderConfig.
    pub(crate) fn read(section: &Section<'_>) -> Result<Self, ConfigError> {
        let mel_bins = section.size("num_mel_bins", Some(128))?;
        let channels = section.size("downsample_hidden_size", Some(480))?;
        // Three convolutions of stride 2, each halving the mel axis, rounded up.
        let halved = (0..3).fold(mel_bins, |bins, _| bins.div_ceil(2));
        Ok(Self {
            layers: section.count(
                section.either("encoder_layers", "num_hidden_layers"),
                Some(32),
                1,
            )?,
            width: section.size(section.either("d_model", "hidden_size"), Some(1280))?,
            ffn: section.size(
                section.either("encoder_ffn_dim", "intermediate_size"),
                Some(5120),
            )?,
            channels,
            flattened: section.product("downsample_hidden_size", channels, halved)?,
            output: section.size("output_dim", Some(3584))?,
        })
    }
}

impl Dims for AudioTower {
    fn range(&self, placeholder: Placeholder) -> Range<u32> {
        if placeholder == Placeholder::Layer {
            0..self.layers
        } else {
            0..0
        }
    }
}

fn width_vector(dims: &AudioTower, _: &[u32]) -> Vec<u64> {
    vec![dims.width]
}

fn square(dims: &AudioTower, _: &[u32]) -> Vec<u64> {
    vec![dims.width, dims.width]
}

fn channel_vector(dims: &AudioTower, _: &[u32]) -> Vec<u64> {
    vec![dims.channels]
}

fn convolution(dims: &AudioTower, _: &[u32]) -> Vec<u64> {
    vec![dims.channels, dims.channels, 3, 3]
}

pub(crate) static AUDIO_TOWER: &[Row<AudioTower>] = &[
    row("conv2d1.weight", Role::Conv, |d, _| {
        vec![d.channels, 1, 3, 3]
    }),
    bias("conv2d1.bias", Role::Conv, channel_vector),
    row("conv2d2.weight", Role::Conv, convolution),
    bias("conv2d2.bias", Role::Conv, channel_vector),
    row("conv2d3.weight", Role::Conv, convolution),
    bias("conv2d3.bias", Role::Conv, channel_vector),
    row("conv_out.weight", Role::Conv, |d, _| {
        vec![d.width, d.flattened]
    }),
    row(
        "layers.{layer}.self_attn_layer_norm.weight",
        Role::AudioBlock,
        width_vector,
    ),
    bias(
        "layers.{layer}.self_attn_layer_norm.bias",
        Role::AudioBlock,
        width_vector,
    ),
    row(
        "layers.{layer}.self_attn.q_proj.weight",
        Role::AudioBlock,
        square,
    ),
    bias(
        "layers.{layer}.self_attn.q_proj.bias",
        Role::AudioBlock,
        width_vector,
    ),
    row(
        "layers.{layer}.self_attn.k_proj.weight",
        Role::AudioBlock,
        square,
    ),
    bias(
        "layers.{layer}.self_attn.k_proj.bias",
        Role::AudioBlock,
        width_vector,
    ),
    row(
        "layers.{layer}.self_attn.v_proj.weight",
        Role::AudioBlock,
        square,
    ),
    bias(
        "layers.{layer}.self_attn.v_proj.bias",
        Role::AudioBlock,
        width_vector,
    ),
    row(
        "layers.{layer}.self_attn.out_proj.weight",
        Role::AudioBlock,
        square,
    ),
    bias(
        "layers.{layer}.self_attn.out_proj.bias",
        Role::AudioBlock,
        width_vector,
    ),
    row(
        "layers.{layer}.final_layer_norm.weight",
        Role::AudioBlock,
        width_vector,
    ),
    bias(
        "layers.{layer}.final_layer_norm.bias",
        Role::AudioBlock,
        width_vector,
    ),
    row("layers.{layer}.fc1.weight", Role::AudioBlock, |d, _| {
        vec![d.ffn, d.width]
    }),
    bias("layers.{layer}.fc1.bias", Role::AudioBlock, |d, _| {
        vec![d.ffn]
    }),
    row("layers.{layer}.fc2.weight", Role::AudioBlock, |d, _| {
        vec![d.width, d.ffn]
    }),
    bias("layers.{layer}.fc2.bias", Role::AudioBlock, width_vector),
    row("ln_post.weight", Role::FinalNorm, width_vector),
    bias("ln_post.bias", Role::FinalNorm, width_vector),
    row("proj1.weight", Role::Projection, square),
    bias("proj1.bias", Role::Projection, width_vector),
    row("proj2.weight", Role::Projection, |d, _| {
        vec![d.output, d.width]
    }),
    bias("proj2.bias", Role::Projection, |d, _| vec![d.output]),
];
