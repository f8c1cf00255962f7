//! The pieces of a transformer block with layer norms and biases.

use std::ops::Range;

use segpack_formats::Result;
use segpack_formats::io::CancelToken;

use crate::ops::Ops;
use crate::tensor::{Heads, Linear, Matrix};
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
        let bias = self.bias.values(memory);
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
        let bias = self.bias.values(memory);
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
        let (weight, bias) = (self.weight.values(memory), self.bias.values(memory));
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

/// Reused memory of a block.
#[derive(Default)]
pub(crate) struct Scratch {
    normed: Vec<f32>,
    qkv: [Vec<f32>; 3],
    attended: Vec<f32>,
    pub(crate) mlp: [Vec<f32>; 2],
}

/// `x += out(attention(norm(x)))`, tokens attending to all of their segment.
pub(crate) struct SelfAttention<'l> {
    pub(crate) norm: &'l Affine,
    pub(crate) eps: f32,
    pub(crate) out: &'l Dense,
    pub(crate) heads: Heads,
    /// The first token of each segment, and the end of the last.
    pub(crate) segments: &'l [usize],
}

impl SelfAttention<'_> {
    /// Of all tokens, some segments at a time. `project` fills queries, keys and values of the
    /// tokens of a range, whose normed values it gets.
    pub(crate) fn run(
        &self,
        ops: &impl Ops,
        memory: &[u8],
        project: impl Fn(Range<usize>, &[f32], &mut [Vec<f32>; 3]) -> Result<()>,
        x: &mut [f32],
        scratch: &mut Scratch,
        stop: &CancelToken,
    ) -> Result<()> {
        let width = self.heads.query * self.heads.width;
        let Scratch {
            normed,
            qkv,
            attended,
            ..
        } = scratch;
        for span in spans(self.segments) {
            let segments = &self.segments[span.start..=span.end];
            let tokens = segments[0]..segments[segments.len() - 1];
            let x = &mut x[tokens.start * width..tokens.end * width];
            normed.clear();
            normed.extend_from_slice(x);
            self.norm.run(ops, memory, normed, self.eps);
            project(tokens.clone(), normed, qkv)?;
            attended.resize(x.len(), 0.0);
            let segments: Vec<usize> = segments.iter().map(|token| token - tokens.start).collect();
            let [q, k, v] = &*qkv;
            ops.attention_within_until([q, k, v], self.heads, &segments, attended, stop)?;
            self.out.run(ops, memory, attended, normed, stop)?;
            ops.add(x, normed);
        }
        Ok(())
    }
}

/// `second(gelu(first(norm(x))))`: rows of the decoder's width.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Projection {
    /// As wide as a row of `first`, or as an equal part of one.
    pub(crate) norm: Affine,
    pub(crate) first: Dense,
    pub(crate) second: Dense,
}

impl Projection {
    /// Of all rows, a batch at a time.
    pub(crate) fn run(
        &self,
        ops: &impl Ops,
        memory: &[u8],
        x: &[f32],
        eps: f32,
        stop: &CancelToken,
    ) -> Result<Vec<f32>> {
        let width = self.first.weight.columns.max(1);
        let mut out = Vec::with_capacity(x.len() / width * self.second.weight.rows);
        let (mut normed, mut inner, mut rows) = (Vec::new(), Vec::new(), Vec::new());
        for x in x.chunks(BATCH * width) {
            normed.clear();
            normed.extend_from_slice(x);
            self.norm.run(ops, memory, &mut normed, eps);
            self.first.run(ops, memory, &normed, &mut inner, stop)?;
            ops.gelu(&mut inner);
            self.second.run(ops, memory, &inner, &mut rows, stop)?;
            out.extend_from_slice(&rows);
        }
        Ok(out)
    }
}

/// Runs of whole segments, each of about a [`BATCH`] of tokens or of one longer segment, as ranges
/// of `segments`, which has the first token of each and the end of the last.
fn spans(segments: &[usize]) -> Vec<Range<usize>> {
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
