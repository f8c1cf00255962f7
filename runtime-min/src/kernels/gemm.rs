//! Weight rows times many tokens: the rows are widened and turned once per block of columns, for
//! all tokens.

use std::ops::Range;

use super::order::{BLOCK, Order};
use segpack_formats::numeric::FloatDtype;

use super::inputs::Inputs;
use super::panel::{self, Rows};
use super::scratch::{Buffer, Key};
use super::shared::Columns;
use super::simd::{self, LANES, Line, Simd, Work};
use super::tile::{Ahead, Anywhere, InOrder, Sums, by_tokens, finish, finish_onto, groups, tile};
use crate::tensor::Compute;

/// Most weight rows of one task.
pub(super) const ROWS: usize = 64;
/// How many rows of the result ahead memory is asked for.
const FINISHED_AHEAD: usize = 8;
/// Most tokens of one task.
pub(super) const TOKENS: usize = 512;

/// `out[t] = round(x[t] · rows + bias)`, or `round(out[t] + …)` of it
pub(super) struct Gemm<'a> {
    pub weight: Rows<'a>,
    /// `[tokens, columns]`
    pub x: Packed<'a>,
    pub tokens: usize,
    /// `[rows]`
    pub bias: Option<&'a [f32]>,
    /// `[tokens, rows]`
    pub out: Columns<'a>,
    /// Whether results are added to what `out` has, rounded once more.
    pub adds: bool,
    /// What this thread reads next.
    pub ahead: &'a [u8],
    pub compute: Compute,
}

/// Activations as they were packed.
#[derive(Debug, Clone, Copy)]
pub(super) enum Packed<'a> {
    /// By [`Pack`].
    Groups(&'a [f32]),
    /// As a convolution's are, whose columns share values.
    Anywhere(Anywhere<'a>),
}

impl Packed<'_> {
    /// How many strips of rows are multiplied with the same activations, and most columns of what
    /// the first-level cache holds of each, beside the activations and sums of a group.
    fn pass(self) -> (usize, usize) {
        match self {
            Self::Groups(_) => (2, 128),
            // activations are few
            Self::Anywhere(_) => (1, 192),
        }
    }
}

/// Columns of a strip that are in the first-level cache.
#[derive(Debug, Clone)]
struct Pass {
    /// In the order in which they are added up.
    columns: Range<usize>,
    /// As many of them are summed up at a time.
    chain: usize,
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
        let (side_by_side, most) = self.x.pass();
        let chain = Order::new(self.compute, BLOCK.min(columns)).chain();
        let wide = wide.lines(side_by_side * STRIP * most.max(chain));
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
            for pass in order.passes(most) {
                let strip = pass.len() * STRIP;
                for first_strip in (0..strips).step_by(side_by_side) {
                    let some = side_by_side.min(strips - first_strip);
                    let wide = &mut wide[..some * strip];
                    for (i, wide) in wide.chunks_exact_mut(strip).enumerate() {
                        let panel = &panels[(first_strip + i) * STRIP * length..][..STRIP * length];
                        if !pairs {
                            wide.copy_from_slice(&panel[pass.start * STRIP..][..strip]);
                        } else if pass.start < order.whole() {
                            let pairs = &panel[pass.start / 2 * STRIP..pass.end / 2 * STRIP];
                            panel::widen_pairs::<S, STRIP>(s, pairs, wide);
                        } else {
                            let first = (first_strip + i) * STRIP * LANES;
                            let from = from + pass.start;
                            let rows = self.weight.part(first, STRIP * LANES, from, pass.len());
                            panel::pack(s, rows, Order::natural(pass.len()), STRIP, wide);
                        }
                    }
                    let pass = Pass {
                        chain: match pass.start < order.whole() {
                            true => order.chain(),
                            false => pass.len(),
                        },
                        columns: from + pass.start..from + pass.end,
                    };
                    let sums = &mut sums[first_strip * STRIP * self.tokens..];
                    self.pass::<S, STRIP>(s, wide, pass, sums, &mut ahead);
                }
            }
        }
        for (i, sums) in sums.chunks_exact_mut(STRIP * self.tokens).enumerate() {
            for (t, sums) in sums.chunks_exact_mut(STRIP).enumerate() {
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

    /// Goes on with the sums of all tokens by the columns of a pass, of strips that lie side by side:
    /// the activations and the sums of a group come from the second-level cache once for all of them.
    /// `sums` is `[strips, tokens, STRIP]`.
    #[inline(always)]
    fn pass<S: Simd, const STRIP: usize>(
        &self,
        s: S,
        strips: &[Line],
        pass: Pass,
        sums: &mut [Line],
        ahead: &mut Ahead<'_>,
    ) {
        let Pass { columns, chain } = pass;
        let strips = strips.chunks_exact(columns.len() * STRIP);
        let last = strips.len() - 1;
        let mut groups = groups(self.tokens, S::TOKENS).peekable();
        while let Some((first, tokens)) = groups.next() {
            let next = match self.x {
                Packed::Groups(x) => groups.peek().map(|next| (x, *next)),
                // they are in the cache
                Packed::Anywhere(_) => None,
            };
            for (i, strip) in strips.clone().enumerate() {
                let sums = &mut sums[(i * self.tokens + first) * STRIP..];
                for (from, panel) in columns
                    .clone()
                    .step_by(chain)
                    .zip(strip.chunks(chain * STRIP))
                {
                    let columns = from..from + panel.len() / STRIP;
                    let how = Sums::of(self.compute, from);
                    let ahead = match next {
                        // they do not lie behind those of this group
                        Some((x, (first, tokens))) if i == last => {
                            self.group(x, first, tokens, from).as_ptr().cast()
                        }
                        _ => ahead.take(columns.len(), panel),
                    };
                    match self.x {
                        Packed::Groups(x) => {
                            let x = self.group(x, first, tokens, from);
                            let x = InOrder(&x[..columns.len() * tokens]);
                            by_tokens!(tokens, tile::<S, STRIP>(s, panel, x, sums, how, ahead));
                        }
                        Packed::Anywhere(x) => {
                            let x = x.part(first, columns);
                            by_tokens!(tokens, tile::<S, STRIP>(s, panel, x, sums, how, ahead));
                        }
                    }
                }
            }
        }
    }

    /// The activations of a group from a column on.
    #[inline(always)]
    fn group<'x>(&self, x: &'x [f32], first: usize, tokens: usize, column: usize) -> &'x [f32] {
        &x[first * self.weight.columns + column * tokens..]
    }

    /// The results of one token for the rows from `first` on.
    #[inline(always)]
    fn finish(&mut self, first: usize, token: usize, sums: &[f32]) {
        let out = self.out.row(token);
        let end = out.len().min(first + sums.len());
        let out = &mut out[first..end];
        let bias = self.bias.map(|bias| &bias[first..]);
        match self.adds {
            true => finish_onto(self.compute, sums, bias, out),
            false => finish(self.compute, sums, bias, out),
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
        let mut rows = [s.splat(0.0); LANES];
        for (t, row) in rows.iter_mut().enumerate().take(TOKENS) {
            *row = x.vector(s, t, column);
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
        for (t, to) in to[order.place(c)].iter_mut().enumerate() {
            *to = x.row(t)[from + c];
        }
    }
}
