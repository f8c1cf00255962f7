//! Weights on their way into a tile: widened to f32 and turned, so that lanes are rows.

use segpack_formats::safetensors::Dtype;

use super::order::Order;
use super::simd::{LANES, Line, Simd};
use crate::ops::widen;

/// Some columns of some rows of a matrix, as they lie in memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rows<'a> {
    /// BF16, F16 or F32.
    pub dtype: Dtype,
    /// From the first value of the first row on.
    pub bytes: &'a [u8],
    /// Bytes from a row to the next.
    pub stride: usize,
    /// At least one.
    pub rows: usize,
    /// In the part that is meant.
    pub columns: usize,
}

/// Bytes of one value.
pub(super) fn width_of(dtype: Dtype) -> usize {
    match dtype {
        Dtype::BF16 | Dtype::F16 => 2,
        _ => 4,
    }
}

impl<'a> Rows<'a> {
    /// The bytes of one row.
    pub(super) fn row(&self, row: usize) -> &'a [u8] {
        &self.bytes[row * self.stride..][..self.columns * width_of(self.dtype)]
    }

    /// The part that starts at this row, at most `rows` long, and this column.
    pub(super) fn part(self, row: usize, rows: usize, column: usize, columns: usize) -> Self {
        let rows = rows.min(self.rows - row);
        let columns = columns.min(self.columns - column);
        let from = row * self.stride + column * width_of(self.dtype);
        Self { bytes: &self.bytes[from..], rows, columns, ..self }
    }
}

/// Fills `panel`, `[columns, strip]` vectors of up to 16 rows each, columns in their order; lanes that have no row get any
/// values.
#[inline(always)]
pub(super) fn pack<S: Simd>(s: S, from: Rows<'_>, order: Order, strip: usize, panel: &mut [Line]) {
    for v in 0..strip {
        let first = (v * LANES).min(from.rows - 1);
        let mut rows = [&[][..]; LANES];
        for (i, row) in rows.iter_mut().enumerate() {
            *row = from.row((first + i).min(from.rows - 1));
        }
        let panel = &mut panel[v..];
        let done = match from.dtype {
            Dtype::BF16 => pack_bf16(s, &rows, order, strip, panel),
            Dtype::F16 => 0,
            _ => pack_f32(s, &rows, order, strip, panel),
        };
        if done < from.columns {
            pack_rest(from.dtype, &rows, done, order, strip, panel);
        }
    }
}

/// The vectors of one load per row: `[row][chunk]`, chunk `c` of all rows.
#[inline(always)]
fn turned<S: Simd>(s: S, chunks: &[&[[u8; 64]]; LANES], c: usize) -> [S::V; LANES] {
    let mut words = [s.splat(0.0); LANES];
    for (word, chunks) in words.iter_mut().zip(chunks) {
        *word = s.load_bits(&chunks[c]);
    }
    s.transpose(words)
}

/// The whole chunks of 64 bytes of every row.
#[inline(always)]
fn chunks<'a>(rows: &[&'a [u8]; LANES]) -> [&'a [[u8; 64]]; LANES] {
    let mut to = [&[][..]; LANES];
    for (to, row) in to.iter_mut().zip(rows) {
        *to = row.as_chunks::<64>().0;
    }
    to
}

/// Packs whole chunks of 32 columns; returns how many columns that were.
#[inline(always)]
fn pack_bf16<S: Simd>(s: S, rows: &[&[u8]; LANES], order: Order, strip: usize, panel: &mut [Line]) -> usize {
    let chunks = chunks(rows);
    let count = chunks[0].len();
    for c in 0..count {
        let words = turned(s, &chunks, c);
        let (first, next) = order.pairs(c * 32);
        for (i, word) in words.iter().enumerate() {
            let at = (first + i * next) * strip;
            s.store(s.low(*word), &mut panel[at].0);
            s.store(s.high(*word), &mut panel[at + strip].0);
        }
    }
    count * 32
}

/// Packs whole chunks of 16 columns; returns how many columns that were.
#[inline(always)]
fn pack_f32<S: Simd>(s: S, rows: &[&[u8]; LANES], order: Order, strip: usize, panel: &mut [Line]) -> usize {
    let chunks = chunks(rows);
    let count = chunks[0].len();
    for c in 0..count {
        let words = turned(s, &chunks, c);
        let (first, next) = order.pairs(c * LANES);
        for (i, word) in words.iter().enumerate() {
            s.store(*word, &mut panel[(first + (i / 2) * next + i % 2) * strip].0);
        }
    }
    count * LANES
}

/// Packs the columns from `done` on, of any dtype, value by value.
fn pack_rest(
    dtype: Dtype,
    rows: &[&[u8]; LANES],
    done: usize,
    order: Order,
    strip: usize,
    panel: &mut [Line],
) {
    let width = width_of(dtype);
    let mut wide = [0.0; 64];
    for (lane, row) in rows.iter().enumerate() {
        for (block, bytes) in row[done * width..].chunks(wide.len() * width).enumerate() {
            widen(dtype, bytes, &mut wide);
            let from = done + block * wide.len();
            for (i, x) in wide[..bytes.len() / width].iter().enumerate() {
                panel[order.place(from + i) * strip].0[lane] = *x;
            }
        }
    }
}
