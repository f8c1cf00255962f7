//! What a runtime reads of a text decoder beside its sizes, and what it refuses.

use serde_json::Value;

use super::blocks::moe::layers_with_experts;
use super::config::{ConfigError, MAX_SIZE, Section};
use super::facts::{ROPE_FACTOR, TextFacts};
use super::options::{DecoderOptions, WeightDivisor};

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
