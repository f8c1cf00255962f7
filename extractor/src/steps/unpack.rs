//! `unpack`: the checkpoint's files again, byte for byte, checked while they are written.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
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
    Before, Flushing, OutputError, OutputFolder, Publisher, WRITE_BEHIND_MEMORY, WriteBehind,
    inspect, refuse_busy, refuse_inside, write_behind,
};
use crate::work::{Progress, into_inner, jobs_within_memory, lock, run_tasks};

/// What one thread takes to decode, in bytes: a chunk as it is stored and as it was.
const MAX_DECODING: u64 = 2 * MAX_CHUNK_BYTES as u64;

/// How to unpack.
#[derive(Debug, Clone, Default)]
pub(crate) struct UnpackSettings {
    /// Globs of the files to restore; all where empty.
    pub include: Vec<String>,
    /// Go on where an interrupted run stopped.
    pub resume: bool,
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
    /// The output folder holds what an interrupted run left.
    #[error("{} holds what an interrupted run left", folder.display())]
    Unfinished {
        /// The output folder.
        folder: PathBuf,
    },
    /// A file is there that another program wrote, or an earlier run from another pack.
    #[error("{} exists and is not what the pack holds", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
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

/// Restores the files of a pack into `out`.
///
/// # Errors
/// `Findings` where the pack is damaged (the file in question is not written) or cannot restore a
/// wanted file because its component was excluded; `Output` where the output exists or does not
/// fit.
pub(crate) fn unpack(
    pack: &Pack,
    out: &Path,
    settings: &UnpackSettings,
    stop: &CancelToken,
    progress: &dyn Progress,
) -> Result<UnpackSummary, StepError> {
    let (wanted, left) = choose(pack.manifest(), settings)?;
    refuse_inside(out, pack.folder())?;
    let output = open_output(out, settings)?;
    output.clear_unfinished()?;
    let mut needed: u64 = wanted.iter().map(|f| f.length).sum();
    if settings.resume {
        let there = wanted
            .iter()
            .filter(|f| has_length(&out.join(&f.path), f.length));
        needed -= there.map(|f| f.length).sum::<u64>();
    }
    if let Err(e) = output.check_space(needed) {
        output.abandon_if_new();
        return Err(e.into());
    }
    let weights = PackReader::new(pack);
    let restore = Restore {
        tensors: tensors_by_shard(pack.manifest()),
        weights: &weights,
        output: &output,
        settings,
        stop,
        progress,
        resumed: AtomicU64::new(0),
        findings: Mutex::default(),
    };
    progress.start("unpacking", wanted.iter().map(|f| f.length).sum());
    let worker = || Ok((weights.cursor()?, vec![0; READ_BYTES]));
    let jobs = jobs_within_memory(settings.jobs, WRITE_BEHIND_MEMORY + MAX_DECODING);
    let done = output.with_publisher(jobs, |publisher| {
        run_tasks(jobs, &wanted, worker, |(reader, buffer), file| {
            restore.file(file, reader, buffer, publisher)
        })
    });
    progress.finish();
    let findings = into_inner(restore.findings);
    done?;
    if !findings.is_empty() {
        output.finish()?; // what is whole stays, nothing half-written does
        let what = format!(
            "{}: damaged; the files in question were not written",
            pack.folder().display()
        );
        return Err(StepError::Findings { what, findings });
    }
    let resumed_files = restore.resumed.into_inner();
    output.finish()?;
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
    let asked = |f: &SourceFile| settings.include.is_empty() || include.is_match(&f.path);
    let (mut wanted, mut impossible, mut left) = (Vec::new(), Vec::new(), Vec::new());
    for file in &manifest.source_files {
        match (asked(file), file.excluded_bytes) {
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

/// Whether a file is there that may be whole.
fn has_length(path: &Path, length: u64) -> bool {
    path.symlink_metadata()
        .is_ok_and(|m| m.is_file() && m.len() == length)
}

fn open_output(out: &Path, settings: &UnpackSettings) -> Result<OutputFolder, StepError> {
    refuse_busy(out)?;
    let folder = || out.to_owned();
    match inspect(out)? {
        Before::Nothing => {}
        Before::Unfinished | Before::Occupied if settings.resume => {}
        Before::Unfinished => return Err(UnpackError::Unfinished { folder: folder() }.into()),
        Before::Occupied => return Err(OutputError::NotEmpty { path: folder() }.into()),
    }
    Ok(OutputFolder::open(out)?)
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
    settings: &'a UnpackSettings,
    stop: &'a CancelToken,
    progress: &'a dyn Progress,
    resumed: AtomicU64,
    findings: Mutex<Vec<Finding>>,
}

/// A file being restored, and where its next byte goes.
struct Writing<'w> {
    behind: &'w mut WriteBehind,
    path: &'w Path,
    at: u64,
}

impl Writing<'_> {
    fn write(&mut self, piece: &[u8]) -> Result<(), FormatError> {
        self.behind.write(piece)?;
        self.at += piece.len() as u64;
        Ok(())
    }
}

impl Restore<'_> {
    fn file(
        &self,
        file: &SourceFile,
        reader: &mut PackCursor<'_>,
        buffer: &mut [u8],
        publisher: &Publisher<'_>,
    ) -> Result<(), StepError> {
        let existing = self.output.path().join(&file.path);
        if self.settings.resume && existing.symlink_metadata().is_ok() {
            if self.is_there(file, buffer)? {
                self.resumed.fetch_add(1, Ordering::Relaxed);
                return Ok(());
            }
            // files appear here whole and right or not at all, so this one is somebody else's
            if file.sha256.is_some() {
                return Err(UnpackError::Foreign { path: existing }.into());
            }
        }
        let (out, path) = self.output.create(&file.path)?;
        let flushing = Flushing::new(publisher, &out);
        let restored = write_behind(&out, &path, flushing, file.sha256.is_some(), |behind| {
            self.write(
                file,
                &mut Writing {
                    behind,
                    path: &path,
                    at: 0,
                },
                reader,
                buffer,
            )
        });
        let seen = match restored {
            Ok(((), seen)) => seen,
            Err(e) if self.is_of_the_pack(&e) => {
                self.report(
                    Finding::new(FindingKind::Unreadable)
                        .file(&file.path)
                        .seen(e),
                );
                return Ok(());
            }
            Err(e) => return Err(e.into()),
        };
        if let Some(seen) = seen.filter(|_| file.sha256 != seen) {
            return match self.diagnose(file, seen, reader) {
                Err(StepError::Format(e)) if self.is_of_the_pack(&e) => {
                    self.report(
                        Finding::new(FindingKind::Unreadable)
                            .file(&file.path)
                            .seen(e),
                    );
                    Ok(())
                }
                done => done,
            };
        }
        publisher.publish(out, file.path.clone(), Box::new(|| Ok(())))?;
        Ok(())
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

    /// A file of an earlier run counts only with the right digest.
    fn is_there(&self, file: &SourceFile, buffer: &mut [u8]) -> Result<bool, StepError> {
        let Some(wanted) = file.sha256 else {
            return Ok(false);
        };
        let Ok(input) = InputFile::open_beneath(self.output.path(), &file.path) else {
            return Ok(false);
        };
        if input.length() != file.length {
            return Ok(false);
        }
        let mut sha256 = Sha256Hasher::default();
        input.for_each_piece(0..file.length, buffer, self.stop, |piece| {
            sha256.update(piece);
            self.progress.advance(piece.len() as u64);
            Ok::<_, FormatError>(())
        })?;
        Ok(sha256.finish() == wanted)
    }

    /// What was kept of the file, then, for a shard, its tensors. Without a digest of the whole,
    /// each tensor's counts.
    fn write(
        &self,
        file: &SourceFile,
        writing: &mut Writing<'_>,
        reader: &mut PackCursor<'_>,
        buffer: &mut [u8],
    ) -> Result<(), FormatError> {
        let kept = self.weights.open(&file.stored_as)?;
        let mut head = Sha256Hasher::default();
        kept.for_each_piece(0..file.stored_length, buffer, self.stop, |piece| {
            if file.sha256.is_none() {
                head.update(piece);
            }
            self.progress.advance(piece.len() as u64);
            writing.write(piece)
        })?;
        if file.sha256.is_none() && head.finish() != file.stored_sha256 {
            return Err(FormatError::malformed(
                kept.path(),
                "is damaged: its SHA-256 is not the manifest's",
            ));
        }
        if file.kind == SourceFileKind::File {
            return Ok(());
        }
        for tensor in self.tensors.get(file.path.as_str()).into_iter().flatten() {
            if writing.at != tensor.source.offset {
                let what = format!(
                    "tensor {:?} goes to byte {}, but {} are written",
                    tensor.name, tensor.source.offset, writing.at
                );
                return Err(FormatError::malformed(writing.path, what));
            }
            let mut sha256 = Sha256Hasher::default();
            reader.read_tensor(tensor, 0..tensor.length, self.stop, |piece| {
                if file.sha256.is_none() {
                    sha256.update(piece);
                }
                self.progress.advance(piece.len() as u64);
                writing.write(piece)
            })?;
            if file.sha256.is_none() && sha256.finish() != tensor.sha256 {
                let what = format!(
                    "tensor {:?} is damaged: its SHA-256 is not the manifest's",
                    tensor.name
                );
                return Err(FormatError::malformed(writing.path, what));
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
