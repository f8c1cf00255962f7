//! One segment on its way into memory.

use segpack_formats::io::to_usize;
use std::sync::{Arc, Mutex};

use segpack_formats::codec::ChunkTable;
use segpack_formats::digest::{Blake3, Blake3Part};
use segpack_formats::{FormatError, Result};
use segpack_manifests::documents::SegmentEntry;
use segpack_manifests::folder::AlignedFile;

use super::lock;
use crate::weights::checksum::damaged;
use crate::weights::placement::data_offset;

/// One segment on its way.
pub(super) struct Job<'s> {
    pub(super) segment: &'s SegmentEntry,
    pub(super) file: Arc<AlignedFile>,
    /// Of a coded segment.
    pub(super) table: Option<Arc<ChunkTable>>,
    /// Whether its digest is compared.
    pub(super) is_checked: bool,
    /// Digests of its parts.
    pub(super) parts: Mutex<Vec<Blake3Part>>,
    /// Of what went wrong, that with the lowest offset.
    failed: Mutex<Option<(u64, FormatError)>>,
}

impl<'s> Job<'s> {
    pub(super) fn new(
        segment: &'s SegmentEntry,
        file: Arc<AlignedFile>,
        table: Option<Arc<ChunkTable>>,
        is_checked: bool,
    ) -> Self {
        Self {
            segment,
            file,
            table,
            is_checked,
            parts: Mutex::default(),
            failed: Mutex::default(),
        }
    }

    /// Keeps the error of the part at this offset, unless there is one of an earlier part.
    pub(super) fn note(&self, offset: u64, done: Result<()>) {
        if let Err(e) = done {
            let mut failed = lock(&self.failed);
            if failed.as_ref().is_none_or(|(first, _)| offset < *first) {
                *failed = Some((offset, e));
            }
        }
    }

    /// The first error of a part.
    pub(super) fn outcome(&self) -> Result<()> {
        lock(&self.failed).take().map_or(Ok(()), |(_, e)| Err(e))
    }

    /// Compares the digest of all parts, or of the bytes in memory where a segment does not begin
    /// at a page.
    pub(super) fn check_digest(&self, memory: &[u8]) -> Result<()> {
        let segment = self.segment;
        let begin = data_offset(segment);
        let seen = if begin == 0 {
            Blake3::of_parts(lock(&self.parts).iter(), segment.stored_length)
        } else {
            Some(Blake3::of(&memory[begin..][..to_usize(segment.raw_length)]))
        };
        if seen == Some(segment.blake3) {
            return Ok(());
        }
        let seen = seen.map_or_else(|| "none".to_owned(), |b| b.to_string());
        Err(damaged(self.file.file(), segment, &seen))
    }

    /// An error of this segment, which names its file.
    pub(super) fn malformed(&self, what: String) -> FormatError {
        FormatError::malformed(self.file.file().name(), what)
    }
}
