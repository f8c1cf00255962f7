//! What an answer is made of, in the order in which it comes.

use super::api::ApiError;

/// A part of an answer. `choice` is the number of the prompt that it continues, from 0.
#[derive(Debug)]
pub(super) enum Event {
    /// The prompts are tokenized and fit: no error of the request can follow.
    Begun,
    /// A prompt, as the model got it.
    Prompt {
        choice: usize,
        ids: Vec<u32>,
        /// Its text, where it is a part of the answer.
        echo: Option<Echo>,
    },
    /// A token that was generated.
    Token {
        choice: usize,
        id: u32,
        /// Text that is certain now: what may begin a stop string is held back.
        text: String,
        /// Where log probabilities are wanted.
        scored: Option<ScoredToken>,
    },
    /// A prompt's continuation is whole.
    End {
        choice: usize,
        /// Text that was held back in vain.
        text: String,
        finish: Finish,
    },
    /// All are whole.
    Done,
    /// There is no answer, or no more of it.
    Failed(ApiError),
}

/// A prompt that is a part of the answer.
#[derive(Debug)]
pub(super) struct Echo {
    pub(super) text: String,
    /// Its tokens, where log probabilities are wanted.
    pub(super) tokens: Option<Vec<ScoredToken>>,
}

/// A token with its place among all tokens.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ScoredToken {
    pub(super) token: NamedToken,
    /// None of the first token of a prompt, which nothing precedes.
    pub(super) logprob: Option<f64>,
    /// The most likely tokens, best first, as many as were requested.
    pub(super) top: Vec<(NamedToken, f64)>,
}

/// A token as it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NamedToken {
    pub(super) id: u32,
    /// Its text, special tokens too; half a character is U+FFFD.
    pub(super) text: String,
    /// What it stands for; nothing where there is no tokenizer.
    pub(super) bytes: Option<Vec<u8>>,
}

/// Why a continuation is whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Finish {
    /// The checkpoint's end of text.
    EndOfText,
    /// A token id that the request names.
    StopId(u32),
    /// A stop string.
    StopString(String),
    /// As many tokens as were requested, or as the context has positions for.
    Length,
}
