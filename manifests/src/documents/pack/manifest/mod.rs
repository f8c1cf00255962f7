//! `manifest.json`: what is in a pack folder, where, and with which digests.

mod check;
mod error;
mod model;

use std::collections::HashSet;
use std::io;

use segpack_formats::codec::Codec;
use segpack_formats::digest::{Blake3, Sha256, Sha256Midstate};
use segpack_formats::numeric::Dtype;
use segpack_formats::pack::{PackTensor, SegmentSpec, StoredSegment};
use serde::{Deserialize, Serialize};

use crate::documents::pack::version::readable;
use crate::documents::{FormatVersion, LeftOut, Provenance};
use crate::families::{Family, FamilyName};
use crate::names::{Classification, Component, Part, Role};

pub use error::ManifestError;
pub use model::{ModelFacts, TextModel};

/// Order of the values of a tensor in its segment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    /// As in the checkpoint: the last dimension runs fastest.
    #[default]
    RowMajor,
}

/// The options that the written bytes depend on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PackOptions {
    /// `--codec`.
    #[cfg_attr(
        feature = "schema",
        schemars(with = "crate::documents::schema::CodecName")
    )]
    pub codec: Codec,
    /// `--level`, where the codec has levels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub level: Option<i32>,
    /// `--include`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub include: Vec<String>,
    /// `--exclude`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclude: Vec<String>,
    /// Whether the source shards were hashed (not with `--no-source-digests`).
    pub source_digests: bool,
    /// Whether `SHA256SUMS` is there (not with `--no-sums`).
    pub sums: bool,
    /// `--config`: what stands for the checkpoint's own `config.json`, which is kept beside it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<serde_json::Value>,
    /// `--as`: the family whose names the tensors have, whatever `config.json` says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub family: Option<FamilyName>,
}

impl PackOptions {
    /// The family that was given, where this build knows it.
    #[must_use]
    pub fn known_family(&self) -> Option<Family> {
        self.family.and_then(FamilyName::family)
    }
}

/// A whole model, and the thinker that was put into it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Graft {
    /// Where the tensors of the thinker come from.
    pub thinker: GraftSource,
    /// Where everything else comes from.
    pub onto: GraftSource,
}

/// One of two models that were put together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct GraftSource {
    /// SHA-256 of its `manifest.json`; none where it was a checkpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "schema",
        schemars(with = "Option<crate::documents::schema::HexDigest>")
    )]
    pub manifest_sha256: Option<Sha256>,
    /// Where its checkpoint came from, where that is recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provenance: Option<Provenance>,
}

/// A published checkpoint that the source is, or resembles.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct KnownSource {
    /// `owner/name` on the hub.
    pub repo: String,
    /// Commit of the hub repository.
    pub revision: String,
    /// Whether every shard is the published one, byte for byte.
    pub identical: bool,
    /// Shards that differ, each with what differs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub differs: Vec<String>,
    /// Shards of the right length that were not hashed, and so not compared.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_compared: Vec<String>,
}

/// Sums over the pack folder.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Counts {
    /// Packs.
    pub packs: u64,
    /// Segments.
    pub segments: u64,
    /// Tensors as packed (stacked experts count one by one).
    pub tensors: u64,
    /// Number of elements in them.
    pub parameters: u64,
    /// Bytes of tensors before coding.
    pub tensor_bytes: u64,
    /// Segments that are one routed expert each.
    pub experts: u64,
}

/// A component that was left in the checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Excluded {
    /// Part of the model.
    pub component: Component,
    /// Its stored tensors.
    pub tensors: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// One pack file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PackEntry {
    /// Path relative to the pack folder.
    pub path: String,
    /// Part of the model.
    pub component: Component,
    /// First byte of the data section, a multiple of 4096.
    pub data_offset: u64,
    /// Bytes of the file.
    pub length: u64,
    /// Digest of the file.
    #[cfg_attr(
        feature = "schema",
        schemars(with = "crate::documents::schema::HexDigest")
    )]
    pub sha256: Sha256,
}

/// One segment: the bytes that are loaded at once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SegmentEntry {
    /// Its name.
    pub id: String,
    /// The pack that holds it, by path.
    pub pack: String,
    /// First byte, from the pack file's start.
    pub offset: u64,
    /// Bytes in the pack.
    pub stored_length: u64,
    /// Bytes once decoded.
    pub raw_length: u64,
    /// How it is coded.
    #[cfg_attr(
        feature = "schema",
        schemars(with = "crate::documents::schema::CodecName")
    )]
    pub codec: Codec,
    /// Order of the values.
    pub layout: Layout,
    /// Digest of the stored bytes.
    #[cfg_attr(
        feature = "schema",
        schemars(with = "crate::documents::schema::HexDigest")
    )]
    pub blake3: Blake3,
}

impl SegmentEntry {
    fn spec(&self, tensors: &[TensorEntry]) -> SegmentSpec {
        SegmentSpec {
            id: self.id.clone(),
            tensors: tensors.iter().map(TensorEntry::spec).collect(),
        }
    }

    /// Its place, for the byte level.
    pub fn stored(&self) -> StoredSegment {
        StoredSegment {
            offset: self.offset,
            stored_length: self.stored_length,
            raw_length: self.raw_length,
            codec: self.codec,
            blake3: self.blake3,
        }
    }
}

/// A byte range of a source file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SourceRange {
    /// Path relative to the checkpoint.
    pub file: String,
    /// The tensor of that file which holds the range; a stacked one holds many.
    pub tensor: String,
    /// First byte, from the file's start.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
}

/// One tensor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct TensorEntry {
    /// Its name.
    pub name: String,
    /// Element type, as safetensors names it.
    #[cfg_attr(
        feature = "schema",
        schemars(with = "crate::documents::schema::DtypeName")
    )]
    pub dtype: Dtype,
    /// Shape, outermost dimension first.
    pub shape: Vec<u64>,
    /// The segment that holds it.
    pub segment: String,
    /// First byte within the raw segment.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// Digest of its raw little-endian bytes.
    #[cfg_attr(
        feature = "schema",
        schemars(with = "crate::documents::schema::HexDigest")
    )]
    pub sha256: Sha256,
    /// Part of the model.
    pub component: Component,
    /// What it does there.
    pub role: Role,
    /// Which tensor of its weight it is; since version 1.1.
    #[serde(default = "Part::weight", skip_serializing_if = "Part::is_weight")]
    pub part: Part,
    /// Layer, if it belongs to one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer: Option<u32>,
    /// Expert, if it belongs to one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expert: Option<u32>,
    /// Its place in the checkpoint.
    pub source: SourceRange,
}

impl TensorEntry {
    fn spec(&self) -> PackTensor {
        PackTensor {
            name: self.name.clone(),
            dtype: self.dtype,
            shape: self.shape.clone(),
            length: self.length,
        }
    }

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

/// What a source file is to the pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum SourceFileKind {
    /// A weight file: only its header is kept, its data is in the packs.
    Shard,
    /// Kept verbatim.
    File,
}

/// One file of the checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SourceFile {
    /// Path relative to the checkpoint.
    pub path: String,
    /// What it is to the pack.
    pub kind: SourceFileKind,
    /// Bytes of the original.
    pub length: u64,
    /// Digest of the original; `null` for a shard that was not read as a whole.
    #[cfg_attr(
        feature = "schema",
        schemars(with = "Option<crate::documents::schema::HexDigest>")
    )]
    pub sha256: Option<Sha256>,
    /// Where its bytes (for a shard: those before its data) are, relative to the pack folder.
    pub stored_as: String,
    /// Bytes of that file.
    pub stored_length: u64,
    /// Digest of that file.
    #[cfg_attr(
        feature = "schema",
        schemars(with = "crate::documents::schema::HexDigest")
    )]
    pub stored_sha256: Sha256,
    /// Bytes of its tensors that were excluded; the original can be restored if this is 0.
    #[serde(default)]
    pub excluded_bytes: u64,
    /// States on the way to `sha256`, for a shard: its parts can be checked side by side, each from
    /// one state to the next. Each lies less than 64 bytes before a tensor. Since version 1.2.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub midstates: Vec<Midstate>,
}

/// The state of SHA-256 on the way through a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Midstate {
    /// Bytes before it, a multiple of 64.
    pub offset: u64,
    /// H0 to H7 after them, big-endian.
    #[cfg_attr(
        feature = "schema",
        schemars(with = "crate::documents::schema::HexDigest")
    )]
    pub state: Sha256Midstate,
}

/// The whole document.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Manifest {
    /// Version of this document.
    #[cfg_attr(
        feature = "schema",
        schemars(with = "crate::documents::schema::VersionText")
    )]
    pub format_version: FormatVersion,
    /// Name and version of the program that wrote it.
    pub generator: String,
    /// Where the checkpoint came from (left out with `--no-provenance`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provenance: Option<Provenance>,
    /// The two models that the source was put together from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub graft: Option<Graft>,
    /// A published checkpoint that the source is or resembles.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub known: Option<KnownSource>,
    /// The model.
    pub model: ModelFacts,
    /// The options that the bytes depend on.
    pub options: PackOptions,
    /// Sums.
    pub counts: Counts,
    /// Components that were not packed.
    pub excluded: Vec<Excluded>,
    /// Entries of the checkpoint's folder that were not packed.
    pub left_out: Vec<LeftOut>,
    /// Files of the checkpoint.
    pub source_files: Vec<SourceFile>,
    /// Pack files.
    pub packs: Vec<PackEntry>,
    /// Segments, ordered by pack and offset.
    pub segments: Vec<SegmentEntry>,
    /// Tensors, ordered by segment and offset.
    pub tensors: Vec<TensorEntry>,
}

/// The version that introduced the parts of a weight.
const PARTS_SINCE: FormatVersion = FormatVersion::new(1, 1);

impl Manifest {
    /// Parses and checks a manifest.
    ///
    /// # Errors
    /// Not JSON, newer, a path that leaves the folder, or parts that contradict one another.
    pub fn parse(json: &[u8]) -> Result<Self, ManifestError> {
        readable::<Self>(json)?.checked()
    }

    /// The document as this build has it, where it does not contradict itself.
    pub(crate) fn checked(mut self) -> Result<Self, ManifestError> {
        if self.format_version < PARTS_SINCE {
            self.name_biases();
        }
        self.check()?;
        Ok(self)
    }

    /// Version 1.0 had no parts: a bias is told by its name.
    fn name_biases(&mut self) {
        for tensor in &mut self.tensors {
            if tensor.name.ends_with(".bias") {
                tensor.part = Part::Bias;
            }
        }
    }

    /// Writes the document: deterministic, one element of a list per line.
    ///
    /// # Errors
    /// Where `to` cannot be written to.
    pub fn write(&self, to: impl io::Write) -> io::Result<()> {
        crate::json::write_document(to, self)
    }

    /// The tensors of each segment, in the order of `segments`; `check` has made sure that they are
    /// adjacent.
    pub fn tensors_of_segments(&self) -> Vec<&[TensorEntry]> {
        let mut rest = self.tensors.as_slice();
        let mut tensors = Vec::with_capacity(self.segments.len());
        for segment in &self.segments {
            let own = |t: &&TensorEntry| t.segment == segment.id;
            let (own, others) = rest.split_at(rest.iter().take_while(own).count());
            tensors.push(own);
            rest = others;
        }
        tensors
    }

    /// What the byte level needs to know of each segment.
    pub fn segment_specs(&self) -> Vec<SegmentSpec> {
        let tensors = self.tensors_of_segments();
        let segments = self.segments.iter().zip(tensors);
        segments
            .map(|(segment, tensors)| segment.spec(tensors))
            .collect()
    }

    /// Every path that the pack folder holds, but for the manifest and `SHA256SUMS`, with length
    /// and digest, sorted.
    pub fn files(&self) -> Vec<(&str, u64, Sha256)> {
        let packs = self
            .packs
            .iter()
            .map(|p| (p.path.as_str(), p.length, p.sha256));
        let source = self
            .source_files
            .iter()
            .map(|f| (f.stored_as.as_str(), f.stored_length, f.stored_sha256));
        let mut files: Vec<_> = packs.chain(source).collect();
        files.sort_unstable();
        files
    }

    /// The text of `SHA256SUMS`, given the digest of this manifest's file.
    pub fn sums_text(&self, manifest_sha256: Sha256) -> String {
        self.sums_text_with(crate::folder::paths::MANIFEST, manifest_sha256)
    }

    /// The same for a folder whose document has another name.
    pub(crate) fn sums_text_with(&self, document: &str, sha256: Sha256) -> String {
        let mut files: Vec<_> = self
            .files()
            .into_iter()
            .map(|(path, _, sha256)| (path, sha256))
            .collect();
        files.push((document, sha256));
        files.sort_unstable();
        files
            .into_iter()
            .map(|(path, sha256)| format!("{sha256}  {path}\n"))
            .collect()
    }

    /// Sums over the lists.
    pub fn count(&self) -> Counts {
        let experts: HashSet<&str> = self
            .tensors
            .iter()
            .filter(|t| t.expert.is_some())
            .map(|t| t.segment.as_str())
            .collect();
        Counts {
            packs: self.packs.len() as u64,
            segments: self.segments.len() as u64,
            tensors: self.tensors.len() as u64,
            parameters: self
                .tensors
                .iter()
                .map(TensorEntry::values)
                .fold(0, u64::saturating_add),
            tensor_bytes: self
                .tensors
                .iter()
                .map(|t| t.length)
                .fold(0, u64::saturating_add),
            experts: experts.len() as u64,
        }
    }
}
