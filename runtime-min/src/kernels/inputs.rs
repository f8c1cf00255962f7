//! Rows of activations as a product sees them.

use super::simd::{LANES, Line, Simd};

/// `[rows, columns]`
#[derive(Debug, Clone, Copy)]
pub(super) struct Inputs<'a> {
    values: &'a [f32],
    columns: usize,
}

impl<'a> Inputs<'a> {
    /// Rows of so many columns, at least one.
    pub(super) fn new(values: &'a [f32], columns: usize) -> Self {
        Self { values, columns }
    }

    pub(super) fn rows(&self) -> usize {
        self.values.len() / self.columns
    }

    pub(super) fn columns(&self) -> usize {
        self.columns
    }

    /// How many values they are.
    pub(super) fn len(&self) -> usize {
        self.values.len()
    }

    /// Some rows.
    pub(super) fn part(self, first: usize, rows: usize) -> Self {
        let values = &self.values[first * self.columns..][..rows * self.columns];
        Self { values, ..self }
    }

    /// Whether they are the same values.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        std::ptr::eq(self.values, other.values) && self.columns == other.columns
    }

    /// One row.
    #[inline(always)]
    pub(super) fn row(&self, row: usize) -> &'a [f32] {
        &self.values[row * self.columns..][..self.columns]
    }

    /// A vector for each of [`LANES`] columns from `column` on, of at most as many rows; zeros where there
    /// is no row or no column.
    #[inline(always)]
    pub(super) fn turned<S: Simd>(&self, s: S, column: usize) -> [S::V; LANES] {
        let mut rows = [s.splat(0.0); LANES];
        if column < self.columns {
            for (t, row) in rows.iter_mut().enumerate().take(self.rows()) {
                *row = self.vector(s, t, column);
            }
        }
        s.transpose(rows)
    }

    /// The vector of a row that begins at `column`, zeros where the row has ended.
    #[inline(always)]
    pub(super) fn vector<S: Simd>(&self, s: S, row: usize, column: usize) -> S::V {
        let row = &self.row(row)[column..];
        if let Some(x) = row.first_chunk() {
            return s.load(x);
        }
        let mut line = Line::ZERO;
        line.0[..row.len().min(LANES)].copy_from_slice(row);
        s.load(&line.0)
    }
}
