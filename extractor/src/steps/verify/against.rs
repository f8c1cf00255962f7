//! A pack against a checkpoint: tensor by tensor and file by file, whatever the checkpoint's shards.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::Path;

use segpack_formats::FormatError;
use segpack_formats::digest::Sha256Hasher;
use segpack_formats::io::{InputFile, READ_BYTES, Stop};
use segpack_manifests::Pack;
use segpack_manifests::documents::{
    Finding, FindingKind, Inventory, InventoryTensor, SourceFile, SourceFileKind, TensorEntry,
};

use super::{Findings, VerifySettings, describe};
use crate::steps::StepError;
use crate::steps::checkpoint::Checkpoint;
use crate::steps::progress::Progress;
use crate::steps::scan::{ScanOptions, scan};
use crate::steps::workers::run_tasks;

/// A tensor of the pack and where the checkpoint has its bytes.
struct Pair<'a> {
    tensor: &'a TensorEntry,
    shard: usize,
    range: Range<u64>,
}

/// Compares every tensor and side file of the pack with the checkpoint's.
pub fn check(
    pack: &Pack,
    checkpoint: &Path,
    options: ScanOptions,
    settings: &VerifySettings,
    findings: &Findings,
    stop: &Stop,
    progress: &dyn Progress,
) -> Result<(), StepError> {
    let (checkpoint, inventory) = scan(checkpoint, options)?;
    let unreadable = |f: &&Finding| matches!(f.kind, FindingKind::MalformedShard | FindingKind::MissingShard);
    for finding in checkpoint.findings.iter().filter(unreadable) {
        findings.add(finding.clone());
    }
    let pairs = pair(pack, &inventory, settings, findings);
    report_unpacked(pack, &inventory, findings);
    progress.start("comparing with the checkpoint", pairs.iter().map(|p| p.tensor.length).sum());
    let compare = |buffer: &mut Vec<u8>, pair: &Pair<'_>| {
        compare_tensor(pair, &checkpoint, buffer, findings, stop, progress)
    };
    let done = run_tasks(settings.jobs, &pairs, || Ok(vec![0; READ_BYTES]), compare);
    progress.finish();
    done?;
    for file in pack.manifest().source_files.iter().filter(|f| f.kind == SourceFileKind::File) {
        compare_file(file, &checkpoint, findings, stop)?;
    }
    Ok(())
}

/// Finds each packed tensor: under its own name, or as a slice of the stacked tensor that it came from.
fn pair<'a>(
    pack: &'a Pack,
    inventory: &Inventory,
    settings: &VerifySettings,
    findings: &Findings,
) -> Vec<Pair<'a>> {
    let by_name: HashMap<&str, &InventoryTensor> =
        inventory.tensors.iter().map(|t| (t.name.as_str(), t)).collect();
    let mut starts: HashMap<&str, u64> = HashMap::new();
    for t in &pack.manifest().tensors {
        let start = starts.entry(&t.source.tensor).or_insert(u64::MAX);
        *start = t.source.offset.min(*start);
    }
    let mut pairs = Vec::new();
    for (index, tensor) in pack.manifest().tensors.iter().enumerate() {
        if settings.subset.is_some_and(|s| !s.takes(index)) {
            continue;
        }
        let own = by_name.get(tensor.name.as_str());
        let stacked =
            || by_name.get(tensor.source.tensor.as_str()).filter(|_| tensor.source.tensor != tensor.name);
        let (there, offset) = match (own, stacked()) {
            (Some(there), _) => (there, 0),
            (None, Some(there)) => (there, tensor.source.offset - starts[tensor.source.tensor.as_str()]),
            (None, None) => {
                let finding = Finding::new(FindingKind::NotInCheckpoint).tensor(&tensor.name);
                findings.add(finding.seen("the checkpoint has no tensor of this name"));
                continue;
            }
        };
        let same_shape = own.is_none() || there.shape == tensor.shape;
        if there.dtype != tensor.dtype || !same_shape || offset + tensor.length > there.length {
            let finding = Finding::new(FindingKind::DiffersFromCheckpoint).tensor(&tensor.name);
            let finding = finding.file(&inventory.shards[there.shard].path);
            let finding = finding.seen(format!("{} {:?} in the checkpoint", there.dtype, there.shape));
            findings.add(finding.wanted(format!("{} {:?}, as packed", tensor.dtype, tensor.shape)));
            continue;
        }
        let start = there.offset + offset;
        pairs.push(Pair { tensor, shard: there.shard, range: start..start + tensor.length });
    }
    pairs.sort_by_key(|p| (p.shard, p.range.start));
    pairs
}

fn report_unpacked(pack: &Pack, inventory: &Inventory, findings: &Findings) {
    let manifest = pack.manifest();
    let names = manifest.tensors.iter().flat_map(|t| [t.name.as_str(), t.source.tensor.as_str()]);
    let packed: HashSet<&str> = names.collect();
    let excluded: HashSet<_> = manifest.excluded.iter().map(|e| e.component).collect();
    for t in &inventory.tensors {
        // a stacked tensor may be packed from single ones: its slices then have their own names in the pack
        let slices = inventory.family.and_then(|f| f.unstack(&t.name, &t.shape, t.dtype.bitsize() as u64));
        let as_slices =
            slices.and_then(Result::ok).is_some_and(|s| s.iter().all(|s| packed.contains(s.name.as_str())));
        if !packed.contains(t.name.as_str()) && !as_slices && !excluded.contains(&t.component) {
            let finding = Finding::new(FindingKind::NotInPack).tensor(&t.name);
            findings.add(
                finding.file(&inventory.shards[t.shard].path).seen("the pack has no tensor of this name"),
            );
        }
    }
    let files: HashSet<&str> = manifest.source_files.iter().map(|f| f.path.as_str()).collect();
    for file in inventory.files.iter().filter(|f| !files.contains(f.path.as_str())) {
        findings.add(
            Finding::new(FindingKind::NotInPack).file(&file.path).seen("the pack does not have this file"),
        );
    }
}

fn compare_tensor(
    pair: &Pair<'_>,
    checkpoint: &Checkpoint,
    buffer: &mut [u8],
    findings: &Findings,
    stop: &Stop,
    progress: &dyn Progress,
) -> Result<(), StepError> {
    let (shard, mut sha256) = (&checkpoint.shards[pair.shard], Sha256Hasher::default());
    let read = shard.shard.input.for_each_piece(pair.range.clone(), buffer, stop, |piece| {
        sha256.update(piece);
        progress.advance(piece.len() as u64);
        Ok::<_, FormatError>(())
    });
    let read_whole = read.is_ok();
    findings.unless_read(&shard.path, read)?;
    let seen = sha256.finish();
    if read_whole && seen != pair.tensor.sha256 {
        let finding =
            Finding::new(FindingKind::DiffersFromCheckpoint).tensor(&pair.tensor.name).file(&shard.path);
        let finding =
            finding.bytes(pair.range.start, pair.range.end).seen(format!("SHA-256 {seen} in the checkpoint"));
        findings.add(finding.wanted(format!("{}, as packed", pair.tensor.sha256)));
    }
    Ok(())
}

fn compare_file(
    file: &SourceFile,
    checkpoint: &Checkpoint,
    findings: &Findings,
    stop: &Stop,
) -> Result<(), StepError> {
    let finding = |kind| Finding::new(kind).file(&file.path);
    if !checkpoint.files.iter().any(|f| f.path == file.path) {
        findings.add(finding(FindingKind::NotInCheckpoint).seen("the checkpoint does not have this file"));
        return Ok(());
    }
    let mut sha256 = Sha256Hasher::default();
    let read = InputFile::open(&checkpoint.root.join(&file.path)).and_then(|input| {
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
