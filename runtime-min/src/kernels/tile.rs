//! The inner loops of matrix products: a strip of weight rows times some tokens, all sums in registers.
//!
//! **The order of additions.** Lanes are rows of the weight, so that each value of a result is one chain of fused
//! multiply-adds over the columns, in ascending pairs, of each pair the odd column first. That is the order of
//! `VDPBF16PS` (Intel SDM), in which the official bf16 traces were computed. Under `Compute::F32` a chain ends after
//! [`CHAIN`] columns, and the sums of the chains are added in ascending order, which keeps rounding errors small. Every
//! kernel keeps to this order, so that a value does not depend on the kernel that computed it.

use super::simd::{Line, Simd};

/// Columns of a block, and of a chain under `Compute::F32`.
pub(super) const CHAIN: usize = 512;

/// `acc[t] += panel column · x[t]` for one column.
#[inline(always)]
pub(super) fn step<S: Simd, const STRIP: usize, const TOKENS: usize>(
    s: S,
    column: &[Line; STRIP],
    x: &[f32; TOKENS],
    acc: &mut [[S::V; STRIP]; TOKENS],
) {
    let mut w = [s.splat(0.0); STRIP];
    for (w, line) in w.iter_mut().zip(column) {
        *w = s.load(&line.0);
    }
    for (acc, x) in acc.iter_mut().zip(x) {
        let x = s.splat(*x);
        for (acc, w) in acc.iter_mut().zip(&w) {
            *acc = s.mul_add(*w, x, *acc);
        }
    }
}

/// `acc += panel · x`: `panel` is `[columns, STRIP]` vectors of rows, `x` is `[columns, TOKENS]`.
#[inline(always)]
pub(super) fn columns<S: Simd, const STRIP: usize, const TOKENS: usize>(
    s: S,
    panel: &[Line],
    x: &[f32],
    acc: &mut [[S::V; STRIP]; TOKENS],
) {
    let (panel, panel_last) = panel.as_chunks::<STRIP>().0.as_chunks::<2>();
    let (x, x_last) = x.as_chunks::<TOKENS>().0.as_chunks::<2>();
    for ([even, odd], [x_even, x_odd]) in panel.iter().zip(x) {
        step(s, odd, x_odd, acc);
        step(s, even, x_even, acc);
    }
    for (column, x) in panel_last.iter().zip(x_last) {
        step(s, column, x, acc);
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

/// One tile: `sums` is `[TOKENS, STRIP]` vectors, over the columns of `panel` and `x`.
#[inline(always)]
pub(super) fn tile<S: Simd, const STRIP: usize, const TOKENS: usize>(
    s: S,
    panel: &[Line],
    x: &[f32],
    sums: &mut [Line],
    how: Sums,
) {
    if TOKENS > S::TOKENS || STRIP > S::STRIP {
        return; // never called; spares its code
    }
    let mut acc = [[s.splat(0.0); STRIP]; TOKENS];
    let sums = &mut sums.as_chunks_mut::<STRIP>().0[..TOKENS];
    if how == Sums::Continue {
        for (acc, line) in acc.iter_mut().flatten().zip(sums.as_flattened()) {
            *acc = s.load(&line.0);
        }
    }
    columns(s, panel, x, &mut acc);
    if how == Sums::Add {
        for (acc, line) in acc.iter_mut().flatten().zip(sums.as_flattened()) {
            *acc = s.add(s.load(&line.0), *acc);
        }
    }
    for (acc, line) in acc.iter().flatten().zip(sums.as_flattened_mut()) {
        s.store(*acc, &mut line.0);
    }
}

/// Calls a function that has the number of tokens as its last const parameter.
macro_rules! by_tokens {
    ($tokens:expr, $f:ident::<$S:ty, $STRIP:ident>($($argument:expr),* $(,)?)) => {
        match $tokens {
            1 => $f::<$S, $STRIP, 1>($($argument),*),
            2 => $f::<$S, $STRIP, 2>($($argument),*),
            3 => $f::<$S, $STRIP, 3>($($argument),*),
            4 => $f::<$S, $STRIP, 4>($($argument),*),
            5 => $f::<$S, $STRIP, 5>($($argument),*),
            6 => $f::<$S, $STRIP, 6>($($argument),*),
            7 => $f::<$S, $STRIP, 7>($($argument),*),
            8 => $f::<$S, $STRIP, 8>($($argument),*),
            9 => $f::<$S, $STRIP, 9>($($argument),*),
            10 => $f::<$S, $STRIP, 10>($($argument),*),
            11 => $f::<$S, $STRIP, 11>($($argument),*),
            12 => $f::<$S, $STRIP, 12>($($argument),*),
            _ => {}
        }
    };
}
pub(super) use by_tokens;

/// `items` in the fewest groups of at most `most`, as equal as can be: the first item and the length of each.
pub(super) fn groups(items: usize, most: usize) -> impl Iterator<Item = (usize, usize)> + Clone {
    let count = items.div_ceil(most);
    (0..count).map(move |i| {
        let (from, to) = (i * items / count, (i + 1) * items / count);
        (from, to - from)
    })
}
