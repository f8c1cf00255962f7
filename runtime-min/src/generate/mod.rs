//! The generation loop, its samplers, and what can be said about a step's logits.
//!
//! The loop sees a model through [`LanguageModel`] and prints nothing: the caller watches it
//! through a function that is called for every token.

use std::cmp::Ordering;
use std::ops::ControlFlow;

/// Tokens that a model is asked to choose at a time: few, so that a text flows and Ctrl-C is heard.
const MOST_CHOSEN: usize = 8;

/// What the loop needs of a model. Its cache grows with every call of [`forward`](Self::forward)
/// and
/// [`greedy`](Self::greedy).
pub trait LanguageModel {
    /// What can go wrong in a forward pass.
    type Error;

    /// Logits per position, the rows of the head.
    fn vocab_size(&self) -> usize;

    /// The most positions that the cache can hold.
    fn context_length(&self) -> usize;

    /// The positions that it holds now.
    fn position(&self) -> usize;

    /// Appends these ids, at least one, and returns the logits of the last: many ids to prefill,
    /// one to decode.
    ///
    /// # Errors
    /// The model's own.
    fn forward(&mut self, ids: &[u32]) -> Result<&[f32], Self::Error>;

    /// Appends `last`, then each token that follows but the last, and fills `next` with those that
    /// follow, each chosen by the model itself. False, and nothing is appended, where it leaves the
    /// choice to others.
    ///
    /// # Errors
    /// The model's own.
    fn greedy(&mut self, _last: u32, _next: &mut [Greatest]) -> Result<bool, Self::Error> {
        Ok(false)
    }

    /// Forgets the positions from this one on.
    fn truncate(&mut self, position: usize);
}

/// The greatest logit of a step, as a model found it.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Greatest {
    /// Its token, the lowest id of several. Where a logit is NaN or infinite above zero, the first
    /// such token.
    pub id: u32,
    /// The logit.
    pub logit: f32,
}

impl Greatest {
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

/// Why a text could not be generated.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError<E> {
    /// The model failed.
    #[error(transparent)]
    Model(E),
    /// There is nothing to start from.
    #[error(
        "the prompt has no tokens; a model without a beginning-of-text token needs at least one"
    )]
    EmptyPrompt,
    /// The prompt does not fit.
    #[error(
        "the prompt has {prompt} tokens, and the model has room for {room} of {context_length} positions"
    )]
    PromptTooLong {
        /// Tokens of the prompt.
        prompt: usize,
        /// Positions still free.
        room: usize,
        /// Positions in all.
        context_length: usize,
    },
    /// An id has no embedding row.
    #[error(
        "token id {id} (number {position} of the prompt) is outside the vocabulary of {vocab_size}"
    )]
    OutsideVocabulary {
        /// The id.
        id: u32,
        /// Its place in the prompt, from 0.
        position: usize,
        /// The model's rows.
        vocab_size: usize,
    },
    /// The model returned another number of logits than it announced.
    #[error("the model returned {seen} logits for a vocabulary of {wanted}")]
    LogitCount {
        /// Logits returned.
        seen: usize,
        /// The vocabulary's size.
        wanted: usize,
    },
    /// The logits of a step cannot be used.
    #[error("step {step}: {source}")]
    Logits {
        /// The step, from 0.
        step: usize,
        /// What is wrong with them.
        source: LogitsError,
    },
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

/// Chooses a token from logits.
#[derive(Debug, Clone)]
pub struct Sampler(Choice);

#[derive(Debug, Clone)]
enum Choice {
    Greedy,
    Random(SamplingOptions, SplitMix64),
}

impl Sampler {
    /// The highest logit, the lowest id where several are highest.
    pub fn greedy() -> Self {
        Self(Choice::Greedy)
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
        Ok(Self(Choice::Random(options, SplitMix64(seed))))
    }

    fn is_greedy(&self) -> bool {
        matches!(self.0, Choice::Greedy)
    }

    /// The next token.
    ///
    /// # Errors
    /// Where a logit is NaN or infinite, or none is left.
    pub fn choose(&mut self, logits: &[f32]) -> Result<u32, LogitsError> {
        let best = check(logits)?;
        match &mut self.0 {
            Choice::Greedy => Ok(best),
            Choice::Random(options, random) => {
                Ok(draw(&kept(logits, options), random).unwrap_or(best))
            }
        }
    }
}

/// When the loop ends.
#[derive(Debug, Clone, Copy)]
pub struct GenerateOptions<'a> {
    /// Tokens at most.
    pub max_new_tokens: usize,
    /// Tokens that end the text. The one that did is part of the output, as in transformers.
    pub stop_ids: &'a [u32],
    /// Whether the caller looks at the logits of every step; where not, the model may choose tokens
    /// itself.
    pub wants_logits: bool,
}

/// One generated token.
#[derive(Debug, Clone, Copy)]
pub struct Step<'a> {
    /// Counts from 0.
    pub index: usize,
    /// The token.
    pub id: u32,
    /// Whether it ends the text.
    pub is_stop: bool,
    /// The logits it was chosen from; empty where the model chose it, never for the first token.
    pub logits: &'a [f32],
}

/// A generated text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generated {
    /// The new tokens, with the one that ended the text.
    pub ids: Vec<u32>,
    /// Why there are no more.
    pub reason: StopReason,
}

/// Why the loop ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopReason {
    /// A stop id came.
    StopId(u32),
    /// `max_new_tokens` is reached.
    MaxNewTokens,
    /// The cache is full.
    ContextFull,
    /// The caller's function said so.
    Caller,
}

/// Prefills the prompt and generates tokens, calling `on_token` for each. The last token is not run
/// through the model. Where the sampler is greedy and nobody wants logits, the model is asked to
/// choose, some tokens at a time.
///
/// # Errors
/// The model's own; a prompt that is empty, too long or has ids outside the vocabulary; logits that
/// are not numbers.
pub fn generate<M: LanguageModel>(
    model: &mut M,
    prompt: &[u32],
    sampler: &mut Sampler,
    options: &GenerateOptions<'_>,
    on_token: impl FnMut(Step<'_>) -> ControlFlow<()>,
) -> Result<Generated, GenerateError<M::Error>> {
    check_prompt(model, prompt)?;
    let by_model = sampler.is_greedy() && !options.wants_logits;
    let mut text = Text {
        ids: Vec::new(),
        stop_ids: options.stop_ids,
        on_token,
    };
    loop {
        let (left, last) = (
            options.max_new_tokens - text.ids.len(),
            text.ids.last().copied(),
        );
        let room = model.context_length().saturating_sub(model.position());
        let end = match last {
            _ if left == 0 => Some(StopReason::MaxNewTokens),
            Some(_) if room == 0 => Some(StopReason::ContextFull),
            Some(last) => {
                let mut next = [Greatest::default(); MOST_CHOSEN];
                let next = &mut next[..left.min(room).min(MOST_CHOSEN)];
                if by_model && model.greedy(last, next).map_err(GenerateError::Model)? {
                    text.extend(model, next)?
                } else {
                    text.step(model, &[last], sampler)?
                }
            }
            None => text.step(model, prompt, sampler)?,
        };
        if let Some(reason) = end {
            return Ok(Generated {
                ids: text.ids,
                reason,
            });
        }
    }
}

/// A text that grows, and who watches it.
struct Text<'a, F> {
    ids: Vec<u32>,
    stop_ids: &'a [u32],
    on_token: F,
}

impl<F: FnMut(Step<'_>) -> ControlFlow<()>> Text<'_, F> {
    /// A token from the logits of these ids. Tells why it is the last, where it is.
    fn step<M: LanguageModel>(
        &mut self,
        model: &mut M,
        ids: &[u32],
        sampler: &mut Sampler,
    ) -> Result<Option<StopReason>, GenerateError<M::Error>> {
        let logits = forward(model, ids)?;
        let id = self.usable(sampler.choose(logits))?;
        Ok(self.push(id, logits))
    }

    /// Tokens that the model chose and, but for the last, ran. It forgets what it ran after the end
    /// of the text.
    fn extend<M: LanguageModel>(
        &mut self,
        model: &mut M,
        chosen: &[Greatest],
    ) -> Result<Option<StopReason>, GenerateError<M::Error>> {
        for (number, greatest) in chosen.iter().enumerate() {
            let id = self.usable(greatest.token())?;
            if let Some(reason) = self.push(id, &[]) {
                let in_vain = chosen.len() - 1 - number;
                model.truncate(model.position() - in_vain);
                return Ok(Some(reason));
            }
        }
        Ok(None)
    }

    fn usable<E>(&self, id: Result<u32, LogitsError>) -> Result<u32, GenerateError<E>> {
        id.map_err(|source| GenerateError::Logits {
            step: self.ids.len(),
            source,
        })
    }

    fn push(&mut self, id: u32, logits: &[f32]) -> Option<StopReason> {
        let (index, is_stop) = (self.ids.len(), self.stop_ids.contains(&id));
        self.ids.push(id);
        let flow = (self.on_token)(Step {
            index,
            id,
            is_stop,
            logits,
        });
        match flow {
            _ if is_stop => Some(StopReason::StopId(id)),
            ControlFlow::Break(()) => Some(StopReason::Caller),
            ControlFlow::Continue(()) => None,
        }
    }
}

fn forward<'m, M: LanguageModel>(
    model: &'m mut M,
    ids: &[u32],
) -> Result<&'m [f32], GenerateError<M::Error>> {
    let wanted = model.vocab_size();
    let logits = model.forward(ids).map_err(GenerateError::Model)?;
    match logits.len() {
        seen if seen == wanted => Ok(logits),
        seen => Err(GenerateError::LogitCount { seen, wanted }),
    }
}

fn check_prompt<M: LanguageModel>(
    model: &M,
    prompt: &[u32],
) -> Result<(), GenerateError<M::Error>> {
    if prompt.is_empty() {
        return Err(GenerateError::EmptyPrompt);
    }
    let context_length = model.context_length();
    let room = context_length.saturating_sub(model.position());
    if prompt.len() > room {
        return Err(GenerateError::PromptTooLong {
            prompt: prompt.len(),
            room,
            context_length,
        });
    }
    let vocab_size = model.vocab_size();
    let outside = |id: &u32| usize::try_from(*id).map_or(true, |id| id >= vocab_size);
    match prompt.iter().position(outside) {
        Some(position) => Err(GenerateError::OutsideVocabulary {
            id: prompt[position],
            position,
            vocab_size,
        }),
        None => Ok(()),
    }
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

fn by_rank(left: &(u32, f32), right: &(u32, f32)) -> Ordering {
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
fn check(logits: &[f32]) -> Result<u32, LogitsError> {
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
        }
    }
}

/// The tokens that temperature, top-k and top-p leave, most likely first, each with its weight.
fn kept(logits: &[f32], options: &SamplingOptions) -> Vec<(u32, f64)> {
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

/// `e` to a power that is not positive, to about 1e-12: with additions and multiplications alone,
/// so that every machine gets the same bits, which the platforms' own `exp` do not promise.
fn exp(power: f64) -> f64 {
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

/// Steele, Lea and Flood's SplitMix64 (OOPSLA 2014), the generator that Java's SplittableRandom and
/// the seeding of the xoshiro family use: 64 bits of state, any seed, and published outputs to test
/// against.
#[derive(Debug, Clone)]
struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
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

#[cfg(test)]
mod tests;
