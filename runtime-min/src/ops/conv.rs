//! Convolution over two axes as one linear layer: the values under each kernel are copied next to
//! each other (im2col).

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
fn unroll(x: &[f32], [rows, columns]: [usize; 2], channels: usize, to: &mut [f32]) {
    let mut to = to.chunks_exact_mut(channels.max(1));
    for row in 0..Conv2d::side(rows) {
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
}
