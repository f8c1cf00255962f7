//! The bytes of planned files, in order, from the pack.

use segpack_formats::FormatError;
use segpack_formats::digest::{Sha256, Sha256Hasher};
use segpack_formats::io::{CancelToken, READ_BYTES, to_usize};
use segpack_manifests::documents::{Finding, FindingKind, SourceFile, TensorEntry};
use segpack_manifests::{PackCursor, PackReader};

use super::ExportError;
use super::plan::{Content, Part, PlannedFile, TensorFile};
use crate::causes::chain;
use crate::steps::StepError;
use crate::work::Progress;

/// Gives the bytes of planned files.
pub(super) struct Producer<'a> {
    /// Where the bytes come from.
    pub weights: &'a PackReader<'a>,
    /// Whether tensors whose bytes are kept are compared with their digests on the way. Converted
    /// ones always are.
    pub digest_kept: bool,
    /// Threads that convert the values of one tensor.
    pub threads: usize,
    /// When to stop.
    pub stop: &'a CancelToken,
    /// Who hears how far it is.
    pub progress: &'a dyn Progress,
}

/// What one thread works with.
pub(super) struct Worker<'a> {
    /// Reads the pack.
    pub reader: PackCursor<'a>,
    /// Bytes of the checkpoint's files.
    buffer: Vec<u8>,
    converting: Converting,
}

/// Takes the next bytes of a file.
type Sink<'s> = &'s mut dyn FnMut(&[u8]) -> Result<(), StepError>;

impl<'a> Worker<'a> {
    /// Buffers for one thread.
    ///
    /// # Errors
    /// Where the decoder has no memory.
    pub(super) fn new(weights: &'a PackReader<'a>) -> Result<Self, StepError> {
        Ok(Self {
            reader: weights.cursor()?,
            buffer: vec![0; READ_BYTES],
            converting: Converting::default(),
        })
    }
}

impl Producer<'_> {
    /// All bytes of a file, in order.
    ///
    /// # Errors
    /// `Findings` where the pack is damaged; `Value` where a value cannot be converted; whatever
    /// `sink` returns.
    pub(super) fn produce(
        &self,
        file: &PlannedFile<'_>,
        worker: &mut Worker<'_>,
        sink: Sink<'_>,
    ) -> Result<(), StepError> {
        match &file.content {
            Content::Tensors(tensors) => self.tensors(tensors, worker, sink),
            Content::Copy(listed) => self.copy(listed, &mut worker.buffer, sink),
            Content::Bytes(bytes) => {
                self.progress.advance(bytes.len() as u64);
                sink(bytes)
            }
        }
    }

    fn tensors(
        &self,
        file: &TensorFile<'_>,
        worker: &mut Worker<'_>,
        sink: Sink<'_>,
    ) -> Result<(), StepError> {
        sink(&file.head)?;
        self.progress.advance(file.head.len() as u64);
        let mut at = file.head.len() as u64;
        for placed in &file.tensors {
            fill(at, placed.offset, sink)?;
            self.progress.advance(placed.tensor.made.len() as u64);
            sink(&placed.tensor.made)?;
            for part in &placed.tensor.parts {
                self.part(part, &placed.tensor.name, worker, sink)?;
            }
            at = placed.offset + placed.tensor.length();
        }
        fill(at, file.length, sink)
    }

    fn part(
        &self,
        part: &Part<'_>,
        name: &str,
        worker: &mut Worker<'_>,
        sink: Sink<'_>,
    ) -> Result<(), StepError> {
        let source = part.source;
        let mut sha256 = (self.digest_kept || !part.is_kept()).then(Sha256Hasher::default);
        let Worker {
            reader, converting, ..
        } = worker;
        let mut converting = converting.begin(part, self.beside(part, reader)?, self.threads);
        let read = reader.read_tensor(source, 0..source.length, self.stop, |piece| {
            if let Some(sha256) = &mut sha256 {
                sha256.update(piece);
            }
            self.progress.advance(part.length_of(piece.len() as u64));
            if part.is_kept() {
                return sink(piece);
            }
            converting.take(piece, name, sink)
        });
        read.map_err(|e| match e {
            StepError::Format(e) => self.of_the_pack(e),
            other => other,
        })?;
        match sha256.map(Sha256Hasher::finish) {
            Some(seen) if seen != source.sha256 => Err(self.damaged(source, seen)),
            _ => Ok(()),
        }
    }

    /// All of the tensor that goes into the same bytes as that of a part; nothing where there is none.
    ///
    /// # Errors
    /// `Findings` where it is damaged.
    pub(super) fn beside(
        &self,
        part: &Part<'_>,
        reader: &mut PackCursor<'_>,
    ) -> Result<Vec<u8>, StepError> {
        let Some(tensor) = part.beside else {
            return Ok(Vec::new());
        };
        let mut bytes = Vec::with_capacity(to_usize(tensor.length));
        let read = reader.read_tensor(tensor, 0..tensor.length, self.stop, |piece| {
            bytes.extend_from_slice(piece);
            Ok::<_, StepError>(())
        });
        read.map_err(|e| match e {
            StepError::Format(e) => self.of_the_pack(e),
            other => other,
        })?;
        match Sha256::of(&bytes) {
            seen if seen != tensor.sha256 => Err(self.damaged(tensor, seen)),
            _ => Ok(bytes),
        }
    }

    fn copy(
        &self,
        listed: &SourceFile,
        buffer: &mut [u8],
        sink: Sink<'_>,
    ) -> Result<(), StepError> {
        let kept = self
            .weights
            .open(&listed.stored_as)
            .map_err(|e| self.of_the_pack(e))?;
        let mut sha256 = Sha256Hasher::default();
        kept.for_each_piece(0..kept.length(), buffer, self.stop, |piece| {
            sha256.update(piece);
            self.progress.advance(piece.len() as u64);
            sink(piece)
        })?;
        let seen = sha256.finish();
        if seen == listed.stored_sha256 {
            return Ok(());
        }
        let finding = Finding::new(FindingKind::DamagedFile).file(&listed.stored_as);
        Err(self.found(
            finding
                .seen(format!("SHA-256 {seen}"))
                .wanted(listed.stored_sha256),
        ))
    }

    /// A tensor of the pack has another digest than the manifest says.
    pub(super) fn damaged(&self, tensor: &TensorEntry, seen: impl std::fmt::Display) -> StepError {
        let finding = Finding::new(FindingKind::DamagedTensor)
            .segment(&tensor.segment)
            .tensor(&tensor.name);
        self.found(
            finding
                .seen(format!("SHA-256 {seen}"))
                .wanted(tensor.sha256),
        )
    }

    /// A file of the pack that cannot be read is damage of the input, not a failure of the output.
    pub(super) fn of_the_pack(&self, error: FormatError) -> StepError {
        match &error {
            e if e.is_environment() => StepError::Format(error),
            FormatError::Io { path, .. } if path.starts_with(self.weights.pack().folder()) => {
                self.found(Finding::new(FindingKind::Unreadable).seen(chain(&error)))
            }
            _ => StepError::Format(error),
        }
    }

    fn found(&self, finding: Finding) -> StepError {
        let what = format!(
            "{}: damaged; nothing was exported",
            self.weights.pack().folder().display()
        );
        StepError::Findings {
            what,
            findings: vec![finding],
        }
    }
}

/// Zeros from one offset to another.
fn fill(from: u64, to: u64, sink: Sink<'_>) -> Result<(), StepError> {
    let mut left = usize::try_from(to.saturating_sub(from)).unwrap_or(usize::MAX);
    while left > 0 {
        let zeros = [0; 4096];
        let now = left.min(zeros.len());
        sink(&zeros[..now])?;
        left -= now;
    }
    Ok(())
}

/// Memory of converting, used again for each part.
#[derive(Default)]
struct Converting {
    /// The beginning of a block whose end has not come yet.
    begun: Vec<u8>,
    converted: Vec<u8>,
}

/// Converts bytes of a part that come in pieces of any length.
struct ConvertingPart<'c, 'p> {
    part: &'p Part<'p>,
    beside: Vec<u8>,
    threads: usize,
    memory: &'c mut Converting,
}

impl Converting {
    fn begin<'c, 'p>(
        &'c mut self,
        part: &'p Part<'p>,
        beside: Vec<u8>,
        threads: usize,
    ) -> ConvertingPart<'c, 'p> {
        self.begun.clear();
        ConvertingPart {
            part,
            beside,
            threads,
            memory: self,
        }
    }
}

impl ConvertingPart<'_, '_> {
    fn take(&mut self, mut piece: &[u8], name: &str, sink: Sink<'_>) -> Result<(), StepError> {
        let block = self.part.block();
        let Converting { begun, converted } = &mut *self.memory;
        converted.clear();
        // the block that the last piece began
        if !begun.is_empty() {
            let (now, later) = piece.split_at(piece.len().min(block - begun.len()));
            begun.extend(now);
            piece = later;
            if begun.len() < block {
                return Ok(());
            }
            let whole = (&begun[..], &self.beside[..]);
            let done = self.part.convert(whole, self.threads, converted);
            done.map_err(|e| ExportError::value(name, e))?;
            begun.clear();
        }
        // whole blocks, then the beginning of the next one
        let (whole, rest) = piece.split_at(piece.len() - piece.len() % block);
        let whole = (whole, &self.beside[..]);
        let done = self.part.convert(whole, self.threads, converted);
        done.map_err(|e| ExportError::value(name, e))?;
        begun.extend(rest);
        sink(converted)
    }
}
