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
