//! Whether a manifest is consistent: paths inside the folder, segments and tensors that tile what
//! holds them, sums that add up.

use std::collections::{HashMap, HashSet};

use segpack_formats::codec::Codec;
use segpack_formats::pack::ALIGNMENT;
use segpack_formats::safetensors::{LengthError, byte_length, check_relative_path};

use super::{
    Manifest, ManifestError, PackEntry, SegmentEntry, SourceFile, SourceFileKind, TensorEntry,
};
use crate::folder::paths::{PARTIAL, SHARD_HEADERS};

impl Manifest {
    /// Whether the document contradicts itself or names a path outside the pack folder.
    pub(super) fn check(&self) -> Result<(), ManifestError> {
        self.check_paths()?;
        self.check_segments()?;
        self.check_tensors()?;
        self.check_counts()
    }

    fn check_paths(&self) -> Result<(), ManifestError> {
        let mut seen = HashSet::new();
        let named = self.source_files.iter().map(|f| f.path.as_str());
        for path in self.files().iter().map(|f| f.0).chain(named) {
            check_relative_path(path).map_err(|why| unsafe_path(path, why))?;
        }
        let mut sources = HashSet::new();
        for file in &self.source_files {
            let top = file.path.split('/').next();
            if top == Some(PARTIAL) || top == Some(SHARD_HEADERS) {
                return wrong_source(file, "begins with a reserved name");
            }
            if !sources.insert(file.path.as_str()) {
                return wrong_source(file, "is listed twice");
            }
            check_verbatim(file)?;
            check_midstates(file)?;
        }
        check_no_file_is_a_folder(&sources)?;
        for (path, ..) in self.files() {
            if !path.starts_with("packs/") && !path.starts_with("source/") {
                return wrong_path(path, "is neither in packs/ nor in source/");
            }
            if !seen.insert(path) {
                return wrong_path(path, "is listed twice");
            }
        }
        check_no_file_is_a_folder(&seen)
    }

    /// The segments of each pack tile its data section, in order.
    fn check_segments(&self) -> Result<(), ManifestError> {
        let (mut ids, mut segments) = (HashSet::new(), self.segments.iter().peekable());
        for pack in &self.packs {
            if pack.data_offset == 0 || pack.data_offset % ALIGNMENT != 0 {
                let what = format!("data_offset {} is no multiple of 4096", pack.data_offset);
                return wrong_pack(pack, what);
            }
            let mut at = pack.data_offset;
            while let Some(segment) = segments.next_if(|s| s.pack == pack.path) {
                if !ids.insert(segment.id.as_str()) {
                    return wrong_segment(segment, "is listed twice");
                }
                if segment.offset != at {
                    let what = format!("begins at byte {}, wanted {at}", segment.offset);
                    return wrong_segment(segment, what);
                }
                if segment.codec == Codec::Raw && segment.stored_length != segment.raw_length {
                    let (stored, raw) = (segment.stored_length, segment.raw_length);
                    let what = format!("is raw, but stores {stored} bytes for {raw}");
                    return wrong_segment(segment, what);
                }
                let Some(end) = at.checked_add(segment.stored_length) else {
                    return wrong_segment(segment, "overflows 64 bits");
                };
                at = end;
            }
            if at != pack.length {
                let what = format!("segments end at byte {at}, the file at {}", pack.length);
                return wrong_pack(pack, what);
            }
        }
        match segments.next() {
            None => Ok(()),
            Some(s) => {
                let what = format!("is in pack {:?}, which is not listed there", s.pack);
                wrong_segment(s, what)
            }
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
                    let what = "has a name that is empty or holds control characters";
                    return wrong_tensor(t, what);
                }
                if !names.insert(t.name.as_str()) {
                    return wrong_tensor(t, "is listed twice");
                }
                let bytes = byte_length(t.dtype, &t.shape);
                let bytes = bytes.map_err(|source| no_length(t, source))?;
                if t.offset != offset || t.length != bytes || t.source.length != bytes {
                    let what = format!(
                        "has {} bytes at {} (source {}), wanted {bytes} at {offset}",
                        t.length, t.offset, t.source.length
                    );
                    return wrong_tensor(t, what);
                }
                let Some(end) = offset.checked_add(bytes) else {
                    return wrong_tensor(t, "overflows 64 bits");
                };
                offset = end;
            }
            if offset != segment.raw_length {
                let raw = segment.raw_length;
                let what = format!("is of raw_length {raw}, but its tensors end at byte {offset}");
                return wrong_segment(segment, what);
            }
            at += tensors.len();
        }
        if let Some(segment) = self.segments.iter().find(|s| names.contains(s.id.as_str())) {
            return wrong_segment(segment, "has the name of a tensor");
        }
        if let Some(t) = self.tensors.get(at) {
            let what = format!("is in segment {:?}, which is not listed there", t.segment);
            return wrong_tensor(t, what);
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
                    let what = format!("comes from {:?}, which is not listed", t.source.file);
                    return wrong_tensor(t, what);
                }
            }
        }
        ranges
            .into_values()
            .try_for_each(|(shard, tensors)| check_shard(shard, tensors))
    }

    fn check_counts(&self) -> Result<(), ManifestError> {
        let wanted = self.count();
        if wanted == self.counts {
            return Ok(());
        }
        Err(ManifestError::Counts {
            seen: Box::new(self.counts),
            wanted: Box::new(wanted),
        })
    }
}

/// A file that is not a shard is stored unchanged.
fn check_verbatim(file: &SourceFile) -> Result<(), ManifestError> {
    let same = file.length == file.stored_length && file.sha256 == Some(file.stored_sha256);
    if file.kind == SourceFileKind::File && !(same && file.excluded_bytes == 0) {
        return wrong_source(file, "is kept verbatim, but not stored as it was");
    }
    Ok(())
}

/// Midstates lead to the digest of a shard, in steps of whole blocks.
fn check_midstates(file: &SourceFile) -> Result<(), ManifestError> {
    const BLOCK_BYTES: u64 = 64;
    let has_digest = file.kind == SourceFileKind::Shard && file.sha256.is_some();
    if !has_digest && !file.midstates.is_empty() {
        return wrong_source(file, "has midstates, but no digest that they lead to");
    }
    let mut before = 0;
    for midstate in &file.midstates {
        let at = midstate.offset;
        if at <= before || at >= file.length || !at.is_multiple_of(BLOCK_BYTES) {
            return wrong_source(file, "has midstates that are out of order or out of place");
        }
        before = at;
    }
    Ok(())
}

fn check_no_file_is_a_folder(paths: &HashSet<&str>) -> Result<(), ManifestError> {
    let folders = paths
        .iter()
        .flat_map(|path| path.match_indices('/').map(|(at, _)| &path[..at]));
    match folders.filter(|folder| paths.contains(folder)).min() {
        Some(path) => wrong_path(path, "is both a file and a folder"),
        None => Ok(()),
    }
}

fn check_shard(shard: &SourceFile, mut tensors: Vec<&TensorEntry>) -> Result<(), ManifestError> {
    tensors.sort_by_key(|t| (t.source.offset, t.source.length));
    let (mut at, mut packed) = (shard.stored_length, 0_u64);
    for t in tensors {
        if t.source.offset < at {
            let what = format!("overlaps what comes before it in {:?}", shard.path);
            return wrong_tensor(t, what);
        }
        let end = t.source.offset.checked_add(t.source.length);
        let Some(end) = end.filter(|end| *end <= shard.length) else {
            let what = format!("lies outside its source {:?}", shard.path);
            return wrong_tensor(t, what);
        };
        at = end;
        packed += t.source.length; // no overlap, so at most the shard's length
    }
    let all = packed
        .saturating_add(shard.stored_length)
        .saturating_add(shard.excluded_bytes);
    if all != shard.length {
        return Err(ManifestError::Shard {
            path: shard.path.clone(),
            accounted: all,
            length: shard.length,
        });
    }
    Ok(())
}

fn unsafe_path(path: &str, why: &'static str) -> ManifestError {
    let path = path.to_owned();
    ManifestError::UnsafePath { path, why }
}

fn wrong_path(path: &str, what: &'static str) -> Result<(), ManifestError> {
    let path = path.to_owned();
    Err(ManifestError::Path { path, what })
}

fn wrong_source(file: &SourceFile, what: &'static str) -> Result<(), ManifestError> {
    let path = file.path.clone();
    Err(ManifestError::SourceFile { path, what })
}

fn wrong_pack(pack: &PackEntry, what: String) -> Result<(), ManifestError> {
    let path = pack.path.clone();
    Err(ManifestError::Pack { path, what })
}

fn wrong_segment(segment: &SegmentEntry, what: impl Into<String>) -> Result<(), ManifestError> {
    let (id, what) = (segment.id.clone(), what.into());
    Err(ManifestError::Segment { id, what })
}

fn wrong_tensor(tensor: &TensorEntry, what: impl Into<String>) -> Result<(), ManifestError> {
    let (name, what) = (tensor.name.clone(), what.into());
    Err(ManifestError::Tensor { name, what })
}

fn no_length(tensor: &TensorEntry, source: LengthError) -> ManifestError {
    let name = tensor.name.clone();
    ManifestError::Shape { name, source }
}
