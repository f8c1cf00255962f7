//! The manifest of the whole, put together from those of its parts.

use std::collections::HashMap;

use segpack_formats::digest::Sha256;
use segpack_manifests::PackError;
use segpack_manifests::documents::{
    Finding, FindingKind, Manifest, PackEntry, SegmentEntry, ShardShare, SourceFileKind,
    TensorEntry,
};
use segpack_manifests::folder::{MANIFEST, PART};

use super::Part;
use crate::steps::StepError;
use crate::steps::derivation::refuse_underived_manifest;
use crate::steps::pack::known_of;

/// One pack of a part.
struct Packed<'a> {
    entry: &'a PackEntry,
    segments: Vec<(&'a SegmentEntry, &'a [TensorEntry])>,
}

/// The manifest that packing the whole checkpoint on one machine would have written.
///
/// # Errors
/// `Findings` where two parts read different bytes of one shard, or the whole is not what its
/// configuration and headers describe.
pub(super) fn union(parts: &[Part]) -> Result<Manifest, StepError> {
    let Some(first) = parts.first() else {
        return Err(StepError::malformed("parts".as_ref(), "there are none"));
    };
    let mut manifest = Manifest {
        known: None,
        packs: Vec::new(),
        segments: Vec::new(),
        tensors: Vec::new(),
        ..first.manifest().clone()
    };
    let mut packed: Vec<_> = parts.iter().map(|part| packs_of(part.manifest())).collect();
    for share in &first.share.packs {
        // the parts are sorted, complete, and each has the packs of its share
        let part = usize::try_from(share.part - 1).ok();
        let part = part.and_then(|n| packed.get_mut(n));
        let Some(pack) = part.and_then(|p| p.remove(share.path.as_str())) else {
            let what = format!("{} is in no part", share.path);
            return Err(StepError::malformed(first.folder(), what));
        };
        add(&mut manifest, &pack);
    }
    add_digests(&mut manifest, parts);
    compare_reads(&manifest, parts)?;
    let shards = manifest.source_files.iter();
    let shards = shards.filter(|f| f.kind == SourceFileKind::Shard);
    manifest.known = known_of(shards.map(|f| (f.path.as_str(), f.length, f.sha256)));
    manifest.counts = manifest.count();
    refuse_inconsistent(&manifest, first)?;
    Ok(manifest)
}

/// The packs of a part by path.
fn packs_of(manifest: &Manifest) -> HashMap<&str, Packed<'_>> {
    let mut packs: HashMap<&str, Packed<'_>> = HashMap::new();
    for entry in &manifest.packs {
        let segments = Vec::new();
        packs.insert(&entry.path, Packed { entry, segments });
    }
    let with_tensors = manifest.segments.iter().zip(manifest.tensors_of_segments());
    for (segment, tensors) in with_tensors {
        if let Some(pack) = packs.get_mut(segment.pack.as_str()) {
            pack.segments.push((segment, tensors));
        }
    }
    packs
}

fn add(manifest: &mut Manifest, pack: &Packed<'_>) {
    manifest.packs.push(pack.entry.clone());
    for (segment, tensors) in &pack.segments {
        manifest.segments.push((*segment).clone());
        manifest.tensors.extend_from_slice(tensors);
    }
}

/// Gives every shard the digest that one part found, and counts what of it is in no pack.
fn add_digests(manifest: &mut Manifest, parts: &[Part]) {
    let mut packed: HashMap<&str, u64> = HashMap::new();
    for tensor in &manifest.tensors {
        *packed.entry(&tensor.source.file).or_default() += tensor.source.length;
    }
    for file in &mut manifest.source_files {
        if file.kind != SourceFileKind::Shard {
            continue;
        }
        let mut of_parts = parts.iter().flat_map(|part| &part.manifest().source_files);
        let digested = of_parts.find(|f| f.path == file.path && f.sha256.is_some());
        if let Some(digested) = digested {
            file.sha256 = digested.sha256;
            file.midstates.clone_from(&digested.midstates);
        }
        let packed = packed.get(file.path.as_str()).copied().unwrap_or(0);
        file.excluded_bytes = file.length.saturating_sub(file.stored_length + packed);
    }
}

/// What a part read of a shard as a whole, and what others packed of it, has to be the same bytes.
fn compare_reads(manifest: &Manifest, parts: &[Part]) -> Result<(), StepError> {
    let mut tensors: HashMap<&str, Vec<&TensorEntry>> = HashMap::new();
    for tensor in manifest.tensors.iter().filter(|t| t.source.length > 0) {
        tensors.entry(&tensor.source.file).or_default().push(tensor);
    }
    let mut findings = Vec::new();
    for part in parts {
        for shard in &part.share.shards {
            if shard.part == Some(part.share.part) {
                let mut packed = tensors.remove(shard.path.as_str()).unwrap_or_default();
                packed.sort_by_key(|t| t.source.offset);
                findings.extend(differing(shard, &packed, part.share.part));
            }
        }
    }
    if findings.is_empty() {
        return Ok(());
    }
    Finding::sort(&mut findings);
    Err(StepError::Findings {
        what: "the parts are of checkpoints with different bytes; nothing was joined".to_owned(),
        findings,
    })
}

/// The tensors of a shard that were packed with other bytes than part `part` read.
fn differing(shard: &ShardShare, packed: &[&TensorEntry], part: u64) -> Vec<Finding> {
    if shard.tensors.len() != packed.len() {
        let (seen, wanted) = (shard.tensors.len(), packed.len());
        let finding = Finding::new(FindingKind::ReadsDiffer).file(&shard.path);
        let finding = finding.seen(format!("part {part} has digests of {seen} tensors"));
        return vec![finding.wanted(format!("{wanted}, as many as were packed"))];
    }
    let both = packed.iter().zip(&shard.tensors);
    both.filter(|(tensor, whole)| tensor.sha256 != **whole)
        .map(|(tensor, whole)| differs(tensor, *whole, part))
        .collect()
}

fn differs(tensor: &TensorEntry, whole: Sha256, part: u64) -> Finding {
    let source = &tensor.source;
    Finding::new(FindingKind::ReadsDiffer)
        .file(&source.file)
        .tensor(&tensor.name)
        .bytes(source.offset, source.offset + source.length)
        .seen(format!("SHA-256 {} when it was packed", tensor.sha256))
        .wanted(format!("{whole}, as part {part} read it"))
}

/// The whole has to be a manifest that can be read again, and the one that follows from the kept
/// files, which every part has.
fn refuse_inconsistent(manifest: &Manifest, first: &Part) -> Result<(), StepError> {
    let mut json = Vec::new();
    let written = manifest.write(&mut json);
    written.map_err(StepError::io("write", MANIFEST))?;
    if let Err(source) = Manifest::parse(&json) {
        let path = first.pack.path(PART);
        return Err(PackError::Manifest { path, source }.into());
    }
    refuse_underived_manifest(manifest, &first.pack, "nothing was joined")
}
