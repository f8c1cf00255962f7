//! The search for scales and minima of Q4_K and Q5_K.

use super::lanes::{Lane, add_product, lane, larger, nearest, smaller};

/// Values of a run.
pub(super) const RUN: usize = 32;

/// Values or weights of `R` runs, side by side: those of one block or of several. Each candidate of
/// a run depends on the one before, so that a processor waits where there are few runs.
pub(super) type Columns<const R: usize> = [Lane<R>; RUN];

/// `x` is nearly `scale * q + min` with `q` from 0 to the top, for each run; `min` is not positive.
#[derive(Clone, Copy)]
pub(super) struct Fit<const R: usize> {
    pub(super) scale: Lane<R>,
    pub(super) min: Lane<R>,
}

/// Which scales are tried: the range of the values over `top + first`, over `top + first + step`,
/// and so on.
#[derive(Clone, Copy)]
pub(super) struct Search {
    /// The largest `q`.
    pub(super) top: f32,
    pub(super) first: f32,
    pub(super) step: f32,
    pub(super) tries: u8,
    /// Whether the error is taken from the values again: from the sums it is too small where rounding
    /// made scale and minimum worse than the best, as it does where nearly all `q` are the same.
    pub(super) second_pass: bool,
}

/// What no candidate changes: the distances of the values from the lowest, and sums over them.
struct Sums<const R: usize> {
    low: Lane<R>,
    range: Lane<R>,
    distance: Columns<R>,
    weighted: Columns<R>,
    w: Lane<R>,
    wd: Lane<R>,
    wdd: Lane<R>,
    wxx: Lane<R>,
}

impl<const R: usize> Sums<R> {
    #[inline(always)]
    fn of(x: &Columns<R>, w: &Columns<R>) -> Self {
        let (mut low, mut high) = ([0.0; R], x[0]);
        for x in x {
            for i in 0..R {
                low[i] = smaller(x[i], low[i]);
                high[i] = larger(x[i], high[i]);
            }
        }
        let zero = [0.0; R];
        let mut sums = Self {
            low,
            range: lane(|i| high[i] - low[i]),
            distance: [zero; RUN],
            weighted: [zero; RUN],
            w: zero,
            wd: zero,
            wdd: zero,
            wxx: zero,
        };
        for n in 0..RUN {
            for i in 0..R {
                let distance = x[n][i] - low[i];
                let weighted = w[n][i] * distance;
                sums.distance[n][i] = distance;
                sums.weighted[n][i] = weighted;
                sums.w[i] += w[n][i];
                sums.wd[i] += weighted;
                sums.wdd[i] += weighted * distance;
                sums.wxx[i] += w[n][i] * x[n][i] * x[n][i];
            }
        }
        sums
    }
}

/// A candidate of each run: `q = nearest((distance + shift) * inverse)`, from 0 to the top.
struct Candidate<const R: usize> {
    shift: Lane<R>,
    inverse: Lane<R>,
    top: f32,
}

impl<const R: usize> Candidate<R> {
    #[inline(always)]
    fn quants(&self, distance: &Lane<R>) -> Lane<R> {
        lane(|i| {
            nearest(
                (distance[i] + self.shift[i]) * self.inverse[i],
                0.0,
                self.top,
            )
        })
    }
}

/// Sums over the `q` of a candidate.
struct Quants<const R: usize> {
    wq: Lane<R>,
    wqq: Lane<R>,
    wqd: Lane<R>,
}

impl<const R: usize> Quants<R> {
    #[inline(always)]
    fn of(sums: &Sums<R>, w: &Columns<R>, candidate: &Candidate<R>) -> Self {
        let (mut wq, mut wqq, mut wqd) = ([0.0; R], [0.0; R], [0.0; R]);
        for n in 0..RUN {
            let q = candidate.quants(&sums.distance[n]);
            let product: Lane<R> = lane(|i| w[n][i] * q[i]);
            for i in 0..R {
                wq[i] += product[i];
            }
            add_product(&mut wqq, &product, &q);
            add_product(&mut wqd, &sums.weighted[n], &q);
        }
        Self { wq, wqq, wqd }
    }
}

/// For each run the scale and minimum with the least sum of `w (scale q + min - x)^2` among the
/// candidates: each gives `q`, and `q` the best scale and minimum by linear regression, or the best
/// scale alone where that minimum would be positive. The range of the values that the next
/// candidate divides begins at the best minimum so far.
///
/// The regressions of ggml's `make_qkx2_quants`. The error is taken from the sums of the regression
/// in place of a second pass over the values.
#[inline(always)]
pub(super) fn fit<const R: usize>(x: &Columns<R>, w: &Columns<R>, search: Search) -> Fit<R> {
    let sums = Sums::of(x, w);
    let plain = Candidate {
        shift: [0.0; R],
        inverse: lane(|i| search.top / sums.range[i]),
        top: search.top,
    };
    let plain = Quants::of(&sums, w, &plain);
    let mut fit = Fit {
        scale: lane(|i| sums.range[i] / search.top),
        min: sums.low,
    };
    let mut least: Lane<R> = lane(|i| {
        let scale = fit.scale[i];
        sums.wdd[i] + scale * (scale * plain.wqq[i] - 2.0 * plain.wqd[i])
    });
    for number in 0..search.tries {
        let parts = search.top + search.first + search.step * f32::from(number);
        let shift: Lane<R> = lane(|i| sums.low[i] - fit.min[i]);
        let candidate = Candidate {
            shift,
            inverse: lane(|i| parts / (sums.range[i] + shift[i])),
            top: search.top,
        };
        let quants = Quants::of(&sums, w, &candidate);
        let mut regressions = [(0.0, 0.0, 0.0); R];
        for i in 0..R {
            regressions[i] = regression(&sums, &quants, i);
        }
        if search.second_pass {
            let errors = errors(&sums, w, &candidate, &regressions);
            for i in 0..R {
                // not a number stays so
                regressions[i].2 = errors[i] + 0.0 * regressions[i].2;
            }
        }
        let before = (fit, least);
        for i in 0..R {
            let (scale, min, error) = regressions[i];
            // not a number where all q are the same: no better
            let better = error < before.1[i];
            least[i] = if better { error } else { before.1[i] };
            fit.scale[i] = if better { scale } else { before.0.scale[i] };
            fit.min[i] = if better { min } else { before.0.min[i] };
        }
    }
    fit
}

/// The sums of `w (scale q + min - x)^2`.
#[inline(always)]
fn errors<const R: usize>(
    sums: &Sums<R>,
    w: &Columns<R>,
    candidate: &Candidate<R>,
    found: &[(f32, f32, f32); R],
) -> Lane<R> {
    let offset: Lane<R> = lane(|i| found[i].1 - sums.low[i]);
    let mut errors = [0.0; R];
    for (distance, w) in sums.distance.iter().zip(w) {
        let q = candidate.quants(distance);
        let apart: Lane<R> = lane(|i| found[i].0 * q[i] + offset[i] - distance[i]);
        let weighted: Lane<R> = lane(|i| w[i] * apart[i]);
        add_product(&mut errors, &weighted, &apart);
    }
    errors
}

/// Scale, minimum and error of one run. The error is not a number where there is no regression.
#[inline(always)]
fn regression<const R: usize>(sums: &Sums<R>, quants: &Quants<R>, i: usize) -> (f32, f32, f32) {
    let (w, wd, low) = (sums.w[i], sums.wd[i], sums.low[i]);
    let (wq, wqq, wqd) = (quants.wq[i], quants.wqq[i], quants.wqd[i]);
    let determinant = w * wqq - wq * wq;
    let scale = (w * wqd - wd * wq) / determinant;
    let offset = (wqq * wd - wq * wqd) / determinant;
    let error = sums.wdd[i] - scale * wqd - offset * wd;
    // through zero
    let wqx = wqd + low * wq;
    let through = wqx / wqq;
    let error_through = sums.wxx[i] - through * wqx;
    let positive = low + offset > 0.0;
    let none = if determinant > 0.0 { 0.0 } else { f32::NAN };
    (
        if positive { through } else { scale },
        if positive { 0.0 } else { low + offset },
        none + if positive { error_through } else { error },
    )
}
