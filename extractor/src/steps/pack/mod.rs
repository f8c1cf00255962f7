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
    PackSummary, Plan,
};
use segpack_manifests::layout::{self, Selection};
use segpack_manifests::pack_folder::{MANIFEST, PACKS, SOURCE, SUMS};
use segpack_manifests::registry::{FoundShard, RegistryMatch, known_checkpoints};
use segpack_manifests::{Pack, PackError};

use super::StepError;
use super::checkpoint::Checkpoint;
use super::output::{Before, OutputFolder, look, refuse_inside};
use super::progress::Progress;
use super::scan::{ScanOptions, scan};
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
        if unaudited && !Finding::any_error(&findings) {
            let finding = Finding::new(FindingKind::BadConfig).file("config.json").seen("is not there");
            findings.push(finding.wanted("it, to know whether tensors are missing; or --allow-unclassified"));
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
    if let Some(summary) = finished_before(out, settings, &planned)? {
        return Ok(summary);
    }
    let output = open_output(out, settings)?;
    let work = Work { planned: &planned, settings, output: &output, stop, progress };
    match work.run() {
        Ok(summary) => {
            output.finish()?;
            Ok(summary)
        }
        Err(e) => {
            if e.exit() == super::Exit::Damaged {
                output.abandon(&[PACKS, SOURCE, SUMS]);
            }
            Err(e)
        }
    }
}

/// With `--resume`, a pack that is complete already: the same plan and options, nothing to do.
fn finished_before(
    out: &Path,
    settings: &PackSettings,
    planned: &Planned,
) -> Result<Option<PackSummary>, StepError> {
    if !settings.resume || !out.join(MANIFEST).exists() {
        return Ok(None);
    }
    let pack = Pack::open(out)?;
    let manifest = pack.manifest();
    let sources = |plan: &Plan| -> Vec<(String, u64)> {
        let tensors = plan.packs.iter().flat_map(|p| &p.segments).flat_map(|s| &s.tensors);
        tensors.map(|t| (t.name.clone(), t.source.offset)).collect()
    };
    let packed: Vec<_> = manifest.tensors.iter().map(|t| (t.name.clone(), t.source.offset)).collect();
    if manifest.options != settings.recorded() || packed != sources(&planned.plan) {
        return Err(StepError::Refused(format!(
            "{} holds a finished pack of another checkpoint or with other options; --force replaces it",
            out.display()
        )));
    }
    if look(out)? == Before::Unfinished {
        OutputFolder::open(out)?.finish()?;
    }
    Ok(Some(summarise(manifest, pack.manifest_sha256(), manifest.counts.packs, 0, Vec::new())))
}

/// Opens the output folder, or says why not.
fn open_output(out: &Path, settings: &PackSettings) -> Result<OutputFolder, StepError> {
    let refuse = |what: &str| Err(StepError::Refused(format!("{} {what}", out.display())));
    match look(out)? {
        Before::Nothing => {}
        Before::Unfinished if settings.resume => {}
        Before::Unfinished if settings.force => clear(out)?,
        Before::Unfinished => {
            return refuse("holds an unfinished pack: --resume goes on with it, --force starts anew");
        }
        Before::Occupied if settings.force => clear(out)?,
        Before::Occupied if out.join(MANIFEST).exists() => {
            return refuse("exists and holds a pack: --force replaces it");
        }
        Before::Occupied => return refuse("exists and is not empty: choose another place"),
    }
    OutputFolder::open(out)
}

/// `--force`: removes a pack, but only where the folder holds nothing else.
fn clear(out: &Path) -> Result<(), StepError> {
    let foreign = |what: String| {
        Err(StepError::Refused(format!(
            "{}: --force replaces only a pack, but {what}; remove it yourself",
            out.display()
        )))
    };
    let ours = [MANIFEST, SUMS, PACKS, SOURCE, segpack_manifests::pack_folder::PARTIAL];
    let mut entries = Vec::new();
    for entry in fs::read_dir(out).map_err(StepError::io("list", out))? {
        let name = entry.map_err(StepError::io("list", out))?.file_name().to_string_lossy().into_owned();
        if !ours.contains(&name.as_str()) {
            return foreign(format!("the folder holds {name:?} too"));
        }
        entries.push(name);
    }
    let unfinished = out.join(segpack_manifests::pack_folder::PARTIAL).join("lock").exists();
    if !unfinished {
        let manifest = match Pack::open(out) {
            Ok(pack) => pack,
            Err(PackError::Format(e)) => return Err(e.into()),
            Err(e) => return foreign(e.to_string()),
        };
        let listed: BTreeSet<String> = manifest.manifest().files().iter().map(|f| f.0.to_owned()).collect();
        for file in files_below(out, &[PACKS, SOURCE])? {
            if !listed.contains(&file) {
                return foreign(format!("the pack's manifest does not list {file:?}"));
            }
        }
    }
    // held while removing, so that no other process is writing there
    drop(OutputFolder::open(out)?);
    entries.sort_by_key(|name| name != MANIFEST); // first, so that what is left does not look complete
    for name in entries {
        let path = out.join(name);
        let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.map_err(StepError::io("remove", &path))?;
    }
    let partial = out.join(segpack_manifests::pack_folder::PARTIAL);
    if partial.exists() {
        fs::remove_dir_all(&partial).map_err(StepError::io("remove", &partial))?;
    }
    Ok(())
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
        self.check_space(&done)?;
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
        let path = self.output.partial(JOURNAL);
        let begun = Record::Begun { fingerprint: self.fingerprint()? };
        let records = if self.settings.resume { Journal::read(&path) } else { Vec::new() };
        if records.first().is_some_and(|first| *first != begun) {
            return Err(StepError::Refused(format!(
                "{} holds an unfinished pack of another source, or with other options (the source may have changed \
                 since): give the same ones, or start anew with --force",
                self.output.path().display()
            )));
        }
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

    fn check_space(&self, done: &Done) -> Result<(), StepError> {
        /// More than any entry of a manifest takes.
        const MANIFEST_ENTRY_BYTES: u64 = 1024;
        let Planned { checkpoint, plan, .. } = self.planned;
        let packs: u64 = plan.packs.iter().filter(|p| !done.has_pack(&p.path)).map(|p| p.length).sum();
        let files: u64 = checkpoint.files.iter().map(|f| f.length).sum();
        let headers: u64 = checkpoint.shards.iter().map(|s| s.shard.header.data_start).sum();
        let entries: usize = plan.packs.iter().flat_map(|p| &p.segments).map(|s| 1 + s.tensors.len()).sum();
        self.output.check_space(packs + files + headers + entries as u64 * MANIFEST_ENTRY_BYTES)
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
            let (identical, differs) = match known.compare(&found) {
                RegistryMatch::Same => (true, Vec::new()),
                RegistryMatch::Differs { files } => {
                    (false, files.iter().map(|f| format!("{}: {}", f.file, f.difference)).collect())
                }
                RegistryMatch::Unrelated => return None,
            };
            Some(KnownSource {
                repo: known.repo.clone(),
                revision: known.revision.clone(),
                identical,
                differs,
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
