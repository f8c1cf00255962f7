//! A pack against a checkpoint: tensor by tensor and file by file, whatever the checkpoint's
//! shards.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;

use segpack_formats::FormatError;
use segpack_formats::digest::Sha256Hasher;
use segpack_formats::io::{CancelToken, READ_BYTES};
use segpack_formats::numeric::Dtype;
use segpack_manifests::Pack;
use segpack_manifests::documents::{
    Finding, FindingKind, Inventory, InventoryTensor, SourceFile, SourceFileKind, TensorEntry,
};
use segpack_manifests::families::FamilyName;
use segpack_manifests::names::Component;

use super::{Findings, VerifySettings, describe};
use crate::source::Checkpoint;
use crate::steps::StepError;
use crate::steps::scan::is_lost_shard;
use crate::work::Progress;
use crate::work::run_tasks;

/// A tensor of the pack and where the checkpoint has its bytes.
struct Pair<'a> {
    tensor: &'a TensorEntry,
    shard: usize,
    range: Range<u64>,
}

/// Compares every tensor and side file of the pack with the checkpoint's.
pub(super) fn check(
    pack: &Pack,
    (checkpoint, inventory): &(Checkpoint, Inventory),
    settings: &VerifySettings,
    findings: &Findings,
    stop: &CancelToken,
    progress: &dyn Progress,
) -> Result<(), StepError> {
    // a shard that cannot be read at all is said once, not for each of its tensors
    for finding in &checkpoint.findings {
        if is_lost_shard(finding) {
            findings.add(finding.clone());
        }
    }
    // tensors by name, whatever the shards; then those that only one side has
    let places = places(pack, inventory);
    let pairs = pair(pack, inventory, &places, settings, findings);
    report_unpacked(pack, inventory, &places, findings);
    // the bytes of tensors, then those of side files
    progress.start(
        "comparing with the checkpoint",
        pairs.iter().map(|p| p.tensor.length).sum(),
    );
    let done = run_tasks(
        settings.jobs,
        &pairs,
        || Ok(vec![0; READ_BYTES]),
        |buffer, pair| compare_tensor(pair, checkpoint, buffer, findings, stop, progress),
    );
    progress.finish();
    done?;
    for file in pack
        .manifest()
        .source_files
        .iter()
        .filter(|f| f.kind == SourceFileKind::File)
    {
        compare_file(file, checkpoint, findings, stop)?;
    }
    Ok(())
}

/// A tensor of the checkpoint: stored on its own, or one expert's part of a stacked one.
struct Place {
    dtype: Dtype,
    shape: Vec<u64>,
    component: Component,
    shard: usize,
    range: Range<u64>,
}

/// The checkpoint's tensors under the names that they have where experts are stored one by one.
fn places(pack: &Pack, inventory: &Inventory) -> BTreeMap<String, Place> {
    let mut places = BTreeMap::new();
    let mut cut: HashMap<&str, Vec<&TensorEntry>> = HashMap::new();
    for t in pack
        .manifest()
        .tensors
        .iter()
        .filter(|t| t.name != t.source.tensor)
    {
        cut.entry(&t.source.tensor).or_default().push(t);
    }
    for t in &inventory.tensors {
        let mut add = |name, shape, start, length| {
            let (dtype, component, range) = (t.dtype, t.component, start..start + length);
            places.insert(
                name,
                Place {
                    dtype,
                    shape,
                    component,
                    shard: t.shard,
                    range,
                },
            );
        };
        let slices = inventory
            .family
            .and_then(FamilyName::family)
            .and_then(|f| f.unstack(&t.name, &t.shape, t.dtype.bitsize() as u64));
        match slices.and_then(Result::ok) {
            Some(slices) => {
                for s in slices {
                    add(s.name, s.shape, t.offset + s.offset, s.length);
                }
            }
            None => match cut
                .get(t.name.as_str())
                .and_then(|slices| as_packed(slices, t))
            {
                // of a family that this build does not know: cut as the pack has it
                Some(starts) => {
                    for (s, start) in starts {
                        add(s.name.clone(), s.shape.clone(), t.offset + start, s.length);
                    }
                }
                None => add(t.name.clone(), t.shape.clone(), t.offset, t.length),
            },
        }
    }
    places
}

/// Where in a stored tensor those are that a pack has cut from it; `None` where they are not the
/// whole of it.
fn as_packed<'a>(
    slices: &[&'a TensorEntry],
    stored: &InventoryTensor,
) -> Option<Vec<(&'a TensorEntry, u64)>> {
    let length: u64 = slices.iter().map(|s| s.length).sum();
    let begin = slices.iter().map(|s| s.source.offset).min()?;
    let from_begin = |s: &&'a TensorEntry| (*s, s.source.offset - begin);
    (length == stored.length).then(|| slices.iter().map(from_begin).collect())
}

/// Finds each packed tensor in the checkpoint.
fn pair<'a>(
    pack: &'a Pack,
    inventory: &Inventory,
    places: &BTreeMap<String, Place>,
    settings: &VerifySettings,
    findings: &Findings,
) -> Vec<Pair<'a>> {
    let mut pairs = Vec::new();
    for (index, tensor) in pack.manifest().tensors.iter().enumerate() {
        if settings.subset.is_some_and(|s| !s.takes(index)) {
            continue;
        }
        let Some(place) = places.get(&tensor.name) else {
            let finding = Finding::new(FindingKind::NotInCheckpoint).tensor(&tensor.name);
            findings.add(finding.seen("the checkpoint has no tensor of this name"));
            continue;
        };
        if place.dtype != tensor.dtype || place.shape != tensor.shape {
            let finding = Finding::new(FindingKind::DiffersFromCheckpoint).tensor(&tensor.name);
            let finding = finding.file(&inventory.shards[place.shard].path);
            let finding = finding.seen(format!(
                "{} {:?} in the checkpoint",
                place.dtype, place.shape
            ));
            findings.add(finding.wanted(format!("{} {:?}, as packed", tensor.dtype, tensor.shape)));
            continue;
        }
        pairs.push(Pair {
            tensor,
            shard: place.shard,
            range: place.range.clone(),
        });
    }
    pairs.sort_by_key(|p| (p.shard, p.range.start));
    pairs
}

fn report_unpacked(
    pack: &Pack,
    inventory: &Inventory,
    places: &BTreeMap<String, Place>,
    findings: &Findings,
) {
    let manifest = pack.manifest();
    let packed: HashSet<&str> = manifest.tensors.iter().map(|t| t.name.as_str()).collect();
    let excluded: HashSet<_> = manifest.excluded.iter().map(|e| e.component).collect();
    // of a family that this build does not know, what was excluded cannot be told apart
    let unknown = manifest
        .model
        .family
        .is_some_and(|name| name.family().is_none());
    let all = places.iter().filter(|_| !unknown || excluded.is_empty());
    for (name, place) in all {
        if !packed.contains(name.as_str()) && !excluded.contains(&place.component) {
            let finding = Finding::new(FindingKind::NotInPack).tensor(name);
            findings.add(
                finding
                    .file(&inventory.shards[place.shard].path)
                    .seen("the pack has no tensor of this name"),
            );
        }
    }
    let files: HashSet<&str> = manifest
        .source_files
        .iter()
        .map(|f| f.path.as_str())
        .collect();
    for file in inventory
        .files
        .iter()
        .filter(|f| !files.contains(f.path.as_str()))
    {
        findings.add(
            Finding::new(FindingKind::NotInPack)
                .file(&file.path)
                .seen("the pack does not have this file"),
        );
    }
}

fn compare_tensor(
    pair: &Pair<'_>,
    checkpoint: &Checkpoint,
    buffer: &mut [u8],
    findings: &Findings,
    stop: &CancelToken,
    progress: &dyn Progress,
) -> Result<(), StepError> {
    let (shard, mut sha256) = (&checkpoint.shards[pair.shard], Sha256Hasher::default());
    let read = shard
        .shard
        .input
        .for_each_piece(pair.range.clone(), buffer, stop, |piece| {
            sha256.update(piece);
            progress.advance(piece.len() as u64);
            Ok::<_, FormatError>(())
        });
    let read_whole = read.is_ok();
    findings.unless_read(&shard.path, read)?;
    let seen = sha256.finish();
    if read_whole && seen != pair.tensor.sha256 {
        let finding = Finding::new(FindingKind::DiffersFromCheckpoint)
            .tensor(&pair.tensor.name)
            .file(&shard.path);
        let finding = finding
            .bytes(pair.range.start, pair.range.end)
            .seen(format!("SHA-256 {seen} in the checkpoint"));
        findings.add(finding.wanted(format!("{}, as packed", pair.tensor.sha256)));
    }
    Ok(())
}

fn compare_file(
    file: &SourceFile,
    checkpoint: &Checkpoint,
    findings: &Findings,
    stop: &CancelToken,
) -> Result<(), StepError> {
    let finding = |kind| Finding::new(kind).file(&file.path);
    if !checkpoint.files.iter().any(|f| f.path == file.path) {
        findings.add(
            finding(FindingKind::NotInCheckpoint).seen("the checkpoint does not have this file"),
        );
        return Ok(());
    }
    let mut sha256 = Sha256Hasher::default();
    let read = checkpoint.open_file_at(&file.path).and_then(|input| {
        input.for_each_piece(0..input.length(), &mut vec![0; READ_BYTES], stop, |piece| {
            sha256.update(piece);
            Ok::<_, FormatError>(())
        })
    });
    match read {
        Err(FormatError::Interrupted) => return Err(FormatError::Interrupted.into()),
        Err(e) => findings.add(finding(FindingKind::Unreadable).seen(describe(&e))),
        Ok(()) => {
            let seen = sha256.finish();
            if Some(seen) != file.sha256 {
                let finding = finding(FindingKind::DiffersFromCheckpoint);
                let finding = finding.seen(format!("SHA-256 {seen} in the checkpoint"));
                findings.add(finding.wanted(format!("{}, as packed", file.stored_sha256)));
            }
        }
    }
    Ok(())
}
