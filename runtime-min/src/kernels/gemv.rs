//! Weight rows times one vector: the rows are read once, in order, and turned in registers.

#![expect(unsafe_code, reason = "loads from rows whose bounds were checked once")]

use segpack_formats::safetensors::Dtype;

use super::panel::{self, Rows};
use super::simd::{self, LANES, Line, Simd, Work};
use super::tile::{self, CHAIN};
use crate::ops::Compute;

/// Vectors of rows that are computed at a time: their chains hide each other's latency.
const STRIP: usize = 2;

/// Rows that are computed at a time.
pub(super) const STRIP_ROWS: usize = STRIP * LANES;

/// `out = round(rows · x + bias)`
pub(super) struct Gemv<'a> {
    pub weight: Rows<'a>,
    /// `[columns]`
    pub x: &'a [f32],
    /// `[rows]`
    pub bias: Option<&'a [f32]>,
    /// `[rows]`
    pub out: &'a mut [f32],
    /// What is read next, by this thread.
    pub ahead: &'a [u8],
    pub compute: Compute,
}

impl Work for Gemv<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let strips = self.weight.rows.div_ceil(STRIP_ROWS);
        for (i, out) in self.out.chunks_mut(STRIP_ROWS).enumerate() {
            let rows = self.weight.part(i * STRIP_ROWS, STRIP_ROWS, 0, self.weight.columns);
            let next = if i + 1 < strips { &rows.bytes[rows.stride * rows.rows..] } else { self.ahead };
            let ahead = if next.is_empty() { rows.bytes } else { next };
            let mut sums = [Line::ZERO; STRIP];
            strip(s, rows, self.x, ahead.as_ptr(), self.compute, &mut sums);
            let sums = &simd::values(&sums)[..out.len()];
            match self.bias {
                Some(bias) => {
                    for ((out, sum), b) in out.iter_mut().zip(sums).zip(&bias[i * STRIP_ROWS..]) {
                        *out = self.compute.round(sum + b);
                    }
                }
                None => {
                    for (out, sum) in out.iter_mut().zip(sums) {
                        *out = self.compute.round(*sum);
                    }
                }
            }
        }
    }
}

/// The sums of up to [`STRIP_ROWS`] rows.
#[inline(always)]
fn strip<S: Simd>(
    s: S,
    rows: Rows<'_>,
    x: &[f32],
    ahead: *const u8,
    compute: Compute,
    sums: &mut [Line; STRIP],
) {
    let mut total = [[s.splat(0.0); STRIP]; 1];
    for (i, x) in x.chunks(CHAIN).enumerate() {
        let part = rows.part(0, rows.rows, i * CHAIN, x.len());
        let ahead = ahead.wrapping_add(i * CHAIN * STRIP_ROWS * panel::width_of(rows.dtype));
        if i == 0 || compute == Compute::Bf16 {
            block(s, part, x, ahead, &mut total);
        } else {
            let mut acc = [[s.splat(0.0); STRIP]; 1];
            block(s, part, x, ahead, &mut acc);
            for (total, acc) in total[0].iter_mut().zip(&acc[0]) {
                *total = s.add(*total, *acc);
            }
        }
    }
    for (total, line) in total[0].iter().zip(sums) {
        s.store(*total, &mut line.0);
    }
}

/// `acc += rows · x` for up to [`CHAIN`] columns.
#[inline(always)]
fn block<S: Simd>(s: S, rows: Rows<'_>, x: &[f32], ahead: *const u8, acc: &mut [[S::V; STRIP]; 1]) {
    let done = if rows.dtype == Dtype::BF16 { words(s, rows, x, ahead, &mut acc[0]) } else { 0 };
    for (i, x) in x[done..].chunks(LANES).enumerate() {
        let part = rows.part(0, rows.rows, done + i * LANES, x.len());
        let mut panel = [Line::ZERO; LANES * STRIP];
        panel::pack(s, part, STRIP, &mut panel);
        tile::columns(s, &panel[..x.len() * STRIP], x, acc);
    }
}

/// The whole chunks of 32 columns; returns how many columns that were.
#[inline(always)]
fn words<S: Simd>(s: S, rows: Rows<'_>, x: &[f32], ahead: *const u8, acc: &mut [S::V; STRIP]) -> usize {
    let mut starts = [[std::ptr::null::<[u8; 64]>(); LANES]; STRIP];
    for (i, start) in starts.as_flattened_mut().iter_mut().enumerate() {
        *start = rows.row(i.min(rows.rows - 1)).as_ptr().cast();
    }
    let chunks = x.as_chunks::<32>().0;
    for (c, x) in chunks.iter().enumerate() {
        for i in 0..STRIP_ROWS {
            s.prefetch(ahead.wrapping_add((c * STRIP_ROWS + i) * 64));
        }
        for (starts, acc) in starts.iter().zip(acc.iter_mut()) {
            let mut words = [s.splat(0.0); LANES];
            for (word, start) in words.iter_mut().zip(starts) {
                // SAFETY: `row` gave slices of `x.len()` values of two bytes, and chunk `c` of 32 lies in them
                *word = s.load_bits(unsafe { &*start.add(c) });
            }
            for (word, [x_even, x_odd]) in s.transpose(words).iter().zip(x.as_chunks::<2>().0) {
                *acc = s.mul_add(s.high(*word), s.splat(*x_odd), *acc);
                *acc = s.mul_add(s.low(*word), s.splat(*x_even), *acc);
            }
        }
    }
    chunks.len() * 32
}
