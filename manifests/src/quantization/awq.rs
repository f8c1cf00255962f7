//! AWQ ("gemm"): values of 4 bits packed into 32-bit words along the outputs.
//!
//! `*.qweight` `[in, out x bits / 32]`, `*.qzeros` `[groups, out x bits / 32]`, `*.scales`
//! `[groups, out]`.
//!
//! Source: AutoAWQ's WQLinear_GEMM, from memory.

use super::modules::Modules;
use super::packed_words::{PackedWords, SCALES, VALUES, ZEROS};
use super::weight::Weight;
use super::{Scheme, SchemeRow};
use crate::families::config::{ConfigError, Section};
use crate::families::expected::Expected;
use crate::names::Part;

/// The scheme's row.
pub(super) const SCHEME: SchemeRow = SchemeRow {
    method: "awq",
    read,
    parts: &[
        (VALUES, Part::Blocks),
        (ZEROS, Part::ZeroPoint),
        (SCALES, Part::Scale),
    ],
};

/// The settings of a checkpoint.
#[derive(Debug, Clone)]
struct Awq(PackedWords);

fn read(section: &Section<'_>) -> Result<Box<dyn Scheme>, ConfigError> {
    Ok(Box::new(Awq(PackedWords::read(section)?)))
}

impl Scheme for Awq {
    fn kept(&self) -> &Modules {
        &self.0.kept
    }

    fn mark(&self) -> &'static str {
        VALUES
    }

    fn tensors_of(&self, weight: &Weight<'_>) -> Option<Vec<Expected>> {
        let [outputs, inputs] = weight.linear()?;
        let values = vec![inputs, self.0.of(outputs)];
        Some(self.0.tensors(weight, [outputs, inputs], values))
    }
}
