//! Q4_K and Q5_K: blocks of 256 values, 8 runs of 32 with a scale and a minimum each.
//!
//! ```text
//! d F16 | dmin F16 | 8 scales and 8 minima of 6 bits, 12 bytes | Q5_K: fifth bits, 32 bytes | q, 128 bytes
//! value = d * scale[run] * q - dmin * minimum[run]
//! ```
//!
//! Byte `j < 4` of the 12 has the lower six bits of `scale[j]`, and above them the upper two of
//! `scale[j + 4]`; byte `4 + j` the same of the minima; byte `8 + j` the lower four of
//! `scale[j + 4]`, then of `minimum[j + 4]`. Byte `32 p + i` of `q` has value `i` of run `2 p`, and
//! above it that of run `2 p + 1`. Bit `r` of byte `i` of the fifth bits belongs to value `i` of run
//! `r`.
//!
//! Source: `block_q4_K` and `block_q5_K` in ggml/src/ggml-common.h, `dequantize_row_q4_K`,
//! `dequantize_row_q5_K` and `quantize_row_…_ref` in ggml/src/ggml-quants.c.

use super::affine::{Columns, Fit, RUN, RUNS, Search, fit};
use super::lanes::{Lane, larger, nearest, side_by_side};
use super::{K_VALUES, Layout, Problem, check_values, scale};
use crate::numeric::f16;

const SCALES: std::ops::Range<usize> = 4..16;

/// What ggml tries without an importance matrix.
const SEARCH_Q4: Search = Search {
    top: 15.0,
    first: -1.0,
    step: 0.1,
    tries: 21,
};
const SEARCH_Q5: Search = Search {
    top: 31.0,
    first: -0.5,
    step: 0.1,
    tries: 16,
};

/// 256 values as 144 bytes.
pub(super) struct Q4K;

impl Layout<K_VALUES> for Q4K {
    const BYTES: usize = 144;

    #[inline(always)]
    fn quantize(x: &[f32; K_VALUES], to: &mut [u8]) -> Result<(), Problem> {
        let quants = quantize(x, SEARCH_Q4, to)?;
        put_low_bits(&quants, &mut to[16..]);
        Ok(())
    }
}

/// 256 values as 176 bytes.
pub(super) struct Q5K;

impl Layout<K_VALUES> for Q5K {
    const BYTES: usize = 176;

    #[inline(always)]
    fn quantize(x: &[f32; K_VALUES], to: &mut [u8]) -> Result<(), Problem> {
        let quants = quantize(x, SEARCH_Q5, to)?;
        for (i, byte) in to[16..48].iter_mut().enumerate() {
            *byte = (0..RUNS).fold(0, |bits, run| bits | (quants[run * RUN + i] >> 4) << run);
        }
        put_low_bits(&quants, &mut to[48..]);
        Ok(())
    }
}

pub(super) fn dequantize_q4(block: &[u8], to: &mut [f32]) {
    dequantize(block, to, |run, i| low_bits(&block[16..], run, i));
}

pub(super) fn dequantize_q5(block: &[u8], to: &mut [f32]) {
    dequantize(block, to, |run, i| {
        let fifth = (block[16 + i] >> run & 1) << 4;
        low_bits(&block[48..], run, i) | fifth
    });
}

/// Scales and minima into the head of a block; the `q` of all its values.
#[inline(always)]
fn quantize(x: &[f32; K_VALUES], search: Search, to: &mut [u8]) -> Result<[u8; K_VALUES], Problem> {
    check_values(x)?;
    let columns: Columns = side_by_side(x);
    let Fit { scale: scales, min } = fit(&columns, &weights(&columns), search);
    let (d, scales) = six_bits(scales)?;
    let (dmin, minima) = six_bits(min.map(|min| -min))?;
    to[..2].copy_from_slice(&d);
    to[2..4].copy_from_slice(&dmin);
    put_six_bits(&scales, &minima, &mut to[SCALES]);
    // with the scales as they are stored
    let step = stored(d, &scales);
    let offset = stored(dmin, &minima);
    let mut quants = [0; K_VALUES];
    for (i, x) in columns.iter().enumerate() {
        for run in 0..RUNS {
            // a step of 0 leaves q to chance: 0
            let q = nearest((x[run] + offset[run]) / step[run], 0.0, search.top);
            quants[run * RUN + i] = if step[run] > 0.0 { small(q) } else { 0 };
        }
    }
    Ok(quants)
}

/// How much each value counts: its magnitude and the root mean square of its run.
#[inline(always)]
fn weights(x: &Columns) -> Columns {
    let mut squares = [0.0; RUNS];
    for x in x {
        super::lanes::add_product(&mut squares, x, x);
    }
    let average = squares.map(|sum| (sum / 32.0).sqrt());
    x.map(|x| std::array::from_fn(|i| average[i] + x[i].abs()))
}

/// Numbers that are not negative in steps of the largest's 63rd part, and that step as F16.
#[inline(always)]
fn six_bits(numbers: Lane<RUNS>) -> Result<([u8; 2], [u8; RUNS]), Problem> {
    let largest = numbers.into_iter().fold(0.0, larger);
    let inverse = if largest > 0.0 { 63.0 / largest } else { 0.0 };
    Ok((
        scale(largest / 63.0)?,
        numbers.map(|x| small(nearest(x * inverse, 0.0, 63.0))),
    ))
}

fn stored(step: [u8; 2], numbers: &[u8; RUNS]) -> Lane<RUNS> {
    let step = f16::decode(step);
    numbers.map(|n| step * f32::from(n))
}

fn put_six_bits(scales: &[u8; RUNS], minima: &[u8; RUNS], to: &mut [u8]) {
    for j in 0..4 {
        to[j] = scales[j] | scales[j + 4] >> 4 << 6;
        to[j + 4] = minima[j] | minima[j + 4] >> 4 << 6;
        to[j + 8] = scales[j + 4] & 15 | minima[j + 4] << 4;
    }
}

fn six_bits_of(packed: &[u8]) -> ([u8; RUNS], [u8; RUNS]) {
    let number = |run: usize, base: usize, shift: usize| match run {
        0..4 => packed[base + run] & 63,
        _ => packed[8 + run - 4] >> shift & 15 | packed[base + run - 4] >> 6 << 4,
    };
    (
        std::array::from_fn(|run| number(run, 0, 0)),
        std::array::from_fn(|run| number(run, 4, 4)),
    )
}

fn put_low_bits(quants: &[u8; K_VALUES], to: &mut [u8]) {
    for (pair, to) in quants.chunks_exact(2 * RUN).zip(to.chunks_exact_mut(RUN)) {
        let (first, second) = pair.split_at(RUN);
        for ((first, second), byte) in first.iter().zip(second).zip(to) {
            *byte = first & 15 | second << 4;
        }
    }
}

fn low_bits(packed: &[u8], run: usize, i: usize) -> u8 {
    packed[run / 2 * RUN + i] >> (run % 2 * 4) & 15
}

fn dequantize(block: &[u8], to: &mut [f32], q: impl Fn(usize, usize) -> u8) {
    let (scales, minima) = six_bits_of(&block[SCALES]);
    let step = stored([block[0], block[1]], &scales);
    let offset = stored([block[2], block[3]], &minima);
    for (n, x) in to.iter_mut().enumerate() {
        let (run, i) = (n / RUN, n % RUN);
        *x = step[run] * f32::from(q(run, i)) - offset[run];
    }
}

/// A small whole number as a byte.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the caller has bounded it"
)]
#[inline(always)]
fn small(x: f32) -> u8 {
    x as u8
}
