//! A result that tasks fill column by column.

#![expect(unsafe_code, reason = "tasks write disjoint columns of one matrix")]

use std::marker::PhantomData;
use std::ops::Range;

/// Some columns of every row of a row-major matrix, for one task.
#[derive(Debug)]
pub(crate) struct Columns<'a> {
    start: *mut f32,
    rows: usize,
    stride: usize,
    width: usize,
    matrix: PhantomData<&'a mut [f32]>,
}

// SAFETY: a `Columns` is the only one that reaches its elements, like a `&mut [f32]`
unsafe impl Send for Columns<'_> {}

impl<'a> Columns<'a> {
    /// All of a matrix `[rows, stride]`.
    pub(crate) fn all(matrix: &'a mut [f32], stride: usize) -> Self {
        let rows = matrix.len() / stride.max(1);
        Self {
            start: matrix.as_mut_ptr(),
            rows,
            stride,
            width: stride,
            matrix: PhantomData,
        }
    }

    /// Splits off the columns before `width`.
    pub(super) fn take(&mut self, width: usize) -> Self {
        let width = width.min(self.width);
        let first = Self {
            width,
            matrix: PhantomData,
            ..*self
        };
        // stays in the matrix, or one past its first row
        self.start = self.start.wrapping_add(width);
        self.width -= width;
        first
    }

    /// The same columns, of these rows; they must not be asked for twice.
    fn rows(&self, rows: Range<usize>) -> Self {
        assert!(rows.start <= rows.end && rows.end <= self.rows);
        let start = self.start.wrapping_add(rows.start * self.stride);
        Self {
            start,
            rows: rows.len(),
            matrix: PhantomData,
            ..*self
        }
    }

    /// Splits off the rows before `rows`.
    pub(crate) fn take_rows(&mut self, rows: usize) -> Self {
        let rows = rows.min(self.rows);
        let first = self.rows(0..rows);
        *self = self.rows(rows..self.rows);
        first
    }

    /// This task's part of one row.
    pub(super) fn row(&mut self, row: usize) -> &mut [f32] {
        assert!(row < self.rows);
        // SAFETY: `rows`, `stride` and `width` describe elements of the matrix that `all` borrowed,
        // and splitting hands each of them to one `Columns` only, which is borrowed mutably here
        unsafe { std::slice::from_raw_parts_mut(self.start.add(row * self.stride), self.width) }
    }
}
