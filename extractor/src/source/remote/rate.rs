//! Bytes a second at most, of all connections together.

use std::io::{self, Read};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use segpack_formats::io::CancelToken;

use crate::work::lock;

/// How often a pause looks whether it should end.
const TICK: Duration = Duration::from_millis(20);
/// Bytes that are sent at a time, at most and at least.
const PIECE_BYTES: [u64; 2] = [1 << 10, 64 << 10];

/// A limit that several connections keep together.
#[derive(Debug)]
pub(super) struct Limit {
    rate: Option<u64>,
    /// When the next bytes may come.
    next: Mutex<Instant>,
}

impl Limit {
    pub(super) fn new(rate: Option<u64>) -> Self {
        Self {
            rate,
            next: Mutex::new(Instant::now()),
        }
    }

    /// Waits until these bytes, which have come, are within the limit.
    pub(super) fn wait(&self, bytes: u64, stop: &CancelToken) {
        let Some(rate) = self.rate else { return };
        #[expect(clippy::cast_precision_loss, reason = "a time")]
        let takes = Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64);
        let until = {
            let mut next = lock(&self.next);
            *next = (*next).max(Instant::now()) + takes;
            *next
        };
        while !stop.is_cancelled() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            thread::sleep(left.min(TICK));
        }
    }
}

/// The body of a request, read as fast as a limit allows.
pub(super) struct Paced<'a> {
    bytes: &'a [u8],
    limit: &'a Limit,
    stop: &'a CancelToken,
}

impl<'a> Paced<'a> {
    pub(super) fn new(bytes: &'a [u8], limit: &'a Limit, stop: &'a CancelToken) -> Self {
        Self { bytes, limit, stop }
    }
}

impl Read for Paced<'_> {
    /// In pieces of a tenth of a second, so that no connection waits long for the next.
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let [least, most] = PIECE_BYTES;
        let piece = self
            .limit
            .rate
            .map_or(most, |rate| (rate / 10).clamp(least, most));
        let piece = usize::try_from(piece).unwrap_or(usize::MAX);
        let read = (&self.bytes[..self.bytes.len().min(piece)]).read(to)?;
        self.bytes = &self.bytes[read..];
        self.limit.wait(read as u64, self.stop);
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_kept_by_all_together() {
        let limit = Limit::new(Some(1_000_000));
        let began = Instant::now();
        let stop = CancelToken::default();
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| limit.wait(25_000, &stop));
            }
        });
        assert!(began.elapsed() >= Duration::from_millis(100));
    }

    #[test]
    fn a_body_is_read_as_a_whole_and_no_faster_than_it_may() {
        let (limit, stop) = (Limit::new(Some(200_000)), CancelToken::default());
        let bytes: Vec<u8> = (0..=u8::MAX).cycle().take(25_000).collect();
        let (mut read, began) = (Vec::new(), Instant::now());
        Paced::new(&bytes, &limit, &stop)
            .read_to_end(&mut read)
            .unwrap();
        assert!(read == bytes && began.elapsed() >= Duration::from_millis(125));
    }
}
