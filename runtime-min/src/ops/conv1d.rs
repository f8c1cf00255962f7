//! Convolution over time, as a linear layer of the rows under each kernel.
//!
//! Activations are `[time, channels]`. Checkpoints have the kernel last; [`Conv1d::causal`] and
//! [`Conv1d::transposed`] put weights into the order that is computed with.

use rayon::prelude::*;
use segpack_formats::Result;
use segpack_formats::io::CancelToken;
use segpack_formats::numeric::FloatDtype;

use super::Ops;
use crate::tensor::{Convolution, Matrix, SnakeBeta};

/// Bytes of a line of the processor's caches.
const CACHE_LINE: usize = 64;

/// A convolution over rows of channels, of which the caller keeps those that lie before the first
/// result: see [`history`](Self::history).
#[derive(Debug, Clone)]
pub struct Conv1d {
    dtype: FloatDtype,
    /// `[outputs, kernel × channels]`
    weight: Vec<u8>,
    /// `[outputs]`
    bias: Vec<f32>,
    channels: usize,
    kernel: usize,
    dilation: usize,
}

impl Conv1d {
    /// Of a stored weight `[outputs, channels, kernel]`, as a matrix `[outputs, channels × kernel]`:
    /// each result sees its own row of the input and those before it, `dilation` rows apart.
    ///
    /// # Panics
    /// Where the kernel is no divisor of the matrix' columns.
    #[must_use]
    pub fn causal(weight: Matrix<'_>, bias: Vec<f32>, kernel: usize, dilation: usize) -> Self {
        assert!(weight.columns.is_multiple_of(kernel));
        Self {
            dtype: weight.dtype,
            weight: match weight.dtype {
                FloatDtype::BF16 | FloatDtype::F16 => kernel_first::<2>(weight, kernel),
                FloatDtype::F32 => kernel_first::<4>(weight, kernel),
            },
            bias,
            channels: weight.columns / kernel,
            kernel,
            dilation,
        }
    }

    /// Of a stored weight `[channels, outputs, kernel]` of a transposed convolution, as a matrix
    /// `[channels, outputs × kernel]`. `stride` is the kernel's length or half of it: rows of the
    /// result, `stride` for each row of the input, see one row of the input, or it and the one before.
    /// A row of the result that has `outputs × stride` values is `stride` rows of `outputs`.
    ///
    /// # Panics
    /// Where the kernel is no divisor of the matrix' columns, or no one or two strides long.
    #[must_use]
    pub fn transposed(weight: Matrix<'_>, bias: &[f32], kernel: usize, stride: usize) -> Self {
        let (channels, outputs) = (weight.rows, bias.len());
        let rows = kernel / stride;
        assert!(rows * stride == kernel && (1..=2).contains(&rows));
        assert_eq!(weight.columns, outputs * kernel);
        // of two rows, the one before is seen by the second half of the kernel
        let stored = |result: usize, row: usize| {
            let (step, output) = (result / outputs, result % outputs);
            output * kernel + step + (rows - 1 - row) * stride
        };
        let columns = (0..stride * outputs)
            .flat_map(|result| (0..rows).map(move |row| stored(result, row)))
            .collect();
        Self {
            dtype: weight.dtype,
            weight: match weight.dtype {
                FloatDtype::BF16 | FloatDtype::F16 => columns_as_rows::<2>(weight, columns),
                FloatDtype::F32 => columns_as_rows::<4>(weight, columns),
            },
            bias: bias.repeat(stride),
            channels,
            kernel: rows,
            dilation: 1,
        }
    }

    /// Rows before the first result that it sees.
    #[must_use]
    pub fn history(&self) -> usize {
        (self.kernel - 1) * self.dilation
    }

    /// Channels of a row.
    #[must_use]
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// Values of a row of the result.
    #[must_use]
    pub fn outputs(&self) -> usize {
        self.bias.len()
    }

    /// Bytes of memory that weights and bias take.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.weight.len() + 4 * self.bias.len()
    }

    /// `out` = the convolution of the rows `before` and those of `x`, or `out` plus it; each row goes
    /// through `snake` first. `out` is `[rows - history, outputs]`.
    ///
    /// # Errors
    /// `Interrupted`.
    ///
    /// # Panics
    /// Where the sizes do not fit together.
    pub fn run(
        &self,
        ops: &impl Ops,
        [before, x]: [&[f32]; 2],
        snake: Option<SnakeBeta<'_>>,
        into: Onto<'_>,
        stop: &CancelToken,
    ) -> Result<()> {
        let (out, adds) = match into {
            Onto::New(out) => {
                let rows = (before.len() + x.len()) / self.channels;
                let results = rows.saturating_sub(self.history());
                out.resize(results * self.outputs(), 0.0);
                (&mut out[..], false)
            }
            Onto::Sum(out) => (out, true),
        };
        let weight = Matrix {
            dtype: self.dtype,
            bytes: &self.weight,
            rows: self.outputs(),
            columns: self.kernel * self.channels,
        };
        let convolution = Convolution {
            before,
            x,
            snake,
            channels: self.channels,
            dilation: self.dilation,
            weight,
            bias: Some(&self.bias),
            out,
            adds,
        };
        ops.convolve_until(convolution, stop)
    }
}

/// Where results go.
#[derive(Debug)]
pub enum Onto<'a> {
    /// They are all that it has.
    New(&'a mut Vec<f32>),
    /// They are added to it, rounded once more.
    Sum(&'a mut [f32]),
}

/// Of every row of a weight, `[rows, channels × kernel]`, the values as `[kernel, channels]`.
///
/// Values have `SIZE` bytes: a copy of unknown length would be a call for each.
fn kernel_first<const SIZE: usize>(weight: Matrix<'_>, kernel: usize) -> Vec<u8> {
    let mut bytes = vec![0; weight.bytes.len()];
    let stored = weight.bytes.as_chunks::<SIZE>().0;
    let rows = bytes.as_chunks_mut::<SIZE>().0;
    let rows = rows.par_chunks_mut(weight.columns.max(1));
    rows.zip(stored.par_chunks(weight.columns.max(1)))
        .for_each(|(row, stored)| {
            let channels = stored.len() / kernel;
            for (tap, to) in row.chunks_exact_mut(channels).enumerate() {
                for (to, stored) in to.iter_mut().zip(stored.chunks_exact(kernel)) {
                    *to = stored[tap];
                }
            }
        });
    bytes
}

/// The columns of these numbers as rows, all columns of the weight once.
///
/// Each task takes columns that lie in one cache line of each row: one by one they would read every
/// line many times.
fn columns_as_rows<const SIZE: usize>(weight: Matrix<'_>, columns: Vec<usize>) -> Vec<u8> {
    let mut bytes = vec![0; weight.bytes.len()];
    let stored = weight.bytes.as_chunks::<SIZE>().0;
    let rows = bytes.as_chunks_mut::<SIZE>().0;
    let rows = rows.chunks_exact_mut(weight.rows.max(1));
    let mut rows: Vec<(usize, &mut [[u8; SIZE]])> = columns.into_iter().zip(rows).collect();
    rows.sort_unstable_by_key(|(column, _)| *column);
    rows.par_chunks_mut(CACHE_LINE / SIZE).for_each(|rows| {
        for (channel, stored) in stored.chunks_exact(weight.columns).enumerate() {
            for (column, row) in &mut *rows {
                row[channel] = stored[*column];
            }
        }
    });
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Kernels;
    use crate::ops::{CpuOps, ScalarOps};
    use crate::samples::{bytes, noise};
    use crate::tensor::Compute;

    fn stored(rows: usize, columns: usize, seed: u32) -> (Vec<f32>, Vec<u8>) {
        let values = noise(rows * columns, seed);
        let bytes = bytes(FloatDtype::F32, &values);
        (values, bytes)
    }

    fn matrix(bytes: &[u8], rows: usize) -> Matrix<'_> {
        Matrix {
            dtype: FloatDtype::F32,
            bytes,
            rows,
            columns: bytes.len() / 4 / rows,
        }
    }

    /// What the rows give, after they went through `snake`; added to `onto` if there is some. Some of
    /// the rows are given as those before.
    fn run(
        conv: &Conv1d,
        ops: &impl Ops,
        x: &[f32],
        snake: Option<SnakeBeta<'_>>,
        onto: Option<&[f32]>,
    ) -> Vec<f32> {
        let rows = x.len() / conv.channels;
        let (before, x) = x.split_at(rows.min(conv.history() + 3) * conv.channels);
        let (mut out, stop) = (onto.unwrap_or_default().to_vec(), CancelToken::default());
        let into = match onto {
            None => Onto::New(&mut out),
            Some(_) => Onto::Sum(&mut out),
        };
        conv.run(ops, [before, x], snake, into, &stop).unwrap();
        out
    }

    fn check(conv: &Conv1d, x: &[f32], wanted: &[f32]) {
        for fast in [false, true] {
            let out = match fast {
                false => run(conv, &ScalarOps::default(), x, None, None),
                true => run(conv, &CpuOps::new(Compute::F32), x, None, None),
            };
            assert_eq!(out.len(), wanted.len());
            let pairs = out.iter().zip(wanted);
            let worst = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst < 2e-5, "{worst}");
        }
    }

    #[test]
    fn a_causal_convolution_sees_what_came_before() {
        for (time, channels, outputs, kernel, dilation) in [
            (1, 1, 1, 7, 1),
            (9, 5, 3, 7, 3),
            (700, 4, 20, 7, 9),
            (6, 3, 2, 1, 1),
        ] {
            let (weight, bytes) = stored(outputs, channels * kernel, 3);
            let (x, bias) = (noise(time * channels, 5), noise(outputs, 7));
            let conv = Conv1d::causal(matrix(&bytes, outputs), bias.clone(), kernel, dilation);
            let mut wanted = Vec::new();
            for (t, o) in (0..time).flat_map(|t| (0..outputs).map(move |o| (t, o))) {
                let mut sum = bias[o];
                for (c, k) in (0..channels).flat_map(|c| (0..kernel).map(move |k| (c, k))) {
                    if let Some(at) = (t + k * dilation).checked_sub((kernel - 1) * dilation) {
                        sum += x[at * channels + c] * weight[(o * channels + c) * kernel + k];
                    }
                }
                wanted.push(sum);
            }
            let mut padded = vec![0.0; conv.history() * channels];
            padded.extend(&x);
            check(&conv, &padded, &wanted);
        }
    }

    #[test]
    fn its_bits_are_those_of_a_linear_layer_of_the_rows_next_to_each_other() {
        for (time, channels, outputs, kernel, dilation) in
            [(600, 48, 40, 7, 9), (30, 20, 33, 3, 2), (2, 16, 16, 2, 1)]
        {
            let (_, bytes) = stored(outputs, channels * kernel, 3);
            let x = noise((time + (kernel - 1) * dilation) * channels, 5);
            let conv = Conv1d::causal(matrix(&bytes, outputs), noise(outputs, 7), kernel, dilation);
            let under_kernel = |t| (0..kernel).map(move |tap| t + tap * dilation);
            let rows = (0..time).flat_map(under_kernel);
            let inputs: Vec<f32> = rows
                .flat_map(|row| &x[row * channels..][..channels])
                .copied()
                .collect();
            let weight = matrix(&conv.weight, outputs);
            for kernels in Kernels::all() {
                for compute in [Compute::F32, Compute::Bf16] {
                    let ops = CpuOps::with_kernels(compute, kernels);
                    let seen = run(&conv, &ops, &x, None, None);
                    let mut wanted = vec![0.0; time * outputs];
                    ops.linear(&inputs, weight, Some(&conv.bias), &mut wanted);
                    assert_eq!(seen, wanted, "{kernels:?}, {compute:?}");
                }
            }
        }
    }

    #[test]
    fn rows_go_through_the_snake_first_and_results_are_added_last() {
        for (time, channels, kernel, dilation) in [(600, 48, 7, 9), (30, 20, 1, 1), (5, 3, 3, 2)] {
            let (_, bytes) = stored(channels, channels * kernel, 3);
            let mut x = noise((time + (kernel - 1) * dilation) * channels, 5);
            // what cannot be reduced in vectors
            x[7] = 3e6;
            let [alpha, inverse_beta] = [11, 13].map(|seed| noise(channels, seed));
            let snake = SnakeBeta {
                alpha: &alpha,
                inverse_beta: &inverse_beta,
            };
            let onto = noise(time * channels, 17);
            let bias = noise(channels, 7);
            let conv = Conv1d::causal(matrix(&bytes, channels), bias, kernel, dilation);
            let every_kernel = Kernels::all();
            for (compute, kernels) in [Compute::F32, Compute::Bf16]
                .into_iter()
                .flat_map(|compute| every_kernel.iter().map(move |kernels| (compute, *kernels)))
            {
                let ops = CpuOps::with_kernels(compute, kernels);
                let mut active = x.clone();
                ops.snake(&mut active, &alpha, &inverse_beta);
                let back = run(&conv, &ops, &active, None, None);
                let mut wanted = onto.clone();
                ops.add(&mut wanted, &back);
                let seen = run(&conv, &ops, &x, Some(snake), Some(&onto));
                assert_eq!(seen, wanted, "{kernels:?}, {compute:?}");
                let scalar = ScalarOps { compute };
                let slow = run(&conv, &scalar, &x, Some(snake), Some(&onto));
                let pairs = seen.iter().zip(&slow);
                let worst = pairs.map(|(a, b)| (a - b).abs() / b.abs().max(1.0));
                let gate = if compute == Compute::F32 { 1e-4 } else { 2e-2 };
                assert!(worst.fold(0.0, f32::max) < gate, "{kernels:?}, {compute:?}");
            }
        }
    }

    #[test]
    fn a_transposed_convolution_is_cropped_on_both_sides() {
        for (time, channels, outputs, kernel, stride) in [
            (1, 3, 2, 2, 2),
            (5, 4, 3, 2, 2),
            (2, 1, 1, 2, 1),
            (9, 5, 7, 16, 8),
            (1, 2, 2, 6, 3),
        ] {
            let (weight, bytes) = stored(channels, outputs * kernel, 3);
            let (x, bias) = (noise(time * channels, 5), noise(outputs, 7));
            let conv = Conv1d::transposed(matrix(&bytes, channels), &bias, kernel, stride);
            // all that is defined, then what the crop leaves
            let full = (time - 1) * stride + kernel;
            let mut wanted = bias.repeat(full);
            for (i, t, c) in (0..time)
                .flat_map(|i| (0..kernel).map(move |t| (i, t)))
                .flat_map(|(i, t)| (0..channels).map(move |c| (i, t, c)))
            {
                for o in 0..outputs {
                    wanted[(i * stride + t) * outputs + o] +=
                        x[i * channels + c] * weight[(c * outputs + o) * kernel + t];
                }
            }
            let crop = kernel - stride;
            check(&conv, &x, &wanted[crop * outputs..(full - crop) * outputs]);
        }
    }
}
