//! Weight rows times many tokens: the rows are widened and turned once per block of columns, for
//! all tokens.

use super::order::{BLOCK, Order};
use segpack_formats::numeric::FloatDtype;

use super::inputs::Inputs;
use super::panel::{self, Rows};
use super::scratch::{Buffer, Key};
use super::shared::Columns;
use super::simd::{self, LANES, Line, Simd, Work};
use super::tile::{Ahead, Sums, by_tokens, groups, tile};
use crate::tensor::Compute;

/// Most weight rows of one task.
pub(super) const ROWS: usize = 64;
/// Strips of rows that are multiplied with the same activations while these are in the first-level
/// cache; more strips would not fit beside them.
const SIDE_BY_SIDE: usize = 2;
/// How many rows of the result ahead memory is asked for.
const FINISHED_AHEAD: usize = 8;
/// Most tokens of one task.
pub(super) const TOKENS: usize = 512;

/// `out[t] = round(x[t] · rows + bias)`
pub(super) struct Gemm<'a> {
    pub weight: Rows<'a>,
    /// `[tokens, columns]`, packed by [`Pack`].
    pub x: &'a [f32],
    pub tokens: usize,
    /// `[rows]`
    pub bias: Option<&'a [f32]>,
    /// `[tokens, rows]`
    pub out: Columns<'a>,
    /// What this thread reads next.
    pub ahead: &'a [u8],
    pub compute: Compute,
}

impl Work for Gemm<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        match S::STRIP {
            2 => self.blocks::<S, 2>(s),
            _ => self.blocks::<S, 1>(s),
        }
    }
}

impl Gemm<'_> {
    #[inline(always)]
    fn blocks<S: Simd, const STRIP: usize>(&mut self, s: S) {
        let strips = self.weight.rows.div_ceil(STRIP * LANES);
        let columns = self.weight.columns;
        let pairs = self.weight.dtype == FloatDtype::BF16;
        let [mut sums, mut panels, mut wide] =
            [Key::Sums, Key::Panel, Key::Values].map(Buffer::take);
        let sums = sums.lines(strips * STRIP * self.tokens);
        let panels = panels.lines(strips * STRIP * BLOCK.min(columns));
        let longest = Order::new(self.compute, BLOCK.min(columns)).longest();
        let wide = wide.lines(SIDE_BY_SIDE * STRIP * longest);
        let mut ahead = Ahead::new(self.ahead);
        for from in (0..columns).step_by(BLOCK) {
            let length = BLOCK.min(columns - from);
            let order = Order::new(self.compute, length);
            let panels = &mut panels[..strips * STRIP * length];
            for (i, panel) in panels.chunks_exact_mut(STRIP * length).enumerate() {
                let rows = self
                    .weight
                    .part(i * STRIP * LANES, STRIP * LANES, from, length);
                if pairs {
                    panel::pack_pairs(s, rows, order, STRIP, panel);
                } else {
                    panel::pack(s, rows, order, STRIP, panel);
                }
            }
            for chain in order.chains() {
                let how = Sums::of(self.compute, from + chain.start);
                let strip = chain.len() * STRIP;
                for first_strip in (0..strips).step_by(SIDE_BY_SIDE) {
                    let some = SIDE_BY_SIDE.min(strips - first_strip);
                    let wide = &mut wide[..some * strip];
                    for (i, wide) in wide.chunks_exact_mut(strip).enumerate() {
                        let panel = &panels[(first_strip + i) * STRIP * length..][..STRIP * length];
                        if !pairs {
                            wide.copy_from_slice(&panel[chain.start * STRIP..][..strip]);
                        } else if chain.start < order.whole() {
                            let pairs = &panel[chain.start / 2 * STRIP..chain.end / 2 * STRIP];
                            panel::widen_pairs::<S, STRIP>(s, pairs, wide);
                        } else {
                            let first = (first_strip + i) * STRIP * LANES;
                            let from = from + chain.start;
                            let rows = self.weight.part(first, STRIP * LANES, from, chain.len());
                            panel::pack(s, rows, Order::natural(chain.len()), STRIP, wide);
                        }
                    }
                    // the activations of a group come from the second-level cache: once for all
                    // strips that lie side by side
                    let mut groups = groups(self.tokens, S::TOKENS).peekable();
                    while let Some((first, tokens)) = groups.next() {
                        let x = &self.x[first * columns + (from + chain.start) * tokens..];
                        let x = &x[..chain.len() * tokens];
                        let next = groups.peek().map(|(first, tokens)| {
                            &self.x[first * columns + (from + chain.start) * tokens..]
                        });
                        for (i, panel) in wide.chunks_exact(strip).enumerate() {
                            let at = (first_strip + i) * self.tokens + first;
                            let sums = &mut sums[at * STRIP..];
                            let ahead = match next {
                                // they do not lie behind those of this group
                                Some(next) if i + 1 == some => next.as_ptr().cast(),
                                _ => ahead.take(chain.len(), panel),
                            };
                            by_tokens!(tokens, tile::<S, STRIP>(s, panel, x, sums, how, ahead));
                        }
                    }
                }
            }
        }
        for (i, sums) in sums.chunks_exact(STRIP * self.tokens).enumerate() {
            for (t, sums) in sums.chunks_exact(STRIP).enumerate() {
                if t + FINISHED_AHEAD < self.tokens {
                    let out = self.out.row(t + FINISHED_AHEAD);
                    let out = &out[out.len().min(i * STRIP * LANES)..];
                    for line in out.chunks(LANES).take(STRIP) {
                        s.prefetch(line.as_ptr().cast());
                    }
                }
                self.finish(i * STRIP * LANES, t, simd::values(sums));
            }
        }
    }

    /// The results of one token for the rows from `first` on.
    #[inline(always)]
    fn finish(&mut self, first: usize, token: usize, sums: &[f32]) {
        let compute = self.compute;
        let out = self.out.row(token);
        let end = out.len().min(first + sums.len());
        let out = &mut out[first..end];
        match self.bias {
            Some(bias) => {
                for ((out, sum), b) in out.iter_mut().zip(sums).zip(&bias[first..]) {
                    *out = compute.round(sum + b);
                }
            }
            None => {
                for (out, sum) in out.iter_mut().zip(sums) {
                    *out = compute.round(*sum);
                }
            }
        }
    }
}

/// Packs rows of activations for [`Gemm`]: groups of tokens as tiles take them, each `[columns,
/// tokens of the group]`, the columns of each block in their order.
pub(super) struct Pack<'a> {
    pub x: Inputs<'a>,
    pub compute: Compute,
    /// As long as `x`.
    pub to: &'a mut [f32],
}

impl Work for Pack<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let columns = self.x.columns();
        for (first, tokens) in groups(self.x.rows(), S::TOKENS) {
            let x = self.x.part(first, tokens);
            let to = &mut self.to[first * columns..][..tokens * columns];
            for from in (0..columns).step_by(BLOCK) {
                let length = BLOCK.min(columns - from);
                let order = Order::new(self.compute, length);
                let to = &mut to[from * tokens..][..length * tokens];
                by_tokens!(tokens, pack_block::<S>(s, x, from, order, to));
            }
        }
    }
}

/// One block of columns of a group, a transpose.
#[inline(always)]
fn pack_block<S: Simd, const TOKENS: usize>(
    s: S,
    x: Inputs<'_>,
    from: usize,
    order: Order,
    to: &mut [f32],
) {
    if TOKENS > S::TOKENS {
        return; // never called; spares its code
    }
    let to = to.as_chunks_mut::<TOKENS>().0;
    let whole = to.len() / LANES;
    for c in 0..whole {
        let column = from + c * LANES;
        let place = x.place(column);
        let mut rows = [s.splat(0.0); LANES];
        for (t, row) in rows.iter_mut().enumerate().take(TOKENS) {
            *row = x.vector(s, t, column, place);
        }
        let (first, next) = order.pairs(c * LANES);
        for (i, row) in s.transpose(rows).iter().enumerate() {
            let mut line = Line::ZERO;
            s.store(*row, &mut line.0);
            // its length is known, so that it is no call
            to[first + (i / 2) * next + i % 2].copy_from_slice(&line.0[..TOKENS]);
        }
    }
    for c in whole * LANES..to.len() {
        let place = x.place(from + c);
        for (t, to) in to[order.place(c)].iter_mut().enumerate() {
            *to = x.value(t, place);
        }
    }
}
