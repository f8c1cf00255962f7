//! Dot products, chosen at run time by what the processor has.
//!
//! One generic loop with a fixed number of partial sums is compiled for each instruction set; on one of them the
//! order of additions never changes. Faster kernels are a later step.

use segpack_formats::safetensors::Dtype;

use crate::ops::widen;

/// Partial sums of a dot product: four 512-bit registers.
const SUMS: usize = 64;

/// An instruction set that kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Path {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

/// The kernels of one instruction set. Only [`detect`](Self::detect) and [`all`](Self::all) make one, so that what it
/// names is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kernels(Path);

impl Kernels {
    /// The best ones that this processor has.
    pub fn detect() -> Self {
        Self::all().pop().unwrap_or(Self(Path::Portable))
    }

    /// All that this processor has, the best last.
    pub fn all() -> Vec<Self> {
        let mut all = vec![Self(Path::Portable)];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                all.push(Self(Path::Avx2));
            }
            if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw") {
                all.push(Self(Path::Avx512));
            }
        }
        all
    }

    /// `sums[t] = row · x[t]` for every row `x[t]` of `x`. `wide` is scratch as long as the row.
    pub fn row_times(self, dtype: Dtype, row: &[u8], x: &[f32], wide: &mut [f32], sums: &mut [f32]) {
        match self.0 {
            Path::Portable => row_times(dtype, row, x, wide, sums, portable_mul_add),
            #[cfg(target_arch = "x86_64")]
            Path::Avx2 => x86::avx2(dtype, row, x, wide, sums),
            #[cfg(target_arch = "x86_64")]
            Path::Avx512 => x86::avx512(dtype, row, x, wide, sums),
        }
    }
}

/// Without FMA instructions `f32::mul_add` is a slow library call.
#[inline(always)]
fn portable_mul_add(a: f32, b: f32, c: f32) -> f32 {
    a * b + c
}

#[inline(always)]
fn row_times(
    dtype: Dtype,
    row: &[u8],
    x: &[f32],
    wide: &mut [f32],
    sums: &mut [f32],
    mul_add: impl Fn(f32, f32, f32) -> f32 + Copy,
) {
    widen(dtype, row, wide);
    for (x, sum) in x.chunks_exact(wide.len().max(1)).zip(sums) {
        *sum = dot(wide, x, mul_add);
    }
}

#[inline(always)]
fn dot(a: &[f32], b: &[f32], mul_add: impl Fn(f32, f32, f32) -> f32) -> f32 {
    let (a, a_rest) = a.as_chunks::<SUMS>();
    let (b, b_rest) = b.as_chunks::<SUMS>();
    let mut sums = [0.0; SUMS];
    for (a, b) in a.iter().zip(b) {
        for i in 0..SUMS {
            sums[i] = mul_add(a[i], b[i], sums[i]);
        }
    }
    for (i, (a, b)) in a_rest.iter().zip(b_rest).enumerate() {
        sums[i] = mul_add(*a, *b, sums[i]);
    }
    let mut width = SUMS / 2;
    while width > 0 {
        for i in 0..width {
            sums[i] += sums[i + width];
        }
        width /= 2;
    }
    sums[0]
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    #![expect(unsafe_code, reason = "calls functions compiled for instructions that were detected")]

    use segpack_formats::safetensors::Dtype;

    pub(super) fn avx2(dtype: Dtype, row: &[u8], x: &[f32], wide: &mut [f32], sums: &mut [f32]) {
        // SAFETY: `Path::Avx2` exists only where AVX2 and FMA were detected
        unsafe { avx2_row_times(dtype, row, x, wide, sums) }
    }

    pub(super) fn avx512(dtype: Dtype, row: &[u8], x: &[f32], wide: &mut [f32], sums: &mut [f32]) {
        // SAFETY: `Path::Avx512` exists only where AVX-512 F and BW were detected
        unsafe { avx512_row_times(dtype, row, x, wide, sums) }
    }

    #[target_feature(enable = "avx2,fma")]
    fn avx2_row_times(dtype: Dtype, row: &[u8], x: &[f32], wide: &mut [f32], sums: &mut [f32]) {
        super::row_times(dtype, row, x, wide, sums, f32::mul_add);
    }

    #[target_feature(enable = "avx512f,avx512bw,avx2,fma")]
    fn avx512_row_times(dtype: Dtype, row: &[u8], x: &[f32], wide: &mut [f32], sums: &mut [f32]) {
        super::row_times(dtype, row, x, wide, sums, f32::mul_add);
    }
}
