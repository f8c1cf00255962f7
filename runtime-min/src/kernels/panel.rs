//! Weights on their way into a tile: widened to f32 and turned, so that lanes are rows.

use segpack_formats::numeric::FloatDtype;

use super::order::{Order, WORDS};
use super::simd::{LANES, Line, Simd};

/// Some columns of some rows of a matrix, as they lie in memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rows<'a> {
    /// Element type.
    pub dtype: FloatDtype,
    /// From the first value of the first row on.
    pub bytes: &'a [u8],
    /// Bytes from a row to the next.
    pub stride: usize,
    /// At least one.
    pub rows: usize,
    /// In the part that is meant.
    pub columns: usize,
}

impl<'a> Rows<'a> {
    /// The bytes of one row.
    pub(super) fn row(&self, row: usize) -> &'a [u8] {
        &self.bytes[row * self.stride..][..self.columns * self.dtype.byte_width()]
    }

    /// The part that starts at this row, at most `rows` long, and this column.
    pub(super) fn part(self, row: usize, rows: usize, column: usize, columns: usize) -> Self {
        let rows = rows.min(self.rows - row);
        let columns = columns.min(self.columns - column);
        let from = row * self.stride + column * self.dtype.byte_width();
        Self {
            bytes: &self.bytes[from..],
            rows,
            columns,
            ..self
        }
    }
}

/// Up to 16 rows; where there are fewer, the last one again.
#[inline(always)]
fn sixteen<'a>(from: &Rows<'a>, first: usize) -> [&'a [u8]; LANES] {
    let mut rows = [&[][..]; LANES];
    for (i, row) in rows.iter_mut().enumerate() {
        *row = from.row((first + i).min(from.rows - 1));
    }
    rows
}

/// Fills `panel`, `[columns, strip]` vectors of up to 16 rows each, columns in their order; lanes
/// that have no row get any values.
#[inline(always)]
pub(super) fn pack<S: Simd>(s: S, from: Rows<'_>, order: Order, strip: usize, panel: &mut [Line]) {
    for v in 0..strip {
        let rows = sixteen(&from, v * LANES);
        let panel = &mut panel[v..];
        let done = match from.dtype {
            FloatDtype::BF16 | FloatDtype::F16 => 0,
            FloatDtype::F32 => pack_f32(s, &rows, order, strip, panel),
        };
        if done < from.columns {
            pack_rest(from.dtype, &rows, done, order, strip, panel);
        }
    }
}

/// Fills `pairs`, `[columns / 2, strip]` vectors of pairs of bf16 values, with the whole chunks of
/// 32 columns.
///
/// Pairs take half the memory of wide values, which stay in the second-level cache: storing there
/// is what packing costs.
#[inline(always)]
pub(super) fn pack_pairs<S: Simd>(
    s: S,
    from: Rows<'_>,
    order: Order,
    strip: usize,
    pairs: &mut [Line],
) {
    for v in 0..strip {
        let chunks = chunks(&sixteen(&from, v * LANES));
        for c in 0..chunks[0].len() {
            let words = turned(s, &chunks, c);
            let (first, next) = order.pairs(c * WORDS);
            for (i, word) in words.iter().enumerate() {
                s.store(*word, &mut pairs[(first + i * next) / 2 * strip + v].0);
            }
        }
    }
}

/// Fills `panel`, `[columns, STRIP]`, from pairs.
#[inline(always)]
pub(super) fn widen_pairs<S: Simd, const STRIP: usize>(s: S, pairs: &[Line], panel: &mut [Line]) {
    let (pairs, panel) = (
        pairs.as_chunks::<STRIP>().0,
        panel.as_chunks_mut::<STRIP>().0,
    );
    for (pair, [even, odd]) in pairs.iter().zip(panel.as_chunks_mut::<2>().0) {
        for v in 0..STRIP {
            let words = s.load(&pair[v].0);
            s.store(s.low(words), &mut even[v].0);
            s.store(s.high(words), &mut odd[v].0);
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

/// Packs whole chunks of 16 columns; returns how many columns that were.
#[inline(always)]
fn pack_f32<S: Simd>(
    s: S,
    rows: &[&[u8]; LANES],
    order: Order,
    strip: usize,
    panel: &mut [Line],
) -> usize {
    let chunks = chunks(rows);
    let count = chunks[0].len();
    for c in 0..count {
        let words = turned(s, &chunks, c);
        let (first, next) = order.pairs(c * LANES);
        for (i, word) in words.iter().enumerate() {
            s.store(
                *word,
                &mut panel[(first + (i / 2) * next + i % 2) * strip].0,
            );
        }
    }
    count * LANES
}

/// Packs the columns from `done` on, of any dtype, value by value.
fn pack_rest(
    dtype: FloatDtype,
    rows: &[&[u8]; LANES],
    done: usize,
    order: Order,
    strip: usize,
    panel: &mut [Line],
) {
    let width = dtype.byte_width();
    let mut wide = [0.0; 64];
    for (lane, row) in rows.iter().enumerate() {
        for (block, bytes) in row[done * width..].chunks(wide.len() * width).enumerate() {
            dtype.widen(bytes, &mut wide);
            let from = done + block * wide.len();
            for (i, x) in wide[..bytes.len() / width].iter().enumerate() {
                panel[order.place(from + i) * strip].0[lane] = *x;
            }
        }
    }
}
