//! How the values of a tensor are put into another order before they are converted.

use segpack_formats::numeric::mxfp4;

/// Some rows of a tensor, or values of a vector: `first`, `first + step` and so on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Every {
    /// The first one, below `step`.
    pub first: usize,
    /// From one to the next; the tensor has a multiple of it.
    pub step: usize,
}

impl Every {
    /// All of them.
    pub(super) const ONE: Self = Self { first: 0, step: 1 };
}

/// The order in which the output has the values of a tensor of the pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Arrangement {
    /// As they are.
    Kept,
    /// The rows of each head, of which positions turn row j and row j + rows / 2 together, so that
    /// these two are neighbours: j, j + rows / 2, j + 1 and so on.
    ///
    /// Source: `LlamaModel.permute` in llama.cpp's `conversion/llama.py`.
    Heads {
        /// Rows of a head, an even number.
        rows: usize,
        /// Bytes of a row.
        row_bytes: usize,
    },
    /// Some rows.
    Rows {
        /// Which.
        taken: Every,
        /// Bytes of a row, or of a value.
        row_bytes: usize,
    },
    /// Columns as rows.
    Transposed {
        /// Rows and columns before.
        size: [usize; 2],
        /// Bytes of a value.
        value_bytes: usize,
        /// Which columns.
        taken: Every,
    },
    /// Rows of MXFP4 blocks, whose scales lie in another tensor, as ggml stores them.
    Mxfp4 {
        /// Blocks of a row.
        blocks: usize,
        /// Which rows.
        taken: Every,
    },
}

impl Arrangement {
    /// Bytes that are arranged together, of a tensor of so many.
    pub(super) fn block(self, whole: usize) -> usize {
        match self {
            Self::Kept => 1,
            Self::Heads { rows, row_bytes } => rows * row_bytes,
            Self::Rows { taken, row_bytes } => taken.step * row_bytes,
            Self::Transposed { .. } | Self::Mxfp4 { .. } => whole,
        }
    }

    /// Which rows or columns it takes.
    pub(super) fn taken(self) -> Every {
        match self {
            Self::Kept | Self::Heads { .. } => Every::ONE,
            Self::Rows { taken, .. }
            | Self::Transposed { taken, .. }
            | Self::Mxfp4 { taken, .. } => taken,
        }
    }

    /// Bytes after, of so many before.
    pub(super) fn length(self, before: u64) -> u64 {
        let share = before / self.taken().step as u64;
        match self {
            Self::Kept | Self::Heads { .. } | Self::Rows { .. } | Self::Transposed { .. } => share,
            Self::Mxfp4 { .. } => {
                share / mxfp4::BLOCK_BYTES as u64 * mxfp4::GGML_BLOCK_BYTES as u64
            }
        }
    }

    /// Whether a whole tensor is in memory at once.
    pub(super) fn takes_whole_tensors(self) -> bool {
        match self {
            Self::Kept | Self::Heads { .. } | Self::Rows { .. } => false,
            Self::Transposed { .. } | Self::Mxfp4 { .. } => true,
        }
    }

    /// Appends a whole number of blocks in their new order. `beside`: the scales of all of an MXFP4
    /// tensor's blocks.
    pub(super) fn arrange(self, before: &[u8], beside: &[u8], to: &mut Vec<u8>) {
        match self {
            Self::Kept => to.extend(before),
            Self::Heads { rows, row_bytes } => {
                for head in before.chunks_exact(rows * row_bytes) {
                    neighbours(head, row_bytes, to);
                }
            }
            Self::Rows { taken, row_bytes } => {
                for row in every(before, row_bytes, taken) {
                    to.extend(row);
                }
            }
            Self::Transposed {
                size,
                value_bytes,
                taken,
            } => {
                if before.len() == size[0] * size[1] * value_bytes {
                    transpose(before, (size, value_bytes), taken, to);
                }
            }
            Self::Mxfp4 { blocks, taken } => {
                let rows = every(before, blocks * mxfp4::BLOCK_BYTES, taken);
                for (row, scales) in rows.zip(every(beside, blocks, taken)) {
                    weave(row, scales, to);
                }
            }
        }
    }
}

/// Some of the rows.
fn every(bytes: &[u8], row_bytes: usize, taken: Every) -> impl Iterator<Item = &[u8]> {
    let rows = bytes.chunks_exact(row_bytes.max(1));
    rows.skip(taken.first).step_by(taken.step.max(1))
}

/// The first row of the second half behind the first row, and so on.
fn neighbours(head: &[u8], row_bytes: usize, to: &mut Vec<u8>) {
    let (first, second) = head.split_at(head.len() / 2);
    let pairs = first
        .chunks_exact(row_bytes)
        .zip(second.chunks_exact(row_bytes));
    for (one, other) in pairs {
        to.extend(one);
        to.extend(other);
    }
}

/// Columns that are transposed together: as many as there are values in a cache line.
const COLUMNS: usize = 32;

/// Some columns of a matrix as rows.
fn transpose(
    before: &[u8],
    ([rows, columns], width): ([usize; 2], usize),
    taken: Every,
    to: &mut Vec<u8>,
) {
    let taken: Vec<usize> = (taken.first..columns).step_by(taken.step.max(1)).collect();
    let start = to.len();
    to.resize(start + taken.len() * rows * width, 0);
    let to = &mut to[start..];
    for (number, group) in taken.chunks(COLUMNS).enumerate() {
        for (row, values) in before.chunks_exact(columns * width).enumerate() {
            for (index, column) in group.iter().enumerate() {
                let at = ((number * COLUMNS + index) * rows + row) * width;
                to[at..at + width].copy_from_slice(&values[column * width..][..width]);
            }
        }
    }
}

/// The blocks of a row, each behind its scale.
fn weave(row: &[u8], scales: &[u8], to: &mut Vec<u8>) {
    let (blocks, _) = row.as_chunks::<{ mxfp4::BLOCK_BYTES }>();
    for (block, scale) in blocks.iter().zip(scales) {
        let mut woven = [0; mxfp4::GGML_BLOCK_BYTES];
        mxfp4::to_ggml(block, *scale, &mut woven);
        to.extend(woven);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ODD: Every = Every { first: 1, step: 2 };

    fn arranged(arrangement: Arrangement, before: &[u8], beside: &[u8]) -> Vec<u8> {
        let mut to = Vec::new();
        arrangement.arrange(before, beside, &mut to);
        assert_eq!(to.len() as u64, arrangement.length(before.len() as u64));
        to
    }

    #[test]
    fn halves_of_heads_become_neighbours() {
        let two_heads = [0, 0, 1, 1, 2, 2, 3, 3, 10, 10, 11, 11, 12, 12, 13, 13];
        let heads = Arrangement::Heads {
            rows: 4,
            row_bytes: 2,
        };
        let wanted = [0, 0, 2, 2, 1, 1, 3, 3, 10, 10, 12, 12, 11, 11, 13, 13];
        assert_eq!(arranged(heads, &two_heads, &[]), wanted);
    }

    #[test]
    fn rows_and_columns_alternate_between_two_tensors() {
        let rows = Arrangement::Rows {
            taken: ODD,
            row_bytes: 3,
        };
        assert_eq!(arranged(rows, b"aaabbbcccddd", &[]), b"bbbddd");
        // more columns than are transposed together, of values of two bytes
        let (rows, columns) = (3, 2 * COLUMNS + 6);
        let value = |row: usize, column: usize| [row, column].map(|x| u8::try_from(x).unwrap());
        let before: Vec<u8> = (0..rows)
            .flat_map(|row| (0..columns).flat_map(move |column| value(row, column)))
            .collect();
        let wanted: Vec<u8> = (0..columns / 2)
            .flat_map(|column| (0..rows).flat_map(move |row| value(row, 2 * column + 1)))
            .collect();
        let transposed = Arrangement::Transposed {
            size: [rows, columns],
            value_bytes: 2,
            taken: ODD,
        };
        assert_eq!(arranged(transposed, &before, &[]), wanted);
    }

    #[test]
    fn scales_go_before_their_blocks() {
        let before: Vec<u8> = (0..4).flat_map(|block| [block * 17; 16]).collect();
        let woven = Arrangement::Mxfp4 {
            blocks: 2,
            taken: ODD,
        };
        let to = arranged(woven, &before, &[100, 101, 102, 103]);
        assert_eq!((to[0], to[17]), (102, 103));
        assert_eq!(to[1..17], [2 * 17; 16]);
    }
}
