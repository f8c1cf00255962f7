//! Q4_0, Q5_0 and Q5_1: blocks of 32 values with one scale, and Q5_1 with a minimum.
//!
//! ```text
//! Q4_0, 18 bytes: d F16 | q, 16 bytes                              value = d * (q - 8)
//! Q5_0, 22 bytes: d F16 | fifth bits, u32 | q, 16 bytes            value = d * (q - 16)
//! Q5_1, 24 bytes: d F16 | m F16 | fifth bits, u32 | q, 16 bytes    value = d * q + m
//! ```
//!
//! Byte `i` of `q` has the lower four bits of value `i`, and above them those of value `i + 16`; bit
//! `i` of the fifth bits belongs to value `i`.
//!
//! Bit for bit what `quantize_row_q4_0_ref`, `quantize_row_q5_0_ref` and `quantize_row_q5_1_ref`
//! (ggml/src/ggml-quants.c) make without fused multiplications, and gguf-py's `quantize_blocks`.

// not `f32::min` and `f32::max`: which zero they give is the platform's choice
use super::lanes::{larger, nearest, nearest_byte, smaller};
use super::{Layout, NEARLY_ZERO, Problem, check_values, scale};
use crate::numeric::f16;

const VALUES: usize = 32;

/// 32 values as 18 bytes.
pub(super) struct Q4_0;

impl Layout<VALUES> for Q4_0 {
    const BYTES: usize = 18;

    #[inline(always)]
    fn quantize(x: &[f32; VALUES], to: &mut [u8]) -> Result<(), Problem> {
        put_q4_0(around_zero(x, 8)?, to);
        Ok(())
    }

    #[inline(always)]
    fn quantize_weighted(
        x: &[f32; VALUES],
        importance: &[f32; VALUES],
        spread: f32,
        to: &mut [u8],
    ) -> Result<(), Problem> {
        put_q4_0(
            around_zero_weighted(x, &weights(x, importance, spread), 8.0)?,
            to,
        );
        Ok(())
    }
}

/// 32 values as 22 bytes.
pub(super) struct Q5_0;

impl Layout<VALUES> for Q5_0 {
    const BYTES: usize = 22;

    #[inline(always)]
    fn quantize(x: &[f32; VALUES], to: &mut [u8]) -> Result<(), Problem> {
        put_q5_0(around_zero(x, 16)?, to);
        Ok(())
    }

    #[inline(always)]
    fn quantize_weighted(
        x: &[f32; VALUES],
        importance: &[f32; VALUES],
        spread: f32,
        to: &mut [u8],
    ) -> Result<(), Problem> {
        put_q5_0(
            around_zero_weighted(x, &weights(x, importance, spread), 16.0)?,
            to,
        );
        Ok(())
    }
}

/// 32 values as 24 bytes.
pub(super) struct Q5_1;

impl Layout<VALUES> for Q5_1 {
    const BYTES: usize = 24;

    #[inline(always)]
    fn quantize(x: &[f32; VALUES], to: &mut [u8]) -> Result<(), Problem> {
        check_values(x)?;
        let low = x.iter().fold(f32::MAX, |low, x| smaller(*x, low));
        let high = x.iter().fold(f32::MIN, |high, x| larger(*x, high));
        let step = (high - low) / 31.0;
        let inverse = inverse_of(step);
        let q = x.map(|x| whole((x - low) * inverse + 0.5, 31));
        put_q5_1((step, low, q), to)
    }

    #[inline(always)]
    fn quantize_weighted(
        x: &[f32; VALUES],
        importance: &[f32; VALUES],
        spread: f32,
        to: &mut [u8],
    ) -> Result<(), Problem> {
        check_values(x)?;
        let (step, low, q) = above_minimum_weighted(x, &weights(x, importance, spread), 31.0);
        put_q5_1((step, low, q), to)
    }
}

#[inline(always)]
fn put_q4_0((d, q): ([u8; 2], [u8; VALUES]), to: &mut [u8]) {
    to[..2].copy_from_slice(&d);
    put_low_bits(&q, &mut to[2..]);
}

#[inline(always)]
fn put_q5_0((d, q): ([u8; 2], [u8; VALUES]), to: &mut [u8]) {
    to[..2].copy_from_slice(&d);
    to[2..6].copy_from_slice(&fifth_bits(&q));
    put_low_bits(&q, &mut to[6..]);
}

#[inline(always)]
fn put_q5_1((step, low, q): (f32, f32, [u8; VALUES]), to: &mut [u8]) -> Result<(), Problem> {
    to[..2].copy_from_slice(&scale(step)?);
    to[2..4].copy_from_slice(&scale(low)?);
    to[4..8].copy_from_slice(&fifth_bits(&q));
    put_low_bits(&q, &mut to[8..]);
    Ok(())
}

pub(super) fn dequantize_q4_0(block: &[u8], to: &mut [f32]) {
    let d = f16::decode([block[0], block[1]]);
    for (i, x) in to.iter_mut().enumerate() {
        *x = d * (f32::from(low_bits(&block[2..], i)) - 8.0);
    }
}

pub(super) fn dequantize_q5_0(block: &[u8], to: &mut [f32]) {
    let d = f16::decode([block[0], block[1]]);
    for (i, x) in to.iter_mut().enumerate() {
        *x = d * (f32::from(five_bits(&block[2..], i)) - 16.0);
    }
}

pub(super) fn dequantize_q5_1(block: &[u8], to: &mut [f32]) {
    let d = f16::decode([block[0], block[1]]);
    let m = f16::decode([block[2], block[3]]);
    for (i, x) in to.iter_mut().enumerate() {
        *x = d * f32::from(five_bits(&block[4..], i)) + m;
    }
}

/// The scale, and `q` from 0 to `2 half - 1`: the value of the largest magnitude becomes 0.
#[inline(always)]
fn around_zero(x: &[f32; VALUES], half: u8) -> Result<([u8; 2], [u8; VALUES]), Problem> {
    check_values(x)?;
    let mut largest = 0.0_f32;
    for x in x {
        largest = if x.abs() > largest.abs() { *x } else { largest };
    }
    let step = largest / -f32::from(half);
    let inverse = inverse_of(step);
    let q = x.map(|x| whole(x * inverse + (f32::from(half) + 0.5), 2 * half - 1));
    Ok((scale(step)?, q))
}

/// How much each value counts: its importance, more where it is large beside the row's mean square.
#[inline(always)]
fn weights(x: &[f32; VALUES], importance: &[f32; VALUES], spread: f32) -> [f32; VALUES] {
    let mut weights = [0.0; VALUES];
    for i in 0..VALUES {
        weights[i] = importance[i] * (spread + x[i] * x[i]).sqrt();
    }
    weights
}

/// The scale with the least sum of `w (scale q - x)^2` among 19 candidates, and its `q + half`:
/// ggml's `make_qx_quants`.
#[inline(always)]
fn around_zero_weighted(
    x: &[f32; VALUES],
    w: &[f32; VALUES],
    half: f32,
) -> Result<([u8; 2], [u8; VALUES]), Problem> {
    check_values(x)?;
    let mut largest = 0.0_f32;
    for x in x {
        largest = if x.abs() > largest.abs() { *x } else { largest };
    }
    if largest.abs() < NEARLY_ZERO {
        return Ok((scale(0.0)?, [0; VALUES]));
    }
    let (mut found, mut best, mut best_inverse) = (0.0, 0.0, -half / largest);
    // the first one is ggml's first guess, which the others have to beat
    for number in [
        0_i8, -9, -8, -7, -6, -5, -4, -3, -2, -1, 1, 2, 3, 4, 5, 6, 7, 8, 9,
    ] {
        let inverse = -(half + 0.1 * f32::from(number)) / largest;
        let (mut xq, mut qq) = (0.0, 0.0);
        for i in 0..VALUES {
            let q = nearest(inverse * x[i], -half, half - 1.0);
            xq += w[i] * x[i] * q;
            qq += w[i] * q * q;
        }
        if qq > 0.0 && xq * xq > best * qq {
            (found, best, best_inverse) = (xq / qq, xq / qq * xq, inverse);
        }
    }
    let mut quants = [0; VALUES];
    for i in 0..VALUES {
        let q = nearest(best_inverse * x[i], -half, half - 1.0);
        quants[i] = nearest_byte(q + half, 0.0, 2.0 * half - 1.0);
    }
    Ok((scale(found)?, quants))
}

/// Scale, minimum and `q` from 0 to the top with the least sum of `w (scale q + min - x)^2` among
/// 38 candidates: ggml's `make_qkx3_quants`.
#[inline(always)]
fn above_minimum_weighted(
    x: &[f32; VALUES],
    w: &[f32; VALUES],
    top: f32,
) -> (f32, f32, [u8; VALUES]) {
    let low = x.iter().fold(0.0, |low, x| smaller(*x, low));
    let high = x.iter().fold(f32::MIN, |high, x| larger(*x, high));
    if high <= low {
        return (0.0, low, [0; VALUES]);
    }
    let (mut sum_w, mut sum_x) = (0.0, 0.0);
    for i in 0..VALUES {
        sum_w += w[i];
        sum_x += w[i] * x[i];
    }
    let error_of = |scale: f32, min: f32, q: &[f32; VALUES]| {
        let mut error = 0.0;
        for i in 0..VALUES {
            let difference = scale * q[i] + min - x[i];
            error += w[i] * (difference * difference);
        }
        error
    };
    let quants_of = |inverse: f32, min: f32| x.map(|x| nearest(inverse * (x - min), 0.0, top));
    let first = quants_of(top / (high - low), low);
    let step = (high - low) / top;
    let mut least = error_of(step, low, &first);
    let mut found = (step, low, first);
    for number in 0..37_u8 {
        let parts = -0.9 + 0.05 * f32::from(number) + top;
        let q = quants_of(parts / (high - found.1), found.1);
        let (mut wq, mut wqq, mut wqx) = (0.0, 0.0, 0.0);
        for i in 0..VALUES {
            wq += w[i] * q[i];
            wqq += w[i] * q[i] * q[i];
            wqx += w[i] * q[i] * x[i];
        }
        let determinant = sum_w * wqq - wq * wq;
        if determinant > 0.0 {
            let mut scale = (sum_w * wqx - sum_x * wq) / determinant;
            let mut min = (wqq * sum_x - wq * wqx) / determinant;
            if min > 0.0 {
                (scale, min) = (wqx / wqq, 0.0);
            }
            let error = error_of(scale, min, &q);
            if error < least {
                (least, found) = (error, (scale, min, q));
            }
        }
    }
    (found.0, found.1, found.2.map(|q| nearest_byte(q, 0.0, top)))
}

/// 0 where the step is, or is so small that its inverse is infinite: the scale is 0 then.
fn inverse_of(step: f32) -> f32 {
    let inverse = 1.0 / step;
    if inverse.is_finite() { inverse } else { 0.0 }
}

/// The whole part, `most` at most.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "as in C, and saturating"
)]
#[inline(always)]
fn whole(x: f32, most: u8) -> u8 {
    (x as u8).min(most)
}

fn put_low_bits(q: &[u8; VALUES], to: &mut [u8]) {
    for (i, byte) in to.iter_mut().enumerate() {
        *byte = q[i] & 15 | q[i + 16] << 4;
    }
}

fn fifth_bits(q: &[u8; VALUES]) -> [u8; 4] {
    let bits = q.iter().enumerate();
    bits.fold(0_u32, |bits, (i, q)| bits | u32::from(q >> 4) << i)
        .to_le_bytes()
}

fn low_bits(packed: &[u8], i: usize) -> u8 {
    packed[i % 16] >> (i / 16 * 4) & 15
}

/// Of the fifth bits and the lower ones behind them.
fn five_bits(packed: &[u8], i: usize) -> u8 {
    low_bits(&packed[4..], i) | (packed[i / 8] >> (i % 8) & 1) << 4
}
