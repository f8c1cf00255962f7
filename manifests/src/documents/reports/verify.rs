//! The report of `verify`.

use segpack_formats::digest::Sha256;
use serde::{Deserialize, Serialize};

use crate::documents::{CheckedSignature, Completeness, Finding, FormatVersion, ValuesReport};

/// How thoroughly a pack was verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum VerifyMode {
    /// Structure, what follows from the kept files, and the text of SHA256SUMS; no weights are read.
    Quick,
    /// Every stored byte is hashed once, and the digest of every tensor compared.
    Full,
    /// As `full`, and the digest of every file as a whole.
    Sums,
}

/// How much was verified.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct VerifyCounts {
    /// Packs whose structure was checked.
    pub packs: u64,
    /// Segments whose bytes were read.
    pub segments: u64,
    /// Tensors whose digest was compared.
    pub tensors: u64,
    /// Files of `source/` whose digest was compared.
    pub files: u64,
    /// Stored bytes read.
    pub bytes: u64,
}

/// Whether the pack gives a file of the checkpoint back, byte for byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Restorable {
    /// Its bytes, as they would be restored, have the SHA-256 of the original.
    Yes,
    /// They have not; a finding says why.
    No,
    /// The SHA-256 of the original was not recorded: its tensors are checked one by one only.
    NotRecorded,
    /// Some of its tensors are of components that were excluded.
    Excluded,
    /// This run did not ask.
    NotChecked,
}

/// What `verify` says of one file of the checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct FileResult {
    /// Its path in the checkpoint.
    pub path: String,
    /// Whether the pack gives it back.
    pub restorable: Restorable,
}

/// The report of `verify`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct VerifyReport {
    /// Version of this document.
    #[cfg_attr(
        feature = "schema",
        schemars(with = "crate::documents::schema::VersionText")
    )]
    pub format_version: FormatVersion,
    /// Name and version of the program that wrote it.
    pub generator: String,
    /// SHA-256 of `manifest.json`: the pack's identity. `null` if it cannot be read.
    #[cfg_attr(
        feature = "schema",
        schemars(with = "Option<crate::documents::schema::HexDigest>")
    )]
    pub manifest_sha256: Option<Sha256>,
    /// How thoroughly it was verified.
    pub mode: VerifyMode,
    /// Part K of N, counted from 1, if the folder is not a pack, but what one of many machines packed
    /// of one; `manifest_sha256` is that of `part.json` then. Since version 1.2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part: Option<[u64; 2]>,
    /// Part K of N, counted from 1, if only one part was verified.
    pub subset: Option<[u64; 2]>,
    /// Whether the pack was also compared with a checkpoint.
    pub against: bool,
    /// The signature, where one was asked for and is right; since version 1.2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<CheckedSignature>,
    /// Whether the pack holds all tensors that its `config.json` requires, but for components that
    /// were excluded; since version 1.1.
    pub completeness: Completeness,
    /// Whether no finding is an error.
    pub ok: bool,
    /// How much was verified.
    pub checked: VerifyCounts,
    /// Whether `unpack` gives each file of the checkpoint back; since version 1.1.
    pub files: Vec<FileResult>,
    /// Everything that is wrong.
    pub findings: Vec<Finding>,
    /// The values of the tensors, where they were asked for; since version 1.1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub values: Option<ValuesReport>,
}
