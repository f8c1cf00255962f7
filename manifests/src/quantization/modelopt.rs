//! NVIDIA's ModelOpt: FP8 per tensor, or FP4 with two levels of scales (NVFP4).
//!
//! `*.weight` holds the values, `*.weight_scale` one FP8 scale for each group of 16,
//! `*.weight_scale_2` what those are multiplied by, `*.input_scale` that of the activations; FP8
//! has one F32 `*.weight_scale`. Older exports announce it in `hf_quant_config.json` alone: see
//! [`with_announced`](super::with_announced).
//!
//! Source: the configurations of nvidia/Qwen3-235B-A22B-NVFP4; names of tensors from memory.

use segpack_formats::numeric::Dtype;

use super::modules::Modules;
use super::weight::Weight;
use super::{Scheme, SchemeRow};
use crate::families::config::{ConfigError, MAX_SIZE, Section};
use crate::families::expected::{Expected, ExpectedDtype};
use crate::names::Part;

/// The scheme's row.
pub(super) const SCHEME: SchemeRow = SchemeRow {
    method: "modelopt",
    read,
    parts: &[
        (GLOBAL, Part::GlobalScale),
        (SCALE, Part::Scale),
        (INPUT, Part::InputScale),
        (KEYS, Part::Scale),
        (VALUES, Part::Scale),
    ],
};

const SCALE: &str = ".weight_scale";
const GLOBAL: &str = ".weight_scale_2";
const INPUT: &str = ".input_scale";
const KEYS: &str = ".k_scale";
const VALUES: &str = ".v_scale";

/// The settings of a checkpoint.
#[derive(Debug, Clone)]
struct ModelOpt {
    /// Values that share a scale; `None` for FP8, one scale for all.
    group: Option<u64>,
    kept: Modules,
}

fn read(section: &Section<'_>) -> Result<Box<dyn Scheme>, ConfigError> {
    let group = match section.text("quant_algo")?.unwrap_or("NVFP4") {
        "FP8" => None,
        "NVFP4" => Some(section.integer("group_size", Some(16), 1..=MAX_SIZE)?),
        _ => return Err(section.invalid("quant_algo", "FP8 or NVFP4")),
    };
    let kept = Modules::read(section, &["ignore", "exclude_modules"])?;
    Ok(Box::new(ModelOpt { group, kept }))
}

impl Scheme for ModelOpt {
    fn kept(&self) -> &Modules {
        &self.kept
    }

    fn mark(&self) -> &'static str {
        SCALE
    }

    fn tensors_of(&self, weight: &Weight<'_>) -> Option<Vec<Expected>> {
        let [rows, columns] = weight.linear()?;
        let one = ExpectedDtype::One;
        let scale = |dtype, shape| weight.part((SCALE, Part::Scale), one(dtype), shape);
        let mut tensors = match self.group {
            None => vec![
                weight.values(Dtype::F8_E4M3, vec![rows, columns]),
                scale(Dtype::F32, Vec::new()),
            ],
            Some(group) => vec![
                weight.values(Dtype::U8, vec![rows, columns.div_ceil(2)]),
                scale(Dtype::F8_E4M3, vec![rows, columns.div_ceil(group)]),
                weight.part((GLOBAL, Part::GlobalScale), one(Dtype::F32), Vec::new()),
            ],
        };
        tensors.extend(weight.scalar_if_any((INPUT, Part::InputScale)));
        tensors.extend(self.beside(weight));
        Some(tensors)
    }

    /// The scales of an FP8 cache, which projections have that are not quantised themselves, too.
    fn beside(&self, weight: &Weight<'_>) -> Vec<Expected> {
        let scale = match weight.module() {
            module if module.ends_with("k_proj") => KEYS,
            module if module.ends_with("v_proj") => VALUES,
            _ => return Vec::new(),
        };
        weight
            .scalar_if_any((scale, Part::Scale))
            .into_iter()
            .collect()
    }
}
