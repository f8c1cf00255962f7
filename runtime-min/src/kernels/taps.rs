//! The inputs of a convolution, which the taps of its kernel share: each value is packed once.

use super::inputs::Inputs;
use super::order::{BLOCK, Order};
use super::rows::load;
use super::simd::{LANES, Simd, Work};
use super::sound::snake_rows;
use crate::tensor::{Compute, SnakeBeta};

/// Packed inputs of some tokens: `[channels, rows]`, rows one after another, so that a group of
/// tokens finds its values next to each other at every tap, some rows further on.
#[derive(Debug)]
pub(super) struct Layout {
    channels: usize,
    /// From a channel to the next.
    stride: usize,
    /// For each column, in the order in which columns are added up, where the first token's value is.
    places: Vec<usize>,
}

impl Layout {
    /// For so many rows at most, those before the first token among them.
    pub(super) fn new(
        compute: Compute,
        [channels, dilation, columns]: [usize; 3],
        rows: usize,
    ) -> Self {
        let stride = stride(rows);
        let mut places = vec![0; columns];
        for (from, places) in (0..).step_by(BLOCK).zip(places.chunks_mut(BLOCK)) {
            let order = Order::new(compute, places.len());
            for i in 0..places.len() {
                let (tap, channel) = ((from + i) / channels, (from + i) % channels);
                places[order.place(i)] = channel * stride + tap * dilation;
            }
        }
        Self {
            channels,
            stride,
            places,
        }
    }

    /// Values of the packed inputs.
    pub(super) fn len(&self) -> usize {
        self.channels * self.stride
    }

    pub(super) fn places(&self) -> &[usize] {
        &self.places
    }

    /// What packs `x`, in tasks.
    pub(super) fn turns<'a>(
        &self,
        x: TapInputs<'a>,
        compute: Compute,
        to: &'a mut [f32],
    ) -> impl Iterator<Item = Turn<'a>> {
        let stride = self.stride;
        let channels = (0..).step_by(LANES);
        let turn = move |(first, to)| Turn {
            x,
            compute,
            first,
            stride,
            to,
        };
        channels.zip(to.chunks_mut(LANES * stride)).map(turn)
    }
}

/// Values from a channel to the next, for so many rows. They are an odd number of lines: the same row of
/// several channels would compete for one set of the cache.
pub(super) fn stride(rows: usize) -> usize {
    (rows.div_ceil(LANES) | 1) * LANES
}

/// Rows of channels in two pieces, and what is done to them.
#[derive(Debug, Clone, Copy)]
pub(super) struct TapInputs<'a> {
    pub before: Inputs<'a>,
    pub x: Inputs<'a>,
    pub snake: Option<SnakeBeta<'a>>,
}

impl<'a> TapInputs<'a> {
    pub(super) fn rows(&self) -> usize {
        self.before.rows() + self.x.rows()
    }

    /// Some rows.
    pub(super) fn part(self, first: usize, rows: usize) -> Self {
        let (before, last) = (self.before.rows(), first + rows);
        let [start, end] = [first, last].map(|row| row.min(before));
        let [x_start, x_end] = [first, last].map(|row| row.saturating_sub(before));
        Self {
            before: self.before.part(start, end - start),
            x: self.x.part(x_start, x_end - x_start),
            snake: self.snake,
        }
    }

    /// [`LANES`] rows from `row` on, zeros where there are none, of as many channels from `first` on: a
    /// vector for each channel, after what is done to it.
    #[inline(always)]
    pub(super) fn turned<S: Simd>(
        self,
        s: S,
        compute: Compute,
        first: usize,
        row: usize,
    ) -> [S::V; LANES] {
        let (given, all) = (self.before.rows(), self.rows());
        let mut lines = [s.splat(0.0); LANES];
        for (t, line) in lines.iter_mut().enumerate().take(all - row) {
            *line = match (row + t).checked_sub(given) {
                Some(row) => self.x.vector(s, row, first),
                None => self.before.vector(s, row + t, first),
            };
        }
        if let Some(SnakeBeta {
            alpha,
            inverse_beta,
        }) = self.snake
        {
            let factors = [
                load(s, &alpha[first..], 0.0),
                load(s, &inverse_beta[first..], 0.0),
            ];
            lines = snake_rows(s, compute, lines, factors);
        }
        s.transpose(lines)
    }
}

/// Turns up to [`LANES`] channels of some rows.
pub(super) struct Turn<'a> {
    x: TapInputs<'a>,
    compute: Compute,
    /// The first channel.
    first: usize,
    stride: usize,
    /// `[channels, stride]`
    to: &'a mut [f32],
}

impl Work for Turn<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for row in (0..self.x.rows()).step_by(LANES) {
            let channels = self.x.turned(s, self.compute, self.first, row);
            for (channel, to) in channels.iter().zip(self.to.chunks_mut(self.stride)) {
                s.store(*channel, &mut to.as_chunks_mut().0[row / LANES]);
            }
        }
    }
}
