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

/// How tokens attend to those before them.
#[derive(Debug, Clone, Copy)]
pub struct Attending<'a> {
    /// What scores are multiplied by.
    pub scale: f32,
    /// Last positions that each token sees, its own among them.
    pub window: usize,
    /// `[query]`: a further score of each head's softmax, which no value belongs to.
    pub sinks: Option<&'a [f32]>,
}

impl Attending<'_> {
    /// To all positions, scaled by `width^-0.5`.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        reason = "a head is narrow; applied in f32, as torch does"
    )]
    pub fn to_all(heads: Heads) -> Self {
        Self {
            scale: (heads.width as f64).powf(-0.5) as f32,
            window: usize::MAX,
            sinks: None,
        }
    }

    /// Whether each of so many positions is seen by those behind it, and nothing else has a score.
    pub fn is_to_all(&self, positions: usize) -> bool {
        self.seen_by_all(positions) == positions
    }

    /// Of so many positions the first that see all before them, where nothing else has a score.
    pub fn seen_by_all(&self, positions: usize) -> usize {
        match self.sinks {
            Some(_) => 0,
            None => self.window.min(positions),
        }
    }
}

/// Which values of heads are turned by positions, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RotaryLayout {
    /// Width of a head.
    pub width: usize,
    /// Values at its beginning that are turned: even, `width` at most.
    pub turned: usize,
    /// Whether 2j and 2j + 1 are turned together, and not j and j + turned / 2.
    pub is_of_neighbours: bool,
    /// Whether it is computed in f32 and rounded once.
    pub is_in_f32: bool,
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

/// A convolution over time: a linear layer whose row t of inputs is the rows t, t + `dilation`, and so
/// on of `before` and `x`, next to each other, as many as the kernel has.
#[derive(Debug)]
pub struct Convolution<'a> {
    /// Rows that lie before those of `x`, `[…, channels]`.
    pub before: &'a [f32],
    /// `[…, channels]`; with those before `[tokens + (kernel - 1) × dilation, channels]`.
    pub x: &'a [f32],
    /// What is done to every row first.
    pub snake: Option<SnakeBeta<'a>>,
    /// Channels of a row.
    pub channels: usize,
    /// From a row under the kernel to the next.
    pub dilation: usize,
    /// `[rows, kernel × channels]`
    pub weight: Matrix<'a>,
    /// `[rows]`
    pub bias: Option<&'a [f32]>,
    /// `[tokens, rows]`
    pub out: &'a mut [f32],
    /// Whether results are added to what `out` has, rounded once more.
    pub adds: bool,
}

/// `x + inverse_beta · sin²(x · alpha)` of every channel.
#[derive(Debug, Clone, Copy)]
pub struct SnakeBeta<'a> {
    /// `[channels]`
    pub alpha: &'a [f32],
    /// `[channels]`
    pub inverse_beta: &'a [f32],
}
