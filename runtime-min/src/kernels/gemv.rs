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
        let ahead = Ahead::new(weight, ahead);
        for (i, out) in out.chunks_mut(LANES).enumerate() {
            let rows = weight.part(i * LANES, LANES, 0, weight.columns);
            let mut sums = Line::ZERO;
            match compute {
                Compute::F32 => lanes(s, rows, x, ahead, &mut parked, &mut sums),
                Compute::Bf16 => turned(s, rows, x, &mut sums),
            }
            let bias = bias.map(|b| &b[i * LANES..]);
            tile::finish(compute, &sums.0, bias, out);
        }
    }
}

/// What is read after the rows at hand.
#[derive(Clone, Copy)]
pub(super) struct Ahead {
    /// Where this task's weights end.
    end: *const u8,
    /// Where the next task's begin.
    next: *const u8,
}

impl Ahead {
    /// Of the rows of a task, whose thread reads `next` after them.
    #[inline(always)]
    pub(super) fn new(weight: Rows<'_>, next: &[u8]) -> Self {
        let next = if next.is_empty() { weight.bytes } else { next };
        let bytes = weight.rows * weight.stride;
        Self {
            end: weight.bytes.as_ptr().wrapping_add(bytes),
            next: next.as_ptr(),
        }
    }

    /// What comes `distance` bytes after this address in the order of reading.
    #[inline(always)]
    pub(super) fn of(self, address: *const u8, distance: usize) -> *const u8 {
        let left = self.end.addr().saturating_sub(address.addr());
        if left > distance {
            address.wrapping_add(distance)
        } else {
            self.next.wrapping_add(distance - left)
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
        let ahead = ahead.of(row.as_ptr(), AHEAD);
        for (b, x) in x.chunks(BLOCK).enumerate() {
            let from = 2 * b * BLOCK;
            let sums = one_row(s, &row[from..], x, ahead.wrapping_add(from));
            s.store(sums, &mut parked[b * LANES + number].0);
        }
    }
    let rest = &x[rows.columns / WORDS * WORDS..];
    s.store(add_chains(s, rows, rest, parked), &mut sums.0);
}

/// The sums of up to 16 rows from their chains, `[blocks, 16 rows]`, and the inputs of the columns
/// after the last whole chunk.
#[inline(always)]
pub(super) fn add_chains<S: Simd>(s: S, rows: Rows<'_>, last: &[f32], parked: &[Line]) -> S::V {
    let mut total = s.splat(0.0);
    for (b, parked) in parked.chunks_exact(LANES).enumerate() {
        let from = b * BLOCK;
        let columns = BLOCK.min(rows.columns - from);
        if columns >= WORDS {
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
    }
    if last.is_empty() {
        return total;
    }
    let whole = rows.columns - last.len();
    let last = rest(s, rows.part(0, LANES, whole, WORDS), last, [[s.splat(0.0)]]);
    if whole == 0 { last } else { s.add(total, last) }
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
    let ((chunks, last), (to, to_last)) = (x.as_chunks::<WORDS>(), to.as_chunks_mut::<WORDS>());
    for (x, to) in chunks.iter().zip(to) {
        part_pairs(x, to);
    }
    to_last.copy_from_slice(last);
}

/// A chunk of columns: the even ones, then the odd ones.
pub(super) fn part_pairs(x: &[f32; WORDS], to: &mut [f32; WORDS]) {
    for (i, [even, odd]) in x.as_chunks::<2>().0.iter().enumerate() {
        to[i] = *even;
        to[LANES + i] = *odd;
    }
}
