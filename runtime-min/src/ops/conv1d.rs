//! Convolution over time as linear layers: the rows under each kernel are copied next to each other
//! (im2col), some rows of the result at a time.
//!
//! Activations are `[time, channels]`. Checkpoints have the kernel last; [`Conv1d::causal`] and
//! [`Conv1d::transposed`] put weights into the order that is computed with.

use rayon::prelude::*;
use segpack_formats::Result;
use segpack_formats::io::CancelToken;
use segpack_formats::numeric::FloatDtype;

use super::Ops;
use crate::tensor::{Linear, Matrix};

/// Values that are copied next to each other at a time, at most, if these are [`ROWS`] or more rows.
const UNROLLED: usize = 2 << 20;
/// Rows of the result that are computed at a time, at least: with fewer the weights would be read too
/// often.
const ROWS: usize = 512;

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
        let channels = weight.columns / kernel;
        let stored = |output: usize, tap: usize, channel: usize| {
            output * weight.columns + channel * kernel + tap
        };
        Self {
            dtype: weight.dtype,
            weight: reorder(weight, [weight.rows, kernel, channels], stored),
            bias,
            channels,
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
        let stored = |result: usize, row: usize, channel: usize| {
            let (step, output) = (result / outputs, result % outputs);
            let tap = step + (rows - 1 - row) * stride;
            channel * weight.columns + output * kernel + tap
        };
        Self {
            dtype: weight.dtype,
            weight: reorder(weight, [stride * outputs, rows, channels], stored),
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

    /// Values of the memory that is reused, at most.
    #[must_use]
    pub fn unrolled(&self) -> usize {
        UNROLLED.max(ROWS * self.kernel * self.channels)
    }

    /// `out` = the convolution of `x`, `[history + rows, channels]`; `out` becomes `[rows, outputs]`.
    /// `unrolled` is reused memory.
    ///
    /// # Errors
    /// `Interrupted`.
    pub fn run(
        &self,
        ops: &impl Ops,
        x: &[f32],
        unrolled: &mut Vec<f32>,
        out: &mut Vec<f32>,
        stop: &CancelToken,
    ) -> Result<()> {
        let width = self.kernel * self.channels;
        let rows = (x.len() / self.channels).saturating_sub(self.history());
        out.resize(rows * self.outputs(), 0.0);
        let some = (UNROLLED / width).max(ROWS);
        for (number, out) in out.chunks_mut(some * self.outputs()).enumerate() {
            let rows = out.len() / self.outputs();
            let x = &x[number * some * self.channels..][..(rows + self.history()) * self.channels];
            let x = match self.kernel {
                1 => x,
                _ => {
                    unrolled.resize(rows * width, 0.0);
                    self.unroll(x, unrolled);
                    &unrolled[..]
                }
            };
            let weight = Matrix {
                dtype: self.dtype,
                bytes: &self.weight,
                rows: self.outputs(),
                columns: width,
            };
            let bias = Some(&self.bias[..]);
            ops.linears_until(
                &mut [Linear {
                    x,
                    weight,
                    bias,
                    out,
                }],
                stop,
            )?;
        }
        Ok(())
    }

    /// For every row of the result the rows under the kernel.
    fn unroll(&self, x: &[f32], to: &mut [f32]) {
        let (channels, kernel) = (self.channels, self.kernel);
        let some = 64;
        to.par_chunks_mut(some * kernel * channels)
            .enumerate()
            .for_each(|(task, to)| {
                for (row, to) in to.chunks_exact_mut(kernel * channels).enumerate() {
                    let first = task * some + row;
                    for (tap, to) in to.chunks_exact_mut(channels).enumerate() {
                        let row = first + tap * self.dilation;
                        to.copy_from_slice(&x[row * channels..][..channels]);
                    }
                }
            });
    }
}

/// The values of a weight in the order of these three indexes, each from where `stored` says.
fn reorder(
    weight: Matrix<'_>,
    [first, second, third]: [usize; 3],
    stored: impl Fn(usize, usize, usize) -> usize + Sync,
) -> Vec<u8> {
    let size = weight.dtype.byte_width();
    let mut bytes = vec![0; weight.bytes.len()];
    assert_eq!(first * second * third * size, bytes.len());
    bytes
        .par_chunks_mut((second * third * size).max(1))
        .enumerate()
        .for_each(|(i, row)| {
            for (n, to) in row.chunks_exact_mut(size).enumerate() {
                let at = stored(i, n / third, n % third) * size;
                to.copy_from_slice(&weight.bytes[at..at + size]);
            }
        });
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
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

    fn check(conv: &Conv1d, x: &[f32], wanted: &[f32]) {
        let (mut unrolled, mut out, stop) = (Vec::new(), Vec::new(), CancelToken::default());
        let scalar = ScalarOps::default();
        for fast in [false, true] {
            match fast {
                false => conv.run(&scalar, x, &mut unrolled, &mut out, &stop),
                true => conv.run(
                    &CpuOps::new(Compute::F32),
                    x,
                    &mut unrolled,
                    &mut out,
                    &stop,
                ),
            }
            .unwrap();
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
