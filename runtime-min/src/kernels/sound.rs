//! What a vocoder computes beside matrix products: `SnakeBeta`, short convolutions, attention to the
//! last few positions.

use super::rows::{load, softmax_row, store};
use super::shared::Columns;
use super::simd::{LANES, Line, Simd, Work};
use crate::tensor::{Attending, Compute, Heads};

/// The largest argument of [`sin_squared`]: the multiples of π that are taken off are exact up to
/// here, with and without fused multiplication.
const LARGEST: f32 = 100_000.0;

/// `sin²(y)` with an error below 2 ulp of sin(y) near 0 and below 2e-7 elsewhere, for |y| up to
/// [`LARGEST`]; NaN at NaN.
///
/// Cody and Waite's reduction by π, of which the square hides the sign, and a minimax polynomial on
/// [-π/2, π/2].
#[inline(always)]
#[expect(
    clippy::excessive_precision,
    reason = "the constants as they were published"
)]
fn sin_squared<S: Simd>(s: S, y: S::V) -> S::V {
    /// π in three parts, the first of 8 bits: 4 times those of Cephes' `sinf` (S. L. Moshier).
    const PI: [f32; 3] = [
        3.140_625,
        9.675_025_939_941_406_25e-4,
        1.509_957_990_978_376_4e-7,
    ];
    /// (sin r / r - 1) / r² as a polynomial of r²: that of DirectXMath's XMScalarSin.
    const TERMS: [f32; 5] = [
        -2.388_985_9e-8,
        2.752_556_2e-6,
        -1.984_087_4e-4,
        8.333_331_0e-3,
        -1.666_666_7e-1,
    ];
    let n = s.round(s.mul(y, s.splat(std::f32::consts::FRAC_1_PI)));
    let mut r = y;
    for part in PI {
        r = s.mul_add(n, s.splat(-part), r);
    }
    let square = s.mul(r, r);
    let mut p = s.splat(TERMS[0]);
    for term in &TERMS[1..] {
        p = s.mul_add(p, square, s.splat(*term));
    }
    let sin = s.mul_add(s.mul(p, square), r, r);
    s.mul(sin, sin)
}

/// As [`crate::ops::Ops::snake`].
pub(crate) struct Snake<'a> {
    pub compute: Compute,
    /// `[rows, channels]`
    pub x: &'a mut [f32],
    /// `[channels]`
    pub alpha: &'a [f32],
    /// `[channels]`
    pub inverse_beta: &'a [f32],
}

impl Work for Snake<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for row in self.x.chunks_exact_mut(self.alpha.len().max(1)) {
            let mut largest = s.splat(0.0);
            for (x, alpha) in row.chunks(LANES).zip(self.alpha.chunks(LANES)) {
                let y = s.mul(load(s, x, 0.0), load(s, alpha, 0.0));
                let size = s.max(s.sub(s.splat(0.0), y), y);
                largest = s.max(size, largest);
            }
            // a value's result depends on itself alone, whichever way the rest of its row goes
            if s.max_lane(largest) > LARGEST {
                snake_row_with_large(s, row, self.alpha, self.inverse_beta);
            } else {
                snake_row(s, row, self.alpha, self.inverse_beta);
            }
            self.compute.round_all(row);
        }
    }
}

#[inline(always)]
fn snake_row<S: Simd>(s: S, row: &mut [f32], alpha: &[f32], inverse_beta: &[f32]) {
    let factors = alpha.chunks(LANES).zip(inverse_beta.chunks(LANES));
    for (x, (alpha, inverse)) in row.chunks_mut(LANES).zip(factors) {
        let factors = [load(s, alpha, 0.0), load(s, inverse, 0.0)];
        let v = snake_vector(s, load(s, x, 0.0), factors);
        store(s, v, x);
    }
}

#[inline(always)]
fn snake_row_with_large<S: Simd>(s: S, row: &mut [f32], alpha: &[f32], inverse_beta: &[f32]) {
    let factors = alpha.chunks(LANES).zip(inverse_beta.chunks(LANES));
    for (x, (alpha, inverse)) in row.chunks_mut(LANES).zip(factors) {
        let factors = [load(s, alpha, 0.0), load(s, inverse, 0.0)];
        let v = snake_vector_with_large(s, load(s, x, 0.0), factors);
        store(s, v, x);
    }
}

#[inline(always)]
fn snake_vector<S: Simd>(s: S, v: S::V, [alpha, inverse]: [S::V; 2]) -> S::V {
    s.mul_add(sin_squared(s, s.mul(v, alpha)), inverse, v)
}

/// Arguments that [`sin_squared`] cannot reduce go through the library's function.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "f32, as torch does")]
fn snake_vector_with_large<S: Simd>(s: S, v: S::V, [alpha, inverse]: [S::V; 2]) -> S::V {
    let y = s.mul(v, alpha);
    let (mut waves, mut arguments) = (Line::ZERO, Line::ZERO);
    s.store(sin_squared(s, y), &mut waves.0);
    s.store(y, &mut arguments.0);
    for (wave, y) in waves.0.iter_mut().zip(arguments.0) {
        if y.abs() > LARGEST {
            let sin = libm::sin(f64::from(y)) as f32;
            *wave = sin * sin;
        }
    }
    s.mul_add(s.load(&waves.0), inverse, v)
}

/// The same channels of some rows, as [`Snake`] gives them.
#[inline(always)]
pub(super) fn snake_rows<S: Simd>(
    s: S,
    compute: Compute,
    mut rows: [S::V; LANES],
    factors: [S::V; 2],
) -> [S::V; LANES] {
    let mut largest = s.splat(0.0);
    for row in rows {
        let y = s.mul(row, factors[0]);
        let size = s.max(s.sub(s.splat(0.0), y), y);
        largest = s.max(size, largest);
    }
    let has_large = s.max_lane(largest) > LARGEST;
    for row in &mut rows {
        *row = match has_large {
            true => snake_vector_with_large(s, *row, factors),
            false => snake_vector(s, *row, factors),
        };
        if compute != Compute::F32 {
            let mut line = Line::ZERO;
            s.store(*row, &mut line.0);
            compute.round_all(&mut line.0);
            *row = s.load(&line.0);
        }
    }
    rows
}

/// As [`crate::ops::Ops::depthwise`].
pub(crate) struct Depthwise<'a> {
    pub compute: Compute,
    /// `[rows + kernel - 1, channels]`
    pub x: &'a [f32],
    /// `[kernel, channels]`
    pub weight: &'a [f32],
    /// `[channels]`
    pub bias: &'a [f32],
    /// `[rows, channels]`
    pub out: &'a mut [f32],
}

impl Work for Depthwise<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let channels = self.bias.len().max(1);
        for (t, out) in self.out.chunks_exact_mut(channels).enumerate() {
            for first in (0..channels).step_by(LANES) {
                let lanes = first..channels.min(first + LANES);
                let mut sum = load(s, &self.bias[lanes.clone()], 0.0);
                for (k, weight) in self.weight.chunks_exact(channels).enumerate() {
                    let x = &self.x[(t + k) * channels..][..channels];
                    let weight = load(s, &weight[lanes.clone()], 0.0);
                    sum = s.mul_add(load(s, &x[lanes.clone()], 0.0), weight, sum);
                }
                store(s, sum, &mut out[lanes]);
            }
            self.compute.round_all(out);
        }
    }
}

/// Products summed side by side, in the order of their places modulo a vector.
#[inline(always)]
fn dot<S: Simd>(s: S, a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [s.splat(0.0); 2];
    for (a, b) in a.chunks(2 * LANES).zip(b.chunks(2 * LANES)) {
        let pairs = a.chunks(LANES).zip(b.chunks(LANES));
        for (sum, (a, b)) in sums.iter_mut().zip(pairs) {
            *sum = s.mul_add(load(s, a, 0.0), load(s, b, 0.0), *sum);
        }
    }
    s.sum(s.add(sums[0], sums[1]))
}

/// As [`crate::ops::Ops::slide`].
pub(crate) struct Slide<'a> {
    pub compute: Compute,
    /// `[rows + kernel - 1, channels]`
    pub x: &'a [f32],
    pub channels: usize,
    /// `[kernel, channels]`
    pub weight: &'a [f32],
    pub bias: f32,
    /// `[rows]`
    pub out: &'a mut [f32],
}

impl Work for Slide<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (t, out) in self.out.iter_mut().enumerate() {
            let x = &self.x[t * self.channels..][..self.weight.len()];
            *out = self.compute.round(dot(s, x, self.weight) + self.bias);
        }
    }
}

/// As [`crate::ops::Ops::attend_until`], of some rows of queries.
pub(crate) struct WindowAttention<'a> {
    pub compute: Compute,
    /// `[tokens, query × width]`, of the last positions
    pub q: &'a [f32],
    /// `[positions, key_value × width]`
    pub keys: &'a [f32],
    /// Like `keys`.
    pub values: &'a [f32],
    pub heads: Heads,
    pub attending: Attending<'a>,
    /// The first position of `q`.
    pub before: usize,
    /// The first row of `q` that `out` has.
    pub first: usize,
    /// Rows of `[tokens, query × width]`.
    pub out: Columns<'a>,
    pub rows: usize,
}

impl Work for WindowAttention<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let Heads {
            query,
            key_value,
            width,
        } = self.heads;
        let row = key_value * width;
        let group = query / key_value;
        let Attending {
            scale,
            window,
            sinks,
        } = self.attending;
        let last = self.before + self.first + self.rows;
        let mut scores = vec![0.0; window.min(last) + 1];
        for number in 0..self.rows {
            let (token, position) = (self.first + number, self.before + self.first + number);
            let start = (position + 1).saturating_sub(window);
            let seen = position + 1 - start;
            for head in 0..query {
                let scores = &mut scores[..seen + usize::from(sinks.is_some())];
                let column = head / group * width;
                let q = &self.q[(token * query + head) * width..][..width];
                for (score, j) in scores.iter_mut().zip(start..=position) {
                    let key = &self.keys[j * row + column..][..width];
                    *score = self
                        .compute
                        .round(self.compute.round(dot(s, q, key)) * scale);
                }
                if let Some(sinks) = sinks {
                    scores[seen] = sinks[head];
                    below_the_highest(self.compute, scores);
                }
                softmax_row(s, scores);
                let scores = &mut scores[..seen];
                self.compute.round_all(scores);
                let out = &mut self.out.row(number)[head * width..][..width];
                out.fill(0.0);
                for (score, j) in scores.iter().zip(start..) {
                    let value = &self.values[j * row + column..][..width];
                    let score = s.splat(*score);
                    for (out, value) in out.chunks_mut(LANES).zip(value.chunks(LANES)) {
                        let sum = s.mul_add(score, load(s, value, 0.0), load(s, out, 0.0));
                        store(s, sum, out);
                    }
                }
                self.compute.round_all(out);
            }
        }
    }
}

/// Scores less the highest of them, rounded: GptOss subtracts it before the softmax, in the precision
/// of the activations.
pub(crate) fn below_the_highest(compute: Compute, scores: &mut [f32]) {
    let highest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    scores
        .iter_mut()
        .for_each(|score| *score = compute.round(*score - highest));
}
