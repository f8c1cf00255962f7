//! f32 activations as three bf16 values each.

use super::super::inputs::Inputs;
use super::super::order::WORDS;
use super::super::simd::{LANES, Line, Simd, Work};

/// bf16 values whose sum is an f32 value: 8 bits of the significand each.
pub(super) const PIECES: usize = 3;

/// The pieces of some values, the smallest first; the low half of a piece's bits is not zero.
///
/// Each is cut off, not rounded, so that none overflows and what is left is exact. Nothing is left of an
/// infinite value; a value that is no number stays none.
#[inline(always)]
pub(super) fn pieces<S: Simd>(s: S, x: S::V) -> [S::V; PIECES] {
    let middle = left(s, x);
    [left(s, middle), middle, x]
}

/// What is left of some values without their upper halves.
#[inline(always)]
fn left<S: Simd>(s: S, x: S::V) -> S::V {
    let left = s.sub(x, s.high(x));
    // ∞ - ∞ is no number, for which both of these are zero
    let zero = s.splat(0.0);
    s.add(s.max(left, zero), s.min(left, zero))
}

/// Packs rows of activations as `[chunks of columns, PIECES, LANES pairs of columns, tokens]`: two
/// values in the bits of one. Columns that are missing in the last chunk are zero.
pub(in crate::kernels) struct Pack<'a> {
    /// At most 16 rows.
    pub x: Inputs<'a>,
    /// Not fewer than the rows; those that are missing are zero.
    pub tokens: usize,
    pub to: &'a mut [f32],
}

impl Work for Pack<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { x, tokens, to } = self;
        let of_a_piece = LANES * tokens;
        for (c, to) in to.chunks_exact_mut(PIECES * of_a_piece).enumerate() {
            for half in 0..2 {
                let column = c * WORDS + half * LANES;
                let mut rows = [s.splat(0.0); LANES];
                if column < x.columns() {
                    for (t, row) in rows.iter_mut().enumerate().take(x.rows()) {
                        *row = x.vector(s, t, column);
                    }
                }
                let columns = s.transpose(rows);
                for i in 0..LANES / 2 {
                    let even = pieces(s, columns[2 * i]);
                    let odd = pieces(s, columns[2 * i + 1]);
                    for p in 0..PIECES {
                        let at = p * of_a_piece + (half * LANES / 2 + i) * tokens;
                        let to = &mut to[at..at + tokens];
                        put(s, s.pair(even[p], odd[p]), to);
                    }
                }
            }
        }
    }
}

/// The first lanes.
#[inline(always)]
fn put<S: Simd>(s: S, v: S::V, to: &mut [f32]) {
    match to.first_chunk_mut() {
        Some(to) => s.store(v, to),
        None => {
            let mut line = Line::ZERO;
            s.store(v, &mut line.0);
            to.copy_from_slice(&line.0[..to.len()]);
        }
    }
}
