//! The report of `repair`.

use segpack_formats::digest::Sha256;
use serde::{Deserialize, Serialize};

use crate::documents::{DiffKind, FormatVersion};

/// What was wrong with a file of a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum RepairDamage {
    /// It was not there.
    Missing,
    /// It was a link, a folder or something else.
    NotAFile,
    /// It had another length.
    WrongLength,
    /// Its bytes were others.
    WrongBytes,
    /// It could not be read to its end.
    Unreadable,
}

/// A file that was written anew.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct RepairedFile {
    /// Path relative to the pack folder.
    pub path: String,
    /// What was wrong with it.
    pub damage: RepairDamage,
    /// Its bytes.
    pub length: u64,
    /// Of a pack file, the segments that came from the source; all others are those that it had.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub segments: Vec<String>,
}

/// What `repair` did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct RepairReport {
    /// Version of this document.
    #[cfg_attr(
        feature = "schema",
        schemars(with = "crate::documents::schema::VersionText")
    )]
    pub format_version: FormatVersion,
    /// Name and version of the program that wrote it.
    pub generator: String,
    /// SHA-256 of `manifest.json`: the pack's identity.
    #[cfg_attr(
        feature = "schema",
        schemars(with = "crate::documents::schema::HexDigest")
    )]
    pub manifest_sha256: Sha256,
    /// What the missing bytes were taken from.
    pub from: DiffKind,
    /// Files that were checked.
    pub checked_files: u64,
    /// Their bytes.
    pub checked_bytes: u64,
    /// Files that were written anew; none where nothing was damaged.
    pub repaired: Vec<RepairedFile>,
}
