//! The report of `update`.

use segpack_formats::digest::Sha256;
use serde::{Deserialize, Serialize};

use crate::documents::{DiffFile, Finding, FormatVersion};

/// What `update` did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct UpdateReport {
    /// Version of this document.
    #[cfg_attr(
        feature = "schema",
        schemars(with = "crate::documents::schema::VersionText")
    )]
    pub format_version: FormatVersion,
    /// Name and version of the program that wrote it.
    pub generator: String,
    /// SHA-256 of `manifest.json` before.
    #[cfg_attr(
        feature = "schema",
        schemars(with = "crate::documents::schema::HexDigest")
    )]
    pub before_sha256: Sha256,
    /// SHA-256 of `manifest.json` now: the pack's identity.
    #[cfg_attr(
        feature = "schema",
        schemars(with = "crate::documents::schema::HexDigest")
    )]
    pub manifest_sha256: Sha256,
    /// Whether anything was changed.
    pub changed: bool,
    /// Packs that stay as they are.
    pub kept_packs: u64,
    /// Packs that were written, by path.
    pub written_packs: Vec<String>,
    /// Packs that are no longer there, by path.
    pub removed_packs: Vec<String>,
    /// Files of the checkpoint, shards too, that are not what they were.
    pub files: Vec<DiffFile>,
    /// Warnings of the packs that were written.
    pub warnings: Vec<Finding>,
}
