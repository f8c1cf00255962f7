//! What a caller asks for and hears of a text, token by token.

use std::fmt;
use std::ops::ControlFlow;

use super::ASSUMED_CONTEXT;
use crate::generate::{Candidate, DraftLookup, Sampler, SamplingError, SamplingOptions};
use crate::processing::Continuation;

/// How to continue a prompt.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct GenerationSettings {
    /// Maximum number of tokens to generate (also limited by the model's context length).
    pub max_new_tokens: usize,
    /// Random sampling. `None`: greedy, always the most likely token.
    pub sampling: Option<SamplingOptions>,
    /// Candidates to tell for each token.
    pub top_k_logits: usize,
    /// Tell each token's own logit and probability, which may not be among those candidates.
    pub chosen_logit: bool,
    /// A continuation whose rank at the first step is wanted.
    pub rank: Option<Continuation>,
    /// Token ids that end the text. `None`: those of the checkpoint.
    pub stop_ids: Option<Vec<u32>>,
    /// Strings that end the text, which ends before them.
    pub stop_strings: Vec<String>,
    /// Load as many weights as fit before the prompt instead of on first use.
    pub preload: bool,
    /// Drafts that one forward pass checks, on the CPU alone and where nothing is recorded. The text
    /// is the same, to the token.
    pub draft_lookup: Option<DraftLookup>,
}

impl Default for GenerationSettings {
    /// 128 tokens at most, greedy.
    fn default() -> Self {
        Self {
            max_new_tokens: 128,
            sampling: None,
            top_k_logits: 0,
            chosen_logit: false,
            rank: None,
            stop_ids: None,
            stop_strings: Vec::new(),
            preload: false,
            draft_lookup: None,
        }
    }
}

impl GenerationSettings {
    /// What chooses tokens.
    ///
    /// # Errors
    /// Sampling settings out of range.
    pub(super) fn sampler(&self) -> Result<Sampler, SamplingError> {
        match self.sampling {
            Some(sampling) => Sampler::random(sampling),
            None => Ok(Sampler::greedy()),
        }
    }

    /// Tokens of the longest draft.
    pub(super) fn longest_draft(&self) -> usize {
        let lookup = self.draft_lookup.as_ref();
        lookup.map_or(0, |lookup| lookup.most.get())
    }
}

/// A token that was generated.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Token<'t> {
    /// Its number, from 0.
    pub index: usize,
    /// Its id.
    pub id: u32,
    /// Text that is complete now: half a character, and what may be the beginning of a stop string,
    /// wait for their rest; special tokens and stop strings are left out.
    pub text: &'t str,
    /// Whether it ends the text.
    pub is_stop: bool,
    /// The most likely candidates, best first, as many as were requested.
    pub top: Vec<NamedCandidate>,
    /// The token itself among all tokens, where that was requested.
    pub chosen: Option<NamedCandidate>,
}

/// A candidate for the next token, and the text that it stands for.
#[derive(Debug, Clone, PartialEq)]
pub struct NamedCandidate {
    /// Id, logit, probability.
    pub candidate: Candidate,
    /// Its text, special tokens too; half a character is U+FFFD.
    pub text: String,
}

/// Where a continuation ranks at the first step.
#[derive(Debug, Clone, PartialEq)]
pub struct RankedContinuation {
    /// The continuation.
    pub continuation: Continuation,
    /// Its first token, which is ranked.
    pub first: NamedCandidate,
    /// 1 is the most likely.
    pub rank: usize,
}

/// Something that the user should know about a generation.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Note {
    /// The checkpoint does not say which tokens end a text.
    StopIds(String),
    /// `config.json` does not give the context length.
    AssumedContext,
    /// The prompt is longer than the context that the model was made for.
    LongPrompt {
        /// Tokens of the prompt.
        tokens: usize,
        /// Positions of the context.
        context: usize,
    },
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::StopIds(what) => f.write_str(what),
            Self::AssumedContext => write!(
                f,
                "config.json gives no max_position_embeddings: assuming a context length of \
                 {ASSUMED_CONTEXT} tokens"
            ),
            Self::LongPrompt { tokens, context } => write!(
                f,
                "the prompt has {tokens} tokens, more than the model's context length of {context} \
                 (max_position_embeddings in config.json)"
            ),
        }
    }
}

/// Hears of every token. A closure that takes a [`Token`] is one.
pub trait TokenSink: Send {
    /// Something that the user should know; comes before the first token.
    fn note(&mut self, _note: &Note) {}

    /// A token. `Break` ends the text.
    fn token(&mut self, token: &Token<'_>) -> ControlFlow<()>;
}

impl<F: FnMut(&Token<'_>) -> ControlFlow<()> + Send> TokenSink for F {
    fn token(&mut self, token: &Token<'_>) -> ControlFlow<()> {
        self(token)
    }
}
