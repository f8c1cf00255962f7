//! bitsandbytes: 4 bits (nf4, fp4) with a scale for each 64 values, or int8 with one for each row.
//!
//! 4 bits: `*.weight` is `[out x in / 2, 1]` of U8; beside it `*.weight.absmax`, one scale per block,
//! `*.weight.quant_map`, the values that codes stand for, and `*.weight.quant_state.…`, a JSON text;
//! scales that are quantised themselves have `nested_absmax` and `nested_quant_map`. int8: `*.SCB`.
//!
//! Source: bitsandbytes 0.45, functional.py (QuantState.as_dict), from memory.

use segpack_formats::numeric::Dtype;

use super::modules::Modules;
use super::weight::Weight;
use super::{Scheme, SchemeRow};
use crate::families::config::{ConfigError, Section};
use crate::families::expected::{Expected, ExpectedDtype};
use crate::names::Part;

/// The scheme's row.
pub(super) const SCHEME: SchemeRow = SchemeRow {
    method: "bitsandbytes",
    read,
    parts: &[
        (NESTED, Part::NestedScale),
        (NESTED_MAP, Part::NestedCodebook),
        (SCALES, Part::Scale),
        (MAP, Part::Codebook),
        (STATE_NF4, Part::State),
        (STATE_FP4, Part::State),
        (ROWS, Part::Scale),
        (FORMAT, Part::State),
    ],
};

const SCALES: &str = ".weight.absmax";
const MAP: &str = ".weight.quant_map";
const NESTED: &str = ".weight.nested_absmax";
const NESTED_MAP: &str = ".weight.nested_quant_map";
const STATE_NF4: &str = ".weight.quant_state.bitsandbytes__nf4";
const STATE_FP4: &str = ".weight.quant_state.bitsandbytes__fp4";
const ROWS: &str = ".SCB";
const FORMAT: &str = ".weight_format";
/// Values that share a scale, and scales that share one.
const BLOCK: u64 = 64;
const NESTED_BLOCK: u64 = 256;

/// The settings of a checkpoint.
#[derive(Debug, Clone)]
struct BitsAndBytes {
    /// What the text beside 4-bit values is called; `None` for int8.
    state: Option<&'static str>,
    nested: bool,
    kept: Modules,
}

fn read(section: &Section<'_>) -> Result<Box<dyn Scheme>, ConfigError> {
    let state = match section.flag("load_in_4bit", false)? {
        false => None,
        true => Some(
            match section.text("bnb_4bit_quant_type")?.unwrap_or("fp4") {
                "nf4" => STATE_NF4,
                "fp4" => STATE_FP4,
                _ => return Err(section.invalid("bnb_4bit_quant_type", "nf4 or fp4")),
            },
        ),
    };
    Ok(Box::new(BitsAndBytes {
        state,
        nested: section.flag("bnb_4bit_use_double_quant", false)?,
        kept: Modules::read(section, &["llm_int8_skip_modules"])?,
    }))
}

impl Scheme for BitsAndBytes {
    fn kept(&self) -> &Modules {
        &self.kept
    }

    fn mark(&self) -> &'static str {
        match self.state {
            Some(_) => SCALES,
            None => ROWS,
        }
    }

    fn tensors_of(&self, weight: &Weight<'_>) -> Option<Vec<Expected>> {
        let [rows, columns] = weight.linear()?;
        let one = ExpectedDtype::One;
        let Some(state) = self.state else {
            let format = weight.part((FORMAT, Part::State), one(Dtype::U8), Vec::new());
            return Some(vec![
                weight.values(Dtype::I8, vec![rows, columns]),
                weight.part((ROWS, Part::Scale), one(Dtype::F32), vec![rows]),
                Weight::optional(format),
            ]);
        };
        let values = rows.saturating_mul(columns);
        let blocks = values.div_ceil(BLOCK);
        let scales = match self.nested {
            true => Dtype::U8,
            false => Dtype::F32,
        };
        let mut text = weight.part((state, Part::State), one(Dtype::U8), vec![1]);
        text.or_shape = Some(vec![0]);
        let mut tensors = vec![
            weight.values(Dtype::U8, vec![values.div_ceil(2), 1]),
            weight.part((SCALES, Part::Scale), one(scales), vec![blocks]),
            weight.part((MAP, Part::Codebook), one(Dtype::F32), vec![16]),
            text,
        ];
        if self.nested {
            let outer = vec![blocks.div_ceil(NESTED_BLOCK)];
            tensors.push(weight.part((NESTED, Part::NestedScale), one(Dtype::F32), outer));
            let map = (NESTED_MAP, Part::NestedCodebook);
            tensors.push(weight.part(map, one(Dtype::F32), vec![NESTED_BLOCK]));
        }
        Some(tensors)
    }
}
