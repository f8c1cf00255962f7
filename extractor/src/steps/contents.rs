//! What a pack and a checkpoint have in common: tensors with names, and files beside them, that are
//! read in the same way.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use segpack_formats::FormatError;
use segpack_formats::codec::Codec;
use segpack_formats::digest::{Sha256, Sha256Hasher};
use segpack_formats::io::{CancelToken, READ_BYTES, ReadAt, to_usize};
use segpack_formats::numeric::Dtype;
use segpack_manifests::documents::{Inventory, SourceFileKind};
use segpack_manifests::families::FamilyName;
use segpack_manifests::folder::{MANIFEST, OpenOptions, PART};
use segpack_manifests::layout::{self, Selection};
use segpack_manifests::names::{Classification, Component};
use segpack_manifests::{Pack, PackCursor, PackReader};

use super::StepError;
use super::scan::{Extra, ScanOptions, is_lost_shard, scan};
use crate::source::{Checkpoint, PackPlace};
use crate::work::Job;

/// A pack or a checkpoint.
#[derive(Debug)]
pub(crate) enum Contents {
    /// A pack folder.
    Pack(Box<Pack>),
    /// A checkpoint, and what it holds.
    Checkpoint(Box<(Checkpoint, Inventory)>),
}

/// A tensor of a pack or a checkpoint. Experts that a checkpoint stores stacked are one by one.
#[derive(Debug, Clone)]
pub(crate) struct Tensor {
    /// Element type.
    pub dtype: Dtype,
    /// Shape, outermost dimension first.
    pub shape: Vec<u64>,
    /// Bytes.
    pub length: u64,
    /// What it is.
    pub classification: Classification,
    /// Digest of its bytes, where it is known without reading them.
    pub sha256: Option<Sha256>,
    place: Place,
}

/// Where the bytes of a tensor are.
#[derive(Debug, Clone)]
enum Place {
    /// In the pack, by its number in the manifest.
    Packed(usize),
    /// In a shard, from this byte on.
    Shard(usize, u64),
}

impl Tensor {
    /// What to sort by so that files are read from front to back.
    pub(crate) fn order(&self) -> (usize, u64) {
        match self.place {
            Place::Packed(number) => (number, 0),
            Place::Shard(shard, start) => (shard, start),
        }
    }
}

/// A file beside the shards.
#[derive(Debug, Clone)]
pub(crate) struct SideContent {
    /// Bytes.
    pub length: u64,
    /// Digest, where it is known without reading it.
    pub sha256: Option<Sha256>,
    /// Where it lies: relative to the pack folder, or to the checkpoint.
    stored_as: String,
}

impl Contents {
    /// Opens what a path or an address means: where there is a manifest it is a pack, everything else
    /// a checkpoint.
    /// Of a checkpoint every shard has to be readable; it may be incomplete. `options` are for a
    /// pack.
    ///
    /// # Errors
    /// Where it is neither; `Findings` where a shard is missing or malformed.
    pub(crate) fn open(
        path: &Path,
        options: OpenOptions,
        job: Job<'static>,
    ) -> Result<Self, StepError> {
        if let Some(pack) = PackPlace::find_pack(path, job)? {
            return Ok(Self::Pack(Box::new(pack.open(options)?)));
        }
        let holds = |name| path.join(name).symlink_metadata().is_ok();
        if holds(PART) && !holds("config.json") {
            // it is said to be a part, not a checkpoint without shards
            return Ok(Self::Pack(Box::new(options.open(path)?)));
        }
        /// What it holds is compared as it is; nothing is demanded of it.
        const TOLERANT: ScanOptions = ScanOptions {
            config: None,
            family: None,
            extra: Extra::Keep,
            allow_unclassified: true,
            allow_unaudited: true,
        };
        let (checkpoint, inventory) = scan(path, TOLERANT, job)?;
        checkpoint.end_with(job);
        let mut lost = checkpoint.findings.clone();
        lost.retain(is_lost_shard);
        if !lost.is_empty() {
            let what = format!("{}: cannot be read", path.display());
            return Err(StepError::Findings {
                what,
                findings: lost,
            });
        }
        Ok(Self::Checkpoint(Box::new((checkpoint, inventory))))
    }

    /// Whether a path of this machine means a pack.
    pub(crate) fn is_pack(path: &Path) -> bool {
        path.join(MANIFEST).symlink_metadata().is_ok()
    }

    /// The pack, if it is one.
    pub(crate) fn pack(&self) -> Option<&Pack> {
        match self {
            Self::Pack(pack) => Some(pack),
            Self::Checkpoint(_) => None,
        }
    }

    /// The family of the model, where it is known.
    pub(crate) fn family(&self) -> Option<FamilyName> {
        match self {
            Self::Pack(pack) => pack.manifest().model.family,
            Self::Checkpoint(opened) => opened.1.family,
        }
    }

    /// Components that a pack leaves out.
    pub(crate) fn excluded(&self) -> Vec<Component> {
        let excluded = self.pack().map(|p| &p.manifest().excluded);
        let all = excluded.into_iter().flatten();
        all.map(|e| e.component).collect()
    }

    /// Its tensors by name.
    ///
    /// # Errors
    /// Where a stacked tensor of a checkpoint cannot be taken apart.
    pub(crate) fn tensors(&self) -> Result<BTreeMap<String, Tensor>, StepError> {
        match self {
            Self::Pack(pack) => Ok(packed(pack)),
            Self::Checkpoint(opened) => in_shards(&opened.0, &opened.1),
        }
    }

    /// The files beside the shards, by their path in the checkpoint.
    pub(crate) fn files(&self) -> BTreeMap<String, SideContent> {
        match self {
            Self::Pack(pack) => {
                let files = pack.manifest().source_files.iter();
                let beside = files.filter(|f| f.kind == SourceFileKind::File);
                let entry = beside.map(|f| {
                    let content = SideContent {
                        length: f.length,
                        sha256: f.sha256,
                        stored_as: f.stored_as.clone(),
                    };
                    (f.path.clone(), content)
                });
                entry.collect()
            }
            Self::Checkpoint(opened) => {
                let entry = opened.0.files.iter().map(|f| {
                    let content = SideContent {
                        length: f.length,
                        sha256: None,
                        stored_as: f.path.clone(),
                    };
                    (f.path.clone(), content)
                });
                entry.collect()
            }
        }
    }

    /// What its tensors and files are read with; shared between threads.
    pub(crate) fn reader(&self) -> Reader<'_> {
        match self {
            Self::Pack(pack) => Reader::Pack(PackReader::new(pack)),
            Self::Checkpoint(opened) => Reader::Checkpoint(&opened.0),
        }
    }
}

fn packed(pack: &Pack) -> BTreeMap<String, Tensor> {
    let tensors = pack.manifest().tensors.iter().enumerate();
    let entry = tensors.map(|(number, t)| {
        let tensor = Tensor {
            dtype: t.dtype,
            shape: t.shape.clone(),
            length: t.length,
            classification: t.classification(),
            sha256: Some(t.sha256),
            place: Place::Packed(number),
        };
        (t.name.clone(), tensor)
    });
    entry.collect()
}

/// Planned as for packing, so that names are those that a pack would have.
fn in_shards(
    checkpoint: &Checkpoint,
    inventory: &Inventory,
) -> Result<BTreeMap<String, Tensor>, StepError> {
    if inventory.tensors.is_empty() {
        return Ok(BTreeMap::new());
    }
    let plan = layout::plan(inventory, &Selection::default(), Codec::Raw)?;
    let paths = checkpoint.shards.iter().enumerate();
    let numbers: BTreeMap<&str, usize> = paths.map(|(i, s)| (s.path.as_str(), i)).collect();
    let mut found = BTreeMap::new();
    for pack in &plan.packs {
        for t in pack.segments.iter().flat_map(|s| &s.tensors) {
            let Some(&shard) = numbers.get(t.source.file.as_str()) else {
                let what = format!("{:?} comes from {:?}, not open", t.name, t.source.file);
                return Err(StepError::malformed(&checkpoint.root, what));
            };
            let tensor = Tensor {
                dtype: t.dtype,
                shape: t.shape.clone(),
                length: t.source.length,
                classification: Classification {
                    component: pack.component,
                    role: t.role,
                    part: t.part,
                    layer: t.layer,
                    expert: t.expert,
                },
                sha256: None,
                place: Place::Shard(shard, t.source.offset),
            };
            found.insert(t.name.clone(), tensor);
        }
    }
    Ok(found)
}

/// Reads tensors and files.
#[derive(Debug)]
pub(crate) enum Reader<'a> {
    Pack(PackReader<'a>),
    Checkpoint(&'a Checkpoint),
}

/// One thread's access to a [`Reader`].
#[derive(Debug)]
pub(crate) enum Cursor<'a> {
    Pack(PackCursor<'a>),
    Checkpoint(&'a Checkpoint, Vec<u8>),
}

impl<'a> Reader<'a> {
    /// A cursor for one thread.
    ///
    /// # Errors
    /// Where a decoder has no memory.
    pub(crate) fn cursor(&'a self) -> Result<Cursor<'a>, FormatError> {
        match self {
            Self::Pack(reader) => Ok(Cursor::Pack(reader.cursor()?)),
            Self::Checkpoint(checkpoint) => Ok(Cursor::Checkpoint(checkpoint, vec![0; READ_BYTES])),
        }
    }

    /// The digest of a file beside the shards, read now.
    ///
    /// # Errors
    /// `Io`.
    pub(crate) fn digest_file(
        &self,
        file: &SideContent,
        stop: &CancelToken,
    ) -> Result<Sha256, FormatError> {
        let mut sha256 = Sha256Hasher::default();
        self.read_file(file, stop, |piece| {
            sha256.update(piece);
            Ok(())
        })?;
        Ok(sha256.finish())
    }

    /// Passes the bytes of a file beside the shards to `take`.
    ///
    /// # Errors
    /// `Io`; `Changed` where it has another length than when it was listed; whatever `take` returns.
    pub(crate) fn read_file<E: From<FormatError>>(
        &self,
        file: &SideContent,
        stop: &CancelToken,
        take: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut buffer = vec![0; READ_BYTES.min(to_usize(file.length).max(1))];
        match self {
            Self::Pack(reader) => {
                let input = reader.open(&file.stored_as)?;
                input.for_each_piece(0..file.length, &mut buffer, stop, take)
            }
            Self::Checkpoint(checkpoint) => {
                let input = checkpoint.open_file_at(&file.stored_as)?;
                input.for_each_piece(0..file.length, &mut buffer, stop, take)?;
                Ok(input.check_unchanged()?)
            }
        }
    }
}

impl Cursor<'_> {
    /// Passes raw bytes of a tensor (`range` counts in the tensor) to `take`, in pieces.
    ///
    /// # Errors
    /// Where they cannot be read or decoded; whatever `take` returns.
    pub(crate) fn read<E: From<FormatError>>(
        &mut self,
        tensor: &Tensor,
        range: Range<u64>,
        stop: &CancelToken,
        take: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        match (self, &tensor.place) {
            (Self::Pack(cursor), Place::Packed(number)) => {
                let entry = &cursor.source().pack().manifest().tensors[*number];
                cursor.read_tensor(entry, range, stop, take)
            }
            (Self::Checkpoint(checkpoint, buffer), Place::Shard(shard, start)) => {
                let input: &dyn ReadAt = &*checkpoint.shards[*shard].shard.input;
                let range = start + range.start..start + range.end;
                input.for_each_piece(range, buffer, stop, take)
            }
            (Self::Pack(_), Place::Shard(..)) | (Self::Checkpoint(..), Place::Packed(_)) => {
                unreachable!("a tensor is read with the reader of what it was listed in")
            }
        }
    }

    /// The digest of a tensor's bytes, read now; `progress` hears of them.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub(crate) fn digest(
        &mut self,
        tensor: &Tensor,
        stop: &CancelToken,
        progress: impl Fn(u64),
    ) -> Result<Sha256, FormatError> {
        let mut sha256 = Sha256Hasher::default();
        self.read(tensor, 0..tensor.length, stop, |piece| {
            sha256.update(piece);
            progress(piece.len() as u64);
            Ok::<_, FormatError>(())
        })?;
        Ok(sha256.finish())
    }
}
