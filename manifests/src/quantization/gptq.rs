//! GPTQ: values of 2 to 8 bits packed into 32-bit words along the inputs.
//!
//! `*.qweight` `[in x bits / 32, out]`, `*.qzeros` `[groups, out x bits / 32]`, `*.scales`
//! `[groups, out]`, and `*.g_idx` `[in]`, the group of each input.
//!
//! Source: AutoGPTQ's and GPTQModel's QuantLinear, from memory.

use super::modules::Modules;
use super::packed_words::{PackedWords, SCALES, VALUES, WORD, ZEROS};
use super::weight::Weight;
use super::{Scheme, SchemeRow};
use crate::families::config::{ConfigError, Section};
use crate::families::expected::Expected;
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

const GROUP: &str = ".g_idx";

/// The settings of a checkpoint.
#[derive(Debug, Clone)]
struct Gptq(PackedWords);

fn read(section: &Section<'_>) -> Result<Box<dyn Scheme>, ConfigError> {
    Ok(Box::new(Gptq(PackedWords::read(section)?)))
}

impl Scheme for Gptq {
    fn kept(&self) -> &Modules {
        &self.0.kept
    }

    fn mark(&self) -> &'static str {
        VALUES
    }

    fn tensors_of(&self, weight: &Weight<'_>) -> Option<Vec<Expected>> {
        let [outputs, inputs] = weight.linear()?;
        let values = vec![self.0.of(inputs), outputs];
        let mut tensors = self.0.tensors(weight, [outputs, inputs], values);
        if weight.others_have(GROUP) {
            tensors.push(weight.part((GROUP, Part::GroupIndex), WORD, vec![inputs]));
        }
        Some(tensors)
    }
}
