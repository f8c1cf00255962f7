//! f32 activations as three bf16 values each.

use super::super::inputs::Inputs;
use super::super::order::WORDS;
use super::super::rows::store;
use super::super::simd::{LANES, Simd, Work};

/// bf16 values whose sum is an f32 value: 8 bits of the significand each.
pub(super) const PIECES: usize = 3;

/// The pieces of an even and an odd column, the smallest first: two values in the bits of one.
#[inline(always)]
pub(super) fn pieces_of_a_pair<S: Simd>(s: S, [even, odd]: [S::V; 2]) -> [S::V; PIECES] {
    let (even, odd) = (pieces(s, even), pieces(s, odd));
    let mut pairs = even;
    for p in 0..PIECES {
        pairs[p] = s.pair(even[p], odd[p]);
    }
    pairs
}

/// The pieces of some values, the smallest first; the low half of a piece's bits is not zero.
///
/// Each is cut off, not rounded, so that none overflows and what is left is exact. Nothing is left of an
/// infinite value; a value that is no number stays none.
#[inline(always)]
fn pieces<S: Simd>(s: S, x: S::V) -> [S::V; PIECES] {
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
                let columns = x.turned(s, c * WORDS + half * LANES);
                for i in 0..LANES / 2 {
                    let pair = [columns[2 * i], columns[2 * i + 1]];
                    for (p, words) in pieces_of_a_pair(s, pair).iter().enumerate() {
                        let at = p * of_a_piece + (half * LANES / 2 + i) * tokens;
                        store(s, *words, &mut to[at..at + tokens]);
                    }
                }
            }
        }
    }
}
