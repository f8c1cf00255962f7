//! The report of `graft`.

use segpack_formats::digest::Sha256;
use serde::{Deserialize, Serialize};

use crate::documents::{Finding, FormatVersion};

/// What `graft` wrote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct GraftReport {
    /// Version of this document.
    #[cfg_attr(
        feature = "schema",
        schemars(with = "crate::documents::schema::VersionText")
    )]
    pub format_version: FormatVersion,
    /// Name and version of the program that wrote it.
    pub generator: String,
    /// SHA-256 of the new `manifest.json`: the pack's identity.
    #[cfg_attr(
        feature = "schema",
        schemars(with = "crate::documents::schema::HexDigest")
    )]
    pub manifest_sha256: Sha256,
    /// SHA-256 of the thinker's `manifest.json`, where it was a pack.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "schema",
        schemars(with = "Option<crate::documents::schema::HexDigest>")
    )]
    pub thinker_sha256: Option<Sha256>,
    /// SHA-256 of the whole model's `manifest.json`.
    #[cfg_attr(
        feature = "schema",
        schemars(with = "crate::documents::schema::HexDigest")
    )]
    pub onto_sha256: Sha256,
    /// Tensors of the thinker that was put in.
    pub thinker_tensors: u64,
    /// Tensors whose bytes are not those of the whole model.
    pub changed_tensors: u64,
    /// Pack files taken over from the whole model's pack as they are.
    pub kept_packs: u64,
    /// Pack files that were written, by path.
    pub written_packs: Vec<String>,
    /// What else differs between the two.
    pub warnings: Vec<Finding>,
}
