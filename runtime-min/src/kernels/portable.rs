//! Plain Rust, for any processor; the compiler makes vectors of it.

use super::simd::{LANES, Simd, Work};

/// No instruction-set extension.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Portable;

impl Portable {
    pub(super) fn run<W: Work>(self, work: W) -> W::Out {
        work.run(self)
    }
}

/// Without an instruction for it `f32::mul_add` is a slow call.
const FUSED: bool = cfg!(any(target_feature = "fma", target_arch = "aarch64"));

type Lanes = [f32; LANES];

#[inline(always)]
fn map(a: Lanes, f: impl Fn(f32) -> f32) -> Lanes {
    let mut to = a;
    for to in &mut to {
        *to = f(*to);
    }
    to
}

#[inline(always)]
fn both(a: Lanes, b: Lanes, f: impl Fn(f32, f32) -> f32) -> Lanes {
    let mut to = a;
    for i in 0..LANES {
        to[i] = f(a[i], b[i]);
    }
    to
}

impl Simd for Portable {
    type V = Lanes;

    const STRIP: usize = 1;
    const TOKENS: usize = if cfg!(target_arch = "aarch64") { 4 } else { 2 };
    const BESIDE: (usize, usize) = (1, 2);
    const FEW: usize = 16;
    const TRANSPOSED_BESIDE_SUMS: bool = false;

    #[inline(always)]
    fn splat(self, x: f32) -> Lanes {
        [x; LANES]
    }

    #[inline(always)]
    fn load(self, from: &Lanes) -> Lanes {
        *from
    }

    #[inline(always)]
    fn load_bits(self, from: &[u8; 4 * LANES]) -> Lanes {
        let mut to = [0.0; LANES];
        for (to, from) in to.iter_mut().zip(from.as_chunks::<4>().0) {
            *to = f32::from_bits(u32::from_le_bytes(*from));
        }
        to
    }

    #[inline(always)]
    fn store(self, v: Lanes, to: &mut Lanes) {
        *to = v;
    }

    #[inline(always)]
    fn add(self, a: Lanes, b: Lanes) -> Lanes {
        both(a, b, |a, b| a + b)
    }

    #[inline(always)]
    fn sub(self, a: Lanes, b: Lanes) -> Lanes {
        both(a, b, |a, b| a - b)
    }

    #[inline(always)]
    fn mul(self, a: Lanes, b: Lanes) -> Lanes {
        both(a, b, |a, b| a * b)
    }

    #[inline(always)]
    fn div(self, a: Lanes, b: Lanes) -> Lanes {
        both(a, b, |a, b| a / b)
    }

    #[inline(always)]
    fn mul_add(self, a: Lanes, b: Lanes, c: Lanes) -> Lanes {
        let mut to = c;
        for i in 0..LANES {
            to[i] = if FUSED {
                a[i].mul_add(b[i], c[i])
            } else {
                a[i] * b[i] + c[i]
            };
        }
        to
    }

    #[inline(always)]
    fn max(self, a: Lanes, b: Lanes) -> Lanes {
        both(a, b, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn min(self, a: Lanes, b: Lanes) -> Lanes {
        both(a, b, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    fn round(self, v: Lanes) -> Lanes {
        const SHIFT: f32 = 12_582_912.0; // 1.5 · 2²³: what is added to it loses its fraction
        map(v, |x| (x + SHIFT) - SHIFT)
    }

    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "n is whole and small")]
    fn scale(self, v: Lanes, n: Lanes) -> Lanes {
        let power = |n: i32| f32::from_bits((n + 127).cast_unsigned() << 23);
        both(v, n, |v, n| {
            let n = n as i32;
            v * power(n >> 1) * power(n - (n >> 1))
        })
    }

    #[inline(always)]
    fn low(self, v: Lanes) -> Lanes {
        map(v, |x| f32::from_bits(x.to_bits() << 16))
    }

    #[inline(always)]
    fn high(self, v: Lanes) -> Lanes {
        map(v, |x| f32::from_bits(x.to_bits() & 0xffff_0000))
    }

    #[inline(always)]
    fn transpose(self, rows: [Lanes; LANES]) -> [Lanes; LANES] {
        let mut to = rows;
        for (i, to) in to.iter_mut().enumerate() {
            for (j, row) in rows.iter().enumerate() {
                to[j] = row[i];
            }
        }
        to
    }

    #[inline(always)]
    fn prefetch(self, _: *const u8) {}
}
