//! AVX2 with FMA: two registers are a vector.

#![expect(unsafe_code, reason = "intrinsics of instructions that were detected")]

use std::arch::x86_64::*;

use super::simd::{LANES, Simd, Work};

/// AVX2 and FMA were detected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Avx2(());

impl Avx2 {
    pub(super) fn detect() -> Option<Self> {
        (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")).then_some(Self(()))
    }

    pub(super) fn run<W: Work>(self, work: W) -> W::Out {
        // SAFETY: only `detect` makes an `Avx2`, where the features are there
        unsafe { run(self, work) }
    }
}

#[target_feature(enable = "avx2,fma")]
fn run<W: Work>(s: Avx2, work: W) -> W::Out {
    work.run(s)
}

/// Lanes 0 to 7, and 8 to 15.
type Two = [__m256; 2];

/// An 8 × 8 transpose.
#[inline(always)]
fn transpose8(_: Avx2, r: [__m256; 8]) -> [__m256; 8] {
    // SAFETY: an `Avx2` is proof that AVX2 is there; no memory is touched
    unsafe {
        let (mut a, mut b) = (r, r);
        for i in 0..4 {
            a[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
            a[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
        }
        for i in 0..2 {
            b[4 * i] = _mm256_shuffle_ps::<0x44>(a[4 * i], a[4 * i + 2]);
            b[4 * i + 1] = _mm256_shuffle_ps::<0xee>(a[4 * i], a[4 * i + 2]);
            b[4 * i + 2] = _mm256_shuffle_ps::<0x44>(a[4 * i + 1], a[4 * i + 3]);
            b[4 * i + 3] = _mm256_shuffle_ps::<0xee>(a[4 * i + 1], a[4 * i + 3]);
        }
        for c in 0..4 {
            a[c] = _mm256_permute2f128_ps::<0x20>(b[c], b[4 + c]);
            a[4 + c] = _mm256_permute2f128_ps::<0x31>(b[c], b[4 + c]);
        }
        a
    }
}

impl Simd for Avx2 {
    type V = Two;

    const STRIP: usize = 1;
    const TOKENS: usize = 6;
    const BESIDE: (usize, usize) = (2, 3);
    const FEW: usize = 8;
    const TRANSPOSED_BESIDE_SUMS: bool = false;

    #[inline(always)]
    fn splat(self, x: f32) -> Two {
        // SAFETY: `self` is proof that AVX2 and FMA are there; no memory is touched
        unsafe { [_mm256_set1_ps(x); 2] }
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Two {
        // SAFETY: `self` is proof that AVX2 and FMA are there; an unaligned load, and `from` has a
        // vector's 16 values
        unsafe {
            [
                _mm256_loadu_ps(from.as_ptr()),
                _mm256_loadu_ps(from.as_ptr().add(8)),
            ]
        }
    }

    #[inline(always)]
    fn load_bits(self, from: &[u8; 4 * LANES]) -> Two {
        // SAFETY: `self` is proof that AVX2 and FMA are there; an unaligned load, and `from` has a
        // vector's 64 bytes
        unsafe {
            [
                _mm256_loadu_ps(from.as_ptr().cast()),
                _mm256_loadu_ps(from.as_ptr().add(32).cast()),
            ]
        }
    }

    #[inline(always)]
    fn store(self, v: Two, to: &mut [f32; LANES]) {
        // SAFETY: `self` is proof that AVX2 and FMA are there; an unaligned store, and `to` has
        // room for a vector's 16 values
        unsafe {
            _mm256_storeu_ps(to.as_mut_ptr(), v[0]);
            _mm256_storeu_ps(to.as_mut_ptr().add(8), v[1]);
        }
    }

    #[inline(always)]
    fn add(self, a: Two, b: Two) -> Two {
        // SAFETY: `self` is proof that AVX2 and FMA are there; no memory is touched
        unsafe { [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn sub(self, a: Two, b: Two) -> Two {
        // SAFETY: `self` is proof that AVX2 and FMA are there; no memory is touched
        unsafe { [_mm256_sub_ps(a[0], b[0]), _mm256_sub_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn mul(self, a: Two, b: Two) -> Two {
        // SAFETY: `self` is proof that AVX2 and FMA are there; no memory is touched
        unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn div(self, a: Two, b: Two) -> Two {
        // SAFETY: `self` is proof that AVX2 and FMA are there; no memory is touched
        unsafe { [_mm256_div_ps(a[0], b[0]), _mm256_div_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn mul_add(self, a: Two, b: Two, c: Two) -> Two {
        // SAFETY: `self` is proof that AVX2 and FMA are there; no memory is touched
        unsafe {
            [
                _mm256_fmadd_ps(a[0], b[0], c[0]),
                _mm256_fmadd_ps(a[1], b[1], c[1]),
            ]
        }
    }

    #[inline(always)]
    fn max(self, a: Two, b: Two) -> Two {
        // SAFETY: `self` is proof that AVX2 and FMA are there; no memory is touched
        unsafe { [_mm256_max_ps(a[0], b[0]), _mm256_max_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn min(self, a: Two, b: Two) -> Two {
        // SAFETY: `self` is proof that AVX2 and FMA are there; no memory is touched
        unsafe { [_mm256_min_ps(a[0], b[0]), _mm256_min_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn round(self, v: Two) -> Two {
        const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        // SAFETY: `self` is proof that AVX2 and FMA are there; no memory is touched
        unsafe {
            [
                _mm256_round_ps::<NEAREST>(v[0]),
                _mm256_round_ps::<NEAREST>(v[1]),
            ]
        }
    }

    #[inline(always)]
    fn scale(self, v: Two, n: Two) -> Two {
        // SAFETY: `self` is proof that AVX2 and FMA are there; no memory is touched
        unsafe {
            let mut to = v;
            for i in 0..2 {
                // in two factors, since 2ⁿ alone may be out of range; only the last product rounds
                let n = _mm256_cvtps_epi32(n[i]);
                let first = _mm256_srai_epi32::<1>(n);
                for n in [first, _mm256_sub_epi32(n, first)] {
                    let bits = _mm256_slli_epi32::<23>(_mm256_add_epi32(n, _mm256_set1_epi32(127)));
                    to[i] = _mm256_mul_ps(to[i], _mm256_castsi256_ps(bits));
                }
            }
            to
        }
    }

    #[inline(always)]
    fn low(self, v: Two) -> Two {
        // SAFETY: `self` is proof that AVX2 and FMA are there; no memory is touched
        unsafe {
            [
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_castps_si256(v[0]))),
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_castps_si256(v[1]))),
            ]
        }
    }

    #[inline(always)]
    fn high(self, v: Two) -> Two {
        // SAFETY: `self` is proof that AVX2 and FMA are there; no memory is touched
        unsafe {
            let mask = _mm256_castsi256_ps(_mm256_set1_epi32(0xffff_0000_u32.cast_signed()));
            [_mm256_and_ps(v[0], mask), _mm256_and_ps(v[1], mask)]
        }
    }

    #[inline(always)]
    fn transpose(self, rows: [Two; LANES]) -> [Two; LANES] {
        let mut to = rows;
        for from_half in 0..2 {
            for to_half in 0..2 {
                let mut part = [rows[0][0]; 8];
                for i in 0..8 {
                    part[i] = rows[8 * to_half + i][from_half];
                }
                let part = transpose8(self, part);
                for i in 0..8 {
                    to[8 * from_half + i][to_half] = part[i];
                }
            }
        }
        to
    }

    #[inline(always)]
    fn prefetch(self, address: *const u8) {
        // SAFETY: a hint: it reads nothing and faults at no address, and SSE is part of x86-64
        unsafe { _mm_prefetch::<_MM_HINT_T1>(address.cast()) }
    }
}
