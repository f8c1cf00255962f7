//! The generation loop, its samplers, and the ranking of a step's logits.
//!
//! The loop sees a model through [`LanguageModel`] and prints nothing: the caller watches it
//! through a function that is called for every token.

mod codes;
mod drafts;
mod logits;
mod sampler;

use std::ops::ControlFlow;

pub use self::codes::{CodeSink, Codes, CodesError};
use self::drafts::Drafts;
pub use self::drafts::{DraftCounts, DraftLookup};
pub use self::logits::{ArgMax, Candidate, LogitsError, Rank, rank_of, top_k_logits};
pub(crate) use self::sampler::Draws;
pub use self::sampler::{Sampler, SamplingError, SamplingOptions};

/// Maximum number of tokens that a model chooses at a time: few, so that text appears steadily and
/// Ctrl-C is noticed.
const MAX_CHOSEN: usize = 8;

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

    /// Appends these ids, at least one, and returns the logits of each, `[ids, vocab]`, the same bits as
    /// if they came one by one.
    ///
    /// # Errors
    /// The model's own.
    fn forward_all(&mut self, ids: &[u32]) -> Result<&[f32], Self::Error>;

    /// Appends `last`, then each token that follows but the last, and fills `next` with those that
    /// follow, each chosen by the model itself. False, and nothing is appended, where it leaves the
    /// choice to others.
    ///
    /// # Errors
    /// The model's own.
    fn greedy(&mut self, _last: u32, _next: &mut [ArgMax]) -> Result<bool, Self::Error> {
        Ok(false)
    }

    /// Forgets the positions from this one on.
    fn truncate(&mut self, position: usize);
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
        "the prompt has {prompt} tokens, but only {free} of the model's {context_length} positions are free"
    )]
    PromptTooLong {
        /// Tokens of the prompt.
        prompt: usize,
        /// Positions still free.
        free: usize,
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
    #[error("the logits of step {step} cannot be used")]
    Logits {
        /// The step, from 0.
        step: usize,
        /// What is wrong with them.
        source: LogitsError,
    },
}

/// When the loop ends.
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct GenerateOptions<'a> {
    /// Tokens at most.
    pub max_new_tokens: usize,
    /// Tokens that end the text. The one that did is part of the output, as in transformers.
    pub stop_ids: &'a [u32],
    /// Whether the caller looks at the logits of every step; where not, the model may choose tokens
    /// itself.
    pub wants_logits: bool,
    /// Drafts that one forward pass checks. They change nothing of the text. `None`: the model runs
    /// token by token.
    pub drafts: Option<&'a DraftLookup>,
}

impl<'a> GenerateOptions<'a> {
    /// So many tokens at most, fewer where one of `stop_ids` comes first.
    pub fn new(max_new_tokens: usize, stop_ids: &'a [u32]) -> Self {
        Self {
            max_new_tokens,
            stop_ids,
            wants_logits: false,
            drafts: None,
        }
    }
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
    /// What came of drafts; zeros where there were none.
    pub drafts: DraftCounts,
}

/// Why the loop ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopReason {
    /// A stop id came.
    StopId(u32),
    /// A stop string came; of a caller that looks for them in the text.
    StopString,
    /// `max_new_tokens` is reached.
    MaxNewTokens,
    /// The cache is full.
    ContextFull,
    /// The caller's function returned `Break`.
    Caller,
}

/// Prefills the prompt and generates tokens, calling `on_token` for each. The last token is not run
/// through the model. Where the sampler is greedy and nobody wants logits, the model is asked to
/// choose, some tokens at a time; where there is a draft, it is run instead.
///
/// # Errors
/// The model's own; a prompt that is empty, too long or has ids outside the vocabulary; logits that
/// are not numbers.
pub fn generate<M: LanguageModel>(
    model: &mut M,
    prompt: &[u32],
    sampler: &mut Sampler,
    options: &GenerateOptions<'_>,
    mut on_token: impl FnMut(Step<'_>) -> ControlFlow<()>,
) -> Result<Generated, GenerateError<M::Error>> {
    let context_length = model.context_length();
    let free = context_length.saturating_sub(model.position());
    check_prompt(prompt, model.vocab_size(), [free, context_length])?;
    let by_model = sampler.is_greedy() && !options.wants_logits;
    let mut text = Text::new(options.stop_ids);
    let mut drafts = Drafts::new(options.drafts, prompt);
    loop {
        let told = text.ids.len();
        let left = options.max_new_tokens.saturating_sub(told);
        let free = model.context_length().saturating_sub(model.position());
        let end = match text.ids.last().copied() {
            _ if left == 0 => Some(StopReason::MaxNewTokens),
            Some(_) if free == 0 => Some(StopReason::ContextFull),
            Some(last) => {
                let most = left.min(free);
                // a forward pass of a draft gives one token more than the draft has
                let draft = drafts.next(most - 1);
                let mut next = [ArgMax::default(); MAX_CHOSEN];
                let next = &mut next[..most.min(MAX_CHOSEN)];
                if !draft.is_empty() {
                    let end = text.verify(model, last, &draft, sampler, &mut on_token)?;
                    drafts.judged(draft.len(), text.ids.len() - told - 1);
                    end
                } else if by_model && model.greedy(last, next).map_err(GenerateError::Model)? {
                    text.extend(model, next, &mut on_token)?
                } else {
                    text.step(model, &[last], sampler, &mut on_token)?
                }
            }
            None => text.step(model, prompt, sampler, &mut on_token)?,
        };
        if let Some(reason) = end {
            return Ok(Generated {
                ids: text.ids,
                reason,
                drafts: drafts.counts(),
            });
        }
        drafts.extend(&text.ids[told..]);
    }
}

/// Hears of every token; `Break` ends the text.
type Hearing<'h> = dyn FnMut(Step<'_>) -> ControlFlow<()> + 'h;

/// A text that grows.
#[derive(Debug)]
pub(crate) struct Text<'a> {
    pub(crate) ids: Vec<u32>,
    stop_ids: &'a [u32],
}

impl<'a> Text<'a> {
    /// Of no tokens yet.
    pub(crate) fn new(stop_ids: &'a [u32]) -> Self {
        let ids = Vec::new();
        Self { ids, stop_ids }
    }

    /// A token from the logits of these ids. Tells why it is the last, where it is.
    fn step<M: LanguageModel>(
        &mut self,
        model: &mut M,
        ids: &[u32],
        sampler: &mut Sampler,
        on_token: &mut Hearing<'_>,
    ) -> Result<Option<StopReason>, GenerateError<M::Error>> {
        let logits = forward(model, ids)?;
        self.choose(logits, sampler, on_token)
    }

    /// A token from these logits. Tells why it is the last, where it is.
    pub(crate) fn choose<E>(
        &mut self,
        logits: &[f32],
        sampler: &mut Sampler,
        on_token: &mut Hearing<'_>,
    ) -> Result<Option<StopReason>, GenerateError<E>> {
        let id = self.usable(sampler.choose(logits))?;
        Ok(self.push(id, logits, on_token))
    }

    /// Tokens that the model chose and, but for the last, ran. It forgets what it ran after the end
    /// of the text.
    fn extend<M: LanguageModel>(
        &mut self,
        model: &mut M,
        chosen: &[ArgMax],
        on_token: &mut Hearing<'_>,
    ) -> Result<Option<StopReason>, GenerateError<M::Error>> {
        for (number, greatest) in chosen.iter().enumerate() {
            let id = self.usable(greatest.token())?;
            if let Some(reason) = self.push(id, &[], on_token) {
                let in_vain = chosen.len() - 1 - number;
                model.truncate(model.position() - in_vain);
                return Ok(Some(reason));
            }
        }
        Ok(None)
    }

    /// Tokens from the logits of the last one and of a draft of those that follow it, up to the first
    /// that is another. The model forgets what it ran of the draft behind that.
    fn verify<M: LanguageModel>(
        &mut self,
        model: &mut M,
        last: u32,
        draft: &[u32],
        sampler: &mut Sampler,
        on_token: &mut Hearing<'_>,
    ) -> Result<Option<StopReason>, GenerateError<M::Error>> {
        let (before, position) = (self.ids.len(), model.position());
        let vocab = model.vocab_size();
        let ids = [&[last], draft].concat();
        let logits = model.forward_all(&ids).map_err(GenerateError::Model)?;
        check_count(logits, vocab * ids.len())?;
        let mut end = None;
        for (number, logits) in logits.chunks_exact(vocab).enumerate() {
            end = self.choose(logits, sampler, on_token)?;
            if end.is_some() || self.ids.last() != draft.get(number) {
                break;
            }
        }
        model.truncate(position + self.ids.len() - before);
        Ok(end)
    }

    fn usable<E>(&self, id: Result<u32, LogitsError>) -> Result<u32, GenerateError<E>> {
        id.map_err(|source| GenerateError::Logits {
            step: self.ids.len(),
            source,
        })
    }

    fn push(&mut self, id: u32, logits: &[f32], on_token: &mut Hearing<'_>) -> Option<StopReason> {
        let (index, is_stop) = (self.ids.len(), self.stop_ids.contains(&id));
        self.ids.push(id);
        let flow = on_token(Step {
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
    check_count(logits, wanted)?;
    Ok(logits)
}

fn check_count<E>(logits: &[f32], wanted: usize) -> Result<(), GenerateError<E>> {
    match logits.len() {
        seen if seen == wanted => Ok(()),
        seen => Err(GenerateError::LogitCount { seen, wanted }),
    }
}

/// Whether a model of so many logits, so many of whose positions are free, can continue a prompt.
pub(crate) fn check_prompt<E>(
    prompt: &[u32],
    vocab_size: usize,
    [free, context_length]: [usize; 2],
) -> Result<(), GenerateError<E>> {
    if prompt.is_empty() {
        return Err(GenerateError::EmptyPrompt);
    }
    if prompt.len() > free {
        return Err(GenerateError::PromptTooLong {
            prompt: prompt.len(),
            free,
            context_length,
        });
    }
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

#[cfg(test)]
mod tests;
