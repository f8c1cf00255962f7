//! Products of bf16 values with `BFMMLA`, under `Compute::Bf16`: ARM64 processors with FEAT_BF16 (Neoverse
//! V1, V2 and N2, Apple M2 and later).
//!
//! The instruction adds the products of two tokens with two rows, four columns each, to a block of
//! 2 x 2 sums. A *tile* is the blocks of eight rows and up to six pairs of tokens, all in registers.
//!
//! **The order of additions** (Arm ARM, `BFMatMulAdd` and `BFDotAdd` where `FPCR.EBF` is 0) differs
//! from that of all other kernels: columns go in ascending pairs. The sum of a pair's products is
//! rounded, then the sum of it and of the pairs before it, both to odd: of the two nearest values
//! the one whose last bit is 1. Columns that are missing in the last 32 are zero. Values and sums
//! below 2⁻¹²⁶ are zero. One order for any number of tokens: where there is one, half of a block is
//! not used.

#![expect(
    unsafe_code,
    reason = "an instruction that was detected, for which there is no stable intrinsic; loads from \
              rows whose bounds were checked once"
)]

use std::arch::aarch64::*;
use std::arch::asm;

use segpack_formats::numeric::bf16;

use super::inputs::Inputs;
use super::neon::Neon;
use super::order::WORDS;
use super::panel::Rows;
use super::product::Product;
use super::scratch::{Buffer, Key};
use super::simd::{Line, Simd, pair_of};
use super::tile::{Ahead, finish, groups};
use crate::tensor::Compute;

/// Columns that an instruction takes.
const STEP: usize = 4;
/// Values of a register: four sums, or pairs of bf16 values.
const REGISTER: usize = 4;
/// Registers of weights of a tile, two rows each.
const WEIGHTS: usize = 4;
/// Rows of a tile.
const ROWS: usize = 2 * WEIGHTS;
/// Most pairs of tokens of a tile: 24 of the 32 registers are sums, four are weights.
const PAIRS: usize = 6;
/// Tiles of rows that are turned together: a group's activations are read once for all of them.
const STRIP: usize = 4;
/// Columns that are turned together: 16 KiB of a strip, a quarter of a first-level cache.
const PIECE: usize = 256;
/// How far ahead memory is asked for, in bytes, for every row of a tile that is read as it lies.
const AHEAD_OF_ROW: usize = 256;

/// Blocks of sums of a tile: for each pair of tokens one line of 2 x 2 blocks.
type Sums<const PAIRS: usize> = [[float32x4_t; WEIGHTS]; PAIRS];
/// Activations of one step.
type Step<const PAIRS: usize> = [[f32; REGISTER]; PAIRS];

/// FEAT_BF16 was detected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bfmmla(Neon);

impl Bfmmla {
    pub(super) fn detect() -> Option<Self> {
        match std::arch::is_aarch64_feature_detected!("bf16") {
            true => Neon::detect().map(Self),
            false => None,
        }
    }

    /// Multiplies some rows of a weight with activations that are packed by [`Pack`].
    pub(super) fn run(self, product: Product<'_>) {
        let blocks = Blocks {
            neon: self.0,
            product,
        };
        // SAFETY: only `detect` makes a `Bfmmla`, where the features are there
        unsafe { blocks.run() }
    }

    /// Multiplies blocks that are in registers, as many a step as a tile has: so many multiply-adds.
    pub(super) fn multiply_registers(self, steps: usize) -> usize {
        // SAFETY: as above
        unsafe { multiply_registers(steps) }
        steps * PAIRS * WEIGHTS * REGISTER * STEP
    }
}

/// As how many values some tokens are packed.
pub(super) fn packed(tokens: usize, columns: usize) -> usize {
    tokens.next_multiple_of(2) * columns.next_multiple_of(WORDS) / 2
}

/// What packs rows of activations, a group of tokens at a time.
pub(super) fn packs<'a>(x: Inputs<'a>, to: &'a mut [f32]) -> Vec<Pack<'a>> {
    let mut packs = Vec::new();
    let mut rest = to;
    for (first, pairs) in groups(x.rows().div_ceil(2), PAIRS) {
        let tokens = (2 * pairs).min(x.rows() - 2 * first);
        let (to, after) = rest.split_at_mut(packed(tokens, x.columns()));
        packs.push(Pack {
            x: x.part(2 * first, tokens),
            to,
        });
        rest = after;
    }
    packs
}

/// Packs rows of activations, all of them bf16 values, as `[columns / 4][pairs of tokens]` registers:
/// four columns of each of two tokens. What is missing is zero.
pub(super) struct Pack<'a> {
    /// At least one row.
    x: Inputs<'a>,
    to: &'a mut [f32],
}

impl Pack<'_> {
    pub(super) fn run(self) {
        let Self { x, to } = self;
        debug_assert!(
            (0..x.rows()).all(|t| x.row(t).iter().all(|x| x.is_nan() || bf16::round(*x) == *x)),
            "activations under bf16 are bf16 values"
        );
        let steps = to.as_chunks_mut::<REGISTER>().0;
        let pairs = x.rows().div_ceil(2);
        for token in 0..2 * pairs {
            let half = token % 2 * 2;
            let row = if token < x.rows() { x.row(token) } else { &[] };
            for (s, step) in steps.chunks_exact_mut(pairs).enumerate() {
                let four = four(row, s * STEP);
                let to = &mut step[token / 2];
                to[half] = pair_of(four[0], four[1]);
                to[half + 1] = pair_of(four[2], four[3]);
            }
        }
    }
}

/// Four columns of a row, zeros where it has ended.
#[inline]
fn four(row: &[f32], column: usize) -> [f32; STEP] {
    let rest = row.get(column..).unwrap_or_default();
    if let Some(four) = rest.first_chunk() {
        return *four;
    }
    let mut four = [0.0; STEP];
    four[..rest.len()].copy_from_slice(rest);
    four
}

/// Calls a function that has the number of pairs of tokens as its only parameter.
macro_rules! by_pairs {
    ($pairs:expr, $f:ident($($argument:expr),* $(,)?)) => {
        match $pairs {
            1 => $f::<1>($($argument),*),
            2 => $f::<2>($($argument),*),
            3 => $f::<3>($($argument),*),
            4 => $f::<4>($($argument),*),
            5 => $f::<5>($($argument),*),
            _ => $f::<PAIRS>($($argument),*),
        }
    };
}

/// A product that is computed in blocks.
struct Blocks<'a> {
    neon: Neon,
    product: Product<'a>,
}

impl Blocks<'_> {
    #[target_feature(enable = "neon,bf16")]
    fn run(mut self) {
        match self.pairs() {
            ..=PAIRS => self.one_group(),
            _ => self.many(),
        }
    }

    /// Pairs of tokens; the last may be one token.
    fn pairs(&self) -> usize {
        self.product.tokens.div_ceil(2)
    }

    /// Weights as they lie: turning them is not worth it for one group of tokens.
    #[target_feature(enable = "neon,bf16")]
    fn one_group(&mut self) {
        let (neon, pairs) = (self.neon, self.pairs());
        let mut sums = [Line::ZERO; PAIRS];
        for first in (0..self.product.weight.rows).step_by(ROWS) {
            let weight = self.product.weight;
            let rows = weight.part(first, ROWS, 0, weight.columns);
            by_pairs!(pairs, as_they_lie(neon, rows, self.product.x, &mut sums));
            for token in 0..self.product.tokens {
                self.finish(first, token, &sums[token / 2]);
            }
        }
    }

    /// Strips of 32 rows, a piece of the columns for all tokens at a time.
    #[target_feature(enable = "neon,bf16")]
    fn many(&mut self) {
        let (neon, pairs) = (self.neon, self.pairs());
        let [mut panel, mut sums] = [Key::Panel, Key::Sums].map(Buffer::take);
        let panel = panel.lines(STRIP * PIECE / STEP);
        let sums = sums.lines(STRIP * pairs);
        let weight = self.product.weight;
        let all = packed(2, weight.columns);
        let mut ahead = Ahead::new(self.product.ahead);
        for first_row in (0..weight.rows).step_by(STRIP * ROWS) {
            let tiles = (weight.rows - first_row).div_ceil(ROWS).min(STRIP);
            for from in (0..weight.columns).step_by(PIECE) {
                let rows = weight.part(first_row, STRIP * ROWS, from, PIECE);
                let steps = rows.columns.next_multiple_of(WORDS) / STEP;
                let panel = &mut panel[..tiles * steps];
                turn(rows, panel, steps);
                for (first, group) in groups(pairs, PAIRS) {
                    let x = &self.product.x[first * all + from * group..];
                    let x = &x[..steps * group * REGISTER];
                    for (tile, panel) in panel.chunks_exact(steps).enumerate() {
                        let sums = &mut sums[tile * pairs + first..][..group];
                        let memory = Next {
                            neon,
                            at: ahead.take(steps, panel),
                        };
                        by_pairs!(group, multiply(panel, x, sums, from == 0, memory));
                    }
                }
            }
            for token in 0..self.product.tokens {
                for (tile, sums) in sums.chunks_exact(pairs).enumerate().take(tiles) {
                    self.finish(first_row + tile * ROWS, token, &sums[token / 2]);
                }
            }
        }
    }

    /// The results of one token for up to eight rows from `first` on; `sums` are those of its pair.
    fn finish(&mut self, first: usize, token: usize, sums: &Line) {
        let mut rows = [0.0; ROWS];
        let half = token % 2 * 2;
        for (rows, block) in rows
            .as_chunks_mut::<2>()
            .0
            .iter_mut()
            .zip(sums.0.as_chunks::<REGISTER>().0)
        {
            *rows = [block[half], block[half + 1]];
        }
        let out = &mut self.product.out.row(token)[first..];
        let bias = self.product.bias.map(|b| &b[first..]);
        finish(Compute::Bf16, &rows, bias, out);
    }
}

/// Adds the products of a block: `sums[token][row] += x[token] · w[row]`, four columns.
#[inline]
#[target_feature(enable = "neon,bf16")]
fn multiply_add(mut sums: float32x4_t, x: uint8x16_t, w: uint8x16_t) -> float32x4_t {
    // SAFETY: an instruction of a feature that this function has; it touches no memory
    unsafe {
        asm!(
            "bfmmla {sums:v}.4s, {x:v}.8h, {w:v}.8h",
            sums = inout(vreg) sums,
            x = in(vreg) x,
            w = in(vreg) w,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sums
}

/// The same four columns of two rows.
#[inline]
#[target_feature(enable = "neon")]
fn two_rows(first: &[u8; 8], second: &[u8; 8]) -> uint8x16_t {
    // SAFETY: 8 bytes are read from 8 bytes each, which need no alignment
    unsafe { vcombine_u8(vld1_u8(first.as_ptr()), vld1_u8(second.as_ptr())) }
}

#[inline]
#[target_feature(enable = "neon")]
fn load(from: &[f32; REGISTER]) -> uint8x16_t {
    // SAFETY: 16 bytes are read from four values
    unsafe { vreinterpretq_u8_f32(vld1q_f32(from.as_ptr())) }
}

/// One step of a tile. Sums are passed by value: behind a reference the compiler may store them at
/// every step.
#[inline]
#[target_feature(enable = "neon,bf16")]
fn step<const PAIRS: usize>(
    w: [uint8x16_t; WEIGHTS],
    x: &Step<PAIRS>,
    mut sums: Sums<PAIRS>,
) -> Sums<PAIRS> {
    for p in 0..PAIRS {
        let x = load(&x[p]);
        for i in 0..WEIGHTS {
            sums[p][i] = multiply_add(sums[p][i], x, w[i]);
        }
    }
    sums
}

/// 32 columns of eight rows.
#[inline]
#[target_feature(enable = "neon,bf16")]
fn chunk<const PAIRS: usize>(
    rows: [&[u8; 2 * WORDS]; ROWS],
    x: &[Step<PAIRS>; WORDS / STEP],
    mut sums: Sums<PAIRS>,
) -> Sums<PAIRS> {
    for (s, x) in x.iter().enumerate() {
        let mut w = [vdupq_n_u8(0); WEIGHTS];
        for i in 0..WEIGHTS {
            let first = &rows[2 * i].as_chunks().0[s];
            w[i] = two_rows(first, &rows[2 * i + 1].as_chunks().0[s]);
        }
        sums = step(w, x, sums);
    }
    sums
}

/// The sums of up to eight rows, from all columns. `x` is `[columns / 4][PAIRS]` registers.
#[target_feature(enable = "neon,bf16")]
fn as_they_lie<const PAIRS: usize>(neon: Neon, rows: Rows<'_>, x: &[f32], to: &mut [Line]) {
    let mut starts = [std::ptr::null::<[u8; 2 * WORDS]>(); ROWS];
    for (i, start) in starts.iter_mut().enumerate() {
        *start = rows.row(i.min(rows.rows - 1)).as_ptr().cast();
    }
    let whole = rows.columns / WORDS;
    let x = x.as_chunks::<REGISTER>().0.as_chunks::<PAIRS>().0;
    let (x, last) = x.as_chunks().0.split_at(whole);
    let mut sums = [[vdupq_n_f32(0.0); WEIGHTS]; PAIRS];
    for (c, x) in x.iter().enumerate() {
        let mut chunks = [&[0; 2 * WORDS]; ROWS];
        for (chunk, start) in chunks.iter_mut().zip(&starts) {
            let at = start.wrapping_add(c);
            neon.prefetch(at.cast::<u8>().wrapping_add(AHEAD_OF_ROW));
            // SAFETY: `row` gave slices of `rows.columns` values of two bytes, and chunk `c` of 32
            // lies in them
            *chunk = unsafe { &*at };
        }
        sums = chunk(chunks, x, sums);
    }
    if let [x, ..] = last {
        let copies = last_columns(rows);
        sums = chunk(copies.each_ref(), x, sums);
    }
    store(sums, to);
}

/// The columns after the last whole chunk of up to eight rows, then zeros.
fn last_columns(rows: Rows<'_>) -> [[u8; 2 * WORDS]; ROWS] {
    let mut copies = [[0; 2 * WORDS]; ROWS];
    for (i, copy) in copies.iter_mut().enumerate() {
        let row = rows.row(i.min(rows.rows - 1));
        let (_, last) = row.as_chunks::<{ 2 * WORDS }>();
        copy[..last.len()].copy_from_slice(last);
    }
    copies
}

/// Fills `panel`, `[tiles, steps]` lines of four registers each: four columns of two rows. Where rows
/// are missing, the last one is there again.
#[target_feature(enable = "neon")]
fn turn(from: Rows<'_>, panel: &mut [Line], steps: usize) {
    for (tile, panel) in panel.chunks_exact_mut(steps).enumerate() {
        let rows = from.part(tile * ROWS, ROWS, 0, from.columns);
        let whole = rows.columns / STEP;
        let (panel, last) = panel.split_at_mut(whole);
        for i in 0..WEIGHTS {
            let pair = [2 * i, 2 * i + 1].map(|row| rows.row(row.min(rows.rows - 1)));
            let [first, second] = pair.map(|row| row.as_chunks::<8>().0);
            for ((to, first), second) in panel.iter_mut().zip(first).zip(second) {
                put(to, i, two_rows(first, second));
            }
        }
        if let [to, zeros @ ..] = last {
            *to = last_step(rows);
            zeros.fill(Line::ZERO);
        }
    }
}

/// The columns after the last four of up to eight rows, then zeros.
#[target_feature(enable = "neon")]
fn last_step(rows: Rows<'_>) -> Line {
    let mut line = Line::ZERO;
    for i in 0..WEIGHTS {
        let mut pair = [[0; 8]; 2];
        for (j, copy) in pair.iter_mut().enumerate() {
            let row = rows.row((2 * i + j).min(rows.rows - 1));
            let (_, last) = row.as_chunks::<8>();
            copy[..last.len()].copy_from_slice(last);
        }
        put(&mut line, i, two_rows(&pair[0], &pair[1]));
    }
    line
}

/// Stores a register of a line.
#[inline]
#[target_feature(enable = "neon")]
fn put(line: &mut Line, i: usize, register: uint8x16_t) {
    let to = &mut line.0.as_chunks_mut::<REGISTER>().0[i];
    // SAFETY: 16 bytes are written to four values
    unsafe { vst1q_f32(to.as_mut_ptr(), vreinterpretq_f32_u8(register)) }
}

/// Stores the sums of a tile.
#[inline]
#[target_feature(enable = "neon")]
fn store<const PAIRS: usize>(sums: Sums<PAIRS>, to: &mut [Line]) {
    for (to, sums) in to.iter_mut().zip(sums) {
        for (i, register) in sums.into_iter().enumerate() {
            put(to, i, vreinterpretq_u8_f32(register));
        }
    }
}

/// Memory that is asked for next, a line at every step.
#[derive(Clone, Copy)]
struct Next {
    neon: Neon,
    at: *const u8,
}

/// One tile: `sums += panel · x`, where `x` is `[steps][PAIRS]` registers; from zero where they begin.
#[target_feature(enable = "neon,bf16")]
fn multiply<const PAIRS: usize>(
    panel: &[Line],
    x: &[f32],
    to: &mut [Line],
    begin: bool,
    next: Next,
) {
    let to = &mut to[..PAIRS];
    let mut sums = [[vdupq_n_f32(0.0); WEIGHTS]; PAIRS];
    if !begin {
        for (sums, line) in sums.iter_mut().zip(&*to) {
            for (register, from) in sums.iter_mut().zip(line.0.as_chunks().0) {
                *register = vreinterpretq_f32_u8(load(from));
            }
        }
    }
    let x = x.as_chunks::<REGISTER>().0.as_chunks::<PAIRS>().0;
    for (s, (line, x)) in panel.iter().zip(x).enumerate() {
        next.neon
            .prefetch(next.at.wrapping_add(s * size_of::<Line>()));
        let mut w = [vdupq_n_u8(0); WEIGHTS];
        for (register, from) in w.iter_mut().zip(line.0.as_chunks().0) {
            *register = load(from);
        }
        sums = step(w, x, sums);
    }
    store(sums, to);
}

/// Steps of a tile, whose operands the compiler does not know and whose sums end in memory: equal
/// ones would be computed once, and those that nobody reads not at all.
#[target_feature(enable = "neon,bf16")]
fn multiply_registers(steps: usize) {
    let x = std::hint::black_box([[1e-4; REGISTER]; PAIRS]);
    let weights = std::hint::black_box([[0.5; REGISTER]; WEIGHTS]);
    let mut w = [vdupq_n_u8(0); WEIGHTS];
    for i in 0..WEIGHTS {
        w[i] = load(&weights[i]);
    }
    let mut sums = [[vdupq_n_f32(0.0); WEIGHTS]; PAIRS];
    for _ in 0..steps {
        sums = step(w, &x, sums);
    }
    let mut lines = [Line::ZERO; PAIRS];
    store(sums, &mut lines);
    std::hint::black_box(&lines);
}

#[cfg(test)]
mod tests {
    use super::super::tests::dot_add;
    use super::*;

    /// Blocks of one instruction: its sums, activations, and weights.
    type Block = ([f32; REGISTER], [[u16; STEP]; 2], [[u16; STEP]; 2]);

    #[target_feature(enable = "neon,bf16")]
    fn by_the_processor((sums, x, w): &Block) -> [f32; REGISTER] {
        // SAFETY: 16 bytes are read from, and written to, 16 bytes
        unsafe {
            let [x, w] = [x, w].map(|eight| vld1q_u8(eight.as_ptr().cast()));
            let mut to = [0.0; REGISTER];
            vst1q_f32(
                to.as_mut_ptr(),
                multiply_add(vld1q_f32(sums.as_ptr()), x, w),
            );
            to
        }
    }

    fn by_the_manual((sums, x, w): &Block) -> [f32; REGISTER] {
        let mut to = *sums;
        for (i, sum) in to.iter_mut().enumerate() {
            let (x, w) = (&x[i / 2], &w[i % 2]);
            for c in [0, 2] {
                *sum = dot_add(*sum, [x[c], x[c + 1]], [w[c], w[c + 1]]);
            }
        }
        to
    }

    /// Random values, their exponents in one of some ranges.
    struct Bits(u64);

    impl Bits {
        /// xorshift64 (Marsaglia 2003).
        fn next(&mut self) -> u32 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            (self.0 >> 32) as u32
        }

        /// The upper half of a value, its exponent from `least` on, one of `count`.
        fn value(&mut self, least: u32, count: u32) -> u32 {
            let exponent = (least + self.next() % count).min(255);
            self.next() & 0x807f_ffff | exponent << 23
        }

        /// Exponents of operands and of sums that meet each other.
        fn block(&mut self, [least, count]: [u32; 2], [of_sums, count_of_sums]: [u32; 2]) -> Block {
            let mut block = Block::default();
            for sum in &mut block.0 {
                *sum = f32::from_bits(self.value(of_sums, count_of_sums));
            }
            for operand in [&mut block.1, &mut block.2] {
                for value in operand.as_flattened_mut() {
                    *value = (self.value(least, count) >> 16) as u16;
                }
            }
            block
        }
    }

    /// Whether both are the same value, to the bit.
    fn is_same(a: f32, b: f32) -> bool {
        a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan()
    }

    #[test]
    fn an_instruction_computes_what_the_manual_says() {
        if Bfmmla::detect().is_none() {
            return;
        }
        let ranges = [
            ("any", [0, 256], [0, 256]),
            ("near one", [122, 8], [118, 14]),
            ("sums below all", [60, 8], [0, 20]),
            ("sums above all", [186, 8], [245, 12]),
            ("zero and below", [0, 3], [0, 3]),
            ("not finite", [253, 3], [250, 6]),
        ];
        let mut bits = Bits(0x9e37_79b9_7f4a_7c15);
        for (what, operands, sums) in ranges {
            for _ in 0..20_000 {
                let block = bits.block(operands, sums);
                // SAFETY: the features were detected
                let seen = unsafe { by_the_processor(&block) };
                let wanted = by_the_manual(&block);
                let same = seen.iter().zip(wanted).all(|(a, b)| is_same(*a, b));
                assert!(same, "{what}: {seen:?} for {wanted:?} of {block:?}");
            }
        }
    }
}
