//! The inputs of a convolution as pieces, which the taps of its kernel share: each value is packed once.

use super::super::order::WORDS;
use super::super::simd::{LANES, Simd, Work};
use super::super::taps::{TapInputs, stride};
use super::group::{Activations, Group};
use super::pieces::{PIECES, pieces_of_a_pair};
use crate::tensor::Compute;

/// Pairs of channels of a chunk.
const PAIRS: usize = WORDS / 2;

/// Packed inputs of some tokens: `[chunks of 32 channels, PIECES, 16 pairs of channels, rows]`, rows one
/// after another, so that tiles find the values of their tokens next to each other at every tap, some
/// rows further on.
#[derive(Debug)]
pub(in crate::kernels) struct Layout {
    channels: usize,
    /// Rows from a tap to the next.
    dilation: usize,
    /// Values from a pair of channels to the next.
    stride: usize,
}

impl Layout {
    /// For so many rows at most, those before the first token among them; nothing where a chunk of
    /// columns would be of more than one tap.
    pub(in crate::kernels) fn new(channels: usize, dilation: usize, rows: usize) -> Option<Self> {
        channels.is_multiple_of(WORDS).then(|| Self {
            channels,
            dilation,
            stride: stride(rows),
        })
    }

    /// Values of a chunk.
    fn of_a_chunk(&self) -> usize {
        PIECES * PAIRS * self.stride
    }

    /// Values of the packed inputs, and those of a tile whose tokens are not all there.
    pub(in crate::kernels) fn len(&self) -> usize {
        self.chunks() * self.of_a_chunk() + LANES
    }

    /// What packs `x`, in tasks.
    pub(in crate::kernels) fn turns<'a>(
        &self,
        x: TapInputs<'a>,
        to: &'a mut [f32],
    ) -> impl Iterator<Item = Turn<'a>> {
        let (stride, channels) = (self.stride, (0..).step_by(WORDS));
        let turn = move |(first, to)| Turn {
            x,
            first,
            stride,
            to,
        };
        channels
            .zip(to.chunks_exact_mut(self.of_a_chunk()))
            .map(turn)
    }

    /// Chunks of columns of a tap.
    pub(super) fn chunks(&self) -> usize {
        self.channels / WORDS
    }

    /// The activations of a group at a tap.
    pub(super) fn x<'a>(&self, packed: &'a [f32], group: Group, tap: usize) -> Activations<'a> {
        Activations {
            values: &packed[group.first + tap * self.dilation..],
            apart: group.width,
            row: self.stride,
            piece: PAIRS * self.stride,
            next: self.of_a_chunk(),
        }
    }
}

/// Turns a chunk of channels of some rows.
pub(in crate::kernels) struct Turn<'a> {
    x: TapInputs<'a>,
    /// The first channel.
    first: usize,
    stride: usize,
    /// `[PIECES, 16 pairs of channels, stride]`
    to: &'a mut [f32],
}

impl Work for Turn<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for row in (0..self.x.rows()).step_by(LANES) {
            for half in 0..2 {
                let first = self.first + half * LANES;
                let channels = self.x.turned(s, Compute::F32, first, row);
                for i in 0..PAIRS / 2 {
                    let pair = [channels[2 * i], channels[2 * i + 1]];
                    for (p, words) in pieces_of_a_pair(s, pair).iter().enumerate() {
                        let at = p * PAIRS + half * PAIRS / 2 + i;
                        let to = &mut self.to[at * self.stride..][..self.stride];
                        s.store(*words, &mut to.as_chunks_mut().0[row / LANES]);
                    }
                }
            }
        }
    }
}
