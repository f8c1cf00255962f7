//! Some rows of a weight times activations, tile by tile.

use super::super::gemv;
use super::super::order::WORDS;
use super::super::panel::Rows;
use super::super::product::Product;
use super::super::scratch::{Buffer, Key};
use super::super::simd::{LANES, Line, Simd, Work, bytes, values};
use super::super::tile::{finish, finish_onto};
use super::detect::Amx;
use super::group::{GROUP, Group};
use super::registers::{Ahead, Registers, SUMS, TILE, Weights};
use super::taps::Layout;
use crate::tensor::Compute;

/// Most bytes of weights of a task, which stay in the second-level cache for all groups of tokens,
/// beside the activations of one.
const WEIGHTS: usize = 512 << 10;
/// The same for one group, which reads them once.
const WEIGHTS_READ_ONCE: usize = 256 << 10;
/// Fewest rows of a task; all tasks have a multiple of it.
const LEAST_ROWS: usize = 64;
/// Most rows of a task.
const MOST_ROWS: usize = 256;
/// Bytes of the longest rows of which memory is asked for ahead, where each is read once. The processor
/// does so by itself when longer ones are read side by side, and does it better: on an Emerald Rapids, one
/// token and rows of 1,536 bytes took 87 % of the bandwidth with it and 72 % without, rows of 4,096 bytes
/// 88 and 110 % of what a plain loop takes.
const SHORT_ROW: usize = 2 << 10;
/// Tasks for every thread, at least, where there are rows enough.
const TASKS_OF_A_THREAD: usize = 2;

/// Rows of a task: the more, the less often activations come from memory beyond the second-level cache.
pub(in crate::kernels) fn rows_of_a_task(weight: &Rows<'_>, tokens: usize) -> usize {
    let bytes = match tokens {
        ..=GROUP => WEIGHTS_READ_ONCE,
        _ => WEIGHTS,
    };
    let most = (bytes / weight.stride).clamp(LEAST_ROWS, MOST_ROWS);
    let balanced = weight.rows / (TASKS_OF_A_THREAD * rayon::current_num_threads());
    balanced.clamp(LEAST_ROWS, most) / LEAST_ROWS * LEAST_ROWS
}

/// A product with activations that are packed by [`Group::packs`], or by [`Layout::turns`].
pub(in crate::kernels) struct Tiles<'a> {
    pub amx: Amx,
    pub compute: Compute,
    pub product: Product<'a>,
    /// Of a convolution.
    pub taps: Option<&'a Layout>,
    /// Whether results are added to what `out` has, rounded once more.
    pub adds: bool,
}

impl Work for Tiles<'_> {
    type Out = ();

    /// All rows for a group of tokens after another: its activations stay in the second-level cache,
    /// as the weights do, and sums leave the registers once for all whole chunks of columns, or of a tap.
    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let mut sums = Buffer::take(Key::Sums);
        let sums = sums.lines(SUMS);
        let mut registers = Registers::new(self.amx);
        let groups = Group::of(
            self.compute,
            self.product.tokens,
            self.product.weight.columns,
        );
        for group in groups {
            registers.configure(self.height(), group.width);
            for firsts in self.pairs_of_tiles() {
                self.multiply(s, &mut registers, firsts, group, sums);
                for tile in 0..group.tiles {
                    for (half, first) in [(0, firsts[0]), (2, firsts[1])] {
                        let sums = &sums[(half + tile) * TILE..][..TILE];
                        self.finish_tile(s, first, group, tile, sums);
                    }
                }
            }
        }
    }
}

impl Tiles<'_> {
    /// Rows of a tile.
    fn height(&self) -> usize {
        LANES.min(self.product.weight.rows)
    }

    /// The first rows of two tiles at a time; those of the last may be beyond the weight.
    fn pairs_of_tiles(&self) -> impl Iterator<Item = [usize; 2]> + Clone + use<> {
        let firsts = (0..self.product.weight.rows).step_by(2 * LANES);
        firsts.map(|first| [first, first + LANES])
    }

    /// Where the tile begins that has this row: before it where too few rows are left.
    fn start(&self, first: usize) -> usize {
        first.min(self.product.weight.rows - self.height())
    }

    /// The products of two tiles of rows and a group.
    #[inline(always)]
    fn multiply<S: Simd>(
        &self,
        s: S,
        registers: &mut Registers,
        firsts: [usize; 2],
        group: Group,
        sums: &mut [Line],
    ) {
        let rows = firsts.map(|first| self.rows(first));
        match self.taps {
            None => self.multiply_rows(s, registers, rows, group, sums),
            Some(layout) => self.multiply_taps(registers, rows, (layout, group), sums),
        }
    }

    /// The rows of the tile that has this row.
    fn rows(&self, first: usize) -> Rows<'_> {
        let weight = self.product.weight;
        weight.part(self.start(first), self.height(), 0, weight.columns)
    }

    #[inline(always)]
    fn multiply_rows<S: Simd>(
        &self,
        s: S,
        registers: &mut Registers,
        rows: [Rows<'_>; 2],
        group: Group,
        sums: &mut [Line],
    ) {
        let columns = self.product.weight.columns;
        let whole = columns / WORDS;
        let x = group.x(self.product.x, columns, 0);
        let mut weights = as_they_lie(rows);
        if self.product.tokens <= GROUP && weights.stride <= SHORT_ROW {
            weights.ahead = self.rows_after(rows[0]);
        }
        registers.multiply(weights, group, x, whole, sums, false);
        if !columns.is_multiple_of(WORDS) {
            let mut last = Buffer::take(Key::Panel);
            let last = last.lines(2 * TILE);
            copy_last(s, rows, last);
            let (first, second) = bytes(values(last)).split_at(TILE * size_of::<Line>());
            let weights = Weights {
                tiles: [first, second],
                height: rows[0].rows,
                stride: size_of::<Line>(),
                ahead: Ahead::NOTHING,
            };
            let x = group.x(self.product.x, columns, whole);
            registers.multiply(weights, group, x, 1, sums, true);
        }
    }

    /// The two tiles that come after those from these rows on.
    fn rows_after(&self, rows: Rows<'_>) -> Ahead {
        let order = gemv::Ahead::new(self.product.weight, self.product.ahead);
        Ahead {
            at: order.of(rows.bytes.as_ptr(), 2 * TILE * rows.stride),
            eights: 2 * TILE / 8,
        }
    }

    fn multiply_taps(
        &self,
        registers: &mut Registers,
        rows: [Rows<'_>; 2],
        (layout, group): (&Layout, Group),
        sums: &mut [Line],
    ) {
        let columns = layout.chunks() * WORDS;
        for tap in 0..self.product.weight.columns / columns {
            let rows = rows.map(|rows| rows.part(0, rows.rows, tap * columns, columns));
            let x = layout.x(self.product.x, group, tap);
            registers.multiply(as_they_lie(rows), group, x, layout.chunks(), sums, tap > 0);
        }
    }

    /// The results of the rows of a tile from `first` on, and a tile of tokens. Those before it were
    /// written with the tile before.
    #[inline(always)]
    fn finish_tile<S: Simd>(
        &mut self,
        s: S,
        first: usize,
        group: Group,
        tile: usize,
        sums: &[Line],
    ) {
        if first >= self.product.weight.rows {
            return;
        }
        let start = self.start(first);
        let end = start + self.height();
        let token = tile * group.width;
        let tokens = group.width.min(group.tokens - token);
        let mut rows = [s.splat(0.0); LANES];
        for (row, line) in rows.iter_mut().zip(sums) {
            *row = s.load(&line.0);
        }
        let bias = self.product.bias.map(|b| &b[first..]);
        for (t, sums) in s.transpose(rows).iter().enumerate().take(tokens) {
            let out = &mut self.product.out.row(group.first + token + t)[first..end];
            match (self.compute, out.first_chunk_mut()) {
                (Compute::F32, Some(out)) => finish_vector(s, *sums, bias, self.adds, out),
                _ => {
                    let mut line = Line::ZERO;
                    s.store(*sums, &mut line.0);
                    let sums = &line.0[first - start..];
                    match self.adds {
                        true => finish_onto(self.compute, sums, bias, out),
                        false => finish(self.compute, sums, bias, out),
                    }
                }
            }
        }
    }
}

/// The results of 16 rows under `Compute::F32`.
#[inline(always)]
fn finish_vector<S: Simd>(
    s: S,
    mut sums: S::V,
    bias: Option<&[f32]>,
    adds: bool,
    out: &mut [f32; LANES],
) {
    if let Some(bias) = bias {
        sums = s.add(sums, s.load(&bias.as_chunks().0[0]));
    }
    if adds {
        sums = s.add(s.load(out), sums);
    }
    s.store(sums, out);
}

/// Tiles of rows, to be multiplied where they are.
fn as_they_lie(rows: [Rows<'_>; 2]) -> Weights<'_> {
    Weights {
        tiles: rows.map(|rows| rows.bytes),
        height: rows[0].rows,
        stride: rows[0].stride,
        ahead: Ahead::NOTHING,
    }
}

/// Copies the columns after the last whole chunk of two tiles of rows; those that are missing become
/// zero.
#[inline(always)]
fn copy_last<S: Simd>(s: S, from: [Rows<'_>; 2], to: &mut [Line]) {
    for (rows, to) in from.iter().zip(to.chunks_exact_mut(TILE)) {
        for (r, to) in to.iter_mut().enumerate().take(rows.rows) {
            let (_, last) = rows.row(r).as_chunks::<{ size_of::<Line>() }>();
            let mut bits = [0; size_of::<Line>()];
            bits[..last.len()].copy_from_slice(last);
            s.store(s.load_bits(&bits), &mut to.0);
        }
    }
}
