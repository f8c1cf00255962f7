//! Whether a finished pack can be read back from the drive: asked before what it was made from goes.

use std::path::Path;

use segpack_formats::codec::Codec;
use segpack_formats::digest::{Sha256, Sha256Hasher};
use segpack_formats::io::{CancelToken, InputFile, READ_BYTES};
use segpack_formats::pack::{SegmentReader, Unpacker, WrittenPack};
use segpack_formats::{FormatError, Result};
use segpack_manifests::documents::PlannedPack;

use crate::work::Job;

/// Reads a pack of the folder `out`, past what the page cache holds of it, and compares it with what
/// was written; coded segments are decoded, too. The progress advances by its raw bytes.
///
/// # Errors
/// `Malformed` where it is not what was written; as [`ReadAt::read_at`] otherwise; `Interrupted`.
///
/// [`ReadAt::read_at`]: segpack_formats::io::ReadAt::read_at
pub(crate) fn read_back(
    out: &Path,
    planned: &PlannedPack,
    written: &WrittenPack,
    job: Job<'_>,
) -> Result<()> {
    let input = InputFile::open_beneath(out, &planned.path)?;
    input.forget();
    let seen = digest_file(&input, &mut vec![0; READ_BYTES], job.stop)?;
    same(&input, "the file", seen, written.sha256)?;
    let (mut unpacker, mut digests) = (Unpacker::new()?, written.tensors.iter());
    for (segment, stored) in planned.segments.iter().zip(&written.segments) {
        let tensors = segment.tensors.iter().zip(digests.by_ref());
        if stored.codec == Codec::Raw {
            // the digest of the file was taken from the same bytes as those of its tensors
            tensors.for_each(drop);
            job.progress.advance(stored.raw_length);
            continue;
        }
        let (reader, mut at) = (SegmentReader::open(&input, *stored)?, 0);
        for (tensor, wanted) in tensors {
            let mut sha256 = Sha256Hasher::default();
            let range = at..at + tensor.source.length;
            at = range.end;
            reader.for_each_piece(range, &mut unpacker, job.stop, |piece| {
                sha256.update(piece);
                job.progress.advance(piece.len() as u64);
                Ok::<_, FormatError>(())
            })?;
            same(&input, &tensor.name, sha256.finish(), *wanted)?;
        }
    }
    Ok(())
}

/// The SHA-256 of a whole file, read through the reused `buffer`.
///
/// # Errors
/// As [`ReadAt::read_at`]; `Interrupted`.
///
/// [`ReadAt::read_at`]: segpack_formats::io::ReadAt::read_at
pub(crate) fn digest_file(
    input: &InputFile,
    buffer: &mut [u8],
    stop: &CancelToken,
) -> Result<Sha256> {
    let mut sha256 = Sha256Hasher::default();
    input.for_each_piece(0..input.length(), buffer, stop, |piece| {
        sha256.update(piece);
        Ok::<_, FormatError>(())
    })?;
    Ok(sha256.finish())
}

fn same(input: &InputFile, what: &str, seen: Sha256, wanted: Sha256) -> Result<()> {
    if seen == wanted {
        return Ok(());
    }
    let what = format!(
        "read back after it was written, {what} has SHA-256 {seen}, wanted {wanted}: the drive or \
         the memory of this machine may be failing; no more of the source is removed"
    );
    Err(FormatError::malformed(input.path(), what))
}
