//! The summary of `speak`.

use segpack_formats::digest::Sha256;
use serde::{Deserialize, Serialize};

use crate::documents::FormatVersion;

/// What was spoken.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SpeakSummary {
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
    /// Who spoke.
    pub speaker: String,
    /// Frames of codes.
    pub frames: u64,
    /// Codes of a frame.
    pub groups: u64,
    /// Whether the talker ended by itself; otherwise it reached the maximum number of codes.
    pub is_complete: bool,
    /// Samples of sound.
    pub samples: u64,
    /// Samples of a second.
    pub sample_rate: u32,
    /// Seconds from the text to the last code.
    pub talker_seconds: f64,
    /// Bytes of the thinker's embedding that were read.
    pub embedding_bytes_read: u64,
    /// Bytes of the talker that were read, its projections not counted.
    pub talker_bytes_read: u64,
    /// Bytes of the code predictor that were read.
    pub predictor_bytes_read: u64,
}
