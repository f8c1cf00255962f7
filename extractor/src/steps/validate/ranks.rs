//! Log-probabilities: what servers tell of a distribution.

use segpack_runtime_min::trace::Ranked;

/// The logits of one position, and the logarithm that makes them log-probabilities.
pub(crate) struct Distribution<'a> {
    logits: &'a [f32],
    log_sum: f64,
}

/// Our best tokens where the reference lists its own.
pub(crate) struct Ranks {
    pub(crate) seen: Vec<u32>,
    pub(crate) wanted: Vec<u32>,
    /// The greatest gap, in the reference, between tokens that stand in each other's place; none
    /// where all are the same.
    pub(crate) gap: Option<f64>,
}

impl<'a> Distribution<'a> {
    pub(crate) fn new(logits: &'a [f32]) -> Self {
        let greatest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits.iter().map(|x| f64::from(x - greatest).exp()).sum();
        Self {
            logits,
            log_sum: f64::from(greatest) + sum.ln(),
        }
    }

    /// Log-softmax; NaN where the vocabulary has no such token.
    pub(crate) fn log_probability(&self, id: u32) -> f64 {
        self.logits
            .get(id as usize)
            .map_or(f64::NAN, |x| f64::from(*x) - self.log_sum)
    }

    /// The best tokens, best first; the lowest id on ties.
    fn best(&self, count: usize) -> Vec<u32> {
        let mut ids: Vec<u32> = (0..).take(self.logits.len()).collect();
        ids.sort_by(|a, b| self.logits[*b as usize].total_cmp(&self.logits[*a as usize])); // stable
        ids.truncate(count);
        ids
    }

    /// How much likelier one token is than another to the reference. Of one that it does not list
    /// it only says that it is no likelier than the last; what we make of the two counts there as
    /// well.
    pub(crate) fn gap(&self, ranked: &[Ranked], one: u32, other: u32) -> f64 {
        let own = (self.log_probability(one) - self.log_probability(other)).abs();
        match (listed(ranked, one), listed(ranked, other)) {
            (Some(one), Some(other)) => (one - other).abs(),
            (Some(listed), None) | (None, Some(listed)) => {
                greater(own, listed - greatest_unlisted(ranked))
            }
            (None, None) => own,
        }
    }

    /// Rank by rank; ranks whose token the reference did not identify are left out.
    pub(crate) fn ranks(&self, ranked: &[Ranked]) -> Ranks {
        let known = self.best(ranked.len()).into_iter().zip(ranked);
        let pairs: Vec<(u32, u32)> = known.filter_map(|(seen, r)| Some((seen, r.id?))).collect();
        let apart = pairs.iter().filter(|(seen, wanted)| seen != wanted);
        let gaps = apart.map(|(seen, wanted)| self.gap(ranked, *wanted, *seen));
        let gap = gaps.reduce(greater);
        let (seen, wanted) = pairs.into_iter().unzip();
        Ranks { seen, wanted, gap }
    }
}

/// The log-probability of a token that is listed by its id.
fn listed(ranked: &[Ranked], id: u32) -> Option<f64> {
    let found = ranked.iter().find(|r| r.id == Some(id));
    found.map(|r| f64::from(r.log_probability))
}

/// NaN is greater than any: it excuses nothing.
fn greater(a: f64, b: f64) -> f64 {
    if a >= b || a.is_nan() { a } else { b }
}

/// Upper bound of the log-probability of a token that is not listed by its id.
fn greatest_unlisted(ranked: &[Ranked]) -> f64 {
    let unknown = ranked.iter().find(|r| r.id.is_none());
    unknown
        .or(ranked.last())
        .map_or(f64::NEG_INFINITY, |r| f64::from(r.log_probability))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn those(pairs: &[(i64, f32)]) -> Vec<Ranked> {
        let pairs = pairs.iter();
        pairs
            .map(|(id, log_probability)| Ranked {
                id: u32::try_from(*id).ok(),
                log_probability: *log_probability,
            })
            .collect()
    }

    #[test]
    fn logits_become_log_probabilities() {
        let even = [7.0; 4];
        assert!((Distribution::new(&even).log_probability(2) + 4_f64.ln()).abs() < 1e-12);
        let d = Distribution::new(&[1000.0, 0.0, f32::NEG_INFINITY]);
        assert_eq!(d.log_probability(0), 0.0);
        assert_eq!(
            (d.log_probability(1), d.log_probability(2)),
            (-1000.0, f64::NEG_INFINITY)
        );
        assert!(d.log_probability(3).is_nan());
    }

    #[test]
    fn ranks_differ_by_the_gap_between_what_was_exchanged() {
        let logits = [4.0, 3.0, 2.9, 1.0, 0.5];
        let d = Distribution::new(&logits);
        let same = d.ranks(&those(&[(0, -0.5), (1, -1.5), (2, -1.6)]));
        assert_eq!(
            (same.seen, same.wanted, same.gap),
            (vec![0, 1, 2], vec![0, 1, 2], None)
        );
        let near = d.ranks(&those(&[(0, -0.5), (2, -1.5), (1, -1.625)]));
        assert_eq!((near.seen, near.gap), (vec![0, 1, 2], Some(0.125)));
        let far = d.ranks(&those(&[(2, -0.5), (1, -1.5), (0, -2.0)]));
        assert_eq!(
            (far.seen, far.wanted, far.gap),
            (vec![0, 1, 2], vec![2, 1, 0], Some(1.5))
        );
    }

    #[test]
    fn a_token_that_is_not_listed_is_no_likelier_than_the_last() {
        let d = Distribution::new(&[4.0, 3.0, 2.0]);
        // listed to the end it would be 1.0; our own gap says more where the list says nothing
        assert!((d.gap(&those(&[(2, -0.5)]), 2, 0) - 2.0).abs() < 1e-6);
        assert_eq!(d.gap(&those(&[(1, -0.5), (2, -4.5)]), 1, 0), 4.0);
        // one that was not identified may be the one
        assert_eq!(
            d.gap(&those(&[(1, -0.5), (-1, -0.5), (2, -4.5)]), 1, 0),
            1.0
        );
        assert_eq!(d.gap(&[], 1, 0), 1.0);
    }

    #[test]
    fn what_was_not_identified_is_left_out() {
        let d = Distribution::new(&[4.0, 3.0, 2.0]);
        let ranks = d.ranks(&those(&[(0, -0.5), (-1, -1.5), (2, -2.5)]));
        assert_eq!(
            (ranks.seen, ranks.wanted, ranks.gap),
            (vec![0, 2], vec![0, 2], None)
        );
    }

    #[test]
    fn what_is_not_a_number_is_no_rank() {
        let ranks = Distribution::new(&[f32::NAN, 3.0, 2.0]).ranks(&those(&[(9, -0.5), (1, -0.6)]));
        assert!(ranks.gap.is_some_and(f64::is_nan));
    }
}
