//! What `serve` says when it begins.

use segpack_formats::digest::Sha256;
use serde::{Deserialize, Serialize};

use crate::documents::FormatVersion;

/// A server that answers requests from now on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ServeStarted {
    /// Version of this document.
    #[cfg_attr(
        feature = "schema",
        schemars(with = "crate::documents::schema::VersionText")
    )]
    pub format_version: FormatVersion,
    /// Name and version of the program that wrote it.
    pub generator: String,
    /// Where it listens, such as `http://127.0.0.1:8000`; the interface is below `/v1`.
    pub address: String,
    /// What requests call the model.
    pub model: String,
    /// SHA-256 of `manifest.json`: the pack's identity.
    #[cfg_attr(
        feature = "schema",
        schemars(with = "crate::documents::schema::HexDigest")
    )]
    pub manifest_sha256: Sha256,
    /// Where the model runs: `cpu`, or `cuda:` with the number and name of the GPU.
    pub device: String,
    /// Positions of a prompt and its answer together.
    pub context: u64,
    /// Requests that may wait beside the one that is answered.
    pub queue: u64,
    /// Whether requests have to show a key.
    pub needs_key: bool,
}
