//! Reading segments back: the raw bytes of any range, whatever the codec.

use std::ops::Range;

use super::StoredSegment;
use crate::codec::{ChunkDecoder, ChunkTable, Codec, PREFIX_BYTES};
use crate::io::{CancelToken, READ_BYTES, ReadAt, to_usize};
use crate::{FormatError, Result};

/// One segment of an open pack.
#[derive(Debug)]
pub struct SegmentReader<'a> {
    pack: &'a dyn ReadAt,
    segment: StoredSegment,
    table: Option<ChunkTable>,
}

/// Buffers and contexts that one thread reuses for all segments that it reads.
#[derive(Debug)]
pub struct Unpacker {
    buffer: Vec<u8>,
    raw: Vec<u8>,
    decoder: ChunkDecoder,
}

impl Unpacker {
    /// Buffers for one thread; those for decoding grow when first used.
    ///
    /// # Errors
    /// `Coded` where zstd has no memory.
    pub fn new() -> Result<Self> {
        Ok(Self {
            buffer: vec![0; READ_BYTES],
            raw: Vec::new(),
            decoder: ChunkDecoder::new()?,
        })
    }
}

impl<'a> SegmentReader<'a> {
    /// Finds a segment in its pack; for a coded one, reads and checks its chunk table.
    ///
    /// # Errors
    /// `Malformed` with the pack's path where the segment does not fit into the file or its table
    /// is broken.
    pub fn open(pack: &'a dyn ReadAt, segment: StoredSegment) -> Result<Self> {
        let end = segment.offset.checked_add(segment.stored_length);
        if end.is_none_or(|end| end > pack.length()) {
            return Err(FormatError::malformed(
                pack.name(),
                format!(
                    "segment at byte {} + {} ends after the file's {} bytes",
                    segment.offset,
                    segment.stored_length,
                    pack.length()
                ),
            ));
        }
        let table = match segment.codec {
            Codec::Raw if segment.stored_length == segment.raw_length => None,
            Codec::Raw => {
                return Err(FormatError::malformed(
                    pack.name(),
                    format!(
                        "raw segment stores {} bytes for {}",
                        segment.stored_length, segment.raw_length
                    ),
                ));
            }
            Codec::Zstd | Codec::Bf16Zstd | Codec::Bf16Rans => {
                Some(read_table(pack, &segment).map_err(in_segment(pack, segment))?)
            }
        };
        Ok(Self {
            pack,
            segment,
            table,
        })
    }

    /// The chunks of a coded segment; none of a raw one.
    pub fn table(&self) -> Option<&ChunkTable> {
        self.table.as_ref()
    }

    /// Passes the raw bytes of `range` (counted in the raw segment) to `take`, in pieces.
    ///
    /// # Errors
    /// `Malformed` where the range leaves the segment or a chunk is damaged; as
    /// [`ReadAt::read_at`] otherwise.
    pub fn for_each_piece<E: From<FormatError>>(
        &self,
        range: Range<u64>,
        unpacker: &mut Unpacker,
        cancel: &CancelToken,
        mut take: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        if range.start > range.end || range.end > self.segment.raw_length {
            let what = format!(
                "bytes {range:?} leave a segment of {} bytes",
                self.segment.raw_length
            );
            return Err(FormatError::malformed(self.pack.name(), what).into());
        }
        let Some(table) = &self.table else {
            let at = self.segment.offset;
            return self.pack.for_each_piece(
                at + range.start..at + range.end,
                &mut unpacker.buffer,
                cancel,
                take,
            );
        };
        for chunk in table.overlapping(&range) {
            cancel.check()?;
            let raw = self.decode(chunk, unpacker)?;
            let from = range.start.max(chunk.raw.start) - chunk.raw.start;
            let to = range.end.min(chunk.raw.end) - chunk.raw.start;
            take(&raw[to_usize(from)..to_usize(to)])?;
        }
        Ok(())
    }

    fn decode<'u>(
        &self,
        chunk: &crate::codec::Chunk,
        unpacker: &'u mut Unpacker,
    ) -> Result<&'u [u8]> {
        let Unpacker {
            buffer,
            raw,
            decoder,
        } = unpacker;
        let stored = to_usize(chunk.stored.end - chunk.stored.start);
        let wanted = to_usize(chunk.raw.end - chunk.raw.start);
        // both are at most `MAX_CHUNK_BYTES`: the table was checked
        if buffer.len() < stored {
            buffer.resize(stored, 0);
        }
        if raw.len() < wanted {
            raw.resize(wanted, 0);
        }
        let stored = &mut buffer[..stored];
        self.pack
            .read_at(stored, self.segment.offset + chunk.stored.start)?;
        decoder
            .decode(chunk, stored, &mut raw[..wanted])
            .map_err(in_segment(self.pack, self.segment))?;
        Ok(&raw[..wanted])
    }
}

/// Says which file and segment a broken stream belongs to.
fn in_segment(
    pack: &dyn ReadAt,
    segment: StoredSegment,
) -> impl FnOnce(FormatError) -> FormatError {
    move |e| match e {
        FormatError::Coded { what } => FormatError::malformed(
            pack.name(),
            format!(
                "coded segment at byte {} of {} bytes: {what}",
                segment.offset, segment.stored_length
            ),
        ),
        other => other,
    }
}

fn read_table(pack: &dyn ReadAt, segment: &StoredSegment) -> Result<ChunkTable> {
    let prefix =
        pack.read_range(segment.offset..segment.offset + segment.stored_length.min(PREFIX_BYTES))?;
    let end = ChunkTable::parse_prefix(&prefix, segment.stored_length)?;
    let head = pack.read_range(segment.offset..segment.offset + end)?;
    let table = ChunkTable::parse(&head, segment.stored_length)?;
    if table.raw_length != segment.raw_length {
        return Err(FormatError::coded(format!(
            "decodes to {} bytes, the manifest says {}",
            table.raw_length, segment.raw_length
        )));
    }
    Ok(table)
}
