//! Rows of activations as a product sees them: one after another, or under the kernel of a
//! convolution, where they share values.

use super::simd::{LANES, Line, Simd};

/// `[rows, columns]`, not all of whose columns need lie next to each other.
#[derive(Debug, Clone, Copy)]
pub(super) struct Inputs<'a> {
    values: &'a [f32],
    rows: usize,
    columns: usize,
    /// Columns that lie next to each other; the next row begins behind them.
    channels: usize,
    /// From the first of these columns to the first of the next ones.
    step: usize,
}

/// Where a column of the first row is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    at: usize,
    /// Columns from it on that lie next to each other.
    left: usize,
}

impl<'a> Inputs<'a> {
    /// Rows one after another.
    pub(super) fn rows_of(values: &'a [f32], columns: usize) -> Self {
        Self::under_kernel(values, columns, 1, columns)
    }

    /// Under a kernel: row t is the rows t, t + `dilation`, and so on of `values`, of `channels` each.
    pub(super) fn under_kernel(
        values: &'a [f32],
        channels: usize,
        dilation: usize,
        columns: usize,
    ) -> Self {
        let before = (columns / channels).saturating_sub(1) * dilation;
        Self {
            values,
            rows: (values.len() / channels).saturating_sub(before),
            columns,
            channels,
            step: dilation * channels,
        }
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    pub(super) fn columns(&self) -> usize {
        self.columns
    }

    /// Values that the product sees.
    pub(super) fn len(&self) -> usize {
        self.rows * self.columns
    }

    /// Some rows.
    pub(super) fn part(self, first: usize, rows: usize) -> Self {
        Self {
            values: &self.values[first * self.channels..],
            rows,
            ..self
        }
    }

    /// Whether they are the same values in the same order.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        let shape = |x: &Self| (x.rows, x.columns, x.channels, x.step);
        std::ptr::eq(self.values, other.values) && shape(self) == shape(other)
    }

    /// Whether rows share no values, each of them all in one piece.
    pub(super) fn are_apart(&self) -> bool {
        self.channels == self.columns
    }

    /// The only row, whose columns lie next to each other.
    pub(super) fn row(&self) -> Option<&'a [f32]> {
        (self.rows == 1 && self.channels == self.columns).then(|| &self.values[..self.columns])
    }

    /// Where a column is.
    #[inline(always)]
    pub(super) fn place(&self, column: usize) -> Place {
        let (tap, channel) = (column / self.channels, column % self.channels);
        Place {
            at: tap * self.step + channel,
            left: self.channels - channel,
        }
    }

    /// One value.
    #[inline(always)]
    pub(super) fn value(&self, row: usize, place: Place) -> f32 {
        self.values[row * self.channels + place.at]
    }

    /// The vector of columns that begins at `column`, which is at `place`.
    #[inline(always)]
    pub(super) fn vector<S: Simd>(&self, s: S, row: usize, column: usize, place: Place) -> S::V {
        if place.left >= LANES
            && let Some(x) = self.values[row * self.channels + place.at..].first_chunk()
        {
            return s.load(x);
        }
        let mut line = Line::ZERO;
        for (i, x) in line.0.iter_mut().enumerate() {
            *x = self.value(row, self.place(column + i));
        }
        s.load(&line.0)
    }
}
