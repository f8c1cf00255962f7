//! Q6_K: blocks of 256 values in 210 bytes, 16 runs of 16 with a signed scale each.
//!
//! ```text
//! lower four bits of q, 128 bytes | upper two, 64 bytes | 16 scales, i8 | d F16
//! value = d * scale[run] * (q - 32)
//! ```
//!
//! Each half of the block, 128 values, has 64 bytes of lower and 32 of upper bits: byte `i` of the
//! lower ones has value `i`, and above it value `i + 64`; byte `i` of the upper ones those of values
//! `i`, `i + 32`, `i + 64`, `i + 96`, from the lowest bits.
//!
//! Source: `block_q6_K` in ggml/src/ggml-common.h, `dequantize_row_q6_K` and
//! `quantize_row_q6_K_ref` in ggml/src/ggml-quants.c.

use super::lanes::{Lane, add_product, lane, nearest, nearest_byte, put_side_by_side};
use super::{K_VALUES, Layout, NEARLY_ZERO, Problem, check_values, scale};
use crate::numeric::f16;

const RUNS: usize = 16;
const RUN: usize = 16;
const LOW: std::ops::Range<usize> = 0..128;
const HIGH: std::ops::Range<usize> = 128..192;
const SCALES: std::ops::Range<usize> = 192..208;
const D: std::ops::Range<usize> = 208..210;

type Columns = [Lane<RUNS>; RUN];

/// 256 values as 210 bytes.
pub(super) struct Q6K;

impl Layout<K_VALUES> for Q6K {
    const BYTES: usize = 210;

    #[inline(always)]
    fn quantize(x: &[f32; K_VALUES], to: &mut [u8]) -> Result<(), Problem> {
        let columns = columns_of(x)?;
        let mut squares = [[0.0; RUNS]; RUN];
        for (x, squares) in columns.iter().zip(&mut squares) {
            *squares = lane(|i| x[i] * x[i]);
        }
        quantize(&columns, &squares, to)
    }

    #[inline(always)]
    fn quantize_weighted(
        x: &[f32; K_VALUES],
        weights: &[f32; K_VALUES],
        _: f32,
        to: &mut [u8],
    ) -> Result<(), Problem> {
        quantize(&columns_of(x)?, &columns_of(weights)?, to)
    }
}

#[inline(always)]
fn columns_of(x: &[f32; K_VALUES]) -> Result<Columns, Problem> {
    check_values(x)?;
    let mut columns = [[0.0; RUNS]; RUN];
    put_side_by_side(x, 0, &mut columns);
    Ok(columns)
}

#[inline(always)]
fn quantize(columns: &Columns, weights: &Columns, to: &mut [u8]) -> Result<(), Problem> {
    let scales = fit(columns, weights);
    let largest = (scales.iter()).fold(
        0.0,
        |max: f32, x| if x.abs() > max.abs() { *x } else { max },
    );
    if largest.abs() < NEARLY_ZERO {
        to.fill(0);
        return Ok(());
    }
    let inverse = -128.0 / largest;
    let d = scale(1.0 / inverse)?;
    let scales = scales.map(|x| signed(nearest(x * inverse, -128.0, 127.0)));
    let step = scales.map(|scale| f16::decode(d) * f32::from(scale));
    let mut quants = [0; K_VALUES];
    for (i, x) in columns.iter().enumerate() {
        for run in 0..RUNS {
            // a step of 0 leaves q to chance: 0
            // -32 is 0 as it is stored, and its lowest byte 0xe0
            let q = nearest_byte(x[run] / step[run], -32.0, 31.0).wrapping_add(32);
            quants[run * RUN + i] = if step[run] == 0.0 { 32 } else { q };
        }
    }
    put_quants(&quants, to);
    to[SCALES].copy_from_slice(&scales.map(i8::cast_unsigned));
    to[D].copy_from_slice(&d);
    Ok(())
}

/// For each run the scale with the least sum of `w (scale q - x)^2` among 19 candidates: each is
/// the largest value over -32 and a little more or less, and gives `q`, and `q` the best scale by
/// linear regression.
///
/// ggml's `make_qx_quants`; without an importance matrix the weights are `x^2`.
#[inline(always)]
fn fit(x: &Columns, weights: &Columns) -> Lane<RUNS> {
    let (mut magnitude, mut largest) = ([0.0; RUNS], [0.0; RUNS]);
    for x in x {
        for i in 0..RUNS {
            let more = x[i].abs() > magnitude[i];
            magnitude[i] = if more { x[i].abs() } else { magnitude[i] };
            largest[i] = if more { x[i] } else { largest[i] };
        }
    }
    let mut products = [[0.0; RUNS]; RUN];
    for n in 0..RUN {
        products[n] = lane(|i| weights[n][i] * x[n][i]);
    }
    let (mut scale, mut best) = ([0.0; RUNS], [0.0; RUNS]);
    // the first one is ggml's first guess, which the others have to beat
    for number in [
        0_i8, -9, -8, -7, -6, -5, -4, -3, -2, -1, 1, 2, 3, 4, 5, 6, 7, 8, 9,
    ] {
        let parts = -(32.0 + 0.1 * f32::from(number));
        let inverse: Lane<RUNS> = lane(|i| parts / largest[i]);
        let (mut xq, mut qq) = ([0.0; RUNS], [0.0; RUNS]);
        for n in 0..RUN {
            let q: Lane<RUNS> = lane(|i| nearest(x[n][i] * inverse[i], -32.0, 31.0));
            let weighted: Lane<RUNS> = lane(|i| weights[n][i] * q[i]);
            add_product(&mut xq, &products[n], &q);
            add_product(&mut qq, &weighted, &q);
        }
        for i in 0..RUNS {
            let better = qq[i] > 0.0 && xq[i] * xq[i] > best[i] * qq[i];
            let fitted = xq[i] / qq[i];
            scale[i] = if better { fitted } else { scale[i] };
            best[i] = if better { fitted * xq[i] } else { best[i] };
        }
    }
    lane(|i| {
        if magnitude[i] < NEARLY_ZERO {
            0.0
        } else {
            scale[i]
        }
    })
}

fn put_quants(quants: &[u8; K_VALUES], to: &mut [u8]) {
    let (low, high) = to.split_at_mut(HIGH.start);
    let halves = quants.chunks_exact(128);
    for ((q, low), high) in halves
        .zip(low.chunks_exact_mut(64))
        .zip(high.chunks_exact_mut(32))
    {
        for (i, byte) in low.iter_mut().enumerate() {
            *byte = q[i] & 15 | q[i + 64] << 4;
        }
        for (i, byte) in high.iter_mut().enumerate() {
            *byte = q[i] >> 4 | q[i + 32] >> 4 << 2 | q[i + 64] >> 4 << 4 | q[i + 96] >> 4 << 6;
        }
    }
}

/// 210 bytes as 256 values.
pub(super) fn dequantize(block: &[u8], to: &mut [f32]) {
    let d = f16::decode([block[D.start], block[D.start + 1]]);
    let (low, high) = (&block[LOW], &block[HIGH]);
    for (n, x) in to.iter_mut().enumerate() {
        let (half, i) = (n / 128, n % 128);
        let low = low[64 * half + i % 64] >> (i / 64 * 4) & 15;
        let high = high[32 * half + i % 32] >> (i / 32 * 2) & 3;
        let q = (low | high << 4).cast_signed() - 32;
        let scale = block[SCALES.start + n / RUN].cast_signed();
        *x = d * f32::from(scale) * f32::from(q);
    }
}

/// A small whole number as a signed byte.
#[expect(clippy::cast_possible_truncation, reason = "the caller has bounded it")]
#[inline(always)]
fn signed(x: f32) -> i8 {
    x as i8
}
