//! `pack`: from a checkpoint to a pack folder, whole or resumable, the same bytes every time.

mod journal;
mod source;
mod write;

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::Path;

use segpack_formats::codec::Coding;
use segpack_formats::digest::Sha256;
use segpack_formats::io::{InputFile, READ_BYTES, Stop};
use segpack_formats::pack::WrittenPack;
use segpack_manifests::documents::{
    Finding, FindingKind, FormatVersion, GENERATOR, Inventory, KnownSource, Manifest, PackOptions,
    PackSummary, Plan, Severity, SourceFile, VerifyMode,
};
use segpack_manifests::layout::{self, Selection};
use segpack_manifests::pack_folder::{MANIFEST, PACKS, PARTIAL, SOURCE, SUMS};
use segpack_manifests::registry::{Difference, FoundShard, RegistryMatch, known_checkpoints};
use segpack_manifests::{Pack, PackError};

use super::StepError;
use super::checkpoint::Checkpoint;
use super::output::{
    Before, LOCK, OutputFolder, check_space, look, refuse_busy, refuse_holding, refuse_inside, remove_all,
};
use super::progress::Progress;
use super::scan::{ScanOptions, scan};
use super::verify::VerifySettings;
use super::workers::run_tasks;
use journal::{JOURNAL, Journal, Record};
use write::Done;

/// How to pack.
#[derive(Debug, Clone)]
pub struct PackSettings {
    /// Which components.
    pub selection: Selection,
    /// How segments are coded.
    pub coding: Coding,
    /// Threads.
    pub jobs: usize,
    /// Go on where an interrupted run stopped.
    pub resume: bool,
    /// Replace an existing pack.
    pub force: bool,
    /// Digest source shards, and compare with the hub's own digests.
    pub source_digests: bool,
    /// Write SHA256SUMS.
    pub sums: bool,
    /// Record where the checkpoint came from.
    pub provenance: bool,
    /// What to tolerate.
    pub scan: ScanOptions,
}

impl PackSettings {
    fn recorded(&self) -> PackOptions {
        let level = match self.coding {
            Coding::Raw => None,
            Coding::Zstd { level } => Some(level),
        };
        PackOptions {
            codec: self.coding.codec(),
            level,
            include: self.selection.include.clone(),
            exclude: self.selection.exclude.clone(),
            source_digests: self.source_digests,
            sums: self.sums,
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
}

/// Scans a checkpoint and plans its packs. Writes nothing.
///
/// # Errors
/// `Findings` with everything that is wrong with the checkpoint; `Plan` where the selection is.
pub fn plan(argument: &Path, settings: &PackSettings) -> Result<Planned, StepError> {
    let (checkpoint, inventory) = scan(argument, settings.scan)?;
    let unaudited = !inventory.audited && !settings.scan.allow_unclassified;
    if Finding::any_error(&inventory.findings) || unaudited {
        let mut findings = inventory.findings;
        // for packing, not to know whether tensors are missing is an error
        for finding in findings.iter_mut().filter(|f| unaudited && f.kind == FindingKind::NotAudited) {
            finding.severity = Severity::Error;
            finding.wanted.get_or_insert_with(|| "it, or --allow-unclassified".to_owned());
        }
        return Err(StepError::Findings {
            what: format!("{}: nothing was packed", checkpoint.root.display()),
            findings,
        });
    }
    let plan = layout::plan(&inventory, &settings.selection, settings.coding.codec())?;
    Ok(Planned { checkpoint, inventory, plan })
}

/// Packs a checkpoint into `out`.
///
/// # Errors
/// As [`plan`]; `Refused` where the output exists, lies inside the checkpoint or does not fit; a source that
/// changes or differs from the hub's digests. After an error in the input nothing is left; after any other,
/// `resume` goes on.
pub fn pack(
    argument: &Path,
    out: &Path,
    settings: &PackSettings,
    stop: &Stop,
    progress: &dyn Progress,
) -> Result<PackSummary, StepError> {
    let planned = plan(argument, settings)?;
    refuse_inside(out, &planned.checkpoint.root)?;
    refuse_holding(out, &planned.checkpoint.paths())?;
    if let Some(summary) = finished_before(argument, out, settings, &planned, stop, progress)? {
        return Ok(summary);
    }
    let output = open_output(out, settings, &planned)?;
    let work = Work { planned: &planned, settings, output: &output, stop, progress };
    match work.run() {
        Ok(summary) => {
            output.finish()?;
            Ok(summary)
        }
        Err(e) => {
            if e.exit() == super::Exit::Damaged {
                output.abandon(&[PACKS, SOURCE, SUMS]);
            } else if matches!(e, StepError::Refused(_)) {
                output.abandon_if_new();
            }
            Err(e)
        }
    }
}

/// With `--resume`, a pack that is complete already. It has to be intact, of this checkpoint and with these options.
fn finished_before(
    argument: &Path,
    out: &Path,
    settings: &PackSettings,
    planned: &Planned,
    stop: &Stop,
    progress: &dyn Progress,
) -> Result<Option<PackSummary>, StepError> {
    if !settings.resume || !out.join(MANIFEST).exists() {
        return Ok(None);
    }
    if look(out)? == Before::Unfinished {
        // killed between its last two steps
        check_ours(out, planned)?;
        OutputFolder::open(out)?.finish()?;
    }
    let pack = Pack::open(out)?;
    let manifest = pack.manifest();
    let refuse =
        |why: String| Err(StepError::Refused(format!("{} {why}; --force replaces it", out.display())));
    let provenance = settings.provenance.then(|| planned.checkpoint.provenance.clone());
    if manifest.options != settings.recorded() || manifest.provenance != provenance {
        return refuse("holds a finished pack with other options".to_owned());
    }
    for shard in &planned.checkpoint.shards {
        let input = &shard.shard.input;
        let header = Sha256::of(&input.read_range(0..shard.shard.header.data_start)?);
        let same =
            |f: &SourceFile| f.path == shard.path && f.length == input.length() && f.stored_sha256 == header;
        if !manifest.source_files.iter().any(same) {
            return refuse(format!("holds a finished pack of another checkpoint ({} differs)", shard.path));
        }
    }
    let verify = VerifySettings {
        mode: VerifyMode::Full,
        subset: None,
        against: Some(argument.to_owned()),
        jobs: settings.jobs,
    };
    let report = super::verify::verify(out, &verify, stop, progress)?;
    if let Some(first) = report.findings.first().filter(|_| !report.ok) {
        return refuse(format!("holds a finished pack that is damaged or of another checkpoint ({first})"));
    }
    Ok(Some(summarise(manifest, pack.manifest_sha256(), manifest.counts.packs, 0, Vec::new())))
}

/// Opens the output folder, or says why not.
fn open_output(out: &Path, settings: &PackSettings, planned: &Planned) -> Result<OutputFolder, StepError> {
    let refuse = |what: &str| Err(StepError::Refused(format!("{} {what}", out.display())));
    refuse_busy(out)?;
    match look(out)? {
        Before::Nothing => OutputFolder::open(out),
        Before::Unfinished | Before::Occupied if settings.force => replace(out, planned),
        Before::Unfinished => {
            check_ours(out, planned)?;
            if settings.resume {
                return OutputFolder::open(out);
            }
            refuse("holds an unfinished pack: --resume goes on with it, --force starts anew")
        }
        Before::Occupied if out.join(MANIFEST).exists() => {
            refuse("exists and holds a pack: --force replaces it")
        }
        Before::Occupied => refuse("exists and is not empty: choose another place"),
    }
}

/// Refuses a folder that holds anything but a pack, finished or not.
fn check_ours(out: &Path, planned: &Planned) -> Result<(), StepError> {
    let foreign = |what: String| {
        let what = format!("{}: only a pack may be continued or replaced, but {what}", out.display());
        Err(StepError::Refused(format!("{what}; choose another place, or remove it yourself")))
    };
    for entry in fs::read_dir(out).map_err(StepError::io("list", out))? {
        let name = entry.map_err(StepError::io("list", out))?.file_name().to_string_lossy().into_owned();
        if ![MANIFEST, SUMS, PACKS, SOURCE, PARTIAL].contains(&name.as_str()) {
            return foreign(format!("the folder holds {name:?} too"));
        }
    }
    let records = Journal::read(&out.join(PARTIAL).join(JOURNAL));
    let begun =
        matches!(records.first(), Some(Record::Begun { .. })) || out.join(PARTIAL).join(LOCK).exists();
    let mut listed = write::planned_files(planned);
    listed.extend(records.into_iter().filter_map(|r| match r {
        Record::Pack { path, .. } => Some(path),
        _ => None,
    }));
    match Pack::open(out) {
        Ok(pack) => listed.extend(pack.manifest().files().iter().map(|f| f.0.to_owned())),
        Err(PackError::Format(e)) => return Err(e.into()),
        Err(_) if begun => {}
        Err(e) => return foreign(e.to_string()),
    }
    match files_below(out, &[PACKS, SOURCE])?.into_iter().find(|file| !listed.contains(file)) {
        Some(file) => foreign(format!(
            "it holds {file:?}, which this pack will not have (another source's, or your own)"
        )),
        None => Ok(()),
    }
}

/// `--force`: removes a pack, but only where the folder holds nothing else and the new one will fit. The lock is held
/// from before the removal on.
fn replace(out: &Path, planned: &Planned) -> Result<OutputFolder, StepError> {
    check_ours(out, planned)?;
    let old = files_below(out, &[PACKS, SOURCE])?;
    let freed = old.iter().filter_map(|f| fs::metadata(out.join(f)).ok()).map(|m| m.len()).sum();
    check_space(out, needed_space(planned, &|_| false), freed)?;
    let output = OutputFolder::open(out)?;
    // the manifest first, so that what is left does not look complete
    for name in [MANIFEST, SUMS, PACKS, SOURCE] {
        remove_all(&out.join(name))?;
    }
    remove_all(&output.control(JOURNAL))?;
    Ok(output)
}

/// Bytes that packing takes on the disk, but for packs that are done.
fn needed_space(planned: &Planned, is_done: &dyn Fn(&str) -> bool) -> u64 {
    /// More than any entry of a manifest takes.
    const MANIFEST_ENTRY_BYTES: u64 = 1024;
    let Planned { checkpoint, plan, .. } = planned;
    let packs: u64 = plan.packs.iter().filter(|p| !is_done(&p.path)).map(|p| p.length).sum();
    let files: u64 = checkpoint.files.iter().map(|f| f.length).sum();
    let headers: u64 = checkpoint.shards.iter().map(|s| s.shard.header.data_start).sum();
    let entries: usize = plan.packs.iter().flat_map(|p| &p.segments).map(|s| 1 + s.tensors.len()).sum();
    packs + files + headers + entries as u64 * MANIFEST_ENTRY_BYTES
}

fn files_below(root: &Path, folders: &[&str]) -> Result<Vec<String>, StepError> {
    let mut files = Vec::new();
    for folder in folders.iter().map(|f| root.join(f)).filter(|f| f.exists()) {
        for entry in walkdir::WalkDir::new(&folder) {
            let entry = entry.map_err(|e| StepError::Refused(e.to_string()))?;
            if !entry.file_type().is_dir() {
                let below = entry.path().strip_prefix(root).unwrap_or(entry.path());
                files.push(below.to_string_lossy().into_owned());
            }
        }
    }
    Ok(files)
}

fn summarise(
    manifest: &Manifest,
    manifest_sha256: Sha256,
    resumed_packs: u64,
    hub_digests_compared: u64,
    warnings: Vec<Finding>,
) -> PackSummary {
    PackSummary {
        format_version: FormatVersion::CURRENT,
        generator: GENERATOR.to_owned(),
        manifest_sha256,
        packs: manifest.counts.packs,
        resumed_packs,
        segments: manifest.counts.segments,
        tensors: manifest.counts.tensors,
        tensor_bytes: manifest.counts.tensor_bytes,
        stored_bytes: manifest.packs.iter().map(|p| p.length).sum(),
        known: manifest.known.clone(),
        hub_digests_compared,
        warnings,
    }
}

/// One run of `pack`, with everything that its parts need.
struct Work<'a> {
    planned: &'a Planned,
    settings: &'a PackSettings,
    output: &'a OutputFolder,
    stop: &'a Stop,
    progress: &'a dyn Progress,
}

impl Work<'_> {
    fn run(&self) -> Result<PackSummary, StepError> {
        let (journal, mut done, resumed) = self.open_journal()?;
        self.output.check_space(needed_space(self.planned, &|path| done.has_pack(path)))?;
        self.write_all(&journal, &mut done)?;
        for shard in &self.planned.checkpoint.shards {
            shard.shard.input.check_unchanged()?;
        }
        let manifest = self.manifest(&done)?;
        let manifest_sha256 = self.write_documents(&manifest)?;
        let compared = self.hub_digests_compared(&done);
        Ok(summarise(&manifest, manifest_sha256, resumed, compared, done.warnings()))
    }

    /// Identifies the source, the plan and the options: an unfinished pack goes on only with the same.
    fn fingerprint(&self) -> Result<Sha256, StepError> {
        let Planned { checkpoint, plan, .. } = self.planned;
        let mut state = Vec::new();
        for shard in &checkpoint.shards {
            let input = &shard.shard.input;
            let header = Sha256::of(&input.read_range(0..shard.shard.header.data_start)?);
            state.push(format!("{} {:?} {header} {:?}", shard.path, input.stamp(), shard.hub_sha256));
        }
        for file in &checkpoint.files {
            state.push(format!("{} {} {:?}", file.path, file.length, file.hub_sha256));
        }
        let options = (self.settings.recorded(), self.settings.provenance, &checkpoint.provenance);
        let text = serde_json::to_vec(&(GENERATOR, plan, options, state))
            .map_err(|e| StepError::Refused(e.to_string()))?;
        Ok(Sha256::of(&text))
    }

    /// Starts or continues the journal; finished packs that are still intact count as done.
    fn open_journal(&self) -> Result<(Journal, Done, u64), StepError> {
        let path = self.output.control(JOURNAL);
        let begun = Record::Begun { fingerprint: self.fingerprint()? };
        let records = if self.settings.resume { Journal::read(&path) } else { Vec::new() };
        if records.first().is_some_and(|first| *first != begun) {
            return Err(StepError::Refused(format!(
                "{} holds an unfinished pack of another source, or with other options (the source may have changed \
                 since): give the same ones, or start anew with --force",
                self.output.path().display()
            )));
        }
        self.output.clear_unfinished()?;
        let intact = self.check_finished(&records)?;
        let kept: Vec<Record> = std::iter::once(begun).chain(intact).collect();
        let journal = Journal::begin(&path, &kept)?;
        let mut done = Done::default();
        kept.into_iter().for_each(|record| done.add(record));
        let resumed = done.packs() as u64;
        Ok((journal, done, resumed))
    }

    /// Re-reads every pack that a journal calls finished. One that is not what it says is done again.
    fn check_finished(&self, records: &[Record]) -> Result<Vec<Record>, StepError> {
        let bytes = records
            .iter()
            .map(|r| if let Record::Pack { written, .. } = r { written.length } else { 0 })
            .sum();
        if bytes > 0 {
            self.progress.start("checking finished packs", bytes);
        }
        let damaged = std::sync::Mutex::new(BTreeSet::new());
        let check = |buffer: &mut Vec<u8>, record: &Record| {
            let Record::Pack { path, written, .. } = record else { return Ok(()) };
            if !self.is_intact(path, written, buffer)? {
                self.progress.note(&format!("{path} is not what the journal says; writing it again"));
                damaged.lock().unwrap_or_else(std::sync::PoisonError::into_inner).insert(path.clone());
            }
            Ok(())
        };
        run_tasks(self.settings.jobs, records, || Ok(vec![0; READ_BYTES]), check)?;
        if bytes > 0 {
            self.progress.finish();
        }
        let damaged = damaged.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        let keep = |r: &&Record| match r {
            Record::Begun { .. } => false,
            Record::Pack { path, .. } => !damaged.contains(path),
            Record::Shard { .. } => true,
        };
        Ok(records.iter().filter(keep).cloned().collect())
    }

    fn is_intact(&self, path: &str, written: &WrittenPack, buffer: &mut [u8]) -> Result<bool, StepError> {
        let Ok(input) = InputFile::open(&self.output.path().join(path)) else { return Ok(false) };
        if input.length() != written.length {
            return Ok(false);
        }
        let mut sha256 = segpack_formats::digest::Sha256Hasher::default();
        input.for_each_piece(0..written.length, buffer, self.stop, |piece| {
            sha256.update(piece);
            self.progress.advance(piece.len() as u64);
            Ok::<_, StepError>(())
        })?;
        Ok(sha256.finish() == written.sha256)
    }

    /// A published checkpoint that the digested shards are, or resemble.
    fn known_source(&self, done: &Done) -> Option<KnownSource> {
        let shards = &self.planned.checkpoint.shards;
        let digests: Vec<Option<String>> =
            shards.iter().map(|s| done.shard(&s.path).map(|d| d.to_string())).collect();
        let found: Vec<FoundShard<'_>> = shards
            .iter()
            .zip(&digests)
            .map(|(s, digest)| FoundShard {
                file: &s.path,
                length: s.shard.input.length(),
                sha256: digest.as_deref(),
            })
            .collect();
        // built into the program; a test of the registry rules a parse error out
        known_checkpoints().unwrap_or_default().iter().find_map(|known| {
            let differences = match known.compare(&found) {
                RegistryMatch::Same => Vec::new(),
                RegistryMatch::Differs { files } => files,
                RegistryMatch::Unrelated => return None,
            };
            let identical = differences.is_empty();
            let (unknown, differs): (Vec<_>, Vec<_>) =
                differences.into_iter().partition(|d| d.difference == Difference::Sha256Unknown);
            Some(KnownSource {
                repo: known.repo.clone(),
                revision: known.revision.clone(),
                identical,
                differs: differs.iter().map(|d| format!("{}: {}", d.file, d.difference)).collect(),
                not_compared: unknown.into_iter().map(|d| d.file).collect(),
            })
        })
    }

    fn hub_digests_compared(&self, done: &Done) -> u64 {
        let Checkpoint { shards, files, .. } = &self.planned.checkpoint;
        let compared =
            |s: &&super::checkpoint::CheckpointShard| s.hub_sha256.is_some() && done.shard(&s.path).is_some();
        (shards.iter().filter(compared).count() + files.iter().filter(|f| f.hub_sha256.is_some()).count())
            as u64
    }

    /// `SHA256SUMS`, then the manifest: its presence means "complete".
    fn write_documents(&self, manifest: &Manifest) -> Result<Sha256, StepError> {
        let mut json = Vec::new();
        manifest.write(&mut json).map_err(StepError::io("write", MANIFEST))?;
        let manifest_sha256 = Sha256::of(&json);
        if self.settings.sums {
            let text = manifest.sums_text(manifest_sha256);
            self.output.write_small(SUMS, |to| to.write_all(text.as_bytes()))?;
        }
        self.output.write_small(MANIFEST, |to| to.write_all(&json))?;
        Ok(manifest_sha256)
    }
}

/// Shards by path.
fn shard_numbers(checkpoint: &Checkpoint) -> HashMap<&str, usize> {
    checkpoint.shards.iter().enumerate().map(|(i, s)| (s.path.as_str(), i)).collect()
}
