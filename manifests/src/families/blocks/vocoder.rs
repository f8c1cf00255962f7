//! The vocoder: transformers 5.23, Qwen3OmniMoeCode2Wav, modeling_qwen3_omni_moe.py:3886.

use std::ops::Range;

use super::gqa::{Gqa, GqaDefaults};
use crate::families::config::{ConfigError, MAX_SIZE, Section};
use crate::families::rules::{Dims, Placeholder, Row, bias, row};
use crate::names::Role;

/// Sizes of the vocoder.
pub(crate) struct Vocoder {
    /// codebook_size x num_quantizers: all codebooks share one table.
    codes: u64,
    hidden: u64,
    intermediate: u64,
    attention: Gqa,
    layers: u32,
    /// Factor of each upsampling stage.
    stages: Vec<u64>,
    /// Factor of each decoder block.
    rates: Vec<u64>,
    decoder: u64,
}

/// Those of Qwen3OmniMoeCode2WavConfig.
const ATTENTION_DEFAULTS: GqaDefaults = GqaDefaults {
    heads: 16,
    kv_heads: 16,
    head_dim: None,
};

impl Vocoder {
    /// Missing keys take the defaults of Qwen3OmniMoeCode2WavConfig.
    pub(crate) fn read(section: &Section<'_>) -> Result<Self, ConfigError> {
        let hidden = section.size("hidden_size", Some(1024))?;
        let layers = section.count("num_hidden_layers", Some(8), 1)?;
        let attention = Gqa::read(section, &ATTENTION_DEFAULTS, layers, hidden)?;
        let codebook = section.size("codebook_size", Some(2048))?;
        let quantizers = section.size("num_quantizers", Some(16))?;
        let dims = Self {
            codes: section.product("codebook_size", codebook, quantizers)?,
            hidden,
            intermediate: section.size("intermediate_size", Some(3072))?,
            attention,
            layers,
            stages: section.integers("upsampling_ratios", &[2, 2], 1..=MAX_SIZE)?,
            rates: section.integers("upsample_rates", &[8, 5, 4, 3], 1..=MAX_SIZE)?,
            decoder: section.size("decoder_dim", Some(1536))?,
        };
        if dims.width_after(dims.blocks()) == 0 {
            return Err(
                section.invalid("decoder_dim", "at least 2 to the number of upsample_rates")
            );
        }
        Ok(dims)
    }

    /// Decoder blocks; the decoder list has a convolution before them, an activation and a
    /// convolution after.
    fn blocks(&self) -> u32 {
        u32::try_from(self.rates.len()).unwrap_or(u32::MAX)
    }

    /// Channels after so many blocks, each of which halves them.
    fn width_after(&self, blocks: u32) -> u64 {
        self.decoder.checked_shr(blocks).unwrap_or(0)
    }

    /// Twice the rate of the block at an entry of the decoder list.
    fn block_kernel(&self, unit: u32) -> u64 {
        (unit as usize)
            .checked_sub(1)
            .and_then(|block| self.rates.get(block))
            .map_or(0, |rate| 2 * rate)
    }

    fn stage_factor(&self, stage: u32) -> u64 {
        self.stages.get(stage as usize).copied().unwrap_or(0)
    }
}

impl Dims for Vocoder {
    fn range(&self, placeholder: Placeholder) -> Range<u32> {
        match placeholder {
            Placeholder::Layer => 0..self.layers,
            Placeholder::Named("stage") => 0..u32::try_from(self.stages.len()).unwrap_or(0),
            Placeholder::Named("unit") => 0..self.blocks().saturating_add(3),
            // Dilations 1, 3 and 9, after the activation and the transposed convolution.
            Placeholder::Named("residual") => 2..5,
            _ => 0..0,
        }
    }
}

fn hidden_vector(dims: &Vocoder, _: &[u32]) -> Vec<u64> {
    vec![dims.hidden]
}

fn q_vector(dims: &Vocoder, _: &[u32]) -> Vec<u64> {
    vec![dims.attention.q_width]
}

fn kv_matrix(dims: &Vocoder, _: &[u32]) -> Vec<u64> {
    vec![dims.attention.kv_width, dims.hidden]
}

fn kv_vector(dims: &Vocoder, _: &[u32]) -> Vec<u64> {
    vec![dims.attention.kv_width]
}

fn mlp_in(dims: &Vocoder, _: &[u32]) -> Vec<u64> {
    vec![dims.intermediate, dims.hidden]
}

fn biased(dims: &Vocoder, _: u32) -> bool {
    dims.attention.has_bias
}

fn is_convolution(dims: &Vocoder, unit: u32) -> bool {
    unit == 0 || unit == dims.blocks() + 2
}

fn is_block(dims: &Vocoder, unit: u32) -> bool {
    (1..=dims.blocks()).contains(&unit)
}

fn is_activation(dims: &Vocoder, unit: u32) -> bool {
    unit == dims.blocks() + 1
}

/// The first convolution takes the hidden states, the last gives one channel of sound.
fn convolution(dims: &Vocoder, at: &[u32]) -> Vec<u64> {
    let unit = at[0];
    if unit == 0 {
        vec![dims.decoder, dims.hidden, 7]
    } else {
        vec![1, dims.width_after(dims.blocks()), 7]
    }
}

fn convolution_bias(dims: &Vocoder, at: &[u32]) -> Vec<u64> {
    convolution(dims, at).into_iter().take(1).collect()
}

fn block_input(dims: &Vocoder, at: &[u32]) -> Vec<u64> {
    vec![dims.width_after(at[0].saturating_sub(1))]
}

fn block_output(dims: &Vocoder, at: &[u32]) -> Vec<u64> {
    vec![dims.width_after(at[0])]
}

/// A transposed convolution is stored `[in, out, kernel]`.
fn block_upsampling(dims: &Vocoder, at: &[u32]) -> Vec<u64> {
    let unit = at[0];
    vec![
        dims.width_after(unit.saturating_sub(1)),
        dims.width_after(unit),
        dims.block_kernel(unit),
    ]
}

fn dilated(dims: &Vocoder, at: &[u32]) -> Vec<u64> {
    let width = dims.width_after(at[0]);
    vec![width, width, 7]
}

fn pointwise(dims: &Vocoder, at: &[u32]) -> Vec<u64> {
    let width = dims.width_after(at[0]);
    vec![width, width, 1]
}

fn last_width(dims: &Vocoder, _: &[u32]) -> Vec<u64> {
    vec![dims.width_after(dims.blocks())]
}

pub(crate) static CODE2WAV: &[Row<Vocoder>] = &[
    row("code_embedding.weight", Role::CodecEmbedding, |d, _| {
        vec![d.codes, d.hidden]
    }),
    row(
        "pre_transformer.layers.{layer}.input_layernorm.weight",
        Role::CodecBlock,
        hidden_vector,
    ),
    row(
        "pre_transformer.layers.{layer}.self_attn.q_proj.weight",
        Role::CodecBlock,
        |d, _| vec![d.attention.q_width, d.hidden],
    ),
    bias(
        "pre_transformer.layers.{layer}.self_attn.q_proj.bias",
        Role::CodecBlock,
        q_vector,
    )
    .when(biased),
    row(
        "pre_transformer.layers.{layer}.self_attn.k_proj.weight",
        Role::CodecBlock,
        kv_matrix,
    ),
    bias(
        "pre_transformer.layers.{layer}.self_attn.k_proj.bias",
        Role::CodecBlock,
        kv_vector,
    )
    .when(biased),
    row(
        "pre_transformer.layers.{layer}.self_attn.v_proj.weight",
        Role::CodecBlock,
        kv_matrix,
    ),
    bias(
        "pre_transformer.layers.{layer}.self_attn.v_proj.bias",
        Role::CodecBlock,
        kv_vector,
    )
    .when(biased),
    row(
        "pre_transformer.layers.{layer}.self_attn.o_proj.weight",
        Role::CodecBlock,
        |d, _| vec![d.hidden, d.attention.q_width],
    ),
    bias(
        "pre_transformer.layers.{layer}.self_attn.o_proj.bias",
        Role::CodecBlock,
        hidden_vector,
    )
    .when(biased),
    row(
        "pre_transformer.layers.{layer}.self_attn_layer_scale.scale",
        Role::CodecBlock,
        hidden_vector,
    ),
    row(
        "pre_transformer.layers.{layer}.post_attention_layernorm.weight",
        Role::CodecBlock,
        hidden_vector,
    ),
    row(
        "pre_transformer.layers.{layer}.mlp.gate_proj.weight",
        Role::CodecBlock,
        mlp_in,
    ),
    row(
        "pre_transformer.layers.{layer}.mlp.up_proj.weight",
        Role::CodecBlock,
        mlp_in,
    ),
    row(
        "pre_transformer.layers.{layer}.mlp.down_proj.weight",
        Role::CodecBlock,
        |d, _| vec![d.hidden, d.intermediate],
    ),
    row(
        "pre_transformer.layers.{layer}.mlp_layer_scale.scale",
        Role::CodecBlock,
        hidden_vector,
    ),
    row(
        "pre_transformer.norm.weight",
        Role::FinalNorm,
        hidden_vector,
    ),
    row(
        "upsample.{stage}.0.conv.weight",
        Role::CodecUpsample,
        |d, at| vec![d.hidden, d.hidden, d.stage_factor(at[0])],
    ),
    bias(
        "upsample.{stage}.0.conv.bias",
        Role::CodecUpsample,
        hidden_vector,
    ),
    row(
        "upsample.{stage}.1.dwconv.conv.weight",
        Role::CodecUpsample,
        |d, _| vec![d.hidden, 1, 7],
    ),
    bias(
        "upsample.{stage}.1.dwconv.conv.bias",
        Role::CodecUpsample,
        hidden_vector,
    ),
    row(
        "upsample.{stage}.1.norm.weight",
        Role::CodecUpsample,
        hidden_vector,
    ),
    bias(
        "upsample.{stage}.1.norm.bias",
        Role::CodecUpsample,
        hidden_vector,
    ),
    row(
        "upsample.{stage}.1.pwconv1.weight",
        Role::CodecUpsample,
        |d, _| vec![4 * d.hidden, d.hidden],
    ),
    bias(
        "upsample.{stage}.1.pwconv1.bias",
        Role::CodecUpsample,
        |d, _| vec![4 * d.hidden],
    ),
    row(
        "upsample.{stage}.1.pwconv2.weight",
        Role::CodecUpsample,
        |d, _| vec![d.hidden, 4 * d.hidden],
    ),
    bias(
        "upsample.{stage}.1.pwconv2.bias",
        Role::CodecUpsample,
        hidden_vector,
    ),
    row(
        "upsample.{stage}.1.gamma",
        Role::CodecUpsample,
        hidden_vector,
    ),
    row(
        "decoder.{unit}.conv.weight",
        Role::CodecDecoder,
        convolution,
    )
    .when(is_convolution),
    bias(
        "decoder.{unit}.conv.bias",
        Role::CodecDecoder,
        convolution_bias,
    )
    .when(is_convolution),
    row(
        "decoder.{unit}.block.0.alpha",
        Role::CodecDecoder,
        block_input,
    )
    .when(is_block),
    row(
        "decoder.{unit}.block.0.beta",
        Role::CodecDecoder,
        block_input,
    )
    .when(is_block),
    row(
        "decoder.{unit}.block.1.conv.weight",
        Role::CodecDecoder,
        block_upsampling,
    )
    .when(is_block),
    bias(
        "decoder.{unit}.block.1.conv.bias",
        Role::CodecDecoder,
        block_output,
    )
    .when(is_block),
    row(
        "decoder.{unit}.block.{residual}.act1.alpha",
        Role::CodecDecoder,
        block_output,
    )
    .when(is_block),
    row(
        "decoder.{unit}.block.{residual}.act1.beta",
        Role::CodecDecoder,
        block_output,
    )
    .when(is_block),
    row(
        "decoder.{unit}.block.{residual}.conv1.conv.weight",
        Role::CodecDecoder,
        dilated,
    )
    .when(is_block),
    bias(
        "decoder.{unit}.block.{residual}.conv1.conv.bias",
        Role::CodecDecoder,
        block_output,
    )
    .when(is_block),
    row(
        "decoder.{unit}.block.{residual}.act2.alpha",
        Role::CodecDecoder,
        block_output,
    )
    .when(is_block),
    row(
        "decoder.{unit}.block.{residual}.act2.beta",
        Role::CodecDecoder,
        block_output,
    )
    .when(is_block),
    row(
        "decoder.{unit}.block.{residual}.conv2.conv.weight",
        Role::CodecDecoder,
        pointwise,
    )
    .when(is_block),
    bias(
        "decoder.{unit}.block.{residual}.conv2.conv.bias",
        Role::CodecDecoder,
        block_output,
    )
    .when(is_block),
    row("decoder.{unit}.alpha", Role::CodecDecoder, last_width).when(is_activation),
    row("decoder.{unit}.beta", Role::CodecDecoder, last_width).when(is_activation),
];
