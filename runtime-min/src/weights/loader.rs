//! Whole segments into memory: several reads in flight, checked and decoded by the threads that
//! read them.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use segpack_formats::codec::{Chunk, ChunkDecoder, ChunkTable, Codec, MAX_CHUNK_BYTES};
use segpack_formats::digest::{BLAKE3_CHUNK_BYTES, Blake3, Blake3Part};
use segpack_formats::io::{CancelToken, DIRECT_ALIGNMENT, DirectFile, ReadPath, align_outward};
use segpack_formats::pack::SegmentReader;
use segpack_formats::{FormatError, Result};
use segpack_manifests::documents::SegmentEntry;

use crate::error::RunError;
use crate::weights::{Arena, Block};
use segpack_manifests::PackReader;

/// Bytes of one read: large enough for a drive's full rate with a few of them in flight, small
/// enough that one expert keeps all readers busy to its end (measured: 2 MiB takes 10 % longer).
const PIECE_BYTES: u64 = 1 << 20;
/// Reads in flight: a drive reaches its rate at about this depth.
const READERS: usize = 6;
/// The longest stored chunk, with what is hashed around it: the table before the first one, padding
/// after the last.
const SCRATCH_BYTES: usize = MAX_CHUNK_BYTES as usize + (256 << 10);

/// When the digest of a segment is compared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Check {
    /// At every load.
    #[default]
    Always,
    /// At the first load of each segment.
    First,
    /// Never.
    Never,
}

/// What loading took. Times are summed over the threads that load.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LoadStats {
    /// Stored bytes read past the page cache.
    pub direct: u64,
    /// Stored bytes that were in the page cache.
    pub cached: u64,
    /// Stored bytes read through the page cache.
    pub buffered: u64,
    /// Raw bytes that were decoded from coded segments.
    pub decoded: u64,
    /// Reading.
    pub read_time: Duration,
    /// Computing digests.
    pub check_time: Duration,
    /// Decoding.
    pub decode_time: Duration,
}

impl LoadStats {
    /// Stored bytes read.
    pub fn bytes(&self) -> u64 {
        self.direct + self.cached + self.buffered
    }
}

/// A segment and the memory that it goes to, which begins at a multiple of 4096 and has at least
/// [`room_for`] bytes.
#[derive(Debug)]
pub struct Load<'s, 'm> {
    /// What to load.
    pub segment: &'s SegmentEntry,
    /// Where to. The raw bytes begin at [`begins_at`].
    pub to: &'m mut [u8],
}

/// Where the raw bytes of a segment begin in the memory that it is loaded to: direct reads are
/// rounded outward.
pub fn begins_at(segment: &SegmentEntry) -> usize {
    match segment.codec {
        Codec::Raw => index(segment.offset % DIRECT_ALIGNMENT),
        _ => 0,
    }
}

/// Bytes of memory that a segment is loaded to.
pub fn room_for(segment: &SegmentEntry) -> u64 {
    let range = segment.offset..segment.offset.saturating_add(segment.raw_length);
    match segment.codec {
        Codec::Raw => align_outward(&range).end - align_outward(&range).start,
        _ => segment.raw_length.next_multiple_of(DIRECT_ALIGNMENT),
    }
}

/// Bytes of memory that loading needs besides: for each thread the stored bytes of a chunk, and the
/// decoder's planes.
pub fn scratch_bytes(any_coded: bool) -> u64 {
    if any_coded {
        (READERS * (SCRATCH_BYTES + MAX_CHUNK_BYTES as usize)) as u64
    } else {
        0
    }
}

/// Loads segments with threads of its own.
pub struct Loader<'a> {
    source: &'a PackReader<'a>,
    check: Check,
    threads: rayon::ThreadPool,
    checked: Mutex<HashSet<String>>,
    tables: Mutex<HashMap<String, Arc<ChunkTable>>>,
    scratch: Mutex<Vec<Scratch>>,
    counts: Counts,
}

/// What one thread decodes with.
struct Scratch {
    stored: Block,
    decoder: ChunkDecoder,
}

#[derive(Debug, Default)]
struct Counts {
    direct: AtomicU64,
    cached: AtomicU64,
    buffered: AtomicU64,
    decoded: AtomicU64,
    read_nanos: AtomicU64,
    check_nanos: AtomicU64,
    decode_nanos: AtomicU64,
}

/// One segment on its way.
struct Job<'s> {
    segment: &'s SegmentEntry,
    file: Arc<DirectFile>,
    table: Option<Arc<ChunkTable>>,
    check: bool,
    parts: Mutex<Vec<Blake3Part>>,
    /// Of what went wrong, that with the lowest place.
    failed: Mutex<Option<(u64, FormatError)>>,
}

impl<'a> Loader<'a> {
    /// A loader for one model.
    ///
    /// # Errors
    /// `Threads` where they cannot be started.
    pub fn new(source: &'a PackReader<'a>, check: Check) -> Result<Self, RunError> {
        let threads = rayon::ThreadPoolBuilder::new()
            .num_threads(READERS)
            .thread_name(|i| format!("load-{i}"));
        Ok(Self {
            source,
            check,
            threads: threads.build().map_err(|e| RunError::Threads {
                threads: READERS,
                source: std::io::Error::other(e),
            })?,
            checked: Mutex::default(),
            tables: Mutex::default(),
            scratch: Mutex::default(),
            counts: Counts::default(),
        })
    }

    /// What it did so far.
    pub fn stats(&self) -> LoadStats {
        let get = |n: &AtomicU64| n.load(Ordering::Relaxed);
        let time = |n: &AtomicU64| Duration::from_nanos(get(n));
        let c = &self.counts;
        LoadStats {
            direct: get(&c.direct),
            cached: get(&c.cached),
            buffered: get(&c.buffered),
            decoded: get(&c.decoded),
            read_time: time(&c.read_nanos),
            check_time: time(&c.check_nanos),
            decode_time: time(&c.decode_nanos),
        }
    }

    /// Loads segments.
    ///
    /// # Errors
    /// `Malformed` with the pack's path, the segment and both digests where they differ, or where a
    /// chunk is broken; `Io`; `Interrupted`. What the memory then holds is undefined.
    pub fn load(&self, loads: &mut [Load<'_, '_>], stop: &CancelToken) -> Result<()> {
        self.load_while(loads, stop, || ()).0
    }

    /// Loads segments while `work` is done on this thread and returns when both have ended.
    pub fn load_while<R>(
        &self,
        loads: &mut [Load<'_, '_>],
        stop: &CancelToken,
        work: impl FnOnce() -> R,
    ) -> (Result<()>, R) {
        let segments: Vec<&SegmentEntry> = loads.iter().map(|l| l.segment).collect();
        let jobs: Result<Vec<Job<'_>>> = segments.iter().map(|s| self.job(s)).collect();
        let jobs = match jobs {
            Ok(jobs) => jobs,
            Err(e) => return (Err(e), work()),
        };
        let done = self.threads.in_place_scope(|scope| {
            for (job, load) in jobs.iter().zip(loads.iter_mut()) {
                self.spawn(scope, job, load.to, stop);
            }
            work()
        });
        let loaded = jobs
            .iter()
            .zip(loads)
            .try_for_each(|(job, load)| self.finish(job, load.to));
        (loaded, done)
    }

    fn job<'s>(&self, segment: &'s SegmentEntry) -> Result<Job<'s>> {
        let check = match self.check {
            Check::Always => true,
            Check::First => !lock(&self.checked).contains(&segment.id),
            Check::Never => false,
        };
        let file = self.source.open_direct(&segment.pack)?;
        let table = if segment.codec == Codec::Raw {
            None
        } else {
            Some(self.table(&file, segment)?)
        };
        if table.is_none() {
            SegmentReader::open(file.file(), segment.stored())?; // it lies within the file
        }
        Ok(Job {
            segment,
            file,
            table,
            check,
            parts: Mutex::default(),
            failed: Mutex::default(),
        })
    }

    /// Chunk tables are small, and kept.
    fn table(&self, file: &DirectFile, segment: &SegmentEntry) -> Result<Arc<ChunkTable>> {
        if let Some(table) = lock(&self.tables).get(&segment.id) {
            return Ok(Arc::clone(table));
        }
        let reader = SegmentReader::open(file.file(), segment.stored())?;
        let none = || {
            FormatError::malformed(
                file.file().path(),
                format!("segment {:?} has no chunks", segment.id),
            )
        };
        let table = Arc::new(reader.table().cloned().ok_or_else(none)?);
        lock(&self.tables).insert(segment.id.clone(), Arc::clone(&table));
        Ok(table)
    }

    fn spawn<'s>(
        &'s self,
        scope: &rayon::Scope<'s>,
        job: &'s Job<'s>,
        to: &'s mut [u8],
        stop: &'s CancelToken,
    ) {
        let Some(table) = &job.table else {
            let range = job.segment.offset..job.segment.offset + job.segment.raw_length;
            for (i, piece) in to[..index(room_for(job.segment))]
                .chunks_mut(index(PIECE_BYTES))
                .enumerate()
            {
                let at = align_outward(&range).start + i as u64 * PIECE_BYTES;
                let part = at.max(range.start)..(at + PIECE_BYTES).min(range.end);
                scope.spawn(move |_| job.note(at, self.piece(job, at..part.end, piece, stop)));
            }
            return;
        };
        let (mut rest, mut hashed) = (to, 0);
        for (i, chunk) in table.chunks.iter().enumerate() {
            let (raw, after) = rest.split_at_mut(index(chunk.raw.end - chunk.raw.start));
            rest = after;
            // each chunk's thread hashes up to the last whole BLAKE3 chunk that it reads, the last
            // one to the end
            let last = i + 1 == table.chunks.len();
            let end = if last {
                job.segment.stored_length
            } else {
                chunk
                    .stored
                    .end
                    .next_multiple_of(BLAKE3_CHUNK_BYTES)
                    .min(job.segment.stored_length)
            };
            let hash = hashed..end.max(hashed);
            hashed = hash.end;
            scope
                .spawn(move |_| job.note(chunk.raw.start, self.chunk(job, chunk, hash, raw, stop)));
        }
    }

    /// One read of a raw segment. Where the segment begins at a page, its bytes are hashed here,
    /// else by `finish`.
    fn piece(
        &self,
        job: &Job<'_>,
        range: Range<u64>,
        to: &mut [u8],
        stop: &CancelToken,
    ) -> Result<()> {
        stop.check()?;
        self.read(&job.file, &range, to)?;
        if job.check && begins_at(job.segment) == 0 {
            let bytes = &to[..index(range.end - range.start)];
            self.hash(job, bytes, range.start - job.segment.offset);
        }
        Ok(())
    }

    /// One chunk of a coded segment; `hash` is what of the stored bytes this thread hashes.
    fn chunk(
        &self,
        job: &Job<'_>,
        chunk: &Chunk,
        hash: Range<u64>,
        raw: &mut [u8],
        stop: &CancelToken,
    ) -> Result<()> {
        stop.check()?;
        let mut scratch = self.scratch()?;
        let stored = if job.check {
            chunk.stored.start.min(hash.start)..chunk.stored.end.max(hash.end)
        } else {
            chunk.stored.clone()
        };
        let offset = job.segment.offset;
        let aligned =
            align_outward(&(offset + stored.start..offset + stored.end)).start..offset + stored.end;
        let fits = align_outward(&aligned).end - aligned.start <= scratch.stored.len() as u64;
        if !fits {
            // only a table that leaves large gaps gets here
            let what = format!(
                "coded segment {:?}: bytes {stored:?} are too many for one chunk",
                job.segment.id
            );
            return Err(FormatError::malformed(job.file.file().path(), what));
        }
        self.read(&job.file, &aligned, &mut scratch.stored)?;
        let Scratch {
            stored: bytes,
            decoder,
        } = &mut scratch;
        let within = |r: &Range<u64>| {
            index(offset + r.start - aligned.start)..index(offset + r.end - aligned.start)
        };
        if job.check {
            self.hash(job, &bytes[within(&hash)], hash.start);
        }
        let began = Instant::now();
        // the digest of the whole segment, or none at all, is what was asked for
        let decoded = decoder.decode_unchecked(chunk, &bytes[within(&chunk.stored)], raw);
        add_time(&self.counts.decode_nanos, began);
        self.counts
            .decoded
            .fetch_add(raw.len() as u64, Ordering::Relaxed);
        lock(&self.scratch).push(scratch);
        decoded.map_err(|e| {
            let what = format!("coded segment {:?} at byte {offset}: {e}", job.segment.id);
            FormatError::malformed(job.file.file().path(), what)
        })
    }

    fn scratch(&self) -> Result<Scratch> {
        if let Some(scratch) = lock(&self.scratch).pop() {
            return Ok(scratch);
        }
        let stored = Arena::new(SCRATCH_BYTES).and_then(|mut arena| arena.take(SCRATCH_BYTES));
        let stored = stored.map_err(|e| FormatError::coded(e.to_string()))?;
        Ok(Scratch {
            stored,
            decoder: ChunkDecoder::new()?,
        })
    }

    fn read(&self, file: &DirectFile, range: &Range<u64>, to: &mut [u8]) -> Result<()> {
        let began = Instant::now();
        let path = file.read_aligned(range, to)?;
        add_time(&self.counts.read_nanos, began);
        let count = match path {
            ReadPath::Direct => &self.counts.direct,
            ReadPath::Cached => &self.counts.cached,
            ReadPath::Buffered => &self.counts.buffered,
        };
        count.fetch_add(range.end - range.start, Ordering::Relaxed);
        Ok(())
    }

    fn hash(&self, job: &Job<'_>, bytes: &[u8], at: u64) {
        let began = Instant::now();
        let part = Blake3Part::of(bytes, at, job.segment.stored_length);
        add_time(&self.counts.check_nanos, began);
        lock(&job.parts).push(part);
    }

    /// The segment is there if nothing failed and its digest is the manifest's.
    fn finish(&self, job: &Job<'_>, to: &[u8]) -> Result<()> {
        if let Some((_, e)) = lock(&job.failed).take() {
            return Err(e);
        }
        if !job.check {
            return Ok(());
        }
        let (segment, began) = (job.segment, Instant::now());
        let seen = if begins_at(segment) == 0 {
            Blake3::of_parts(lock(&job.parts).iter(), segment.stored_length)
        } else {
            Some(Blake3::of(
                &to[begins_at(segment)..][..index(segment.raw_length)],
            ))
        };
        add_time(&self.counts.check_nanos, began);
        if seen != Some(segment.blake3) {
            let seen = seen.map_or_else(|| "none".to_owned(), |b| b.to_string());
            return Err(super::damaged(job.file.file(), segment, &seen));
        }
        if self.check == Check::First {
            lock(&self.checked).insert(segment.id.clone());
        }
        Ok(())
    }
}

impl Job<'_> {
    fn note(&self, at: u64, done: Result<()>) {
        if let Err(e) = done {
            let mut failed = lock(&self.failed);
            if failed.as_ref().is_none_or(|(first, _)| at < *first) {
                *failed = Some((at, e));
            }
        }
    }
}

fn add_time(count: &AtomicU64, began: Instant) {
    count.fetch_add(
        u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX),
        Ordering::Relaxed,
    );
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Lengths of segments that fit into the budget.
fn index(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}
