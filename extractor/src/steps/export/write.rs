//! Writes planned files: several at a time, each from its first byte to its last, and checks each
//! when it is written.

use std::path::Path;

use segpack_formats::codec::MAX_CHUNK_BYTES;
use segpack_formats::io::sync_file;

use super::ExportError;
use super::check::{CHECK_BYTES, check_file};
use super::destination::Destination;
use super::plan::PlannedFile;
use super::produce::{Producer, Worker};
use crate::output::{Flushing, Publisher, WRITE_BEHIND_MEMORY, write_behind};
use crate::steps::StepError;
use crate::work::{jobs_within_memory, run_tasks};

/// What one thread takes beside the buffers behind it: a chunk as it is stored and as it was, and
/// the check's.
const WORKER_MEMORY: u64 = 2 * MAX_CHUNK_BYTES as u64 + CHECK_BYTES as u64;

/// Writes and, if `check`, checks all files; none has its name yet.
///
/// # Errors
/// `Findings` where the pack is damaged, `Export` where what was written is not what should have
/// been.
pub(super) fn write_files(
    files: &[PlannedFile<'_>],
    destination: &Destination,
    producer: &Producer<'_>,
    jobs: usize,
    check: bool,
) -> Result<(), StepError> {
    let total: u64 = files.iter().map(PlannedFile::length).sum();
    let (phase, passes) = match check {
        true => ("exporting and reading back", 2),
        false => ("exporting", 1),
    };
    producer.progress.start(phase, passes * total);
    let mut longest_first: Vec<&PlannedFile<'_>> = files.iter().collect();
    longest_first.sort_by_key(|f| std::cmp::Reverse(f.length()));
    let jobs = jobs_within_memory(jobs, WRITE_BEHIND_MEMORY + WORKER_MEMORY);
    let worker = || Worker::new(producer.weights);
    let done = destination.unfinished().with_publisher(jobs, |publisher| {
        run_tasks(jobs, &longest_first, worker, |worker, file| {
            producer.write_file(file, destination, worker, publisher)?;
            if check {
                let path = destination.unfinished().partial(&file.path);
                check_file(producer, file, &path, worker)?;
            }
            Ok(())
        })
    });
    producer.progress.finish();
    done
}

impl Producer<'_> {
    /// Writes one file and makes it durable, under its unfinished name.
    fn write_file(
        &self,
        file: &PlannedFile<'_>,
        destination: &Destination,
        worker: &mut Worker<'_>,
        publisher: &Publisher<'_>,
    ) -> Result<(), StepError> {
        let (out, path) = destination.create(&file.path)?;
        let flushing = Flushing::new(publisher, &out);
        let written = write_behind(&out, &path, flushing, false, |behind| {
            self.produce(file, worker, &mut |piece| Ok(behind.write(piece)?))
        });
        written.map_err(|e| match e {
            StepError::Format(e) => self.of_the_pack(e),
            other => other,
        })?;
        Ok(sync_file(&out, &path)?)
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
