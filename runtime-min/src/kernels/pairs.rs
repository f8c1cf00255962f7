//! bf16 weight rows times bf16 activations under `Compute::Bf16`, a pair of columns at a time: one
//! instruction where the processor has `VDPBF16PS`. The order of additions is that of
//! [`tile`](super::tile), which it is taken from.
//!
//! Weights are turned, so that lanes are rows, but not widened: half the memory of what
//! [`gemm`](super::gemm) keeps in the first-level cache.

#![expect(unsafe_code, reason = "loads from rows whose bounds were checked once")]

use segpack_formats::numeric::bf16;

use super::inputs::Inputs;
use super::order::WORDS;
use super::panel::Rows;
use super::product::Product;
use super::rows::store;
use super::scratch::{Buffer, Key};
use super::simd::{LANES, Line, Simd, Work, pair_of};
use super::tile::{Ahead, by_tokens, finish, groups};
use crate::tensor::Compute;

/// Columns of a piece: 16 KiB of 32 rows, half of a first-level cache.
const PIECE: usize = 256;
/// Most tokens for which weights are turned in registers and forgotten.
const FEW: usize = 4;
/// How far ahead memory is asked for, in bytes, for every one of 16 rows that are read side by side.
const AHEAD_OF_ROW: usize = 256;

/// Pairs of so many columns, whole chunks of 32: what is missing is zero.
pub(super) fn pairs(columns: usize) -> usize {
    columns.div_ceil(WORDS) * LANES
}

/// Packs rows of activations, all of them bf16 values, as `[pairs, tokens]`: two values in the bits
/// of one.
pub(super) struct Pack<'a> {
    /// At most 16 rows.
    pub x: Inputs<'a>,
    /// Not fewer than the rows; those that are missing are zero.
    pub tokens: usize,
    pub to: &'a mut [f32],
}

impl Work for Pack<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { x, tokens, to } = self;
        debug_assert!(
            (0..x.rows()).all(|t| x.row(t).iter().all(|x| x.is_nan() || bf16::round(*x) == *x)),
            "activations under bf16 are bf16 values"
        );
        if tokens == 1 {
            return pack_one(x.row(0), to);
        }
        for (c, to) in to.chunks_exact_mut(LANES * tokens).enumerate() {
            for half in 0..2 {
                let columns = x.turned(s, c * WORDS + half * LANES);
                let to = &mut to[half * LANES / 2 * tokens..];
                for (i, to) in to.chunks_exact_mut(tokens).take(LANES / 2).enumerate() {
                    store(s, s.pair(columns[2 * i], columns[2 * i + 1]), to);
                }
            }
        }
    }
}

fn pack_one(x: &[f32], to: &mut [f32]) {
    let (pairs, last) = x.as_chunks::<2>();
    let (to, rest) = to.split_at_mut(pairs.len());
    for (to, [even, odd]) in to.iter_mut().zip(pairs) {
        *to = pair_of(*even, *odd);
    }
    rest.fill(0.0);
    if let ([to, ..], [even]) = (rest, last) {
        *to = pair_of(*even, 0.0);
    }
}

/// A product with activations that are packed by [`Pack`], in groups of at most [`Simd::TOKENS`] tokens.
pub(super) struct Pairs<'a>(pub Product<'a>);

impl Work for Pairs<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        match self.0.tokens {
            ..=FEW => self.few(s),
            _ => self.many(s),
        }
    }
}

impl Pairs<'_> {
    /// Sixteen rows at a time, in registers.
    #[inline(always)]
    fn few<S: Simd>(&mut self, s: S) {
        for first in (0..self.0.weight.rows).step_by(LANES) {
            let rows = self.0.weight.part(first, LANES, 0, self.0.weight.columns);
            let mut sums = [Line::ZERO; FEW];
            match self.0.tokens {
                1 => sixteen::<S, 1>(s, rows, self.0.x, &mut sums),
                2 => sixteen::<S, 2>(s, rows, self.0.x, &mut sums),
                3 => sixteen::<S, 3>(s, rows, self.0.x, &mut sums),
                _ => sixteen::<S, FEW>(s, rows, self.0.x, &mut sums),
            }
            for (t, sums) in sums.iter().enumerate().take(self.0.tokens) {
                self.finish(first, t, &sums.0);
            }
        }
    }

    /// Strips of 32 rows, a piece of the columns for all tokens at a time.
    #[inline(always)]
    fn many<S: Simd>(&mut self, s: S) {
        let [mut panel, mut sums] = [Key::Panel, Key::Sums].map(Buffer::take);
        let panel = panel.lines(PIECE).as_chunks_mut::<2>().0;
        let sums = sums.lines(2 * self.0.tokens).as_chunks_mut::<2>().0;
        let all = pairs(self.0.weight.columns);
        let mut ahead = Ahead::new(self.0.ahead);
        for first_row in (0..self.0.weight.rows).step_by(2 * LANES) {
            for from in (0..self.0.weight.columns).step_by(PIECE) {
                let rows = self.0.weight.part(first_row, 2 * LANES, from, PIECE);
                let panel = &mut panel[..pairs(rows.columns)];
                turn(s, rows, panel);
                let begin = from == 0;
                for (first, tokens) in groups(self.0.tokens, S::TOKENS) {
                    let x = &self.0.x[first * all + from / 2 * tokens..][..panel.len() * tokens];
                    let sums = &mut sums[first..first + tokens];
                    let ahead = ahead.take(2 * panel.len(), panel.as_flattened());
                    by_tokens!(tokens, dots::<S>(s, panel, x, sums, begin, ahead));
                }
            }
            for (t, sums) in sums.iter().enumerate() {
                for (v, line) in sums.iter().enumerate() {
                    self.finish(first_row + v * LANES, t, &line.0);
                }
            }
        }
    }

    /// The results of one token for up to 16 rows from `first` on.
    #[inline(always)]
    fn finish(&mut self, first: usize, token: usize, sums: &[f32; LANES]) {
        let out = self.0.out.row(token);
        if let Some(out) = out.get_mut(first..) {
            finish(Compute::Bf16, sums, self.0.bias.map(|b| &b[first..]), out);
        }
    }
}

/// The sums of up to 16 rows, one chain each. `x` is `[pairs, TOKENS]`.
#[inline(always)]
fn sixteen<S: Simd, const TOKENS: usize>(s: S, rows: Rows<'_>, x: &[f32], sums: &mut [Line; FEW]) {
    let mut starts = [std::ptr::null::<[u8; 64]>(); LANES];
    for (i, start) in starts.iter_mut().enumerate() {
        *start = rows.row(i.min(rows.rows - 1)).as_ptr().cast();
    }
    let whole = rows.columns / WORDS;
    let mut acc = [s.splat(0.0); TOKENS];
    let x = x.as_chunks::<TOKENS>().0.as_chunks::<LANES>().0;
    for (c, x) in x.iter().enumerate() {
        let mut words = [s.splat(0.0); LANES];
        if c < whole {
            for (word, start) in words.iter_mut().zip(&starts) {
                let chunk = start.wrapping_add(c);
                s.prefetch(chunk.cast::<u8>().wrapping_add(AHEAD_OF_ROW));
                // SAFETY: `row` gave slices of `rows.columns` values of two bytes, and chunk `c` of 32
                // lies in them
                *word = s.load_bits(unsafe { &*chunk });
            }
        } else {
            words = last_words(s, rows, c);
        }
        let words = s.transpose(words);
        for i in 0..LANES {
            for t in 0..TOKENS {
                acc[t] = s.dot_pairs(words[i], s.splat(x[i][t]), acc[t]);
            }
        }
    }
    for t in 0..TOKENS {
        s.store(acc[t], &mut sums[t].0);
    }
}

/// The columns after the last whole chunk of up to 16 rows, then zeros.
#[inline(always)]
fn last_words<S: Simd>(s: S, rows: Rows<'_>, chunk: usize) -> [S::V; LANES] {
    let mut words = [s.splat(0.0); LANES];
    for (i, word) in words.iter_mut().enumerate() {
        let mut bits = [0; 64];
        let last = &rows.row(i.min(rows.rows - 1))[chunk * bits.len()..];
        bits[..last.len()].copy_from_slice(last);
        *word = s.load_bits(&bits);
    }
    words
}

/// Fills `panel`, `[pairs, 2]` vectors of 16 rows each; lanes that have no row get any values.
#[inline(always)]
fn turn<S: Simd>(s: S, from: Rows<'_>, panel: &mut [[Line; 2]]) {
    for v in 0..2 {
        let first = (v * LANES).min(from.rows - 1);
        let rows = from.part(first, LANES, 0, from.columns);
        let whole = rows.columns / WORDS;
        for (c, panel) in panel.chunks_exact_mut(LANES).enumerate() {
            let mut words = [s.splat(0.0); LANES];
            if c < whole {
                for (i, word) in words.iter_mut().enumerate() {
                    let row = rows.row(i.min(rows.rows - 1)).as_chunks::<64>().0;
                    *word = s.load_bits(&row[c]);
                }
            } else {
                words = last_words(s, rows, c);
            }
            for (to, word) in panel.iter_mut().zip(s.transpose(words)) {
                s.store(word, &mut to[v].0);
            }
        }
    }
}

/// One tile: `sums[t] += panel · x[t]`, where `x` is `[pairs, TOKENS]`; from zero where they begin.
/// Asks for two lines of memory per pair.
#[inline(always)]
fn dots<S: Simd, const TOKENS: usize>(
    s: S,
    panel: &[[Line; 2]],
    x: &[f32],
    sums: &mut [[Line; 2]],
    begin: bool,
    ahead: *const u8,
) {
    if TOKENS > S::TOKENS {
        return; // never called; spares its code
    }
    let sums = &mut sums[..TOKENS];
    let mut acc = [[s.splat(0.0); 2]; TOKENS];
    if !begin {
        for t in 0..TOKENS {
            for v in 0..2 {
                acc[t][v] = s.load(&sums[t][v].0);
            }
        }
    }
    for (i, (words, x)) in panel.iter().zip(x.as_chunks::<TOKENS>().0).enumerate() {
        for line in 0..2 {
            s.prefetch(ahead.wrapping_add((2 * i + line) * size_of::<Line>()));
        }
        let words = [s.load(&words[0].0), s.load(&words[1].0)];
        for t in 0..TOKENS {
            let x = s.splat(x[t]);
            for v in 0..2 {
                acc[t][v] = s.dot_pairs(words[v], x, acc[t][v]);
            }
        }
    }
    for t in 0..TOKENS {
        for v in 0..2 {
            s.store(acc[t][v], &mut sums[t][v].0);
        }
    }
}
