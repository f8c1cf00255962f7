//! Whether a manifest is consistent: paths inside the folder, segments and tensors that tile what
//! holds them, sums that add up.

use std::collections::{HashMap, HashSet};

use segpack_formats::codec::Codec;
use segpack_formats::pack::ALIGNMENT;
use segpack_formats::safetensors::{byte_length, check_relative_path};

use super::{Manifest, ManifestError, SourceFile, SourceFileKind, TensorEntry};
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
}

/// A file that is not a shard is stored unchanged.
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
