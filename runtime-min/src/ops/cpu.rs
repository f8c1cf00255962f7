//! The CPU: rows of weights shared out to threads, dot products in the widest instructions that there are.
//!
//! Every output value is computed by one thread in one fixed order, so results do not depend on the number of threads.

use rayon::prelude::*;

use super::{Compute, Heads, Matrix, Ops, Product, scalar, widen};
use crate::kernels::Kernels;

/// Rows of a weight matrix that one task takes: enough work to be worth a hand-over.
const ROWS: usize = 16;

/// Runs on rayon's current thread pool.
#[derive(Debug, Clone, Copy)]
pub struct CpuOps {
    compute: Compute,
    kernels: Kernels,
}

impl CpuOps {
    /// With the best kernels that this processor has.
    pub fn new(compute: Compute) -> Self {
        Self::with_kernels(compute, Kernels::detect())
    }

    /// With these kernels.
    pub fn with_kernels(compute: Compute, kernels: Kernels) -> Self {
        Self { compute, kernels }
    }
}

impl CpuOps {
    /// `sums[t] = row · x[t]`; under bf16 in the one order that the official code has.
    fn row_times(&self, weight: Matrix<'_>, row: usize, x: &[f32], wide: &mut [f32], sums: &mut [f32]) {
        if self.compute == Compute::F32 {
            return self.kernels.row_times(weight.dtype, weight.row(row), x, wide, sums);
        }
        widen(weight.dtype, weight.row(row), wide);
        for (x, sum) in x.chunks_exact(weight.columns).zip(sums) {
            *sum = scalar::dot(self.compute, x, wide);
        }
    }

    fn product(&self, product: &mut Product<'_>) {
        let Product { x, weight, bias, out } = product;
        let tokens = x.len() / weight.columns.max(1);
        // computed as [rows, tokens], so that each task owns a contiguous piece, then turned around
        let mut columns = vec![0.0; weight.rows * tokens];
        columns.par_chunks_mut(ROWS * tokens.max(1)).enumerate().for_each(|(block, part)| {
            let mut wide = vec![0.0; weight.columns];
            for (i, sums) in part.chunks_exact_mut(tokens.max(1)).enumerate() {
                let n = block * ROWS + i;
                self.row_times(*weight, n, x, &mut wide, sums);
                let bias = bias.map_or(0.0, |b| b[n]);
                sums.iter_mut().for_each(|sum| *sum = self.compute.round(*sum + bias));
            }
        });
        for (t, out) in out.chunks_exact_mut(weight.rows.max(1)).enumerate() {
            out.iter_mut().enumerate().for_each(|(n, o)| *o = columns[n * tokens + t]);
        }
    }
}

impl Ops for CpuOps {
    fn compute(&self) -> Compute {
        self.compute
    }

    fn products(&self, products: &mut [Product<'_>]) {
        products.iter_mut().for_each(|p| self.product(p));
    }

    fn attention(&self, q: &[f32], keys: &[f32], values: &[f32], heads: Heads, out: &mut [f32]) {
        let (tokens, positions) = scalar::rows(q, keys, heads);
        out.par_chunks_exact_mut(heads.width).enumerate().for_each(|(i, out)| {
            let (t, h) = (i / heads.query, i % heads.query);
            let q = &q[i * heads.width..(i + 1) * heads.width];
            scalar::attend(self.compute, q, keys, values, heads, h, positions - tokens + t + 1, out);
        });
    }
}

#[cfg(test)]
mod tests {
    use segpack_formats::safetensors::Dtype;

    use super::*;
    use crate::ops::ScalarOps;

    /// Values in [-1, 1) without a short period.
    fn noise(n: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            #[expect(clippy::cast_precision_loss, reason = "24 bits")]
            let x = (state >> 8) as f32 / 8_388_608.0 - 1.0;
            x
        };
        (0..n).map(|_| next()).collect()
    }

    fn bytes(dtype: Dtype, values: &[f32]) -> Vec<u8> {
        let value = |x: &f32| match dtype {
            Dtype::BF16 => half::bf16::from_f32(*x).to_le_bytes().to_vec(),
            Dtype::F16 => half::f16::from_f32(*x).to_le_bytes().to_vec(),
            _ => x.to_le_bytes().to_vec(),
        };
        values.iter().flat_map(value).collect()
    }

    #[test]
    fn linear_agrees_with_the_reference_at_odd_sizes_on_every_path() {
        for (rows, columns, tokens) in [(1, 1, 1), (17, 33, 3), (40, 129, 5), (5, 64, 1), (3, 7, 2)] {
            for dtype in [Dtype::BF16, Dtype::F16, Dtype::F32] {
                let weight = bytes(dtype, &noise(rows * columns, 7));
                let weight = Matrix { dtype, bytes: &weight, rows, columns };
                let (x, bias) = (noise(tokens * columns, 11), noise(rows, 13));
                let mut wanted = vec![0.0; tokens * rows];
                ScalarOps::default().linear(&x, weight, Some(&bias), &mut wanted);
                for kernels in Kernels::all() {
                    let mut seen = vec![0.0; tokens * rows];
                    CpuOps::with_kernels(Compute::F32, kernels).linear(&x, weight, Some(&bias), &mut seen);
                    let worst = seen.iter().zip(&wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                    assert!(worst < 2e-5, "{kernels:?} {dtype} {rows}x{columns}: {worst}");
                }
            }
        }
    }

    #[test]
    fn attention_agrees_with_the_reference() {
        let heads = Heads { query: 6, key_value: 2, width: 10 };
        let (q, k, v) = (noise(3 * 60, 1), noise(7 * 20, 2), noise(7 * 20, 3));
        for compute in [Compute::F32, Compute::Bf16] {
            let (mut wanted, mut seen) = (vec![0.0; q.len()], vec![0.0; q.len()]);
            ScalarOps { compute }.attention(&q, &k, &v, heads, &mut wanted);
            CpuOps::new(compute).attention(&q, &k, &v, heads, &mut seen);
            assert_eq!(seen, wanted);
        }
    }
}
