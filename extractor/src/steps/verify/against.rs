//! A pack against a checkpoint: everything that unpacking or running uses. Tensors, what they are
//! and where they lie; shards with their headers and digests; the model's numbers; the other files;
//! and where both come from.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;

use segpack_formats::FormatError;
use segpack_formats::digest::{Sha256, Sha256Hasher};
use segpack_formats::io::{CancelToken, READ_BYTES};
use segpack_formats::numeric::Dtype;
use segpack_manifests::Pack;
use segpack_manifests::documents::{
    Finding, FindingKind, Inventory, InventoryTensor, ModelFacts, SourceFile, SourceFileKind,
    TensorEntry,
};
use segpack_manifests::families::FamilyName;
use segpack_manifests::folder::MANIFEST;
use segpack_manifests::names::Classification;

use super::{Findings, VerifySettings, describe};
use crate::source::{Checkpoint, is_weight_file};
use crate::steps::StepError;
use crate::steps::scan::is_lost_shard;
use crate::work::{Job, Progress, run_tasks};

/// A tensor of the pack and where the checkpoint has its bytes.
struct Pair<'a> {
    tensor: &'a TensorEntry,
    place: &'a Place,
}

/// One entry of the queue.
enum Task<'a> {
    /// The bytes of a tensor.
    Tensor(Pair<'a>),
    /// The digest of a whole shard of the checkpoint, by number.
    Shard(&'a SourceFile, usize),
}

impl Task<'_> {
    fn bytes(&self, checkpoint: &Checkpoint) -> u64 {
        match self {
            Self::Tensor(pair) => pair.tensor.length,
            Self::Shard(_, shard) => checkpoint.shards[*shard].shard.input.length(),
        }
    }
}

/// Compares the pack with the checkpoint.
pub(super) fn check(
    pack: &Pack,
    compared: &(Checkpoint, Inventory),
    settings: &VerifySettings,
    findings: &Findings,
    Job { stop, progress, .. }: Job<'_>,
) -> Result<(), StepError> {
    let (checkpoint, inventory) = compared;
    // a shard that cannot be read at all is said once, not for each of its tensors
    for finding in &checkpoint.findings {
        if is_lost_shard(finding) {
            findings.add(finding.clone());
        }
    }
    findings.extend(compare_model(pack, checkpoint, inventory));
    findings.extend(compare_provenance(pack, checkpoint));
    let same = compare_headers(pack, checkpoint, findings)?;
    // tensors by name; then those that only one side has
    let places = places(pack, inventory);
    let pairs = pair(pack, compared, &places, settings, findings);
    for pair in &pairs {
        findings.extend(differing_place(pair, pack, checkpoint, inventory, &same));
    }
    report_unpacked(pack, inventory, &places, findings);
    // the bytes of tensors and those of shards, then those of side files
    let tasks: Vec<Task<'_>> = shards_to_digest(pack, checkpoint, &same, settings)
        .chain(pairs.into_iter().map(Task::Tensor))
        .collect();
    progress.start(
        "comparing with the checkpoint",
        tasks.iter().map(|task| task.bytes(checkpoint)).sum(),
    );
    let compare = Compare {
        checkpoint,
        findings,
        stop,
        progress,
    };
    let done = run_tasks(
        settings.jobs,
        &tasks,
        || Ok(vec![0; READ_BYTES]),
        |buffer, task| match task {
            Task::Tensor(pair) => compare.tensor(pair, buffer),
            Task::Shard(file, shard) => compare.shard(file, *shard, buffer),
        },
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
    classification: Classification,
    /// The tensor of the shard that holds it.
    stored: String,
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
        let mut add = |name, shape, classification, start, length| {
            let place = Place {
                dtype: t.dtype,
                shape,
                classification,
                stored: t.name.clone(),
                shard: t.shard,
                range: start..start + length,
            };
            places.insert(name, place);
        };
        let whole = t.classification();
        let slices = inventory.family.and_then(FamilyName::family).and_then(|f| {
            let bits = t.dtype.bitsize() as u64;
            f.unstack(&t.name, &t.shape, bits, &|| inventory.routed_experts(t))
        });
        match slices.and_then(Result::ok) {
            Some(slices) => {
                for s in slices {
                    let start = t.offset + s.offset;
                    add(s.name, s.shape, s.classification, start, s.length);
                }
            }
            None => match cut
                .get(t.name.as_str())
                .and_then(|slices| as_packed(slices, t))
            {
                // of a family that this build does not know: cut as the pack has it
                Some(starts) => {
                    for (s, start) in starts {
                        let (name, shape) = (s.name.clone(), s.shape.clone());
                        add(name, shape, whole, t.offset + start, s.length);
                    }
                }
                None => add(t.name.clone(), t.shape.clone(), whole, t.offset, t.length),
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
    (checkpoint, inventory): &(Checkpoint, Inventory),
    places: &'a BTreeMap<String, Place>,
    settings: &VerifySettings,
    findings: &Findings,
) -> Vec<Pair<'a>> {
    let mut pairs = Vec::new();
    for (index, tensor) in pack.manifest().tensors.iter().enumerate() {
        if settings.subset.is_some_and(|s| !s.takes(index)) {
            continue;
        }
        let Some(place) = places.get(&tensor.name) else {
            if is_lost(checkpoint, &tensor.source.file) {
                continue; // nobody knows what it holds
            }
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
        pairs.push(Pair { tensor, place });
    }
    pairs.sort_by_key(|p| (p.place.shard, p.place.range.start));
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
        if !packed.contains(name.as_str()) && !excluded.contains(&place.classification.component) {
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
    // weights that the index does not name may have been left out, never another file
    let left = manifest.left_out.iter().map(|l| l.path.as_str());
    let left: HashSet<&str> = left.filter(|path| is_weight_file(path)).collect();
    let is_known = |path: &str| files.contains(path) || left.contains(path);
    for file in inventory.files.iter().filter(|f| !is_known(&f.path)) {
        findings.add(
            Finding::new(FindingKind::NotInPack)
                .file(&file.path)
                .seen("the pack does not have this file"),
        );
    }
}

/// What every comparison of bytes needs.
struct Compare<'a> {
    checkpoint: &'a Checkpoint,
    findings: &'a Findings,
    stop: &'a CancelToken,
    progress: &'a dyn Progress,
}

impl Compare<'_> {
    /// The digest of some bytes of a shard; none where they cannot be read, which is a finding.
    fn digest(
        &self,
        shard: usize,
        range: Range<u64>,
        buffer: &mut [u8],
    ) -> Result<Option<Sha256>, StepError> {
        let (shard, mut sha256) = (&self.checkpoint.shards[shard], Sha256Hasher::default());
        let input = &shard.shard.input;
        let read = input.for_each_piece(range, buffer, self.stop, |piece| {
            sha256.update(piece);
            self.progress.advance(piece.len() as u64);
            Ok::<_, FormatError>(())
        });
        let digest = read.is_ok().then(|| sha256.finish());
        self.findings.unless_read(&shard.path, read)?;
        Ok(digest)
    }

    fn tensor(&self, pair: &Pair<'_>, buffer: &mut [u8]) -> Result<(), StepError> {
        let (place, wanted) = (pair.place, pair.tensor.sha256);
        let seen = self.digest(place.shard, place.range.clone(), buffer)?;
        if let Some(seen) = seen.filter(|seen| *seen != wanted) {
            let finding = Finding::new(FindingKind::DiffersFromCheckpoint)
                .tensor(&pair.tensor.name)
                .file(&self.checkpoint.shards[place.shard].path);
            let finding = finding
                .bytes(place.range.start, place.range.end)
                .seen(format!("SHA-256 {seen} in the checkpoint"));
            self.findings
                .add(finding.wanted(format!("{wanted}, as packed")));
        }
        Ok(())
    }

    fn shard(&self, file: &SourceFile, shard: usize, buffer: &mut [u8]) -> Result<(), StepError> {
        let seen = self.digest(shard, 0..file.length, buffer)?;
        if let Some(seen) = seen.filter(|seen| Some(*seen) != file.sha256) {
            let finding = Finding::new(FindingKind::DiffersFromCheckpoint).file(&file.path);
            let finding = finding.seen(format!("SHA-256 {seen} in the checkpoint"));
            let wanted = file.sha256.map_or("none".to_owned(), |sha| sha.to_string());
            self.findings
                .add(finding.wanted(format!("{wanted}, as the manifest has it")));
        }
        Ok(())
    }
}

/// Family and numbers of the model, where this build knows the family.
fn compare_model(pack: &Pack, checkpoint: &Checkpoint, inventory: &Inventory) -> Option<Finding> {
    let seen = &pack.manifest().model;
    let known = seen.family.is_none_or(|name| name.family().is_some());
    let family = inventory.family.and_then(FamilyName::family);
    let wanted = ModelFacts::of_config(family, checkpoint.config.as_ref());
    if !known || *seen == wanted {
        return None;
    }
    let printed = |model: &ModelFacts| serde_json::to_string(model).unwrap_or_default();
    let finding = Finding::new(FindingKind::DiffersFromCheckpoint).file(MANIFEST);
    let finding = finding.seen(format!("model {} in the checkpoint", printed(&wanted)));
    Some(finding.wanted(format!("{}, as packed", printed(seen))))
}

/// Repository and revision, where both sides know theirs: a copy knows neither.
fn compare_provenance(pack: &Pack, checkpoint: &Checkpoint) -> Vec<Finding> {
    let Some(packed) = &pack.manifest().provenance else {
        return Vec::new();
    };
    let there = &checkpoint.provenance;
    let pairs = [
        ("repository", &there.repo, &packed.repo),
        ("revision", &there.revision, &packed.revision),
    ];
    let differing = pairs.into_iter().filter_map(|(what, seen, wanted)| {
        let (seen, wanted) = (seen.as_ref()?, wanted.as_ref()?);
        let finding = Finding::new(FindingKind::DiffersFromCheckpoint).file(MANIFEST);
        let finding = finding.seen(format!("{what} {seen} of the checkpoint"));
        (seen != wanted).then(|| finding.wanted(format!("{wanted}, as the manifest has it")))
    });
    differing.collect()
}

/// Whether a finding says that a shard of this path is not there, or cannot be read at all.
fn is_lost(checkpoint: &Checkpoint, path: &str) -> bool {
    let mut all = checkpoint.findings.iter();
    all.any(|f| is_lost_shard(f) && f.file.as_deref() == Some(path))
}

/// The shards whose bytes before the data are those that the pack keeps, by path. What differs,
/// and what only one side has, is a finding for each shard, not for each of its tensors.
fn compare_headers<'a>(
    pack: &'a Pack,
    checkpoint: &Checkpoint,
    findings: &Findings,
) -> Result<HashMap<&'a str, usize>, StepError> {
    let shards = || pack.manifest().source_files.iter();
    let shards = || shards().filter(|f| f.kind == SourceFileKind::Shard);
    let mut same = HashMap::new();
    for file in shards() {
        let number = checkpoint.shards.iter().position(|s| s.path == file.path);
        let Some(number) = number else {
            let finding = Finding::new(FindingKind::NotInCheckpoint).file(&file.path);
            if !is_lost(checkpoint, &file.path) {
                findings.add(finding.seen("the checkpoint does not have this shard"));
            }
            continue;
        };
        let shard = &checkpoint.shards[number].shard;
        let header = shard.input.read_range(0..shard.header.data_start);
        let seen = header.as_deref().map(Sha256::of).ok();
        findings.unless_read(&file.path, header.map(drop))?;
        let Some(seen) = seen else { continue };
        if seen == file.stored_sha256 && shard.input.length() == file.length {
            same.insert(file.path.as_str(), number);
            continue;
        }
        let printed = |digest, length: u64| format!("a header of SHA-256 {digest}, {length} bytes");
        let finding = Finding::new(FindingKind::DiffersFromCheckpoint).file(&file.path);
        let seen = printed(seen, shard.input.length());
        let finding = finding.seen(format!("{seen} in the checkpoint"));
        findings.add(finding.wanted(format!(
            "{}, as kept",
            printed(file.stored_sha256, file.length)
        )));
    }
    for shard in &checkpoint.shards {
        if !shards().any(|file| file.path == shard.path) {
            let finding = Finding::new(FindingKind::NotInPack).file(&shard.path);
            findings.add(finding.seen("the pack does not have this shard"));
        }
    }
    Ok(same)
}

/// Shards of which the manifest has a digest; those of another header are known to differ.
fn shards_to_digest<'a>(
    pack: &'a Pack,
    checkpoint: &Checkpoint,
    same: &HashMap<&str, usize>,
    settings: &VerifySettings,
) -> impl Iterator<Item = Task<'a>> {
    let mut files: Vec<_> = pack
        .manifest()
        .source_files
        .iter()
        .filter(|file| file.sha256.is_some())
        .filter_map(|file| Some(Task::Shard(file, *same.get(file.path.as_str())?)))
        .collect();
    if let Some(subset) = settings.subset {
        let mut counted = 0..;
        files.retain(|_| counted.next().is_some_and(|n| subset.takes(n)));
    }
    // one long stream each: first
    files.sort_by_key(|task| std::cmp::Reverse(task.bytes(checkpoint)));
    files.into_iter()
}

/// What a tensor is, and where in its shard it lies, in a shard that is otherwise the same.
fn differing_place(
    pair: &Pair<'_>,
    pack: &Pack,
    checkpoint: &Checkpoint,
    inventory: &Inventory,
    same: &HashMap<&str, usize>,
) -> Vec<Finding> {
    let (tensor, place) = (pair.tensor, pair.place);
    let shard = &checkpoint.shards[place.shard].path;
    let about = || {
        let finding = Finding::new(FindingKind::DiffersFromCheckpoint);
        finding.tensor(&tensor.name).file(shard)
    };
    let mut findings = Vec::new();
    let is_known = |family: Option<FamilyName>| family.is_some_and(|f| f.family().is_some());
    let classified = is_known(pack.manifest().model.family) && is_known(inventory.family);
    let (seen, wanted) = (place.classification, tensor.classification());
    if classified && seen != wanted {
        let finding = about().seen(format!("is {} {}", seen.component, seen.role));
        let what = format!("{} {}", wanted.component, wanted.role);
        let (layer, expert) = (wanted.layer, wanted.expert);
        findings.push(finding.wanted(format!(
            "{what}, layer {layer:?}, expert {expert:?}, as packed"
        )));
    }
    let source = &tensor.source;
    let there = (shard.as_str(), place.stored.as_str(), place.range.start);
    let packed = (source.file.as_str(), source.tensor.as_str(), source.offset);
    if same.contains_key(source.file.as_str()) && there != packed {
        let printed =
            |(file, tensor, at): (&str, &str, u64)| format!("{tensor} of {file}, byte {at}");
        let finding = about().seen(format!("is {}", printed(there)));
        findings.push(finding.wanted(format!("{}, as the manifest has it", printed(packed))));
    }
    findings
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
        Err(e) => {
            let unread = finding(FindingKind::Unreadable).seen(describe(&e));
            findings.add_unread(e, unread);
        }
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
