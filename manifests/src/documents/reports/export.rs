//! The summary of `export`, and the map of experts to ranks.

use segpack_formats::digest::Sha256;
use serde::{Deserialize, Serialize};

use crate::documents::FormatVersion;
use crate::names::Component;

/// Output format of an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum ExportTarget {
    /// The original layout of the checkpoint, or a part of it.
    Hf,
    /// The text decoder as a `Qwen3MoeForCausalLM`.
    Qwen3Moe,
    /// The text decoder for llama.cpp.
    Gguf,
    /// One safetensors file of tensors.
    Safetensors,
    /// A folder of `.npy` files.
    Npy,
}

impl ExportTarget {
    /// Its name in documents and on the command line.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hf => "hf",
            Self::Qwen3Moe => "qwen3-moe",
            Self::Gguf => "gguf",
            Self::Safetensors => "safetensors",
            Self::Npy => "npy",
        }
    }
}

impl std::fmt::Display for ExportTarget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

/// What `export` wrote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ExportSummary {
    /// Version of this document.
    #[cfg_attr(
        feature = "schema",
        schemars(with = "crate::documents::schema::VersionText")
    )]
    pub format_version: FormatVersion,
    /// Name and version of the program that wrote it.
    pub generator: String,
    /// SHA-256 of the pack's `manifest.json`: which pack it was.
    #[cfg_attr(
        feature = "schema",
        schemars(with = "crate::documents::schema::HexDigest")
    )]
    pub manifest_sha256: Sha256,
    /// Output format.
    pub target: ExportTarget,
    /// Files of the output.
    pub files: u64,
    /// Those of them that were there: an earlier, interrupted run had finished them.
    pub resumed_files: u64,
    /// Tensors in them.
    pub tensors: u64,
    /// Bytes of the files.
    pub bytes: u64,
    /// Whether they were read back and compared with the pack.
    pub checked: bool,
    /// What a user should know about the result.
    pub notes: Vec<String>,
}

/// How experts are distributed over ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Placement {
    /// Contiguous; the first `experts % ranks` ranks have one more.
    Linear,
}

/// The experts that one rank holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct RankExperts {
    /// Which rank, counted from 0.
    pub rank: u32,
    /// Its experts, by their numbers in the model.
    pub experts: Vec<u32>,
}

/// How the experts of one component are distributed; every layer is alike.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ComponentExperts {
    /// Part of the model.
    pub component: Component,
    /// Experts of each of its layers.
    pub experts: u32,
    /// The experts of each rank.
    pub ranks: Vec<RankExperts>,
}

/// `expert_parallel.json`: which rank holds which expert.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ExpertParallelMap {
    /// Version of this document.
    #[cfg_attr(
        feature = "schema",
        schemars(with = "crate::documents::schema::VersionText")
    )]
    pub format_version: FormatVersion,
    /// Name and version of the program that wrote it.
    pub generator: String,
    /// How experts are distributed.
    pub placement: Placement,
    /// The rank whose share is beside this document, counted from 0.
    pub rank: u32,
    /// How many ranks there are.
    pub ranks: u32,
    /// The components that have experts.
    pub components: Vec<ComponentExperts>,
}
