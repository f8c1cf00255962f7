//! Scratch memory that threads keep, so that no kernel touches fresh memory: a pool of buffers per
//! thread, one for each key.

use std::cell::RefCell;

use super::simd::{self, LANES, Line};

/// What a buffer is for. Kernels that run one inside the other use different ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    /// Packed activations of a whole batch of linear layers, of the thread that calls.
    Batch,
    /// Packed activations of one task.
    Inputs,
    /// Widened weights, or keys, of one block.
    Panel,
    /// A second panel: values of one block.
    Values,
    /// Partial results.
    Sums,
    /// What is carried from block to block.
    States,
}

/// How many keys there are.
const KEYS: usize = 6;

thread_local! {
    static POOL: RefCell<[Vec<Line>; KEYS]> = RefCell::default();
}

/// A buffer of this thread's pool, which gets it back when it is dropped. Until then the thread has
/// another, empty one of the same key.
#[derive(Debug)]
pub(super) struct Buffer {
    key: Key,
    lines: Vec<Line>,
}

impl Buffer {
    /// The buffer of this key. What is in it is left over from before.
    pub(super) fn take(key: Key) -> Self {
        let lines = POOL.with_borrow_mut(|pool| std::mem::take(&mut pool[key as usize]));
        Self { key, lines }
    }

    /// The first `count` vectors; the buffer grows if it must.
    pub(super) fn lines(&mut self, count: usize) -> &mut [Line] {
        if self.lines.len() < count {
            self.lines.resize(count, Line::ZERO);
        }
        &mut self.lines[..count]
    }

    /// The first `count` values; the buffer grows if it must.
    pub(super) fn values(&mut self, count: usize) -> &mut [f32] {
        &mut simd::values_mut(self.lines(count.div_ceil(LANES)))[..count]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let lines = std::mem::take(&mut self.lines);
        POOL.with_borrow_mut(|pool| pool[self.key as usize] = lines);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_and_a_second_one_is_apart() {
        std::thread::spawn(|| {
            let mut first = Buffer::take(Key::Sums);
            first.values(20).fill(1.0);
            assert_eq!(first.lines(2).len(), 2);
            let mut second = Buffer::take(Key::Sums);
            second.values(3).fill(2.0);
            drop(second);
            drop(first);
            assert_eq!(Buffer::take(Key::Sums).values(20), [1.0; 20]);
            assert_eq!(Buffer::take(Key::Panel).lines(0).len(), 0);
        })
        .join()
        .unwrap();
    }
}
