//! compressed-tensors, as llm-compressor, GLM-4.5-FP8 and Kimi-K2.5 publish it.
//!
//! `config_groups.*` says what Linears become: FP8 or int8 values under `*.weight` with a scale per
//! tensor, row or block (`float-quantized`, `int-quantized`), int4 or int8 packed into
//! `*.weight_packed` (`pack-quantized`), or FP4 with two levels of scales
//! (`nvfp4-pack-quantized`). `ignore` lists what stays: names, or `re:` and a regular expression.
//!
//! Source: compressed-tensors 0.12, compressors/quantized_compressors.

use segpack_formats::numeric::Dtype;

use super::modules::Modules;
use super::weight::Weight;
use super::{Scheme, SchemeRow};
use crate::families::config::{ConfigError, MAX_SIZE, Section};
use crate::families::expected::{Expected, ExpectedDtype};
use crate::names::Part;

/// The scheme's row.
pub(super) const SCHEME: SchemeRow = SchemeRow {
    method: "compressed-tensors",
    read,
    parts: &[
        (PACKED, Part::Blocks),
        (SCALE, Part::Scale),
        (SHAPE, Part::Shape),
        (ZERO, Part::ZeroPoint),
        (GROUP, Part::GroupIndex),
        (GLOBAL, Part::GlobalScale),
        (INPUT_GLOBAL, Part::InputScale),
        (INPUT, Part::InputScale),
    ],
};

const PACKED: &str = ".weight_packed";
const SCALE: &str = ".weight_scale";
const SHAPE: &str = ".weight_shape";
const ZERO: &str = ".weight_zero_point";
const GROUP: &str = ".weight_g_idx";
const GLOBAL: &str = ".weight_global_scale";
const INPUT_GLOBAL: &str = ".input_global_scale";
const INPUT: &str = ".input_scale";

/// How the values are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    /// Under `*.weight`, of this dtype.
    Own(Dtype),
    /// So many to a word of 32 bits.
    Packed(u64),
    /// Two FP4 values to a byte, in groups of 16.
    Fp4,
}

/// The settings of a checkpoint.
#[derive(Debug, Clone)]
struct CompressedTensors {
    format: Format,
    /// Rows and columns that share a scale; 0 is all of them.
    block: [u64; 2],
    kept: Modules,
}

fn read(section: &Section<'_>) -> Result<Box<dyn Scheme>, ConfigError> {
    let groups = section.section("config_groups")?;
    // groups differ in which modules they are for, seldom in how these are stored
    let group = groups.section(groups.first_key().unwrap_or("group_0"))?;
    let weights = group.section("weights")?;
    let bits = weights.integer("num_bits", None, 1..=16)?;
    let kind = weights.text("type")?.unwrap_or("int");
    let key = "format";
    let stated = group.text(key)?.or(section.text(key)?).unwrap_or_default();
    let format = match (stated, kind, bits) {
        ("pack-quantized" | "marlin-24", "int", 4 | 8) => Format::Packed(32 / bits),
        ("nvfp4-pack-quantized", "float", 4) => Format::Fp4,
        ("float-quantized" | "naive-quantized", "float", 8) => Format::Own(Dtype::F8_E4M3),
        ("int-quantized" | "naive-quantized", "int", 8) => Format::Own(Dtype::I8),
        _ => {
            let wanted = "pack-quantized of 4 or 8 bits, float-quantized or int-quantized of 8, or \
                          nvfp4-pack-quantized of 4";
            return Err(section.invalid_or_missing(key, wanted));
        }
    };
    let block = match weights.text("strategy")?.unwrap_or("tensor") {
        "tensor" => [0, 0],
        "channel" => [1, 0],
        "group" | "tensor_group" => [1, weights.size("group_size", Some(128))?],
        "block" => {
            let sides = weights.integers("block_structure", &[128, 128], 1..=MAX_SIZE)?;
            <[u64; 2]>::try_from(sides).unwrap_or([128, 128])
        }
        _ => return Err(weights.invalid("strategy", "tensor, channel, group or block")),
    };
    let kept = Modules::read(section, &["ignore"])?;
    Ok(Box::new(CompressedTensors {
        format,
        block,
        kept,
    }))
}

impl Scheme for CompressedTensors {
    fn kept(&self) -> &Modules {
        &self.kept
    }

    fn mark(&self) -> &'static str {
        match self.format {
            Format::Own(_) => SCALE,
            Format::Packed(_) | Format::Fp4 => PACKED,
        }
    }

    fn tensors_of(&self, weight: &Weight<'_>) -> Option<Vec<Expected>> {
        let [rows, columns] = weight.linear()?;
        let scales = match self.block {
            [0, 0] => Vec::new(),
            [r, 0] => vec![rows.div_ceil(r), 1],
            [r, c] => vec![rows.div_ceil(r), columns.div_ceil(c)],
        };
        let scale = |dtype| weight.part((SCALE, Part::Scale), dtype, scales.clone());
        let word = |suffix, part, shape| weight.part((suffix, part), ExpectedDtype::Integer, shape);
        let mut tensors = match self.format {
            Format::Own(dtype) => {
                let values = weight.values(dtype, vec![rows, columns]);
                vec![values, scale(ExpectedDtype::Float)]
            }
            Format::Packed(share) => vec![
                word(PACKED, Part::Blocks, vec![rows, columns.div_ceil(share)]),
                scale(ExpectedDtype::Float),
                word(SHAPE, Part::Shape, vec![2]),
            ],
            Format::Fp4 => {
                let values = vec![rows, columns.div_ceil(2)];
                let single = |suffix, part| {
                    weight.part((suffix, part), ExpectedDtype::One(Dtype::F32), vec![1])
                };
                let one = ExpectedDtype::One;
                vec![
                    weight.part((PACKED, Part::Blocks), one(Dtype::U8), values),
                    scale(one(Dtype::F8_E4M3)),
                    single(GLOBAL, Part::GlobalScale),
                ]
            }
        };
        tensors.extend(weight.scalar_if_any((INPUT_GLOBAL, Part::InputScale)));
        tensors.extend(weight.scalar_if_any((INPUT, Part::InputScale)));
        if weight.others_have(GROUP) {
            tensors.push(word(GROUP, Part::GroupIndex, vec![columns]));
        }
        if weight.others_have(ZERO) {
            // packed along the rows, or as many as there are scales
            let mut zero = word(ZERO, Part::ZeroPoint, scales);
            zero.or_shape = Some(vec![0; zero.shape.len()]);
            tensors.push(zero);
        }
        Some(tensors)
    }
}
