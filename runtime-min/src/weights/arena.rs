//! Large memory in huge pages, cut into blocks that threads may own.
#![expect(
    unsafe_code,
    reason = "disjoint blocks of one mapping, each with one owner"
)]

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use memmap2::{MmapOptions, MmapRaw};

use crate::error::RunError;

/// Size of a huge page on x86-64 and of the usual one on aarch64.
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// Blocks begin and end at multiples of this many bytes: direct reads need it.
pub const BLOCK_ALIGNMENT: usize = 4096;

/// One anonymous mapping. Memory is taken when it is first written, and given back with the last
/// block.
#[derive(Debug)]
pub struct Arena {
    mapping: Arc<MmapRaw>,
    next: usize,
    end: usize,
}

/// A part of an [`Arena`] with one owner. Zero until it is written.
pub struct Block {
    start: *mut u8,
    length: usize,
    _mapping: Arc<MmapRaw>,
}

// SAFETY: a block owns its bytes alone (`Arena::take` gives each out once), as a `Box<[u8]>` does
unsafe impl Send for Block {}
// SAFETY: as above; shared references only read
unsafe impl Sync for Block {}

impl Arena {
    /// Memory for blocks of so many bytes in all.
    ///
    /// # Errors
    /// `OutOfMemory` where the system refuses.
    pub fn new(bytes: usize) -> Result<Self, RunError> {
        // the system chooses the place: one more page, so that the first block can begin at a huge
        // one
        let length = bytes.next_multiple_of(BLOCK_ALIGNMENT) + HUGE_PAGE_BYTES;
        let mapping = MmapOptions::new()
            .len(length)
            .no_reserve_swap()
            .map_anon()
            .map_err(|source| RunError::OutOfMemory {
                bytes: bytes as u64,
                source,
            })?;
        #[cfg(target_os = "linux")]
        // where there are none, ordinary pages do
        let _ = mapping.advise(memmap2::Advice::HugePage);
        let next = mapping.as_ptr().align_offset(HUGE_PAGE_BYTES);
        Ok(Self {
            mapping: Arc::new(mapping.into()),
            next,
            end: length,
        })
    }

    /// The next block, of at least `bytes` bytes.
    ///
    /// # Errors
    /// `OutOfMemory` where the arena was made too small.
    pub fn take(&mut self, bytes: usize) -> Result<Block, RunError> {
        let length = bytes.next_multiple_of(BLOCK_ALIGNMENT);
        if self.end - self.next < length {
            let source = std::io::ErrorKind::OutOfMemory.into();
            return Err(RunError::OutOfMemory {
                bytes: bytes as u64,
                source,
            });
        }
        // SAFETY: `next + length <= end`, the mapping's length
        let start = unsafe { self.mapping.as_mut_ptr().add(self.next) };
        self.next += length;
        Ok(Block {
            start,
            length,
            _mapping: Arc::clone(&self.mapping),
        })
    }
}

impl Deref for Block {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: these bytes are mapped as long as `_mapping` lives, are initialised (anonymous
        // memory is zero), and belong to this block alone
        unsafe { std::slice::from_raw_parts(self.start, self.length) }
    }
}

impl DerefMut for Block {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; `&mut self` is the only way to them now
        unsafe { std::slice::from_raw_parts_mut(self.start, self.length) }
    }
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Block of {} bytes", self.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_aligned_zero_and_apart() {
        let mut arena = Arena::new(3 * 8192).unwrap();
        let mut blocks: Vec<Block> = (0..3).map(|_| arena.take(8000).unwrap()).collect();
        for (i, block) in blocks.iter_mut().enumerate() {
            assert_eq!(
                (block.len(), block.as_ptr().align_offset(BLOCK_ALIGNMENT)),
                (8192, 0)
            );
            assert!(block.iter().all(|b| *b == 0));
            block.fill(u8::try_from(i + 1).unwrap());
        }
        drop(arena);
        std::thread::scope(|scope| {
            for (i, block) in blocks.iter().enumerate() {
                scope.spawn(move || assert!(block.iter().all(|b| usize::from(*b) == i + 1)));
            }
        });
    }

    #[test]
    fn an_arena_ends() {
        let mut arena = Arena::new(4096).unwrap();
        // what is rounded up to a huge page at its start may be used too, no more
        let taken = (0..2000).take_while(|_| arena.take(4096).is_ok()).count();
        assert!((1..=513).contains(&taken), "{taken}");
        assert!(matches!(
            Arena::new(usize::MAX / 4),
            Err(RunError::OutOfMemory { .. })
        ));
    }
}
