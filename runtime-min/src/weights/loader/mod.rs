//! Whole segments into memory: several reads in flight, checked and decoded by the threads that
//! read them.

mod job;
mod stats;

use segpack_formats::io::to_usize;
use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use segpack_formats::codec::{Chunk, ChunkDecoder, ChunkTable, Codec, MAX_CHUNK_BYTES};
use segpack_formats::digest::{BLAKE3_CHUNK_BYTES, Blake3Part};
use segpack_formats::io::{CancelToken, ReadPath, align_outward};
use segpack_formats::pack::SegmentReader;
use segpack_formats::{FormatError, Result};
use segpack_manifests::PackReader;
use segpack_manifests::documents::SegmentEntry;
use segpack_manifests::folder::AlignedFile;

use self::job::Job;
pub use self::stats::LoadStats;
use self::stats::{Counters, add_time};
use super::arena::{Arena, Block};
use super::checksum::ChecksumPolicy;
use super::decoding::Decoding;
use super::placement::{SegmentLoad, buffer_len, data_offset};
use crate::error::RunError;

/// Bytes of one read: large enough for a drive's full rate with a few of them in flight, small
/// enough that one expert keeps all readers busy to its end (measured: 2 MiB takes 10 % longer).
const PIECE_BYTES: u64 = 1 << 20;
/// Reads in flight: a drive reaches its rate at about this depth.
const READERS: usize = 6;
/// The longest stored chunk, with what is hashed around it: the table before the first one, padding
/// after the last.
const SCRATCH_BYTES: usize = MAX_CHUNK_BYTES as usize + (256 << 10);

/// A segment and the memory that it goes to, which begins at a multiple of 4096 and has at least
/// [`SegmentLoad::buffer_len`] bytes.
#[derive(Debug)]
pub struct Load<'s, 'm> {
    segment: &'s SegmentEntry,
    decoding: Option<&'s Decoding>,
    to: &'m mut [u8],
}

impl<'s, 'm> Load<'s, 'm> {
    /// What to load, and where to: its data begins at [`SegmentLoad::data_offset`].
    pub fn new(load: &'s SegmentLoad<'_>, to: &'m mut [u8]) -> Self {
        Self {
            segment: load.segment,
            decoding: load.decoding.as_deref(),
            to,
        }
    }

    /// Of a segment whose raw bytes are used as they are: they begin at [`data_offset`].
    pub fn plain(segment: &'s SegmentEntry, to: &'m mut [u8]) -> Self {
        Self {
            segment,
            decoding: None,
            to,
        }
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
    checksums: ChecksumPolicy,
    threads: rayon::ThreadPool,
    checked: Mutex<HashSet<String>>,
    tables: Mutex<HashMap<String, Arc<ChunkTable>>>,
    scratch: Mutex<Vec<Scratch>>,
    /// Raw bytes of a segment that is being decoded.
    staging: Mutex<Option<Block>>,
    counters: Counters,
}

/// What one thread decodes with.
struct Scratch {
    stored: Block,
    decoder: ChunkDecoder,
}

impl<'a> Loader<'a> {
    /// A loader for one model.
    ///
    /// # Errors
    /// `Threads` where they cannot be started.
    pub fn new(source: &'a PackReader<'a>, checksums: ChecksumPolicy) -> Result<Self, RunError> {
        let threads = rayon::ThreadPoolBuilder::new()
            .num_threads(READERS)
            .thread_name(|i| format!("load-{i}"));
        Ok(Self {
            source,
            checksums,
            threads: threads.build().map_err(|e| RunError::Threads {
                threads: READERS,
                source: std::io::Error::other(e),
            })?,
            checked: Mutex::default(),
            tables: Mutex::default(),
            scratch: Mutex::default(),
            staging: Mutex::default(),
            counters: Counters::default(),
        })
    }

    /// What it did so far.
    pub fn stats(&self) -> LoadStats {
        self.counters.stats()
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
            let mut decoded = Vec::new();
            for (job, load) in jobs.iter().zip(loads.iter_mut()) {
                match load.decoding {
                    None => self.spawn(scope, job, load.to, stop),
                    Some(decoding) => decoded.push((job, decoding, &mut *load.to)),
                }
            }
            scope.spawn(|_| self.load_decoded(decoded, stop));
            work()
        });
        let loaded = jobs
            .iter()
            .zip(loads)
            .try_for_each(|(job, load)| match load.decoding {
                None => self.finish(job, load.to),
                Some(_) => job.outcome(),
            });
        (loaded, done)
    }

    /// Reads and decodes segments, one after the other: they share the memory that they are read
    /// to.
    fn load_decoded(&self, loads: Vec<(&Job<'_>, &Decoding, &mut [u8])>, stop: &CancelToken) {
        // taken out, as a thread that waits for reads may be given the segments of another load
        let mut staging = lock(&self.staging).take();
        for (job, decoding, to) in loads {
            job.note(0, self.decode(job, decoding, &mut staging, to, stop));
        }
        *lock(&self.staging) = staging;
    }

    /// Reads one segment, checks it and decodes it. Called on a thread of the pool.
    fn decode(
        &self,
        job: &Job<'_>,
        decoding: &Decoding,
        staging: &mut Option<Block>,
        to: &mut [u8],
        stop: &CancelToken,
    ) -> Result<()> {
        let bytes = to_usize(buffer_len(job.segment));
        let memory = match staging {
            Some(memory) if memory.len() >= bytes => memory,
            _ => {
                *staging = None; // the old one first
                staging.insert(block(bytes)?)
            }
        };
        rayon::scope(|scope| self.spawn(scope, job, memory, stop));
        self.finish(job, memory)?;
        let began = Instant::now();
        let raw = &memory[data_offset(job.segment)..][..to_usize(job.segment.raw_length)];
        decoding.run(raw, to);
        add_time(&self.counters.decode_nanos, began);
        Ok(())
    }

    /// Opens what a segment is read from.
    fn job<'s>(&self, segment: &'s SegmentEntry) -> Result<Job<'s>> {
        let is_checked = match self.checksums {
            ChecksumPolicy::Always => true,
            ChecksumPolicy::First => !lock(&self.checked).contains(&segment.id),
            ChecksumPolicy::Never => false,
        };
        let file = self.source.open_direct(&segment.pack)?;
        let table = if segment.codec == Codec::Raw {
            SegmentReader::open(file.file(), segment.stored())?; // it lies within the file
            None
        } else {
            Some(self.table(&file, segment)?)
        };
        Ok(Job::new(segment, file, table, is_checked))
    }

    /// Chunk tables are small, and kept.
    fn table(&self, file: &AlignedFile, segment: &SegmentEntry) -> Result<Arc<ChunkTable>> {
        if let Some(table) = lock(&self.tables).get(&segment.id) {
            return Ok(Arc::clone(table));
        }
        let reader = SegmentReader::open(file.file(), segment.stored())?;
        let table = reader.table().cloned().ok_or_else(|| {
            let what = format!("segment {:?} has no chunks", segment.id);
            FormatError::malformed(file.file().name(), what)
        });
        let table = Arc::new(table?);
        lock(&self.tables).insert(segment.id.clone(), Arc::clone(&table));
        Ok(table)
    }

    /// Starts the reads of a raw segment, or the chunks of a coded one.
    fn spawn<'s>(
        &'s self,
        scope: &rayon::Scope<'s>,
        job: &'s Job<'s>,
        to: &'s mut [u8],
        stop: &'s CancelToken,
    ) {
        match &job.table {
            None => self.spawn_pieces(scope, job, to, stop),
            Some(table) => self.spawn_chunks(scope, job, table, to, stop),
        }
    }

    fn spawn_pieces<'s>(
        &'s self,
        scope: &rayon::Scope<'s>,
        job: &'s Job<'s>,
        to: &'s mut [u8],
        stop: &'s CancelToken,
    ) {
        let range = job.segment.offset..job.segment.offset + job.segment.raw_length;
        let first = align_outward(&range).start;
        let pieces = to[..to_usize(buffer_len(job.segment))].chunks_mut(to_usize(PIECE_BYTES));
        for (i, piece) in pieces.enumerate() {
            let at = first + i as u64 * PIECE_BYTES;
            let end = (at + PIECE_BYTES).min(range.end);
            let wanted = at.max(range.start)..end;
            scope.spawn(move |_| job.note(at, self.piece(job, wanted, piece, stop)));
        }
    }

    fn spawn_chunks<'s>(
        &'s self,
        scope: &rayon::Scope<'s>,
        job: &'s Job<'s>,
        table: &'s ChunkTable,
        to: &'s mut [u8],
        stop: &'s CancelToken,
    ) {
        let (mut rest, mut hashed) = (to, 0);
        for (i, chunk) in table.chunks.iter().enumerate() {
            let (raw, after) = rest.split_at_mut(to_usize(chunk.raw.end - chunk.raw.start));
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
        if job.is_checked && data_offset(job.segment) == 0 {
            let bytes = &to[..to_usize(range.end - range.start)];
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
        let stored = if job.is_checked {
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
            return Err(job.malformed(what));
        }
        self.read(
            &job.file,
            &(offset + stored.start..aligned.end),
            &mut scratch.stored,
        )?;
        let Scratch {
            stored: bytes,
            decoder,
        } = &mut scratch;
        let within = |r: &Range<u64>| {
            to_usize(offset + r.start - aligned.start)..to_usize(offset + r.end - aligned.start)
        };
        if job.is_checked {
            self.hash(job, &bytes[within(&hash)], hash.start);
        }
        let began = Instant::now();
        // the digest of the whole segment, or none at all, is what was asked for
        let decoded = decoder.decode_unchecked(chunk, &bytes[within(&chunk.stored)], raw);
        add_time(&self.counters.decode_nanos, began);
        self.counters.add_decoded(raw.len());
        lock(&self.scratch).push(scratch);
        decoded.map_err(|e| {
            job.malformed(format!(
                "coded segment {:?} at byte {offset}: {e}",
                job.segment.id
            ))
        })
    }

    fn scratch(&self) -> Result<Scratch> {
        if let Some(scratch) = lock(&self.scratch).pop() {
            return Ok(scratch);
        }
        Ok(Scratch {
            stored: block(SCRATCH_BYTES)?,
            decoder: ChunkDecoder::new()?,
        })
    }

    fn read(&self, file: &AlignedFile, range: &Range<u64>, to: &mut [u8]) -> Result<()> {
        let began = Instant::now();
        let path = file.read_pages(range, to)?;
        add_time(&self.counters.read_nanos, began);
        let first = match path {
            ReadPath::Elsewhere => range.start,
            ReadPath::Direct | ReadPath::Cached | ReadPath::Buffered => align_outward(range).start,
        };
        self.counters.add_read(path, range.end - first);
        Ok(())
    }

    fn hash(&self, job: &Job<'_>, bytes: &[u8], at: u64) {
        let began = Instant::now();
        let part = Blake3Part::of(bytes, at, job.segment.stored_length);
        add_time(&self.counters.check_nanos, began);
        lock(&job.parts).push(part);
    }

    /// The segment is loaded if nothing failed and its digest is the manifest's.
    fn finish(&self, job: &Job<'_>, to: &[u8]) -> Result<()> {
        job.outcome()?;
        if !job.is_checked {
            return Ok(());
        }
        let began = Instant::now();
        let checked = job.check_digest(to);
        add_time(&self.counters.check_nanos, began);
        checked?;
        if self.checksums == ChecksumPolicy::First {
            lock(&self.checked).insert(job.segment.id.clone());
        }
        Ok(())
    }
}

/// Memory of so many bytes.
fn block(bytes: usize) -> Result<Block> {
    let block = Arena::new(bytes).and_then(|mut arena| arena.take(bytes));
    block.map_err(|e| FormatError::coded(e.to_string()))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
