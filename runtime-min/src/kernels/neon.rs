//! NEON of AArch64: four registers are a vector.

#![expect(unsafe_code, reason = "intrinsics of instructions that were detected")]

use std::arch::aarch64::*;

use super::simd::{LANES, Simd, Work};

/// NEON was detected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Neon(());

impl Neon {
    pub(super) fn detect() -> Option<Self> {
        std::arch::is_aarch64_feature_detected!("neon").then_some(Self(()))
    }

    pub(super) fn run<W: Work>(self, work: W) -> W::Out {
        // SAFETY: only `detect` makes a `Neon`, where the feature is there
        unsafe { run(self, work) }
    }
}

#[target_feature(enable = "neon")]
fn run<W: Work>(s: Neon, work: W) -> W::Out {
    work.run(s)
}

/// Lanes 0 to 3, 4 to 7, 8 to 11, and 12 to 15.
type Four = [float32x4_t; 4];

/// A 4 × 4 transpose.
#[inline(always)]
fn transpose4(_: Neon, r: Four) -> Four {
    // SAFETY: a `Neon` is proof that NEON is there; no memory is touched
    unsafe {
        let wide = |v| vreinterpretq_f64_f32(v);
        let narrow = |v| vreinterpretq_f32_f64(v);
        let (a, b) = (vtrn1q_f32(r[0], r[1]), vtrn2q_f32(r[0], r[1]));
        let (c, d) = (vtrn1q_f32(r[2], r[3]), vtrn2q_f32(r[2], r[3]));
        [
            narrow(vtrn1q_f64(wide(a), wide(c))),
            narrow(vtrn1q_f64(wide(b), wide(d))),
            narrow(vtrn2q_f64(wide(a), wide(c))),
            narrow(vtrn2q_f64(wide(b), wide(d))),
        ]
    }
}

impl Simd for Neon {
    type V = Four;

    const STRIP: usize = 1;
    /// 24 of the 32 registers are sums, four are weights.
    const TOKENS: usize = 6;
    /// Three tokens need more than 32 registers.
    const BESIDE: (usize, usize) = (2, 2);
    /// By counts of instructions: no machine was at hand.
    const FEW: usize = 4;
    const TRANSPOSED_BESIDE_SUMS: bool = false;

    #[inline(always)]
    fn splat(self, x: f32) -> Four {
        // SAFETY: `self` is proof that NEON is there; no memory is touched
        unsafe { [vdupq_n_f32(x); 4] }
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Four {
        let mut to = self.splat(0.0);
        for (to, from) in to.iter_mut().zip(from.as_chunks::<4>().0) {
            // SAFETY: `self` is proof that NEON is there; `from` has a register's 4 values
            *to = unsafe { vld1q_f32(from.as_ptr()) };
        }
        to
    }

    #[inline(always)]
    fn load_bits(self, from: &[u8; 4 * LANES]) -> Four {
        let mut to = self.splat(0.0);
        for (to, from) in to.iter_mut().zip(from.as_chunks::<16>().0) {
            // SAFETY: `self` is proof that NEON is there; `from` has a register's 16 bytes, which
            // need no alignment
            *to = unsafe { vreinterpretq_f32_u8(vld1q_u8(from.as_ptr())) };
        }
        to
    }

    #[inline(always)]
    fn store(self, v: Four, to: &mut [f32; LANES]) {
        for (v, to) in v.iter().zip(to.as_chunks_mut::<4>().0) {
            // SAFETY: `self` is proof that NEON is there; `to` has room for a register's 4 values
            unsafe { vst1q_f32(to.as_mut_ptr(), *v) }
        }
    }

    #[inline(always)]
    fn add(self, a: Four, b: Four) -> Four {
        let mut to = a;
        for i in 0..4 {
            // SAFETY: `self` is proof that NEON is there; no memory is touched
            to[i] = unsafe { vaddq_f32(a[i], b[i]) };
        }
        to
    }

    #[inline(always)]
    fn sub(self, a: Four, b: Four) -> Four {
        let mut to = a;
        for i in 0..4 {
            // SAFETY: `self` is proof that NEON is there; no memory is touched
            to[i] = unsafe { vsubq_f32(a[i], b[i]) };
        }
        to
    }

    #[inline(always)]
    fn mul(self, a: Four, b: Four) -> Four {
        let mut to = a;
        for i in 0..4 {
            // SAFETY: `self` is proof that NEON is there; no memory is touched
            to[i] = unsafe { vmulq_f32(a[i], b[i]) };
        }
        to
    }

    #[inline(always)]
    fn div(self, a: Four, b: Four) -> Four {
        let mut to = a;
        for i in 0..4 {
            // SAFETY: `self` is proof that NEON is there; no memory is touched
            to[i] = unsafe { vdivq_f32(a[i], b[i]) };
        }
        to
    }

    #[inline(always)]
    fn mul_add(self, a: Four, b: Four, c: Four) -> Four {
        let mut to = a;
        for i in 0..4 {
            // SAFETY: `self` is proof that NEON is there; no memory is touched
            to[i] = unsafe { vfmaq_f32(c[i], a[i], b[i]) };
        }
        to
    }

    #[inline(always)]
    fn max(self, a: Four, b: Four) -> Four {
        let mut to = a;
        for i in 0..4 {
            // SAFETY: `self` is proof that NEON is there; no memory is touched
            to[i] = unsafe { vbslq_f32(vcgtq_f32(a[i], b[i]), a[i], b[i]) };
        }
        to
    }

    #[inline(always)]
    fn min(self, a: Four, b: Four) -> Four {
        let mut to = a;
        for i in 0..4 {
            // SAFETY: `self` is proof that NEON is there; no memory is touched
            to[i] = unsafe { vbslq_f32(vcltq_f32(a[i], b[i]), a[i], b[i]) };
        }
        to
    }

    #[inline(always)]
    fn round(self, v: Four) -> Four {
        let mut to = v;
        for i in 0..4 {
            // SAFETY: `self` is proof that NEON is there; no memory is touched
            to[i] = unsafe { vrndnq_f32(v[i]) };
        }
        to
    }

    #[inline(always)]
    fn scale(self, v: Four, n: Four) -> Four {
        let mut to = v;
        for i in 0..4 {
            // in two factors, since 2ⁿ alone may be out of range; only the last product rounds
            // SAFETY: `self` is proof that NEON is there; no memory is touched
            unsafe {
                let n = vcvtnq_s32_f32(n[i]);
                let first = vshrq_n_s32::<1>(n);
                for n in [first, vsubq_s32(n, first)] {
                    let bits = vshlq_n_s32::<23>(vaddq_s32(n, vdupq_n_s32(127)));
                    to[i] = vmulq_f32(to[i], vreinterpretq_f32_s32(bits));
                }
            }
        }
        to
    }

    #[inline(always)]
    fn low(self, v: Four) -> Four {
        let mut to = v;
        for i in 0..4 {
            // SAFETY: `self` is proof that NEON is there; no memory is touched
            to[i] =
                unsafe { vreinterpretq_f32_u32(vshlq_n_u32::<16>(vreinterpretq_u32_f32(v[i]))) };
        }
        to
    }

    #[inline(always)]
    fn high(self, v: Four) -> Four {
        let mut to = v;
        for i in 0..4 {
            // SAFETY: `self` is proof that NEON is there; no memory is touched
            to[i] = unsafe {
                vreinterpretq_f32_u32(vandq_u32(
                    vreinterpretq_u32_f32(v[i]),
                    vdupq_n_u32(0xffff_0000),
                ))
            };
        }
        to
    }

    #[inline(always)]
    fn transpose(self, rows: [Four; LANES]) -> [Four; LANES] {
        let mut to = rows;
        for from in 0..4 {
            for quarter in 0..4 {
                let mut part = rows[0];
                for i in 0..4 {
                    part[i] = rows[4 * quarter + i][from];
                }
                let part = transpose4(self, part);
                for i in 0..4 {
                    to[4 * from + i][quarter] = part[i];
                }
            }
        }
        to
    }

    #[inline(always)]
    fn prefetch(self, address: *const u8) {
        // the intrinsic is not stable
        // SAFETY: a hint: it reads nothing and faults at no address
        unsafe {
            std::arch::asm!(
                "prfm pldl2keep, [{address}]",
                address = in(reg) address,
                options(nostack, preserves_flags, readonly)
            );
        }
    }
}
