//! bf16 weight rows times a few tokens, under `Compute::F32`: what experts do for a prompt, and
//! every layer for a few sequences.
//!
//! Rows are multiplied as they lie, as [`gemv`](super::gemv) does it for one token: lane i of a
//! register is chain i of a row and a token ([`order`](super::order)). Some rows and tokens side by
//! side fill the registers, so that each value that is loaded is used for several sums. Turning the
//! weights, as [`gemm`](super::gemm) does it, takes as long as their product with some 10 tokens;
//! [`Simd::FEW`] is where it begins to pay.

#![expect(unsafe_code, reason = "loads from rows whose bounds were checked once")]

use super::gemv::{self, Ahead, add_chains};
use super::inputs::Inputs;
use super::order::{BLOCK, WORDS};
use super::panel::Rows;
use super::product::Product;
use super::scratch::{Buffer, Key};
use super::simd::{LANES, Line, Simd, Work};
use super::tile::{by_tokens, finish, groups};
use crate::tensor::Compute;

/// Columns of a piece; a block is a multiple of it.
const PIECE: usize = 1024;

/// A product of bf16 rows with activations that are packed by [`pack`], in groups of at most
/// [`Simd::BESIDE`] tokens.
pub(super) struct Skinny<'a>(pub Product<'a>);

impl Work for Skinny<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        match S::BESIDE.0 {
            4 => self.sixteens::<S, 4>(s),
            2 => self.sixteens::<S, 2>(s),
            _ => self.sixteens::<S, 1>(s),
        }
    }
}

impl Skinny<'_> {
    /// Sixteen rows at a time, which then are the lanes of the sums.
    #[inline(always)]
    fn sixteens<S: Simd, const ROWS: usize>(&mut self, s: S) {
        let mut parked = Buffer::take(Key::Sums);
        let of_a_token = self.0.weight.columns.div_ceil(BLOCK) * LANES;
        let parked = parked.lines(self.0.tokens * of_a_token);
        let ahead = Ahead::new(self.0.weight, self.0.ahead);
        for first in (0..self.0.weight.rows).step_by(LANES) {
            let rows = self.0.weight.part(first, LANES, 0, self.0.weight.columns);
            let bytes = rows.rows * rows.stride;
            let mut wanted = Wanted {
                at: ahead.of(rows.bytes.as_ptr(), bytes),
                lines: bytes.div_ceil(64),
            };
            let groups = groups(self.0.tokens, S::BESIDE.1);
            let lines = ROWS.div_ceil(groups.clone().count());
            for group in groups {
                for from in (0..rows.columns / WORDS * WORDS).step_by(PIECE) {
                    let mut ahead = |steps| wanted.take(steps, lines);
                    self.piece::<S, ROWS>(s, rows, group, from, &mut ahead, parked);
                }
            }
            self.finish(s, rows, first, parked);
        }
    }

    /// Goes on with the chains of a group of tokens, by a piece of the columns: while the rows are
    /// gone through, the inputs stay in the first-level cache.
    #[inline(always)]
    fn piece<S: Simd, const ROWS: usize>(
        &self,
        s: S,
        rows: Rows<'_>,
        (first, tokens): (usize, usize),
        from: usize,
        ahead: &mut impl FnMut(usize) -> (*const u8, usize),
        parked: &mut [Line],
    ) {
        let columns = rows.columns;
        let whole = PIECE.min(columns / WORDS * WORDS - from);
        let of_a_token = columns.div_ceil(BLOCK) * LANES;
        let x = &self.0.x[first * columns + from * tokens..][..whole * tokens];
        for row in (0..rows.rows).step_by(ROWS) {
            let mut beside = [&[][..]; ROWS];
            for (i, bytes) in beside.iter_mut().enumerate() {
                // lanes beyond the last row are not used
                let all = rows.row((row + i).min(rows.rows - 1));
                *bytes = all[2 * from..][..2 * whole].as_chunks::<64>().0;
            }
            let mut sums = Parked {
                lines: &mut parked[first * of_a_token + from / BLOCK * LANES + row..],
                of_a_token,
                begin: from.is_multiple_of(BLOCK),
            };
            let ahead = ahead(whole / WORDS);
            by_tokens!(tokens, chains::<S, ROWS>(s, beside, x, &mut sums, ahead));
        }
    }

    /// Adds up the chains, and the columns after them.
    #[inline(always)]
    fn finish<S: Simd>(&mut self, s: S, rows: Rows<'_>, first_row: usize, parked: &[Line]) {
        let columns = rows.columns;
        let (whole, rest) = (columns / WORDS * WORDS, columns % WORDS);
        let mut parked = parked.chunks_exact(columns.div_ceil(BLOCK) * LANES);
        for (first, tokens) in groups(self.0.tokens, S::BESIDE.1) {
            let x = &self.0.x[first * columns + whole * tokens..][..rest * tokens];
            for t in 0..tokens {
                let Some(parked) = parked.next() else { return };
                let mut sums = Line::ZERO;
                let rest = &x[t * rest..][..rest];
                s.store(add_chains(s, rows, rest, parked), &mut sums.0);
                let bias = self.0.bias.map(|b| &b[first_row..]);
                let out = &mut self.0.out.row(first + t)[first_row..];
                finish(Compute::F32, &sums.0, bias, out);
            }
        }
    }
}

/// Memory that is read next, asked for line by line.
struct Wanted {
    at: *const u8,
    lines: usize,
}

impl Wanted {
    /// Where to ask from, for how many lines at each of so many steps.
    #[inline(always)]
    fn take(&mut self, steps: usize, lines: usize) -> (*const u8, usize) {
        let lines = lines.min(self.lines.div_ceil(steps));
        let at = self.at;
        self.at = at.wrapping_add(steps * lines * 64);
        self.lines = self.lines.saturating_sub(steps * lines);
        (at, lines)
    }
}

/// Where chains wait: `[tokens][of_a_token]` vectors.
struct Parked<'p> {
    lines: &'p mut [Line],
    of_a_token: usize,
    /// Whether the chains begin.
    begin: bool,
}

/// Goes on with the chains of some rows and tokens. `x` is `[chunks][TOKENS]`, the even columns of
/// a chunk, then the odd ones. At every chunk it asks for some lines of memory.
#[inline(always)]
#[expect(
    clippy::needless_range_loop,
    reason = "references keep sums in memory: half the speed"
)]
fn chains<S: Simd, const ROWS: usize, const TOKENS: usize>(
    s: S,
    rows: [&[[u8; 64]]; ROWS],
    x: &[f32],
    parked: &mut Parked<'_>,
    (ahead, lines): (*const u8, usize),
) {
    if TOKENS > S::BESIDE.1 {
        return; // never called; spares its code
    }
    let x = x.as_chunks::<LANES>().0.as_chunks::<2>().0;
    let x = x.as_chunks::<TOKENS>().0;
    let mut acc = [[s.splat(0.0); ROWS]; TOKENS];
    let of_a_token = parked.of_a_token;
    if !parked.begin {
        for t in 0..TOKENS {
            for r in 0..ROWS {
                acc[t][r] = s.load(&parked.lines[t * of_a_token + r].0);
            }
        }
    }
    let mut starts = [std::ptr::null::<[u8; 64]>(); ROWS];
    for (start, row) in starts.iter_mut().zip(rows) {
        *start = row[..x.len()].as_ptr();
    }
    for (c, x) in x.iter().enumerate() {
        for line in 0..lines {
            s.prefetch(ahead.wrapping_add((c * lines + line) * 64));
        }
        let mut words = [s.splat(0.0); ROWS];
        for r in 0..ROWS {
            // SAFETY: every row has a chunk for each of `x`
            let chunk = unsafe { &*starts[r].add(c) };
            words[r] = s.high(s.load_bits(chunk));
        }
        for t in 0..TOKENS {
            let odd = s.load(&x[t][1]);
            for r in 0..ROWS {
                acc[t][r] = s.mul_add(words[r], odd, acc[t][r]);
            }
        }
        for r in 0..ROWS {
            // SAFETY: as above
            let chunk = unsafe { &*starts[r].add(c) };
            words[r] = s.low(s.load_bits(chunk));
        }
        for t in 0..TOKENS {
            let even = s.load(&x[t][0]);
            for r in 0..ROWS {
                acc[t][r] = s.mul_add(words[r], even, acc[t][r]);
            }
        }
    }
    for t in 0..TOKENS {
        for r in 0..ROWS {
            s.store(acc[t][r], &mut parked.lines[t * of_a_token + r].0);
        }
    }
}

/// Packs the rows of one group of tokens for [`Skinny`]: of every block of columns first the whole
/// chunks of 32, each `[tokens]`, the even columns, then the odd ones; then the rest, `[tokens]`.
pub(super) fn pack(x: Inputs<'_>, to: &mut [f32]) {
    let (tokens, columns) = (x.rows(), x.columns());
    let whole = columns / WORDS * WORDS;
    let (chunks, rest) = to.split_at_mut(tokens * whole);
    for t in 0..tokens {
        let row = x.row(t);
        let to = chunks.as_chunks_mut::<WORDS>().0.iter_mut().skip(t);
        let (chunks, last) = row.as_chunks::<WORDS>();
        for (x, to) in chunks.iter().zip(to.step_by(tokens)) {
            gemv::part_pairs(x, to);
        }
        rest[t * last.len()..][..last.len()].copy_from_slice(last);
    }
}
