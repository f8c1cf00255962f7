//! Arithmetic over runs of values that lie side by side, in loops that become vector instructions.
//!
//! A sum over a run is taken in the order of its values, whatever the instructions: every processor
//! writes the same bytes.

/// One number of each run.
pub(super) type Lane<const N: usize> = [f32; N];

/// `f` of each run. `std::array::from_fn` and `map` are not inlined always, and a call within a
/// loop costs more than what it calls.
#[inline(always)]
pub(super) fn lane<const N: usize>(f: impl Fn(usize) -> f32) -> Lane<N> {
    let mut lane = [0.0; N];
    for (i, x) in lane.iter_mut().enumerate() {
        *x = f(i);
    }
    lane
}

/// 1.5 x 2^23: added to a number below 2^22, it leaves no bits behind the point.
const NO_FRACTION: f32 = 12_582_912.0;

/// The nearest integer between two, ties to even; `low` where `x` is not a number. The bounds are
/// integers below 2^22.
#[inline(always)]
pub(super) fn nearest(x: f32, low: f32, high: f32) -> f32 {
    larger(smaller(x, high), low) + NO_FRACTION - NO_FRACTION
}

/// As [`nearest`], for bounds of eight bits, as a byte, in two's complement: the lowest bits of the sum
/// with 1.5 x 2^23 are those of the integer.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the lowest byte is the integer"
)]
#[inline(always)]
pub(super) fn nearest_byte(x: f32, low: f32, high: f32) -> u8 {
    (larger(smaller(x, high), low) + NO_FRACTION).to_bits() as u8
}

/// The smaller one, `b` where `a` is not a number: one instruction, which `f32::min` is not.
#[inline(always)]
pub(super) fn smaller(a: f32, b: f32) -> f32 {
    if a < b { a } else { b }
}

/// The larger one, `b` where `a` is not a number.
#[inline(always)]
pub(super) fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

/// `to += a * b` in each run, in two roundings.
#[inline(always)]
pub(super) fn add_product<const N: usize>(to: &mut Lane<N>, a: &Lane<N>, b: &Lane<N>) {
    for i in 0..N {
        to[i] += a[i] * b[i];
    }
}

/// The values of runs that lie one behind the other, side by side: `[i][first + run]` of
/// `[run * LENGTH + i]`.
#[inline(always)]
pub(super) fn put_side_by_side<const N: usize, const LENGTH: usize>(
    x: &[f32],
    first: usize,
    columns: &mut [Lane<N>; LENGTH],
) {
    for (run, values) in x.chunks_exact(LENGTH).take(N - first).enumerate() {
        for (column, value) in columns.iter_mut().zip(values) {
            column[first + run] = *value;
        }
    }
}
