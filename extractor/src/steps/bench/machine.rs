//! What the machine can do.

use std::panic::resume_unwind;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use segpack_formats::digest::Blake3;
use segpack_formats::io::{CancelToken, DirectFile, ReadPath};
use segpack_manifests::Pack;
use segpack_manifests::documents::BenchLimits;
use segpack_manifests::folder::AlignedFile;
use segpack_runtime_min::Kernels;
use segpack_runtime_min::limits::{multiply_add_peak, read_bandwidth};
use segpack_runtime_min::session::on_threads;
use segpack_runtime_min::weights::{Arena, Block};

use super::{BenchSettings, median, median_and_highest};
use crate::steps::StepError;
use crate::work::Progress;

/// Memory that is read: far more than any cache holds.
const BUFFER_BYTES: usize = 1 << 30;
/// Multiply-add steps on each thread: some hundredths of a second.
pub(super) const FMA_STEPS: usize = 20_000_000;
/// Bytes that are hashed.
const HASH_BYTES: usize = 64 << 20;
/// Reads in flight, and bytes of each, as loading does it.
const READERS: usize = 4;
const READ_BYTES: u64 = 2 << 20;
/// Most bytes that are read from the drive.
const DRIVE_BYTES: u64 = 2 << 30;

/// The limits.
pub(super) struct Machine {
    pub(super) limits: Vec<BenchLimits>,
    pub(super) drive_rate: Option<f64>,
    pub(super) blake3_rate: f64,
}

impl Machine {
    pub(super) fn measure(
        pack: &Pack,
        kernels: Kernels,
        settings: &BenchSettings,
        stop: &CancelToken,
        progress: &dyn Progress,
    ) -> Result<Self, StepError> {
        let drive: Result<Vec<Option<f64>>, StepError> = (0..settings.repeats.min(3))
            .map(|_| drive_rate(pack, DRIVE_BYTES, stop))
            .collect();
        let drive: Option<Vec<f64>> = drive?.into_iter().collect();
        let mut buffer = Arena::new(BUFFER_BYTES)?.take(BUFFER_BYTES)?;
        buffer.fill(1);
        let mut limits = Vec::new();
        for threads in &settings.threads {
            limits.push(on_threads(*threads, || {
                limits_here(*threads, kernels, &buffer, settings)
            })?);
            progress.advance(1);
        }
        let hash = (0..settings.repeats).map(|_| {
            let began = Instant::now();
            std::hint::black_box(Blake3::of(&buffer[..HASH_BYTES]));
            rate(HASH_BYTES as u64, began)
        });
        let blake3_rate = median(hash.collect());
        progress.advance(1);
        Ok(Self {
            limits,
            drive_rate: drive.map(median).filter(|r| *r > 0.0),
            blake3_rate,
        })
    }
}

fn limits_here(
    threads: usize,
    kernels: Kernels,
    buffer: &[u8],
    settings: &BenchSettings,
) -> BenchLimits {
    read_bandwidth(kernels, &[buffer]); // wakes the threads
    let times = settings.repeats.max(3);
    let read = (0..times).map(|_| read_bandwidth(kernels, &[buffer]));
    let (read_bandwidth, highest_read_bandwidth) = median_and_highest(read.collect());
    let multiply_add = (0..times).map(|_| multiply_add_peak(kernels, settings.compute, FMA_STEPS));
    let (fma_peak, highest_fma_peak) = median_and_highest(multiply_add.collect());
    BenchLimits {
        threads: threads as u64,
        read_bandwidth,
        highest_read_bandwidth,
        fma_peak,
        highest_fma_peak,
    }
}

#[expect(clippy::cast_precision_loss, reason = "a rate")]
pub(super) fn rate(bytes: u64, began: Instant) -> f64 {
    bytes as f64 / began.elapsed().as_secs_f64()
}

/// Reads up to `most` bytes of the largest packs past the page cache, several pieces at a time;
/// `None`: that cannot be done.
pub(super) fn drive_rate(
    pack: &Pack,
    most: u64,
    stop: &CancelToken,
) -> Result<Option<f64>, StepError> {
    let mut packs: Vec<_> = pack.manifest().packs.iter().collect();
    packs.sort_by_key(|p| std::cmp::Reverse(p.length));
    let (mut files, mut total) = (Vec::new(), 0);
    for pack_file in packs {
        if total >= most {
            break;
        }
        // of a pack that is not a folder of this machine there is no drive to measure
        let AlignedFile::Local(file) = pack.open_direct(&pack_file.path)? else {
            return Ok(None);
        };
        file.file().forget();
        total += pack_file.length;
        files.push((file, pack_file.length));
    }
    let pieces: Vec<(&DirectFile, u64)> = files
        .iter()
        .flat_map(|(file, length)| (0..length / READ_BYTES).map(move |i| (&**file, i * READ_BYTES)))
        .take(usize::try_from(most / READ_BYTES).unwrap_or(1024))
        .collect();
    let mut blocks = Vec::new();
    for _ in 0..READERS {
        let bytes = usize::try_from(READ_BYTES).unwrap_or(0);
        blocks.push(Arena::new(bytes)?.take(bytes)?);
    }
    let reads = Reads {
        pieces: &pieces,
        next: AtomicUsize::new(0),
        not_direct: AtomicUsize::new(0),
        stop,
    };
    let began = Instant::now();
    let done: Vec<Result<(), StepError>> = std::thread::scope(|scope| {
        let readers = blocks
            .iter_mut()
            .map(|block| scope.spawn(|| reads.work(block)));
        let readers: Vec<_> = readers.collect(); // all of them start before one is waited for
        let joined = readers.into_iter().map(|r| r.join());
        joined
            .map(|done| done.unwrap_or_else(|panic| resume_unwind(panic)))
            .collect()
    });
    let seen = rate(pieces.len() as u64 * READ_BYTES, began);
    done.into_iter().collect::<Result<(), _>>()?;
    // a few pieces that were still in the page cache change nothing
    let mostly_direct = reads.not_direct.into_inner() * 20 <= pieces.len();
    Ok((mostly_direct && !pieces.is_empty()).then_some(seen))
}

/// Pieces of files that several threads read.
struct Reads<'r> {
    pieces: &'r [(&'r DirectFile, u64)],
    next: AtomicUsize,
    /// Pieces that came through the page cache.
    not_direct: AtomicUsize,
    stop: &'r CancelToken,
}

impl Reads<'_> {
    fn work(&self, block: &mut Block) -> Result<(), StepError> {
        loop {
            self.stop.check()?;
            let next = self.next.fetch_add(1, Ordering::Relaxed);
            let Some((file, at)) = self.pieces.get(next) else {
                return Ok(());
            };
            let path = file.read_aligned(&(*at..at + READ_BYTES), block)?;
            let not_direct = usize::from(path != ReadPath::Direct);
            self.not_direct.fetch_add(not_direct, Ordering::Relaxed);
        }
    }
}
