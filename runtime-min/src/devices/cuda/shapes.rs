//! What the kernels can run, and whether a pack's tensors have the config's shapes.

use super::launch::MAX_HEAD_WIDTH;
use super::layout::Sizes;
use crate::error::{GpuLimit, RunError, Unsuitable};
use crate::models::decoder::DecoderSpec;
use crate::models::decoder::bind::{DecoderWeights, LayerWeights, LinearWeights, MlpWeights};
use crate::weights::PlacedTensor;

/// Experts that a router can choose among (its values are in shared memory).
const MAX_EXPERTS: usize = 4096;

/// What the kernels cannot run is named here.
pub(super) fn check(weights: &DecoderWeights<'_>, spec: &DecoderSpec) -> Result<(), RunError> {
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
        let first = experts[0].gate.dtype;
        if [e.gate.dtype, e.up.dtype, e.down.dtype] != [first; 3] {
            let (layer, expert) = (number(layer), number(expert));
            return Err(GpuLimit::MixedDtypes { layer, expert }.into());
        }
    }
    Ok(())
}

fn number(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// Kernels go by the config's sizes: no tensor may have others.
pub(super) fn check_shapes(weights: &DecoderWeights<'_>, s: &Sizes) -> Result<(), RunError> {
    for (number, layer) in weights.layers.iter().enumerate() {
        check_layer(number, layer, s)?;
    }
    same("final norm", weights.final_norm, s.hidden, 1)?;
    same("embedding", weights.embedding_table, s.vocab, s.hidden)?;
    same("head", weights.head_matrix, s.vocab, s.hidden)
}

fn check_layer(number: usize, l: &LayerWeights<'_>, s: &Sizes) -> Result<(), RunError> {
    let of = |what: &str| format!("{what} of layer {number}");
    same(&of("input norm"), l.input_norm, s.hidden, 1)?;
    let post_attention_norm = of("post-attention norm");
    same(&post_attention_norm, l.post_attention_norm, s.hidden, 1)?;
    same(&of("q norm"), l.q_norm, s.heads.width, 1)?;
    same(&of("k norm"), l.k_norm, s.heads.width, 1)?;
    linear(&of("q projection"), &l.q, s.query, s.hidden)?;
    linear(&of("k projection"), &l.k, s.key, s.hidden)?;
    linear(&of("v projection"), &l.v, s.key, s.hidden)?;
    linear(&of("o projection"), &l.o, s.hidden, s.query)?;
    match &l.mlp {
        MlpWeights::Dense { gate, up, down } => {
            linear(&of("gate projection"), gate, s.inner, s.hidden)?;
            linear(&of("up projection"), up, s.inner, s.hidden)?;
            linear(&of("down projection"), down, s.hidden, s.inner)
        }
        MlpWeights::Experts { router, experts } => {
            linear(&of("router"), router, s.experts, s.hidden)?;
            for e in experts {
                same(&of("expert gate"), e.gate, s.moe, s.hidden)?;
                same(&of("expert up"), e.up, s.moe, s.hidden)?;
                same(&of("expert down"), e.down, s.hidden, s.moe)?;
            }
            Ok(())
        }
    }
}

/// Whether a tensor is `[rows, columns]`.
fn same(what: &str, tensor: PlacedTensor, rows: usize, columns: usize) -> Result<(), RunError> {
    let bytes = rows * columns * tensor.dtype.byte_width();
    if (tensor.rows, tensor.columns, tensor.length) == (rows, columns, bytes) {
        return Ok(());
    }
    Err(Unsuitable::Shape {
        what: what.to_owned(),
        seen: [tensor.rows, tensor.columns],
        wanted: [rows, columns],
    }
    .into())
}

/// Whether a linear layer is `[rows, columns]`, and its bias `[rows]`.
fn linear(what: &str, linear: &LinearWeights, rows: usize, columns: usize) -> Result<(), RunError> {
    same(what, linear.weight, rows, columns)?;
    linear
        .bias
        .map_or(Ok(()), |bias| same(&format!("{what} bias"), bias, rows, 1))
}
