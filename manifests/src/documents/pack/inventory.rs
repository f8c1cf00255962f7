//! What a checkpoint contains, according to its headers and `config.json` (`segpack scan`).

use segpack_formats::digest::Sha256;
use segpack_formats::numeric::Dtype;
use serde::{Deserialize, Serialize};

use crate::documents::{Completeness, Finding, FormatVersion};
use crate::families::FamilyName;
use crate::names::{Class, Classification, Component, Part, Role};

/// Where the checkpoint came from, as far as its folder reveals it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Provenance {
    /// `owner/name` on the hub.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repo: Option<String>,
    /// Commit of the hub repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
}

/// A weight file and its header.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SourceShard {
    /// Path relative to the checkpoint.
    pub path: String,
    /// Bytes of the file.
    pub length: u64,
    /// Bytes before the data: 8 + the header's length.
    pub data_start: u64,
    /// Number of tensors.
    pub tensors: u64,
    /// The SHA-256 that the hub publishes, where the local cache or download folder reveals it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "schema",
        schemars(with = "Option<crate::documents::schema::HexDigest>")
    )]
    pub hub_sha256: Option<Sha256>,
}

/// Any other file of the checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SideFile {
    /// Path relative to the checkpoint.
    pub path: String,
    /// Bytes.
    pub length: u64,
    /// The SHA-256 that the hub publishes, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "schema",
        schemars(with = "Option<crate::documents::schema::HexDigest>")
    )]
    pub hub_sha256: Option<Sha256>,
}

/// Something that is not part of the checkpoint and is not packed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct LeftOut {
    /// Path relative to the checkpoint.
    pub path: String,
    /// Why it is left out.
    pub why: String,
}

/// A published checkpoint that one has the tensors of, or nearly.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PublishedMatch {
    /// Repositories on the hub; several where nothing that headers say tells them apart.
    pub repos: Vec<String>,
    /// How close it is.
    pub by: MatchedBy,
    /// Stored tensors that it has when it is published.
    pub stored_tensors: u64,
    /// Bytes of these tensors.
    pub tensor_bytes: u64,
    /// Whether these counts are those of the real checkpoint, not derived from its `config.json`.
    pub verified: bool,
}

/// What agrees with a published checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum MatchedBy {
    /// Every name, dtype and shape.
    Names,
    /// The number of tensors, stored and logical, and their bytes.
    Counts,
    /// Those numbers within a fiftieth: tensors are missing, or there are others.
    Nearly,
}

/// One stored tensor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct InventoryTensor {
    /// Its name in the shard.
    pub name: String,
    /// Element type, as safetensors names it.
    #[cfg_attr(
        feature = "schema",
        schemars(with = "crate::documents::schema::DtypeName")
    )]
    pub dtype: Dtype,
    /// Shape, outermost dimension first.
    pub shape: Vec<u64>,
    /// The shard, an index into `shards`.
    pub shard: usize,
    /// First byte in the shard file.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// Part of the model.
    pub component: Component,
    /// What it does there.
    pub role: Role,
    /// Which tensor of its weight it is.
    #[serde(default = "Part::weight", skip_serializing_if = "Part::is_weight")]
    pub part: Part,
    /// Layer, if it belongs to one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer: Option<u32>,
    /// Expert, if it belongs to one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expert: Option<u32>,
}

impl InventoryTensor {
    /// What it is.
    #[must_use]
    pub fn classification(&self) -> Classification {
        Classification {
            component: self.component,
            role: self.role,
            part: self.part,
            layer: self.layer,
            expert: self.expert,
        }
    }

    /// Number of values; at most `u64::MAX`.
    #[must_use]
    pub fn values(&self) -> u64 {
        let sides = self.shape.iter();
        sides.fold(1, |n, &side| n.saturating_mul(side))
    }
}

/// Sums over the tensors of one component and class.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ClassCount {
    /// Part of the model.
    pub component: Component,
    /// Row of the table.
    pub class: Class,
    /// Stored tensors.
    pub tensors: u64,
    /// Number of elements in them.
    pub parameters: u64,
    /// Bytes of them.
    pub bytes: u64,
}

/// Sums over the tensors of one component and role.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct RoleCount {
    /// Part of the model.
    pub component: Component,
    /// What the tensors do there.
    pub role: Role,
    /// Stored tensors.
    pub tensors: u64,
    /// Number of elements in them.
    pub parameters: u64,
    /// Bytes of them.
    pub bytes: u64,
}

/// Sums over the whole checkpoint.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct InventoryCounts {
    /// Tensors as stored in the shards.
    pub stored_tensors: u64,
    /// Parameters once each layer's experts are stacked into two (gate and up fused, down): what
    /// loaders print.
    pub logical_parameters: u64,
    /// Number of elements in all tensors.
    pub parameters: u64,
    /// Bytes of all tensors.
    pub tensor_bytes: u64,
}

impl Inventory {
    /// How many experts the router of a layer chooses from, by the rows of its weight.
    #[must_use]
    pub fn routed_experts(&self, of: &InventoryTensor) -> Option<u64> {
        let mut tensors = self.tensors.iter();
        let is_router = |t: &&InventoryTensor| t.role == Role::Router && t.part.is_weight();
        let router =
            tensors.find(|t| is_router(t) && (t.component, t.layer) == (of.component, of.layer))?;
        router.shape.first().copied()
    }
}

/// What `scan` derives from headers and `config.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Inventory {
    /// Version of this document.
    #[cfg_attr(
        feature = "schema",
        schemars(with = "crate::documents::schema::VersionText")
    )]
    pub format_version: FormatVersion,
    /// Name and version of the program that wrote it.
    pub generator: String,
    /// Where the checkpoint came from.
    pub provenance: Provenance,
    /// Its family, if `config.json` (or, without one, the tensor names) reveals it.
    pub family: Option<FamilyName>,
    /// The published checkpoint that has these tensors, or nearly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub published: Option<PublishedMatch>,
    /// Whether the checkpoint was compared with every tensor that `config.json` requires.
    pub audited: bool,
    /// Whether all tensors are there that `config.json` requires; since version 1.2.
    pub completeness: Completeness,
    /// Sums.
    pub counts: InventoryCounts,
    /// Sums by component and class.
    pub classes: Vec<ClassCount>,
    /// Sums by component and role.
    pub roles: Vec<RoleCount>,
    /// Weight files, in the order of their names.
    pub shards: Vec<SourceShard>,
    /// Other files.
    pub files: Vec<SideFile>,
    /// What is not packed.
    pub left_out: Vec<LeftOut>,
    /// Everything that is wrong.
    pub findings: Vec<Finding>,
    /// All tensors, ordered by shard and offset.
    pub tensors: Vec<InventoryTensor>,
}
