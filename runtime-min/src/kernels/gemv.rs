//! bf16 weight rows times one vector: what decoding does, at the speed of the memory.
//!
//! Under `Compute::F32` rows are multiplied as they lie, one after the other: lane i of a register
//! is chain i of the row ([`order`](super::order)). Memory is read in one ascending run, the only
//! way to its full speed: two rows side by side, 4096 bytes apart, reach 71 % of it on a Zen 5, and
//! turning 16 rows at a time in registers, as `Compute::Bf16` needs it for its one chain, 70 to 87
//! %.

#![expect(unsafe_code, reason = "loads from rows whose bounds were checked once")]

use super::order::{BLOCK, Order, WORDS};
use super::panel::{self, Rows};
use super::scratch::{Buffer, Key};
use super::simd::{LANES, Line, Simd, Work};
use super::tile;
use crate::tensor::Compute;

/// How far ahead memory is asked for, in bytes.
const AHEAD: usize = 8 << 10;
/// The same for every one of 16 rows that are read side by side.
const AHEAD_OF_ROW: usize = 256;

/// `out = round(rows · x + bias)` for bf16 rows.
pub(super) struct Gemv<'a> {
    pub weight: Rows<'a>,
    /// `[columns]`, packed by [`pack_lanes`] under `Compute::F32`.
    pub x: &'a [f32],
    /// `[rows]`
    pub bias: Option<&'a [f32]>,
    /// `[rows]`
    pub out: &'a mut [f32],
    /// What this thread reads next.
    pub ahead: &'a [u8],
    pub compute: Compute,
}

impl Work for Gemv<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut parked = Buffer::take(Key::Sums);
        let Self {
            weight,
            x,
            bias,
            out,
            ahead,
            compute,
        } = self;
        let next = if ahead.is_empty() {
            weight.bytes
        } else {
            ahead
        }
        .as_ptr();
        let end = weight
            .bytes
            .as_ptr()
            .wrapping_add(weight.rows * weight.stride);
        for (i, out) in out.chunks_mut(LANES).enumerate() {
            let rows = weight.part(i * LANES, LANES, 0, weight.columns);
            let mut sums = Line::ZERO;
            match compute {
                Compute::F32 => lanes(s, rows, x, Ahead { end, next }, &mut parked, &mut sums),
                Compute::Bf16 => turned(s, rows, x, &mut sums),
            }
            match bias {
                Some(bias) => {
                    for ((out, sum), b) in out.iter_mut().zip(&sums.0).zip(&bias[i * LANES..]) {
                        *out = compute.round(sum + b);
                    }
                }
                None => {
                    for (out, sum) in out.iter_mut().zip(&sums.0) {
                        *out = compute.round(*sum);
                    }
                }
            }
        }
    }
}

/// What is read after the rows at hand.
#[derive(Clone, Copy)]
struct Ahead {
    /// Where this task's weights end.
    end: *const u8,
    /// Where the next task's begin.
    next: *const u8,
}

impl Ahead {
    /// What comes [`AHEAD`] bytes after this address in the order of reading.
    #[inline(always)]
    fn of(self, address: *const u8) -> *const u8 {
        let left = self.end.addr().saturating_sub(address.addr());
        if left > AHEAD {
            address.wrapping_add(AHEAD)
        } else {
            self.next.wrapping_add(AHEAD - left)
        }
    }
}

/// The sums of up to 16 rows, as they lie.
#[inline(always)]
fn lanes<S: Simd>(
    s: S,
    rows: Rows<'_>,
    x: &[f32],
    ahead: Ahead,
    parked: &mut Buffer,
    sums: &mut Line,
) {
    let blocks = rows.columns.div_ceil(BLOCK);
    let parked = parked.lines(blocks * LANES);
    for number in 0..rows.rows {
        let row = rows.row(number);
        let ahead = ahead.of(row.as_ptr());
        for (b, x) in x.chunks(BLOCK).enumerate() {
            let from = 2 * b * BLOCK;
            let sums = one_row(s, &row[from..], x, ahead.wrapping_add(from));
            s.store(sums, &mut parked[b * LANES + number].0);
        }
    }
    let mut total = s.splat(0.0);
    for (b, parked) in parked.chunks_exact(LANES).enumerate() {
        let from = b * BLOCK;
        let part = rows.part(0, LANES, from, BLOCK);
        if part.columns >= WORDS {
            let mut chains = [s.splat(0.0); LANES];
            for (chain, line) in chains.iter_mut().zip(parked) {
                *chain = s.load(&line.0);
            }
            for (i, chain) in s.transpose(chains).iter().enumerate() {
                total = if from + i == 0 {
                    *chain
                } else {
                    s.add(total, *chain)
                };
            }
        }
        let whole = part.columns / WORDS * WORDS;
        if whole < part.columns {
            let rest = rest(
                s,
                part.part(0, LANES, whole, WORDS),
                &x[from + whole..],
                [[s.splat(0.0)]],
            );
            total = if from + whole == 0 {
                rest
            } else {
                s.add(total, rest)
            };
        }
    }
    s.store(total, &mut sums.0);
}

/// The chains of a row over the whole chunks of a block.
#[inline(always)]
fn one_row<S: Simd>(s: S, row: &[u8], x: &[f32], ahead: *const u8) -> S::V {
    let mut acc = s.splat(0.0);
    let x = x.as_chunks::<LANES>().0.as_chunks::<2>().0;
    for (c, (words, [even, odd])) in row.as_chunks::<64>().0.iter().zip(x).enumerate() {
        s.prefetch(ahead.wrapping_add(64 * c));
        let words = s.load_bits(words);
        acc = s.mul_add(s.high(words), s.load(odd), acc);
        acc = s.mul_add(s.low(words), s.load(even), acc);
    }
    acc
}

/// A few columns of up to 16 rows, added to a chain.
#[inline(always)]
fn rest<S: Simd>(s: S, rows: Rows<'_>, x: &[f32], acc: [[S::V; 1]; 1]) -> S::V {
    let mut panel = [Line::ZERO; WORDS];
    panel::pack(s, rows, Order::natural(rows.columns), 1, &mut panel);
    let (panel, x) = (&panel[..rows.columns], &x[..rows.columns]);
    tile::columns::<S, 1, 1, 0>(s, panel, x, std::ptr::null(), acc)[0][0]
}

/// The sums of up to 16 rows in one chain each, turned in registers.
#[inline(always)]
fn turned<S: Simd>(s: S, rows: Rows<'_>, x: &[f32], sums: &mut Line) {
    let mut starts = [std::ptr::null::<[u8; 64]>(); LANES];
    for (i, start) in starts.iter_mut().enumerate() {
        *start = rows.row(i.min(rows.rows - 1)).as_ptr().cast();
    }
    let mut acc = s.splat(0.0);
    let (chunks, last) = x.as_chunks::<WORDS>();
    for (c, x) in chunks.iter().enumerate() {
        let mut words = [s.splat(0.0); LANES];
        for (word, start) in words.iter_mut().zip(&starts) {
            let chunk = start.wrapping_add(c);
            s.prefetch(chunk.cast::<u8>().wrapping_add(AHEAD_OF_ROW));
            // SAFETY: `row` gave slices of `x.len()` values of two bytes, and chunk `c` of 32 lies
            // in them
            *word = s.load_bits(unsafe { &*chunk });
        }
        for (word, [even, odd]) in s.transpose(words).iter().zip(x.as_chunks::<2>().0) {
            acc = s.mul_add(s.high(*word), s.splat(*odd), acc);
            acc = s.mul_add(s.low(*word), s.splat(*even), acc);
        }
    }
    if !last.is_empty() {
        acc = rest(
            s,
            rows.part(0, LANES, x.len() - last.len(), WORDS),
            last,
            [[acc]],
        );
    }
    s.store(acc, &mut sums.0);
}

/// Packs one row of activations for [`Gemv`] under `Compute::F32`: of every chunk of 32 columns the
/// even ones, then the odd ones; the rest as it is.
pub(super) fn pack_lanes(x: &[f32], to: &mut [f32]) {
    for (x, to) in x.chunks(BLOCK).zip(to.chunks_mut(BLOCK)) {
        let ((chunks, last), (to, to_last)) = (x.as_chunks::<WORDS>(), to.as_chunks_mut::<WORDS>());
        for (x, to) in chunks.iter().zip(to) {
            for (i, [even, odd]) in x.as_chunks::<2>().0.iter().enumerate() {
                to[i] = *even;
                to[LANES + i] = *odd;
            }
        }
        to_last.copy_from_slice(last);
    }
}
