//! The report of `info`.

use segpack_formats::digest::Sha256;
use serde::{Deserialize, Serialize};

use crate::documents::{Counts, Excluded, FormatVersion, KnownSource, PackOptions, Provenance};
use crate::documents::{ModelFacts, VerifyReceipt};
use crate::names::Component;

/// One component of a pack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct InfoComponent {
    /// Part of the model.
    pub component: Component,
    /// Packs.
    pub packs: u64,
    /// Layers that have tensors in it.
    pub layers: u64,
    /// Layers that have experts.
    pub moe_layers: u64,
    /// Fewest experts of a layer that has any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_experts: Option<u64>,
    /// Most experts of a layer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_experts: Option<u64>,
    /// Tensors.
    pub tensors: u64,
    /// Number of elements in them.
    pub parameters: u64,
    /// Bytes of tensors before coding.
    pub bytes: u64,
    /// Bytes of its pack files.
    pub stored_bytes: u64,
}

/// What the files of a pack are by their lengths and times since a verification was recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum SinceReceipt {
    /// Every file has the length and the time of modification that it had then.
    Unchanged,
    /// Some file was written, added or removed since.
    Changed,
    /// The receipt is of another pack.
    OtherPack,
}

/// What a receipt of `verify` says of a pack.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct InfoVerified {
    /// The receipt.
    pub receipt: VerifyReceipt,
    /// Whether it still speaks of the files that are there.
    pub since: SinceReceipt,
    /// The first file that differs, where one does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changed: Option<String>,
}

/// What `info` says of a pack; all but `verified` is read from its manifest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct InfoReport {
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
    /// Version of the manifest.
    #[cfg_attr(
        feature = "schema",
        schemars(with = "crate::documents::schema::VersionText")
    )]
    pub manifest_version: FormatVersion,
    /// Name and version of the program that wrote the pack.
    pub written_by: String,
    /// The model.
    pub model: ModelFacts,
    /// The options that the pack was written with.
    pub options: PackOptions,
    /// Where the checkpoint came from, where the pack says so.
    pub provenance: Option<Provenance>,
    /// A published checkpoint that the source is or resembles.
    pub known: Option<KnownSource>,
    /// Sums.
    pub counts: Counts,
    /// Bytes of the pack files.
    pub stored_bytes: u64,
    /// Bytes of the pack files, headers included, for each byte of tensors.
    pub ratio: f64,
    /// Bytes of the files in `source/`.
    pub source_bytes: u64,
    /// Shards of the checkpoint.
    pub shards: u64,
    /// Other files of the checkpoint.
    pub files: u64,
    /// Files of the checkpoint that cannot be restored, since components were excluded.
    pub not_restorable: u64,
    /// Parts of the model.
    pub components: Vec<InfoComponent>,
    /// Components that were not packed.
    pub excluded: Vec<Excluded>,
    /// What a receipt of `verify` says; `null` without one: a pack holds no times.
    pub verified: Option<InfoVerified>,
}
