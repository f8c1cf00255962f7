//! The content of the files against the manifest's digests.
//!
//! Every stored byte is hashed once: raw tensors with SHA-256, many side by side (one stream alone
//! leaves most of a core idle); coded segments with BLAKE3, then their tensors, decoded, with
//! SHA-256. Those of a shard that can be restored are read in its order, and go through its SHA-256,
//! too.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use segpack_formats::FormatError;
use segpack_formats::codec::Codec;
use segpack_formats::digest::{Blake3Hasher, LANES, Sha256, Sha256Hasher, Sha256Lanes};
use segpack_formats::io::{CancelToken, READ_BYTES, ReadAt, Retried};
use segpack_manifests::Pack;
use segpack_manifests::documents::{
    FileResult, Finding, FindingKind, PackEntry, SegmentEntry, Severity, SourceFile, TensorEntry,
    VerifyMode,
};
use segpack_manifests::{PackCursor, PackReader};

use super::restore::{
    Lane, Part, Places, Proving, Stretch, What, covered, groups, provable, results,
};
use super::values::{TensorStatistics, Watching};
use super::{Findings, VerifySettings, describe};
use crate::steps::StepError;
use crate::work::Progress;
use crate::work::batches;
use crate::work::run_tasks;

/// Bytes of each tensor that are hashed in one step, [`LANES`] tensors side by side.
const PIECE_BYTES: usize = 64 << 10;
/// SHA-256 blocks run faster from addresses that are multiples of this.
const BUFFER_ALIGNMENT: usize = 64;
/// Tensors go into one batch up to this sum, so that the last batch keeps no thread waiting long.
const BATCH_BYTES: u64 = 128 << 20;

/// One entry of the queue.
enum Task<'a> {
    /// Raw tensors of about one length.
    Tensors(Vec<Place<'a>>),
    /// A coded segment and its tensors.
    Coded(&'a SegmentEntry, Vec<&'a TensorEntry>),
    /// Stretches of shards, raw and of about one length.
    Stretches(Vec<Stretch<'a, 'a>>),
    /// A stretch of a shard, some of which is coded.
    CodedStretch(Stretch<'a, 'a>),
    /// A file of `source/`.
    Source(&'a SourceFile),
    /// A pack as one file, and the BLAKE3 of its raw segments.
    Whole(&'a PackEntry, Vec<&'a SegmentEntry>),
}

/// A raw tensor and where it lies in its pack.
#[derive(Clone, Copy)]
struct Place<'a> {
    tensor: &'a TensorEntry,
    segment: &'a SegmentEntry,
}

impl Place<'_> {
    fn range(&self) -> Range<u64> {
        let start = self.segment.offset + self.tensor.offset;
        start..start + self.tensor.length
    }
}

/// What one thread works with.
struct Worker<'a> {
    reader: PackCursor<'a>,
    buffer: Vec<u8>,
}

/// Everything that the tasks share.
struct Check<'a> {
    weights: &'a PackReader<'a>,
    tasks: Vec<(usize, Task<'a>)>,
    jobs: usize,
    findings: &'a Findings,
    values: Option<&'a TensorStatistics>,
    stop: &'a CancelToken,
    progress: &'a dyn Progress,
}

/// Checks every file that is `sound` (there, with its right length).
pub(super) fn check(
    pack: &Pack,
    sound: &BTreeSet<String>,
    settings: &VerifySettings,
    findings: &Findings,
    values: Option<&TensorStatistics>,
    stop: &CancelToken,
    progress: &dyn Progress,
) -> Result<Vec<FileResult>, StepError> {
    let weights = PackReader::new(pack);
    // some of the pack is not enough to restore a shard
    let proves = settings.restorable && settings.subset.is_none() && !pack.is_part();
    let places = Places::of(pack.manifest());
    let shards = if proves {
        provable(pack.manifest(), &places, sound)
    } else {
        Vec::new()
    };
    let tasks = tasks(pack, sound, &shards, settings, findings);
    progress.start("verifying", tasks.iter().map(|(_, t)| task_bytes(t)).sum());
    let check = Check {
        weights: &weights,
        tasks,
        jobs: settings.jobs,
        findings,
        values,
        stop,
        progress,
    };
    let done = run_tasks(
        settings.jobs,
        &check.tasks,
        || check.worker(),
        |worker, (number, task)| check.run(worker, *number, task),
    );
    progress.finish();
    findings.extend(weights.retried().into_iter().map(retried));
    done?;
    let mut buffer = vec![0; READ_BYTES];
    Ok(results(
        &weights,
        &shards,
        proves,
        findings,
        &mut buffer,
        stop,
    )?)
}

/// A read that failed and, tried again, did not: the bytes are right, but the drive may be failing.
fn retried((file, retried): (String, Retried)) -> Finding {
    let mut finding = Finding::new(FindingKind::Unreadable).file(file);
    finding.severity = Severity::Warning;
    finding
        .bytes(retried.range.start, retried.range.end)
        .seen(format!("was read only when tried again: {}", retried.error))
}

/// The longest first, so that all threads end together.
fn tasks<'a>(
    pack: &'a Pack,
    sound: &BTreeSet<String>,
    shards: &'a [Proving<'a>],
    settings: &VerifySettings,
    findings: &Findings,
) -> Vec<(usize, Task<'a>)> {
    let manifest = pack.manifest();
    let (with_shards, segments_with_shards) = covered(shards);
    let headers: BTreeSet<&str> = shards.iter().map(|s| &*s.file.stored_as).collect();
    // the subset counts segments and files, so that parts are alike however they are batched
    let mut counted = 0..;
    let mut take = || {
        settings
            .subset
            .is_none_or(|s| counted.next().is_some_and(|n| s.takes(n)))
    };
    let (mut tasks, mut raw) = (Vec::new(), Vec::new());
    for (segment, tensors) in manifest.segments.iter().zip(manifest.tensors_of_segments()) {
        if !take() || !sound.contains(&segment.pack) {
            continue;
        }
        findings.count(|c| c.segments += 1);
        let alone = tensors.iter().filter(|t| !with_shards.contains(&*t.name));
        if segment.codec == Codec::Raw {
            raw.extend(alone.map(|tensor| Place { tensor, segment }));
        } else if !segments_with_shards.contains(&*segment.id) {
            tasks.push(Task::Coded(segment, alone.collect()));
        }
    }
    for file in &manifest.source_files {
        if take() && sound.contains(&file.stored_as) && !headers.contains(&*file.stored_as) {
            tasks.push(Task::Source(file));
        }
    }
    if settings.mode == VerifyMode::Sums {
        for entry in &manifest.packs {
            if take() && sound.contains(&entry.path) {
                let segments = manifest
                    .segments
                    .iter()
                    .filter(|s| s.pack == entry.path)
                    .collect();
                tasks.push(Task::Whole(entry, segments));
            }
        }
    }
    let batches = batches(raw, BATCH_BYTES, |place| place.tensor.length);
    tasks.extend(batches.into_iter().map(Task::Tensors));
    let (raw, coded) = shards
        .iter()
        .flat_map(Proving::stretches)
        .partition::<Vec<_>, _>(Stretch::is_raw);
    tasks.extend(groups(raw).into_iter().map(Task::Stretches));
    tasks.extend(coded.into_iter().map(Task::CodedStretch));
    tasks.sort_by_key(|t| std::cmp::Reverse(task_bytes(t)));
    tasks.into_iter().enumerate().collect()
}

fn task_bytes(task: &Task<'_>) -> u64 {
    match task {
        Task::Tensors(batch) => batch.iter().map(|p| p.tensor.length).sum(),
        Task::Coded(segment, _) => segment.stored_length,
        Task::Stretches(stretches) => stretches.iter().map(Stretch::length).sum(),
        Task::CodedStretch(stretch) => stretch.parts.iter().map(stored_bytes).sum(),
        Task::Source(file) => file.stored_length,
        Task::Whole(pack, _) => pack.length,
    }
}

/// Statistics take the next bytes of their tensor.
fn take(watching: &mut Watching, piece: &[u8]) {
    if let Some(watching) = watching {
        watching.update(piece);
    }
}

/// Stored bytes that a coded stretch reads for this part.
fn stored_bytes(part: &Part<'_>) -> u64 {
    match part.what {
        What::Tensor {
            segment,
            checks_segment: true,
            ..
        } => segment.stored_length,
        _ if part.what.stored().is_some() => part.length,
        _ => 0,
    }
}

fn unreadable(segment: &SegmentEntry, range: Range<u64>, error: &FormatError) -> Finding {
    let finding = Finding::new(FindingKind::Unreadable)
        .file(&segment.pack)
        .segment(&segment.id);
    finding.bytes(range.start, range.end).seen(describe(error))
}

impl<'a> Check<'a> {
    /// What one thread works with.
    fn worker(&self) -> Result<Worker<'a>, StepError> {
        Ok(Worker {
            reader: self.weights.cursor()?,
            buffer: vec![0; READ_BYTES.max(PIECE_BYTES * LANES) + BUFFER_ALIGNMENT],
        })
    }

    fn run(
        &self,
        worker: &mut Worker<'_>,
        number: usize,
        task: &Task<'_>,
    ) -> Result<(), StepError> {
        self.prefetch(number);
        match task {
            Task::Tensors(batch) => self.check_tensors(&mut worker.buffer, batch),
            Task::Coded(segment, tensors) => self.check_coded(worker, segment, tensors),
            Task::Stretches(stretches) => self.check_stretches(worker, stretches),
            Task::CodedStretch(stretch) => self.check_coded_stretch(worker, stretch),
            Task::Source(file) => self.check_source(&mut worker.buffer, file).map(|_| ()),
            Task::Whole(pack, segments) => self.check_whole(&mut worker.buffer, pack, segments),
        }
    }

    /// Lets the drive begin on what this thread's next task will read: batches read too many places
    /// at once for the kernel's own read-ahead.
    fn prefetch(&self, number: usize) {
        match self.tasks.get(number + self.jobs) {
            Some((_, Task::Tensors(batch))) => {
                for place in batch.iter().filter(|p| p.tensor.length <= BATCH_BYTES) {
                    self.will_need(&place.segment.pack, place.range());
                }
            }
            Some((_, Task::Stretches(stretches))) => {
                let parts = stretches.iter().flat_map(|s| s.parts);
                for part in parts.filter(|p| p.length <= BATCH_BYTES) {
                    if let Some((file, at)) = part.what.stored() {
                        self.will_need(file, at..at + part.length);
                    }
                }
            }
            _ => {}
        }
    }

    fn will_need(&self, file: &str, range: Range<u64>) {
        if let Ok(file) = self.weights.open(file) {
            file.will_need(range);
        }
    }

    fn advance(&self, bytes: u64) {
        self.progress.advance(bytes);
        self.findings.count(|c| c.bytes += bytes);
    }

    /// Begins the statistics of a tensor, where they are taken.
    fn watch(&self, tensor: &TensorEntry) -> Watching {
        self.values.and_then(|_| TensorStatistics::watch(tensor))
    }

    /// The statistics of a tensor that was read to its end.
    fn watched(&self, tensor: &TensorEntry, watched: Watching) {
        if let Some(values) = self.values {
            values.add(tensor, watched);
        }
    }

    fn check_tensors(&self, buffer: &mut [u8], batch: &[Place<'_>]) -> Result<(), StepError> {
        let mut counted = 0;
        match self.digest_batch(buffer, batch, &mut counted) {
            Ok(digests) => {
                for (place, seen) in batch.iter().zip(digests) {
                    self.compare_tensor(place.tensor, place.segment, place.range(), seen);
                }
                Ok(())
            }
            Err(FormatError::Interrupted) => Err(FormatError::Interrupted.into()),
            Err(_) => batch
                .iter()
                .try_for_each(|place| self.check_tensor(buffer, place, &mut counted).map(|_| ())),
        }
    }

    /// One tensor of a batch that could not be read; `counted` bytes of the batch have been counted
    /// before.
    fn check_tensor(
        &self,
        buffer: &mut [u8],
        place: &Place<'_>,
        counted: &mut u64,
    ) -> Result<bool, StepError> {
        let (tensor, segment, range) = (place.tensor, place.segment, place.range());
        let (mut sha256, mut watching) = (Sha256Hasher::default(), self.watch(tensor));
        let read = self.weights.open(&segment.pack).and_then(|file| {
            file.for_each_piece(range.clone(), buffer, self.stop, |piece| {
                sha256.update(piece);
                take(&mut watching, piece);
                let before = (piece.len() as u64).min(*counted);
                *counted -= before;
                self.advance(piece.len() as u64 - before);
                Ok::<_, FormatError>(())
            })
        });
        match read {
            Ok(()) => {
                self.watched(tensor, watching);
                return Ok(self.compare_tensor(tensor, segment, range, sha256.finish()));
            }
            Err(FormatError::Interrupted) => return Err(FormatError::Interrupted.into()),
            Err(e) => {
                let finding = unreadable(segment, range, &e).tensor(&tensor.name);
                self.findings.add_unread(e, finding);
            }
        }
        Ok(false)
    }

    /// Adds to `counted` what it has counted, even where it fails.
    fn digest_batch(
        &self,
        buffer: &mut [u8],
        batch: &[Place<'_>],
        counted: &mut u64,
    ) -> Result<Vec<Sha256>, FormatError> {
        let files: Vec<Arc<dyn ReadAt>> = batch
            .iter()
            .map(|p| self.weights.open(&p.segment.pack))
            .collect::<Result<_, _>>()?;
        let aligned = buffer
            .as_ptr()
            .align_offset(BUFFER_ALIGNMENT)
            .min(BUFFER_ALIGNMENT);
        let buffer = &mut buffer[aligned..];
        let mut lanes = Sha256Lanes::new(batch.len());
        let mut watching: Vec<Watching> = batch.iter().map(|p| self.watch(p.tensor)).collect();
        let longest = batch.iter().map(|p| p.tensor.length).max().unwrap_or(0);
        let mut done = 0;
        while done < longest {
            self.stop.check()?;
            let mut lengths = [0; LANES];
            let places = batch.iter().zip(&files).zip(&mut lengths);
            for (((place, file), length), to) in places.zip(buffer.chunks_mut(PIECE_BYTES)) {
                let range = place.range();
                let left = (range.end - range.start).saturating_sub(done);
                *length = usize::try_from(left).unwrap_or(usize::MAX).min(PIECE_BYTES);
                file.read_at(&mut to[..*length], range.start + done)?;
            }
            let pieces: Vec<&[u8]> = buffer
                .chunks(PIECE_BYTES)
                .zip(lengths)
                .take(batch.len())
                .map(|(piece, n)| &piece[..n])
                .collect();
            lanes.update(&pieces);
            watching
                .iter_mut()
                .zip(&pieces)
                .for_each(|(w, p)| take(w, p));
            let bytes = lengths.iter().map(|n| *n as u64).sum();
            self.advance(bytes);
            *counted += bytes;
            done += PIECE_BYTES as u64;
        }
        let watched = batch.iter().zip(watching);
        watched.for_each(|(place, watched)| self.watched(place.tensor, watched));
        Ok(lanes.finish())
    }

    fn compare_tensor(
        &self,
        tensor: &TensorEntry,
        segment: &SegmentEntry,
        at: Range<u64>,
        seen: Sha256,
    ) -> bool {
        self.findings.count(|c| c.tensors += 1);
        if seen != tensor.sha256 {
            let finding = Finding::new(FindingKind::DamagedTensor)
                .file(&segment.pack)
                .segment(&segment.id);
            let finding = finding.tensor(&tensor.name).bytes(at.start, at.end);
            self.findings.add(
                finding
                    .seen(format!("SHA-256 {seen}"))
                    .wanted(tensor.sha256),
            );
        }
        seen == tensor.sha256
    }

    /// Stretches side by side: two digests of each, that of the shard and that of the part.
    fn check_stretches(
        &self,
        worker: &mut Worker<'_>,
        stretches: &[Stretch<'_, '_>],
    ) -> Result<(), StepError> {
        let mut lanes: Vec<Lane<'_, '_, '_>> = stretches.iter().map(Lane::new).collect();
        match self.digest_lanes(worker, &mut lanes) {
            Ok(()) => Ok(()),
            Err(FormatError::Interrupted) => Err(FormatError::Interrupted.into()),
            // one of them cannot be read: each by itself says which
            Err(_) => lanes
                .iter()
                .try_for_each(|lane| self.check_rest(worker, lane)),
        }
    }

    /// Takes all lanes to their ends; where it fails, they say how far they came.
    fn digest_lanes(
        &self,
        worker: &mut Worker<'_>,
        lanes: &mut [Lane<'_, '_, '_>],
    ) -> Result<(), FormatError> {
        let count = lanes.len();
        // the digests of the shards, then those of the parts
        let mut hashers = Vec::with_capacity(2 * count);
        for lane in &*lanes {
            hashers.push(lane.stretch.hasher(&mut worker.reader, self.stop)?);
        }
        hashers.resize_with(2 * count, Sha256Hasher::default);
        let mut watching: Vec<Watching> = lanes.iter().map(|l| self.watch_part(l)).collect();
        let aligned = worker.buffer.as_ptr().align_offset(BUFFER_ALIGNMENT);
        let buffer = &mut worker.buffer[aligned.min(BUFFER_ALIGNMENT)..];
        while lanes.iter().any(|lane| lane.current().is_some()) {
            self.stop.check()?;
            let lengths = self.read_pieces(lanes, buffer)?;
            let pieces = buffer.chunks(PIECE_BYTES).zip(lengths).take(count);
            let pieces = pieces.map(|(piece, n)| &piece[..n]);
            let twice: Vec<&[u8]> = pieces.clone().chain(pieces).collect();
            Sha256Hasher::update_many(&mut hashers, &twice);
            let watched = watching.iter_mut().zip(&twice);
            watched.for_each(|(watching, piece)| take(watching, piece));
            self.advance(lengths.iter().map(|n| *n as u64).sum());

            // what has ended; parts without bytes end at once
            let parts = hashers[count..].iter_mut().zip(&mut watching);
            for ((lane, length), (hasher, watching)) in lanes.iter_mut().zip(lengths).zip(parts) {
                lane.taken += length as u64;
                while let Some(&part) = lane.current().filter(|p| p.length == lane.taken) {
                    self.watched_part(&part, watching.take());
                    self.compare_part(lane.stretch, &part, std::mem::take(hasher).finish());
                    (lane.part, lane.taken) = (lane.part + 1, 0);
                    *watching = self.watch_part(lane);
                }
            }
        }
        for (lane, hasher) in lanes.iter().zip(hashers) {
            lane.stretch.finish(hasher);
        }
        Ok(())
    }

    /// Reads the next piece of each lane into its part of the buffer.
    fn read_pieces(
        &self,
        lanes: &[Lane<'_, '_, '_>],
        buffer: &mut [u8],
    ) -> Result<[usize; LANES], FormatError> {
        let mut lengths = [0; LANES];
        let places = lanes.iter().zip(&mut lengths);
        for ((lane, length), to) in places.zip(buffer.chunks_mut(PIECE_BYTES)) {
            if let Some((file, at)) = lane.current().and_then(|part| part.what.stored()) {
                *length = lane.next_length(PIECE_BYTES);
                let file = self.weights.open(file)?;
                file.read_at(&mut to[..*length], at + lane.taken)?;
            }
        }
        Ok(lengths)
    }

    /// Begins the statistics of a lane's part, where it is a tensor.
    fn watch_part(&self, lane: &Lane<'_, '_, '_>) -> Watching {
        match lane.current()?.what {
            What::Kept(_) => None,
            What::Tensor { tensor, .. } => self.watch(tensor),
        }
    }

    /// The statistics of a part that was read to its end.
    fn watched_part(&self, part: &Part<'_>, watched: Watching) {
        if let What::Tensor { tensor, .. } = part.what {
            self.watched(tensor, watched);
        }
    }

    /// The parts of a lane that failed, from the begun one on, each by itself.
    fn check_rest(
        &self,
        worker: &mut Worker<'_>,
        lane: &Lane<'_, '_, '_>,
    ) -> Result<(), StepError> {
        let stretch = lane.stretch;
        stretch.shard.set_unread();
        let mut counted = lane.taken;
        for part in &stretch.parts[lane.part.min(stretch.parts.len())..] {
            let sound = match part.what {
                What::Kept(file) => self.check_source(&mut worker.buffer, file)?,
                What::Tensor {
                    tensor, segment, ..
                } => {
                    let place = Place { tensor, segment };
                    self.check_tensor(&mut worker.buffer, &place, &mut counted)?
                }
            };
            counted = 0;
            if !sound {
                stretch.shard.set_damaged();
            }
        }
        Ok(())
    }

    /// A stretch some of which has to be decoded.
    fn check_coded_stretch(
        &self,
        worker: &mut Worker<'_>,
        stretch: &Stretch<'_, '_>,
    ) -> Result<(), StepError> {
        let mut whole = match stretch.hasher(&mut worker.reader, self.stop) {
            Ok(hasher) => hasher,
            Err(FormatError::Interrupted) => return Err(FormatError::Interrupted.into()),
            // the stretch before has these bytes, and says what is wrong with them
            Err(_) => {
                stretch.shard.set_unread();
                Sha256Hasher::default()
            }
        };
        for part in stretch.parts {
            let mut sha256 = Sha256Hasher::default();
            let sound = match part.what {
                What::Kept(file) => {
                    let mut both = |piece: &[u8]| {
                        Sha256Hasher::update_pair(&mut sha256, &mut whole, piece);
                    };
                    let read = self.read_file(&mut worker.buffer, file, &mut both)?;
                    read && self.compare_part(stretch, part, sha256.finish())
                }
                What::Tensor {
                    tensor,
                    segment,
                    checks_segment,
                } => {
                    let stored = !checks_segment || self.check_stored(worker, segment)?;
                    let mut both = |piece: &[u8]| {
                        Sha256Hasher::update_pair(&mut sha256, &mut whole, piece);
                        if segment.codec == Codec::Raw {
                            self.advance(piece.len() as u64);
                        }
                    };
                    let decoded = self.decode(worker, segment, tensor, &mut both)?;
                    decoded && self.compare_part(stretch, part, sha256.finish()) && stored
                }
            };
            if !sound {
                stretch.shard.set_damaged();
            }
        }
        stretch.finish(whole);
        Ok(())
    }

    /// The digest of a part, all of which was read. Whether it is the wanted one.
    fn compare_part(&self, stretch: &Stretch<'_, '_>, part: &Part<'_>, seen: Sha256) -> bool {
        let same = match part.what {
            What::Kept(file) => {
                self.findings.count(|c| c.files += 1);
                self.compare_file(&file.stored_as, seen, file.stored_sha256)
            }
            What::Tensor {
                tensor, segment, ..
            } => {
                let at = if segment.codec == Codec::Raw {
                    Place { tensor, segment }.range()
                } else {
                    segment.offset..segment.offset + segment.stored_length
                };
                self.compare_tensor(tensor, segment, at, seen)
            }
        };
        if !same {
            stretch.shard.set_damaged();
        }
        same
    }

    fn check_coded(
        &self,
        worker: &mut Worker<'_>,
        segment: &SegmentEntry,
        tensors: &[&TensorEntry],
    ) -> Result<(), StepError> {
        self.check_stored(worker, segment)?;
        let at = segment.offset..segment.offset + segment.stored_length;
        for tensor in tensors {
            let mut sha256 = Sha256Hasher::default();
            if self.decode(worker, segment, tensor, &mut |piece| sha256.update(piece))? {
                self.compare_tensor(tensor, segment, at.clone(), sha256.finish());
            }
        }
        Ok(())
    }

    /// The stored bytes of a coded segment. Whether they are what they should be.
    fn check_stored(
        &self,
        worker: &mut Worker<'_>,
        segment: &SegmentEntry,
    ) -> Result<bool, StepError> {
        let range = segment.offset..segment.offset + segment.stored_length;
        let mut blake3 = Blake3Hasher::default();
        let read = self.weights.open(&segment.pack).and_then(|file| {
            file.for_each_piece(range.clone(), &mut worker.buffer, self.stop, |piece| {
                blake3.update(piece);
                self.advance(piece.len() as u64);
                Ok::<_, FormatError>(())
            })
        });
        let damaged = Finding::new(FindingKind::DamagedSegment)
            .file(&segment.pack)
            .segment(&segment.id)
            .bytes(range.start, range.end);
        match read {
            Ok(()) => {
                let seen = blake3.finish();
                if seen == segment.blake3 {
                    return Ok(true);
                }
                let seen = damaged.seen(format!("BLAKE3 {seen}"));
                self.findings.add(seen.wanted(segment.blake3));
            }
            Err(FormatError::Interrupted) => return Err(FormatError::Interrupted.into()),
            Err(e) => {
                let finding = unreadable(segment, range.clone(), &e);
                self.findings.add_unread(e, finding);
            }
        }
        Ok(false)
    }

    /// Passes a tensor to `take`, decoded. Whether that was possible.
    fn decode(
        &self,
        worker: &mut Worker<'_>,
        segment: &SegmentEntry,
        tensor: &TensorEntry,
        to: &mut dyn FnMut(&[u8]),
    ) -> Result<bool, StepError> {
        let (whole, mut watching) = (0..tensor.length, self.watch(tensor));
        let read = worker
            .reader
            .read_tensor(tensor, whole, self.stop, |piece| {
                take(&mut watching, piece);
                to(piece);
                Ok::<_, FormatError>(())
            });
        match read {
            Ok(()) => {
                self.watched(tensor, watching);
                return Ok(true);
            }
            Err(FormatError::Interrupted) => return Err(FormatError::Interrupted.into()),
            Err(e) => {
                let damaged = Finding::new(FindingKind::DamagedSegment)
                    .file(&segment.pack)
                    .segment(&segment.id)
                    .bytes(segment.offset, segment.offset + segment.stored_length);
                let finding = damaged.tensor(&tensor.name).seen(describe(&e));
                self.findings.add_unread(e, finding);
            }
        }
        Ok(false)
    }

    /// Whether the file is what it should be.
    fn check_source(&self, buffer: &mut [u8], file: &SourceFile) -> Result<bool, StepError> {
        let mut sha256 = Sha256Hasher::default();
        let read = self.read_file(buffer, file, &mut |piece| sha256.update(piece))?;
        if read {
            self.findings.count(|c| c.files += 1);
        }
        Ok(read && self.compare_file(&file.stored_as, sha256.finish(), file.stored_sha256))
    }

    /// Passes a file of `source/` to `take`. Whether that was possible.
    fn read_file(
        &self,
        buffer: &mut [u8],
        file: &SourceFile,
        take: &mut dyn FnMut(&[u8]),
    ) -> Result<bool, StepError> {
        let read = self.weights.open(&file.stored_as).and_then(|input| {
            input.for_each_piece(0..file.stored_length, buffer, self.stop, |piece| {
                take(piece);
                self.advance(piece.len() as u64);
                Ok::<_, FormatError>(())
            })
        });
        let is_read = read.is_ok();
        self.findings.unless_read(&file.stored_as, read)?;
        Ok(is_read)
    }

    /// Whether a file has the wanted digest.
    fn compare_file(&self, path: &str, seen: Sha256, wanted: Sha256) -> bool {
        if seen != wanted {
            let finding = Finding::new(FindingKind::DamagedFile).file(path);
            self.findings
                .add(finding.seen(format!("SHA-256 {seen}")).wanted(wanted));
        }
        seen == wanted
    }

    fn check_whole(
        &self,
        buffer: &mut [u8],
        pack: &PackEntry,
        segments: &[&SegmentEntry],
    ) -> Result<(), StepError> {
        let mut sha256 = Sha256Hasher::default();
        let read = self.weights.open(&pack.path).and_then(|input| {
            input.for_each_piece(0..pack.data_offset, buffer, self.stop, |piece| {
                sha256.update(piece);
                self.advance(piece.len() as u64);
                Ok::<_, FormatError>(())
            })?;
            for segment in segments {
                let range = segment.offset..segment.offset + segment.stored_length;
                let mut blake3 = Blake3Hasher::default();
                input.for_each_piece(range.clone(), buffer, self.stop, |piece| {
                    sha256.update(piece);
                    blake3.update(piece);
                    self.advance(piece.len() as u64);
                    Ok::<_, FormatError>(())
                })?;
                let seen = blake3.finish();
                // coded segments have a task of their own
                if segment.codec == Codec::Raw && seen != segment.blake3 {
                    let finding = Finding::new(FindingKind::DamagedSegment)
                        .file(&pack.path)
                        .segment(&segment.id);
                    let finding = finding
                        .bytes(range.start, range.end)
                        .seen(format!("BLAKE3 {seen}"));
                    self.findings.add(finding.wanted(segment.blake3));
                }
            }
            Ok(())
        });
        if read.is_ok() {
            self.compare_file(&pack.path, sha256.finish(), pack.sha256);
        }
        self.findings.unless_read(&pack.path, read)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::path::Path;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    /// Bytes that a phase announced, and those that it said were done.
    #[derive(Default)]
    struct Bytes {
        announced: AtomicU64,
        done: AtomicU64,
    }

    impl Progress for Bytes {
        fn start(&self, _: &'static str, total_bytes: u64) {
            self.announced.fetch_add(total_bytes, Ordering::Relaxed);
        }
        fn start_counting(&self, _: &'static str, _: u64, _: &'static str) {}
        fn advance(&self, more: u64) {
            self.done.fetch_add(more, Ordering::Relaxed);
        }
        fn finish(&self) {}
        fn note(&self, _: &str) {}
    }

    /// A copy of the pack that the runtime's own tests use.
    fn tiny_pack() -> tempfile::TempDir {
        let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("../runtime-min/tests/tiny.segpack");
        let copy = tempfile::tempdir().unwrap();
        for entry in walkdir::WalkDir::new(&tiny) {
            let entry = entry.unwrap();
            let to = copy.path().join(entry.path().strip_prefix(&tiny).unwrap());
            match entry.file_type().is_dir() {
                true => fs::create_dir_all(to).unwrap(),
                false => _ = fs::copy(entry.path(), to).unwrap(),
            }
        }
        copy
    }

    /// What was announced, what was done, and what was found of an open pack.
    fn checked(pack: &Pack, mode: VerifyMode) -> (u64, u64, Vec<Finding>) {
        let manifest = pack.manifest();
        let packs = manifest.packs.iter().map(|p| p.path.clone());
        let sources = manifest.source_files.iter().map(|f| f.stored_as.clone());
        let sound = packs.chain(sources).collect();
        let (findings, bytes) = (Findings::default(), Bytes::default());
        let settings = VerifySettings::new(mode, 1);
        let stop = CancelToken::default();
        check(pack, &sound, &settings, &findings, None, &stop, &bytes).unwrap();
        let found = findings.0.into_inner().unwrap().0;
        (bytes.announced.into_inner(), bytes.done.into_inner(), found)
    }

    #[test]
    fn what_is_announced_is_done() {
        let folder = tiny_pack();
        let pack = Pack::open(folder.path()).unwrap();
        for mode in [VerifyMode::Full, VerifyMode::Sums] {
            let (announced, done, found) = checked(&pack, mode);
            assert_eq!(done, announced, "{mode:?}");
            assert_eq!(found, []);
        }
    }

    #[test]
    fn only_the_tensor_that_cannot_be_read_is_not_counted() {
        let folder = tiny_pack();
        let pack = Pack::open(folder.path()).unwrap();
        let cut = "packs/thinker.text.experts.01.safetensors";
        let file = File::options().write(true).open(folder.path().join(cut));
        let length = pack
            .manifest()
            .packs
            .iter()
            .find(|p| p.path == cut)
            .unwrap()
            .length;
        file.unwrap().set_len(length - 1).unwrap();

        let (announced, done, found) = checked(&pack, VerifyMode::Full);
        let [finding] = &found[..] else {
            panic!("{found:?}")
        };
        let name = finding.tensor.as_deref().unwrap();
        assert_eq!(done, announced - pack.tensor(name).unwrap().length);
    }
}
