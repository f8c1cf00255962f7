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

use super::affine::{Columns, RUN, Search, fit};
use super::lanes::{Lane, add_product, lane, larger, nearest, nearest_byte, put_side_by_side};
use super::{K_VALUES, Layout, NEARLY_ZERO, Problem, check_values, scale};
use crate::numeric::f16;

/// Runs of a block.
const RUNS: usize = 8;
/// Those of two blocks.
const PAIR: usize = 2 * RUNS;
const SCALES: std::ops::Range<usize> = 4..16;

/// What ggml tries without an importance matrix.
const SEARCH_Q4: Search = Search {
    top: 15.0,
    first: -1.0,
    step: 0.1,
    tries: 21,
    second_pass: false,
};
const SEARCH_Q5: Search = Search {
    top: 31.0,
    first: -0.5,
    step: 0.1,
    tries: 16,
    second_pass: false,
};

/// What Q4_K and Q5_K differ in.
trait Bits {
    /// Bytes of a block.
    const BYTES: usize;
    const SEARCH: Search;

    /// `q` of all values of a block, behind its scales and minima.
    fn put(quants: &Quants, to: &mut [u8]);
}

/// 256 values as 144 bytes.
pub(super) struct Q4K;

impl Bits for Q4K {
    const BYTES: usize = 144;
    const SEARCH: Search = SEARCH_Q4;

    #[inline(always)]
    fn put(quants: &Quants, to: &mut [u8]) {
        put_low_bits(quants, &mut to[16..]);
    }
}

/// 256 values as 176 bytes.
pub(super) struct Q5K;

impl Bits for Q5K {
    const BYTES: usize = 176;
    const SEARCH: Search = SEARCH_Q5;

    #[inline(always)]
    fn put(quants: &Quants, to: &mut [u8]) {
        for (q, byte) in quants.iter().zip(&mut to[16..48]) {
            let bit = |bits: u8, run: usize| bits | (q[run] >> 4) << run;
            *byte = (0..RUNS).fold(0, bit);
        }
        put_low_bits(quants, &mut to[48..]);
    }
}

impl<B: Bits> Layout<K_VALUES> for B {
    const BYTES: usize = B::BYTES;

    #[inline(always)]
    fn quantize(x: &[f32; K_VALUES], to: &mut [u8]) -> Result<(), Problem> {
        quantize::<B, RUNS>(&[x], to)
    }

    #[inline(always)]
    fn quantize_pair(x: [&[f32; K_VALUES]; 2], to: &mut [u8]) -> Result<(), Problem> {
        quantize::<B, PAIR>(&x, to)
    }

    #[inline(always)]
    fn quantize_weighted(
        x: &[f32; K_VALUES],
        importance: &[f32; K_VALUES],
        _: f32,
        to: &mut [u8],
    ) -> Result<(), Problem> {
        quantize_weighted::<B>(x, importance, to)
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

/// `q` of all values of a block, its runs side by side.
type Quants = [[u8; RUNS]; RUN];

/// Some blocks, whose runs are `R`.
#[inline(always)]
fn quantize<B: Bits, const R: usize>(
    blocks: &[&[f32; K_VALUES]],
    to: &mut [u8],
) -> Result<(), Problem> {
    let columns: Columns<R> = columns_of(blocks)?;
    let found = fit(&columns, &weights(&columns), B::SEARCH);
    for (number, to) in to.chunks_exact_mut(B::BYTES).enumerate() {
        let first = number * RUNS;
        let scales = six_bits(lane(|run| found.scale[first + run]))?;
        let minima = six_bits(lane(|run| -found.min[first + run]))?;
        put_block::<B, R>(&columns, first, (scales, minima), to);
    }
    Ok(())
}

/// A block with the importance of each value: the search is finer, and the scales and minima are
/// fitted to it, too.
#[inline(always)]
fn quantize_weighted<B: Bits>(
    block: &[f32; K_VALUES],
    importance: &[f32; K_VALUES],
    to: &mut [u8],
) -> Result<(), Problem> {
    let columns: Columns<RUNS> = columns_of(&[block])?;
    let mut weights: Columns<RUNS> = columns_of(&[importance])?;
    let squares = block.iter().fold(0.0, |sum, x| sum + x * x);
    let spread: f32 = 2.0 * squares / 256.0;
    let mut totals: Lane<RUNS> = [0.0; RUNS];
    for (x, weights) in columns.iter().zip(&mut weights) {
        *weights = lane(|i| weights[i] * (spread + x[i] * x[i]).sqrt());
        totals = lane(|i| totals[i] + weights[i]);
    }
    let search = Search {
        first: -0.9,
        step: 0.05,
        tries: 37,
        second_pass: true,
        ..B::SEARCH
    };
    let found = fit(&columns, &weights, search);
    let scales = six_bits_weighted(found.scale, totals)?;
    let minima = six_bits_weighted(lane(|run| -found.min[run]), totals)?;
    put_block::<B, RUNS>(&columns, 0, (scales, minima), to);
    Ok(())
}

#[inline(always)]
fn columns_of<const R: usize>(blocks: &[&[f32; K_VALUES]]) -> Result<Columns<R>, Problem> {
    let mut columns: Columns<R> = [[0.0; R]; RUN];
    for (number, block) in blocks.iter().enumerate() {
        check_values(block)?;
        put_side_by_side(*block, number * RUNS, &mut columns);
    }
    Ok(columns)
}

/// The step of scales or minima as F16, and their multiples of it.
type SixBits = ([u8; 2], [u8; RUNS]);

/// The block whose first run is `first`.
#[inline(always)]
fn put_block<B: Bits, const R: usize>(
    columns: &Columns<R>,
    first: usize,
    ((d, scales), (dmin, minima)): (SixBits, SixBits),
    to: &mut [u8],
) {
    to[..2].copy_from_slice(&d);
    to[2..4].copy_from_slice(&dmin);
    put_six_bits(&scales, &minima, &mut to[SCALES]);
    // with the scales as they are stored
    let step = stored(d, &scales);
    let offset = stored(dmin, &minima);
    let mut quants: Quants = [[0; RUNS]; RUN];
    for (x, quants) in columns.iter().zip(&mut quants) {
        for run in 0..RUNS {
            let q = nearest_byte(
                (x[first + run] + offset[run]) / step[run],
                0.0,
                B::SEARCH.top,
            );
            // a step of 0 leaves q to chance: 0
            quants[run] = if step[run] > 0.0 { q } else { 0 };
        }
    }
    B::put(&quants, to);
}

/// How much each value counts: its magnitude and the root mean square of its run.
#[inline(always)]
fn weights<const R: usize>(x: &Columns<R>) -> Columns<R> {
    let mut squares = [0.0; R];
    for x in x {
        add_product(&mut squares, x, x);
    }
    let average: Lane<R> = lane(|i| (squares[i] / 32.0).sqrt());
    let mut weights = [[0.0; R]; RUN];
    for (x, weights) in x.iter().zip(&mut weights) {
        *weights = lane(|i| average[i] + x[i].abs());
    }
    weights
}

/// Numbers that are not negative in steps of the largest's 63rd part, and that step as F16.
#[inline(always)]
fn six_bits(numbers: Lane<RUNS>) -> Result<SixBits, Problem> {
    let largest = numbers.into_iter().fold(0.0, larger);
    let inverse = if largest > 0.0 { 63.0 / largest } else { 0.0 };
    Ok((
        scale(largest / 63.0)?,
        numbers.map(|x| small(nearest(x * inverse, 0.0, 63.0))),
    ))
}

/// Numbers that are not negative in steps for which the weighted sum of the squared differences is
/// least among 9 candidates, then by changing one number after the other (`make_qp_quants`).
fn six_bits_weighted(x: Lane<RUNS>, weights: Lane<RUNS>) -> Result<SixBits, Problem> {
    const TOP: f32 = 63.0;
    let largest = x.into_iter().fold(0.0, larger);
    if largest < NEARLY_ZERO {
        return Ok((scale(0.0)?, [0; RUNS]));
    }
    let multiples = |inverse: f32| x.map(|x| nearest(inverse * x, 0.0, TOP));
    let (mut best, mut least) = (TOP / largest, f32::INFINITY);
    for parts in [0.0, -4.0, -3.0, -2.0, -1.0, 1.0, 2.0, 3.0, 4.0] {
        let inverse = (0.1 * parts + TOP) / largest;
        let step = 1.0 / inverse;
        let terms = multiples(inverse).into_iter().zip(x).zip(weights);
        let error = terms.fold(0.0, |sum, ((q, x), w)| {
            sum + w * (x - step * q) * (x - step * q)
        });
        if error < least {
            (best, least) = (inverse, error);
        }
    }
    let mut quants = multiples(best);
    let (mut xq, mut qq) = (0.0, 0.0);
    for i in 0..RUNS {
        xq += weights[i] * x[i] * quants[i];
        qq += weights[i] * quants[i] * quants[i];
    }
    for _ in 0..5 {
        let before = quants;
        for i in 0..RUNS {
            (quants[i], xq, qq) = refined((x[i], weights[i]), quants[i], (xq, qq), TOP);
        }
        if quants == before {
            break;
        }
    }
    let step = if qq > 0.0 { xq / qq } else { 0.0 };
    Ok((scale(step)?, quants.map(small)))
}

/// One number changed where that makes the others' best step better; the sums follow.
fn refined((x, w): (f32, f32), q: f32, (xq, qq): (f32, f32), top: f32) -> (f32, f32, f32) {
    let (others_xq, others_qq) = (xq - w * x * q, qq - w * q * q);
    if others_xq > 0.0 && others_qq > 0.0 {
        let other = nearest(x * others_qq / others_xq, 0.0, top);
        let new_xq = others_xq + w * x * other;
        let new_qq = others_qq + w * other * other;
        if other != q && new_xq * new_xq * qq > xq * xq * new_qq {
            return (other, new_xq, new_qq);
        }
    }
    (q, xq, qq)
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

#[inline(always)]
fn put_low_bits(quants: &Quants, to: &mut [u8]) {
    for (pair, to) in to.chunks_exact_mut(RUN).enumerate() {
        for (q, byte) in quants.iter().zip(to) {
            *byte = q[2 * pair] & 15 | q[2 * pair + 1] << 4;
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
