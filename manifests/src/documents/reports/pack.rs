//! The summary of `pack`, `join` and `repack`.

use segpack_formats::digest::Sha256;
use serde::{Deserialize, Serialize};

use crate::documents::{Finding, FormatVersion, KnownSource};

/// What `pack` wrote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PackSummary {
    /// Version of this document.
    #[cfg_attr(
        feature = "schema",
        schemars(with = "crate::documents::schema::VersionText")
    )]
    pub format_version: FormatVersion,
    /// Name and version of the program that wrote it.
    pub generator: String,
    /// SHA-256 of `manifest.json`: the pack's identity. Of a part, that of `part.json`.
    #[cfg_attr(
        feature = "schema",
        schemars(with = "crate::documents::schema::HexDigest")
    )]
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
    /// Source shards that were removed once they were packed, by this run or one that it continued.
    #[serde(default, skip_serializing_if = "is_none")]
    pub removed_shards: u64,
    /// Part K of N, counted from 1, where one of many machines packed its share; since version 1.3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part: Option<[u64; 2]>,
    /// How many parts were joined to it; since version 1.3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub joined_parts: Option<u64>,
    /// The server that the source came from, by this run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packed_from: Option<PackedFrom>,
    /// The object store that the pack went to, by this run; since version 1.4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uploaded_to: Option<UploadedTo>,
    /// Warnings.
    pub warnings: Vec<Finding>,
}

/// What a run asked of a server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PackedFrom {
    /// A repository and its commit, or an address.
    pub place: String,
    /// Requests sent, redirects among them.
    pub requests: u64,
    /// Requests that were sent because one before failed.
    pub retries: u64,
    /// Bytes of answers that were received.
    pub received_bytes: u64,
}

/// What a run sent to an object store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct UploadedTo {
    /// The address of the pack.
    pub place: String,
    /// Objects that are there now because of this run.
    pub objects: u64,
    /// Parts of them, of those that were sent in several.
    pub parts: u64,
    /// Requests, those of lists and credentials among them.
    pub requests: u64,
    /// Requests that were sent because one before failed.
    pub retries: u64,
    /// Bytes of bodies, those of requests that failed among them.
    pub sent_bytes: u64,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes a reference"
)]
fn is_none(count: &u64) -> bool {
    *count == 0
}
