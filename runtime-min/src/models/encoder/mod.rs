//! What the encoders of audio and pictures share: their tensors, found by name and compared with the
//! configuration; their memory; the pieces of a transformer block.
//!
//! An encoder keeps one block's weights at a time, and gives all its memory back when it is done.

mod layers;
mod memory;
mod tensors;

pub use self::memory::{EncoderContext, EncoderSettings};

pub(crate) use self::layers::{Affine, BATCH, Dense, Mlp, Projection, Scratch, SelfAttention};
pub(crate) use self::memory::EncoderLoader;
pub(crate) use self::tensors::EncoderTensors;

/// Intermediate results of an encoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum EncoderStage {
    /// `[tokens, width]`: what enters the first block.
    Input,
    /// `[tokens, width]` after this block.
    Block(usize),
    /// `[rows, output]`: what is added to the hidden states after this layer of the decoder.
    Deepstack(usize),
    /// `[rows, output]`: what takes the placeholders' place.
    Output,
}

/// Hears of intermediate results, row-major.
pub trait EncoderObserver {
    /// A stage is complete.
    fn stage(&mut self, stage: EncoderStage, values: &[f32]);
}

/// Observes nothing.
impl EncoderObserver for () {
    fn stage(&mut self, _: EncoderStage, _: &[f32]) {}
}
