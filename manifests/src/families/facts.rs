//! What a reader of a manifest, or a runtime, wants to know of a text decoder.

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::blocks::decoder::{Decoder, DecoderDefaults, Sparsity};
use super::blocks::moe::layers_with_experts;
use super::config::{ConfigError, MAX_SIZE, Section};
use super::options::{DecoderOptions, WeightDivisor};

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

/// What a runtime reads of a text decoder beside its sizes.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct TextSettings {
    /// For each layer whether it has routed experts; the others have a dense MLP.
    pub has_experts: Vec<bool>,
    /// Positions that the model was made for; `None` where the configuration does not say.
    pub max_positions: Option<u64>,
    /// What it computes: the switches in which families differ.
    pub options: DecoderOptions,
}

impl TextSettings {
    /// Reads the settings of a decoder, and refuses those that ask for an operation that this
    /// program does not compute: leaving it out would give other tokens without a word.
    pub(crate) fn read(section: &Section<'_>, facts: &TextFacts) -> Result<Self, ConfigError> {
        check_operations(section)?;
        check_rope(section)?;
        let has_experts = layers_with_experts(section, facts.layers, facts.experts)?;
        Self::of(section, facts, has_experts, DecoderOptions::of_qwen3(facts))
    }

    /// Constants that a manifest may have otherwise, where `config.json` leaves them out: the defaults
    /// of the family's class.
    pub(crate) fn complete(&self, facts: &mut TextFacts) {
        let options = &self.options;
        facts.experts_per_token = options.router.experts_per_token;
        facts.rms_norm_eps = options.rms_norm_eps;
        facts.rope_theta = options.rotary.theta;
        facts.norm_topk_prob = options.router.divisor != WeightDivisor::One;
    }

    /// Settings of a decoder that computes this, after it was made sure that the configuration asks
    /// for nothing else.
    pub(crate) fn of(
        section: &Section<'_>,
        facts: &TextFacts,
        has_experts: Vec<bool>,
        options: DecoderOptions,
    ) -> Result<Self, ConfigError> {
        for key in ["bos_token_id", "eos_token_id"] {
            check_token_ids(section, key, facts.vocab)?;
        }
        let key = "max_position_embeddings";
        let max_positions = match section.has(key) {
            true => Some(section.size(key, None)?),
            false => None,
        };
        Ok(Self {
            has_experts,
            max_positions,
            options,
        })
    }
}

/// The activation of the MLPs is silu, and every token attends to all before it.
pub(super) fn check_operations(section: &Section<'_>) -> Result<(), ConfigError> {
    // class default
    check_activation(section)?;
    if section.flag("use_sliding_window", false)? {
        let wanted = "false: sliding windows are not computed";
        return Err(section.invalid("use_sliding_window", wanted));
    }
    Ok(())
}

/// The activation of the MLPs is silu.
pub(super) fn check_activation(section: &Section<'_>) -> Result<(), ConfigError> {
    match section.text("hidden_act")? {
        None | Some("silu") => Ok(()),
        Some(_) => Err(section.invalid("hidden_act", "\"silu\", the only one that is computed")),
    }
}

/// Scaled positions are told by their kind; all others are of whole heads. Sections of time, height
/// and width have the same positions where there is text alone, whatever their sizes are.
pub(super) fn check_rope(section: &Section<'_>) -> Result<(), ConfigError> {
    check_whole_heads(section)?;
    let key = section.either("rope_parameters", "rope_scaling");
    if !section.has(key) {
        return Ok(());
    }
    let rope = section.section(key)?;
    check_whole_heads(&rope)?;
    rope.number("factor", 1.0, ROPE_FACTOR)?;
    let sections = rope.integers("mrope_section", &[], 1..=MAX_SIZE)?;
    if !matches!(sections.len(), 0 | 3) {
        return Err(rope.invalid("mrope_section", "3 sizes: of time, height and width"));
    }
    Ok(())
}

/// Whether all of a head is rotated.
fn check_whole_heads(section: &Section<'_>) -> Result<(), ConfigError> {
    let wanted = "1: heads are rotated as a whole";
    let whole = 1.0..=1.0;
    let part = section.number("partial_rotary_factor", 1.0, whole);
    part.map(drop)
        .map_err(|_| section.invalid("partial_rotary_factor", wanted))
}

/// A token id, or a list of them; null and absent is none.
fn check_token_ids(section: &Section<'_>, key: &str, vocab: u64) -> Result<(), ConfigError> {
    let is_inside = |id: &Value| id.as_u64().is_some_and(|id| id < vocab);
    let is_sound = match section.value(key) {
        None => true,
        Some(Value::Array(ids)) => ids.iter().all(is_inside),
        Some(id) => is_inside(id),
    };
    if is_sound {
        return Ok(());
    }
    Err(section.invalid(key, &format!("token ids below the vocabulary of {vocab}")))
}
