//! Which tensor goes where: a pure function of the inventory and the options (`pack --dry-run`
//! prints it).

use segpack_formats::codec::Codec;
use segpack_formats::numeric::Dtype;
use segpack_formats::pack::{PackTensor, SegmentSpec};
use serde::{Deserialize, Serialize};

use crate::documents::{Excluded, FormatVersion, LeftOut, SourceRange};
use crate::names::{Component, Part, Role};

/// Everything that `pack` is going to write.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Plan {
    /// Version of this document.
    #[cfg_attr(
        feature = "schema",
        schemars(with = "crate::documents::schema::VersionText")
    )]
    pub format_version: FormatVersion,
    /// Name and version of the program that wrote it.
    pub generator: String,
    /// How segments will be coded.
    #[cfg_attr(
        feature = "schema",
        schemars(with = "crate::documents::schema::CodecName")
    )]
    pub codec: Codec,
    /// Components that are not packed.
    pub excluded: Vec<Excluded>,
    /// Files that are not packed.
    pub left_out: Vec<LeftOut>,
    /// Packs, in the order in which they are listed.
    pub packs: Vec<PlannedPack>,
    /// What coding will make of them, where that was estimated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub estimate: Option<SizeEstimate>,
    /// What removing the checkpoint while it is packed comes to, where that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consume: Option<ConsumePlan>,
}

/// Removing each shard of a checkpoint as soon as all its bytes are in finished packs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ConsumePlan {
    /// Shards that will be removed.
    pub removed_files: u64,
    /// Their bytes.
    pub removed_bytes: u64,
    /// The most bytes that the packs take beyond what is freed, at any moment, where checkpoint and
    /// pack are on one disk.
    pub peak_bytes: u64,
}

/// The coded size of a plan, from a sample of the real bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SizeEstimate {
    /// Bytes of all pack files.
    pub stored_bytes: u64,
    /// Raw bytes that were coded to find out.
    pub sampled_bytes: u64,
    /// Whether everything was coded, so that the lengths are no estimates.
    pub exact: bool,
}

/// One pack to write.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PlannedPack {
    /// Path relative to the pack folder.
    pub path: String,
    /// Part of the model.
    pub component: Component,
    /// First byte of the data section.
    pub data_offset: u64,
    /// Bytes of the file: exact for the codec `raw`, an upper bound otherwise.
    pub length: u64,
    /// Bytes that the coded file will probably have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub estimated_length: Option<u64>,
    /// Segments in file order.
    pub segments: Vec<PlannedSegment>,
}

/// One segment to write.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PlannedSegment {
    /// Its name.
    pub id: String,
    /// Bytes before coding.
    pub raw_length: u64,
    /// Tensors, adjacent in this order.
    pub tensors: Vec<PlannedTensor>,
}

/// One tensor to write, and where its bytes come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PlannedTensor {
    /// Its name; for an expert sliced from a stacked tensor, the name that it would have on its
    /// own.
    pub name: String,
    /// Element type, as safetensors names it.
    #[cfg_attr(
        feature = "schema",
        schemars(with = "crate::documents::schema::DtypeName")
    )]
    pub dtype: Dtype,
    /// Shape, outermost dimension first.
    pub shape: Vec<u64>,
    /// What it does.
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
    /// Where its bytes are.
    pub source: SourceRange,
}

impl PlannedTensor {
    fn spec(&self) -> PackTensor {
        PackTensor {
            name: self.name.clone(),
            dtype: self.dtype,
            shape: self.shape.clone(),
            length: self.source.length,
        }
    }
}

impl PlannedSegment {
    /// What the byte level needs to know of it.
    pub fn spec(&self) -> SegmentSpec {
        SegmentSpec {
            id: self.id.clone(),
            tensors: self.tensors.iter().map(PlannedTensor::spec).collect(),
        }
    }
}

impl PlannedPack {
    /// What the byte level needs to know of its segments.
    pub fn specs(&self) -> Vec<SegmentSpec> {
        self.segments.iter().map(PlannedSegment::spec).collect()
    }

    /// Bytes before coding.
    pub fn raw_length(&self) -> u64 {
        self.segments.iter().map(|s| s.raw_length).sum()
    }
}

impl Plan {
    /// Bytes of tensors, before coding.
    pub fn raw_length(&self) -> u64 {
        self.packs.iter().map(PlannedPack::raw_length).sum()
    }
}
