//! Operations on single rows and values, in vectors.

use super::exp::{exp, gelu, silu, tanh};
use super::simd::{LANES, Line, Simd, Work};
use crate::tensor::Compute;

/// Vectors that are summed side by side.
const SUMS: usize = 4;

/// A vector of the values of a slice that may be shorter, the rest blank.
#[inline(always)]
pub(super) fn load<S: Simd>(s: S, from: &[f32], blank: f32) -> S::V {
    match from.first_chunk() {
        Some(from) => s.load(from),
        None => {
            let mut line = Line([blank; LANES]);
            line.0[..from.len()].copy_from_slice(from);
            s.load(&line.0)
        }
    }
}

/// The inverse of [`load`].
#[inline(always)]
pub(super) fn store<S: Simd>(s: S, v: S::V, to: &mut [f32]) {
    match to.first_chunk_mut() {
        Some(to) => s.store(v, to),
        None => {
            let mut line = Line::ZERO;
            s.store(v, &mut line.0);
            to.copy_from_slice(&line.0[..to.len()]);
        }
    }
}

/// As [`crate::ops::Ops::rms_norm`].
pub(crate) struct RmsNorm<'a> {
    pub compute: Compute,
    pub x: &'a mut [f32],
    pub weight: &'a [f32],
    pub eps: f32,
}

impl Work for RmsNorm<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self {
            compute,
            x,
            weight,
            eps,
        } = self;
        for row in x.chunks_exact_mut(weight.len().max(1)) {
            #[expect(clippy::cast_precision_loss, reason = "rows are short")]
            let mean = sum_of_squares(s, row) / row.len() as f32;
            let factor = 1.0 / (mean + eps).sqrt();
            for (x, w) in row.iter_mut().zip(weight) {
                *x = compute.round(w * compute.round(*x * factor));
            }
        }
    }
}

#[inline(always)]
fn sum_of_squares<S: Simd>(s: S, row: &[f32]) -> f32 {
    sum_of::<S, true>(s, row)
}

#[inline(always)]
fn sum<S: Simd>(s: S, row: &[f32]) -> f32 {
    sum_of::<S, false>(s, row)
}

/// The sum of the values, or of their squares.
#[inline(always)]
fn sum_of<S: Simd, const SQUARES: bool>(s: S, row: &[f32]) -> f32 {
    let mut sums = [s.splat(0.0); SUMS];
    for row in row.chunks(SUMS * LANES) {
        for (sum, x) in sums.iter_mut().zip(row.chunks(LANES)) {
            let x = load(s, x, 0.0);
            *sum = match SQUARES {
                true => s.mul_add(x, x, *sum),
                false => s.add(x, *sum),
            };
        }
    }
    s.sum(s.add(s.add(sums[0], sums[1]), s.add(sums[2], sums[3])))
}

/// As [`crate::ops::Ops::rope`].
pub(crate) struct Rope<'a> {
    pub compute: Compute,
    pub x: &'a mut [f32],
    pub cos: &'a [f32],
    pub sin: &'a [f32],
    pub width: usize,
}

impl Work for Rope<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let Self {
            compute,
            x,
            cos,
            sin,
            width,
        } = self;
        let half = width / 2;
        let tokens = cos.len() / half.max(1);
        let per_token = x.len() / tokens.max(1);
        for (t, row) in x.chunks_exact_mut(per_token.max(1)).enumerate() {
            let (cos, sin) = (&cos[t * half..][..half], &sin[t * half..][..half]);
            for head in row.chunks_exact_mut(width) {
                let (first, second) = head.split_at_mut(half);
                for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
                    let turned = compute.round(compute.round(*a * cos) + compute.round(-*b * sin));
                    *b = compute.round(compute.round(*b * cos) + compute.round(*a * sin));
                    *a = turned;
                }
            }
        }
    }
}

/// As [`crate::ops::Ops::silu_mul`].
pub(crate) struct SiluMul<'a> {
    pub compute: Compute,
    pub gate: &'a mut [f32],
    pub up: &'a [f32],
}

impl Work for SiluMul<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { compute, gate, up } = self;
        for (gate, up) in gate.chunks_mut(LANES).zip(up.chunks(LANES)) {
            let y = silu(s, load(s, gate, 0.0));
            store(s, y, gate);
            for (gate, up) in gate.iter_mut().zip(up) {
                *gate = compute.round(compute.round(*gate) * up);
            }
        }
    }
}

/// As [`crate::ops::Ops::add_scaled`].
pub(crate) struct AddScaled<'a> {
    pub compute: Compute,
    pub to: &'a mut [f32],
    pub x: &'a [f32],
    pub factor: f32,
}

impl Work for AddScaled<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let Self {
            compute,
            to,
            x,
            factor,
        } = self;
        for (to, x) in to.iter_mut().zip(x) {
            *to = compute.round(*to + compute.round(x * factor));
        }
    }
}

/// As [`crate::ops::Ops::add`].
pub(crate) struct Add<'a> {
    pub compute: Compute,
    pub to: &'a mut [f32],
    pub x: &'a [f32],
}

impl Work for Add<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        for (to, x) in self.to.iter_mut().zip(self.x) {
            *to = self.compute.round(*to + x);
        }
    }
}

/// As [`crate::ops::Ops::softmax`].
pub(crate) struct Softmax<'a> {
    pub rows: &'a mut [f32],
    pub width: usize,
}

impl Work for Softmax<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for row in self.rows.chunks_exact_mut(self.width.max(1)) {
            softmax_row(s, row);
        }
    }
}

/// Softmax in place.
#[inline(always)]
pub(super) fn softmax_row<S: Simd>(s: S, row: &mut [f32]) {
    let mut max = s.splat(f32::NEG_INFINITY);
    for x in row.chunks(LANES) {
        max = s.max(load(s, x, f32::NEG_INFINITY), max);
    }
    let max = s.splat(s.max_lane(max));
    let mut sum = s.splat(0.0);
    for x in row.chunks_mut(LANES) {
        let e = exp(s, s.sub(load(s, x, f32::NEG_INFINITY), max));
        sum = s.add(sum, e);
        store(s, e, x);
    }
    let sum = s.sum(sum);
    for x in row {
        *x /= sum;
    }
}

/// As [`crate::ops::Ops::layer_norm`].
pub(crate) struct LayerNorm<'a> {
    pub compute: Compute,
    pub x: &'a mut [f32],
    pub weight: &'a [f32],
    pub bias: &'a [f32],
    pub eps: f32,
}

impl Work for LayerNorm<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self {
            compute,
            x,
            weight,
            bias,
            eps,
        } = self;
        for row in x.chunks_exact_mut(weight.len().max(1)) {
            #[expect(clippy::cast_precision_loss, reason = "rows are short")]
            let count = row.len() as f32;
            let mean = sum(s, row) / count;
            row.iter_mut().for_each(|x| *x -= mean);
            let factor = 1.0 / (sum_of_squares(s, row) / count + eps).sqrt();
            for ((x, w), b) in row.iter_mut().zip(weight).zip(bias) {
                *x = compute.round(*x * factor * w + b);
            }
        }
    }
}

/// As [`crate::ops::Ops::gelu`].
pub(crate) struct Gelu<'a> {
    pub compute: Compute,
    pub x: &'a mut [f32],
}

impl Work for Gelu<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for x in self.x.chunks_mut(LANES) {
            store(s, gelu(s, load(s, x, 0.0)), x);
            self.compute.round_all(x);
        }
    }
}

/// As [`crate::ops::Ops::gelu_tanh`].
pub(crate) struct GeluTanh<'a> {
    pub compute: Compute,
    pub x: &'a mut [f32],
}

/// √(2 / π)
#[expect(clippy::excessive_precision, reason = "rounded by the compiler")]
pub(crate) const SQRT_2_OVER_PI: f32 = 0.797_884_560_802_865_4;
/// The cubic term of the approximation.
pub(crate) const GELU_CUBIC: f32 = 0.044_715;

impl Work for GeluTanh<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for x in self.x.chunks_mut(LANES) {
            let v = load(s, x, 0.0);
            let cube = s.mul(s.mul(v, v), v);
            let inner = s.mul_add(cube, s.splat(GELU_CUBIC), v);
            let t = tanh(s, s.mul(inner, s.splat(SQRT_2_OVER_PI)));
            let half = s.mul(v, s.splat(0.5));
            store(s, s.mul_add(half, t, half), x);
            self.compute.round_all(x);
        }
    }
}

/// For several rows, the sum of its products with one that they share; each product and each sum is
/// rounded: the same bits on every processor, and whatever else is computed beside it.
///
/// A sum alone waits for each of its additions; several hide that, and load what they share once.
#[cfg(feature = "audio")]
pub(crate) struct Dots<'a, const N: usize> {
    pub shared: &'a [f32],
    /// Each as long as `shared`.
    pub rows: [&'a [f32]; N],
}

#[cfg(feature = "audio")]
impl<const N: usize> Work for Dots<'_, N> {
    type Out = [f32; N];

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> [f32; N] {
        let (shared, shared_rest) = self.shared.as_chunks::<LANES>();
        let rows = self.rows.map(|row| row.as_chunks::<LANES>());
        let mut sums = [s.splat(0.0); N];
        for (chunk, shared) in shared.iter().enumerate() {
            let shared = s.load(shared);
            for n in 0..N {
                sums[n] = s.add(sums[n], s.mul(shared, s.load(&rows[n].0[chunk])));
            }
        }
        let mut dots = [0.0; N];
        for n in 0..N {
            let mut lanes = Line::ZERO;
            s.store(sums[n], &mut lanes.0);
            let mut sum = 0.0;
            for lane in lanes.0 {
                sum += lane;
            }
            let mut rest = 0.0;
            for (left, right) in shared_rest.iter().zip(rows[n].1) {
                rest += left * right;
            }
            dots[n] = sum + rest;
        }
        dots
    }
}
