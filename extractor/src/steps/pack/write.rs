//! The writing itself: packs, shard digests and side files as tasks of one queue, and the manifest
//! of it all.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs::File;
use std::sync::Arc;

use segpack_formats::FormatError;
use segpack_formats::codec::Coding;
use segpack_formats::digest::{Sha256, Sha256Hasher};
use segpack_formats::io::{READ_BYTES, ReadAt, write_all_at};
use segpack_formats::pack::{WrittenPack, write_pack, write_raw_pack};
use segpack_manifests::documents::{
    Counts, Finding, FindingKind, GENERATOR, Manifest, ModelFacts, PartManifest, PlannedPack,
    SideFile, SourceFile, SourceFileKind,
};
use segpack_manifests::families::FamilyName;
use segpack_manifests::folder::{SHARD_HEADERS, SOURCE};

use super::proof::{ShardHasher, same_as_parsed, same_header};
use super::source::ShardSource;
use super::{Planned, Work, shard_numbers};
use crate::output::{
    Elsewhere, Flushing, Journal, OutputError, Publisher, Record, ShardDigests, write_behind,
};
use crate::pack_writer::{
    Done, PackWriterError, Recorder, add_pack, documents, memory_of, write_documents,
    write_part_documents,
};
use crate::source::CheckpointShard;
use crate::steps::StepError;
use crate::work::{Job, jobs_within_memory, run_tasks};

/// One entry of the queue.
pub(super) enum Task<'a> {
    /// Reads a source shard as a whole: the second read of its bytes, queued beside the first so
    /// that the page cache serves one of them.
    Digest(&'a CheckpointShard),
    /// Writes a pack; its number in the plan.
    Pack(usize, &'a PlannedPack),
    /// Copies a side file.
    File(&'a SideFile),
}

/// Tasks that are done together, and the shards that can be removed then.
#[derive(Default)]
pub(super) struct Group<'a> {
    pub tasks: Vec<Task<'a>>,
    /// Numbers of shards.
    pub frees: Vec<usize>,
    /// Numbers of the packs with bytes of those shards.
    pub holds: BTreeSet<usize>,
}

/// Where a side file lies in the pack folder.
fn stored_file(path: &str) -> String {
    format!("{SOURCE}/{path}")
}

/// Where a shard's header lies in the pack folder.
pub(super) fn stored_header(path: &str) -> String {
    format!("{SOURCE}/{SHARD_HEADERS}/{path}.header")
}

/// Every file that packing this checkpoint puts into `packs/` and `source/`.
pub(super) fn planned_files(planned: &Planned) -> BTreeSet<String> {
    let Planned {
        checkpoint, plan, ..
    } = planned;
    let packs = plan.packs.iter().map(|p| p.path.clone());
    let headers = checkpoint.shards.iter().map(|s| stored_header(&s.path));
    packs
        .chain(headers)
        .chain(checkpoint.files.iter().map(|f| stored_file(&f.path)))
        .collect()
}

impl Work<'_> {
    /// Does every task that is not done.
    pub(super) fn write_all(&self, journal: &Journal, done: &mut Done) -> Result<(), StepError> {
        self.refuse_lost(done)?;
        self.write_headers(done)?;
        #[cfg(feature = "remote")]
        if super::is_remote(self.planned) {
            return self.write_arriving(&Recorder::new(journal, done));
        }
        let groups = if self.settings.consume {
            self.planned.checkpoint.remove_dangling_links()?;
            self.consuming_groups(done)
        } else {
            vec![Group {
                tasks: self.tasks(done),
                ..Group::default()
            }]
        };
        self.job
            .progress
            .start("packing", groups.iter().map(|g| self.group_bytes(g)).sum());
        let written = self.write_groups(&groups, &Recorder::new(journal, done));
        self.job.progress.finish();
        written
    }

    /// Does the tasks of each group, then removes the shards that it frees.
    fn write_groups(&self, groups: &[Group<'_>], recorder: &Recorder<'_>) -> Result<(), StepError> {
        let mut checked = BTreeSet::new();
        for group in groups {
            self.run_all(&group.tasks, recorder)?;
            self.remove_shards(group, &mut checked, recorder)?;
        }
        Ok(())
    }

    /// Does these tasks, several at a time.
    fn run_all(&self, tasks: &[Task<'_>], recorder: &Recorder<'_>) -> Result<(), StepError> {
        let buffer = || Ok(vec![0; READ_BYTES]);
        let jobs = jobs_within_memory(self.job.threads, memory_of(self.settings.coding));
        // what waits to be sent takes space
        let queue = self.target.elsewhere.map_or(jobs, |_| 1);
        self.output.with_publisher(queue, |publisher| {
            run_tasks(jobs, tasks, buffer, |buffer, task| {
                self.run_task(task, buffer, recorder, publisher)
            })
        })
    }

    /// Does these tasks as a phase of their own.
    #[cfg(feature = "remote")]
    pub(super) fn run_group(
        &self,
        tasks: &[Task<'_>],
        recorder: &Recorder<'_>,
    ) -> Result<(), StepError> {
        if tasks.is_empty() {
            return Ok(());
        }
        let bytes = tasks.iter().map(task_bytes).sum();
        self.job.progress.start("packing", bytes);
        let done = self.run_all(tasks, recorder);
        self.job.progress.finish();
        done
    }

    /// Bytes that a group reads; a pack is read back where shards are removed.
    fn group_bytes(&self, group: &Group<'_>) -> u64 {
        let passes = |task: &Task<'_>| match task {
            Task::Pack(..) if self.settings.consume => 2,
            Task::Pack(..) | Task::Digest(_) | Task::File(_) => 1,
        };
        let tasks = group.tasks.iter();
        tasks.map(|task| task_bytes(task) * passes(task)).sum()
    }

    /// Every shard is digested next to the first pack that needs it.
    fn tasks(&self, done: &Done) -> Vec<Task<'_>> {
        let Planned {
            checkpoint, plan, ..
        } = self.planned;
        let numbers = shard_numbers(checkpoint);
        let mut tasks: Vec<Task<'_>> = checkpoint.files.iter().map(Task::File).collect();
        let mut queued = HashSet::new();
        let packs = plan.packs.iter().enumerate();
        for (number, pack) in packs.filter(|(_, pack)| self.share.takes(&pack.path)) {
            let mut needed: Vec<usize> = pack
                .segments
                .iter()
                .flat_map(|s| &s.tensors)
                .filter_map(|t| numbers.get(t.source.file.as_str()).copied())
                .filter(|&n| queued.insert(n))
                .collect();
            needed.sort_unstable();
            let shards = needed.into_iter().map(|n| &checkpoint.shards[n]);
            if self.settings.source_digests {
                tasks.extend(
                    shards
                        .filter(|s| self.share.digests(&s.path) && done.shard(&s.path).is_none())
                        .map(Task::Digest),
                );
            }
            if !done.has_pack(&pack.path) {
                tasks.push(Task::Pack(number, pack));
            }
        }
        tasks
    }

    fn run_task<'a>(
        &'a self,
        task: &Task<'_>,
        buffer: &mut [u8],
        recorder: &'a Recorder<'_>,
        publisher: &Publisher<'a>,
    ) -> Result<(), StepError> {
        match task {
            Task::Digest(shard) => {
                let (header, digests) = self.digest(shard, buffer, &mut |_| {})?;
                compare_with_hub(&shard.path, shard.hub_sha256, digests.sha256)?;
                same_header(
                    &shard.path,
                    recorder.file(&stored_header(&shard.path))?,
                    header,
                )?;
                self.proof.shard(&shard.path, &digests)?;
                recorder.add(Record::Shard {
                    path: shard.path.clone(),
                    digests,
                })?;
            }
            Task::Pack(number, pack) => {
                self.space.check_pack(self.output.path(), *number)?;
                let (file, written, warnings) = self.write_one_pack(pack, buffer, publisher)?;
                self.proof.pack(&pack.path, &written.tensors)?;
                let record = Record::Pack {
                    path: pack.path.clone(),
                    written,
                    warnings,
                };
                // the journal must not have it before it has its name
                let path = pack.path.clone();
                let then = Box::new(move || self.sent(&path, || recorder.add(record)));
                publisher.publish(file, pack.path.clone(), then)?;
            }
            Task::File(file) => {
                let sha256 = self.copy_file(file, buffer, publisher)?;
                let parsed = self.planned.checkpoint.parsed.get(&file.path);
                same_as_parsed(&file.path, sha256, parsed.copied())?;
                compare_with_hub(&file.path, file.hub_sha256, sha256)?;
                recorder.add_file(stored_file(&file.path), sha256);
            }
        }
        Ok(())
    }

    /// Sends a finished pack to where it goes, if it does not stay; `then` says that it is there.
    fn sent(
        &self,
        path: &str,
        then: impl FnOnce() -> Result<(), OutputError>,
    ) -> Result<(), OutputError> {
        let Some(elsewhere) = self.target.elsewhere else {
            return then();
        };
        elsewhere.take(&self.output.path().join(path), path)?;
        then()?;
        self.output.remove(path)
    }

    /// Sends all other files, then the documents: what is there looks like a pack from the last one
    /// on.
    fn send_rest(
        &self,
        elsewhere: &dyn Elsewhere,
        manifest: &Manifest,
    ) -> Result<Sha256, StepError> {
        let (documents, sha256) = documents(manifest)?;
        for file in manifest.source_files.iter().map(|f| &f.stored_as) {
            elsewhere.take(&self.output.path().join(file), file)?;
        }
        for (name, bytes) in documents {
            self.job.stop.check()?;
            elsewhere.put(name, bytes)?;
        }
        Ok(sha256)
    }

    fn write_one_pack(
        &self,
        pack: &PlannedPack,
        buffer: &mut [u8],
        publisher: &Publisher<'_>,
    ) -> Result<(Arc<File>, WrittenPack, Vec<Finding>), StepError> {
        let (file, path) = self.output.create(&pack.path)?;
        let shards = shard_numbers(&self.planned.checkpoint);
        let mut source = ShardSource {
            checkpoint: &self.planned.checkpoint,
            shards: &shards,
            pack,
            stop: self.job.stop,
            buffer,
            warnings: Vec::new(),
        };
        let (specs, flushing) = (pack.specs(), Flushing::new(publisher, &file));
        let advance = |bytes| self.job.progress.advance(bytes);
        let written = match self.settings.coding {
            Coding::Raw => {
                let pack = write_behind(&file, &path, flushing, false, |behind| {
                    write_raw_pack(&path, &specs, &mut source, &advance, &mut |piece| {
                        behind.write(piece)
                    })
                });
                pack?.0
            }
            coding => write_pack(
                &file,
                &path,
                &specs,
                coding,
                &mut source,
                self.job.stop,
                &|bytes| {
                    advance(bytes);
                    flushing.add(bytes);
                },
            )?,
        };
        Ok((file, written, source.warnings))
    }

    /// Reads a shard as a whole, and shows its bytes to `look`; the digest of its header is returned
    /// by itself.
    pub(super) fn digest(
        &self,
        shard: &CheckpointShard,
        buffer: &mut [u8],
        look: &mut dyn FnMut(&[u8]),
    ) -> Result<(Sha256, ShardDigests), StepError> {
        let input = shard.bytes();
        let tensors = self.proof.ranges(&shard.path);
        let mut hasher = ShardHasher::new(shard.shard.header.data_start, tensors);
        input.for_each_piece(0..input.length(), buffer, self.job.stop, |piece| {
            hasher.take(piece);
            look(piece);
            self.job.progress.advance(piece.len() as u64);
            Ok::<_, StepError>(())
        })?;
        Ok(hasher.finish())
    }

    fn copy_file(
        &self,
        side: &SideFile,
        buffer: &mut [u8],
        publisher: &Publisher<'_>,
    ) -> Result<Sha256, StepError> {
        let input = self.planned.checkpoint.open_file_at(&side.path)?;
        let path = stored_file(&side.path);
        let (file, full) = self.output.create(&path)?;
        let flushing = Flushing::new(publisher, &file);
        let (mut sha256, mut at) = (Sha256Hasher::default(), 0);
        input.for_each_piece(0..side.length, buffer, self.job.stop, |piece| {
            sha256.update(piece);
            write_all_at(&file, piece, at).map_err(StepError::io("write", &full))?;
            at += piece.len() as u64;
            self.job.progress.advance(piece.len() as u64);
            flushing.add(piece.len() as u64);
            Ok::<_, StepError>(())
        })?;
        input.check_unchanged()?;
        if input.length() != side.length {
            let what = format!(
                "had {} bytes when it was listed, now {}",
                side.length,
                input.length()
            );
            return Err(FormatError::changed(input.name(), what).into());
        }
        publisher.publish(file, path, Box::new(|| Ok(())))?;
        Ok(sha256.finish())
    }

    /// The shards' headers: with the packs' tensors all that their files consist of.
    fn write_headers(&self, done: &mut Done) -> Result<(), StepError> {
        for shard in &self.planned.checkpoint.shards {
            let header = shard
                .shard
                .input
                .read_range(0..shard.shard.header.data_start)?;
            let path = stored_header(&shard.path);
            self.output.write_small(&path, |to| to.write_all(&header))?;
            done.add_file(path, Sha256::of(&header));
        }
        Ok(())
    }

    /// Writes the manifest of what was written, or the document of a part; returns the manifest and
    /// the digest of the file.
    pub(super) fn write_documents(&self, done: &Done) -> Result<(Manifest, Sha256), StepError> {
        let manifest = self.manifest(done)?;
        if let Some(elsewhere) = self.target.elsewhere {
            let sha256 = self.send_rest(elsewhere, &manifest)?;
            return Ok((manifest, sha256));
        }
        let read = done.shards().map(|(path, d)| (path, &*d.tensors)).collect();
        let Some(share) = self.share.document(&read) else {
            let sha256 = write_documents(self.output, &manifest)?;
            return Ok((manifest, sha256));
        };
        let part = PartManifest {
            format_version: PartManifest::VERSION,
            generator: GENERATOR.to_owned(),
            share,
            manifest,
        };
        let sha256 = write_part_documents(self.output, &part)?;
        Ok((part.manifest, sha256))
    }

    /// The manifest of what was written.
    fn manifest(&self, done: &Done) -> Result<Manifest, StepError> {
        let Planned {
            checkpoint,
            inventory,
            plan,
            graft,
        } = self.planned;
        let family = inventory.family.and_then(FamilyName::family);
        let mut manifest = Manifest {
            format_version: Manifest::VERSION,
            generator: GENERATOR.to_owned(),
            provenance: self
                .settings
                .provenance
                .then(|| checkpoint.provenance.clone()),
            graft: graft.clone(),
            known: self.known_source(done),
            model: ModelFacts::of_config(family, checkpoint.config.as_ref()),
            options: self.settings.recorded(),
            counts: Counts::default(),
            excluded: plan.excluded.clone(),
            left_out: plan.left_out.clone(),
            source_files: self.source_files(done)?,
            packs: Vec::new(),
            segments: Vec::new(),
            tensors: Vec::new(),
        };
        for pack in self.own_packs() {
            add_pack(&mut manifest, pack, done.written(&pack.path)?);
        }
        manifest.counts = manifest.count();
        Ok(manifest)
    }

    /// The packs of the plan that this run writes.
    fn own_packs(&self) -> impl Iterator<Item = &PlannedPack> {
        let packs = self.planned.plan.packs.iter();
        packs.filter(|pack| self.share.takes(&pack.path))
    }

    fn source_files(&self, done: &Done) -> Result<Vec<SourceFile>, StepError> {
        let checkpoint = &self.planned.checkpoint;
        let mut packed: BTreeMap<&str, u64> = BTreeMap::new();
        let segments = self.own_packs().flat_map(|p| &p.segments);
        for t in segments.flat_map(|s| &s.tensors) {
            *packed.entry(&t.source.file).or_default() += t.source.length;
        }
        let mut files = Vec::with_capacity(checkpoint.shards.len() + checkpoint.files.len());
        for shard in &checkpoint.shards {
            let packed = packed.get(shard.path.as_str()).copied().unwrap_or(0);
            let digests = done.shard(&shard.path);
            let own = digests.filter(|_| self.share.digests(&shard.path));
            files.push(shard_entry(shard, packed, own, done)?);
        }
        for file in &checkpoint.files {
            files.push(side_file_entry(file, done)?);
        }
        files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(files)
    }
}

/// What the manifest lists of a shard, `packed` bytes of which went into packs.
fn shard_entry(
    shard: &CheckpointShard,
    packed: u64,
    digests: Option<&ShardDigests>,
    done: &Done,
) -> Result<SourceFile, PackWriterError> {
    let stored_as = stored_header(&shard.path);
    let (length, header) = (shard.shard.input.length(), shard.shard.header.data_start);
    Ok(SourceFile {
        path: shard.path.clone(),
        kind: SourceFileKind::Shard,
        length,
        sha256: digests.map(|d| d.sha256),
        stored_sha256: done.file(&stored_as)?,
        stored_as,
        stored_length: header,
        excluded_bytes: length - header - packed,
        midstates: digests.map_or_else(Vec::new, |d| d.midstates.clone()),
    })
}

/// What the manifest lists of a file that is kept as it is.
fn side_file_entry(file: &SideFile, done: &Done) -> Result<SourceFile, PackWriterError> {
    let stored_as = stored_file(&file.path);
    let sha256 = done.file(&stored_as)?;
    Ok(SourceFile {
        path: file.path.clone(),
        kind: SourceFileKind::File,
        length: file.length,
        sha256: Some(sha256),
        stored_as,
        stored_length: file.length,
        stored_sha256: sha256,
        excluded_bytes: 0,
        midstates: Vec::new(),
    })
}

fn task_bytes(task: &Task<'_>) -> u64 {
    match task {
        Task::Digest(shard) => shard.shard.input.length(),
        Task::Pack(_, pack) => pack.raw_length(),
        Task::File(file) => file.length,
    }
}

/// The SHA-256 of a whole file.
pub(super) fn digest(
    input: &dyn ReadAt,
    buffer: &mut [u8],
    job: Job<'_>,
) -> Result<Sha256, StepError> {
    let mut sha256 = Sha256Hasher::default();
    input.for_each_piece(0..input.length(), buffer, job.stop, |piece| {
        sha256.update(piece);
        job.progress.advance(piece.len() as u64);
        Ok::<_, StepError>(())
    })?;
    Ok(sha256.finish())
}

/// Refuses a file that is not what the hub publishes.
pub(super) fn compare_with_hub(
    path: &str,
    published: Option<Sha256>,
    seen: Sha256,
) -> Result<(), StepError> {
    match published.filter(|p| *p != seen) {
        None => Ok(()),
        Some(published) => {
            let finding = Finding::new(FindingKind::DiffersFromHub)
                .file(path)
                .seen(format!("SHA-256 {seen}"));
            let wanted = format!("{published}, as the hub publishes");
            Err(StepError::Findings {
                what: "the checkpoint is not what the hub publishes; nothing was packed".to_owned(),
                findings: vec![finding.wanted(wanted)],
            })
        }
    }
}
