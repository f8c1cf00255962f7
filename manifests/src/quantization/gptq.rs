//! GPTQ: values of 2 to 8 bits packed into 32-bit words along the inputs.
//!
//! `*.qweight` `[in x bits / 32, out]`, `*.qzeros` `[groups, out x bits / 32]`, `*.scales`
//! `[groups, out]`, and `*.g_idx` `[in]`, the group of each input.
//!
//! Source: AutoGPTQ's and GPTQModel's QuantLinear, from memory.

use segpack_formats::numeric::Dtype;

use super::modules::Modules;
use super::weight::Weight;
use super::{Scheme, SchemeRow};
use crate::families::config::{ConfigError, MAX_SIZE, Section};
use crate::families::expected::{Expected, ExpectedDtype};
use crate::names::Part;

/// The scheme's row.
pub(super) const SCHEME: SchemeRow = SchemeRow {
    method: "gptq",
    read,
    parts: &[
        (VALUES, Part::Blocks),
        (ZEROS, Part::ZeroPoint),
        (SCALES, Part::Scale),
        (GROUP, Part::GroupIndex),
    ],
};

const VALUES: &str = ".qweight";
const ZEROS: &str = ".qzeros";
const SCALES: &str = ".scales";
const GROUP: &str = ".g_idx";

/// The settings of a checkpoint.
#[derive(Debug, Clone)]
struct Gptq {
    bits: u64,
    /// Inputs that share a scale; `None` is all of them.
    group: Option<u64>,
    kept: Modules,
}

fn read(section: &Section<'_>) -> Result<Box<dyn Scheme>, ConfigError> {
    let bits = section.integer("bits", Some(4), 2..=8)?;
    let all = section
        .value("group_size")
        .is_some_and(|size| size.as_i64() == Some(-1));
    let group = match all {
        true => None,
        false => Some(section.integer("group_size", Some(128), 1..=MAX_SIZE)?),
    };
    let kept = Modules::read(section, &["modules_to_not_convert"])?;
    Ok(Box::new(Gptq { bits, group, kept }))
}

impl Scheme for Gptq {
    fn kept(&self) -> &Modules {
        &self.kept
    }

    fn mark(&self) -> &'static str {
        VALUES
    }

    fn tensors_of(&self, weight: &Weight<'_>) -> Option<Vec<Expected>> {
        let [outputs, inputs] = weight.linear()?;
        let words = |values: u64| values.saturating_mul(self.bits).div_ceil(32);
        let groups = self.group.map_or(1, |group| inputs.div_ceil(group));
        let word = ExpectedDtype::One(Dtype::I32);
        let mut tensors = vec![
            weight.part((VALUES, Part::Blocks), word, vec![words(inputs), outputs]),
            weight.part((ZEROS, Part::ZeroPoint), word, vec![groups, words(outputs)]),
            weight.part(
                (SCALES, Part::Scale),
                ExpectedDtype::Float,
                vec![groups, outputs],
            ),
        ];
        if weight.others_have(GROUP) {
            tensors.push(weight.part((GROUP, Part::GroupIndex), word, vec![inputs]));
        }
        Some(tensors)
    }
}
