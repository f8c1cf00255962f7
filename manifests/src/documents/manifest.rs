//! `manifest.json`: what is in a pack folder, where, and with which digests.

use std::collections::{HashMap, HashSet};
use std::io;

use segpack_formats::codec::Codec;
use segpack_formats::digest::{Blake3, Sha256};
use segpack_formats::pack::{ALIGNMENT, SegmentSpec, StoredSegment, TensorSpec};
use segpack_formats::safetensors::{Dtype, byte_length, check_relative_path};
use serde::{Deserialize, Serialize};

use super::{FormatVersion, LeftOut, Provenance};
use crate::families::{Family, TextFacts};
use crate::names::{Component, Role};
use crate::pack_folder::{PARTIAL, SHARD_HEADERS};

/// Why a manifest cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ManifestError(pub String);

/// How the values of a tensor lie in its segment.
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
    #[cfg_attr(feature = "schema", schemars(with = "super::schema::CodecName"))]
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
    /// Whether source shards were digested (not with `--no-source-digests`).
    pub source_digests: bool,
    /// Whether `SHA256SUMS` is there (not with `--no-sums`).
    pub sums: bool,
}

/// The model, as `config.json` describes it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ModelFacts {
    /// Its family; none where every tensor was packed unclassified.
    pub family: Option<Family>,
    /// The text decoder's numbers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<TextFacts>,
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
    /// Shards of the right length that were not digested, and so not compared.
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
    /// Values in them.
    pub parameters: u64,
    /// Bytes of them before coding.
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
    #[cfg_attr(feature = "schema", schemars(with = "super::schema::HexDigest"))]
    pub sha256: Sha256,
}

/// One segment: the bytes that one consumer loads at once.
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
    #[cfg_attr(feature = "schema", schemars(with = "super::schema::CodecName"))]
    pub codec: Codec,
    /// How values lie in it.
    pub layout: Layout,
    /// Digest of the stored bytes.
    #[cfg_attr(feature = "schema", schemars(with = "super::schema::HexDigest"))]
    pub blake3: Blake3,
}

impl SegmentEntry {
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
    #[cfg_attr(feature = "schema", schemars(with = "super::schema::DtypeName"))]
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
    #[cfg_attr(feature = "schema", schemars(with = "super::schema::HexDigest"))]
    pub sha256: Sha256,
    /// Part of the model.
    pub component: Component,
    /// What it does there.
    pub role: Role,
    /// Layer, where it belongs to one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer: Option<u32>,
    /// Expert, where it belongs to one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expert: Option<u32>,
    /// Where it came from, and goes back to.
    pub source: SourceRange,
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
    /// Digest of the original. None for a shard that was not read whole.
    #[cfg_attr(
        feature = "schema",
        schemars(with = "Option<super::schema::HexDigest>")
    )]
    pub sha256: Option<Sha256>,
    /// Where its bytes (for a shard: those before its data) are, relative to the pack folder.
    pub stored_as: String,
    /// Bytes of that file.
    pub stored_length: u64,
    /// Digest of that file.
    #[cfg_attr(feature = "schema", schemars(with = "super::schema::HexDigest"))]
    pub stored_sha256: Sha256,
    /// Bytes of it whose tensors were excluded; the original can be restored where this is 0.
    #[serde(default)]
    pub excluded_bytes: u64,
}

/// The whole document.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Manifest {
    /// Version of this document.
    #[cfg_attr(feature = "schema", schemars(with = "super::schema::VersionText"))]
    pub format_version: FormatVersion,
    /// What wrote it.
    pub generator: String,
    /// Where the checkpoint came from (left out with `--no-provenance`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provenance: Option<Provenance>,
    /// A published checkpoint that the source is or resembles.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub known: Option<KnownSource>,
    /// The model.
    pub model: ModelFacts,
    /// The options that the bytes depend on.
    pub options: PackOptions,
    /// Sums.
    pub counts: Counts,
    /// Components that were left behind.
    pub excluded: Vec<Excluded>,
    /// Entries of the checkpoint's folder that were not packed.
    pub left_out: Vec<LeftOut>,
    /// Files of the checkpoint.
    pub source_files: Vec<SourceFile>,
    /// Pack files.
    pub packs: Vec<PackEntry>,
    /// Segments, by pack and place.
    pub segments: Vec<SegmentEntry>,
    /// Tensors, by segment and place.
    pub tensors: Vec<TensorEntry>,
}

impl Manifest {
    /// Parses and checks a manifest.
    ///
    /// # Errors
    /// Not JSON, newer, a path that leaves the folder, or parts that contradict one another.
    pub fn parse(json: &[u8]) -> Result<Self, ManifestError> {
        #[derive(Deserialize)]
        struct Version {
            format_version: FormatVersion,
        }
        let wrong = |e: serde_json::Error| ManifestError(format!("is not a valid manifest: {e}"));
        // asked first: a newer document may lack what this build demands
        let version: Version = serde_json::from_slice(json).map_err(wrong)?;
        version
            .format_version
            .check_readable()
            .map_err(ManifestError)?;
        let manifest: Self = serde_json::from_slice(json).map_err(wrong)?;
        manifest.check()?;
        Ok(manifest)
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
        let mut at = 0;
        let take = |segment: &SegmentEntry| {
            let start = at;
            while self
                .tensors
                .get(at)
                .is_some_and(|t| t.segment == segment.id)
            {
                at += 1;
            }
            &self.tensors[start..at]
        };
        self.segments.iter().map(take).collect()
    }

    /// What the byte level needs to know of each segment.
    pub fn segment_specs(&self) -> Vec<SegmentSpec> {
        let spec = |(segment, tensors): (&SegmentEntry, &[TensorEntry])| SegmentSpec {
            id: segment.id.clone(),
            tensors: tensors
                .iter()
                .map(|t| TensorSpec {
                    name: t.name.clone(),
                    dtype: t.dtype,
                    shape: t.shape.clone(),
                    length: t.length,
                })
                .collect(),
        };
        self.segments
            .iter()
            .zip(self.tensors_of_segments())
            .map(spec)
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
        let mut files: Vec<_> = self
            .files()
            .into_iter()
            .map(|(path, _, sha256)| (path, sha256))
            .collect();
        files.push((crate::pack_folder::MANIFEST, manifest_sha256));
        files.sort_unstable();
        files
            .into_iter()
            .map(|(path, sha256)| format!("{sha256}  {path}\n"))
            .collect()
    }

    fn check(&self) -> Result<(), ManifestError> {
        self.check_paths()?;
        self.check_segments()?;
        self.check_tensors()?;
        self.check_counts()
    }

    fn check_paths(&self) -> Result<(), ManifestError> {
        let mut seen = HashSet::new();
        let named = self.source_files.iter().map(|f| f.path.as_str());
        for path in self.files().iter().map(|f| f.0).chain(named) {
            check_relative_path(path)
                .map_err(|why| ManifestError(format!("path {path:?}: {why}")))?;
        }
        let mut sources = HashSet::new();
        for file in &self.source_files {
            let top = file.path.split('/').next();
            if top == Some(PARTIAL) || top == Some(SHARD_HEADERS) {
                return wrong(format!(
                    "source path {:?} begins with a reserved name",
                    file.path
                ));
            }
            if !sources.insert(file.path.as_str()) {
                return wrong(format!("source path {:?} is listed twice", file.path));
            }
            check_verbatim(file)?;
        }
        check_no_file_is_a_folder(&sources)?;
        for (path, ..) in self.files() {
            if !path.starts_with("packs/") && !path.starts_with("source/") {
                return wrong(format!("path {path:?} is neither in packs/ nor in source/"));
            }
            if !seen.insert(path) {
                return wrong(format!("path {path:?} is listed twice"));
            }
        }
        check_no_file_is_a_folder(&seen)
    }

    /// The segments of each pack tile its data section, in order.
    fn check_segments(&self) -> Result<(), ManifestError> {
        let (mut ids, mut segments) = (HashSet::new(), self.segments.iter().peekable());
        for pack in &self.packs {
            if pack.data_offset == 0 || pack.data_offset % ALIGNMENT != 0 {
                return wrong(format!(
                    "pack {}: data_offset {} is no multiple of 4096",
                    pack.path, pack.data_offset
                ));
            }
            let mut at = pack.data_offset;
            while let Some(segment) = segments.next_if(|s| s.pack == pack.path) {
                if !ids.insert(segment.id.as_str()) {
                    return wrong(format!("segment {:?} is listed twice", segment.id));
                }
                if segment.offset != at {
                    return wrong(format!(
                        "segment {:?} begins at byte {}, wanted {at}",
                        segment.id, segment.offset
                    ));
                }
                if segment.codec == Codec::Raw && segment.stored_length != segment.raw_length {
                    return wrong(format!(
                        "raw segment {:?} stores {} bytes for {}",
                        segment.id, segment.stored_length, segment.raw_length
                    ));
                }
                at = at.checked_add(segment.stored_length).ok_or_else(|| {
                    ManifestError(format!("segment {:?} overflows 64 bits", segment.id))
                })?;
            }
            if at != pack.length {
                return wrong(format!(
                    "pack {}: segments end at byte {at}, the file at {}",
                    pack.path, pack.length
                ));
            }
        }
        match segments.next() {
            None => Ok(()),
            Some(s) => wrong(format!(
                "segment {:?} is in pack {:?}, which is not listed there",
                s.id, s.pack
            )),
        }
    }

    /// The tensors of each segment tile it, in order; names are unique; the ranges of a source file
    /// do not overlap.
    fn check_tensors(&self) -> Result<(), ManifestError> {
        let (mut names, mut at) = (HashSet::new(), 0);
        for (segment, tensors) in self.segments.iter().zip(self.tensors_of_segments()) {
            let mut offset = 0_u64;
            for t in tensors {
                if t.name.is_empty() || t.name.chars().any(char::is_control) {
                    return wrong(format!(
                        "tensor name {:?} is empty or holds control characters",
                        t.name
                    ));
                }
                if !names.insert(t.name.as_str()) {
                    return wrong(format!("tensor {:?} is listed twice", t.name));
                }
                let bytes = byte_length(t.dtype, &t.shape)
                    .map_err(|e| ManifestError(format!("tensor {:?}: {e}", t.name)))?;
                if t.offset != offset || t.length != bytes || t.source.length != bytes {
                    return wrong(format!(
                        "tensor {:?} has {} bytes at {} (source {}), wanted {bytes} at {offset}",
                        t.name, t.length, t.offset, t.source.length
                    ));
                }
                offset = offset.checked_add(bytes).ok_or_else(|| {
                    ManifestError(format!("tensor {:?} overflows 64 bits", t.name))
                })?;
            }
            if offset != segment.raw_length {
                return wrong(format!(
                    "segment {:?}: tensors end at byte {offset}, raw_length is {}",
                    segment.id, segment.raw_length
                ));
            }
            at += tensors.len();
        }
        if let Some(segment) = self.segments.iter().find(|s| names.contains(s.id.as_str())) {
            return wrong(format!("segment {:?} has the name of a tensor", segment.id));
        }
        if let Some(t) = self.tensors.get(at) {
            return wrong(format!(
                "tensor {:?} is in segment {:?}, which is not listed there",
                t.name, t.segment
            ));
        }
        self.check_sources()
    }

    /// The ranges of each shard, after its header, neither overlap nor leave it, and with what was
    /// excluded fill it.
    fn check_sources(&self) -> Result<(), ManifestError> {
        let shards = self
            .source_files
            .iter()
            .filter(|f| f.kind == SourceFileKind::Shard);
        let mut ranges: HashMap<&str, (&SourceFile, Vec<&TensorEntry>)> =
            shards.map(|f| (f.path.as_str(), (f, Vec::new()))).collect();
        for t in &self.tensors {
            match ranges.get_mut(t.source.file.as_str()) {
                Some((_, tensors)) => tensors.push(t),
                None => {
                    return wrong(format!(
                        "tensor {:?} comes from {:?}, which is not listed",
                        t.name, t.source.file
                    ));
                }
            }
        }
        ranges
            .into_values()
            .try_for_each(|(shard, tensors)| check_shard(shard, tensors))
    }

    fn check_counts(&self) -> Result<(), ManifestError> {
        let seen = self.count();
        if seen == self.counts {
            return Ok(());
        }
        wrong(format!("counts are {:?}, wanted {seen:?}", self.counts))
    }

    /// Sums over the lists.
    pub fn count(&self) -> Counts {
        let values = |t: &TensorEntry| {
            t.shape
                .iter()
                .fold(1_u64, |n, &side| n.saturating_mul(side))
        };
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
            parameters: self.tensors.iter().map(values).fold(0, u64::saturating_add),
            tensor_bytes: self
                .tensors
                .iter()
                .map(|t| t.length)
                .fold(0, u64::saturating_add),
            experts: experts.len() as u64,
        }
    }
}

/// A file that is no shard is stored as it was.
fn check_verbatim(file: &SourceFile) -> Result<(), ManifestError> {
    let same = file.length == file.stored_length && file.sha256 == Some(file.stored_sha256);
    if file.kind == SourceFileKind::File && !(same && file.excluded_bytes == 0) {
        return wrong(format!(
            "source file {:?} is kept verbatim, but not stored as it was",
            file.path
        ));
    }
    Ok(())
}

fn check_no_file_is_a_folder(paths: &HashSet<&str>) -> Result<(), ManifestError> {
    let folders = paths
        .iter()
        .flat_map(|path| path.match_indices('/').map(|(at, _)| &path[..at]));
    match folders.filter(|folder| paths.contains(folder)).min() {
        Some(path) => wrong(format!("path {path:?} is both a file and a folder")),
        None => Ok(()),
    }
}

fn check_shard(shard: &SourceFile, mut tensors: Vec<&TensorEntry>) -> Result<(), ManifestError> {
    tensors.sort_by_key(|t| (t.source.offset, t.source.length));
    let (mut at, mut packed) = (shard.stored_length, 0_u64);
    for t in tensors {
        if t.source.offset < at {
            return wrong(format!(
                "tensor {:?} overlaps what comes before it in {:?}",
                t.name, shard.path
            ));
        }
        at = t
            .source
            .offset
            .checked_add(t.source.length)
            .filter(|end| *end <= shard.length)
            .ok_or_else(|| {
                ManifestError(format!(
                    "tensor {:?} lies outside its source {:?}",
                    t.name, shard.path
                ))
            })?;
        packed += t.source.length; // no overlap, so at most the shard's length
    }
    let all = packed
        .saturating_add(shard.stored_length)
        .saturating_add(shard.excluded_bytes);
    if all != shard.length {
        return wrong(format!(
            "shard {:?}: {all} bytes are accounted for, of {}",
            shard.path, shard.length
        ));
    }
    Ok(())
}

fn wrong<T>(what: impl Into<String>) -> Result<T, ManifestError> {
    Err(ManifestError(what.into()))
}
