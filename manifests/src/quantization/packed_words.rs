//! Values of a few bits packed into 32-bit words, with a scale and a zero point for each group of
//! inputs: what AWQ and GPTQ have in common.

use segpack_formats::numeric::Dtype;

use super::modules::Modules;
use super::weight::Weight;
use crate::families::config::{ConfigError, MAX_SIZE, Section};
use crate::families::expected::{Expected, ExpectedDtype};
use crate::names::Part;

pub(super) const VALUES: &str = ".qweight";
pub(super) const ZEROS: &str = ".qzeros";
pub(super) const SCALES: &str = ".scales";

/// A word.
pub(super) const WORD: ExpectedDtype = ExpectedDtype::One(Dtype::I32);

/// The settings of a checkpoint.
#[derive(Debug, Clone)]
pub(super) struct PackedWords {
    bits: u64,
    /// Inputs that share a scale; `None` is all of them.
    group: Option<u64>,
    pub(super) kept: Modules,
}

impl PackedWords {
    pub(super) fn read(section: &Section<'_>) -> Result<Self, ConfigError> {
        let bits = section.integer("bits", Some(4), 2..=8)?;
        let all = section
            .value("group_size")
            .is_some_and(|size| size.as_i64() == Some(-1));
        let group = match all {
            true => None,
            false => Some(section.integer("group_size", Some(128), 1..=MAX_SIZE)?),
        };
        let kept = Modules::read(section, &["modules_to_not_convert"])?;
        Ok(Self { bits, group, kept })
    }

    /// Words that so many values take.
    pub(super) fn of(&self, values: u64) -> u64 {
        values.saturating_mul(self.bits).div_ceil(32)
    }

    /// The values, of this shape, the zero points `[groups, out x bits / 32]` and the scales
    /// `[groups, out]`.
    pub(super) fn tensors(
        &self,
        weight: &Weight<'_>,
        [outputs, inputs]: [u64; 2],
        values: Vec<u64>,
    ) -> Vec<Expected> {
        let groups = self.group.map_or(1, |group| inputs.div_ceil(group));
        let zeros = vec![groups, self.of(outputs)];
        let scales = vec![groups, outputs];
        vec![
            weight.part((VALUES, Part::Blocks), WORD, values),
            weight.part((ZEROS, Part::ZeroPoint), WORD, zeros),
            weight.part((SCALES, Part::Scale), ExpectedDtype::Float, scales),
        ]
    }
}
