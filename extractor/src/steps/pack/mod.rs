//! `pack`: from a checkpoint to a pack folder, whole or resumable, the same bytes every time.

#[cfg(feature = "remote")]
mod arriving;
mod consume;
mod graft;
mod kept;
mod proof;
mod share;
mod source;
mod update;
#[cfg(feature = "remote")]
mod upload;
mod write;

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use segpack_formats::FormatError;
use segpack_formats::codec::{Codec, Coding};
use segpack_formats::digest::Sha256;
use segpack_formats::io::{CancelToken, READ_BYTES};
use segpack_manifests::documents::{
    Finding, GENERATOR, Graft, Inventory, KnownSource, PackOptions, PackSummary, Plan, PlannedPack,
    PlannedTensor, VerifyMode,
};
use segpack_manifests::families::Family;
use segpack_manifests::folder::MANIFEST;
use segpack_manifests::layout::{self, Selection};
use segpack_manifests::registry::{FoundShard, known_source};

pub(crate) use consume::consume_plan;
use consume::{peak_bytes, remove_packed, removed_before};
use proof::Proof;
use share::Share;

pub(crate) use graft::graft;
pub(crate) use update::update;
#[cfg(feature = "remote")]
pub(crate) use upload::{pack_to_store, spool_of};

use super::StepError;
use super::scan::{ScanOptions, scan_with};
use super::verify::{Subset, VerifySettings};
use crate::output::{
    Before, Elsewhere, Journal, Leave, OutputFolder, discard, inspect, is_being_replaced, recover,
    refuse_holding, refuse_inside,
};
use crate::pack_writer::{self, Done, PackWriterError, Space, Target, add_estimate, summarise};
use crate::source::{Checkpoint, CheckpointShard, RemovedShard, SourceError};
use crate::work::{Job, Progress, run_tasks};

/// How to pack.
#[derive(Debug, Clone)]
pub struct PackSettings {
    /// Which components.
    pub selection: Selection,
    /// How segments are coded.
    pub coding: Coding,
    /// Only the share of one of several machines: part K of N.
    pub part: Option<Subset>,
    /// Threads.
    pub jobs: usize,
    /// Go on where an interrupted run stopped.
    pub resume: bool,
    /// Replace an existing pack.
    pub force: bool,
    /// Remove the pack that is replaced before the new one is written: for a disk that has no space
    /// for both. The source is read and its digests are compared before.
    pub in_place: bool,
    /// Remove each shard as soon as all its bytes are in finished packs.
    pub consume: bool,
    /// Digest source shards, and compare with the hub's own digests.
    pub source_digests: bool,
    /// Write SHA256SUMS.
    pub sums: bool,
    /// Record where the checkpoint came from.
    pub provenance: bool,
    /// Refuse what the disk cannot hold.
    pub space_check: bool,
    /// How a checkpoint of a server is fetched.
    pub fetch: FetchSettings,
    /// What to tolerate.
    pub scan: ScanOptions,
}

/// How a checkpoint of a server is fetched; without meaning for one on the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct FetchSettings {
    /// Connections at the same time, at least one.
    pub connections: usize,
    /// Bytes a second at most.
    pub rate: Option<u64>,
    /// A folder for shards whose digest matched; without one they are removed.
    pub keep: Option<PathBuf>,
}

impl Default for FetchSettings {
    fn default() -> Self {
        Self {
            connections: 4,
            rate: None,
            keep: None,
        }
    }
}

impl PackSettings {
    fn recorded(&self) -> PackOptions {
        PackOptions {
            codec: self.coding.codec(),
            level: self.coding.level(),
            include: self.selection.include.clone(),
            exclude: self.selection.exclude.clone(),
            source_digests: self.source_digests,
            sums: self.sums,
            config: self.scan.config.clone(),
            family: self.scan.family.map(Family::name),
        }
    }
}

/// A checkpoint that may be packed, and the plan for it.
#[derive(Debug)]
pub struct Planned {
    checkpoint: Checkpoint,
    /// What the checkpoint holds.
    pub inventory: Inventory,
    /// What goes where.
    pub plan: Plan,
    /// Which two models it was put together from.
    graft: Option<Graft>,
}

/// Scans a checkpoint and plans its packs. Writes nothing.
///
/// # Errors
/// `Findings` with everything that is wrong with the checkpoint; `Plan` where the selection is.
pub fn plan(argument: &Path, settings: &PackSettings, job: Job<'_>) -> Result<Planned, StepError> {
    plan_without(argument, settings, &[], job)
}

/// [`plan`] for packing into `out`, where an earlier run may have removed shards that it packed.
///
/// # Errors
/// As [`plan`].
pub(crate) fn plan_into(
    argument: &Path,
    out: &Path,
    settings: &PackSettings,
    job: Job<'_>,
) -> Result<Planned, StepError> {
    let removed = if settings.resume {
        removed_before(out, settings.consume)?
    } else {
        Vec::new()
    };
    plan_without(argument, settings, &removed, job)
}

fn plan_without(
    argument: &Path,
    settings: &PackSettings,
    removed: &[RemovedShard],
    job: Job<'_>,
) -> Result<Planned, StepError> {
    let tolerated = ScanOptions {
        // whoever takes tensors that nobody knows does not ask whether all are there
        allow_unaudited: settings.scan.allow_unaudited || settings.scan.allow_unclassified,
        ..settings.scan.clone()
    };
    let (checkpoint, inventory) = scan_with(argument, tolerated, removed, job)?;
    if Finding::any_error(&inventory.findings) {
        let findings = inventory.findings;
        return Err(StepError::Findings {
            what: format!("{}: nothing was packed", checkpoint.root.display()),
            findings,
        });
    }
    let plan = layout::plan(&inventory, &settings.selection, settings.coding.codec())?;
    Ok(Planned {
        checkpoint,
        inventory,
        plan,
        graft: None,
    })
}

/// [`plan`], and what coding will make of it, from a sample of the bytes.
///
/// # Errors
/// As [`plan`]; where the sample cannot be read.
pub(crate) fn plan_with_estimate(
    argument: &Path,
    settings: &PackSettings,
    stop: &CancelToken,
    progress: &dyn Progress,
) -> Result<Plan, StepError> {
    let job = Job {
        threads: settings.jobs,
        stop,
        progress,
    };
    let mut planned = plan(argument, settings, job)?;
    let share = Share::of(&planned, settings);
    planned.plan.packs.retain(|pack| share.takes(&pack.path));
    let read = |tensor: &PlannedTensor, range: Range<u64>, to: &mut [u8]| {
        read_tensor(&planned.checkpoint, tensor, range, to)
    };
    let estimate = || add_estimate(&mut planned.plan, settings.coding, &read, job);
    planned.checkpoint.watched(job, estimate)?;
    if settings.consume {
        planned.plan.consume = Some(consume_plan(&planned)?);
    }
    Ok(planned.plan)
}

/// Reads bytes of a planned tensor, counted from its first.
fn read_tensor(
    checkpoint: &Checkpoint,
    tensor: &PlannedTensor,
    range: Range<u64>,
    to: &mut [u8],
) -> Result<(), FormatError> {
    let source = &tensor.source;
    let mut shards = checkpoint.shards.iter();
    let Some(shard) = shards.find(|s| s.path == source.file) else {
        let what = format!(
            "the plan takes {:?} from it, but it is not open",
            tensor.name
        );
        return Err(FormatError::malformed(source.file.as_ref(), what));
    };
    shard.bytes().read_at(to, source.offset + range.start)
}

/// Whether what a pack takes is there: not removed, or kept.
fn is_readable(planned: &Planned, numbers: &HashMap<&str, usize>, pack: &PlannedPack) -> bool {
    let mut tensors = pack.segments.iter().flat_map(|s| &s.tensors);
    tensors.all(|tensor| {
        let shard = numbers.get(tensor.source.file.as_str());
        let shard = shard.map(|n| &planned.checkpoint.shards[*n]);
        shard.is_none_or(|shard| shard.has(&source::range_of(tensor)))
    })
}

/// Packs a checkpoint into `out`.
///
/// # Errors
/// As [`plan`]; `Output` where the output exists, lies inside the checkpoint or does not fit; a
/// source that changes or differs from the hub's digests. After an error in the input nothing is
/// left; after any other, `resume` goes on.
pub fn pack(
    argument: &Path,
    out: &Path,
    settings: &PackSettings,
    stop: &CancelToken,
    progress: &dyn Progress,
) -> Result<PackSummary, StepError> {
    let job = Job {
        threads: settings.jobs,
        stop,
        progress,
    };
    let planned = plan_into(argument, out, settings, job)?;
    pack_planned(argument, &planned, out, settings, job)
}

/// Packs a checkpoint that was planned with [`plan_into`] for the same folder and settings.
///
/// # Errors
/// As [`pack`].
pub(crate) fn pack_planned(
    argument: &Path,
    planned: &Planned,
    out: &Path,
    settings: &PackSettings,
    job: Job<'_>,
) -> Result<PackSummary, StepError> {
    pack_with(argument, planned, (out, None), settings, job)
}

/// [`pack_planned`]; finished files go elsewhere, where that is given.
fn pack_with(
    argument: &Path,
    planned: &Planned,
    to: (&Path, Option<&dyn Elsewhere>),
    settings: &PackSettings,
    job: Job<'_>,
) -> Result<PackSummary, StepError> {
    let pack = || pack_watched(argument, planned, to, settings, job);
    planned.checkpoint.watched_writing(job, pack)
}

/// [`pack_with`], while somebody looks whether to stop waiting for a server.
fn pack_watched(
    argument: &Path,
    planned: &Planned,
    (out, elsewhere): (&Path, Option<&dyn Elsewhere>),
    settings: &PackSettings,
    job: Job<'_>,
) -> Result<PackSummary, StepError> {
    let Job { stop, progress, .. } = job;
    if let Some(folder) = planned.checkpoint.local_folder() {
        refuse_inside(out, folder)?;
    }
    refuse_holding(out, &planned.checkpoint.local_paths())?;
    refuse_not_local(planned, out, settings)?;
    if settings.consume {
        consume_plan(planned)?;
    }
    let share = Share::of(planned, settings);
    match finished_before(argument, out, settings, (planned, &share), stop, progress) {
        Ok(Some(summary)) => return Ok(summary),
        Ok(None) => {}
        // it is to be replaced
        Err(e) if settings.force && e.is_other_pack() => {}
        Err(e) => return Err(e),
    }
    let listed = write::planned_files(planned);
    let target = Target {
        resume: settings.resume,
        force: settings.force,
        in_place: settings.in_place,
        consume: settings.consume,
        elsewhere,
        job,
    };
    if settings.in_place && out.join(MANIFEST).exists() {
        progress.note(pack_writer::IN_PLACE);
        check_source(planned, job)?;
    }
    let read = |tensor: &PlannedTensor, range: Range<u64>, to: &mut [u8]| {
        read_tensor(&planned.checkpoint, tensor, range, to)
    };
    let numbers = shard_numbers(&planned.checkpoint);
    let can_read =
        |pack: &PlannedPack| share.takes(&pack.path) && is_readable(planned, &numbers, pack);
    let mut space = Space::new(
        &planned.plan,
        settings.coding,
        &read,
        settings.space_check,
        job,
    );
    space.can_read = &can_read;
    let nothing = Done::default();
    let output = target.open(out, &listed, &|freed| {
        space.check(out, freed, &|lengths| {
            needed_space((planned, &share), &nothing, lengths)
        })
    })?;
    let work = Work {
        planned,
        settings,
        target: &target,
        output: &output,
        job,
        proof: Proof::new(&planned.plan),
        share: &share,
        space: &space,
    };
    let done = work.run();
    if elsewhere.is_some() {
        return pack_writer::close_empty(output, done);
    }
    pack_writer::close(output, done, |error: &StepError| {
        // the packs may be the only copy: none is ever taken back then
        match Journal::is_only_copy(out) {
            // what came before a bad shard of a server was good
            Ok(false) if error.leave() == Leave::Nothing && is_remote(planned) => Leave::Unfinished,
            Ok(false) => error.leave(),
            Ok(true) | Err(_) => Leave::Unfinished,
        }
    })
}

/// Whether the checkpoint is on a server.
fn is_remote(planned: &Planned) -> bool {
    planned.checkpoint.local_folder().is_none()
}

/// Refuses what makes no sense, or takes everything twice, where the checkpoint is on a server.
fn refuse_not_local(
    planned: &Planned,
    out: &Path,
    settings: &PackSettings,
) -> Result<(), StepError> {
    if !is_remote(planned) {
        return Ok(());
    }
    let place = planned.checkpoint.root.clone();
    let refuse = |why| {
        Err(SourceError::OnlyLocal {
            place: place.clone(),
            why,
        }
        .into())
    };
    if settings.consume {
        return refuse("it is on a server, and nothing of it can be removed as it is packed");
    }
    if settings.in_place {
        return refuse(
            "it is on a server, and would have to be fetched twice to remove the old pack first",
        );
    }
    match &settings.fetch.keep {
        Some(keep) if out.exists() => Ok(refuse_inside(keep, out)?),
        Some(keep) if keep.starts_with(out) => refuse("its shards cannot be kept in the pack"),
        Some(_) | None => Ok(()),
    }
}

/// Reads all that will be packed and compares it with what the hub publishes: what it replaces will
/// be gone when it is packed.
fn check_source(planned: &Planned, job: Job<'_>) -> Result<(), StepError> {
    let checkpoint = &planned.checkpoint;
    let shards = checkpoint.shards.iter();
    let mut inputs: Vec<_> = shards
        .map(|s| (s.path.as_str(), s.hub_sha256, Arc::clone(&s.shard.input)))
        .collect();
    for file in &checkpoint.files {
        let input = checkpoint.open_file_at(&file.path)?;
        inputs.push((&file.path, file.hub_sha256, input));
    }
    let bytes = inputs.iter().map(|(.., input)| input.length()).sum();
    job.progress.start("checking the source", bytes);
    let buffer = || Ok(vec![0; READ_BYTES]);
    let checked = run_tasks(
        job.threads,
        &inputs,
        buffer,
        |buffer, (path, hub, input)| {
            let seen = write::digest(&**input, buffer, job)?;
            input.check_unchanged()?;
            write::compare_with_hub(path, *hub, seen)
        },
    );
    job.progress.finish();
    checked
}

/// With `--resume`, a pack that is complete already. It has to be intact, of this checkpoint and
/// with these options.
fn finished_before(
    argument: &Path,
    out: &Path,
    settings: &PackSettings,
    (planned, share): (&Planned, &Share),
    stop: &CancelToken,
    progress: &dyn Progress,
) -> Result<Option<PackSummary>, StepError> {
    if settings.resume {
        recover(out, true)?;
    }
    // what goes on is a replacement of the pack that is there
    let replaces = settings.force && is_being_replaced(out);
    if !settings.resume || replaces || !out.join(share.document_name()).exists() {
        return Ok(None);
    }
    if inspect(out)? == Before::Unfinished {
        // killed between its last two steps
        pack_writer::check_ours(out, &write::planned_files(planned))?;
        OutputFolder::go_on(out)?.finish()?;
    }
    let pack = share.open_finished(out)?;
    let manifest = pack.manifest();
    let folder = || out.to_owned();
    let other_source = |file| PackWriterError::OtherSource {
        folder: folder(),
        what: "checkpoint",
        file,
    };
    let provenance = settings
        .provenance
        .then(|| planned.checkpoint.provenance.clone());
    if manifest.options != settings.recorded() || manifest.provenance != provenance {
        return Err(PackWriterError::OtherOptions { folder: folder() }.into());
    }
    for shard in &planned.checkpoint.shards {
        let input = &shard.shard.input;
        let header = Sha256::of(&input.read_range(0..shard.shard.header.data_start)?);
        let listed = manifest.source_files.iter().find(|f| f.path == shard.path);
        let same = listed.is_some_and(|f| f.length == input.length() && f.stored_sha256 == header);
        // a shard of a server is not fetched again to be compared
        let published = listed.and_then(|f| f.sha256.zip(shard.hub_sha256));
        let differs = published.is_some_and(|(packed, published)| packed != published);
        if !same || is_remote(planned) && differs {
            return Err(other_source(Some(shard.path.clone())).into());
        }
    }
    let all_there = planned
        .checkpoint
        .shards
        .iter()
        .all(|s| s.removed.is_none());
    let verify = VerifySettings {
        against: (all_there && !is_remote(planned) && !pack.is_part()).then(|| argument.to_owned()),
        ..VerifySettings::new(VerifyMode::Full, settings.jobs)
    };
    let report = super::verify::verify(out, &verify, stop, progress)?;
    if let Some(first) = report.findings.first().filter(|_| !report.ok) {
        return Err(PackWriterError::Damaged {
            folder: folder(),
            compared: true,
            first: Box::new(first.clone()),
        }
        .into());
    }
    discard(out)?;
    let mut summary = summarise(
        manifest,
        pack.manifest_sha256(),
        manifest.counts.packs,
        0,
        Vec::new(),
    );
    summary.part = share.numbers();
    if settings.consume {
        let job = Job {
            threads: settings.jobs,
            stop,
            progress,
        };
        summary.removed_shards = remove_packed(planned, manifest, job)?;
    }
    Ok(Some(summary))
}

/// Bytes that packing takes on the disk, where the packs have these lengths; those that are done
/// are there already.
fn needed_space((planned, share): (&Planned, &Share), done: &Done, lengths: &[u64]) -> u64 {
    /// More than any entry of a manifest takes.
    const MANIFEST_ENTRY_BYTES: u64 = 1024;
    let Planned {
        checkpoint, plan, ..
    } = planned;
    let packs: u64 = plan
        .packs
        .iter()
        .zip(lengths)
        .filter(|(p, _)| share.takes(&p.path) && !done.has_pack(&p.path))
        .map(|(_, length)| length)
        .sum();
    let files: u64 = checkpoint.files.iter().map(|f| f.length).sum();
    let headers: u64 = checkpoint
        .shards
        .iter()
        .map(|s| s.shard.header.data_start)
        .sum();
    let entries: usize = plan
        .packs
        .iter()
        .flat_map(|p| &p.segments)
        .map(|s| 1 + s.tensors.len())
        .sum();
    packs + files + headers + entries as u64 * MANIFEST_ENTRY_BYTES
}

/// One run of `pack`, with everything that its parts need.
struct Work<'a> {
    planned: &'a Planned,
    settings: &'a PackSettings,
    target: &'a Target<'a>,
    output: &'a OutputFolder,
    job: Job<'a>,
    proof: Proof<'a>,
    share: &'a Share,
    space: &'a Space<'a>,
}

impl Work<'_> {
    /// Refuses what the output's file system cannot hold; a coded pack may be as short as can be.
    fn check_limits(&self) -> Result<(), StepError> {
        let files = write::planned_files(self.planned);
        let packs = &self.planned.plan.packs;
        let is_raw = self.settings.coding.codec() == Codec::Raw;
        let raw_pack = |path: &str| packs.iter().find(|p| is_raw && p.path == path);
        let files = files.iter().map(String::as_str);
        let lengths = files.map(|path| (path, raw_pack(path).map_or(0, |p| p.length)));
        Ok(self.output.check_limits(lengths)?)
    }

    fn run(&self) -> Result<PackSummary, StepError> {
        #[cfg(feature = "remote")]
        if let Some(remote) = arriving::remote_of(self.planned) {
            self.pin(remote)?;
        }
        let (journal, mut done, resumed) =
            self.target.open_journal(self.output, self.fingerprint()?)?;
        self.check_limits()?;
        self.space.check(self.output.path(), 0, &|lengths| {
            self.needed(&done, lengths)
        })?;
        for (shard, digests) in done.shards() {
            self.proof.shard(shard, digests)?;
        }
        for (pack, written) in done.written_packs() {
            self.proof.pack(pack, &written.tensors)?;
        }
        self.write_all(&journal, &mut done)?;
        let shards = self.planned.checkpoint.shards.iter();
        for shard in shards.filter(|s| !done.is_removed(&s.path)) {
            shard.shard.input.check_unchanged()?;
        }
        let (manifest, manifest_sha256) = self.write_documents(&done)?;
        let compared = self.hub_digests_compared(&done);
        let mut summary = summarise(
            &manifest,
            manifest_sha256,
            resumed,
            compared,
            done.warnings(),
        );
        summary.removed_shards = done.removed();
        summary.part = self.share.numbers();
        #[cfg(feature = "remote")]
        if let Some(remote) = arriving::remote_of(self.planned) {
            summary.packed_from = Some(arriving::packed_from(remote));
        }
        Ok(summary)
    }

    /// Bytes that must be free. Where shards are removed as they are packed, those that are free
    /// again are used again.
    fn needed(&self, done: &Done, lengths: &[u64]) -> u64 {
        let on_the_way = self.target.elsewhere.map(|_| {
            // one for each thread, one that waits, and one that is sent
            largest(lengths, self.job.threads + 2)
        });
        let lengths = on_the_way.as_deref().unwrap_or(lengths);
        let all = needed_space((self.planned, self.share), done, lengths);
        if !self.settings.consume && !is_remote(self.planned) {
            return all;
        }
        let is_missing = |p: &PlannedPack| self.share.takes(&p.path) && !done.has_pack(&p.path);
        let packs = self.planned.plan.packs.iter().zip(lengths);
        let missing = packs.filter(|(p, _)| is_missing(p));
        let beside = all - missing.map(|(_, length)| length).sum::<u64>();
        let missing: Vec<u64> = self
            .planned
            .plan
            .packs
            .iter()
            .zip(lengths)
            .map(|(p, length)| if is_missing(p) { *length } else { 0 })
            .collect();
        #[cfg(feature = "remote")]
        if is_remote(self.planned) {
            return beside + arriving::peak_bytes((self.planned, self.share), &missing);
        }
        beside + peak_bytes(self.planned, done, &missing, &|s| self.freed_bytes(s))
    }

    /// Identifies the source, the plan and the options: an unfinished pack goes on only with the
    /// same.
    fn fingerprint(&self) -> Result<Sha256, StepError> {
        let Planned {
            checkpoint,
            plan,
            graft,
            ..
        } = self.planned;
        let mut state = Vec::new();
        for shard in &checkpoint.shards {
            state.push(state_of(shard)?);
        }
        for file in &checkpoint.files {
            state.push(format!(
                "{} {} {:?}",
                file.path, file.length, file.hub_sha256
            ));
        }
        let options = (
            self.settings.recorded(),
            self.settings.provenance,
            &checkpoint.provenance,
        );
        let mut text = serde_json::to_vec(&(GENERATOR, plan, options, state, graft))
            .map_err(PackWriterError::Fingerprint)?;
        if let Some([part, of]) = self.share.numbers() {
            text.extend(format!("part {part} of {of}").bytes());
        }
        Ok(Sha256::of(&text))
    }

    /// A published checkpoint that the digested shards are, or resemble.
    fn known_source(&self, done: &Done) -> Option<KnownSource> {
        if self.share.numbers().is_some() {
            return None; // it is looked up when the parts are joined
        }
        let shards = self.planned.checkpoint.shards.iter();
        known_of(shards.map(|s| {
            let digest = done.shard(&s.path).map(|d| d.sha256);
            (s.path.as_str(), s.shard.input.length(), digest)
        }))
    }

    fn hub_digests_compared(&self, done: &Done) -> u64 {
        let Checkpoint { shards, files, .. } = &self.planned.checkpoint;
        let published = shards.iter().filter(|s| s.hub_sha256.is_some());
        let shards = published.filter(|s| done.shard(&s.path).is_some());
        let files = files.iter().filter(|f| f.hub_sha256.is_some());
        (shards.count() + files.count()) as u64
    }
}

/// The same lengths, but for all except the largest `count`, which become 0.
fn largest(lengths: &[u64], count: usize) -> Vec<u64> {
    let mut sorted = lengths.to_vec();
    sorted.sort_unstable_by(|a, b| b.cmp(a));
    let least = sorted.get(count.saturating_sub(1)).copied().unwrap_or(0);
    let mut left = count;
    let keep = |length: &u64| {
        let stays = *length >= least && left > 0;
        left -= usize::from(stays);
        if stays { *length } else { 0 }
    };
    lengths.iter().map(keep).collect()
}

/// A published checkpoint that shards of these paths, lengths and digests are, or resemble.
pub(crate) fn known_of<'a>(
    shards: impl Iterator<Item = (&'a str, u64, Option<Sha256>)>,
) -> Option<KnownSource> {
    let shards: Vec<_> = shards
        .map(|(file, length, sha256)| (file, length, sha256.map(|d| d.to_string())))
        .collect();
    let found = shards.iter().map(|(file, length, sha256)| FoundShard {
        file,
        length: *length,
        sha256: sha256.as_deref(),
    });
    known_source(&found.collect::<Vec<_>>())
}

/// What identifies a shard.
fn state_of(shard: &CheckpointShard) -> Result<String, FormatError> {
    if let Some(state) = &shard.removed {
        return Ok(state.clone());
    }
    let input = &shard.shard.input;
    let header = Sha256::of(&input.read_range(0..shard.shard.header.data_start)?);
    Ok(format!(
        "{} {:?} {header} {:?}",
        shard.path,
        input.stamp(),
        shard.hub_sha256
    ))
}

/// Shards by path.
fn shard_numbers(checkpoint: &Checkpoint) -> HashMap<&str, usize> {
    checkpoint
        .shards
        .iter()
        .enumerate()
        .map(|(i, s)| (s.path.as_str(), i))
        .collect()
}
