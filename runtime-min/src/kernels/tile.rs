//! The inner loops of matrix products: a strip of weight rows times some tokens, all sums in
//! registers.
//!
//! **The order of additions.** Lanes are rows of the weight, so that each value of a result is one
//! chain of fused multiply-adds over columns, in ascending pairs, of each pair the odd column
//! first. Under `Compute::Bf16` the chain goes over all columns: that is the order of `VDPBF16PS`
//! (Intel SDM), in which the official bf16 traces were computed. Under `Compute::F32` there are
//! several chains, whose sums are added one after the other ([`order`](super::order)). Every kernel
//! keeps to that order, so that a value does not depend on the kernel that computed it.

use super::simd::{Line, Simd};
use crate::tensor::Compute;

/// `acc[t] += panel column · x[t]` for one column.
///
/// Sums are passed by value, here and below: behind a reference the compiler stores them at every
/// step.
#[inline(always)]
fn step<S: Simd, const STRIP: usize, const TOKENS: usize>(
    s: S,
    column: &[Line; STRIP],
    x: &[f32; TOKENS],
    mut acc: [[S::V; STRIP]; TOKENS],
) -> [[S::V; STRIP]; TOKENS] {
    let mut w = [s.splat(0.0); STRIP];
    for v in 0..STRIP {
        w[v] = s.load(&column[v].0);
    }
    for t in 0..TOKENS {
        let x = s.splat(x[t]);
        for v in 0..STRIP {
            acc[t][v] = s.mul_add(w[v], x, acc[t][v]);
        }
    }
    acc
}

/// `acc += panel · x`: `panel` is `[columns, STRIP]` vectors of rows, `x` is `[columns, TOKENS]`.
/// At every pair of columns it asks for `LINES` lines of memory from `ahead` on.
#[inline(always)]
pub(super) fn columns<S: Simd, const STRIP: usize, const TOKENS: usize, const LINES: usize>(
    s: S,
    panel: &[Line],
    x: &[f32],
    ahead: *const u8,
    mut acc: [[S::V; STRIP]; TOKENS],
) -> [[S::V; STRIP]; TOKENS] {
    let (panel, panel_last) = panel.as_chunks::<STRIP>().0.as_chunks::<2>();
    let (x, x_last) = x.as_chunks::<TOKENS>().0.as_chunks::<2>();
    for (i, ([even, odd], [x_even, x_odd])) in panel.iter().zip(x).enumerate() {
        for line in 0..LINES {
            s.prefetch(ahead.wrapping_add((i * LINES + line) * size_of::<Line>()));
        }
        acc = step(s, odd, x_odd, acc);
        acc = step(s, even, x_even, acc);
    }
    for (column, x) in panel_last.iter().zip(x_last) {
        acc = step(s, column, x, acc);
    }
    acc
}

/// Activations of a group of tokens, as long as the columns of a strip.
pub(super) trait Activations: Copy {
    /// `acc` plus the products with `panel`, as [`columns`] gives them.
    fn columns<S: Simd, const STRIP: usize, const TOKENS: usize>(
        self,
        s: S,
        panel: &[Line],
        ahead: *const u8,
        acc: [[S::V; STRIP]; TOKENS],
    ) -> [[S::V; STRIP]; TOKENS];
}

/// `[columns, tokens]`, in the order in which columns are added up.
#[derive(Debug, Clone, Copy)]
pub(super) struct InOrder<'a>(pub &'a [f32]);

impl Activations for InOrder<'_> {
    #[inline(always)]
    fn columns<S: Simd, const STRIP: usize, const TOKENS: usize>(
        self,
        s: S,
        panel: &[Line],
        ahead: *const u8,
        acc: [[S::V; STRIP]; TOKENS],
    ) -> [[S::V; STRIP]; TOKENS] {
        columns::<S, STRIP, TOKENS, 2>(s, panel, self.0, ahead, acc)
    }
}

/// Anywhere, the tokens of a column one after another: columns may share values.
#[derive(Debug, Clone, Copy)]
pub(super) struct Anywhere<'a> {
    pub values: &'a [f32],
    /// For each column, in the order in which columns are added up, where its first token is.
    pub places: &'a [usize],
}

impl Activations for Anywhere<'_> {
    #[inline(always)]
    fn columns<S: Simd, const STRIP: usize, const TOKENS: usize>(
        self,
        s: S,
        panel: &[Line],
        ahead: *const u8,
        mut acc: [[S::V; STRIP]; TOKENS],
    ) -> [[S::V; STRIP]; TOKENS] {
        let (panel, panel_last) = panel.as_chunks::<STRIP>().0.as_chunks::<2>();
        let (places, places_last) = self.places.as_chunks::<2>();
        for (i, ([even, odd], [at_even, at_odd])) in panel.iter().zip(places).enumerate() {
            for line in 0..2 {
                s.prefetch(ahead.wrapping_add((i * 2 + line) * size_of::<Line>()));
            }
            acc = step(s, odd, self.tokens(*at_odd), acc);
            acc = step(s, even, self.tokens(*at_even), acc);
        }
        for (column, at) in panel_last.iter().zip(places_last) {
            acc = step(s, column, self.tokens(*at), acc);
        }
        acc
    }
}

impl<'a> Anywhere<'a> {
    /// Tokens from `first` on, and some of the columns.
    #[inline(always)]
    pub(super) fn part(self, first: usize, columns: std::ops::Range<usize>) -> Self {
        Self {
            values: &self.values[first..],
            places: &self.places[columns],
        }
    }

    /// The values of a group of tokens that begin here.
    #[inline(always)]
    fn tokens<const TOKENS: usize>(self, at: usize) -> &'a [f32; TOKENS] {
        let (tokens, _) = self.values[at..].as_chunks();
        &tokens[0]
    }
}

/// Memory that will be needed next, asked for line by line while tiles are computed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ahead<'a>(&'a [u8]);

impl<'a> Ahead<'a> {
    pub(super) fn new(memory: &'a [u8]) -> Self {
        Self(memory)
    }

    /// Where to ask from, for this many lines; where all was asked for, `instead`, which should be
    /// in the cache.
    #[inline(always)]
    pub(super) fn take(&mut self, lines: usize, instead: &[Line]) -> *const u8 {
        match self.0.split_at_checked(lines * size_of::<Line>()) {
            Some((now, rest)) => {
                self.0 = rest;
                now.as_ptr()
            }
            None => instead.as_ptr().cast(),
        }
    }
}

/// What is done with the sums of a block of columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sums {
    /// They are the first.
    Begin,
    /// A chain of its own, added to the sums before it.
    Add,
    /// The chain before goes on.
    Continue,
}

impl Sums {
    /// For the columns that come after `columns` others.
    pub(super) fn of(compute: Compute, columns: usize) -> Self {
        match compute {
            _ if columns == 0 => Self::Begin,
            Compute::F32 => Self::Add,
            Compute::Bf16 => Self::Continue,
        }
    }
}

/// One tile: `sums` is `[TOKENS, STRIP]` vectors, over the columns of `panel` and `x`. Asks for a
/// line of memory per column.
#[inline(always)]
pub(super) fn tile<S: Simd, const STRIP: usize, const TOKENS: usize>(
    s: S,
    panel: &[Line],
    x: impl Activations,
    sums: &mut [Line],
    how: Sums,
    ahead: *const u8,
) {
    if TOKENS > S::TOKENS || STRIP > S::STRIP {
        return; // never called; spares its code
    }
    let sums = &mut sums.as_chunks_mut::<STRIP>().0[..TOKENS];
    let mut acc = [[s.splat(0.0); STRIP]; TOKENS];
    if how == Sums::Continue {
        for t in 0..TOKENS {
            for v in 0..STRIP {
                acc[t][v] = s.load(&sums[t][v].0);
            }
        }
    }
    acc = x.columns(s, panel, ahead, acc);
    for t in 0..TOKENS {
        for v in 0..STRIP {
            let to = &mut sums[t][v].0;
            let sum = if how == Sums::Add {
                s.add(s.load(to), acc[t][v])
            } else {
                acc[t][v]
            };
            s.store(sum, to);
        }
    }
}

/// `out = round(sums + bias)`, as long as the shorter of `out` and `sums`.
#[inline(always)]
pub(super) fn finish(compute: Compute, sums: &[f32], bias: Option<&[f32]>, out: &mut [f32]) {
    match bias {
        Some(bias) => {
            for ((out, sum), b) in out.iter_mut().zip(sums).zip(bias) {
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

/// `out = round(out + round(sums + bias))`, as long as the shorter of `out` and `sums`.
#[inline(always)]
pub(super) fn finish_onto(compute: Compute, sums: &[f32], bias: Option<&[f32]>, out: &mut [f32]) {
    match bias {
        Some(bias) => {
            for ((out, sum), b) in out.iter_mut().zip(sums).zip(bias) {
                *out = compute.round(*out + compute.round(sum + b));
            }
        }
        None => {
            for (out, sum) in out.iter_mut().zip(sums) {
                *out = compute.round(*out + compute.round(*sum));
            }
        }
    }
}

/// Calls a function that has the number of tokens as its last const parameter.
macro_rules! by_tokens {
    ($tokens:expr, $f:ident::<$($generic:ident),+>($($argument:expr),* $(,)?)) => {
        match $tokens {
            1 => $f::<$($generic),+, 1>($($argument),*),
            2 => $f::<$($generic),+, 2>($($argument),*),
            3 => $f::<$($generic),+, 3>($($argument),*),
            4 => $f::<$($generic),+, 4>($($argument),*),
            5 => $f::<$($generic),+, 5>($($argument),*),
            6 => $f::<$($generic),+, 6>($($argument),*),
            7 => $f::<$($generic),+, 7>($($argument),*),
            8 => $f::<$($generic),+, 8>($($argument),*),
            9 => $f::<$($generic),+, 9>($($argument),*),
            10 => $f::<$($generic),+, 10>($($argument),*),
            11 => $f::<$($generic),+, 11>($($argument),*),
            12 => $f::<$($generic),+, 12>($($argument),*),
            _ => {}
        }
    };
}
pub(super) use by_tokens;

/// `items` in the fewest groups of at most `max`, as equal as can be: the first item and the
/// length of each.
pub(super) fn groups(items: usize, max: usize) -> impl Iterator<Item = (usize, usize)> + Clone {
    let count = items.div_ceil(max);
    (0..count).map(move |i| {
        let (from, to) = (i * items / count, (i + 1) * items / count);
        (from, to - from)
    })
}
