//! The logits of a step: the highest, the top k, a token's rank, whether they are
//! numbers at all.

use std::cmp::Ordering;

/// The highest logit of a step, as a model found it.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct ArgMax {
    /// Its token, the lowest id of several. Where a logit is NaN or infinite above zero, the first
    /// such token.
    pub id: u32,
    /// The logit.
    pub logit: f32,
}

impl ArgMax {
    /// The token.
    ///
    /// # Errors
    /// Where a logit of the step is NaN or infinite, or none is left.
    pub fn token(self) -> Result<u32, LogitsError> {
        match self {
            Self {
                logit: f32::NEG_INFINITY,
                ..
            } => Err(LogitsError::AllExcluded),
            Self { id, logit: value } if is_wrong(value) => {
                Err(LogitsError::NotFinite { id, value })
            }
            Self { id, .. } => Ok(id),
        }
    }
}

/// Logits from which no token can be chosen.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum LogitsError {
    /// There are none.
    #[error("there are no logits")]
    Empty,
    /// The calculation went wrong before.
    #[error("the logit of token {id} is {value}: the weights or the calculation are damaged")]
    NotFinite {
        /// The first such token.
        id: u32,
        /// NaN, or infinity above zero.
        value: f32,
    },
    /// Every token is ruled out.
    #[error("every logit is minus infinity: no token is left")]
    AllExcluded,
}

/// A token, its logit, and its probability among all tokens (softmax at temperature 1).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    /// The token.
    pub id: u32,
    /// Its logit.
    pub logit: f32,
    /// Its probability.
    pub probability: f64,
    /// The natural logarithm of its probability, which is exact where the probability itself is too
    /// small for a number; minus infinity for a token that is ruled out.
    pub log_probability: f64,
}

/// A token's place among all tokens.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rank {
    /// 1 is the most likely. Of equal logits the lower id comes first.
    pub rank: usize,
    /// The token.
    pub candidate: Candidate,
}

/// The `count` highest logits, highest first, the lower id first where they are equal.
///
/// # Errors
/// Where a logit is NaN or infinite.
pub fn top_k_logits(logits: &[f32], count: usize) -> Result<Vec<Candidate>, LogitsError> {
    let softmax = Softmax::of(logits)?;
    let mut order: Vec<(u32, f32)> = (0..).zip(logits.iter().copied()).collect();
    if (1..order.len()).contains(&count) {
        order.select_nth_unstable_by(count - 1, by_rank);
    }
    order.truncate(count);
    order.sort_unstable_by(by_rank);
    Ok(order
        .into_iter()
        .map(|(id, logit)| softmax.candidate(id, logit))
        .collect())
}

/// Where a token ranks, `None` for an id without a logit. A text of several tokens ranks at a step
/// by its first.
///
/// # Errors
/// Where a logit is NaN or infinite.
pub fn rank_of(logits: &[f32], id: u32) -> Result<Option<Rank>, LogitsError> {
    let softmax = Softmax::of(logits)?;
    let Some(&logit) = usize::try_from(id).ok().and_then(|place| logits.get(place)) else {
        return Ok(None);
    };
    let own = (id, logit);
    let better = (0..)
        .zip(logits.iter().copied())
        .filter(|other| by_rank(other, &own) == Ordering::Less)
        .count();
    Ok(Some(Rank {
        rank: better + 1,
        candidate: softmax.candidate(id, logit),
    }))
}

pub(super) fn by_rank(left: &(u32, f32), right: &(u32, f32)) -> Ordering {
    // Not total_cmp: 0.0 and -0.0 are equal logits.
    right
        .1
        .partial_cmp(&left.1)
        .unwrap_or(Ordering::Equal)
        .then(left.0.cmp(&right.0))
}

fn is_wrong(logit: f32) -> bool {
    logit.is_nan() || logit == f32::INFINITY
}

/// The id of the highest logit, after a look at all of them.
pub(super) fn check(logits: &[f32]) -> Result<u32, LogitsError> {
    let mut best = None;
    for (id, &value) in (0..).zip(logits) {
        if is_wrong(value) {
            return Err(LogitsError::NotFinite { id, value });
        }
        if best.is_none_or(|(_, highest)| value > highest) {
            best = Some((id, value));
        }
    }
    match best {
        None => Err(LogitsError::Empty),
        Some((_, f32::NEG_INFINITY)) => Err(LogitsError::AllExcluded),
        Some((id, _)) => Ok(id),
    }
}

struct Softmax {
    highest: f64,
    sum: f64,
}

impl Softmax {
    fn of(logits: &[f32]) -> Result<Self, LogitsError> {
        check(logits)?;
        let highest = logits
            .iter()
            .copied()
            .fold(f32::NEG_INFINITY, f32::max)
            .into();
        let sum = logits
            .iter()
            .map(|&logit| exp(f64::from(logit) - highest))
            .sum();
        Ok(Self { highest, sum })
    }

    fn candidate(&self, id: u32, logit: f32) -> Candidate {
        Candidate {
            id,
            logit,
            probability: exp(f64::from(logit) - self.highest) / self.sum,
            // not the platform's own, as with `exp`
            log_probability: f64::from(logit) - self.highest - libm::log(self.sum),
        }
    }
}

/// `e` to a power that is not positive, to about 1e-12: with additions and multiplications alone,
/// so that every machine gets the same bits, which the platforms' own `exp` do not promise.
pub(super) fn exp(power: f64) -> f64 {
    // Also minus infinity, the logit of a token that is ruled out.
    if power < -745.0 {
        return 0.0;
    }
    const HALVINGS: u32 = 10;
    const TERMS: u32 = 18;
    let small = power / f64::from(1 << HALVINGS);
    let series = (1..=TERMS)
        .rev()
        .fold(1.0, |sum, term| 1.0 + sum * small / f64::from(term));
    (0..HALVINGS).fold(series, |value, _| value * value)
}
