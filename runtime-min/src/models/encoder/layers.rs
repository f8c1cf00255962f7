//! The pieces of a transformer block with layer norms and biases.

use std::ops::Range;

use segpack_formats::Result;
use segpack_formats::io::CancelToken;

use super::memory::values;
use crate::ops::Ops;
use crate::tensor::{Linear, Matrix};
use crate::weights::PlacedTensor;

/// Tokens that go through linear layers at a time: matrix products of this many reach the
/// processor's full rate.
pub(crate) const BATCH: usize = 512;

/// A linear layer with a bias.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Dense {
    pub(crate) weight: PlacedTensor,
    pub(crate) bias: PlacedTensor,
}

impl Dense {
    /// `out = x · Wᵀ + bias`, in this memory.
    pub(crate) fn run(
        &self,
        ops: &impl Ops,
        memory: &[u8],
        x: &[f32],
        out: &mut Vec<f32>,
        stop: &CancelToken,
    ) -> Result<()> {
        let bias = values(self.bias, memory);
        apply(ops, self.weight.matrix(memory), &bias, x, out, stop)
    }

    /// Rows `part` of `parts` equal ones, as a linear layer of its own.
    pub(crate) fn run_part(
        &self,
        ops: &impl Ops,
        memory: &[u8],
        (part, parts): (usize, usize),
        x: &[f32],
        out: &mut Vec<f32>,
        stop: &CancelToken,
    ) -> Result<()> {
        let whole = self.weight.matrix(memory);
        let (rows, bytes) = (whole.rows / parts, whole.bytes.len() / parts);
        let weight = Matrix {
            bytes: &whole.bytes[part * bytes..][..bytes],
            rows,
            ..whole
        };
        let bias = values(self.bias, memory);
        apply(ops, weight, &bias[part * rows..][..rows], x, out, stop)
    }
}

fn apply(
    ops: &impl Ops,
    weight: Matrix<'_>,
    bias: &[f32],
    x: &[f32],
    out: &mut Vec<f32>,
    stop: &CancelToken,
) -> Result<()> {
    out.resize(x.len() / weight.columns.max(1) * weight.rows, 0.0);
    ops.linears_until(
        &mut [Linear {
            x,
            weight,
            bias: Some(bias),
            out,
        }],
        stop,
    )
}

/// A layer norm.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Affine {
    pub(crate) weight: PlacedTensor,
    pub(crate) bias: PlacedTensor,
}

impl Affine {
    /// Norms every row in place.
    pub(crate) fn run(&self, ops: &impl Ops, memory: &[u8], x: &mut [f32], eps: f32) {
        let (weight, bias) = (values(self.weight, memory), values(self.bias, memory));
        ops.layer_norm(x, &weight, &bias, eps);
    }
}

/// `x += down(gelu(up(norm(x))))`
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mlp {
    pub(crate) norm: Affine,
    pub(crate) up: Dense,
    pub(crate) down: Dense,
}

impl Mlp {
    /// Of all tokens, a batch at a time. `scratch` is reused memory.
    pub(crate) fn run<O: Ops>(
        &self,
        ops: &O,
        memory: &[u8],
        x: &mut [f32],
        (eps, gelu): (f32, fn(&O, &mut [f32])),
        scratch: &mut [Vec<f32>; 2],
        stop: &CancelToken,
    ) -> Result<()> {
        let width = self.up.weight.columns;
        let [a, b] = scratch;
        for x in x.chunks_mut(BATCH * width) {
            a.clear();
            a.extend_from_slice(x);
            self.norm.run(ops, memory, a, eps);
            self.up.run(ops, memory, a, b, stop)?;
            gelu(ops, b);
            self.down.run(ops, memory, b, a, stop)?;
            ops.add(x, a);
        }
        Ok(())
    }
}

/// Runs of whole segments, each of about a [`BATCH`] of tokens or of one longer segment, as ranges
/// of `segments`, which has the first token of each and the end of the last.
pub(crate) fn spans(segments: &[usize]) -> Vec<Range<usize>> {
    let mut spans = Vec::new();
    let mut first = 0;
    for end in 1..segments.len() {
        let is_last = end + 1 == segments.len();
        if is_last || segments[end + 1] - segments[first] > BATCH {
            spans.push(first..end);
            first = end;
        }
    }
    spans
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_have_whole_segments_and_all_of_them() {
        assert!(spans(&[0]).is_empty());
        assert_eq!(spans(&[0, 3]), vec![Range { start: 0, end: 1 }]);
        assert_eq!(spans(&[0, 0, 3]), vec![Range { start: 0, end: 2 }]);
        assert_eq!(
            spans(&[0, 104, 208, 312, 416, 520, 530, 2000, 2010]),
            [0..4, 4..6, 6..7, 7..8]
        );
    }
}
