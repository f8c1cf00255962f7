//! The report of `diff`.

use segpack_formats::digest::Sha256;
use segpack_formats::numeric::Dtype;
use serde::{Deserialize, Serialize};

use crate::documents::FormatVersion;
use crate::families::FamilyName;
use crate::names::{Component, Part, Role};

/// What one of the two is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum DiffKind {
    /// A pack folder.
    Pack,
    /// A checkpoint.
    Checkpoint,
}

/// One of the two.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct DiffSide {
    /// What it is.
    pub kind: DiffKind,
    /// Of a pack, the SHA-256 of `manifest.json`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "schema",
        schemars(with = "Option<crate::documents::schema::HexDigest>")
    )]
    pub manifest_sha256: Option<Sha256>,
    /// Family of the model, where it is known.
    pub family: Option<FamilyName>,
    /// Tensors; stacked experts count one by one.
    pub tensors: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Files beside the shards.
    pub files: u64,
    /// Components that a pack leaves out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub excluded: Vec<Component>,
}

/// How many tensors or files are equal, and how many are not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct DiffCounts {
    /// In both, with the same bytes; a tensor also with the same dtype and shape.
    pub equal: u64,
    /// In the second only.
    pub added: u64,
    /// In the first only.
    pub removed: u64,
    /// In both, and not equal.
    pub changed: u64,
}

impl DiffCounts {
    /// Whether everything is equal.
    #[must_use]
    pub fn is_equal(&self) -> bool {
        self.added == 0 && self.removed == 0 && self.changed == 0
    }
}

/// How much values moved from the first to the second. Values that are not finite on either side
/// count as changed where their bits differ, and otherwise not at all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct DiffMoved {
    /// Values that were compared.
    pub values: u64,
    /// Those that are not equal.
    pub changed: u64,
    /// Pairs of values of which one or both are not finite.
    pub not_finite: u64,
    /// Largest absolute difference.
    pub max_abs: f64,
    /// Root of the mean square of the differences, divided by that of the first's values; `null`
    /// where these are all zero and the differences are not.
    pub relative_rms: Option<f64>,
}

/// The tensors of one role in one layer of a component.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct DiffGroup {
    /// Part of the model.
    pub component: Component,
    /// Layer, if they belong to one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer: Option<u32>,
    /// What they do there.
    pub role: Role,
    /// How many are equal, and how many are not.
    pub tensors: DiffCounts,
    /// How much the values of those that changed moved, where that was asked for and their shapes
    /// are equal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moved: Option<DiffMoved>,
}

/// What happened to a tensor or a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum DiffChange {
    /// It is in the second only.
    Added,
    /// It is in the first only.
    Removed,
    /// It is in both, and not equal.
    Changed,
}

impl DiffChange {
    /// What happened to something that is on one side or both, and not equal.
    #[must_use]
    pub fn between<T>(a: Option<T>, b: Option<T>) -> Self {
        match (a, b) {
            (None, _) => Self::Added,
            (_, None) => Self::Removed,
            (Some(_), Some(_)) => Self::Changed,
        }
    }
}

/// A tensor on one side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct DiffTensorSide {
    /// Element type, as safetensors names it.
    #[cfg_attr(
        feature = "schema",
        schemars(with = "crate::documents::schema::DtypeName")
    )]
    pub dtype: Dtype,
    /// Shape, outermost dimension first.
    pub shape: Vec<u64>,
    /// Digest of its bytes; left out where it was not needed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "schema",
        schemars(with = "Option<crate::documents::schema::HexDigest>")
    )]
    pub sha256: Option<Sha256>,
}

/// A tensor that is not equal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct DiffTensor {
    /// Its name.
    pub name: String,
    /// What happened to it.
    pub change: DiffChange,
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
    /// In the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub a: Option<DiffTensorSide>,
    /// In the second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub b: Option<DiffTensorSide>,
    /// How much its values moved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moved: Option<DiffMoved>,
}

/// A file beside the shards that is not equal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct DiffFile {
    /// Path relative to the checkpoint.
    pub path: String,
    /// What happened to it.
    pub change: DiffChange,
    /// Bytes in the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub a_length: Option<u64>,
    /// Bytes in the second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub b_length: Option<u64>,
}

impl DiffFile {
    /// A file that is not equal, by its lengths on the sides that have it.
    #[must_use]
    pub fn new(path: &str, a_length: Option<u64>, b_length: Option<u64>) -> Self {
        Self {
            path: path.to_owned(),
            change: DiffChange::between(a_length, b_length),
            a_length,
            b_length,
        }
    }
}

/// What `diff` found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct DiffReport {
    /// Version of this document.
    #[cfg_attr(
        feature = "schema",
        schemars(with = "crate::documents::schema::VersionText")
    )]
    pub format_version: FormatVersion,
    /// Name and version of the program that wrote it.
    pub generator: String,
    /// Whether every tensor and every file is equal.
    pub equal: bool,
    /// The first.
    pub a: DiffSide,
    /// The second.
    pub b: DiffSide,
    /// Sums over the tensors.
    pub tensors: DiffCounts,
    /// Sums over the files beside the shards.
    pub files: DiffCounts,
    /// Every group of tensors of which one is not equal, in the order of the model.
    pub groups: Vec<DiffGroup>,
    /// Every file that is not equal.
    pub changed_files: Vec<DiffFile>,
    /// Every tensor that is not equal, where they were asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changed_tensors: Option<Vec<DiffTensor>>,
}
