//! What `export` says in the end.

use segpack_formats::digest::Sha256;
use serde::{Deserialize, Serialize};

use super::FormatVersion;

/// For whom an export is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum ExportTarget {
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
    #[cfg_attr(feature = "schema", schemars(with = "super::schema::VersionText"))]
    pub format_version: FormatVersion,
    /// What wrote it.
    pub generator: String,
    /// SHA-256 of the pack's `manifest.json`: which pack it was.
    #[cfg_attr(feature = "schema", schemars(with = "super::schema::HexDigest"))]
    pub manifest_sha256: Sha256,
    /// For whom.
    pub target: ExportTarget,
    /// Files written.
    pub files: u64,
    /// Tensors in them.
    pub tensors: u64,
    /// Bytes of the files.
    pub bytes: u64,
    /// Whether they were read back and compared with the pack.
    pub checked: bool,
    /// What the user has to know about the result.
    pub notes: Vec<String>,
}
