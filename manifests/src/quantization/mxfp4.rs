//! MXFP4 of stacked experts, as gpt-oss is published.
//!
//! In the place of `experts.gate_up_proj` `[experts, in, out]` stand `…_blocks`
//! `[experts, out, in / 32, 16]`, two values to a byte and outputs first, and `…_scales`, one
//! exponent for each block of 32.
//!
//! Source: transformers 5.23, integrations/mxfp4.py.

use segpack_formats::numeric::Dtype;

use super::modules::Modules;
use super::weight::Weight;
use super::{Scheme, SchemeRow, WeightCoding};
use crate::families::config::{ConfigError, Section};
use crate::families::expected::{Expected, ExpectedDtype};
use crate::names::Part;

/// The scheme's row.
pub(super) const SCHEME: SchemeRow = SchemeRow {
    method: "mxfp4",
    read,
    parts: &[(BLOCKS, Part::Blocks), (SCALES, Part::Scale)],
};

const BLOCKS: &str = "_blocks";
const SCALES: &str = "_scales";
/// Values that share an exponent.
const BLOCK: u64 = 32;

/// The settings of a checkpoint.
#[derive(Debug, Clone)]
struct Mxfp4 {
    kept: Modules,
}

fn read(section: &Section<'_>) -> Result<Box<dyn Scheme>, ConfigError> {
    let kept = Modules::read(section, &["modules_to_not_convert"])?;
    Ok(Box::new(Mxfp4 { kept }))
}

impl Scheme for Mxfp4 {
    fn kept(&self) -> &Modules {
        &self.kept
    }

    fn mark(&self) -> &'static str {
        BLOCKS
    }

    fn tensors_of(&self, weight: &Weight<'_>) -> Option<Vec<Expected>> {
        let &[experts, inputs, outputs] = weight.shape() else {
            return None;
        };
        let blocks = vec![experts, outputs, inputs.div_ceil(BLOCK), BLOCK / 2];
        let scales = blocks[..3].to_vec();
        let dtype = ExpectedDtype::One(Dtype::U8);
        Some(vec![
            weight.part((BLOCKS, Part::Blocks), dtype, blocks),
            weight.part((SCALES, Part::Scale), dtype, scales),
        ])
    }

    fn coding(&self) -> Option<WeightCoding> {
        Some(WeightCoding::Mxfp4)
    }
}
