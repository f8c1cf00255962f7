//! The bytes of planned files, in order, from the pack.

use segpack_formats::FormatError;
use segpack_formats::digest::Sha256Hasher;
use segpack_formats::io::{CancelToken, READ_BYTES};
use segpack_manifests::documents::{Finding, FindingKind, SourceFile, TensorEntry};
use segpack_manifests::{PackCursor, PackReader};

use super::ExportError;
use super::plan::{Content, Conversion, Part, PlannedFile, TensorFile};
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
        let Part { source, conversion } = *part;
        let digested = self.digest_kept || conversion != Conversion::Keep;
        let mut sha256 = digested.then(Sha256Hasher::default);
        let Worker {
            reader, converting, ..
        } = worker;
        converting.begin(self.threads);
        let read = reader.read_tensor(source, 0..source.length, self.stop, |piece| {
            if let Some(sha256) = &mut sha256 {
                sha256.update(piece);
            }
            self.progress.advance(conversion.length(piece.len() as u64));
            if conversion == Conversion::Keep {
                return sink(piece);
            }
            converting.take(conversion, piece, name, sink)
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

/// Converts bytes that come in pieces of any length.
#[derive(Default)]
struct Converting {
    threads: usize,
    /// The beginning of a block whose end has not come yet.
    begun: Vec<u8>,
    converted: Vec<u8>,
}

impl Converting {
    fn begin(&mut self, threads: usize) {
        self.threads = threads;
        self.begun.clear();
    }

    fn take(
        &mut self,
        conversion: Conversion<'_>,
        mut piece: &[u8],
        name: &str,
        sink: Sink<'_>,
    ) -> Result<(), StepError> {
        let (block, _) = conversion.block();
        self.converted.clear();
        // the block that the last piece began
        if !self.begun.is_empty() {
            let (now, later) = piece.split_at(piece.len().min(block - self.begun.len()));
            self.begun.extend(now);
            piece = later;
            if self.begun.len() < block {
                return Ok(());
            }
            let converted = conversion.convert(&self.begun, 1, &mut self.converted);
            converted.map_err(|e| ExportError::value(name, e))?;
            self.begun.clear();
        }
        // whole blocks, then the beginning of the next one
        let (whole, rest) = piece.split_at(piece.len() - piece.len() % block);
        let converted = conversion.convert(whole, self.threads, &mut self.converted);
        converted.map_err(|e| ExportError::value(name, e))?;
        self.begun.extend(rest);
        sink(&self.converted)
    }
}
