//! What operations, kernels and devices share: the precision of activations, matrices of weights,
//! the heads of an attention layer.

use segpack_formats::numeric::{FloatDtype, bf16};

/// In which precision activations are computed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Compute {
    /// f32 throughout: the strict oracle.
    #[default]
    F32,
    /// Rounded to bf16 wherever the official bf16 code rounds.
    Bf16,
}

impl Compute {
    /// Rounds one value to the precision of the activations.
    #[inline]
    pub fn round(self, x: f32) -> f32 {
        match self {
            Self::F32 => x,
            Self::Bf16 => bf16::round(x),
        }
    }

    /// Rounds every value.
    pub fn round_all(self, values: &mut [f32]) {
        if self == Self::Bf16 {
            values.iter_mut().for_each(|x| *x = bf16::round(*x));
        }
    }
}

/// A weight matrix `[rows, columns]` (PyTorch's `[out, in]`) as its little-endian bytes.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a> {
    /// Element type.
    pub dtype: FloatDtype,
    /// Exactly rows × columns values.
    pub bytes: &'a [u8],
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub columns: usize,
}

impl<'a> Matrix<'a> {
    /// The bytes of one row.
    pub fn row(&self, row: usize) -> &'a [u8] {
        let length = self.bytes.len() / self.rows.max(1);
        &self.bytes[row * length..(row + 1) * length]
    }
}

/// The heads of an attention layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// Query heads.
    pub query: usize,
    /// Key and value heads; query head h reads number h / (query / key_value).
    pub key_value: usize,
    /// Width of a head.
    pub width: usize,
}

/// One linear layer: `out[t] = x[t] · Wᵀ + bias`.
#[derive(Debug)]
pub struct Linear<'a> {
    /// `[tokens, columns]`
    pub x: &'a [f32],
    /// The weight.
    pub weight: Matrix<'a>,
    /// `[rows]`
    pub bias: Option<&'a [f32]>,
    /// `[tokens, rows]`
    pub out: &'a mut [f32],
}
