//! What is found when a rank's share of the experts is checked.

use segpack_formats::digest::Sha256;
use serde::{Deserialize, Serialize};

use crate::documents::{Finding, FormatVersion};

/// What `export --check-share` found in a folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ShareReport {
    /// Version of this document.
    #[cfg_attr(
        feature = "schema",
        schemars(with = "crate::documents::schema::VersionText")
    )]
    pub format_version: FormatVersion,
    /// Name and version of the program that wrote it.
    pub generator: String,
    /// The rank whose share it has to be, counted from 0.
    pub rank: u32,
    /// How many ranks there are.
    pub ranks: u32,
    /// SHA-256 of the `manifest.json` of the pack that the share was compared with; its tensors
    /// have that pack's bytes. `null`: no pack was given, and no bytes of tensors were read.
    #[cfg_attr(
        feature = "schema",
        schemars(with = "Option<crate::documents::schema::HexDigest>")
    )]
    pub manifest_sha256: Option<Sha256>,
    /// Weight files.
    pub files: u64,
    /// Tensors in them.
    pub tensors: u64,
    /// Those of them that belong to an expert.
    pub expert_tensors: u64,
    /// Tensors whose bytes were compared with the pack's.
    pub compared: u64,
    /// Tensors whose bytes were not compared, since their dtype is not the pack's.
    pub converted: u64,
    /// Whether no finding is an error.
    pub ok: bool,
    /// All that is wrong.
    pub findings: Vec<Finding>,
}
