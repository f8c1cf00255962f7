//! What `run --prompts` prints.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::expert_mask::RestrictedExperts;
use super::run::{RunCosts, RunEnd};
use crate::documents::{FormatVersion, LayerExperts};

/// What a caller calls a prompt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(untagged)]
pub enum PromptId {
    /// A whole number.
    Number(i64),
    /// A text.
    Text(String),
}

/// The text that continues one prompt: a line of `run --prompts`. The same prompts and options give
/// the same lines.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PromptResult {
    /// The line that the prompt came from, from 1.
    pub line: u64,
    /// The `id` of that line, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<PromptId>,
    /// Tokens of the prompt.
    pub prompt_tokens: u64,
    /// The generated ids, including the one that ended the text.
    pub ids: Vec<u32>,
    /// The generated text without special tokens, up to the stop string where one came.
    pub text: String,
    /// Why it ended.
    pub stop_reason: RunEnd,
    /// The stop string that ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_string: Option<String>,
    /// Whether routers were restricted to some experts: this is not the model's.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub restricted: bool,
}

/// What running all prompts took: the last line of `run --prompts --json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct BatchSummary {
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
    /// Prompts that were continued.
    pub prompts: u64,
    /// Tokens of all prompts.
    pub prompt_tokens: u64,
    /// Tokens that were generated.
    pub generated_tokens: u64,
    /// Forward passes.
    pub passes: u64,
    /// Most sequences in one of them.
    pub most_sequences: u64,
    /// Seconds from the first forward pass to the last token.
    #[cfg_attr(feature = "schema", schemars(range(min = 0.0)))]
    pub seconds: f64,
    /// Notes, such as that the checkpoint names no end-of-text id.
    pub notes: Vec<String>,
    /// Bytes of weights read.
    pub bytes_read: u64,
    /// Uses of experts that were in memory; a forward pass that routes several tokens to an expert
    /// uses it once.
    pub expert_hits: u64,
    /// Uses of experts that had to be loaded.
    pub expert_misses: u64,
    /// Slots for experts.
    pub expert_slots: u64,
    /// Whether dense weights stayed in memory.
    pub dense_resident: bool,
    /// Peak resident memory of the process in bytes, if the system reports it.
    pub peak_rss: Option<u64>,
    /// How weights were loaded, and where the time went.
    pub costs: RunCosts,
    /// The experts used, for each layer that has experts.
    pub experts: Vec<LayerExperts>,
    /// Of each layer whose router was restricted, the experts that it could choose: this is not a run
    /// of the model.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub restricted_experts: RestrictedExperts,
}
