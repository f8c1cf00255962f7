//! What `run` prints with `--json`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::expert_mask::RestrictedExperts;
use crate::documents::{FormatVersion, LayerExperts};

/// A candidate for the next token.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ShownCandidate {
    /// Token id.
    pub id: u32,
    /// Its text; an incomplete character is shown as U+FFFD.
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
    /// The text that this token completes: bytes of an incomplete character, and what may be the
    /// beginning of a stop string, are held back; special tokens and stop strings are left out.
    pub text: String,
    /// Whether it ends the text.
    pub stop: bool,
    /// The most likely candidates, most likely first, with `--top-k-logits`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub top: Vec<ShownCandidate>,
    /// Whether routers were restricted to some experts: this is not the model's. Since version 1.1.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub restricted: bool,
}

/// The rank of a continuation at the first step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ShownRank {
    /// The continuation.
    pub text: String,
    /// Its first token, the one that is ranked, with its probability.
    pub first: ShownCandidate,
    /// Tokens of the continuation.
    pub tokens: u64,
    /// Rank of the first token, 1 for the most likely.
    pub rank: u64,
}

/// What came of drafts of the next tokens, each of which one forward pass checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct RunDrafts {
    /// Forward passes of a draft.
    pub passes: u64,
    /// Tokens of drafts.
    pub drafted: u64,
    /// Those of them that the model chose as well.
    pub accepted: u64,
}

/// How weights were loaded, and where the time went. Times are in seconds.
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
    /// Time in forward passes.
    pub forward: f64,
    /// The part of `forward` spent waiting for weights, with nothing to compute.
    pub waiting: f64,
    /// Time spent reading, summed over threads; most of it overlaps with computing.
    pub reading: f64,
    /// Time spent comparing digests, summed over threads.
    pub checking: f64,
    /// Time spent decoding, summed over threads.
    pub decoding: f64,
}

/// Why a text ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum RunEnd {
    /// An end-of-text id of the checkpoint was generated.
    StopId,
    /// A stop string came. Since version 1.1.
    StopString,
    /// The maximum number of tokens was generated.
    MaxNewTokens,
    /// The context is full.
    ContextFull,
}

impl RunEnd {
    /// In words.
    pub fn text(self) -> &'static str {
        match self {
            Self::StopId => "stop id",
            Self::StopString => "stop string",
            Self::MaxNewTokens => "max new tokens",
            Self::ContextFull => "context full",
        }
    }
}

/// The result of a run: the last line of `run --json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct RunSummary {
    /// Version of this document.
    #[cfg_attr(
        feature = "schema",
        schemars(with = "crate::documents::schema::VersionText")
    )]
    pub format_version: FormatVersion,
    /// Name and version of the program that wrote it.
    pub generator: String,
    /// Where the model ran: `cpu`, or `cuda:N` and the GPU's name.
    pub device: String,
    /// Tokens of the prompt.
    pub prompt_tokens: u64,
    /// Ids of the prompt.
    pub prompt_ids: Vec<u32>,
    /// The generated ids, including the one that ended the text.
    pub ids: Vec<u32>,
    /// The generated text without special tokens, up to the stop string where one came.
    pub text: String,
    /// Why it ended.
    pub stop_reason: RunEnd,
    /// The stop string that ended it. Since version 1.1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_string: Option<String>,
    /// Notes, such as that the checkpoint names no end-of-text id.
    pub notes: Vec<String>,
    /// Seconds until the first token; 0 if none was generated.
    #[cfg_attr(feature = "schema", schemars(range(min = 0.0)))]
    pub time_to_first_token: f64,
    /// Seconds for all tokens after the first.
    #[cfg_attr(feature = "schema", schemars(range(min = 0.0)))]
    pub generation_seconds: f64,
    /// Bytes of weights read.
    pub bytes_read: u64,
    /// Uses of experts that were in memory.
    pub expert_hits: u64,
    /// Uses of experts that had to be loaded.
    pub expert_misses: u64,
    /// Slots for experts.
    pub expert_slots: u64,
    /// Whether dense weights stayed in memory.
    pub dense_resident: bool,
    /// Peak resident memory of the process in bytes, if the system reports it.
    pub peak_rss: Option<u64>,
    /// The rank of the continuation given with `--rank`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rank: Option<ShownRank>,
    /// What came of the drafts of `--draft-lookup`. Since version 1.2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drafts: Option<RunDrafts>,
    /// How weights were loaded, and where the time went.
    pub costs: RunCosts,
    /// The experts used, for each layer that has experts.
    pub experts: Vec<LayerExperts>,
    /// Of each layer whose router was restricted, the experts that it could choose: this is not a run
    /// of the model. Since version 1.1.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub restricted_experts: RestrictedExperts,
}

/// A prompt as the model sees it: `run --print-prompt --json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct RunPrompt {
    /// Version of this document.
    #[cfg_attr(
        feature = "schema",
        schemars(with = "crate::documents::schema::VersionText")
    )]
    pub format_version: FormatVersion,
    /// Name and version of the program that wrote it.
    pub generator: String,
    /// The text: of a chat, as rendered by the chat template; of token ids, decoded. `null` if the
    /// pack has no tokenizer.
    pub text: Option<String>,
    /// Its token ids.
    pub ids: Vec<u32>,
    /// Its audio, images and videos, in their order. Since version 1.1.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub media: Vec<PromptMedia>,
}

/// One of the media of a prompt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PromptMedia {
    /// `audio`, `image` or `video`.
    pub kind: String,
    /// Its path, or what an address holds.
    pub name: String,
    /// Tokens of the prompt that stand for it.
    pub tokens: u64,
    /// Frames of the spectrogram of its sound, of 10 ms each.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audio_frames: Option<u64>,
    /// Patches along time, height and width.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grid: Option<[u64; 3]>,
    /// Seconds between two patches along time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub second_per_grid: Option<f64>,
}
