//! Writing a pack in one go, in bounded memory.

use std::fs::File;
use std::iter::Peekable;
use std::path::Path;

use super::header::{coded_header, data_start, raw_header};
use super::{ALIGNMENT, PackTensor, SegmentSpec, StoredSegment, WrittenPack};
use crate::codec::{
    ChunkEncoder, ChunkTable, Codec, Coding, PREFIX_BYTES, TABLE_ENTRY_BYTES, chunk_count,
    chunk_lengths,
};
use crate::digest::{Blake3Hasher, Sha256, Sha256Hasher};
use crate::io::{CancelToken, InputFile, READ_BYTES, to_usize, write_all_at};
use crate::numeric::Dtype;
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
    cancel: &CancelToken,
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
        coding => write_coded(&out, segments, coding, source, cancel),
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

fn check_length(spec: &PackTensor, seen: u64, path: &Path) -> Result<()> {
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
    cancel: &CancelToken,
) -> Result<WrittenPack> {
    let mut encoder = ChunkEncoder::new(coding)?;
    let start = data_start(segments, coding.codec());
    let (mut at, mut stored, mut tensors) = (start, Vec::new(), Vec::new());
    for (s, segment) in segments.iter().enumerate() {
        let (coded_length, digests) =
            write_coded_segment(out, (s, segment), at, &mut encoder, source, cancel)?;
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
    let sha256 = digest_back(out.path, start, &mut stored, cancel)?;
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
    cancel: &CancelToken,
) -> Result<Sha256> {
    let (back, mut buffer) = (InputFile::open(path)?, vec![0; READ_BYTES]);
    let mut pack = Sha256Hasher::default();
    back.for_each_piece(0..data_start, &mut buffer, cancel, |piece| {
        pack.update(piece);
        Ok::<_, FormatError>(())
    })?;
    for segment in stored {
        let mut blake3 = Blake3Hasher::default();
        let range = segment.offset..segment.offset + segment.stored_length;
        back.for_each_piece(range, &mut buffer, cancel, |piece| {
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
    cancel: &CancelToken,
) -> Result<(u64, Vec<Sha256>)> {
    // the table comes first but is known last: its length is known now
    let chunks: u64 = segment.tensors.iter().map(|t| chunk_count(t.length)).sum();
    let mut coded = CodedSegment {
        out,
        encoder,
        cancel,
        start,
        table: ChunkTable {
            chunks: Vec::new(),
            raw_length: 0,
        },
        stored: PREFIX_BYTES + chunks * TABLE_ENTRY_BYTES,
        raw: Vec::new(),
    };
    let mut digests = Vec::new();
    for (t, tensor) in segment.tensors.iter().enumerate() {
        let mut lengths = chunk_lengths(tensor.length).peekable();
        let (mut sha256, mut seen) = (Sha256Hasher::default(), 0);
        source.read(s, t, &mut |piece| {
            sha256.update(piece);
            seen += piece.len() as u64;
            coded.take(tensor.dtype, &mut lengths, piece)
        })?;
        check_length(tensor, seen, out.path)?;
        digests.push(sha256.finish());
    }
    Ok((coded.finish()?, digests))
}

/// A coded segment on its way into the file.
struct CodedSegment<'a> {
    out: &'a Output<'a>,
    encoder: &'a mut ChunkEncoder,
    cancel: &'a CancelToken,
    /// First byte in the file.
    start: u64,
    /// The chunks so far.
    table: ChunkTable,
    /// Bytes of the segment so far, its table included.
    stored: u64,
    /// The begun chunk.
    raw: Vec<u8>,
}

impl CodedSegment<'_> {
    /// Takes the next bytes of a tensor whose chunks have these lengths; writes each chunk that
    /// they complete.
    fn take(
        &mut self,
        dtype: Dtype,
        lengths: &mut Peekable<impl Iterator<Item = u64>>,
        mut piece: &[u8],
    ) -> Result<()> {
        while let Some(length) = lengths.peek().copied().filter(|_| !piece.is_empty()) {
            let missing = to_usize(length - self.raw.len() as u64);
            let (now, later) = piece.split_at(missing.min(piece.len()));
            self.raw.extend_from_slice(now);
            piece = later;
            if self.raw.len() as u64 == length {
                self.write_chunk(dtype)?;
                lengths.next();
            }
        }
        Ok(())
    }

    fn write_chunk(&mut self, dtype: Dtype) -> Result<()> {
        self.cancel.check()?;
        let (raw_start, stored_start) = (self.table.raw_length, self.stored);
        let (chunk, bytes) = self
            .encoder
            .encode(dtype, &self.raw, raw_start, stored_start)?;
        self.out.write(bytes, self.start + stored_start)?;
        (self.table.raw_length, self.stored) = (chunk.raw.end, chunk.stored.end);
        self.table.chunks.push(chunk);
        (self.out.progress)(self.raw.len() as u64);
        self.raw.clear();
        Ok(())
    }

    /// Writes the table and the padding; returns the length with both.
    fn finish(self) -> Result<u64> {
        self.out.write(&self.table.encode(), self.start)?;
        let padded = self.stored.next_multiple_of(ALIGNMENT);
        let padding = vec![0; to_usize(padded - self.stored)];
        self.out.write(&padding, self.start + self.stored)?;
        Ok(padded)
    }
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
