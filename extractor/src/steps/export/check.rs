//! The end of every export: what is on the drive is read back and compared with the pack.
//!
//! The file's own index is read as its users will read it. Tensors whose bytes were kept are
//! compared by the SHA-256 that the pack's manifest has; converted ones value by value with the
//! pack's, which is read again. Nothing that the writer believed is taken for granted.

use segpack_formats::io::to_usize;
use std::path::Path;

use segpack_formats::digest::{LANES, Sha256, Sha256Hasher, Sha256Lanes};
use segpack_formats::io::{DIRECT_ALIGNMENT, DirectFile, InputFile};

use super::error::{Difference, ExportError};
use super::index::read_index;
use super::plan::{Content, Part, PlannedFile, TensorFile};
use super::produce::{Producer, Worker};
use super::written::WrittenTensor;
use crate::steps::StepError;
use crate::work::batches;

/// Bytes of each part that are read at a time, [`LANES`] parts side by side.
const PIECE_BYTES: usize = 512 << 10;
/// [`DIRECT_ALIGNMENT`] as a length.
const PAGE: usize = 4096;
const _: () = assert!(PAGE as u64 == DIRECT_ALIGNMENT);
/// A piece begins up to a page before its part and ends up to a page behind it.
const LANE_BYTES: usize = PIECE_BYTES + 2 * PAGE;
/// Memory that one check takes, in bytes.
pub(super) const CHECK_BYTES: usize = LANES * LANE_BYTES + PAGE;
/// Parts go into one batch up to this sum.
const BATCH_BYTES: u64 = 256 << 20;

/// A part of a tensor and its place in the file.
#[derive(Clone, Copy)]
struct Unit<'a> {
    name: &'a str,
    part: Part<'a>,
    start: u64,
}

impl Unit<'_> {
    fn end(&self) -> u64 {
        self.start + self.part.length()
    }
}

/// Reads a file, which lies at a path below a folder, back and compares it with what was planned and
/// with the pack.
///
/// # Errors
/// `ReadBack` where the file is not what it should be; `Findings` where that is because the pack is
/// damaged.
pub(super) fn check_file(
    producer: &Producer<'_>,
    file: &PlannedFile<'_>,
    place: (&Path, &str),
    worker: &mut Worker<'_>,
) -> Result<(), StepError> {
    // nobody meant a link that lies where this was written
    let direct = DirectFile::open_beneath(place.0, place.1)?;
    let check = Check {
        producer,
        place,
        file: &direct,
    };
    if direct.file().length() != file.length() {
        return Err(check.refuse(Difference::Length {
            seen: direct.file().length(),
            wanted: file.length(),
        }));
    }
    match &file.content {
        Content::Tensors(tensors) => check.tensors(tensors, worker),
        Content::Copy(listed) => check.whole(listed.stored_sha256),
        Content::Bytes(bytes) => check.whole(Sha256::of(bytes)),
    }
}

struct Check<'a> {
    producer: &'a Producer<'a>,
    /// A folder, and the path of the file below it.
    place: (&'a Path, &'a str),
    file: &'a DirectFile,
}

impl Check<'_> {
    fn refuse(&self, difference: Difference) -> StepError {
        let path = self.file.file().path().to_owned();
        ExportError::ReadBack {
            path,
            difference: Box::new(difference),
        }
        .into()
    }

    fn whole(&self, wanted: Sha256) -> Result<(), StepError> {
        let mut sha256 = Sha256Hasher::default();
        let input = self.file.file();
        input.for_each_piece(
            0..input.length(),
            &mut vec![0; PIECE_BYTES],
            self.producer.stop,
            |piece| {
                sha256.update(piece);
                self.producer.progress.advance(piece.len() as u64);
                Ok::<_, StepError>(())
            },
        )?;
        if sha256.finish() == wanted {
            Ok(())
        } else {
            Err(self.refuse(Difference::Digest))
        }
    }

    fn tensors(&self, file: &TensorFile<'_>, worker: &mut Worker<'_>) -> Result<(), StepError> {
        self.index(file)?;
        let head = self.file.file().read_range(0..file.head.len() as u64)?;
        if head != file.head {
            return Err(self.refuse(Difference::Metadata));
        }
        self.producer.progress.advance(file.head.len() as u64);
        let mut kept = Vec::new();
        for placed in &file.tensors {
            let made = &placed.tensor.made;
            let mut start = placed.offset + made.len() as u64;
            let seen = self.file.file().read_range(placed.offset..start)?;
            if seen != *made {
                return Err(self.refuse(Difference::Value {
                    tensor: placed.tensor.name.clone(),
                    start: placed.offset,
                    what: "values that follow from the configuration differ".to_owned(),
                }));
            }
            self.producer.progress.advance(made.len() as u64);
            for part in &placed.tensor.parts {
                let unit = Unit {
                    name: &placed.tensor.name,
                    part: *part,
                    start,
                };
                start += part.length();
                match part.is_kept() {
                    true => kept.push(unit),
                    false => self.converted(unit, worker)?,
                }
            }
        }
        let mut buffer = vec![0; if kept.is_empty() { 0 } else { CHECK_BYTES }];
        for batch in batches(kept, BATCH_BYTES, |unit| unit.part.length()) {
            for (unit, seen) in batch.iter().zip(self.digests(&batch, &mut buffer)?) {
                if seen != unit.part.source.sha256 {
                    return self.explain(*unit, seen, worker);
                }
            }
        }
        Ok(())
    }

    /// The file's own index names every tensor of the plan, where it is, and no other.
    fn index(&self, file: &TensorFile<'_>) -> Result<(), StepError> {
        let (root, relative) = self.place;
        let input = InputFile::open_beneath(root, relative)?;
        let seen = read_index(file.format, input)?;
        let wanted = file.tensors.iter().map(|placed| WrittenTensor {
            name: Some(placed.tensor.name.clone()),
            dtype: placed.tensor.dtype.clone(),
            shape: placed.tensor.shape.clone(),
            offset: placed.offset,
        });
        if seen.len() != file.tensors.len() {
            return Err(self.refuse(Difference::Tensors {
                seen: seen.len(),
                wanted: file.tensors.len(),
            }));
        }
        for (seen, mut wanted) in seen.into_iter().zip(wanted) {
            if seen.name.is_none() {
                wanted.name = None;
            }
            if seen != wanted {
                return Err(self.refuse(Difference::Entry { seen, wanted }));
            }
        }
        Ok(())
    }

    /// The SHA-256 of each unit, all read side by side, past the page cache where that is possible.
    fn digests(&self, batch: &[Unit<'_>], buffer: &mut [u8]) -> Result<Vec<Sha256>, StepError> {
        let aligned = buffer.as_ptr().align_offset(PAGE).min(PAGE);
        let buffer = &mut buffer[aligned..];
        let mut lanes = Sha256Lanes::new(batch.len());
        let mut at: Vec<u64> = batch
            .iter()
            .map(|u| u.start - u.start % DIRECT_ALIGNMENT)
            .collect();
        loop {
            self.producer.stop.check()?;
            let (mut pieces, mut bytes): (Vec<&[u8]>, u64) = (Vec::with_capacity(batch.len()), 0);
            for ((unit, at), lane) in batch.iter().zip(&mut at).zip(buffer.chunks_mut(LANE_BYTES)) {
                let end = unit.end().min(*at + PIECE_BYTES as u64);
                if *at >= end {
                    pieces.push(&[]);
                    continue;
                }
                self.file.read_aligned(&(*at..end), lane)?;
                let from = unit.start.saturating_sub(*at);
                let piece = &lane[to_usize(from)..to_usize(end - *at)];
                bytes += piece.len() as u64;
                *at = end;
                pieces.push(piece);
            }
            if bytes == 0 {
                return Ok(lanes.finish());
            }
            self.producer.progress.advance(bytes);
            lanes.update(&pieces);
        }
    }

    /// A wrong digest: whether it is the pack's fault or that of what came after it.
    fn explain(
        &self,
        unit: Unit<'_>,
        seen: Sha256,
        worker: &mut Worker<'_>,
    ) -> Result<(), StepError> {
        let source = unit.part.source;
        let mut sha256 = Sha256Hasher::default();
        worker
            .reader
            .read_tensor(source, 0..source.length, self.producer.stop, |piece| {
                sha256.update(piece);
                Ok::<_, StepError>(())
            })?;
        let stored = sha256.finish();
        if stored != source.sha256 {
            return Err(self.producer.damaged(source, stored));
        }
        Err(self.refuse(Difference::Tensor {
            tensor: unit.name.to_owned(),
            start: unit.start,
            end: unit.end(),
            seen,
            wanted: source.sha256,
        }))
    }

    /// The values of a converted part against those of the pack.
    fn converted(&self, unit: Unit<'_>, worker: &mut Worker<'_>) -> Result<(), StepError> {
        let Unit { part, .. } = unit;
        let (source, block) = (part.source, part.block());
        let beside = self.producer.beside(&part, &mut worker.reader)?;
        let (mut before, mut after, mut at) = (Vec::new(), Vec::new(), unit.start);
        worker
            .reader
            .read_tensor(source, 0..source.length, self.producer.stop, |piece| {
                before.extend_from_slice(piece);
                let whole = before.len() - before.len() % block;
                let length = part.length_of(whole as u64);
                after.resize(to_usize(length), 0);
                self.file.file().read_at(&mut after, at)?;
                let whole_blocks = (&before[..whole], &beside[..]);
                if let Err(what) = part.check(whole_blocks, self.producer.threads, &after) {
                    return Err(self.refuse(Difference::Value {
                        tensor: unit.name.to_owned(),
                        start: at,
                        what,
                    }));
                }
                self.producer.progress.advance(length);
                before.drain(..whole);
                at += length;
                Ok(())
            })?;
        if at == unit.end() {
            Ok(())
        } else {
            Err(self.refuse(Difference::TooShort))
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::fs;

    use segpack_formats::codec::Coding;
    use segpack_formats::io::CancelToken;
    use segpack_formats::numeric::FloatDtype;
    use segpack_manifests::Pack;
    use segpack_manifests::PackReader;
    use segpack_manifests::layout::Selection;

    use super::super::origin::Origin;
    use super::super::plan::NewTensorPlan;
    use super::*;
    use crate::steps::pack::{FetchSettings, PackSettings, pack};
    use crate::steps::scan::ScanOptions;
    use crate::work::Silent;

    /// A pack of the tiny checkpoint in a folder that lives as long as the first value.
    pub(in crate::steps::export) fn tiny() -> (tempfile::TempDir, Pack) {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("pack");
        let settings = PackSettings {
            selection: Selection::default(),
            coding: Coding::Raw,
            part: None,
            jobs: 1,
            resume: false,
            force: false,
            space_check: true,
            consume: false,
            in_place: false,
            source_digests: false,
            sums: false,
            provenance: false,
            fetch: FetchSettings::default(),
            scan: ScanOptions::default(),
        };
        let checkpoint = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/tiny-full");
        pack(
            &checkpoint,
            &out,
            &settings,
            &CancelToken::default(),
            &Silent,
        )
        .unwrap();
        let opened = Pack::open(&out).unwrap();
        (folder, opened)
    }

    /// Writes the file as planned, lets somebody spoil it, and says what the check said.
    fn spoiled(
        pack: &Pack,
        dtype: Option<FloatDtype>,
        spoil: impl FnOnce(&mut Vec<u8>, &TensorFile<'_>),
    ) -> String {
        let chosen = pack
            .manifest()
            .tensors
            .iter()
            .map(|t| NewTensorPlan::of(t.name.clone(), t, dtype));
        let content = TensorFile::safetensors(chosen.collect(), &Origin::of(pack)).unwrap();
        let planned = PlannedFile {
            path: "x".to_owned(),
            content: Content::Tensors(content),
        };
        let (weights, stop) = (PackReader::new(pack), CancelToken::default());
        let producer = Producer {
            weights: &weights,
            digest_kept: true,
            threads: 1,
            stop: &stop,
            progress: &Silent,
        };
        let mut worker = Worker::new(&weights).unwrap();
        let mut bytes = Vec::new();
        producer
            .produce(&planned, &mut worker, &mut |piece| {
                bytes.extend(piece);
                Ok(())
            })
            .unwrap();
        let Content::Tensors(content) = &planned.content else {
            return String::new();
        };
        spoil(&mut bytes, content);
        fs::write(pack.folder().join("written"), &bytes).unwrap();
        match check_file(&producer, &planned, (pack.folder(), "written"), &mut worker) {
            Ok(()) => "fine".to_owned(),
            Err(e) => format!("{:?}: {e}", e.exit()),
        }
    }

    #[test]
    fn one_wrong_bit_anywhere_is_seen() {
        let (_folder, pack) = tiny();
        for dtype in [None, Some(FloatDtype::F32), Some(FloatDtype::F16)] {
            assert_eq!(spoiled(&pack, dtype, |_, _| ()), "fine");
            for number in [0, 7, 200, 413] {
                let printed = spoiled(&pack, dtype, |bytes, file| {
                    let placed = &file.tensors[number];
                    let last = placed.offset + placed.tensor.length() - 1;
                    bytes[usize::try_from(last).unwrap()] ^= 1;
                });
                assert!(
                    printed.starts_with("Failed: ") && printed.contains("read back"),
                    "{printed}"
                );
                let name = &pack.manifest().tensors[number].name;
                assert!(printed.contains(&format!("{name:?}")), "{printed}");
            }
        }
    }

    #[test]
    fn a_wrong_index_or_length_is_seen() {
        let (_folder, pack) = tiny();
        let swapped = spoiled(&pack, None, |bytes, file| {
            // two experts' matrices of one shape change their names
            let json = 8..file.head.len();
            let head = String::from_utf8(bytes[json.clone()].to_vec()).unwrap();
            let swapped = head
                .replace("experts.0.up_proj", "experts.X.up_proj")
                .replace("experts.1.up_proj", "experts.0.up_proj")
                .replace("experts.X.up_proj", "experts.1.up_proj");
            assert_ne!(swapped, head);
            bytes[json].copy_from_slice(swapped.as_bytes());
        });
        assert!(swapped.contains("in place of"), "{swapped}");
        let metadata = spoiled(&pack, None, |bytes, file| {
            let place = file.head.windows(4).position(|w| w == b"\"pt\"").unwrap();
            bytes[place + 1] = b'q';
        });
        assert!(
            metadata.contains("does not begin with the metadata"),
            "{metadata}"
        );
        let cut = spoiled(&pack, None, |bytes, _| bytes.truncate(bytes.len() - 1));
        assert!(cut.contains("bytes, not"), "{cut}");
    }

    #[test]
    fn wrong_bytes_of_the_pack_are_the_packs_fault() {
        let (_folder, pack) = tiny();
        let entry = &pack.manifest().tensors[100];
        let segment = pack.segment(&entry.segment).unwrap();
        let place = usize::try_from(segment.offset + entry.offset).unwrap();
        let printed = spoiled(&pack, None, |bytes, file| {
            let path = pack.path(&segment.pack);
            let mut stored = fs::read(&path).unwrap();
            stored[place] ^= 1;
            fs::write(&path, stored).unwrap();
            let placed = file
                .tensors
                .iter()
                .find(|p| p.tensor.name == entry.name)
                .unwrap();
            bytes[usize::try_from(placed.offset).unwrap()] ^= 1;
        });
        assert!(
            printed.starts_with("Damaged: ") && printed.contains("damaged"),
            "{printed}"
        );
    }
}
