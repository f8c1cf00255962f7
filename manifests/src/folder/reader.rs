//! The bytes of tensors and segments, decoded and checked, from an open pack.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use segpack_formats::digest::{Sha256, Sha256Hasher};
use segpack_formats::io::{CancelToken, ReadAt, Retried};
use segpack_formats::pack::{SegmentReader, Unpacker};
use segpack_formats::{FormatError, Result};

use super::AlignedFile;
use crate::Pack;
use crate::documents::{SegmentEntry, TensorEntry};

/// An open pack whose files are opened when first needed. Shared between threads.
#[derive(Debug)]
pub struct PackReader<'a> {
    pack: &'a Pack,
    files: Mutex<HashMap<String, Arc<dyn ReadAt>>>,
    direct: Mutex<HashMap<String, Arc<AlignedFile>>>,
}

/// One thread's access to a [`PackReader`], with buffers of its own.
#[derive(Debug)]
pub struct PackCursor<'a> {
    source: &'a PackReader<'a>,
    unpacker: Unpacker,
}

impl<'a> PackReader<'a> {
    /// Reads from this pack. Nothing is opened yet.
    pub fn new(pack: &'a Pack) -> Self {
        Self {
            pack,
            files: Mutex::default(),
            direct: Mutex::default(),
        }
    }

    /// The pack.
    pub fn pack(&self) -> &'a Pack {
        self.pack
    }

    /// A cursor for one thread.
    ///
    /// # Errors
    /// `Coded` where the decoder has no memory.
    pub fn cursor(&'a self) -> Result<PackCursor<'a>> {
        Ok(PackCursor {
            source: self,
            unpacker: Unpacker::new()?,
        })
    }

    /// A file of the pack.
    ///
    /// # Errors
    /// `Io`, or `Malformed` where it is not a regular file.
    pub fn open(&self, path: &str) -> Result<Arc<dyn ReadAt>> {
        keep(&self.files, path, |path| self.pack.open_file(path))
    }

    /// A file of the pack, to be read past the page cache where it is one of this machine.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_direct(&self, path: &str) -> Result<Arc<AlignedFile>> {
        let open = |path: &str| self.pack.open_direct(path).map(Arc::new);
        keep(&self.direct, path, open)
    }

    /// The reads that failed and, tried again, did not, with the paths of their files.
    pub fn retried(&self) -> Vec<(String, Retried)> {
        let files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        let direct = self.direct.lock().unwrap_or_else(PoisonError::into_inner);
        let opened = files.iter().map(|(path, file)| (path, &**file));
        let direct = direct.iter().map(|(path, file)| (path, file.file()));
        let mut retried: Vec<(String, Retried)> = opened
            .chain(direct)
            .flat_map(|(path, file)| file.retried().into_iter().map(|r| (path.clone(), r)))
            .collect();
        retried.sort_by(|a, b| (&a.0, a.1.range.start).cmp(&(&b.0, b.1.range.start)));
        retried
    }

    /// The bytes of a whole tensor: little-endian, the last dimension fastest, and those that its
    /// SHA-256 in the manifest is of. For large tensors, or parts of one, a [`PackCursor`] passes
    /// pieces.
    ///
    /// # Errors
    /// `Malformed` where the segment does not decode or the digest differs; `Io`.
    pub fn tensor_bytes(&'a self, tensor: &TensorEntry) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let whole = 0..tensor.length;
        self.cursor()?
            .read_tensor(tensor, whole, &CancelToken::default(), |piece| {
                bytes.extend_from_slice(piece);
                Ok::<_, FormatError>(())
            })?;
        self.compare(tensor, Sha256::of(&bytes))?;
        Ok(bytes)
    }

    /// Fills `to`, which has the tensor's length, with its bytes, as
    /// [`tensor_bytes`](Self::tensor_bytes) has them. No digest is checked.
    ///
    /// # Errors
    /// As [`PackCursor::read_tensor`]; `Malformed` where `to` has another length.
    pub fn read_into(
        &'a self,
        tensor: &TensorEntry,
        to: &mut [u8],
        stop: &CancelToken,
    ) -> Result<()> {
        if to.len() as u64 != tensor.length {
            let (name, wanted, given) = (&tensor.name, tensor.length, to.len());
            let what = format!("tensor {name} has {wanted} bytes, not {given}");
            return Err(FormatError::malformed(self.pack.folder(), what));
        }
        let mut rest = to;
        let whole = 0..tensor.length;
        self.cursor()?.read_tensor(tensor, whole, stop, |piece| {
            let (first, after) = std::mem::take(&mut rest).split_at_mut(piece.len());
            first.copy_from_slice(piece);
            rest = after;
            Ok(())
        })
    }

    /// Reads a tensor and compares its SHA-256 with the manifest's; keeps none of it.
    ///
    /// # Errors
    /// As [`tensor_bytes`](Self::tensor_bytes); `Interrupted`.
    pub fn check_tensor(&'a self, tensor: &TensorEntry, stop: &CancelToken) -> Result<()> {
        let mut hasher = Sha256Hasher::default();
        let whole = 0..tensor.length;
        self.cursor()?.read_tensor(tensor, whole, stop, |piece| {
            hasher.update(piece);
            Ok::<_, FormatError>(())
        })?;
        self.compare(tensor, hasher.finish())
    }

    /// Compares the digest of a tensor's bytes, seen by whoever read them, with the manifest's.
    ///
    /// # Errors
    /// `Malformed` where they differ.
    pub fn compare(&self, tensor: &TensorEntry, seen: Sha256) -> Result<()> {
        let wanted = tensor.sha256;
        if seen == wanted {
            return Ok(());
        }
        let path = self.pack.path(&self.segment_of(tensor)?.pack);
        let what = format!("tensor {}: SHA-256 {seen}, wanted {wanted}", tensor.name);
        Err(FormatError::malformed(&path, what))
    }

    /// The segment that holds a tensor.
    ///
    /// # Errors
    /// `Malformed` where the manifest does not list it.
    pub fn segment_of(&self, tensor: &TensorEntry) -> Result<&'a SegmentEntry> {
        self.pack.segment(&tensor.segment).ok_or_else(|| {
            let what = format!(
                "tensor {:?} is in segment {:?}, which is not listed",
                tensor.name, tensor.segment
            );
            FormatError::malformed(self.pack.folder(), what)
        })
    }
}

/// The file of this path that is open, or is opened now.
fn keep<F: ?Sized>(
    files: &Mutex<HashMap<String, Arc<F>>>,
    path: &str,
    open: impl FnOnce(&str) -> Result<Arc<F>>,
) -> Result<Arc<F>> {
    let mut files = files.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(file) = files.get(path) {
        return Ok(Arc::clone(file));
    }
    let file = open(path)?;
    files.insert(path.to_owned(), Arc::clone(&file));
    Ok(file)
}

impl<'a> PackCursor<'a> {
    /// What it reads from.
    pub fn source(&self) -> &'a PackReader<'a> {
        self.source
    }

    /// Passes raw bytes of a segment (`range` counts in the raw segment) to `take`, in pieces.
    ///
    /// # Errors
    /// Damage of the pack names its file and byte; whatever `take` returns.
    pub fn read_segment<E: From<FormatError>>(
        &mut self,
        segment: &SegmentEntry,
        range: Range<u64>,
        stop: &CancelToken,
        take: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let file = self.source.open(&segment.pack)?;
        SegmentReader::open(&*file, segment.stored())?.for_each_piece(
            range,
            &mut self.unpacker,
            stop,
            take,
        )
    }

    /// Passes raw bytes of a tensor (`range` counts in the tensor) to `take`, in pieces. No digest
    /// is checked.
    ///
    /// # Errors
    /// As [`read_segment`](Self::read_segment).
    pub fn read_tensor<E: From<FormatError>>(
        &mut self,
        tensor: &TensorEntry,
        range: Range<u64>,
        stop: &CancelToken,
        take: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let segment = self.source.segment_of(tensor)?;
        self.read_segment(
            segment,
            tensor.offset + range.start..tensor.offset + range.end,
            stop,
            take,
        )
    }
}
