//! Tokens that are multiplied together, and how their activations are packed.

use super::super::inputs::Inputs;
use super::super::pairs::{self, pairs};
use super::super::simd::{LANES, Simd, Work};
use super::pieces;
use crate::tensor::Compute;

/// Most tokens of a group: two tiles.
pub(super) const GROUP: usize = 2 * LANES;

/// Tokens that are multiplied together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::kernels) struct Group {
    /// The first token.
    pub(super) first: usize,
    pub(super) tokens: usize,
    /// Tiles of tokens, 1 or 2.
    pub(super) tiles: usize,
    /// Tokens of a tile; the last one of the second may be missing.
    pub(super) width: usize,
    /// Pieces of an activation.
    pub(super) pieces: usize,
    /// Packed values before it.
    at: usize,
}

/// How many bf16 values an activation is.
fn pieces_of(compute: Compute) -> usize {
    match compute {
        Compute::F32 => pieces::PIECES,
        Compute::Bf16 => 1,
    }
}

impl Group {
    /// Groups of so many tokens.
    pub(in crate::kernels) fn of(
        compute: Compute,
        tokens: usize,
        columns: usize,
    ) -> impl Iterator<Item = Self> + Clone {
        let pieces = pieces_of(compute);
        (0..tokens).step_by(GROUP).map(move |first| {
            let tokens = GROUP.min(tokens - first);
            let tiles = tokens.div_ceil(LANES);
            Self {
                first,
                tokens,
                tiles,
                width: tokens.div_ceil(tiles),
                pieces,
                at: first * pairs(columns) * pieces,
            }
        })
    }

    /// Values of a tile of a chunk of columns.
    fn of_a_chunk(self) -> usize {
        LANES * self.width * self.pieces
    }

    /// Values of a tile of all columns.
    fn of_a_tile(self, columns: usize) -> usize {
        pairs(columns) * self.width * self.pieces
    }

    /// Values that are packed.
    pub(in crate::kernels) fn len(self, columns: usize) -> usize {
        self.tiles * self.of_a_tile(columns)
    }

    /// What packs its tokens of `x`, a tile at a time.
    pub(in crate::kernels) fn packs<'a>(
        self,
        x: Inputs<'a>,
        to: &'a mut [f32],
    ) -> impl Iterator<Item = Pack<'a>> {
        let tile = self.of_a_tile(x.columns());
        to.chunks_exact_mut(tile).enumerate().map(move |(i, to)| {
            let first = i * self.width;
            let x = x.part(self.first + first, self.width.min(self.tokens - first));
            let tokens = self.width;
            match self.pieces {
                1 => Pack::Whole(pairs::Pack { x, tokens, to }),
                _ => Pack::Pieces(pieces::Pack { x, tokens, to }),
            }
        })
    }

    /// Its activations from a chunk of columns on.
    pub(super) fn x(self, packed: &[f32], columns: usize, chunk: usize) -> Activations<'_> {
        let from = self.at + chunk * self.of_a_chunk();
        Activations {
            values: &packed[from..self.at + self.len(columns)],
            apart: self.of_a_tile(columns),
            row: self.width,
            piece: LANES * self.width,
            next: self.of_a_chunk(),
        }
    }
}

/// Activations of a group, one chunk of columns after another. All distances are in values.
#[derive(Debug, Clone, Copy)]
pub(super) struct Activations<'a> {
    /// Of the first tile, and whatever comes after it.
    pub values: &'a [f32],
    /// From the first tile to the second.
    pub apart: usize,
    /// From a pair of columns to the next.
    pub row: usize,
    /// From a piece to the next.
    pub piece: usize,
    /// From a chunk to the next.
    pub next: usize,
}

/// Packs a tile of tokens.
pub(in crate::kernels) enum Pack<'a> {
    /// bf16 values.
    Whole(pairs::Pack<'a>),
    /// f32 values.
    Pieces(pieces::Pack<'a>),
}

impl Work for Pack<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match self {
            Self::Whole(pack) => pack.run(s),
            Self::Pieces(pack) => pack.run(s),
        }
    }
}
