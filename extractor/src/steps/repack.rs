//! `repack`: the same pack under another codec, without the checkpoint.
//!
//! The result is, byte for byte, what packing the checkpoint with that codec would have written.

use std::collections::BTreeSet;
use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use segpack_formats::FormatError;
use segpack_formats::codec::{Codec, Coding};
use segpack_formats::digest::{Sha256, Sha256Hasher};
use segpack_formats::io::{CancelToken, READ_BYTES, ReadAt, write_all_at};
use segpack_formats::pack::{
    SegmentReader, TensorSource, Unpacker, WrittenPack, data_start, write_pack,
};
use segpack_manifests::Pack;
use segpack_manifests::derive::newest_writer;
use segpack_manifests::documents::{
    Finding, FindingKind, GENERATOR, Manifest, PackOptions, PackSummary, Plan, PlannedPack,
    PlannedSegment, PlannedTensor, SegmentEntry, SourceFile, TensorEntry, VerifyMode, VerifyReport,
};
use segpack_manifests::folder::{MANIFEST, PackReader};

use super::StepError;
use super::derivation::refuse_underived;
use super::verify::{VerifySettings, verify, verify_at};
use crate::output::{
    Before, Flushing, Journal, OutputFolder, Publisher, Record, discard, inspect,
    is_being_replaced, recover, refuse_overlap,
};
use crate::pack_writer::{
    self, Done, PackWriterError, Recorder, Space, Target, add_estimate, add_pack, memory_of,
    summarise,
};
use crate::work::{Job, Progress, jobs_within_memory, run_tasks};

/// How to repack.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RepackSettings {
    /// How segments will be coded.
    pub coding: Coding,
    /// Threads.
    pub jobs: usize,
    /// Go on where an interrupted run stopped.
    pub resume: bool,
    /// Replace an existing pack.
    pub force: bool,
    /// Remove the pack that is replaced before the new one is written: for a disk that has no space
    /// for both. The source is read and its digests are compared before.
    pub in_place: bool,
    /// Refuse what the disk cannot hold.
    pub space_check: bool,
}

impl RepackSettings {
    /// The options of the pack that will be written.
    fn recorded(&self, before: &PackOptions) -> PackOptions {
        PackOptions {
            codec: self.coding.codec(),
            level: self.coding.level(),
            ..before.clone()
        }
    }
}

/// What would be written, and what coding will make of it, from a sample.
///
/// # Errors
/// Where the sample cannot be read or decoded.
pub(crate) fn plan(
    pack: &Pack,
    settings: &RepackSettings,
    stop: &CancelToken,
    progress: &dyn Progress,
) -> Result<Plan, StepError> {
    let mut plan = plan_of(pack.manifest(), settings.coding);
    let job = Job {
        threads: settings.jobs,
        stop,
        progress,
    };
    let reader = PackReader::new(pack);
    let read = tensor_reader(&reader, stop);
    add_estimate(&mut plan, settings.coding, &read, job)?;
    Ok(plan)
}

/// What reads planned tensors of a pack.
fn tensor_reader<'r>(
    reader: &'r PackReader<'_>,
    stop: &'r CancelToken,
) -> impl Fn(&PlannedTensor, Range<u64>, &mut [u8]) -> Result<(), FormatError> + Sync + 'r {
    move |tensor, range, to| read_tensor(reader, tensor, range, to, stop)
}

/// Reads decoded bytes of a planned tensor, counted from its first.
fn read_tensor(
    reader: &PackReader<'_>,
    tensor: &PlannedTensor,
    range: Range<u64>,
    to: &mut [u8],
    stop: &CancelToken,
) -> Result<(), FormatError> {
    let pack = reader.pack();
    let entry = pack.tensor(&tensor.name);
    let Some((entry, segment)) = entry.and_then(|t| Some((t, pack.segment(&t.segment)?))) else {
        let what = format!("{:?} is not listed", tensor.name);
        return Err(FormatError::malformed(pack.folder(), what));
    };
    let input = reader.open(&segment.pack)?;
    let segment = SegmentReader::open(&*input, segment.stored())?;
    let (mut unpacker, mut filled) = (Unpacker::new()?, 0);
    let wanted = entry.offset + range.start..entry.offset + range.end;
    segment.for_each_piece(wanted, &mut unpacker, stop, |piece| {
        to[filled..filled + piece.len()].copy_from_slice(piece);
        filled += piece.len();
        Ok::<_, FormatError>(())
    })
}

fn plan_segment(segment: &SegmentEntry, tensors: &[TensorEntry]) -> PlannedSegment {
    PlannedSegment {
        id: segment.id.clone(),
        raw_length: segment.raw_length,
        tensors: tensors.iter().map(plan_tensor).collect(),
    }
}

fn plan_tensor(t: &TensorEntry) -> PlannedTensor {
    PlannedTensor {
        name: t.name.clone(),
        dtype: t.dtype,
        shape: t.shape.clone(),
        role: t.role,
        part: t.part,
        layer: t.layer,
        expert: t.expert,
        source: t.source.clone(),
    }
}

fn plan_of(manifest: &Manifest, coding: Coding) -> Plan {
    let segments: Vec<_> = manifest
        .segments
        .iter()
        .zip(manifest.tensors_of_segments())
        .collect();
    let packs = manifest.packs.iter().map(|entry| {
        let mut pack = PlannedPack {
            path: entry.path.clone(),
            component: entry.component,
            data_offset: 0,
            length: 0,
            estimated_length: None,
            segments: segments
                .iter()
                .filter(|(s, _)| s.pack == entry.path)
                .map(|(s, tensors)| plan_segment(s, tensors))
                .collect(),
        };
        pack.data_offset = data_start(&pack.specs(), coding.codec());
        pack.length = pack.data_offset.saturating_add(pack.raw_length());
        pack
    });
    Plan {
        format_version: Plan::VERSION,
        generator: GENERATOR.to_owned(),
        codec: coding.codec(),
        excluded: manifest.excluded.clone(),
        left_out: manifest.left_out.clone(),
        packs: packs.collect(),
        estimate: None,
        consume: None,
    }
}

/// Writes a pack under another codec into `out`.
///
/// # Errors
/// `Findings` where a tensor or a kept file is not what the manifest says: then nothing is left.
/// `Output` where the output exists, lies inside the pack (or the reverse) or does not fit. After
/// any other error `resume` goes on.
pub(crate) fn repack(
    pack: &Pack,
    out: &Path,
    settings: &RepackSettings,
    stop: &CancelToken,
    progress: &dyn Progress,
) -> Result<PackSummary, StepError> {
    refuse_overlap(out, pack)?;
    let plan = plan_of(pack.manifest(), settings.coding);
    let target = Target {
        resume: settings.resume,
        force: settings.force,
        in_place: settings.in_place,
        consume: false,
        elsewhere: None,
        job: Job {
            threads: settings.jobs,
            stop,
            progress,
        },
    };
    let reader = PackReader::new(pack);
    let read = tensor_reader(&reader, stop);
    let space = Space::new(
        &plan,
        settings.coding,
        &read,
        settings.space_check,
        target.job,
    );
    let work = Work {
        pack,
        plan: &plan,
        settings,
        target: &target,
        space: &space,
    };
    refuse_underived(pack, "nothing was written")?;
    match work.finished_before(out) {
        Ok(Some(summary)) => return Ok(summary),
        Ok(None) => {}
        // it is to be replaced
        Err(e) if settings.force && e.is_other_pack() => {}
        Err(e) => return Err(e),
    }
    if settings.in_place && out.join(MANIFEST).exists() {
        progress.note(pack_writer::IN_PLACE);
        work.check_source()?;
    }
    let nothing = Done::default();
    let output = target.open(out, &work.files(), &|freed| {
        space.check(out, freed, &|lengths| work.needed_space(&nothing, lengths))
    })?;
    let done = work.run(&output);
    pack_writer::close(output, done, StepError::leave)
}

/// One run of `repack`.
struct Work<'a> {
    pack: &'a Pack,
    plan: &'a Plan,
    settings: &'a RepackSettings,
    target: &'a Target<'a>,
    space: &'a Space<'a>,
}

/// One entry of the queue.
enum Task<'a> {
    /// Its number in the plan, too.
    Pack(usize, &'a PlannedPack),
    File(&'a SourceFile),
}

impl Task<'_> {
    /// Bytes that it reads.
    fn bytes(&self) -> u64 {
        match self {
            Self::Pack(_, pack) => pack.raw_length(),
            Self::File(file) => file.stored_length,
        }
    }
}

impl Work<'_> {
    /// Every file that the new pack has but for its documents.
    fn files(&self) -> BTreeSet<String> {
        self.pack
            .manifest()
            .files()
            .into_iter()
            .map(|(path, ..)| path.to_owned())
            .collect()
    }

    /// Every file that is written but for the documents, with its length; a coded pack may be as short
    /// as can be.
    fn planned_files(&self) -> impl Iterator<Item = (&str, u64)> {
        let is_raw = self.settings.coding.codec() == Codec::Raw;
        let packs = self.plan.packs.iter();
        let packs = packs.map(move |p| (p.path.as_str(), if is_raw { p.length } else { 0 }));
        let files = self.pack.manifest().source_files.iter();
        packs.chain(files.map(|f| (f.stored_as.as_str(), f.stored_length)))
    }

    /// What is needed where the packs have these lengths; the manifest is about as long as the old
    /// one.
    fn needed_space(&self, done: &Done, lengths: &[u64]) -> u64 {
        let manifest = self.pack.manifest();
        let packs: u64 = self
            .plan
            .packs
            .iter()
            .zip(lengths)
            .filter(|(p, _)| !done.has_pack(&p.path))
            .map(|(_, length)| length)
            .sum();
        let files: u64 = manifest.source_files.iter().map(|f| f.stored_length).sum();
        let document = self.pack.files().length(MANIFEST).ok().flatten();
        packs + files + 2 * document.unwrap_or_default()
    }

    /// Verifies all that will be repacked: what it replaces will be gone when it is.
    fn check_source(&self) -> Result<(), StepError> {
        let settings = VerifySettings::new(VerifyMode::Full, self.settings.jobs);
        let (files, job) = (Arc::clone(self.pack.files()), self.target.job);
        let report = verify_at(files, &settings, job.stop, job.progress)?;
        self.refuse_damaged(if report.ok {
            Vec::new()
        } else {
            report.findings
        })
    }

    fn verify(&self, folder: &Path) -> Result<VerifyReport, StepError> {
        let settings = VerifySettings::new(VerifyMode::Full, self.settings.jobs);
        let job = self.target.job;
        verify(folder, &settings, job.stop, job.progress)
    }

    /// With `resume`, a pack that is complete already. It has to be intact and of the same tensors.
    fn finished_before(&self, out: &Path) -> Result<Option<PackSummary>, StepError> {
        if self.settings.resume {
            recover(out, true)?;
        }
        // what goes on is a replacement of the pack that is there
        let replaces = self.settings.force && is_being_replaced(out);
        if !self.settings.resume || replaces || !out.join(MANIFEST).exists() {
            return Ok(None);
        }
        if inspect(out)? == Before::Unfinished {
            // killed between its last two steps
            pack_writer::check_ours(out, &self.files())?;
            OutputFolder::open(out)?.finish()?;
        }
        let found = Pack::open(out)?;
        let (seen, before) = (found.manifest(), self.pack.manifest());
        let folder = || out.to_owned();
        if seen.options != self.settings.recorded(&before.options)
            || seen.provenance != before.provenance
        {
            return Err(PackWriterError::OtherOptions { folder: folder() }.into());
        }
        if seen.tensors != before.tensors || seen.source_files != before.source_files {
            return Err(PackWriterError::OtherSource {
                folder: folder(),
                what: "pack",
                file: None,
            }
            .into());
        }
        let report = self.verify(out)?;
        if let Some(first) = report.findings.first().filter(|_| !report.ok) {
            return Err(PackWriterError::Damaged {
                folder: folder(),
                compared: false,
                first: Box::new(first.clone()),
            }
            .into());
        }
        discard(out)?;
        Ok(Some(summarise(
            seen,
            found.manifest_sha256(),
            seen.counts.packs,
            0,
            Vec::new(),
        )))
    }

    fn run(&self, output: &OutputFolder) -> Result<PackSummary, StepError> {
        let (journal, mut done, resumed) = self.target.open_journal(output, self.fingerprint())?;
        output.check_limits(self.planned_files())?;
        self.space.check(output.path(), 0, &|lengths| {
            self.needed_space(&done, lengths)
        })?;
        self.write_all(output, &journal, &mut done)?;
        let manifest = self.manifest(&done)?;
        let manifest_sha256 = pack_writer::write_documents(output, &manifest)?;
        Ok(summarise(
            &manifest,
            manifest_sha256,
            resumed,
            0,
            Vec::new(),
        ))
    }

    /// Identifies the pack and the codec: an unfinished run goes on only with the same.
    fn fingerprint(&self) -> Sha256 {
        let (identity, coding) = (self.pack.manifest_sha256(), self.settings.coding);
        Sha256::of(format!("{GENERATOR} repack {identity} {coding:?}").as_bytes())
    }

    fn write_all(
        &self,
        output: &OutputFolder,
        journal: &Journal,
        done: &mut Done,
    ) -> Result<(), StepError> {
        let files = self.pack.manifest().source_files.iter().map(Task::File);
        let packs = self
            .plan
            .packs
            .iter()
            .enumerate()
            .filter(|(_, p)| !done.has_pack(&p.path))
            .map(|(number, pack)| Task::Pack(number, pack));
        let tasks: Vec<Task<'_>> = files.chain(packs).collect();
        let bytes = tasks.iter().map(Task::bytes).sum();
        self.target.job.progress.start("repacking", bytes);
        let recorder = Recorder::new(journal, done);
        let worker = || Ok((Unpacker::new()?, vec![0; READ_BYTES]));
        let jobs = jobs_within_memory(self.target.job.threads, memory_of(self.settings.coding));
        let written = output.with_publisher(jobs, |publisher| {
            run_tasks(jobs, &tasks, worker, |worker, task| {
                self.run_task(output, task, worker, &recorder, publisher)
            })
        });
        self.target.job.progress.finish();
        written
    }

    fn run_task<'a>(
        &self,
        output: &OutputFolder,
        task: &Task<'_>,
        (unpacker, buffer): &mut (Unpacker, Vec<u8>),
        recorder: &'a Recorder<'_>,
        publisher: &Publisher<'a>,
    ) -> Result<(), StepError> {
        match task {
            Task::File(file) => self.copy_file(output, file, buffer, publisher),
            Task::Pack(number, pack) => {
                self.space.check_pack(output.path(), *number)?;
                let (file, written) = self.write_one_pack(output, pack, unpacker, publisher)?;
                // the journal must not have it before it has its name
                let then = Box::new(move || recorder.add(written));
                Ok(publisher.publish(file, pack.path.clone(), then)?)
            }
        }
    }

    fn write_one_pack(
        &self,
        output: &OutputFolder,
        planned: &PlannedPack,
        unpacker: &mut Unpacker,
        publisher: &Publisher<'_>,
    ) -> Result<(Arc<File>, Record), StepError> {
        let input = self.pack.open_file(&planned.path)?;
        let mut source = PackSource {
            input: &*input,
            pack: self.pack,
            planned,
            unpacker,
            stop: self.target.job.stop,
        };
        let (file, path) = output.create(&planned.path)?;
        let flushing = Flushing::new(publisher, &file);
        let advance = |bytes| {
            self.target.job.progress.advance(bytes);
            flushing.add(bytes);
        };
        let (coding, stop) = (self.settings.coding, self.target.job.stop);
        let written = write_pack(
            &file,
            &path,
            &planned.specs(),
            coding,
            &mut source,
            stop,
            &advance,
        )?;
        self.compare_digests(planned, &written)?;
        input.check_unchanged()?;
        Ok((
            file,
            Record::Pack {
                path: planned.path.clone(),
                written,
                warnings: Vec::new(),
            },
        ))
    }

    /// Every tensor is what the old manifest says.
    fn compare_digests(
        &self,
        planned: &PlannedPack,
        written: &WrittenPack,
    ) -> Result<(), StepError> {
        let tensors = planned
            .segments
            .iter()
            .flat_map(|s| s.tensors.iter().map(move |t| (s, t)));
        let damaged = tensors
            .zip(&written.tensors)
            .filter_map(|((segment, tensor), seen)| {
                let wanted = self.pack.tensor(&tensor.name)?.sha256;
                let finding = Finding::new(FindingKind::DamagedTensor)
                    .file(&planned.path)
                    .segment(&segment.id);
                let finding = finding
                    .tensor(&tensor.name)
                    .seen(format!("SHA-256 {seen}"))
                    .wanted(wanted);
                (wanted != *seen).then_some(finding)
            });
        self.refuse_damaged(damaged.collect())
    }

    fn refuse_damaged(&self, findings: Vec<Finding>) -> Result<(), StepError> {
        if findings.is_empty() {
            return Ok(());
        }
        let what = format!(
            "{}: damaged; nothing was written",
            self.pack.folder().display()
        );
        Err(StepError::Findings { what, findings })
    }

    fn copy_file(
        &self,
        output: &OutputFolder,
        listed: &SourceFile,
        buffer: &mut [u8],
        publisher: &Publisher<'_>,
    ) -> Result<(), StepError> {
        let input = self.pack.open_file(&listed.stored_as)?;
        let (file, path) = output.create(&listed.stored_as)?;
        let (mut sha256, mut at) = (Sha256Hasher::default(), 0);
        input.for_each_piece(0..input.length(), buffer, self.target.job.stop, |piece| {
            sha256.update(piece);
            write_all_at(&file, piece, at).map_err(FormatError::io("write", &path))?;
            at += piece.len() as u64;
            self.target.job.progress.advance(piece.len() as u64);
            Ok::<_, FormatError>(())
        })?;
        let seen = sha256.finish();
        if seen != listed.stored_sha256 {
            let finding = Finding::new(FindingKind::DamagedFile).file(&listed.stored_as);
            let finding = finding
                .seen(format!("SHA-256 {seen}"))
                .wanted(listed.stored_sha256);
            self.refuse_damaged(vec![finding])?;
        }
        publisher.publish(file, listed.stored_as.clone(), Box::new(|| Ok(())))?;
        Ok(())
    }

    fn manifest(&self, done: &Done) -> Result<Manifest, StepError> {
        let before = self.pack.manifest();
        let mut manifest = Manifest {
            format_version: Manifest::VERSION,
            generator: newest_writer(&before.generator).to_owned(),
            options: self.settings.recorded(&before.options),
            packs: Vec::new(),
            segments: Vec::new(),
            tensors: Vec::new(),
            ..before.clone()
        };
        for planned in &self.plan.packs {
            add_pack(&mut manifest, planned, done.written(&planned.path)?);
        }
        manifest.counts = manifest.count();
        Ok(manifest)
    }
}

/// Reads the tensors of one pack, decoded.
struct PackSource<'a> {
    input: &'a dyn ReadAt,
    pack: &'a Pack,
    planned: &'a PlannedPack,
    unpacker: &'a mut Unpacker,
    stop: &'a CancelToken,
}

impl TensorSource for PackSource<'_> {
    fn read(
        &mut self,
        segment: usize,
        tensor: usize,
        take: &mut dyn FnMut(&[u8]) -> Result<(), FormatError>,
    ) -> Result<(), FormatError> {
        let planned = &self.planned.segments[segment];
        let name = &planned.tensors[tensor].name;
        let (Some(entry), Some(tensor)) = (self.pack.segment(&planned.id), self.pack.tensor(name))
        else {
            return Err(FormatError::malformed(
                self.input.name(),
                format!("{name:?} is not listed"),
            ));
        };
        let reader = SegmentReader::open(self.input, entry.stored())?;
        reader.for_each_piece(
            tensor.offset..tensor.offset + tensor.length,
            self.unpacker,
            self.stop,
            take,
        )
    }
}
