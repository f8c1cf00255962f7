//! A pack whose segments are read through a cache.

use std::collections::HashMap;
use std::ops::Range;
use std::panic::resume_unwind;
use std::path::Path;
use std::sync::Arc;

use segpack_formats::io::{InputFile, ReadAt, Stamp, to_usize};
use segpack_formats::{FormatError, Result};
use segpack_manifests::documents::Manifest;
use segpack_manifests::folder::{AlignedFile, PackFiles};

use super::{Key, SegmentCache};

/// Bytes that are fetched at a time: most experts have fewer.
const PIECE_BYTES: usize = 8 << 20;
/// Bytes that one connection fetches of them.
const PART_BYTES: usize = 2 << 20;

/// The segments of a file, by their first bytes.
type Spans = Arc<Vec<(u64, Key)>>;

/// The files of a pack, whose segments come from a cache or are put into it as a whole.
#[derive(Debug)]
pub(crate) struct CachedFiles {
    files: Arc<dyn PackFiles>,
    cache: Arc<SegmentCache>,
    spans: HashMap<String, Spans>,
}

impl CachedFiles {
    /// Of a pack with this manifest.
    pub(crate) fn new(files: Arc<dyn PackFiles>, cache: SegmentCache, manifest: &Manifest) -> Self {
        let mut spans: HashMap<String, Vec<(u64, Key)>> = HashMap::new();
        for segment in &manifest.segments {
            let key = Key {
                blake3: segment.blake3,
                length: segment.stored_length,
            };
            let of_file = spans.entry(segment.pack.clone()).or_default();
            of_file.push((segment.offset, key));
        }
        let sorted = spans.into_iter().map(|(path, mut spans)| {
            spans.sort_by_key(|(start, _)| *start);
            (path, Arc::new(spans))
        });
        Self {
            files,
            cache: Arc::new(cache),
            spans: sorted.collect(),
        }
    }
}

impl PackFiles for CachedFiles {
    fn root(&self) -> &Path {
        self.files.root()
    }

    fn has(&self, path: &str) -> Result<bool> {
        self.files.has(path)
    }

    fn length(&self, path: &str) -> Result<Option<u64>> {
        self.files.length(path)
    }

    fn paths(&self) -> Result<Option<Vec<String>>> {
        self.files.paths()
    }

    fn open(&self, path: &str) -> Result<Arc<dyn ReadAt>> {
        let Some(spans) = self.spans.get(path) else {
            return self.files.open(path);
        };
        Ok(Arc::new(CachedFile {
            file: self.files.open_direct(path)?,
            cache: Arc::clone(&self.cache),
            spans: Arc::clone(spans),
        }))
    }
}

/// A file of a pack, whose segments come from a cache.
#[derive(Debug)]
struct CachedFile {
    file: AlignedFile,
    cache: Arc<SegmentCache>,
    spans: Spans,
}

/// Where bytes are.
enum Part {
    /// In this segment, which begins there.
    Segment(u64, Key),
    /// In none, up to there.
    Between(u64),
}

impl CachedFile {
    fn part_at(&self, offset: u64) -> Part {
        let next = self.spans.partition_point(|(start, _)| *start <= offset);
        let before = next.checked_sub(1).map(|i| self.spans[i]);
        match before.filter(|(start, key)| offset < start + key.length) {
            Some((start, key)) => Part::Segment(start, key),
            None => {
                let end = self.spans.get(next).map(|(start, _)| *start);
                Part::Between(end.unwrap_or(u64::MAX))
            }
        }
    }

    /// The segment in the cache; `None` where that has no room for it.
    fn segment(&self, start: u64, key: Key) -> Result<Option<Arc<InputFile>>> {
        let file = self.file.file();
        let range = start..start + key.length;
        self.cache
            .get(key, file.name(), &|take| fetch(file, &range, take))
    }

    /// Fills `to` with bytes of a segment, `at` bytes from its start.
    fn read_segment(&self, (start, key): (u64, Key), to: &mut [u8], at: u64) -> Result<()> {
        if let Some(kept) = self.segment(start, key)? {
            if kept.read_at(to, at).is_ok() {
                return Ok(());
            }
            // another process has made room of it after it was closed here, or it was damaged
            self.cache.forget(key);
            if let Some(kept) = self.segment(start, key)? {
                return kept.read_at(to, at);
            }
        }
        self.file.file().read_at(to, start + at)
    }
}

/// Passes a range of a file to `take`, in large pieces, each fetched by several connections.
fn fetch(
    file: &dyn ReadAt,
    range: &Range<u64>,
    take: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let mut buffer = vec![0; to_usize(range.end - range.start).min(PIECE_BYTES)];
    let mut at = range.start;
    while at < range.end {
        let length = to_usize(range.end - at).min(buffer.len());
        fetch_piece(file, &mut buffer[..length], at)?;
        take(&buffer[..length])?;
        at += length as u64;
    }
    Ok(())
}

fn fetch_piece(file: &dyn ReadAt, to: &mut [u8], offset: u64) -> Result<()> {
    std::thread::scope(|scope| {
        let mut parts = to
            .chunks_mut(PART_BYTES)
            .zip((offset..).step_by(PART_BYTES));
        let first = parts.next();
        let others: Vec<_> = parts
            .map(|(part, at)| scope.spawn(move || file.read_at(part, at)))
            .collect();
        let mut done = first.map_or(Ok(()), |(part, at)| file.read_at(part, at));
        for other in others {
            let fetched = other.join().unwrap_or_else(|panic| resume_unwind(panic));
            done = done.and(fetched);
        }
        done
    })
}

impl ReadAt for CachedFile {
    fn name(&self) -> &Path {
        self.file.file().name()
    }

    fn stamp(&self) -> Stamp {
        self.file.file().stamp()
    }

    fn length(&self) -> u64 {
        self.file.file().length()
    }

    fn read_at(&self, mut to: &mut [u8], mut offset: u64) -> Result<()> {
        let end = offset.saturating_add(to.len() as u64);
        if end > self.length() {
            return Err(FormatError::ends_early(self.name(), end, self.length()));
        }
        while !to.is_empty() {
            let part = self.part_at(offset);
            let ends = match part {
                Part::Segment(start, key) => start + key.length,
                Part::Between(end) => end,
            };
            let length = to_usize(ends - offset).min(to.len());
            let (now, rest) = to.split_at_mut(length);
            match part {
                Part::Segment(start, key) => {
                    self.read_segment((start, key), now, offset - start)?;
                }
                Part::Between(_) => self.file.file().read_at(now, offset)?,
            }
            to = rest;
            offset += length as u64;
        }
        Ok(())
    }

    fn check_unchanged(&self) -> Result<()> {
        self.file.file().check_unchanged()
    }
}
