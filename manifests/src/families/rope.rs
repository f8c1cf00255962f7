//! Rotary embeddings: how positions turn queries and keys.

use std::ops::RangeInclusive;

use super::config::{ConfigError, MAX_SIZE, Section};
use super::facts::{ROPE_FACTOR, ROPE_THETA};

/// Numbers of rotations at which YaRN begins and ends to stretch.
const ROTATIONS: RangeInclusive<f64> = 1e-3..=1e6;
/// Parts of a head.
const PARTS: RangeInclusive<f64> = 1e-3..=1.0;

/// How positions turn queries and keys.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct RotaryOptions {
    /// Base of the frequencies, after whatever the configuration does to it.
    pub theta: f64,
    /// Values at the beginning of each head that are turned: even, and `head_dim` at most.
    pub width: u64,
    /// Which two values are turned together.
    pub pairs: RotaryPairs,
    /// Whether it is computed in f32, cosines and sines too, and rounded once.
    pub is_in_f32: bool,
    /// How frequencies are scaled.
    pub scaling: RotaryScaling,
}

/// Which two values are turned together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RotaryPairs {
    /// j and j + width / 2.
    Halves,
    /// 2j and 2j + 1.
    Neighbours,
}

/// How frequencies are scaled.
#[derive(Debug, Clone, PartialEq)]
pub enum RotaryScaling {
    /// Not at all.
    Unscaled,
    /// YaRN.
    Yarn(Yarn),
}

/// YaRN: low frequencies are divided by a factor, high ones stay.
///
/// Source: `_compute_yarn_parameters`, transformers 5.23, modeling_rope_utils.py.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Yarn {
    /// By which low frequencies are divided.
    pub factor: f64,
    /// Rotations within the original positions from which a frequency stays.
    pub beta_fast: f64,
    /// Rotations up to which a frequency is divided.
    pub beta_slow: f64,
    /// Positions before the stretch.
    pub original_positions: u64,
    /// Whether the bounds are whole numbers of frequencies.
    pub truncates: bool,
    /// Cosines and sines are multiplied by it.
    pub attention_factor: f64,
}

/// What a family takes for keys that `config.json` leaves out.
pub(crate) struct RotaryDefaults {
    pub(crate) theta: f64,
    /// Part of the head that is turned.
    pub(crate) part: f64,
    /// What is scaled where no object says anything.
    pub(crate) scaling: fn() -> RotaryScaling,
}

impl RotaryDefaults {
    /// Of whole heads, unscaled.
    pub(crate) const fn theta(theta: f64) -> Self {
        Self {
            theta,
            part: 1.0,
            scaling: || RotaryScaling::Unscaled,
        }
    }
}

impl RotaryOptions {
    /// Whole heads in halves.
    pub(crate) fn plain(theta: f64, head_dim: u64) -> Self {
        Self {
            theta,
            width: head_dim,
            pairs: RotaryPairs::Halves,
            is_in_f32: false,
            scaling: RotaryScaling::Unscaled,
        }
    }

    /// `rope_theta`, `partial_rotary_factor` and `rope_scaling`, or transformers 5's
    /// `rope_parameters` with all of it. Kinds other than default and yarn are refused.
    pub(crate) fn read(
        section: &Section<'_>,
        head_dim: u64,
        defaults: &RotaryDefaults,
    ) -> Result<Self, ConfigError> {
        let theta = section.number("rope_theta", defaults.theta, ROPE_THETA)?;
        let part = section.number("partial_rotary_factor", defaults.part, PARTS)?;
        let mut rotary = Self::plain(theta, turned(section, head_dim, part)?);
        rotary.scaling = (defaults.scaling)();
        let key = section.either("rope_parameters", "rope_scaling");
        if !section.has(key) {
            return Ok(rotary);
        }
        let rope = section.section(key)?;
        rotary.theta = rope.number("rope_theta", theta, ROPE_THETA)?;
        let part = rope.number("partial_rotary_factor", part, PARTS)?;
        rotary.width = turned(&rope, head_dim, part)?;
        rotary.scaling = scaling(section, &rope)?;
        Ok(rotary)
    }

    /// [`read`](Self::read), where the kind "dynamic" with an `alpha` is a greater base, whatever the
    /// positions are: Hunyuan.
    ///
    /// Source: `HunYuanMoEV1RotaryEmbedding`, modeling_hunyuan_v1_moe.py.
    pub(crate) fn read_with_alpha(
        section: &Section<'_>,
        head_dim: u64,
        defaults: &RotaryDefaults,
    ) -> Result<Self, ConfigError> {
        let key = section.either("rope_parameters", "rope_scaling");
        if !section.has(key) {
            return Self::read(section, head_dim, defaults);
        }
        let rope = section.section(key)?;
        let kind = rope.text(rope.either("rope_type", "type"))?;
        if kind != Some("dynamic") || !rope.has("alpha") || head_dim <= 2 {
            return Self::read(section, head_dim, defaults);
        }
        let theta = section.number("rope_theta", defaults.theta, ROPE_THETA)?;
        let theta = rope.number("rope_theta", theta, ROPE_THETA)?;
        let alpha = rope.number("alpha", 1.0, ROPE_FACTOR)?;
        #[expect(clippy::cast_precision_loss, reason = "a head is narrow")]
        let width = head_dim as f64;
        let theta = theta * alpha.powf(width / (width - 2.0));
        Ok(Self::plain(theta, turned(section, head_dim, 1.0)?))
    }
}

/// The values of a head that are turned.
fn turned(section: &Section<'_>, head_dim: u64, part: f64) -> Result<u64, ConfigError> {
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a part of a head, cut as python's int() does"
    )]
    let width = (head_dim as f64 * part) as u64;
    if width == 0 || !width.is_multiple_of(2) {
        let key = match part < 1.0 {
            true => "partial_rotary_factor",
            false => "head_dim",
        };
        let wanted = "a value by which an even number of values of each head is turned";
        return Err(section.invalid(key, wanted));
    }
    Ok(width)
}

fn scaling(section: &Section<'_>, rope: &Section<'_>) -> Result<RotaryScaling, ConfigError> {
    let key = rope.either("rope_type", "type");
    match rope.text(key)? {
        // sections of time, height and width are told apart by their sizes, not by their kind
        None | Some("default" | "mrope") => Ok(RotaryScaling::Unscaled),
        Some("yarn") => Ok(RotaryScaling::Yarn(Yarn::read(section, rope)?)),
        Some(_) => Err(rope.invalid(key, "\"default\" or \"yarn\", the kinds that are computed")),
    }
}

impl Yarn {
    fn read(section: &Section<'_>, rope: &Section<'_>) -> Result<Self, ConfigError> {
        let key = "original_max_position_embeddings";
        let positions = match rope.has(key) {
            true => rope.integer(key, None, 1..=MAX_SIZE)?,
            false => section.integer("max_position_embeddings", None, 1..=MAX_SIZE)?,
        };
        let factor = match rope.has("factor") {
            true => rope.number("factor", 1.0, ROPE_FACTOR)?,
            false => return Err(rope.missing("factor", "a positive number")),
        };
        let beta_fast = rope.number("beta_fast", 32.0, ROTATIONS)?;
        let beta_slow = rope.number("beta_slow", 1.0, ROTATIONS)?;
        Ok(Self {
            factor,
            beta_fast,
            beta_slow,
            original_positions: positions,
            truncates: rope.flag("truncate", true)?,
            attention_factor: attention_factor(rope, factor)?,
        })
    }

    /// Whether the factor of cosines and sines is the one that follows of the stretch alone,
    /// `0.1 · ln(factor) + 1`.
    #[must_use]
    pub fn has_usual_attention_factor(&self) -> bool {
        (self.attention_factor - magnitude(self.factor, 1.0)).abs() < 1e-6
    }

    /// gpt-oss's where its configuration has none.
    pub(crate) fn of_gpt_oss() -> Self {
        Self {
            factor: 32.0,
            beta_fast: 32.0,
            beta_slow: 1.0,
            original_positions: 4096,
            truncates: false,
            attention_factor: magnitude(32.0, 1.0),
        }
    }
}

/// `attention_factor`, or else what follows of the factor and of `mscale`.
fn attention_factor(rope: &Section<'_>, factor: f64) -> Result<f64, ConfigError> {
    if rope.has("attention_factor") {
        return rope.number("attention_factor", 1.0, ROPE_FACTOR);
    }
    if rope.has("mscale") && rope.has("mscale_all_dim") {
        let one = rope.number("mscale", 1.0, ROPE_FACTOR)?;
        let all = rope.number("mscale_all_dim", 1.0, ROPE_FACTOR)?;
        return Ok(magnitude(factor, one) / magnitude(factor, all));
    }
    Ok(magnitude(factor, 1.0))
}

/// `0.1 · mscale · ln(factor) + 1`, and 1 where nothing is stretched.
fn magnitude(factor: f64, mscale: f64) -> f64 {
    match factor <= 1.0 {
        true => 1.0,
        false => 0.1 * mscale * factor.ln() + 1.0,
    }
}
