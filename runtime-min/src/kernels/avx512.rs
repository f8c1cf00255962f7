//! AVX-512: one register is a vector.

#![expect(unsafe_code, reason = "intrinsics of instructions that were detected")]

use std::arch::x86_64::*;
use std::mem::transmute;

use super::simd::{LANES, Simd, Work, two_products};

/// AVX-512 F, BW, DQ and VL were detected, and AVX-512 BF16 where `BF16` says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Avx512<const BF16: bool>(());

impl Avx512<false> {
    pub(super) fn detect() -> Option<Self> {
        let all = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma");
        all.then_some(Self(()))
    }

    pub(super) fn run<W: Work>(self, work: W) -> W::Out {
        // SAFETY: only `detect` makes an `Avx512`, where the features are there
        unsafe { run(self, work) }
    }
}

impl Avx512<true> {
    pub(super) fn detect() -> Option<Self> {
        let all = Avx512::<false>::detect().is_some() && is_x86_feature_detected!("avx512bf16");
        all.then_some(Self(()))
    }

    /// Whether `VDPBF16PS` takes no longer than a multiply-add, as on AMD's processors from Zen 4 on.
    /// On an Emerald Rapids it takes four times as long, so that multiply-adds do twice as much.
    pub(super) fn has_twice_the_rate(self) -> bool {
        #[allow(unused_unsafe, reason = "safe since Rust 1.94")]
        // SAFETY: every x86-64 processor has CPUID
        let vendor = unsafe { __cpuid(0) };
        [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes) == [*b"Auth", *b"enti", *b"cAMD"]
    }

    pub(super) fn run<W: Work>(self, work: W) -> W::Out {
        // SAFETY: only `detect` makes an `Avx512`, where the features are there
        unsafe { run_bf16(self, work) }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
fn run<W: Work>(s: Avx512<false>, work: W) -> W::Out {
    work.run(s)
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
fn run_bf16<W: Work>(s: Avx512<true>, work: W) -> W::Out {
    work.run(s)
}

impl<const BF16: bool> Simd for Avx512<BF16> {
    type V = __m512;

    const STRIP: usize = 2;
    const TOKENS: usize = 12;
    const BESIDE: (usize, usize) = (4, 5);
    const FEW: usize = 48;
    const TRANSPOSED_BESIDE_SUMS: bool = true;

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        // SAFETY: `self` is proof that AVX-512 F, BW, DQ and VL are there; no memory is touched
        unsafe { _mm512_set1_ps(x) }
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> __m512 {
        // SAFETY: `self` is proof that AVX-512 F, BW, DQ and VL are there; an unaligned load, and
        // `from` has a vector's 16 values
        unsafe { _mm512_loadu_ps(from.as_ptr()) }
    }

    #[inline(always)]
    fn load_bits(self, from: &[u8; 4 * LANES]) -> __m512 {
        // SAFETY: `self` is proof that AVX-512 F, BW, DQ and VL are there; an unaligned load, and
        // `from` has a vector's 64 bytes
        unsafe { _mm512_loadu_ps(from.as_ptr().cast()) }
    }

    #[inline(always)]
    fn store(self, v: __m512, to: &mut [f32; LANES]) {
        // SAFETY: `self` is proof that AVX-512 F, BW, DQ and VL are there; an unaligned store, and
        // `to` holds a vector's 16 values
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), v) }
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` is proof that AVX-512 F, BW, DQ and VL are there; no memory is touched
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` is proof that AVX-512 F, BW, DQ and VL are there; no memory is touched
        unsafe { _mm512_sub_ps(a, b) }
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` is proof that AVX-512 F, BW, DQ and VL are there; no memory is touched
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` is proof that AVX-512 F, BW, DQ and VL are there; no memory is touched
        unsafe { _mm512_div_ps(a, b) }
    }

    #[inline(always)]
    fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: `self` is proof that AVX-512 F, BW, DQ and VL are there; no memory is touched
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` is proof that AVX-512 F, BW, DQ and VL are there; no memory is touched
        unsafe { _mm512_max_ps(a, b) }
    }

    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` is proof that AVX-512 F, BW, DQ and VL are there; no memory is touched
        unsafe { _mm512_min_ps(a, b) }
    }

    #[inline(always)]
    fn round(self, v: __m512) -> __m512 {
        // SAFETY: `self` is proof that AVX-512 F, BW, DQ and VL are there; no memory is touched
        unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(v) }
    }

    #[inline(always)]
    fn scale(self, v: __m512, n: __m512) -> __m512 {
        // SAFETY: `self` is proof that AVX-512 F, BW, DQ and VL are there; no memory is touched
        unsafe { _mm512_scalef_ps(v, n) }
    }

    #[inline(always)]
    fn low(self, v: __m512) -> __m512 {
        // SAFETY: `self` is proof that AVX-512 F, BW, DQ and VL are there; no memory is touched
        unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_castps_si512(v))) }
    }

    #[inline(always)]
    fn high(self, v: __m512) -> __m512 {
        // SAFETY: `self` is proof that AVX-512 F, BW, DQ and VL are there; no memory is touched
        unsafe {
            let mask = _mm512_set1_epi32(0xffff_0000_u32.cast_signed());
            _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(v), mask))
        }
    }

    #[inline(always)]
    fn pair(self, even: __m512, odd: __m512) -> __m512 {
        // SAFETY: `self` is proof that AVX-512 F, BW, DQ and VL are there; no memory is touched
        unsafe {
            let even = _mm512_srli_epi32::<16>(_mm512_castps_si512(even));
            let odd = _mm512_castps_si512(self.high(odd));
            _mm512_castsi512_ps(_mm512_or_si512(even, odd))
        }
    }

    #[inline(always)]
    fn dot_pairs(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        if BF16 {
            // SAFETY: `self` is proof that AVX-512 BF16 is there; no memory is touched, and both types
            // are 64 bytes without meaning of their own
            unsafe {
                let (a, b) = (
                    transmute::<__m512, __m512bh>(a),
                    transmute::<__m512, __m512bh>(b),
                );
                _mm512_dpbf16_ps(c, a, b)
            }
        } else {
            two_products(self, a, b, c)
        }
    }

    #[inline(always)]
    fn transpose(self, rows: [__m512; LANES]) -> [__m512; LANES] {
        // SAFETY: `self` is proof that AVX-512 F, BW, DQ and VL are there; no memory is touched
        unsafe {
            let (mut a, mut b) = (rows, rows);
            for i in 0..8 {
                a[2 * i] = _mm512_unpacklo_ps(rows[2 * i], rows[2 * i + 1]);
                a[2 * i + 1] = _mm512_unpackhi_ps(rows[2 * i], rows[2 * i + 1]);
            }
            // b[4i + c]: in its lane l of 128 bits, rows 4i to 4i + 3 of column 4l + c
            for i in 0..4 {
                let pairs = [
                    _mm512_castps_pd(a[4 * i]),
                    _mm512_castps_pd(a[4 * i + 1]),
                    _mm512_castps_pd(a[4 * i + 2]),
                    _mm512_castps_pd(a[4 * i + 3]),
                ];
                b[4 * i] = _mm512_castpd_ps(_mm512_unpacklo_pd(pairs[0], pairs[2]));
                b[4 * i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(pairs[0], pairs[2]));
                b[4 * i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(pairs[1], pairs[3]));
                b[4 * i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(pairs[1], pairs[3]));
            }
            for c in 0..4 {
                let even = _mm512_shuffle_f32x4::<0x88>(b[c], b[4 + c]);
                let odd = _mm512_shuffle_f32x4::<0xdd>(b[c], b[4 + c]);
                let even2 = _mm512_shuffle_f32x4::<0x88>(b[8 + c], b[12 + c]);
                let odd2 = _mm512_shuffle_f32x4::<0xdd>(b[8 + c], b[12 + c]);
                a[c] = _mm512_shuffle_f32x4::<0x88>(even, even2);
                a[4 + c] = _mm512_shuffle_f32x4::<0x88>(odd, odd2);
                a[8 + c] = _mm512_shuffle_f32x4::<0xdd>(even, even2);
                a[12 + c] = _mm512_shuffle_f32x4::<0xdd>(odd, odd2);
            }
            a
        }
    }

    #[inline(always)]
    fn prefetch(self, address: *const u8) {
        // SAFETY: a hint: it reads nothing and faults at no address, and SSE is part of x86-64
        unsafe { _mm_prefetch::<_MM_HINT_T1>(address.cast()) }
    }
}
