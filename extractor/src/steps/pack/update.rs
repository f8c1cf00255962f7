//! `update`: a pack follows its checkpoint. What differs is packed again, the other packs stay, and
//! the result is byte for byte what packing the checkpoint anew would give.
//!
//! It is a run of `pack` beside the old folder that finds some packs finished: those whose tensors,
//! by their digests, are still the checkpoint's.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::path::Path;
use std::sync::Mutex;

use segpack_formats::FormatError;
use segpack_formats::codec::{Codec, Coding};
use segpack_formats::digest::Sha256;
use segpack_formats::io::READ_BYTES;
use segpack_formats::pack::{WrittenPack, raw_header};
use segpack_manifests::Pack;
use segpack_manifests::documents::{
    DiffFile, Finding, GENERATOR, Manifest, PackEntry, PackSummary, PlannedPack, PlannedTensor,
    SegmentEntry, SourceFile, TensorEntry, UpdateReport, VerifyMode,
};
use segpack_manifests::layout::Selection;

use super::proof::Proof;
use super::share::Share;
use super::source::ShardValues;
use super::write::compare_with_hub;
use super::{FetchSettings, PackSettings, Planned, Work, plan, read_tensor};
use crate::output::{
    JOURNAL, Journal, Leave, OutputFolder, Record, ShardDigests, recover, refuse_holding,
    refuse_inside,
};
use crate::pack_writer::{Space, Target, close};
use crate::steps::StepError;
use crate::steps::scan::ScanOptions;
use crate::steps::verify::{VerifySettings, verify};
use crate::work::{Job, into_inner, lock, run_tasks};

/// Brings the pack that was opened up to date with a checkpoint.
///
/// # Errors
/// `Findings` where the pack is damaged, or the checkpoint may not be packed; as `pack` otherwise.
/// Nothing is changed then.
pub(crate) fn update(
    old: &Pack,
    from: &Path,
    tolerate: ScanOptions,
    job: Job<'_>,
) -> Result<UpdateReport, StepError> {
    let folder = old.folder();
    // what an earlier run left beside it is of no use
    recover(folder, false)?;
    let settings = settings_of(old.manifest(), tolerate, job.threads);
    let planned = plan(from, &settings, job)?;
    if let Some(checkpoint) = planned.checkpoint.local_folder() {
        refuse_inside(folder, checkpoint)?;
    }
    refuse_holding(folder, &planned.checkpoint.local_paths())?;
    refuse_damaged(folder, job)?;
    let output = OutputFolder::replace(folder, false)?;
    let write = || build(&output, old, &planned, &settings, job);
    let done = planned.checkpoint.watched_writing(job, write);
    let changed = match &done {
        Ok((summary, _)) => summary.manifest_sha256 != old.manifest_sha256(),
        Err(_) => false,
    };
    if !changed {
        // the same manifest, so the same bytes: the folder that is there stays
        output.abandon(&[]);
        let (summary, new) = done?;
        return Ok(report(old, &summary, &new));
    }
    let (summary, new) = close(output, done, |_: &StepError| Leave::Nothing)?;
    Ok(report(old, &summary, &new))
}

/// The options that the pack was written with.
pub(super) fn settings_of(
    manifest: &Manifest,
    mut tolerate: ScanOptions,
    jobs: usize,
) -> PackSettings {
    let options = &manifest.options;
    tolerate.config = tolerate.config.or_else(|| options.config.clone());
    tolerate.family = tolerate.family.or_else(|| options.known_family());
    PackSettings {
        selection: Selection {
            include: options.include.clone(),
            exclude: options.exclude.clone(),
        },
        coding: Coding::of(options.codec, options.level),
        part: None,
        jobs,
        resume: true,
        force: false,
        in_place: false,
        consume: false,
        source_digests: options.source_digests,
        sums: options.sums,
        provenance: manifest.provenance.is_some(),
        space_check: true,
        fetch: FetchSettings::default(),
        scan: tolerate,
    }
}

/// What stays has to be what the manifest says.
fn refuse_damaged(folder: &Path, job: Job<'_>) -> Result<(), StepError> {
    let mut settings = VerifySettings::new(VerifyMode::Full, job.threads);
    settings.allow_unaudited = true;
    let report = verify(folder, &settings, job.stop, job.progress)?;
    if report.ok {
        return Ok(());
    }
    let what = format!("{}: damaged; nothing was updated", folder.display());
    let findings = report.findings;
    Err(StepError::Findings { what, findings })
}

/// Builds the new pack beside the old one, from which it takes over what stays the same.
pub(super) fn build(
    output: &OutputFolder,
    old: &Pack,
    planned: &Planned,
    settings: &PackSettings,
    job: Job<'_>,
) -> Result<(PackSummary, Manifest), StepError> {
    let target = Target {
        resume: true,
        force: false,
        in_place: false,
        consume: false,
        elsewhere: None,
        job,
    };
    let read = |tensor: &PlannedTensor, range: Range<u64>, to: &mut [u8]| {
        read_tensor(&planned.checkpoint, tensor, range, to)
    };
    let space = Space::new(&planned.plan, settings.coding, &read, true, job);
    let share = Share::of(planned, settings);
    let work = Work {
        planned,
        settings,
        target: &target,
        output,
        job,
        proof: Proof::new(&planned.plan),
        share: &share,
        space: &space,
    };
    let (shards, warnings) = work.digest_shards()?;
    let unchanged = Unchanged::new(old, planned, by_name(planned, &shards));
    let mut records = vec![Record::Begun];
    for pack in &planned.plan.packs {
        let Some(written) = unchanged.written(pack)? else {
            continue;
        };
        output.keep(old.folder(), &pack.path)?;
        records.push(Record::Pack {
            path: pack.path.clone(),
            written,
            warnings: of_pack(&warnings, pack),
        });
    }
    if settings.source_digests {
        let shards = shards.into_iter();
        records.extend(shards.map(|(path, digests)| Record::Shard { path, digests }));
    }
    // from here on it is a run of `pack` that goes on
    let journal = output.control(JOURNAL);
    drop(Journal::begin(
        &journal,
        work.fingerprint()?,
        &records,
        false,
    )?);
    let summary = work.run()?;
    let manifest = Pack::open(output.path())?.manifest().clone();
    Ok((summary, manifest))
}

impl Work<'_> {
    /// Reads every shard as a whole, and compares it with what the hub publishes. The findings are
    /// remarks on the values.
    fn digest_shards(&self) -> Result<(BTreeMap<String, ShardDigests>, Vec<Finding>), StepError> {
        let shards = &self.planned.checkpoint.shards;
        let bytes = shards.iter().map(|s| s.shard.input.length()).sum();
        self.job.progress.start("reading the checkpoint", bytes);
        let packs = self.planned.plan.packs.iter();
        let tensors: Vec<_> = packs
            .flat_map(|p| &p.segments)
            .flat_map(|s| &s.tensors)
            .collect();
        let found = Mutex::new((BTreeMap::new(), Vec::new()));
        let done = run_tasks(
            self.job.threads,
            shards,
            || Ok::<_, StepError>(vec![0; READ_BYTES]),
            |buffer, shard| {
                let of_shard = tensors.iter().filter(|t| t.source.file == shard.path);
                let mut values = ShardValues::new(of_shard.copied().collect());
                let (_, digests) = self.digest(shard, buffer, &mut |piece| values.take(piece))?;
                compare_with_hub(&shard.path, shard.hub_sha256, digests.sha256)?;
                let mut found = lock(&found);
                found.0.insert(shard.path.clone(), digests);
                found.1.extend(values.warnings());
                Ok(())
            },
        );
        self.job.progress.finish();
        done?;
        Ok(into_inner(found))
    }
}

/// The findings on tensors of a pack.
fn of_pack(findings: &[Finding], pack: &PlannedPack) -> Vec<Finding> {
    let tensors = pack.segments.iter().flat_map(|s| &s.tensors);
    let names: BTreeSet<&str> = tensors.map(|t| t.name.as_str()).collect();
    let is_of_pack = |f: &&Finding| f.tensor.as_deref().is_some_and(|t| names.contains(t));
    findings.iter().filter(is_of_pack).cloned().collect()
}

/// The digests of the planned tensors by name, given those of the shards.
fn by_name<'a>(
    planned: &'a Planned,
    shards: &BTreeMap<String, ShardDigests>,
) -> HashMap<&'a str, Sha256> {
    let mut tensors: HashMap<&str, Vec<&PlannedTensor>> = HashMap::new();
    let packs = planned.plan.packs.iter();
    for tensor in packs.flat_map(|p| &p.segments).flat_map(|s| &s.tensors) {
        tensors.entry(&tensor.source.file).or_default().push(tensor);
    }
    let mut found = HashMap::new();
    for (shard, mut tensors) in tensors {
        // the order in which a shard's digests are listed, without those that have no bytes
        tensors.sort_by_key(|t| t.source.offset);
        let (empty, tensors): (Vec<_>, Vec<_>) =
            tensors.into_iter().partition(|t| t.source.length == 0);
        found.extend(empty.iter().map(|t| (t.name.as_str(), Sha256::of(&[]))));
        let digests = shards.get(shard).into_iter().flat_map(|d| &d.tensors);
        found.extend(
            tensors
                .iter()
                .map(|t| t.name.as_str())
                .zip(digests.copied()),
        );
    }
    found
}

/// Finds the packs that stay as they are.
struct Unchanged<'a> {
    old: &'a Pack,
    packs: HashMap<&'a str, &'a PackEntry>,
    /// Segments and their tensors by pack.
    segments: HashMap<&'a str, Vec<(&'a SegmentEntry, &'a [TensorEntry])>>,
    /// Digests of the checkpoint's tensors.
    digests: HashMap<&'a str, Sha256>,
    /// What this build would write with the same bytes: coders may change between versions.
    same_coder: bool,
}

impl<'a> Unchanged<'a> {
    fn new(old: &'a Pack, planned: &Planned, digests: HashMap<&'a str, Sha256>) -> Self {
        let manifest = old.manifest();
        let mut segments: HashMap<&str, Vec<_>> = HashMap::new();
        let with_tensors = manifest.segments.iter().zip(manifest.tensors_of_segments());
        for (segment, tensors) in with_tensors {
            let of_pack = segments.entry(&segment.pack).or_default();
            of_pack.push((segment, tensors));
        }
        let packs = manifest.packs.iter().map(|p| (p.path.as_str(), p));
        Self {
            old,
            packs: packs.collect(),
            segments,
            digests,
            same_coder: planned.plan.codec == Codec::Raw || manifest.generator == GENERATOR,
        }
    }

    /// What was written of a planned pack before, where writing it now would give the same bytes.
    fn written(&self, planned: &PlannedPack) -> Result<Option<WrittenPack>, FormatError> {
        let (Some(entry), Some(segments)) = (
            self.packs.get(planned.path.as_str()),
            self.segments.get(planned.path.as_str()),
        ) else {
            return Ok(None);
        };
        let same = self.same_coder
            && entry.component == planned.component
            && entry.data_offset == planned.data_offset
            && self.are_same(planned, segments);
        if !same || !self.has_header(planned)? {
            return Ok(None);
        }
        let tensors = segments.iter().flat_map(|(_, tensors)| *tensors);
        Ok(Some(WrittenPack {
            length: entry.length,
            sha256: entry.sha256,
            segments: segments.iter().map(|(s, _)| s.stored()).collect(),
            tensors: tensors.map(|t| t.sha256).collect(),
        }))
    }

    /// Whether segments and tensors are the planned ones, with the checkpoint's digests.
    fn are_same(
        &self,
        planned: &PlannedPack,
        segments: &[(&SegmentEntry, &[TensorEntry])],
    ) -> bool {
        let same_tensor = |(new, old): (&PlannedTensor, &TensorEntry)| {
            (&new.name, new.dtype, &new.shape) == (&old.name, old.dtype, &old.shape)
                && self.digests.get(new.name.as_str()) == Some(&old.sha256)
        };
        planned.segments.len() == segments.len()
            && planned
                .segments
                .iter()
                .zip(segments)
                .all(|(new, (old, tensors))| {
                    new.id == old.id
                        && new.tensors.len() == tensors.len()
                        && new.tensors.iter().zip(*tensors).all(same_tensor)
                })
    }

    /// Whether a raw pack begins with the header that this build writes.
    fn has_header(&self, planned: &PlannedPack) -> Result<bool, FormatError> {
        if self.old.manifest().options.codec != Codec::Raw {
            return Ok(true);
        }
        let wanted = raw_header(&planned.specs());
        let input = self.old.open_file(&planned.path)?;
        let length = (wanted.len() as u64).min(input.length());
        Ok(input.read_range(0..length)? == wanted)
    }
}

fn report(old: &Pack, summary: &PackSummary, new: &Manifest) -> UpdateReport {
    let before = old.manifest();
    let digests: HashMap<&str, Sha256> = before
        .packs
        .iter()
        .map(|p| (p.path.as_str(), p.sha256))
        .collect();
    let is_kept = |p: &&PackEntry| digests.get(p.path.as_str()) == Some(&p.sha256);
    let (kept, written): (Vec<_>, Vec<_>) = new.packs.iter().partition(is_kept);
    let now: BTreeSet<&str> = new.packs.iter().map(|p| p.path.as_str()).collect();
    let removed = before
        .packs
        .iter()
        .filter(|p| !now.contains(p.path.as_str()));
    UpdateReport {
        format_version: UpdateReport::VERSION,
        generator: GENERATOR.to_owned(),
        before_sha256: old.manifest_sha256(),
        manifest_sha256: summary.manifest_sha256,
        changed: summary.manifest_sha256 != old.manifest_sha256(),
        kept_packs: kept.len() as u64,
        written_packs: written.into_iter().map(|p| p.path.clone()).collect(),
        removed_packs: removed.map(|p| p.path.clone()).collect(),
        files: files(before, new),
        warnings: summary.warnings.clone(),
    }
}

/// The files of the checkpoint that are not what they were.
fn files(before: &Manifest, new: &Manifest) -> Vec<DiffFile> {
    let by_path = |m: &Manifest| -> BTreeMap<String, SourceFile> {
        let files = m.source_files.iter();
        files.map(|f| (f.path.clone(), f.clone())).collect()
    };
    let (a, b) = (by_path(before), by_path(new));
    let paths: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    let differ = paths.into_iter().filter(|path| {
        let of = |f: Option<&SourceFile>| f.map(|f| (f.length, f.sha256, f.stored_sha256));
        of(a.get(*path)) != of(b.get(*path))
    });
    let file = differ.map(|path| {
        let length = |files: &BTreeMap<String, SourceFile>| files.get(path).map(|f| f.length);
        DiffFile::new(path, length(&a), length(&b))
    });
    file.collect()
}
