//! What the kernels can run.

use super::launch::MAX_HEAD_WIDTH;
use crate::error::{GpuLimit, RunError};
use crate::models::decoder::DecoderSpec;
use crate::models::decoder::bind::{DecoderWeights, LayerWeights};

/// Experts that a router can choose among (its values are in shared memory).
const MAX_EXPERTS: usize = 4096;

/// What the kernels cannot run is named here.
pub(super) fn check(weights: &DecoderWeights<'_>, spec: &DecoderSpec) -> Result<(), RunError> {
    if let Some(what) = spec.beyond_qwen3() {
        return Err(GpuLimit::Operation { what }.into());
    }
    let width = spec.heads.width;
    if width > MAX_HEAD_WIDTH {
        return Err(GpuLimit::HeadWidth {
            seen: width,
            max: MAX_HEAD_WIDTH,
        }
        .into());
    }
    if spec.experts > MAX_EXPERTS {
        let [seen, max] = [spec.experts, MAX_EXPERTS].map(number);
        return Err(GpuLimit::Experts { seen, max }.into());
    }
    weights
        .layers
        .iter()
        .enumerate()
        .try_for_each(|(number, layer)| check_dtypes(number, layer))
}

/// All experts of a layer have one dtype.
fn check_dtypes(layer: usize, weights: &LayerWeights<'_>) -> Result<(), RunError> {
    let experts = weights.mlp.experts();
    for (expert, e) in experts.iter().enumerate() {
        let first = experts[0].gate.weight.dtype;
        if [&e.gate, &e.up, &e.down].map(|l| l.weight.dtype) != [first; 3] {
            let (layer, expert) = (number(layer), number(expert));
            return Err(GpuLimit::MixedDtypes { layer, expert }.into());
        }
    }
    Ok(())
}

fn number(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}
