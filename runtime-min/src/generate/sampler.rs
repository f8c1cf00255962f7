//! How a token is chosen: greedy, or random with temperature, top-k and top-p.

use super::logits::{LogitsError, by_rank, check, exp};

/// Settings of a sampler that make no sense.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum SamplingError {
    /// Not above zero.
    #[error(
        "the temperature is {0}: it must be above 0 and finite (greedy decoding is the limit at 0)"
    )]
    Temperature(f64),
    /// Not in (0, 1].
    #[error("top-p is {0}: it must be above 0 and at most 1 (1 keeps every token)")]
    TopP(f64),
    /// No token would be left.
    #[error("top-k is 0: it must be at least 1 (leave it out to keep every token)")]
    TopK,
}

/// Settings of random sampling.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct SamplingOptions {
    /// Divides the logits.
    pub temperature: f64,
    /// Keeps this many of the highest logits (and all that equal the last of them, as transformers
    /// does).
    pub top_k: Option<usize>,
    /// Keeps the fewest tokens whose probabilities add up to this.
    pub top_p: Option<f64>,
    /// The same seed and logits give the same tokens, on any machine.
    pub seed: u64,
}

impl SamplingOptions {
    /// From all tokens, at this temperature.
    pub fn new(temperature: f64, seed: u64) -> Self {
        Self {
            temperature,
            top_k: None,
            top_p: None,
            seed,
        }
    }
}

/// What the next choices of a sampler go by, for whoever makes them in its place.
#[derive(Debug, Clone)]
#[cfg_attr(
    not(feature = "cuda"),
    expect(dead_code, reason = "a CPU chooses nothing in its place")
)]
pub(crate) struct Draws {
    /// `None`: greedy.
    pub(crate) options: Option<SamplingOptions>,
    /// A random number for each choice, at least 0 and below 1; 0 where it is greedy.
    pub(crate) fractions: Vec<f64>,
}

/// Chooses a token from logits.
#[derive(Debug, Clone)]
pub struct Sampler(Method);

#[derive(Debug, Clone)]
enum Method {
    Greedy,
    Random(SamplingOptions, SplitMix64),
}

impl Sampler {
    /// The highest logit, the lowest id where several are highest.
    pub fn greedy() -> Self {
        Self(Method::Greedy)
    }

    /// Random choice by probability: temperature, then top-k, then top-p, the order of
    /// transformers.
    ///
    /// # Errors
    /// Settings out of range.
    pub fn random(options: SamplingOptions) -> Result<Self, SamplingError> {
        let SamplingOptions {
            temperature,
            top_k,
            top_p,
            seed,
        } = options;
        if !(temperature > 0.0 && temperature.is_finite()) {
            return Err(SamplingError::Temperature(temperature));
        }
        if let Some(p) = top_p.filter(|p| !(*p > 0.0 && *p <= 1.0)) {
            return Err(SamplingError::TopP(p));
        }
        if top_k == Some(0) {
            return Err(SamplingError::TopK);
        }
        Ok(Self(Method::Random(options, SplitMix64(seed))))
    }

    pub(super) fn is_greedy(&self) -> bool {
        matches!(self.0, Method::Greedy)
    }

    /// What so many next choices go by. The sampler itself stays as it is until it is told, by
    /// [`skip`](Self::skip), how many of them were made.
    pub(crate) fn draws(&self, count: usize) -> Draws {
        match &self.0 {
            Method::Greedy => Draws {
                options: None,
                fractions: vec![0.0; count],
            },
            Method::Random(options, random) => {
                let mut random = random.clone();
                Draws {
                    options: Some(*options),
                    fractions: (0..count).map(|_| random.fraction()).collect(),
                }
            }
        }
    }

    /// Counts so many choices as made: the next one goes by the random number after theirs.
    pub(crate) fn skip(&mut self, choices: usize) {
        if let Method::Random(_, random) = &mut self.0 {
            (0..choices).for_each(|_| {
                random.next();
            });
        }
    }

    /// The next token.
    ///
    /// # Errors
    /// Where a logit is NaN or infinite, or none is left.
    pub fn choose(&mut self, logits: &[f32]) -> Result<u32, LogitsError> {
        let best = check(logits)?;
        match &mut self.0 {
            Method::Greedy => Ok(best),
            Method::Random(options, random) => {
                Ok(draw(&kept(logits, options), random).unwrap_or(best))
            }
        }
    }
}

/// The tokens that temperature, top-k and top-p leave, most likely first, each with its weight.
pub(super) fn kept(logits: &[f32], options: &SamplingOptions) -> Vec<(u32, f64)> {
    let mut order: Vec<(u32, f32)> = (0..).zip(logits.iter().copied()).collect();
    if let Some(k) = options.top_k.filter(|k| *k < order.len()) {
        let cut = order.select_nth_unstable_by(k - 1, by_rank).1.1;
        order.retain(|(_, logit)| *logit >= cut);
    }
    order.sort_unstable_by(by_rank);
    let highest = order.first().map_or(0.0, |(_, logit)| f64::from(*logit));
    let weight = |logit: f32| exp((f64::from(logit) - highest) / options.temperature);
    let mut weights: Vec<(u32, f64)> = order
        .into_iter()
        .map(|(id, logit)| (id, weight(logit)))
        .collect();
    if let Some(p) = options.top_p {
        keep_nucleus(&mut weights, p);
    }
    weights
}

fn keep_nucleus(weights: &mut Vec<(u32, f64)>, p: f64) {
    let wanted = p * weights.iter().map(|(_, weight)| weight).sum::<f64>();
    let mut sum = 0.0;
    let enough = weights.iter().position(|(_, weight)| {
        sum += weight;
        sum >= wanted
    });
    weights.truncate(enough.map_or(weights.len(), |last| last + 1));
}

fn draw(weights: &[(u32, f64)], random: &mut SplitMix64) -> Option<u32> {
    let sum: f64 = weights.iter().map(|(_, weight)| weight).sum();
    let mut left = random.fraction() * sum;
    let chosen = weights.iter().find(|(_, weight)| {
        left -= weight;
        left < 0.0
    });
    // Rounding can leave a crumb: it belongs to the last token with any weight.
    chosen
        .or_else(|| weights.iter().rev().find(|(_, weight)| *weight > 0.0))
        .map(|(id, _)| *id)
}

/// Steele, Lea and Flood's SplitMix64 (OOPSLA 2014), the generator that Java's SplittableRandom and
/// the seeding of the xoshiro family use: 64 bits of state, any seed, and published outputs to test
/// against.
#[derive(Debug, Clone)]
pub(super) struct SplitMix64(pub(super) u64);

impl SplitMix64 {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// At least 0, below 1, in steps of 2^-53.
    fn fraction(&mut self) -> f64 {
        const STEP: f64 = 1.0 / 9_007_199_254_740_992.0;
        (self.next() >> 11) as f64 * STEP
    }
}
