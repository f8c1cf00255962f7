//! In which order the columns of a product are added up.

use std::ops::Range;

use super::simd::LANES;
use crate::tensor::Compute;

/// Columns that are added up together; their sum is added to that of the columns before. A multiple
/// of [`WORDS`].
pub(super) const BLOCK: usize = 2048;
/// Columns of a chunk: a vector of pairs.
pub(super) const WORDS: usize = 2 * LANES;
/// Columns that a tile goes through at a time under `Compute::Bf16`.
const STEPS: usize = 256;

/// The order of the columns of one block.
///
/// Under `Compute::F32` chain i takes pair i of every chunk of 32 columns: 16 chains, as long as
/// there are chunks. So a single row can be multiplied as it lies in memory, lane i of a register
/// being chain i. The columns after the last whole chunk are one more chain. Under `Compute::Bf16`
/// the columns stay as they are, in one chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Order {
    columns: usize,
    /// Whole chunks.
    chunks: usize,
    chained: bool,
}

impl Order {
    pub(super) fn new(compute: Compute, columns: usize) -> Self {
        Self {
            columns,
            chunks: columns / WORDS,
            chained: compute == Compute::F32,
        }
    }

    /// The columns as they are.
    pub(super) fn natural(columns: usize) -> Self {
        Self::new(Compute::Bf16, columns)
    }

    /// Columns in whole chunks.
    pub(super) fn whole(self) -> usize {
        self.chunks * WORDS
    }

    /// Where a column comes in the order.
    pub(super) fn place(self, column: usize) -> usize {
        let (chunk, in_chunk) = (column / WORDS, column % WORDS);
        if self.chained && chunk < self.chunks {
            2 * ((in_chunk / 2) * self.chunks + chunk) + in_chunk % 2
        } else {
            column
        }
    }

    /// Where the pair of columns from `column` on comes, and the distance to that of the next pair
    /// of its chunk.
    pub(super) fn pairs(self, column: usize) -> (usize, usize) {
        let next = if self.chained && column < self.whole() {
            2 * self.chunks
        } else {
            2
        };
        (self.place(column), next)
    }

    /// Columns of a chain that is in whole chunks, or of a piece of the only one. The last may be
    /// shorter.
    pub(super) fn chain(self) -> usize {
        match self.chained {
            true => 2 * self.chunks,
            false => STEPS,
        }
    }

    /// As many chains as have no more columns than `most`, at least one, as ranges in the order; the
    /// columns after the last whole chunk are a chain of their own.
    pub(super) fn passes(self, most: usize) -> impl Iterator<Item = Range<usize>> + Clone {
        let whole = self.whole();
        let chain = self.chain().max(1);
        let length = (most / chain).max(1) * chain;
        let passes = (0..whole)
            .step_by(length)
            .map(move |from| from..(from + length).min(whole));
        passes.chain((whole < self.columns).then_some(whole..self.columns))
    }
}
