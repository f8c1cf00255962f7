//! Convolution over two axes as one linear layer: the values under each kernel are copied next to
//! each other (im2col).

use rayon::prelude::*;
use segpack_formats::Result;
use segpack_formats::io::CancelToken;

use super::Ops;
use crate::tensor::{Linear, Matrix};

/// Side of the kernels.
const SIDE: usize = 3;

/// Convolution with a kernel of 3 × 3, stride 2, a zero around the input.
#[derive(Debug, Clone, Copy)]
pub struct Conv2d<'a> {
    /// `[output channels, 3 × 3 × input channels]`: the axes of the input in its order, channels
    /// last. Checkpoints have channels before the kernel: see [`Conv2d::channels_last`].
    pub weight: Matrix<'a>,
    /// `[output channels]`
    pub bias: &'a [f32],
}

impl Conv2d<'_> {
    /// Places along an axis that had so many.
    #[must_use]
    pub fn side(input: usize) -> usize {
        input.div_ceil(2)
    }

    /// The bytes of a weight `[output channels, input channels, 3, 3]` with the channels last.
    #[must_use]
    pub fn channels_last(weight: Matrix<'_>) -> Vec<u8> {
        let value = weight.dtype.byte_width();
        let kernel = SIDE * SIDE;
        let channels = weight.columns / kernel;
        let mut bytes = Vec::with_capacity(weight.bytes.len());
        for row in 0..weight.rows {
            let row = weight.row(row);
            for place in 0..kernel {
                for channel in 0..channels {
                    let at = (channel * kernel + place) * value;
                    bytes.extend_from_slice(&row[at..at + value]);
                }
            }
        }
        bytes
    }

    /// `out` = the convolution of `x`, `[rows, columns, channels]`. `out` is `[rows', columns',
    /// output channels]`, its sides as [`side`](Self::side) tells; `unrolled` is reused memory.
    ///
    /// # Errors
    /// `Interrupted`.
    pub fn run(
        &self,
        ops: &impl Ops,
        x: &[f32],
        [rows, columns]: [usize; 2],
        unrolled: &mut Vec<f32>,
        out: &mut Vec<f32>,
        stop: &CancelToken,
    ) -> Result<()> {
        let places = Self::side(rows) * Self::side(columns);
        unrolled.resize(places * self.weight.columns, 0.0);
        out.resize(places * self.weight.rows, 0.0);
        unroll(
            x,
            [rows, columns],
            self.weight.columns / (SIDE * SIDE),
            unrolled,
        );
        ops.linears_until(
            &mut [Linear {
                x: unrolled,
                weight: self.weight,
                bias: Some(self.bias),
                out,
            }],
            stop,
        )
    }
}

/// For every place of the output the values under the kernel, `[3, 3, channels]`.
fn unroll(x: &[f32], sides: [usize; 2], channels: usize, to: &mut [f32]) {
    let row = Conv2d::side(sides[1]) * SIDE * SIDE * channels;
    to.par_chunks_mut(row.max(1))
        .enumerate()
        .for_each(|(number, to)| unroll_row(x, sides, channels, number, to));
}

/// One row of the output.
fn unroll_row(x: &[f32], [rows, columns]: [usize; 2], channels: usize, row: usize, to: &mut [f32]) {
    let mut to = to.chunks_exact_mut(channels.max(1));
    for column in 0..Conv2d::side(columns) {
        for place in 0..SIDE * SIDE {
            let Some(to) = to.next() else { return };
            // the zeros around the input are before the first and after the last
            let at = (2 * row + place / SIDE, 2 * column + place % SIDE);
            match (at.0.checked_sub(1), at.1.checked_sub(1)) {
                (Some(r), Some(c)) if r < rows && c < columns => {
                    let from = (r * columns + c) * channels;
                    to.copy_from_slice(&x[from..from + channels]);
                }
                _ => to.fill(0.0),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use segpack_formats::numeric::FloatDtype;

    use super::*;
    use crate::ops::{CpuOps, ScalarOps};
    use crate::samples::{bytes, noise};
    use crate::tensor::Compute;

    /// Straight from the definition.
    fn direct(x: &[f32], [rows, columns]: [usize; 2], weight: &[f32], bias: &[f32]) -> Vec<f32> {
        let outputs = bias.len();
        let channels = weight.len() / outputs / 9;
        let mut out = Vec::new();
        for (r, c) in
            (0..rows.div_ceil(2)).flat_map(|r| (0..columns.div_ceil(2)).map(move |c| (r, c)))
        {
            for o in 0..outputs {
                let mut sum = bias[o];
                for (i, kr, kc) in (0..channels * 9).map(|n| (n / 9, n / 3 % 3, n % 3)) {
                    let (y, x_at) = (2 * r + kr, 2 * c + kc);
                    if (1..=rows).contains(&y) && (1..=columns).contains(&x_at) {
                        let at = ((y - 1) * columns + x_at - 1) * channels + i;
                        sum += x[at] * weight[(o * channels + i) * 9 + kr * 3 + kc];
                    }
                }
                out.push(sum);
            }
        }
        out
    }

    #[test]
    fn it_is_a_convolution() {
        for (rows, columns, channels) in [(1, 1, 1), (4, 7, 1), (5, 6, 3), (16, 9, 6)] {
            let outputs = 5;
            let weight = noise(outputs * channels * 9, 3);
            let (x, bias) = (noise(rows * columns * channels, 5), noise(outputs, 7));
            let wanted = direct(&x, [rows, columns], &weight, &bias);
            let stored = bytes(FloatDtype::F32, &weight);
            let of = |bytes: &'static [u8]| Matrix {
                dtype: FloatDtype::F32,
                bytes,
                rows: outputs,
                columns: channels * 9,
            };
            let stored: &'static [u8] = stored.leak();
            let last: &'static [u8] = Conv2d::channels_last(of(stored)).leak();
            let conv = Conv2d {
                weight: of(last),
                bias: &bias,
            };
            let (mut unrolled, mut out, stop) = (Vec::new(), Vec::new(), CancelToken::default());
            let scalar = ScalarOps::default();
            conv.run(&scalar, &x, [rows, columns], &mut unrolled, &mut out, &stop)
                .unwrap();
            let worst = |out: &[f32]| {
                let pairs = out.iter().zip(&wanted);
                pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
            };
            assert!(out.len() == wanted.len() && worst(&out) < 1e-5);
            let fast = CpuOps::new(Compute::F32);
            conv.run(&fast, &x, [rows, columns], &mut unrolled, &mut out, &stop)
                .unwrap();
            assert!(worst(&out) < 1e-5);
        }
    }
}
