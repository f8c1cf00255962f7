//! The bytes of tensors and segments, decoded and checked, from an open pack.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use segpack_formats::codec::Codec;
use segpack_formats::digest::Blake3Hasher;
use segpack_formats::io::{InputFile, READ_BYTES, Stop};
use segpack_formats::pack::{SegmentReader, Unpacker};
use segpack_formats::{FormatError, Result};
use segpack_manifests::Pack;
use segpack_manifests::documents::{SegmentEntry, TensorEntry};

/// An open pack whose files are opened when first needed. Shared between threads.
#[derive(Debug)]
pub struct WeightSource<'a> {
    pack: &'a Pack,
    files: Mutex<HashMap<String, Arc<InputFile>>>,
}

/// One thread's access to a [`WeightSource`], with buffers of its own.
#[derive(Debug)]
pub struct WeightReader<'a> {
    source: &'a WeightSource<'a>,
    unpacker: Unpacker,
}

impl<'a> WeightSource<'a> {
    /// Reads from this pack. Nothing is opened yet.
    pub fn new(pack: &'a Pack) -> Self {
        Self { pack, files: Mutex::default() }
    }

    /// The pack.
    pub fn pack(&self) -> &'a Pack {
        self.pack
    }

    /// A reader for one thread.
    ///
    /// # Errors
    /// `Coded` where the decoder has no memory.
    pub fn reader(&'a self) -> Result<WeightReader<'a>> {
        Ok(WeightReader { source: self, unpacker: Unpacker::new()? })
    }

    /// A file of the pack folder.
    ///
    /// # Errors
    /// `Io`, or `Malformed` where it is not a regular file.
    pub fn open(&self, path: &str) -> Result<Arc<InputFile>> {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = files.get(path) {
            return Ok(Arc::clone(file));
        }
        let file = Arc::new(InputFile::open(&self.pack.path(path))?);
        files.insert(path.to_owned(), Arc::clone(&file));
        Ok(file)
    }

    /// The segment that holds a tensor.
    ///
    /// # Errors
    /// `Malformed` where the manifest does not list it.
    pub fn segment_of(&self, tensor: &TensorEntry) -> Result<&'a SegmentEntry> {
        self.pack.segment(&tensor.segment).ok_or_else(|| {
            let what =
                format!("tensor {:?} is in segment {:?}, which is not listed", tensor.name, tensor.segment);
            FormatError::malformed(self.pack.folder(), what)
        })
    }
}

impl WeightReader<'_> {
    /// Passes raw bytes of a segment (`range` counts in the raw segment) to `take`, in pieces.
    ///
    /// # Errors
    /// Damage of the pack names its file and byte; whatever `take` returns.
    pub fn read_segment<E: From<FormatError>>(
        &mut self,
        segment: &SegmentEntry,
        range: Range<u64>,
        stop: &Stop,
        take: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let file = self.source.open(&segment.pack)?;
        SegmentReader::open(&file, segment.stored())?.for_each_piece(range, &mut self.unpacker, stop, take)
    }

    /// Passes raw bytes of a tensor (`range` counts in the tensor) to `take`, in pieces. No digest is checked.
    ///
    /// # Errors
    /// As [`read_segment`](Self::read_segment).
    pub fn read_tensor<E: From<FormatError>>(
        &mut self,
        tensor: &TensorEntry,
        range: Range<u64>,
        stop: &Stop,
        take: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let segment = self.source.segment_of(tensor)?;
        self.read_segment(segment, tensor.offset + range.start..tensor.offset + range.end, stop, take)
    }

    /// Loads a whole segment, decoded, into `to`, which is cleared and reused. With `check`, the BLAKE3 of the
    /// stored bytes is compared first.
    ///
    /// # Errors
    /// `Malformed` with the pack's path, the segment and both digests where they differ; otherwise as
    /// [`read_segment`](Self::read_segment).
    pub fn load_segment(
        &mut self,
        segment: &SegmentEntry,
        check: bool,
        to: &mut Vec<u8>,
        stop: &Stop,
    ) -> Result<()> {
        let file = self.source.open(&segment.pack)?;
        let length = usize::try_from(segment.raw_length).map_err(|_| {
            FormatError::malformed(file.path(), format!("segment {:?} is too long", segment.id))
        })?;
        let mut blake3 = Blake3Hasher::default();
        to.clear();
        to.resize(length, 0);
        if segment.codec == Codec::Raw {
            for (i, piece) in to.chunks_mut(READ_BYTES).enumerate() {
                stop.check()?;
                file.read_at(piece, segment.offset + (i * READ_BYTES) as u64)?;
                if check {
                    blake3.update(piece);
                }
            }
        } else {
            if check {
                let range = segment.offset..segment.offset + segment.stored_length;
                file.for_each_piece(range, &mut vec![0; READ_BYTES], stop, |piece| {
                    blake3.update(piece);
                    Ok::<_, FormatError>(())
                })?;
            }
            let mut at = 0;
            self.read_segment(segment, 0..segment.raw_length, stop, |piece| {
                to[at..at + piece.len()].copy_from_slice(piece);
                at += piece.len();
                Ok::<_, FormatError>(())
            })?;
        }
        let seen = blake3.finish();
        if check && seen != segment.blake3 {
            let what = format!(
                "segment {:?} at byte {} is damaged: BLAKE3 {seen}, wanted {}; `segpack verify` says more",
                segment.id, segment.offset, segment.blake3
            );
            return Err(FormatError::malformed(file.path(), what));
        }
        Ok(())
    }
}
