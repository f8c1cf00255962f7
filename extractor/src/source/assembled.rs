//! A checkpoint that lies in no folder: the shards of one pack, some of their tensors taken from
//! elsewhere.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use segpack_formats::io::{CancelToken, ReadAt, Stamp, to_usize};
use segpack_formats::pack::{SegmentReader, StoredSegment, Unpacker};
use segpack_formats::{FormatError, Result};

/// Where bytes of a shard lie.
#[derive(Debug, Clone)]
pub(crate) enum Bytes {
    /// As they are, from this byte of a file on.
    Plain {
        /// The file.
        input: Arc<dyn ReadAt>,
        /// First byte.
        at: u64,
    },
    /// Within a coded segment.
    Coded {
        /// The pack file.
        input: Arc<dyn ReadAt>,
        /// The segment.
        segment: StoredSegment,
        /// First byte in the raw segment.
        at: u64,
    },
}

/// Bytes of a shard that lie in one place.
#[derive(Debug, Clone)]
pub(crate) struct Piece {
    /// Which bytes of the shard.
    pub range: Range<u64>,
    /// Where they lie.
    pub bytes: Bytes,
}

/// A shard that is put together from pieces.
#[derive(Debug)]
pub(crate) struct AssembledShard {
    path: PathBuf,
    header: Vec<u8>,
    /// In order, without holes, from the header to the end.
    pieces: Vec<Piece>,
    length: u64,
    /// Files that nobody may change meanwhile. Those of packs have digests, and get second names.
    watched: Vec<Arc<dyn ReadAt>>,
    unpackers: Mutex<Vec<Unpacker>>,
}

impl AssembledShard {
    /// A shard of this `header` and these pieces; `path` is what messages name, `watched` are files
    /// that nobody may change meanwhile.
    ///
    /// # Errors
    /// `Malformed` where the pieces leave bytes out, overlap, or end before or after `length`.
    pub(crate) fn new(
        path: PathBuf,
        header: Vec<u8>,
        mut pieces: Vec<Piece>,
        length: u64,
        watched: Vec<Arc<dyn ReadAt>>,
    ) -> Result<Self> {
        pieces.retain(|p| !p.range.is_empty());
        pieces.sort_by_key(|p| p.range.start);
        let mut at = header.len() as u64;
        for piece in &pieces {
            if piece.range.start != at {
                let what = format!("bytes {at}..{} are of no tensor", piece.range.start);
                return Err(FormatError::malformed(&path, what));
            }
            at = piece.range.end;
        }
        if at != length {
            let what = format!("its tensors end at byte {at} of {length}");
            return Err(FormatError::malformed(&path, what));
        }
        Ok(Self {
            path,
            header,
            pieces,
            length,
            watched,
            unpackers: Mutex::default(),
        })
    }

    /// Fills `to` with bytes of a coded segment.
    fn decode(
        &self,
        input: &dyn ReadAt,
        segment: StoredSegment,
        range: Range<u64>,
        to: &mut [u8],
    ) -> Result<()> {
        let free = self.lock().pop();
        let mut unpacker = match free {
            Some(unpacker) => unpacker,
            None => Unpacker::new()?,
        };
        let mut filled = 0;
        let reader = SegmentReader::open(input, segment)?;
        let never = CancelToken::default();
        reader.for_each_piece(range, &mut unpacker, &never, |piece| {
            to[filled..filled + piece.len()].copy_from_slice(piece);
            filled += piece.len();
            Ok::<_, FormatError>(())
        })?;
        self.lock().push(unpacker);
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Unpacker>> {
        self.unpackers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Fills `to` with bytes of one piece, from `start` of the shard on.
    fn read_piece(&self, piece: &Piece, start: u64, to: &mut [u8]) -> Result<()> {
        let skipped = start - piece.range.start;
        match &piece.bytes {
            Bytes::Plain { input, at } => input.read_at(to, at + skipped),
            Bytes::Coded { input, segment, at } => {
                let first = at + skipped;
                self.decode(&**input, *segment, first..first + to.len() as u64, to)
            }
        }
    }
}

impl ReadAt for AssembledShard {
    fn name(&self) -> &Path {
        &self.path
    }

    fn stamp(&self) -> Stamp {
        Stamp::of_length(self.length)
    }

    fn read_at(&self, to: &mut [u8], offset: u64) -> Result<()> {
        let end = offset.saturating_add(to.len() as u64);
        if end > self.length {
            return Err(FormatError::ends_early(&self.path, end, self.length));
        }
        let header = self.header.len() as u64;
        let mut at = offset;
        while at < end {
            let rest = &mut to[to_usize(at - offset)..];
            if at < header {
                let taken = to_usize(header.min(end) - at);
                let from = to_usize(at);
                rest[..taken].copy_from_slice(&self.header[from..from + taken]);
                at += taken as u64;
                continue;
            }
            // there are no holes: the last piece that begins before or at this byte holds it
            let number = self.pieces.partition_point(|p| p.range.start <= at);
            let piece = &self.pieces[number - 1];
            let taken = to_usize(piece.range.end.min(end) - at);
            self.read_piece(piece, at, &mut rest[..taken])?;
            at += taken as u64;
        }
        Ok(())
    }

    fn check_unchanged(&self) -> Result<()> {
        self.watched
            .iter()
            .try_for_each(|input| input.check_unchanged())
    }
}
