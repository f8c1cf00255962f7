//! Stretches of a remote file that were read a little ahead, so that small reads do not each ask the
//! server.

use std::sync::{Arc, Mutex};

use segpack_formats::io::to_usize;

use crate::work::lock;

/// Bytes that are asked for at least: the headers of most shards are no longer.
const FIRST_WINDOW: u64 = 256 << 10;
/// Bytes that are asked for at most, where a file is read from its front to its back.
const LAST_WINDOW: u64 = 4 << 20;
/// Places of a file that are read at the same time without asking for anything twice.
const WINDOWS: usize = 4;

/// What was read of one file.
#[derive(Debug, Default)]
pub(super) struct Windows(Mutex<Vec<Window>>);

/// A stretch that was read.
#[derive(Debug, Clone)]
struct Window {
    start: u64,
    length: u64,
    /// All of them, or none where whoever asked took them all: then only the place is known, which
    /// tells that the file is read from its front to its back.
    bytes: Arc<Vec<u8>>,
}

impl Window {
    fn end(&self) -> u64 {
        self.start + self.length
    }
}

impl Windows {
    /// Copies bytes from `offset` on that are kept; how many.
    pub(super) fn copy(&self, to: &mut [u8], offset: u64) -> usize {
        let kept = {
            let windows = lock(&self.0);
            let mut found = windows.iter();
            let found = found.find(|w| (w.start..w.start + w.bytes.len() as u64).contains(&offset));
            found.cloned()
        };
        kept.map_or(0, |window| {
            let bytes = &window.bytes[to_usize(offset - window.start)..];
            let length = bytes.len().min(to.len());
            to[..length].copy_from_slice(&bytes[..length]);
            length
        })
    }

    /// How many bytes to ask for from `offset` on, where these are needed at least: more where a
    /// stretch ends there.
    pub(super) fn next_bytes(&self, offset: u64, needed: u64) -> u64 {
        let windows = lock(&self.0);
        let before = windows.iter().find(|w| w.end() == offset);
        let bytes = before.map_or(FIRST_WINDOW, |w| 2 * w.length);
        bytes.min(LAST_WINDOW).max(needed)
    }

    /// Keeps bytes of which the first `taken` went to whoever asked. They take the place of those
    /// that they continue, or of the oldest. Those of the header stay.
    pub(super) fn keep(&self, start: u64, bytes: Vec<u8>, taken: u64) {
        let length = bytes.len() as u64;
        let bytes = if length > taken { bytes } else { Vec::new() };
        let mut windows = lock(&self.0);
        windows.retain(|w| w.start == 0 || w.end() != start);
        if windows.len() >= WINDOWS {
            let oldest = windows.iter().position(|w| w.start > 0);
            windows.remove(oldest.unwrap_or_default());
        }
        windows.push(Window {
            start,
            length,
            bytes: Arc::new(bytes),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept_bytes(windows: &Windows) -> usize {
        lock(&windows.0).iter().map(|w| w.bytes.len()).sum()
    }

    #[test]
    fn what_was_read_ahead_is_there() {
        let windows = Windows::default();
        windows.keep(100, (0..50).collect(), 10);
        let mut to = [0; 20];
        assert_eq!(windows.copy(&mut to, 140), 10);
        assert_eq!(to[..10], [40, 41, 42, 43, 44, 45, 46, 47, 48, 49]);
        assert_eq!(windows.copy(&mut to, 150), 0);
        assert_eq!(windows.copy(&mut to, 99), 0);
    }

    #[test]
    fn what_is_read_in_order_is_asked_for_in_growing_stretches() {
        let windows = Windows::default();
        let mut offset = 1000;
        for wanted in [256 << 10, 512 << 10, 1 << 20, 2 << 20, 4 << 20, 4 << 20] {
            let bytes = windows.next_bytes(offset, 100);
            assert_eq!(bytes, wanted);
            windows.keep(offset, vec![0; to_usize(bytes)], 100);
            offset += bytes;
        }
        assert_eq!(windows.next_bytes(0, 5 << 20), 5 << 20);
    }

    /// A sample of large chunks from many shards would keep hundreds of megabytes.
    #[test]
    fn what_was_taken_whole_is_not_kept_but_still_continued() {
        let windows = Windows::default();
        for start in [1_u64 << 30, 2 << 30] {
            windows.keep(start, vec![0; 2 << 20], 2 << 20);
        }
        assert_eq!(kept_bytes(&windows), 0);
        assert_eq!(windows.copy(&mut [0; 1], 1 << 30), 0);
        assert_eq!(windows.next_bytes((1 << 30) + (2 << 20), 2 << 20), 4 << 20);
    }

    #[test]
    fn the_oldest_goes_and_the_header_stays() {
        let windows = Windows::default();
        for start in [0, 1000, 2000, 3000, 4000] {
            windows.keep(start, vec![1; 10], 1);
        }
        let there = |offset| windows.copy(&mut [0; 1], offset) == 1;
        assert_eq!(
            [0, 1000, 2000, 3000, 4000].map(there),
            [true, false, true, true, true]
        );
    }
}
