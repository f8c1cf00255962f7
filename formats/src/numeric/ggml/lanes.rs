//! Arithmetic over runs of values that lie side by side, in loops that become vector instructions.
//!
//! A sum over a run is taken in the order of its values, whatever the instructions: every processor
//! writes the same bytes.

/// One number of each run.
pub(super) type Lane<const N: usize> = [f32; N];

/// 1.5 x 2^23: added to a number below 2^22, it leaves no bits behind the point.
const NO_FRACTION: f32 = 12_582_912.0;

/// The nearest integer between two, ties to even; `low` where `x` is not a number. The bounds are
/// integers below 2^22.
#[inline(always)]
pub(super) fn nearest(x: f32, low: f32, high: f32) -> f32 {
    larger(smaller(x, high), low) + NO_FRACTION - NO_FRACTION
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

/// The values of `N` runs that lie one behind the other, side by side: `[i][run]` of
/// `[run * LENGTH + i]`.
#[inline(always)]
pub(super) fn side_by_side<const N: usize, const LENGTH: usize>(x: &[f32]) -> [Lane<N>; LENGTH] {
    let mut columns = [[0.0; N]; LENGTH];
    for (run, values) in x.chunks_exact(LENGTH).take(N).enumerate() {
        for (column, value) in columns.iter_mut().zip(values) {
            column[run] = *value;
        }
    }
    columns
}
