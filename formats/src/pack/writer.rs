//! Writing a pack in one go, in bounded memory.

use std::fs::File;
use std::path::Path;

use super::header::{coded_header, data_start, raw_header};
use super::{ALIGNMENT, SegmentSpec, StoredSegment, TensorSpec, WrittenPack};
use crate::codec::{
    ChunkEncoder, ChunkTable, Codec, Coding, PREFIX_BYTES, TABLE_ENTRY_BYTES, chunk_count,
    chunk_lengths,
};
use crate::digest::{Blake3Hasher, Sha256, Sha256Hasher};
use crate::io::{CancelToken, InputFile, READ_BYTES, to_usize, write_all_at};
use crate::{FormatError, Result};

/// Where the bytes of tensors come from.
pub trait TensorSource {
    /// Passes the bytes of one tensor to `take`, in pieces, from its first byte to its last.
    ///
    /// # Errors
    /// Where the bytes cannot be read; whatever `take` returns.
    fn read(
        &mut self,
        segment: usize,
        tensor: usize,
        take: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()>;
}

/// Writes `segments` into `file` (empty, open for writing; `path` is its name), header and all.
///
/// The bytes written depend on the segments and the coding alone. `progress` hears of raw bytes
/// done. The file is not synced.
///
/// # Errors
/// `Io` on the file, whatever the source returns, `Interrupted`; a source that gives too few or too
/// many bytes is `Changed`.
pub fn write_pack(
    file: &File,
    path: &Path,
    segments: &[SegmentSpec],
    coding: Coding,
    source: &mut dyn TensorSource,
    stop: &CancelToken,
    progress: &dyn Fn(u64),
) -> Result<WrittenPack> {
    let out = Output {
        file,
        path,
        progress,
    };
    match coding {
        Coding::Raw => {
            let mut at = 0;
            write_raw_pack(path, segments, source, progress, &mut |piece| {
                out.write(piece, at)?;
                at += piece.len() as u64;
                Ok(())
            })
        }
        coding => write_coded(&out, segments, coding, source, stop),
    }
}

struct Output<'a> {
    file: &'a File,
    path: &'a Path,
    progress: &'a dyn Fn(u64),
}

impl Output<'_> {
    fn write(&self, bytes: &[u8], at: u64) -> Result<()> {
        write_all_at(self.file, bytes, at).map_err(FormatError::io("write", self.path))
    }
}

fn check_length(spec: &TensorSpec, seen: u64, path: &Path) -> Result<()> {
    if seen == spec.length {
        return Ok(());
    }
    Err(FormatError::changed(
        path,
        format!(
            "tensor {:?} gave {seen} bytes, wanted {}",
            spec.name, spec.length
        ),
    ))
}

/// Passes a raw pack to `write`, from its first byte to its last; `path` is its name.
///
/// The header is known beforehand, so every digest is taken from each piece as it passes.
/// `progress` hears of raw bytes done.
///
/// # Errors
/// Whatever the source or `write` returns; a source that gives too few or too many bytes is
/// `Changed`.
pub fn write_raw_pack(
    path: &Path,
    segments: &[SegmentSpec],
    source: &mut dyn TensorSource,
    progress: &dyn Fn(u64),
    write: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<WrittenPack> {
    let header = raw_header(segments);
    write(&header)?;
    let mut pack = Sha256Hasher::default();
    pack.update(&header);
    let mut at = header.len() as u64;
    let mut written = WrittenPack {
        length: 0,
        sha256: Sha256([0; 32]),
        segments: Vec::new(),
        tensors: Vec::new(),
    };
    for (s, segment) in segments.iter().enumerate() {
        let (start, mut blake3) = (at, Blake3Hasher::default());
        for (t, tensor) in segment.tensors.iter().enumerate() {
            let (begin, mut sha256) = (at, Sha256Hasher::default());
            source.read(s, t, &mut |piece| {
                Sha256Hasher::update_pair(&mut sha256, &mut pack, piece);
                blake3.update(piece);
                write(piece)?;
                at += piece.len() as u64;
                progress(piece.len() as u64);
                Ok(())
            })?;
            check_length(tensor, at - begin, path)?;
            written.tensors.push(sha256.finish());
        }
        written.segments.push(StoredSegment {
            offset: start,
            stored_length: at - start,
            raw_length: at - start,
            codec: Codec::Raw,
            blake3: blake3.finish(),
        });
    }
    written.length = at;
    written.sha256 = pack.finish();
    Ok(written)
}

/// The header comes last, so the file's digests are taken by reading it back, while the page cache
/// holds it.
fn write_coded(
    out: &Output<'_>,
    segments: &[SegmentSpec],
    coding: Coding,
    source: &mut dyn TensorSource,
    stop: &CancelToken,
) -> Result<WrittenPack> {
    let mut encoder = ChunkEncoder::new(coding)?;
    let start = data_start(segments, coding.codec());
    let (mut at, mut stored, mut tensors) = (start, Vec::new(), Vec::new());
    for (s, segment) in segments.iter().enumerate() {
        let (coded_length, digests) =
            write_coded_segment(out, (s, segment), at, &mut encoder, source, stop)?;
        tensors.extend(digests);
        let raw_length = segment.raw_length();
        let (codec, stored_length) = if coded_length < raw_length {
            (coding.codec(), coded_length)
        } else {
            copy_segment(out, (s, segment), at, source)?;
            (Codec::Raw, raw_length)
        };
        let blake3 = crate::digest::Blake3([0; 32]);
        stored.push(StoredSegment {
            offset: at,
            stored_length,
            raw_length,
            codec,
            blake3,
        });
        at += stored_length;
    }
    out.write(&coded_header(segments, &stored, start), 0)?;
    // a coded segment that was given up may have reached further than the raw one in its place
    out.file
        .set_len(at)
        .map_err(FormatError::io("set the length of", out.path))?;
    let sha256 = digest_back(out.path, start, &mut stored, stop)?;
    Ok(WrittenPack {
        length: at,
        sha256,
        segments: stored,
        tensors,
    })
}

fn digest_back(
    path: &Path,
    data_start: u64,
    stored: &mut [StoredSegment],
    stop: &CancelToken,
) -> Result<Sha256> {
    let (back, mut buffer, mut pack) = (
        InputFile::open(path)?,
        vec![0; READ_BYTES],
        Sha256Hasher::default(),
    );
    back.for_each_piece(0..data_start, &mut buffer, stop, |piece| {
        pack.update(piece);
        Ok::<_, FormatError>(())
    })?;
    for segment in stored {
        let mut blake3 = Blake3Hasher::default();
        let range = segment.offset..segment.offset + segment.stored_length;
        back.for_each_piece(range, &mut buffer, stop, |piece| {
            pack.update(piece);
            blake3.update(piece);
            Ok::<_, FormatError>(())
        })?;
        segment.blake3 = blake3.finish();
    }
    Ok(pack.finish())
}

/// Writes one coded segment at `start`; returns its padded length and its tensors' digests.
fn write_coded_segment(
    out: &Output<'_>,
    (s, segment): (usize, &SegmentSpec),
    start: u64,
    encoder: &mut ChunkEncoder,
    source: &mut dyn TensorSource,
    stop: &CancelToken,
) -> Result<(u64, Vec<Sha256>)> {
    let chunks: u64 = segment.tensors.iter().map(|t| chunk_count(t.length)).sum();
    let mut table = ChunkTable {
        chunks: Vec::new(),
        raw_length: 0,
    };
    let mut stored = PREFIX_BYTES + chunks * TABLE_ENTRY_BYTES;
    let mut digests = Vec::new();
    let mut raw = Vec::new();
    for (t, tensor) in segment.tensors.iter().enumerate() {
        let (mut sha256, mut seen, mut lengths) =
            (Sha256Hasher::default(), 0, chunk_lengths(tensor.length));
        let mut wanted = lengths.next();
        let mut flush = |raw: &mut Vec<u8>| -> Result<()> {
            stop.check()?;
            let (chunk, bytes) = encoder.encode(tensor.dtype, raw, table.raw_length, stored)?;
            out.write(bytes, start + stored)?;
            (table.raw_length, stored) = (chunk.raw.end, chunk.stored.end);
            table.chunks.push(chunk);
            (out.progress)(raw.len() as u64);
            raw.clear();
            Ok(())
        };
        source.read(s, t, &mut |mut piece| {
            sha256.update(piece);
            seen += piece.len() as u64;
            while let Some(length) = wanted.filter(|_| !piece.is_empty()) {
                let missing = to_usize(length - raw.len() as u64);
                let (now, later) = piece.split_at(missing.min(piece.len()));
                raw.extend_from_slice(now);
                piece = later;
                if raw.len() as u64 == length {
                    flush(&mut raw)?;
                    wanted = lengths.next();
                }
            }
            Ok(())
        })?;
        check_length(tensor, seen, out.path)?;
        digests.push(sha256.finish());
    }
    out.write(&table.encode(), start)?;
    let padded = stored.next_multiple_of(ALIGNMENT);
    let padding = usize::try_from(padded - stored).unwrap_or_default();
    out.write(&vec![0; padding], start + stored)?;
    Ok((padded, digests))
}

/// Writes a segment's raw bytes, whose digests are known already.
fn copy_segment(
    out: &Output<'_>,
    (s, segment): (usize, &SegmentSpec),
    mut at: u64,
    source: &mut dyn TensorSource,
) -> Result<()> {
    for (t, tensor) in segment.tensors.iter().enumerate() {
        let begin = at;
        source.read(s, t, &mut |piece| {
            out.write(piece, at)?;
            at += piece.len() as u64;
            Ok(())
        })?;
        check_length(tensor, at - begin, out.path)?;
    }
    Ok(())
}
