//! Damaged files, written anew from what is left of them and from the source.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::Path;
use std::sync::{Arc, Mutex};

use segpack_formats::FormatError;
use segpack_formats::codec::{Codec, Coding};
use segpack_formats::digest::{Blake3Hasher, Sha256Hasher};
use segpack_formats::io::{CancelToken, InputFile, READ_BYTES, ReadAt, write_all_at};
use segpack_formats::pack::{
    SegmentSpec, TensorSource, coded_header, data_start, raw_header, write_pack,
};
use segpack_manifests::documents::{
    Finding, FindingKind, Manifest, PackEntry, SegmentEntry, SourceFile, TensorEntry,
};

use super::RepairError;
use super::damage::{is_damage, open_own};
use crate::output::{OutputFolder, unfinished};
use crate::pack_writer::digest_file;
use crate::steps::StepError;
use crate::steps::contents::{Contents, Cursor, Reader, Tensor};
use crate::work::{Job, into_inner, lock};

/// Below the unfinished files, where a segment is coded before it is copied.
const SCRATCH: &str = "segments";

/// What the threads that write share.
pub(super) struct Writer<'a> {
    folder: &'a Path,
    manifest: &'a Manifest,
    output: &'a OutputFolder,
    source: &'a Contents,
    reader: Reader<'a>,
    tensors: BTreeMap<String, Tensor>,
    specs: Vec<SegmentSpec>,
    /// The tensors of each segment.
    of_segments: Vec<&'a [TensorEntry]>,
    packs: HashMap<&'a str, &'a PackEntry>,
    files: HashMap<&'a str, &'a SourceFile>,
    findings: Mutex<Vec<Finding>>,
    job: Job<'a>,
}

/// What one thread works with.
pub(super) struct Worker<'w> {
    cursor: Cursor<'w>,
    buffer: Vec<u8>,
    coding: Coding,
}

impl<'a> Writer<'a> {
    pub(super) fn new(
        folder: &'a Path,
        manifest: &'a Manifest,
        output: &'a OutputFolder,
        source: &'a Contents,
        job: Job<'a>,
    ) -> Result<Self, StepError> {
        let packs = manifest.packs.iter().map(|p| (p.path.as_str(), p));
        let files = manifest.source_files.iter();
        Ok(Self {
            folder,
            manifest,
            output,
            source,
            reader: source.reader(),
            tensors: source.tensors()?,
            specs: manifest.segment_specs(),
            of_segments: manifest.tensors_of_segments(),
            packs: packs.collect(),
            files: files.map(|f| (f.stored_as.as_str(), f)).collect(),
            findings: Mutex::default(),
            job,
        })
    }

    pub(super) fn worker(&self, coding: Coding) -> Result<Worker<'_>, StepError> {
        Ok(Worker {
            cursor: self.reader.cursor()?,
            buffer: vec![0; READ_BYTES],
            coding,
        })
    }

    /// Bytes of a file as the manifest lists it.
    pub(super) fn length(&self, path: &str) -> u64 {
        let pack = self.packs.get(path).map(|p| p.length);
        let file = || self.files.get(path).map_or(0, |f| f.stored_length);
        pack.unwrap_or_else(file)
    }

    /// Everything of the source that is not what the manifest lists.
    pub(super) fn into_findings(self) -> Vec<Finding> {
        into_inner(self.findings)
    }

    fn report(&self, finding: Finding) {
        lock(&self.findings).push(finding);
    }

    fn reported(&self) -> bool {
        !lock(&self.findings).is_empty()
    }

    /// Writes a file anew; returns the segments that came from the source.
    pub(super) fn write(
        &self,
        path: &str,
        worker: &mut Worker<'_>,
    ) -> Result<Vec<String>, StepError> {
        if let Some(file) = self.files.get(path) {
            self.write_kept(file, worker)?;
            return Ok(Vec::new());
        }
        match self.packs.get(path) {
            Some(pack) => self.write_pack(pack, worker),
            None => Ok(Vec::new()), // only listed files are damaged
        }
    }

    /// A file of `source/`: one beside the shards, or a shard's header.
    fn write_kept(&self, listed: &SourceFile, worker: &mut Worker<'_>) -> Result<(), StepError> {
        let finding = |kind| Finding::new(kind).file(&listed.path);
        let Some(input) = self.open_in_source(listed)? else {
            let missing = finding(FindingKind::NotInCheckpoint);
            self.report(missing.seen("the source does not have this file"));
            return Ok(());
        };
        if input.length() < listed.stored_length {
            let shorter = finding(FindingKind::DiffersFromCheckpoint);
            self.report(shorter.seen("the source has a shorter file"));
            return Ok(());
        }
        let (file, path) = self.output.create(&listed.stored_as)?;
        let (mut sha256, mut at) = (Sha256Hasher::default(), 0);
        let range = 0..listed.stored_length;
        input.for_each_piece(range, &mut worker.buffer, self.job.stop, |piece| {
            sha256.update(piece);
            write_all_at(&file, piece, at).map_err(FormatError::io("write", &path))?;
            at += piece.len() as u64;
            self.job.progress.advance(piece.len() as u64);
            Ok::<_, FormatError>(())
        })?;
        let (seen, wanted) = (sha256.finish(), listed.stored_sha256);
        if seen != wanted {
            let differs = finding(FindingKind::DiffersFromCheckpoint);
            let differs = differs.seen(format!("SHA-256 {seen} in the source"));
            self.report(differs.wanted(wanted));
            return Ok(());
        }
        Ok(self.output.publish(&file, &listed.stored_as)?)
    }

    /// The same file of the source. A shard of a checkpoint begins with its header.
    fn open_in_source(&self, listed: &SourceFile) -> Result<Option<Arc<dyn ReadAt>>, StepError> {
        let opened = match self.source {
            Contents::Checkpoint(opened) => opened.0.open_file_at(&listed.path),
            Contents::Pack(pack) => {
                let mut files = pack.manifest().source_files.iter();
                match files.find(|f| f.path == listed.path && f.kind == listed.kind) {
                    Some(file) => pack.open_file(&file.stored_as),
                    None => return Ok(None),
                }
            }
        };
        match opened {
            Ok(input) => Ok(Some(input)),
            Err(FormatError::Io { source, .. })
                if source.kind() == std::io::ErrorKind::NotFound =>
            {
                Ok(None)
            }
            Err(e) => Err(e.into()),
        }
    }

    /// A pack file: header, then each segment from the old file where it is sound, else from the
    /// source.
    fn write_pack(
        &self,
        pack: &PackEntry,
        worker: &mut Worker<'_>,
    ) -> Result<Vec<String>, StepError> {
        let (file, path) = self.output.create(&pack.path)?;
        let old = open_own(self.folder, &pack.path)?.ok();
        let numbers: Vec<usize> = self.segments_of(pack).collect();
        let header = self.header(pack, &numbers);
        write_all_at(&file, &header, 0).map_err(FormatError::io("write", &path))?;
        self.job.progress.advance(header.len() as u64);
        let mut from_source = Vec::new();
        for number in numbers {
            let segment = &self.manifest.segments[number];
            let kept = match &old {
                Some(old) => self.copy(old, segment, segment.offset, (&file, &path), worker)?,
                None => false,
            };
            if !kept {
                self.take(number, (&file, &path), worker)?;
                from_source.push(segment.id.clone());
            }
            self.job.progress.advance(segment.stored_length);
        }
        if self.reported() {
            return Ok(from_source);
        }
        // an old file that was longer has left nothing here: this one is new
        let written = InputFile::open_beneath(self.output.path(), &unfinished(&pack.path))?;
        let seen = digest_file(&written, &mut worker.buffer, self.job.stop)?;
        if seen != pack.sha256 {
            return Err(RepairError::NotTheSame {
                path: pack.path.clone(),
                seen,
                wanted: pack.sha256,
            }
            .into());
        }
        self.output.publish(&file, &pack.path)?;
        Ok(from_source)
    }

    fn segments_of(&self, pack: &PackEntry) -> impl Iterator<Item = usize> {
        let all = self.manifest.segments.iter().enumerate();
        all.filter(|(_, s)| s.pack == pack.path).map(|(n, _)| n)
    }

    /// The header is a function of the manifest.
    fn header(&self, pack: &PackEntry, numbers: &[usize]) -> Vec<u8> {
        let specs: Vec<SegmentSpec> = numbers.iter().map(|&n| self.specs[n].clone()).collect();
        let segments = numbers.iter().map(|&n| self.manifest.segments[n].stored());
        let codec = self.manifest.options.codec;
        if codec == Codec::Raw {
            return raw_header(&specs);
        }
        let stored: Vec<_> = segments.collect();
        let start = data_start(&specs, codec).min(pack.data_offset);
        coded_header(&specs, &stored, start)
    }

    /// Copies the stored bytes of a segment, which begin at `from` in `input`; `false` where they
    /// are not those that the manifest lists, or cannot be read.
    fn copy(
        &self,
        input: &dyn ReadAt,
        segment: &SegmentEntry,
        from: u64,
        (file, path): (&File, &Path),
        worker: &mut Worker<'_>,
    ) -> Result<bool, FormatError> {
        let end = from + segment.stored_length;
        if end > input.length() {
            return Ok(false);
        }
        let (mut blake3, mut at) = (Blake3Hasher::default(), segment.offset);
        let mut failed = None;
        let read = input.for_each_piece(from..end, &mut worker.buffer, self.job.stop, |piece| {
            blake3.update(piece);
            if let Err(e) = write_all_at(file, piece, at) {
                failed = Some(FormatError::io("write", path)(e));
                return Err(FormatError::Interrupted);
            }
            at += piece.len() as u64;
            Ok::<_, FormatError>(())
        });
        match (failed, read) {
            (Some(e), _) => Err(e),
            (None, Ok(())) => Ok(blake3.finish() == segment.blake3),
            (None, Err(e)) if is_damage(&e) => Ok(false),
            (None, Err(e)) => Err(e),
        }
    }

    /// Takes a segment from the source: its stored bytes where that is a pack that has the same,
    /// else its tensors, coded anew.
    fn take(
        &self,
        number: usize,
        to: (&File, &Path),
        worker: &mut Worker<'_>,
    ) -> Result<(), StepError> {
        let segment = &self.manifest.segments[number];
        if let Some(pack) = self.source.pack() {
            let same = pack
                .segment(&segment.id)
                .filter(|s| s.blake3 == segment.blake3);
            if let Some(same) = same.filter(|s| s.stored_length == segment.stored_length) {
                let input = pack.open_file(&same.pack)?;
                if self.copy(&*input, segment, same.offset, to, worker)? {
                    return Ok(());
                }
            }
        }
        if !self.has_tensors(number, worker)? {
            return Ok(());
        }
        if segment.codec == Codec::Raw {
            self.take_raw(number, to, worker)
        } else {
            self.take_coded(number, to, worker)
        }
    }

    /// Whether every tensor of a segment is in the source with the digest of the manifest; what is
    /// not is reported.
    fn has_tensors(&self, number: usize, worker: &mut Worker<'_>) -> Result<bool, StepError> {
        let mut all = true;
        for entry in self.of_segments[number] {
            let finding = |kind| Finding::new(kind).tensor(&entry.name);
            let Some(tensor) = self.tensors.get(&entry.name) else {
                let missing = finding(FindingKind::NotInCheckpoint);
                self.report(missing.seen("the source has no tensor of this name"));
                all = false;
                continue;
            };
            if tensor.dtype != entry.dtype || tensor.shape != entry.shape {
                let differs = finding(FindingKind::DiffersFromCheckpoint);
                let seen = format!("{} {:?} in the source", tensor.dtype, tensor.shape);
                self.report(differs.seen(seen));
                all = false;
                continue;
            }
            let seen = worker.cursor.digest(tensor, self.job.stop, |_| {})?;
            if seen != entry.sha256 {
                let differs = finding(FindingKind::DiffersFromCheckpoint);
                let differs = differs.seen(format!("SHA-256 {seen} in the source"));
                self.report(differs.wanted(entry.sha256));
                all = false;
            }
        }
        Ok(all)
    }

    /// Writes the tensors of a segment as they are. What is read now has to be what was digested:
    /// the file's digest at the end says so.
    fn take_raw(
        &self,
        number: usize,
        (file, path): (&File, &Path),
        worker: &mut Worker<'_>,
    ) -> Result<(), StepError> {
        let mut at = self.manifest.segments[number].offset;
        for entry in self.of_segments[number] {
            let tensor = &self.tensors[&entry.name];
            let whole = 0..tensor.length;
            worker.cursor.read(tensor, whole, self.job.stop, |piece| {
                write_all_at(file, piece, at).map_err(FormatError::io("write", path))?;
                at += piece.len() as u64;
                Ok::<_, FormatError>(())
            })?;
        }
        Ok(())
    }

    /// Codes a segment into a pack of its own and copies it from there: where it lies does not
    /// change its bytes.
    fn take_coded(
        &self,
        number: usize,
        to: (&File, &Path),
        worker: &mut Worker<'_>,
    ) -> Result<(), StepError> {
        let segment = &self.manifest.segments[number];
        let name = format!("{SCRATCH}/{number}");
        let (scratch, path) = self.output.create(&name)?;
        let mut source = FromSource {
            tensors: &self.tensors,
            entries: self.of_segments[number],
            cursor: &mut worker.cursor,
            stop: self.job.stop,
        };
        let spec = std::slice::from_ref(&self.specs[number]);
        let (coding, stop) = (worker.coding, self.job.stop);
        let written = write_pack(&scratch, &path, spec, coding, &mut source, stop, &|_| {})?;
        let coded = &written.segments[0];
        let same = coded.blake3 == segment.blake3 && coded.stored_length == segment.stored_length;
        let input = InputFile::open_beneath(self.output.path(), &unfinished(&name))?;
        if !same || !self.copy(&input, segment, coded.offset, to, worker)? {
            return Err(RepairError::OtherCoding {
                segment: segment.id.clone(),
                written_by: self.manifest.generator.clone(),
            }
            .into());
        }
        drop((input, scratch));
        Ok(self.output.remove(&unfinished(&name))?)
    }
}

/// The tensors of one segment, from the source.
struct FromSource<'f, 'c> {
    tensors: &'f BTreeMap<String, Tensor>,
    entries: &'f [TensorEntry],
    cursor: &'f mut Cursor<'c>,
    stop: &'f CancelToken,
}

impl TensorSource for FromSource<'_, '_> {
    fn read(
        &mut self,
        _segment: usize,
        tensor: usize,
        take: &mut dyn FnMut(&[u8]) -> Result<(), FormatError>,
    ) -> Result<(), FormatError> {
        let tensor = &self.tensors[&self.entries[tensor].name];
        self.cursor.read(tensor, 0..tensor.length, self.stop, take)
    }
}
