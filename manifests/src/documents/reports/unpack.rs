//! The summary of `unpack`.

use serde::{Deserialize, Serialize};

use crate::documents::FormatVersion;

/// A file that a pack cannot restore.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct UnrestorableFile {
    /// Path relative to the checkpoint.
    pub path: String,
    /// Why not.
    pub why: String,
}

/// What `unpack` wrote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct UnpackSummary {
    /// Version of this document.
    #[cfg_attr(
        feature = "schema",
        schemars(with = "crate::documents::schema::VersionText")
    )]
    pub format_version: FormatVersion,
    /// Name and version of the program that wrote it.
    pub generator: String,
    /// Files written.
    pub files: u64,
    /// Files that an earlier, interrupted run had finished.
    pub resumed_files: u64,
    /// Bytes written.
    pub bytes: u64,
    /// Files that the pack cannot restore.
    pub not_restored: Vec<UnrestorableFile>,
}
