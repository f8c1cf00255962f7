//! In which order the columns of a product are added up.

use super::simd::LANES;
use crate::ops::Compute;

/// Columns that are added up together; their sum is added to that of the columns before. A multiple of [`WORDS`].
pub(super) const BLOCK: usize = 2048;
/// Columns of a chunk: a vector of pairs.
pub(super) const WORDS: usize = 2 * LANES;
/// Columns that a tile goes through at a time under `Compute::Bf16`.
const STEPS: usize = 512;

/// The order of the columns of one block.
///
/// Under `Compute::F32` chain i takes pair i of every chunk of 32 columns: 16 chains, as long as there are chunks. So a
/// single row can be multiplied as it lies in memory, lane i of a register being chain i. The columns after the last
/// whole chunk are one more chain. Under `Compute::Bf16` the columns stay as they are, in one chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Order {
    columns: usize,
    /// Whole chunks, where pairs are brought into the order of chains.
    chunks: usize,
}

impl Order {
    pub(super) fn new(compute: Compute, columns: usize) -> Self {
        let chunks = match compute {
            Compute::F32 => columns / WORDS,
            Compute::Bf16 => 0,
        };
        Self { columns, chunks }
    }

    /// The columns as they are.
    pub(super) fn natural(columns: usize) -> Self {
        Self::new(Compute::Bf16, columns)
    }

    /// Where a column comes in the order.
    pub(super) fn place(self, column: usize) -> usize {
        let (chunk, in_chunk) = (column / WORDS, column % WORDS);
        if chunk >= self.chunks {
            return column;
        }
        2 * ((in_chunk / 2) * self.chunks + chunk) + in_chunk % 2
    }

    /// Where the pair of columns from `column` on comes, and the distance to that of the next pair of its chunk.
    pub(super) fn pairs(self, column: usize) -> (usize, usize) {
        let next = if column / WORDS < self.chunks { 2 * self.chunks } else { 2 };
        (self.place(column), next)
    }

    /// Chains that together are about as many columns as a tile should go through.
    pub(super) fn chains_at_a_time(self) -> usize {
        (STEPS / (2 * self.chunks).clamp(1, STEPS)).max(1)
    }

    /// The chains, or pieces of the only one, as ranges in the order.
    pub(super) fn chains(self) -> impl Iterator<Item = std::ops::Range<usize>> + Clone {
        let whole = self.chunks * WORDS;
        let chain = if self.chunks > 0 { 2 * self.chunks } else { STEPS };
        let chains = (0..whole).step_by(chain).map(move |from| from..from + chain);
        let rest = (whole..self.columns).step_by(STEPS);
        chains.chain(rest.map(move |from| from..(from + STEPS).min(self.columns)))
    }
}
