//! Scratch that threads keep, so that no kernel touches fresh memory.

use std::cell::RefCell;

use super::attention::State;
use super::simd::Line;

/// The buffers of one thread. What is in them is left over from before.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    /// Widened weights, or keys, of one block.
    pub panel: Vec<Line>,
    /// A second panel: values of one block.
    pub values: Vec<Line>,
    /// Partial results.
    pub sums: Vec<Line>,
    /// Packed activations.
    pub x: Vec<f32>,
    /// Of online softmaxes.
    pub states: Vec<State>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// The scratch of this thread, to be given back with [`keep`]. Until then the thread has another,
/// empty one.
pub(super) fn take() -> Scratch {
    SCRATCH.take()
}

/// Keeps scratch for the next [`take`].
pub(super) fn keep(scratch: Scratch) {
    SCRATCH.replace(scratch);
}

/// The first `length` elements; the buffer grows if it must.
pub(super) fn first<T: Clone>(buffer: &mut Vec<T>, length: usize, blank: T) -> &mut [T] {
    if buffer.len() < length {
        buffer.resize(length, blank);
    }
    &mut buffer[..length]
}
