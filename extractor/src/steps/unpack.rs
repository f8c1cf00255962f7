//! `unpack`: the checkpoint's files again, byte for byte, checked while they are written. All of
//! them appear, or none.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use globset::{Glob, GlobSet, GlobSetBuilder};
use segpack_formats::FormatError;
use segpack_formats::codec::MAX_CHUNK_BYTES;
use segpack_formats::digest::{Sha256, Sha256Hasher};
use segpack_formats::io::{CancelToken, InputFile, READ_BYTES};
use segpack_manifests::Pack;
use segpack_manifests::documents::{
    Finding, FindingKind, GENERATOR, Manifest, SourceFile, SourceFileKind, TensorEntry,
    UnpackSummary, UnrestorableFile,
};
use segpack_manifests::{PackCursor, PackReader};

use super::StepError;
use crate::output::{
    Flushing, OutputError, OutputFolder, Publisher, Shape, Staging, WRITE_BEHIND_MEMORY,
    refuse_overlap, write_behind,
};
use crate::work::{Progress, jobs_within_memory, lock, run_tasks};

/// What one thread takes to decode, in bytes: a chunk as it is stored and as it was.
const MAX_DECODING: u64 = 2 * MAX_CHUNK_BYTES as u64;

/// How to unpack.
#[derive(Debug, Clone, Default)]
pub(crate) struct UnpackSettings {
    /// Globs of the files to restore; all where empty.
    pub include: Vec<String>,
    /// Go on where an interrupted run stopped, and complete a folder that lacks files.
    pub resume: bool,
    /// Replace a folder of restored files.
    pub force: bool,
    /// Threads.
    pub jobs: usize,
}

/// Why a pack is not unpacked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UnpackError {
    /// No file of the pack matches the globs.
    #[error("the pack has no file that matches {}", globs.join(" "))]
    NoMatch {
        /// The globs.
        globs: Vec<String>,
    },
}

/// Builds a set of globs in which `*` crosses dots and slashes.
///
/// # Errors
/// `Glob` with the first bad one.
pub(crate) fn globs(patterns: &[String]) -> Result<GlobSet, StepError> {
    let mut set = GlobSetBuilder::new();
    for pattern in patterns {
        set.add(Glob::new(pattern)?);
    }
    Ok(set.build()?)
}

/// Restores the files of a pack into `out`: all of them or none.
///
/// # Errors
/// `Findings` where the pack is damaged, or cannot restore a wanted file because its component was
/// excluded: then nothing is written. `Output` where the output exists or does not fit. After any
/// other error `resume` goes on.
pub(crate) fn unpack(
    pack: &Pack,
    out: &Path,
    settings: &UnpackSettings,
    stop: &CancelToken,
    progress: &dyn Progress,
) -> Result<UnpackSummary, StepError> {
    let (wanted, left) = choose(pack.manifest(), settings)?;
    refuse_overlap(out, pack)?;
    let output = open_output(pack, out, &wanted, settings)?;
    let weights = PackReader::new(pack);
    let restore = Restore {
        tensors: tensors_by_shard(pack.manifest()),
        weights: &weights,
        output: &output,
        stop,
        progress,
        resumed: AtomicU64::new(0),
        findings: Mutex::default(),
    };
    let done = restore.all(&wanted, settings.jobs);
    let resumed_files = restore.resumed.into_inner();
    output.close(done, StepError::leave)?;
    Ok(UnpackSummary {
        format_version: UnpackSummary::VERSION,
        generator: GENERATOR.to_owned(),
        files: wanted.len() as u64,
        resumed_files,
        bytes: wanted.iter().map(|f| f.length).sum(),
        not_restored: left,
    })
}

/// The files to restore, longest first, and those that the pack cannot restore and nobody asked
/// for.
fn choose<'a>(
    manifest: &'a Manifest,
    settings: &UnpackSettings,
) -> Result<(Vec<&'a SourceFile>, Vec<UnrestorableFile>), StepError> {
    let include = globs(&settings.include)?;
    let requested = |f: &SourceFile| settings.include.is_empty() || include.is_match(&f.path);
    let (mut wanted, mut impossible, mut left) = (Vec::new(), Vec::new(), Vec::new());
    for file in &manifest.source_files {
        match (requested(file), file.excluded_bytes) {
            (true, 0) => wanted.push(file),
            (true, _) => impossible.push(file),
            (false, 0) => {}
            (false, _) => {
                left.push(UnrestorableFile {
                    path: file.path.clone(),
                    why: why_not(manifest, file),
                });
            }
        }
    }
    if !impossible.is_empty() {
        let findings = impossible.into_iter().map(|f| {
            Finding::new(FindingKind::NotInPack)
                .file(&f.path)
                .seen(why_not(manifest, f))
                .wanted("a pack of every component")
        });
        return Err(StepError::Findings {
            what: "these files cannot be restored; nothing was written".to_owned(),
            findings: findings.collect(),
        });
    }
    if wanted.is_empty() {
        return Err(UnpackError::NoMatch {
            globs: settings.include.clone(),
        }
        .into());
    }
    wanted.sort_by_key(|f| std::cmp::Reverse(f.length));
    Ok((wanted, left))
}

fn why_not(manifest: &Manifest, file: &SourceFile) -> String {
    let excluded: Vec<String> = manifest
        .excluded
        .iter()
        .map(|e| e.component.to_string())
        .collect();
    format!(
        "{} of its {} bytes belong to components that were excluded ({})",
        file.excluded_bytes,
        file.length,
        excluded.join(", ")
    )
}

/// Opens the output. Only files that the pack can restore are replaced.
fn open_output(
    pack: &Pack,
    out: &Path,
    wanted: &[&SourceFile],
    settings: &UnpackSettings,
) -> Result<OutputFolder, OutputError> {
    let files = pack.manifest().source_files.iter();
    let can_be_restored = files.filter(|f| f.excluded_bytes == 0);
    let listed: HashSet<&str> = can_be_restored.map(|f| &*f.path).collect();
    let staging = Staging {
        out,
        shape: Shape::Folder,
        resume: settings.resume,
        force: settings.force,
        run: fingerprint(pack, wanted),
        is_ours: &|file| listed.contains(file),
    };
    staging.open()
}

/// Identifies the pack and the wanted files: an unfinished run goes on only with the same.
fn fingerprint(pack: &Pack, wanted: &[&SourceFile]) -> Sha256 {
    let mut paths: Vec<&str> = wanted.iter().map(|f| &*f.path).collect();
    paths.sort_unstable();
    let identity = pack.manifest_sha256();
    Sha256::of(format!("unpack {identity} {paths:?}").as_bytes())
}

/// The tensors of each shard in the order of their bytes.
fn tensors_by_shard(manifest: &Manifest) -> HashMap<&str, Vec<&TensorEntry>> {
    let mut shards: HashMap<&str, Vec<&TensorEntry>> = HashMap::new();
    for tensor in &manifest.tensors {
        shards.entry(&tensor.source.file).or_default().push(tensor);
    }
    for tensors in shards.values_mut() {
        tensors.sort_by_key(|t| (t.source.offset, t.source.length));
    }
    shards
}

struct Restore<'a> {
    tensors: HashMap<&'a str, Vec<&'a TensorEntry>>,
    weights: &'a PackReader<'a>,
    output: &'a OutputFolder,
    stop: &'a CancelToken,
    progress: &'a dyn Progress,
    resumed: AtomicU64,
    findings: Mutex<Vec<Finding>>,
}

/// Takes the next bytes of a file.
type Sink<'s> = &'s mut dyn FnMut(&[u8]) -> Result<(), FormatError>;

impl Restore<'_> {
    fn all(&self, wanted: &[&SourceFile], jobs: usize) -> Result<(), StepError> {
        let lengths = || wanted.iter().map(|f| (&*f.path, f.length));
        self.output.check_limits(lengths())?;
        let lacking = wanted
            .iter()
            .filter(|f| !self.output.may_have(&f.path, f.length));
        self.output.check_space(lacking.map(|f| f.length).sum())?;

        self.progress
            .start("unpacking", wanted.iter().map(|f| f.length).sum());
        let worker = || Ok((self.weights.cursor()?, vec![0; READ_BYTES]));
        let jobs = jobs_within_memory(jobs, WRITE_BEHIND_MEMORY + MAX_DECODING);
        let done = self.output.with_publisher(jobs, |publisher| {
            run_tasks(jobs, wanted, worker, |(reader, buffer), file| {
                self.file(file, reader, buffer, publisher)
            })
        });
        self.progress.finish();
        done?;
        let findings = std::mem::take(&mut *lock(&self.findings));
        if findings.is_empty() {
            return Ok(());
        }
        let folder = self.weights.pack().folder().display();
        let what = format!("{folder}: damaged; nothing was restored");
        Err(StepError::Findings { what, findings })
    }

    fn file(
        &self,
        file: &SourceFile,
        reader: &mut PackCursor<'_>,
        buffer: &mut [u8],
        publisher: &Publisher<'_>,
    ) -> Result<(), StepError> {
        if self.is_finished(file, reader, buffer)? {
            self.resumed.fetch_add(1, Ordering::Relaxed);
            return Ok(());
        }
        let (out, path) = self.output.create(&file.path)?;
        let flushing = Flushing::new(publisher, &out);
        let restored = write_behind(&out, &path, flushing, file.sha256.is_some(), |behind| {
            self.produce(file, reader, buffer, &mut |piece| {
                self.progress.advance(piece.len() as u64);
                behind.write(piece)
            })
        });
        let seen = match restored {
            Ok(((), seen)) => seen,
            Err(e) if self.is_of_the_pack(&e) => {
                self.report_unreadable(file, &e);
                return Ok(());
            }
            Err(e) => return Err(e.into()),
        };
        if let Some(seen) = seen.filter(|_| file.sha256 != seen) {
            return match self.diagnose(file, seen, reader) {
                Err(StepError::Format(e)) if self.is_of_the_pack(&e) => {
                    self.report_unreadable(file, &e);
                    Ok(())
                }
                done => done,
            };
        }
        publisher.publish(out, file.path.clone(), Box::new(|| Ok(())))?;
        Ok(())
    }

    fn report_unreadable(&self, file: &SourceFile, error: &FormatError) {
        let finding = Finding::new(FindingKind::Unreadable);
        self.report(finding.file(&file.path).seen(error));
    }

    /// Whether it is the pack, not the output, that failed.
    fn is_of_the_pack(&self, error: &FormatError) -> bool {
        match error {
            e if e.is_environment() => false,
            FormatError::Io { path, .. } => path.starts_with(self.weights.pack().folder()),
            FormatError::Interrupted | FormatError::WorkerDied { .. } => false,
            _ => true,
        }
    }

    fn report(&self, finding: Finding) {
        lock(&self.findings).push(finding);
    }

    /// Whether an earlier run finished a file, or the folder that is completed has it: its bytes are
    /// digested again.
    fn is_finished(
        &self,
        file: &SourceFile,
        reader: &mut PackCursor<'_>,
        buffer: &mut [u8],
    ) -> Result<bool, StepError> {
        let Some(folder) = self.output.folder_with(&file.path)? else {
            return Ok(false);
        };
        let Some(wanted) = self.wanted_digest(file, reader, buffer)? else {
            return Ok(false); // writing it reports why
        };
        if self.digest_there(folder, file, buffer)? == Some(wanted) {
            return Ok(true);
        }
        self.output.remove_wrong(folder, &file.path)?;
        Ok(false)
    }

    /// The SHA-256 that a file must have: the recorded one, or that of what the pack holds; `None`
    /// where the pack is damaged.
    fn wanted_digest(
        &self,
        file: &SourceFile,
        reader: &mut PackCursor<'_>,
        buffer: &mut [u8],
    ) -> Result<Option<Sha256>, StepError> {
        if file.sha256.is_some() {
            return Ok(file.sha256);
        }
        let mut sha256 = Sha256Hasher::default();
        let produced = self.produce(file, reader, buffer, &mut |piece| {
            sha256.update(piece);
            Ok(())
        });
        match produced {
            Ok(()) => Ok(Some(sha256.finish())),
            Err(e) if self.is_of_the_pack(&e) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// The SHA-256 of a file that is there; `None` where it has another length or cannot be read.
    fn digest_there(
        &self,
        folder: &Path,
        file: &SourceFile,
        buffer: &mut [u8],
    ) -> Result<Option<Sha256>, StepError> {
        let Ok(input) = InputFile::open_beneath(folder, &file.path) else {
            return Ok(None);
        };
        if input.length() != file.length {
            return Ok(None);
        }
        let mut sha256 = Sha256Hasher::default();
        let read = input.for_each_piece(0..file.length, buffer, self.stop, |piece| {
            sha256.update(piece);
            self.progress.advance(piece.len() as u64);
            Ok::<_, FormatError>(())
        });
        match read {
            Ok(()) => Ok(Some(sha256.finish())),
            // what the drive cannot give back is as good as not written
            Err(FormatError::Io { .. } | FormatError::Changed { .. }) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// What was kept of the file, then, for a shard, its tensors. Without a digest of the whole,
    /// each tensor's counts.
    fn produce(
        &self,
        file: &SourceFile,
        reader: &mut PackCursor<'_>,
        buffer: &mut [u8],
        sink: Sink<'_>,
    ) -> Result<(), FormatError> {
        let kept = self.weights.open(&file.stored_as)?;
        let mut head = Sha256Hasher::default();
        kept.for_each_piece(0..file.stored_length, buffer, self.stop, |piece| {
            if file.sha256.is_none() {
                head.update(piece);
            }
            sink(piece)
        })?;
        if file.sha256.is_none() && head.finish() != file.stored_sha256 {
            return Err(FormatError::malformed(
                kept.name(),
                "is damaged: its SHA-256 is not the manifest's",
            ));
        }
        if file.kind == SourceFileKind::File {
            return Ok(());
        }
        let mut at = file.stored_length;
        for tensor in self.tensors.get(file.path.as_str()).into_iter().flatten() {
            if at != tensor.source.offset {
                let what = format!(
                    "tensor {:?} goes to byte {}, but {at} are written",
                    tensor.name, tensor.source.offset
                );
                return Err(FormatError::malformed(Path::new(&file.path), what));
            }
            let mut sha256 = Sha256Hasher::default();
            reader.read_tensor(tensor, 0..tensor.length, self.stop, |piece| {
                if file.sha256.is_none() {
                    sha256.update(piece);
                }
                sink(piece)
            })?;
            at += tensor.length;
            if file.sha256.is_none() && sha256.finish() != tensor.sha256 {
                let what = format!(
                    "tensor {:?} is damaged: its SHA-256 is not the manifest's",
                    tensor.name
                );
                return Err(FormatError::malformed(Path::new(&file.path), what));
            }
        }
        Ok(())
    }

    /// The whole is wrong: says which part is.
    fn diagnose(
        &self,
        file: &SourceFile,
        seen: Sha256,
        reader: &mut PackCursor<'_>,
    ) -> Result<(), StepError> {
        let mut culprits = 0;
        for tensor in self.tensors.get(file.path.as_str()).into_iter().flatten() {
            let mut sha256 = Sha256Hasher::default();
            reader.read_tensor(tensor, 0..tensor.length, self.stop, |piece| {
                sha256.update(piece);
                Ok::<_, FormatError>(())
            })?;
            let digest = sha256.finish();
            if digest != tensor.sha256 {
                culprits += 1;
                let finding = Finding::new(FindingKind::DamagedTensor)
                    .file(&file.path)
                    .segment(&tensor.segment);
                let finding = finding
                    .tensor(&tensor.name)
                    .seen(format!("SHA-256 {digest}"));
                self.report(finding.wanted(tensor.sha256));
            }
        }
        if culprits == 0 {
            let finding = Finding::new(FindingKind::DamagedFile)
                .file(&file.stored_as)
                .seen(format!("{} gets SHA-256 {seen}", file.path));
            self.report(finding.wanted(file.sha256.map_or_else(String::new, |w| w.to_string())));
        }
        Ok(())
    }
}
