//! Writes planned files: several at a time, each from its first byte to its last, and checks each
//! when it is written.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use segpack_formats::FormatError;
use segpack_formats::codec::MAX_CHUNK_BYTES;
use segpack_formats::io::sync_file;

use super::ExportError;
use super::check::{CHECK_BYTES, check_file};
use super::plan::PlannedFile;
use super::produce::{Producer, Worker};
use crate::output::{
    Flushing, OutputFolder, Publisher, WRITE_BEHIND_MEMORY, unfinished, write_behind,
};
use crate::steps::StepError;
use crate::work::{TaskError, jobs_within_memory, run_tasks};

/// What one thread takes beside the buffers behind it: a chunk as it is stored and as it was, and
/// the check's.
const WORKER_MEMORY: u64 = 2 * MAX_CHUNK_BYTES as u64 + CHECK_BYTES as u64;

/// What one thread takes for the largest tensor that is put into another order as a whole: as it was,
/// as it is then, and converted.
fn arranging_memory(files: &[PlannedFile<'_>]) -> u64 {
    let placed = files.iter().flat_map(PlannedFile::tensors);
    let parts = placed.flat_map(|placed| &placed.tensor.parts);
    let whole = parts.filter(|part| part.arrangement.takes_whole_tensors());
    let memory = whole.map(|part| 2 * part.source.length + part.length());
    memory.max().unwrap_or_default()
}

/// Writes the files of an export.
pub(super) struct Exporter<'a> {
    /// Gives their bytes.
    pub producer: &'a Producer<'a>,
    /// Where they are built.
    pub output: &'a OutputFolder,
    /// Read back what was written and compare it with the pack.
    pub check: bool,
    /// Files that an earlier run had finished.
    pub resumed: AtomicU64,
}

impl Exporter<'_> {
    /// Writes and, if wanted, checks all files. They lie in the folder in which they are built.
    ///
    /// # Errors
    /// `Findings` where the pack is damaged, `Export` where what was written is not what should have
    /// been; `Output` where the disk or its file system cannot hold them, or a file is there that is
    /// another one.
    pub(super) fn all(&self, files: &[PlannedFile<'_>], jobs: usize) -> Result<(), StepError> {
        let lengths = files.iter().map(|f| (f.path.as_str(), f.length()));
        self.output.check_limits(lengths)?;
        let lacking = files
            .iter()
            .filter(|f| !self.output.may_have(&f.path, f.length()));
        self.output
            .check_space(lacking.map(PlannedFile::length).sum())?;

        let (phase, passes) = match self.check {
            true => ("exporting and reading back", 2),
            false => ("exporting", 1),
        };
        let progress = self.producer.progress;
        progress.start(phase, passes * length_of(files));
        let mut longest_first: Vec<&PlannedFile<'_>> = files.iter().collect();
        longest_first.sort_by_key(|f| std::cmp::Reverse(f.length()));
        let worker_memory = WORKER_MEMORY + arranging_memory(files);
        let jobs = jobs_within_memory(jobs, WRITE_BEHIND_MEMORY + worker_memory);
        let worker = || Worker::new(self.producer.weights);
        let done = self.output.with_publisher(jobs, |publisher| {
            run_tasks(jobs, &longest_first, worker, |worker, file| {
                self.one(file, worker, publisher)
            })
        });
        progress.finish();
        done
    }

    fn one(
        &self,
        file: &PlannedFile<'_>,
        worker: &mut Worker<'_>,
        publisher: &Publisher<'_>,
    ) -> Result<(), StepError> {
        if self.is_finished(file, worker)? {
            self.resumed.fetch_add(1, Ordering::Relaxed);
            // the pass that is not needed
            let passes = u64::from(self.check);
            self.producer.progress.advance(passes * file.length());
            return Ok(());
        }
        let written = self.write(file, worker, publisher)?;
        if self.check {
            let place = (self.output.path(), &*unfinished(&file.path));
            check_file(self.producer, file, place, worker)?;
        }
        Ok(self.output.publish(&written, &file.path)?)
    }

    /// Whether an earlier run finished a file, or the folder that is completed has it: it is read
    /// and compared with the pack. One of our own that is wrong is written again; another is nobody's
    /// to replace.
    fn is_finished(
        &self,
        file: &PlannedFile<'_>,
        worker: &mut Worker<'_>,
    ) -> Result<bool, StepError> {
        let Some(folder) = self.output.folder_with(&file.path)? else {
            return Ok(false);
        };
        match check_file(self.producer, file, (folder, &file.path), worker) {
            Ok(()) => return Ok(true),
            Err(e) if !is_of_the_file(&e, folder) => return Err(e),
            Err(_) => {}
        }
        self.output.remove_wrong(folder, &file.path)?;
        Ok(false)
    }

    /// Writes one file and makes it durable, under its unfinished name.
    fn write(
        &self,
        file: &PlannedFile<'_>,
        worker: &mut Worker<'_>,
        publisher: &Publisher<'_>,
    ) -> Result<Arc<File>, StepError> {
        let (out, path) = self.output.create(&file.path)?;
        let flushing = Flushing::new(publisher, &out);
        let producer = self.producer;
        let written = write_behind(&out, &path, flushing, false, |behind| {
            producer.produce(file, worker, &mut |piece| Ok(behind.write(piece)?))
        });
        written.map_err(|e| match e {
            StepError::Format(e) => producer.of_the_pack(e),
            other => other,
        })?;
        sync_file(&out, &path)?;
        Ok(out)
    }
}

/// Whether an error says that a file below a folder is not what it should be.
fn is_of_the_file(error: &StepError, folder: &Path) -> bool {
    match error {
        StepError::Export(ExportError::ReadBack { .. }) => true,
        StepError::Format(e) if e.is_environment() || e.is_stop() => false,
        StepError::Format(FormatError::Io { path, .. }) => path.starts_with(folder),
        StepError::Format(_) => true,
        _ => false,
    }
}

/// Bytes that are written for these files; a disk must have as many free.
pub(super) fn length_of(files: &[PlannedFile<'_>]) -> u64 {
    files.iter().map(PlannedFile::length).sum()
}

/// Refuses two files of one path, which would overwrite one another.
///
/// # Errors
/// `SamePath`.
pub(super) fn refuse_twice(files: &[PlannedFile<'_>]) -> Result<(), ExportError> {
    let mut seen = std::collections::HashSet::new();
    match files.iter().find(|f| !seen.insert(Path::new(&f.path))) {
        Some(twice) => Err(ExportError::SamePath {
            path: twice.path.clone(),
        }),
        None => Ok(()),
    }
}
