//! The exponential function, and what is built on it.

use super::simd::Simd;

/// `eˣ` with a relative error below 2 ulp, subnormal results included: 0 at -∞, ∞ above 88.73, NaN
/// at NaN.
///
/// Cody and Waite's reduction and the polynomial of Cephes' `expf` (S. L. Moshier): x = n · ln 2 +
/// r with
/// |r| ≤ ln 2 / 2.
#[inline(always)]
#[expect(
    clippy::excessive_precision,
    reason = "the constants as they were published"
)]
pub(super) fn exp<S: Simd>(s: S, x: S::V) -> S::V {
    const LN2_HIGH: f32 = 0.693_359_375;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    const TERMS: [f32; 6] = [
        1.987_569_1e-4,
        1.398_2e-3,
        8.333_452e-3,
        4.166_579_6e-2,
        1.666_666_5e-1,
        5.000_000_1e-1,
    ];
    // below -104 the result rounds to 0, above 89 it is infinite; a NaN passes
    let x = s.max(s.splat(-105.0), s.min(s.splat(89.0), x));
    let n = s.round(s.mul(x, s.splat(std::f32::consts::LOG2_E)));
    let r = s.mul_add(n, s.splat(-LN2_HIGH), x);
    let r = s.mul_add(n, s.splat(-LN2_LOW), r);
    let mut p = s.splat(TERMS[0]);
    for term in &TERMS[1..] {
        p = s.mul_add(p, r, s.splat(*term));
    }
    let p = s.add(s.mul_add(p, s.mul(r, r), r), s.splat(1.0));
    s.scale(p, n)
}

/// `x / (1 + e⁻ˣ)`
#[inline(always)]
pub(super) fn silu<S: Simd>(s: S, x: S::V) -> S::V {
    let e = exp(s, s.sub(s.splat(0.0), x));
    s.div(x, s.add(s.splat(1.0), e))
}

/// `tanh(x)` with an absolute error below 2e-7.
#[inline(always)]
pub(super) fn tanh<S: Simd>(s: S, x: S::V) -> S::V {
    let e = exp(s, s.add(x, x));
    s.sub(s.splat(1.0), s.div(s.splat(2.0), s.add(e, s.splat(1.0))))
}

/// `x · Φ(x)`, Φ being the normal distribution, with an absolute error below 3e-7.
///
/// That is max(x, 0) - |x| / 2 · erfc(|x| / √2). The logarithm of the last factor is |x| times a
/// polynomial: a weighted minimax fit up to 6, where the product is 6e-9 and stays it.
#[inline(always)]
#[expect(
    clippy::excessive_precision,
    reason = "the values of the fit, as they were printed"
)]
pub(super) fn gelu<S: Simd>(s: S, x: S::V) -> S::V {
    const LAST: f32 = 6.0;
    const TERMS: [f32; 9] = [
        2.573_535_8e-7,
        -5.193_425_8e-6,
        4.338_859_5e-5,
        -1.698_142e-4,
        -3.952_346e-5,
        4.857_432_1e-3,
        -3.637_664_4e-2,
        -3.182_986_4e-1,
        -7.978_857_2e-1,
    ];
    let zero = s.splat(0.0);
    // a NaN passes both
    let size = s.min(s.splat(LAST), s.max(s.sub(zero, x), x));
    let mut p = s.splat(TERMS[0]);
    for term in &TERMS[1..] {
        p = s.mul_add(p, size, s.splat(*term));
    }
    let half_erfc = s.mul(s.splat(0.5), exp(s, s.mul(p, size)));
    s.sub(s.max(zero, x), s.mul(size, half_erfc))
}
