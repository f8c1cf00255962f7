//! What loading took.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use segpack_formats::io::ReadPath;

/// What loading took. Times are summed over the threads that load.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LoadStats {
    /// Stored bytes read past the page cache.
    pub direct: u64,
    /// Stored bytes that were in the page cache.
    pub cached: u64,
    /// Stored bytes read through the page cache.
    pub buffered: u64,
    /// Stored bytes of packs that are not a folder of this machine.
    pub elsewhere: u64,
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
        self.direct + self.cached + self.buffered + self.elsewhere
    }
}

/// [`LoadStats`] that threads add to.
#[derive(Debug, Default)]
pub(super) struct Counters {
    direct: AtomicU64,
    cached: AtomicU64,
    buffered: AtomicU64,
    elsewhere: AtomicU64,
    decoded: AtomicU64,
    pub(super) read_nanos: AtomicU64,
    pub(super) check_nanos: AtomicU64,
    pub(super) decode_nanos: AtomicU64,
}

impl Counters {
    /// Counts stored bytes that were read this way.
    pub(super) fn add_read(&self, path: ReadPath, bytes: u64) {
        let counter = match path {
            ReadPath::Direct => &self.direct,
            ReadPath::Cached => &self.cached,
            ReadPath::Buffered => &self.buffered,
            ReadPath::Elsewhere => &self.elsewhere,
        };
        counter.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts raw bytes that were decoded.
    pub(super) fn add_decoded(&self, bytes: usize) {
        self.decoded.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// The counts so far.
    pub(super) fn stats(&self) -> LoadStats {
        let get = |n: &AtomicU64| n.load(Ordering::Relaxed);
        let time = |n: &AtomicU64| Duration::from_nanos(get(n));
        LoadStats {
            direct: get(&self.direct),
            cached: get(&self.cached),
            buffered: get(&self.buffered),
            elsewhere: get(&self.elsewhere),
            decoded: get(&self.decoded),
            read_time: time(&self.read_nanos),
            check_time: time(&self.check_nanos),
            decode_time: time(&self.decode_nanos),
        }
    }
}

/// Adds the time since `began` to a counter of nanoseconds.
pub(super) fn add_time(counter: &AtomicU64, began: Instant) {
    let nanos = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
    counter.fetch_add(nanos, Ordering::Relaxed);
}
