//! Packing where there is no space for the checkpoint and its pack: each shard is removed as soon as
//! all its bytes are in finished packs.
//!
//! A shard goes only when
//!
//! * every pack with bytes of it is complete, synced, has its name and its line in the journal; or
//!   where a pack needs many shards, as the dense weights of all layers do, what it takes from this
//!   one is kept, synced, in a file of the pack folder,
//! * the shard was read as a whole, and both reads gave the same bytes,
//! * those packs and that file were read back from the drive, decoded, and are what was written,
//! * its header and all files that are not weights are in the pack folder,
//! * and the journal, which is kept twice then, says durably that it goes.
//!
//! A later run opens what is gone from its header, the file and the journal. The order in which
//! packs are written is one that frees shards early; the bytes of the packs do not depend on it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use segpack_formats::FormatError;
use segpack_formats::digest::Sha256;
use segpack_formats::io::{InputFile, READ_BYTES};
use segpack_formats::safetensors::check_relative_path;
use segpack_manifests::Pack;
use segpack_manifests::documents::{
    ConsumePlan, Finding, FindingKind, Manifest, PlannedPack, PlannedTensor, SourceFileKind,
};
use segpack_manifests::folder::{MANIFEST, PARTIAL};

use super::kept::open_kept;
use super::source::range_of;
use super::write::{Group, Task, digest, stored_header};
use super::{Planned, Work};
use crate::output::{JOURNAL, Journal, Record};
use crate::pack_writer::{Done, PackWriterError, Recorder, read_back};
use crate::source::{CheckpointShard, Removable, RemovedFile, RemovedShard};
use crate::steps::StepError;
use crate::work::{Job, run_tasks};

/// A pack that needs this many shards is written behind them: until then, what it takes of each is
/// kept. Otherwise none of them could go before all of its bytes are written.
const MANY_SHARDS: usize = 3;

/// Which packs need which shards.
struct Needs<'a> {
    planned: &'a Planned,
    /// Bytes by number of the shard, by pack.
    shards: Vec<BTreeMap<usize, u64>>,
}

/// Packs that are written together, then shards that are removed.
struct ConsumeStep {
    packs: Vec<usize>,
    frees: Vec<usize>,
    /// Written packs with bytes of those shards.
    holds: BTreeSet<usize>,
    /// Bytes of those shards that are kept.
    kept: u64,
}

/// How the next shard is chosen.
#[derive(Clone, Copy)]
enum Next {
    /// The one with the fewest bytes that are to be written first.
    Least,
    /// The first one.
    First,
}

impl<'a> Needs<'a> {
    fn of(planned: &'a Planned) -> Self {
        let numbers = super::shard_numbers(&planned.checkpoint);
        let shards = planned.plan.packs.iter().map(|pack| {
            let mut bytes = BTreeMap::new();
            for tensor in pack.segments.iter().flat_map(|s| &s.tensors) {
                if let Some(number) = numbers.get(tensor.source.file.as_str()) {
                    *bytes.entry(*number).or_default() += tensor.source.length;
                }
            }
            bytes
        });
        Self {
            shards: shards.collect(),
            planned,
        }
    }

    /// Whether a pack is written behind its shards.
    fn is_last(&self, pack: usize) -> bool {
        self.shards[pack].len() >= MANY_SHARDS
    }

    /// Packs with bytes of a shard.
    fn packs_of(&self, shard: usize) -> impl Iterator<Item = usize> {
        let packs = self.shards.iter().enumerate();
        packs.filter_map(move |(pack, needed)| needed.contains_key(&shard).then_some(pack))
    }

    /// What goes together, in the order that takes the least space.
    fn order(&self, done: &Done) -> Vec<ConsumeStep> {
        let lengths = |p: &PlannedPack| if done.has_pack(&p.path) { 0 } else { p.length };
        let lengths: Vec<u64> = self.planned.plan.packs.iter().map(lengths).collect();
        let orders = [Next::Least, Next::First].map(|next| self.order_by(next, done));
        let shard_length = |shard: &CheckpointShard| shard.shard.input.length();
        let peak = |order: &Vec<ConsumeStep>| self.peak(order, &lengths, &shard_length);
        orders.into_iter().min_by_key(peak).unwrap_or_default()
    }

    fn order_by(&self, next: Next, done: &Done) -> Vec<ConsumeStep> {
        let packs = &self.planned.plan.packs;
        let is_done = |pack: &PlannedPack| done.has_pack(&pack.path);
        let mut written: Vec<bool> = packs.iter().map(is_done).collect();
        let shards = self.planned.checkpoint.shards.iter().enumerate();
        let there = shards.filter(|(_, s)| s.removed.is_none());
        let mut left: BTreeSet<usize> = there.map(|(n, _)| n).collect();
        let mut order = Vec::new();
        while let Some(shard) = self.next(next, &left, &written) {
            let new: Vec<usize> = self.written_for(shard, &written).collect();
            let kept = self.kept_of(shard, &written);
            new.iter().for_each(|p| written[*p] = true);
            let is_free =
                |other: &usize| *other == shard || self.packs_of(*other).all(|p| written[p]);
            let frees: Vec<usize> = left.iter().copied().filter(is_free).collect();
            left.retain(|shard| !frees.contains(shard));
            let held = frees.iter().flat_map(|s| self.packs_of(*s));
            order.push(ConsumeStep {
                holds: held.filter(|p| written[*p]).collect(),
                packs: new,
                frees,
                kept,
            });
        }
        let rest: Vec<usize> = (0..packs.len()).filter(|p| !written[*p]).collect();
        if !rest.is_empty() {
            order.push(ConsumeStep {
                packs: rest,
                frees: Vec::new(),
                holds: BTreeSet::new(),
                kept: 0,
            });
        }
        order
    }

    /// The shard that goes next; `None` where none is left.
    fn next(&self, next: Next, left: &BTreeSet<usize>, written: &[bool]) -> Option<usize> {
        let packs = &self.planned.plan.packs;
        let missing = |shard: &usize| -> u64 {
            let new = self.written_for(*shard, written);
            new.map(|p| packs[p].raw_length()).sum::<u64>() + self.kept_of(*shard, written)
        };
        match next {
            Next::Least => left.iter().copied().min_by_key(missing),
            Next::First => left.first().copied(),
        }
    }

    /// Packs that are written before a shard goes.
    fn written_for(&self, shard: usize, written: &[bool]) -> impl Iterator<Item = usize> {
        let packs = self.packs_of(shard);
        packs.filter(|p| !written[*p] && !self.is_last(*p))
    }

    /// Bytes of a shard that are kept when it goes.
    fn kept_of(&self, shard: usize, written: &[bool]) -> u64 {
        let packs = self.packs_of(shard);
        packs
            .filter(|p| !written[*p] && self.is_last(*p))
            .map(|p| self.shards[p][&shard])
            .sum()
    }

    /// The most bytes beyond those of the checkpoint that packs of these lengths take at any moment.
    fn peak(
        &self,
        order: &[ConsumeStep],
        lengths: &[u64],
        frees: &dyn Fn(&CheckpointShard) -> u64,
    ) -> u64 {
        let (mut written, mut freed, mut peak) = (0_u64, 0_u64, 0_u64);
        for step in order {
            written += step.packs.iter().map(|p| lengths[*p]).sum::<u64>() + step.kept;
            peak = peak.max(written.saturating_sub(freed));
            let shards = step.frees.iter();
            let shards = shards.map(|s| &self.planned.checkpoint.shards[*s]);
            freed += shards.map(frees).sum::<u64>();
        }
        peak
    }
}

/// The most bytes beyond those of the checkpoint that packs of these lengths take at any moment;
/// `frees` says what the disk gets back when a shard goes.
pub(super) fn peak_bytes(
    planned: &Planned,
    done: &Done,
    lengths: &[u64],
    frees: &dyn Fn(&CheckpointShard) -> u64,
) -> u64 {
    let needs = Needs::of(planned);
    needs.peak(&needs.order(done), lengths, frees)
}

/// Which files will be removed, and the space that packing takes meanwhile.
///
/// # Errors
/// `NotAllPacked` where a shard has bytes that do not go into packs; `Kept` where removing one takes
/// something else away, or frees nothing.
pub(crate) fn consume_plan(planned: &Planned) -> Result<ConsumePlan, StepError> {
    let shards = || planned.checkpoint.shards.iter();
    for shard in shards() {
        refuse_not_packed(planned, shard)?;
    }
    let there: Vec<&CheckpointShard> = shards().filter(|s| s.removed.is_none()).collect();
    for shard in &there {
        planned.checkpoint.removable(shard)?;
    }
    let lengths: Vec<u64> = planned
        .plan
        .packs
        .iter()
        .map(|p| p.estimated_length.unwrap_or(p.length))
        .collect();
    let length = |shard: &CheckpointShard| shard.shard.input.length();
    Ok(ConsumePlan {
        removed_files: there.len() as u64,
        removed_bytes: there.iter().map(|s| length(s)).sum(),
        peak_bytes: peak_bytes(planned, &Done::default(), &lengths, &length),
    })
}

/// Refuses to remove bytes that no pack will have.
fn refuse_not_packed(planned: &Planned, shard: &CheckpointShard) -> Result<(), StepError> {
    let packs = planned.plan.packs.iter();
    let tensors = packs.flat_map(|p| &p.segments).flat_map(|s| &s.tensors);
    let mut ranges: Vec<Range<u64>> = tensors
        .filter(|t| t.source.file == shard.path)
        .map(|t| t.source.offset..t.source.offset + t.source.length)
        .collect();
    ranges.sort_unstable_by_key(|r| r.start);
    let (mut end, mut packed) = (shard.shard.header.data_start, shard.shard.header.data_start);
    for range in ranges {
        // a tensor that lies in two packs counts once
        packed += range.end.saturating_sub(range.start.max(end));
        end = end.max(range.end);
    }
    let bytes = shard.shard.input.length().saturating_sub(packed);
    if bytes == 0 {
        return Ok(());
    }
    let file = shard.path.clone();
    Err(PackWriterError::NotAllPacked { file, bytes }.into())
}

/// The shards that an earlier run into `out` removed: as its journal says, or where `finished` and
/// there is none any more, the manifest of the pack.
///
/// # Errors
/// `Findings` where the header that was kept of one is damaged; `Io`.
pub(super) fn removed_before(out: &Path, finished: bool) -> Result<Vec<RemovedShard>, StepError> {
    let read = Journal::read(&out.join(PARTIAL).join(JOURNAL))?;
    if read.run.is_none() && finished && out.join(MANIFEST).exists() {
        return removed_of_manifest(&Pack::open(out)?);
    }
    let mut removed = Vec::new();
    for record in read.records {
        if let Record::Removed {
            path,
            length,
            header,
            hub_sha256,
            state,
            kept,
        } = record
        {
            let header = kept_header(out, &path, header)?;
            // a run that was killed before the shard went said it again
            removed.retain(|earlier: &RemovedShard| earlier.path != path);
            removed.push(RemovedShard {
                path,
                header,
                length,
                hub_sha256,
                state,
                kept: kept.and_then(|kept| open_kept(out, kept)),
            });
        }
    }
    Ok(removed)
}

fn removed_of_manifest(pack: &Pack) -> Result<Vec<RemovedShard>, StepError> {
    let files = pack.manifest().source_files.iter();
    let shards = files.filter(|f| f.kind == SourceFileKind::Shard);
    let removed = shards.map(|shard| {
        Ok(RemovedShard {
            path: shard.path.clone(),
            header: kept_header(pack.folder(), &shard.path, shard.stored_sha256)?,
            length: shard.length,
            hub_sha256: None,
            state: String::new(),
            kept: None,
        })
    });
    removed.collect()
}

/// The header of a shard in the pack folder, which has to have this digest.
fn kept_header(out: &Path, shard: &str, wanted: Sha256) -> Result<Vec<u8>, StepError> {
    let path = stored_header(shard);
    if let Err(what) = check_relative_path(shard) {
        return Err(FormatError::malformed(shard.as_ref(), what).into());
    }
    let input = InputFile::open_beneath(out, &path)?;
    let header = input.read_range(0..input.length())?;
    let seen = Sha256::of(&header);
    if seen == wanted {
        return Ok(header);
    }
    let finding = Finding::new(FindingKind::NotRestorable)
        .file(path)
        .seen(format!("SHA-256 {seen}"));
    let what = format!("{}: a header of a removed shard is damaged", out.display());
    let findings = vec![finding.wanted(wanted)];
    Err(StepError::Findings { what, findings })
}

impl Work<'_> {
    /// The tasks, in the order that frees shards early.
    pub(super) fn consuming_groups(&self, done: &Done) -> Vec<Group<'_>> {
        let Planned {
            checkpoint, plan, ..
        } = self.planned;
        let mut groups = vec![Group {
            tasks: checkpoint.files.iter().map(Task::File).collect(),
            ..Group::default()
        }];
        let needs = Needs::of(self.planned);
        for step in needs.order(done) {
            let shards = step.frees.iter().map(|s| &checkpoint.shards[*s]);
            let digests = shards
                .filter(|s| done.shard(&s.path).is_none())
                .map(Task::Digest);
            let packs = step.packs.iter().map(|p| Task::Pack(*p, &plan.packs[*p]));
            groups.push(Group {
                tasks: digests.chain(packs).collect(),
                holds: step.holds,
                frees: step.frees,
            });
        }
        groups
    }

    /// Refuses to go on where a pack has to be written again, and a shard that it needs is gone.
    pub(super) fn refuse_lost(&self, done: &Done) -> Result<(), StepError> {
        let Planned {
            checkpoint, plan, ..
        } = self.planned;
        if checkpoint.shards.iter().all(|s| s.removed.is_none()) {
            return Ok(());
        }
        let numbers = super::shard_numbers(checkpoint);
        let is_lost = |tensor: &&PlannedTensor| {
            let number = numbers.get(tensor.source.file.as_str());
            number.is_some_and(|n| !checkpoint.shards[*n].has(&range_of(tensor)))
        };
        let mut findings = Vec::new();
        for pack in plan.packs.iter().filter(|p| !done.has_pack(&p.path)) {
            let mut tensors = pack.segments.iter().flat_map(|s| &s.tensors);
            if let Some(lost) = tensors.find(is_lost) {
                let finding = Finding::new(FindingKind::NotRestorable).file(&pack.path);
                let seen = format!("{} was removed after it was packed", lost.source.file);
                findings.push(finding.seen(seen).wanted("the pack, as the journal says"));
            }
        }
        findings.extend(self.damaged_kept(done)?);
        for shard in checkpoint.shards.iter().filter(|s| s.removed.is_some()) {
            if self.settings.source_digests && done.shard(&shard.path).is_none() {
                let finding = Finding::new(FindingKind::NotRestorable).file(JOURNAL);
                findings.push(finding.seen(format!("no digest of {}", shard.path)));
            }
        }
        if findings.is_empty() {
            return Ok(());
        }
        let out = self.output.path().display();
        let what = format!(
            "{out}: what was packed is damaged, and its source is gone; only packing the checkpoint \
             again, into another folder, replaces it"
        );
        Err(StepError::Findings { what, findings })
    }

    /// Reads back the packs of the shards that a group frees, and removes those shards. `checked`
    /// packs were read back before.
    pub(super) fn remove_shards(
        &self,
        group: &Group<'_>,
        checked: &mut BTreeSet<usize>,
        recorder: &Recorder<'_>,
    ) -> Result<(), StepError> {
        let new: Vec<usize> = group.holds.difference(checked).copied().collect();
        let job = self.job;
        run_tasks(
            job.threads,
            &new,
            || Ok(()),
            |(), number| {
                let pack = &self.planned.plan.packs[*number];
                let written = recorder.written(&pack.path)?;
                Ok::<_, StepError>(read_back(self.output.path(), pack, &written, job)?)
            },
        )?;
        checked.extend(new);
        for shard in &group.frees {
            self.remove_shard(&self.planned.checkpoint.shards[*shard], recorder)?;
        }
        Ok(())
    }

    fn remove_shard(
        &self,
        shard: &CheckpointShard,
        recorder: &Recorder<'_>,
    ) -> Result<(), StepError> {
        self.job.stop.check()?;
        let removable = self.planned.checkpoint.removable(shard)?;
        // it was read as a whole, and both reads gave the same bytes
        let digests = recorder.shard(&shard.path)?;
        let (input, start) = (&*shard.shard.input, shard.shard.header.data_start);
        let header = input.read_range(0..start)?;
        let kept = self.keep(shard, &digests, recorder)?;
        recorder.add(Record::Removed {
            path: shard.path.clone(),
            length: input.length(),
            header: recorder.file(&stored_header(&shard.path))?,
            hub_sha256: shard.hub_sha256,
            state: super::state_of(shard)?,
            kept: kept.as_ref().map(|(ranges, _)| ranges.clone()),
        })?;
        removable.remove(input)?;
        let (path, kept) = (input.name().to_owned(), kept.map(|(_, bytes)| bytes));
        let left = RemovedFile::new(path, header, input.length(), kept);
        shard.gone.get_or_init(|| Arc::new(left));
        Ok(())
    }

    /// What the disk of the output gets back when a shard goes.
    pub(super) fn freed_bytes(&self, shard: &CheckpointShard) -> u64 {
        let file = self.planned.checkpoint.root.join(&shard.path);
        if is_on_disk_of(self.output.path(), &file) {
            shard.shard.input.length()
        } else {
            0
        }
    }
}

#[cfg(unix)]
fn is_on_disk_of(folder: &Path, file: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let device = |path: &Path| path.metadata().ok().map(|m| m.dev());
    device(folder).is_some() && device(folder) == device(file)
}

#[cfg(not(unix))]
fn is_on_disk_of(_: &Path, _: &Path) -> bool {
    false
}

/// Removes the shards that are left of a checkpoint whose pack is complete and verified: each has to
/// have the digest that the manifest lists.
///
/// # Errors
/// `Findings` where it has not; as [`Removable::remove`].
pub(super) fn remove_packed(
    planned: &Planned,
    manifest: &Manifest,
    job: Job<'_>,
) -> Result<u64, StepError> {
    let checkpoint = &planned.checkpoint;
    checkpoint.remove_dangling_links()?;
    let there: Vec<&CheckpointShard> = checkpoint
        .shards
        .iter()
        .filter(|s| s.removed.is_none())
        .collect();
    let bytes = there.iter().map(|s| s.shard.input.length()).sum();
    job.progress.start("checking the source", bytes);
    let checked = run_tasks(
        job.threads,
        &there,
        || Ok(vec![0; READ_BYTES]),
        |buffer, shard| {
            let seen = digest(&*shard.shard.input, buffer, job)?;
            refuse_other(shard, seen, manifest)
        },
    );
    job.progress.finish();
    checked?;
    let removable = there.iter().map(|s| checkpoint.removable(s));
    let removable: Vec<Removable> = removable.collect::<Result<_, _>>()?;
    for (shard, removable) in there.iter().zip(removable) {
        removable.remove(&*shard.shard.input)?;
    }
    Ok(there.len() as u64)
}

fn refuse_other(
    shard: &CheckpointShard,
    seen: Sha256,
    manifest: &Manifest,
) -> Result<(), StepError> {
    let mut listed = manifest.source_files.iter();
    let listed = listed.find(|f| f.path == shard.path).and_then(|f| f.sha256);
    if listed == Some(seen) {
        return Ok(());
    }
    let wanted = listed.map_or("a digest in the manifest".to_owned(), |d| d.to_string());
    let finding = Finding::new(FindingKind::DiffersFromCheckpoint)
        .file(&shard.path)
        .seen(format!("SHA-256 {seen}"));
    Err(StepError::Findings {
        what: "the checkpoint is not what was packed; nothing was removed".to_owned(),
        findings: vec![finding.wanted(wanted)],
    })
}
