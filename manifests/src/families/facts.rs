//! What a reader of a manifest, or a runtime, wants to know of a text decoder.

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use super::blocks::decoder::{Decoder, DecoderDefaults, Sparsity};
use super::config::{ConfigError, Section};

/// What RMS norms may add to a mean square: not 0 in f32, and not so much that it hides the values.
pub(crate) const RMS_NORM_EPS: RangeInclusive<f64> = 1e-30..=1.0;
/// Bases of rotary frequencies: those of a smaller one grow, of a greater one nothing is left.
pub(super) const ROPE_THETA: RangeInclusive<f64> = 1.0..=1e15;
/// Factors by which positions are scaled.
pub(super) const ROPE_FACTOR: RangeInclusive<f64> = 1e-6..=1e6;

/// Facts about a text decoder that a runtime or a reader of the manifest wants to know.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct TextFacts {
    /// Width of the residual stream.
    pub hidden_size: u64,
    /// Decoder layers.
    pub layers: u32,
    /// Layers with routed experts.
    pub moe_layers: u32,
    /// Routed experts of such a layer.
    pub experts: u32,
    /// Experts that each token visits.
    pub experts_per_token: u32,
    /// Inner width of a routed expert.
    pub moe_intermediate: u64,
    /// Inner width of a dense layer's MLP.
    pub intermediate: u64,
    /// Query heads.
    pub heads: u64,
    /// Key and value heads.
    pub kv_heads: u64,
    /// Width of one head.
    pub head_dim: u64,
    /// Rows of the embedding; more than the tokenizer has tokens.
    pub vocab: u64,
    /// Added to the mean square in every RMS norm.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Kind of rotary scaling; "default" is none.
    pub rope_type: String,
    /// Whether q, k, v and o projections have biases.
    pub attention_bias: bool,
    /// Whether the chosen experts' probabilities are scaled to sum to 1.
    pub norm_topk_prob: bool,
    /// Whether the output head is the embedding.
    pub tie_word_embeddings: bool,
}

impl TextFacts {
    pub(crate) fn read(
        section: &Section<'_>,
        defaults: &DecoderDefaults,
        tied: bool,
    ) -> Result<Self, ConfigError> {
        Self::read_as(section, defaults, Sparsity::ByLayer, tied)
    }

    /// Of a decoder whose layers with experts are these.
    pub(crate) fn read_as(
        section: &Section<'_>,
        defaults: &DecoderDefaults,
        sparsity: Sparsity,
        tied: bool,
    ) -> Result<Self, ConfigError> {
        let decoder = Decoder::read(section, defaults, sparsity)?;
        let Decoder { attention, moe, .. } = &decoder;
        let default = Some(defaults.experts_per_token);
        let experts_per_token = section.count("num_experts_per_tok", default, 0)?;
        let sparse = moe.sparse_layers() > 0;
        if sparse && !(1..=moe.experts).contains(&experts_per_token) {
            let wanted = format!("from 1 to the {} experts", moe.experts);
            return Err(section.invalid("num_experts_per_tok", &wanted));
        }
        if attention.heads % attention.kv_heads != 0 {
            let wanted = format!("a divisor of the {} heads", attention.heads);
            return Err(section.invalid("num_key_value_heads", &wanted));
        }
        if attention.head_dim % 2 != 0 {
            let wanted = "an even number, as halves of a head are rotated";
            return Err(section.invalid("head_dim", wanted));
        }
        let (rope_theta, rope_type) = read_rope(section, defaults.rope_theta)?;
        Ok(Self {
            hidden_size: decoder.vocabulary.hidden,
            layers: decoder.norms.layers,
            moe_layers: moe.sparse_layers(),
            experts: moe.experts,
            experts_per_token,
            moe_intermediate: moe.intermediate,
            intermediate: decoder.mlp.intermediate,
            heads: attention.heads,
            kv_heads: attention.kv_heads,
            head_dim: attention.head_dim,
            vocab: decoder.vocabulary.size,
            // class default
            rms_norm_eps: section.number("rms_norm_eps", 1e-6, RMS_NORM_EPS)?,
            rope_theta,
            rope_type,
            attention_bias: attention.has_bias,
            norm_topk_prob: section.flag("norm_topk_prob", defaults.norm_topk_prob)?,
            tie_word_embeddings: tied,
        })
    }
}

/// transformers 4: `rope_theta` beside `rope_scaling`; transformers 5: all of it in
/// `rope_parameters`.
pub(crate) fn read_rope(section: &Section<'_>, default: f64) -> Result<(f64, String), ConfigError> {
    let beside = section.number("rope_theta", default, ROPE_THETA)?;
    let key = section.either("rope_parameters", "rope_scaling");
    if !section.has(key) {
        return Ok((beside, "default".to_owned()));
    }
    let rope = section.section(key)?;
    let kind = rope.text(rope.either("rope_type", "type"))?;
    let theta = rope.number("rope_theta", beside, ROPE_THETA)?;
    Ok((theta, kind.unwrap_or("default").to_owned()))
}
