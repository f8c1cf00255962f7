//! What the commands say in the end.

use segpack_formats::digest::Sha256;
use serde::{Deserialize, Serialize};

use super::{Finding, FormatVersion, KnownSource};

/// How thoroughly a pack was verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum VerifyMode {
    /// Structure and SHA256SUMS' text; no weight is read.
    Quick,
    /// Every stored byte hashed once, every tensor's digest compared.
    Full,
    /// Full, and the digest of every file as a whole.
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

/// Everything that `verify` found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct VerifyReport {
    /// Version of this document.
    #[cfg_attr(feature = "schema", schemars(with = "super::schema::VersionText"))]
    pub format_version: FormatVersion,
    /// What wrote it.
    pub generator: String,
    /// SHA-256 of `manifest.json`: the pack's identity. None where it cannot be read.
    #[cfg_attr(
        feature = "schema",
        schemars(with = "Option<super::schema::HexDigest>")
    )]
    pub manifest_sha256: Option<Sha256>,
    /// How thoroughly.
    pub mode: VerifyMode,
    /// Part K of N, counted from 1, where only one was verified.
    pub subset: Option<[u64; 2]>,
    /// Whether the pack was also compared with a checkpoint.
    pub against: bool,
    /// True where no finding is an error.
    pub ok: bool,
    /// How much.
    pub checked: VerifyCounts,
    /// All that is wrong.
    pub findings: Vec<Finding>,
}

/// What `pack` wrote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PackSummary {
    /// Version of this document.
    #[cfg_attr(feature = "schema", schemars(with = "super::schema::VersionText"))]
    pub format_version: FormatVersion,
    /// What wrote it.
    pub generator: String,
    /// SHA-256 of `manifest.json`: the pack's identity.
    #[cfg_attr(feature = "schema", schemars(with = "super::schema::HexDigest"))]
    pub manifest_sha256: Sha256,
    /// Packs in the folder.
    pub packs: u64,
    /// Packs that an earlier, interrupted run had finished.
    pub resumed_packs: u64,
    /// Segments in them.
    pub segments: u64,
    /// Tensors in them.
    pub tensors: u64,
    /// Bytes of tensors.
    pub tensor_bytes: u64,
    /// Bytes of the packs.
    pub stored_bytes: u64,
    /// A published checkpoint that the source is or resembles.
    pub known: Option<KnownSource>,
    /// Source files whose SHA-256 was compared with the hub's own.
    pub hub_digests_compared: u64,
    /// Things worth a look.
    pub warnings: Vec<Finding>,
}

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
    #[cfg_attr(feature = "schema", schemars(with = "super::schema::VersionText"))]
    pub format_version: FormatVersion,
    /// What wrote it.
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
