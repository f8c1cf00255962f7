//! The summary of `vocode`.

use segpack_formats::digest::Sha256;
use serde::{Deserialize, Serialize};

use crate::documents::FormatVersion;

/// What `vocode` wrote.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct VocodeSummary {
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
    /// Frames of codes.
    pub frames: u64,
    /// Codes of a frame.
    pub groups: u64,
    /// Samples written.
    pub samples: u64,
    /// Samples of a second.
    pub sample_rate: u32,
    /// Whether the samples were kept that the official class loses between chunks.
    pub gapless: bool,
    /// Samples at the limits of [-1, 1].
    pub clipped: u64,
    /// The largest absolute value of a sample; `null` where one is no number.
    pub peak: Option<f32>,
}
