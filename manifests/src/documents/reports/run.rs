//! What `run` prints with `--json`.

use serde::{Deserialize, Serialize};

use crate::documents::{FormatVersion, LayerExperts};

/// A candidate for the next token.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ShownCandidate {
    /// Token id.
    pub id: u32,
    /// What it stands for; half a character is shown as U+FFFD.
    pub text: String,
    /// Its logit.
    pub logit: f32,
    /// Its probability among all tokens, at temperature 1.
    #[cfg_attr(feature = "schema", schemars(range(min = 0.0, max = 1.0)))]
    pub probability: f64,
}

/// One generated token: a line of `run --json`. The summary follows the last.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct RunToken {
    /// Its number, from 0.
    pub index: u64,
    /// Token id.
    pub id: u32,
    /// Text that is complete now: half a character waits for its rest, special tokens are left out.
    pub text: String,
    /// Whether it ends the text.
    pub stop: bool,
    /// The best candidates, best first, if asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub top: Vec<ShownCandidate>,
}

/// Where a continuation ranks at the first step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ShownRank {
    /// The continuation.
    pub text: String,
    /// Its first token, which is ranked, and how likely it is.
    pub first: ShownCandidate,
    /// Tokens of the continuation.
    pub tokens: u64,
    /// 1 for the most likely.
    pub rank: u64,
}

/// How the weights came and where the time went. Times are seconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct RunCosts {
    /// Bytes of weights read past the page cache.
    pub bytes_direct: u64,
    /// Bytes that were in the page cache.
    pub bytes_cached: u64,
    /// Bytes that coded segments decoded to.
    pub bytes_decoded: u64,
    /// Bytes of weights copied to a GPU.
    pub bytes_copied: u64,
    /// Bytes read for each token after the first.
    pub bytes_read_per_token: f64,
    /// In forward passes.
    pub forward: f64,
    /// Of it, when nothing could be computed, because weights were not there yet.
    pub waiting: f64,
    /// Reading, summed over threads, most of it while something was computed.
    pub reading: f64,
    /// Comparing digests, summed over threads.
    pub checking: f64,
    /// Decoding, summed over threads.
    pub decoding: f64,
}

/// Why a text ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum RunEnd {
    /// One of the checkpoint's end-of-text ids came.
    StopId,
    /// As many tokens as were asked for.
    MaxNewTokens,
    /// No position is left.
    ContextFull,
}

impl RunEnd {
    /// In words.
    pub fn text(self) -> &'static str {
        match self {
            Self::StopId => "stop id",
            Self::MaxNewTokens => "max new tokens",
            Self::ContextFull => "context full",
        }
    }
}

/// What came of a run: the last line of `run --json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct RunSummary {
    /// Version of this document.
    #[cfg_attr(
        feature = "schema",
        schemars(with = "crate::documents::schema::VersionText")
    )]
    pub format_version: FormatVersion,
    /// What wrote it.
    pub generator: String,
    /// Where the model ran: `cpu`, or `cuda:N` and the GPU's name.
    pub device: String,
    /// Tokens of the prompt.
    pub prompt_tokens: u64,
    /// Ids of the prompt.
    pub prompt_ids: Vec<u32>,
    /// The generated ids, the one that ended the text too.
    pub ids: Vec<u32>,
    /// The generated text without special tokens.
    pub text: String,
    /// Why it ended.
    pub stop_reason: RunEnd,
    /// What was worth a note, such as an end-of-text id that the checkpoint does not name.
    pub notes: Vec<String>,
    /// Seconds until the first token; 0 where none was generated.
    #[cfg_attr(feature = "schema", schemars(range(min = 0.0)))]
    pub time_to_first_token: f64,
    /// Seconds for all tokens after the first.
    #[cfg_attr(feature = "schema", schemars(range(min = 0.0)))]
    pub generation_seconds: f64,
    /// Bytes of weights read.
    pub bytes_read: u64,
    /// Experts that were in memory when needed.
    pub expert_hits: u64,
    /// Experts that had to be loaded.
    pub expert_misses: u64,
    /// Slots for experts.
    pub expert_slots: u64,
    /// Whether dense weights stayed in memory.
    pub dense_resident: bool,
    /// Peak resident memory of the process in bytes, where the system tells.
    pub peak_rss: Option<u64>,
    /// The rank that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rank: Option<ShownRank>,
    /// How the weights came and where the time went.
    pub costs: RunCosts,
    /// Experts that were used, for each layer that has some.
    pub experts: Vec<LayerExperts>,
}

/// A prompt as the model gets it: `run --print-prompt --json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct RunPrompt {
    /// Version of this document.
    #[cfg_attr(
        feature = "schema",
        schemars(with = "crate::documents::schema::VersionText")
    )]
    pub format_version: FormatVersion,
    /// What wrote it.
    pub generator: String,
    /// The text, rendered with the chat template where there is a chat. Of given ids what they
    /// stand for; none where the pack holds no tokenizer.
    pub text: Option<String>,
    /// Its token ids.
    pub ids: Vec<u32>,
}
