//! The proof that `unpack` gives the original shards back: their bytes, kept header and tensors in
//! the order of the file, from whatever packs they lie in, through the SHA-256 of the original.
//!
//! The bytes are those that the tensors' own digests are taken of, read once for both. A shard is
//! cut at its midstates into stretches that are checked side by side, each from one state to the
//! next; one without midstates, of an older pack, is a single stretch.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use segpack_formats::FormatError;
use segpack_formats::codec::Codec;
use segpack_formats::digest::{LANES, Sha256, Sha256Hasher};
use segpack_formats::io::{CancelToken, to_usize};
use segpack_manifests::documents::{
    FileResult, Finding, FindingKind, Manifest, Midstate, Restorable, SegmentEntry, SourceFile,
    SourceFileKind, TensorEntry,
};
use segpack_manifests::folder::MANIFEST;
use segpack_manifests::{PackCursor, PackReader};

use super::Findings;

/// Stretches that are checked side by side: each takes two digests, so that all [`LANES`] are used.
const SIDE_BY_SIDE: usize = LANES / 2;

/// Longer stretches are checked one by one: two digests of one stretch go faster than many of
/// several, and the other threads need work, too.
const MAX_SHARED_BYTES: u64 = 64 << 20;

/// A shard whose original is to be proved, and what has come of it.
pub(super) struct Proving<'a> {
    pub file: &'a SourceFile,
    wanted: Sha256,
    parts: Vec<Part<'a>>,
    /// A finding says which of its parts is damaged.
    damaged: AtomicBool,
    /// A stretch does not lead to the next state.
    differs: AtomicBool,
    /// A stretch was not read in one go, so that nothing is known of its state.
    unread: AtomicBool,
}

/// A piece of a shard that has a digest of its own.
#[derive(Clone, Copy)]
pub(super) struct Part<'a> {
    /// First byte in the shard.
    pub at: u64,
    pub length: u64,
    pub what: What<'a>,
}

#[derive(Clone, Copy)]
pub(super) enum What<'a> {
    /// What was kept of the shard: its header.
    Kept(&'a SourceFile),
    /// A tensor; `checks_segment` where the coded segment that holds it is checked with it.
    Tensor {
        tensor: &'a TensorEntry,
        segment: &'a SegmentEntry,
        checks_segment: bool,
    },
}

impl<'a> What<'a> {
    /// The file of the pack that has the bytes, and the first of them; `None` where they are coded.
    pub(super) fn stored(&self) -> Option<(&'a str, u64)> {
        match *self {
            Self::Kept(file) => Some((&file.stored_as, 0)),
            Self::Tensor {
                tensor, segment, ..
            } => {
                let raw = segment.codec == Codec::Raw;
                raw.then(|| (&*segment.pack, segment.offset + tensor.offset))
            }
        }
    }
}

/// Some parts of a shard one after another, from one state of its SHA-256 to the next.
pub(super) struct Stretch<'p, 'a> {
    pub shard: &'p Proving<'a>,
    pub parts: &'p [Part<'a>],
    /// The state before it; `None` at the start of the shard.
    start: Option<Midstate>,
    /// The state behind it; `None` at the end of the shard.
    end: Option<Midstate>,
}

/// The manifest's entries that lead from a shard to its bytes.
pub(super) struct Places<'a> {
    segments: HashMap<&'a str, &'a SegmentEntry>,
    tensors: HashMap<&'a str, Vec<&'a TensorEntry>>,
}

impl<'a> Places<'a> {
    pub(super) fn of(manifest: &'a Manifest) -> Self {
        let segments = manifest.segments.iter().map(|s| (&*s.id, s)).collect();
        let mut tensors: HashMap<&str, Vec<&TensorEntry>> = HashMap::new();
        for tensor in &manifest.tensors {
            tensors.entry(&tensor.source.file).or_default().push(tensor);
        }
        for tensors in tensors.values_mut() {
            tensors.sort_by_key(|t| (t.source.offset, t.source.length));
        }
        Self { segments, tensors }
    }

    /// What a shard consists of, in order; `None` where a file that has some of it is not `sound`.
    fn parts(&self, file: &'a SourceFile, sound: &BTreeSet<String>) -> Option<Vec<Part<'a>>> {
        let mut parts = vec![Part {
            at: 0,
            length: file.stored_length,
            what: What::Kept(file),
        }];
        for &tensor in self.tensors.get(&*file.path).into_iter().flatten() {
            let segment = *self.segments.get(&*tensor.segment)?;
            if !sound.contains(&segment.pack) {
                return None;
            }
            parts.push(Part {
                at: tensor.source.offset,
                length: tensor.length,
                what: What::Tensor {
                    tensor,
                    segment,
                    checks_segment: false,
                },
            });
        }
        sound.contains(&file.stored_as).then_some(parts)
    }
}

/// The shards whose originals can be proved.
pub(super) fn provable<'a>(
    manifest: &'a Manifest,
    places: &Places<'a>,
    sound: &BTreeSet<String>,
) -> Vec<Proving<'a>> {
    let mut shards: Vec<Proving<'_>> = manifest
        .source_files
        .iter()
        .filter(|f| f.kind == SourceFileKind::Shard && f.excluded_bytes == 0)
        .filter_map(|file| {
            Some(Proving {
                file,
                wanted: file.sha256?,
                parts: places.parts(file, sound)?,
                damaged: AtomicBool::new(false),
                differs: AtomicBool::new(false),
                unread: AtomicBool::new(false),
            })
        })
        .collect();
    assign_segments(manifest, &mut shards);
    shards
}

/// A coded segment all of whose tensors are read here is checked with the first of them.
fn assign_segments(manifest: &Manifest, shards: &mut [Proving<'_>]) {
    let mut missing: HashMap<&str, usize> = HashMap::new();
    for tensor in &manifest.tensors {
        *missing.entry(&tensor.segment).or_default() += 1;
    }
    for shard in &*shards {
        for part in &shard.parts {
            if let What::Tensor { tensor, .. } = part.what
                && let Some(count) = missing.get_mut(&*tensor.segment)
            {
                *count -= 1;
            }
        }
    }
    let mut assigned = BTreeSet::new();
    for part in shards.iter_mut().flat_map(|s| &mut s.parts) {
        if let What::Tensor {
            segment,
            checks_segment,
            ..
        } = &mut part.what
        {
            let is_coded = segment.codec != Codec::Raw;
            let whole = missing.get(&*segment.id) == Some(&0);
            *checks_segment = is_coded && whole && assigned.insert(&*segment.id);
        }
    }
}

/// Names of the tensors that are read with their shards, and of the segments checked with them.
pub(super) fn covered<'a>(shards: &[Proving<'a>]) -> (BTreeSet<&'a str>, BTreeSet<&'a str>) {
    let (mut tensors, mut segments) = (BTreeSet::new(), BTreeSet::new());
    for part in shards.iter().flat_map(|s| &s.parts) {
        if let What::Tensor {
            tensor,
            segment,
            checks_segment,
        } = part.what
        {
            tensors.insert(&*tensor.name);
            if checks_segment {
                segments.insert(&*segment.id);
            }
        }
    }
    (tensors, segments)
}

impl<'a> Proving<'a> {
    /// Its stretches, from midstate to midstate.
    pub(super) fn stretches(&self) -> Vec<Stretch<'_, 'a>> {
        const BLOCK_BYTES: u64 = 64;
        // (number of the first part behind it, the state): a state that lies elsewhere is of no use
        let cuts = self.file.midstates.iter().filter_map(|&midstate| {
            let number = self.parts.partition_point(|p| p.at < midstate.offset);
            let part = self.parts.get(number)?;
            (part.at - midstate.offset < BLOCK_BYTES).then_some((number, midstate))
        });
        let cuts: Vec<(usize, Midstate)> = cuts.collect();
        let mut stretches = Vec::with_capacity(cuts.len() + 1);
        let (mut first, mut start) = (0, None);
        for (number, midstate) in cuts.into_iter().filter(|(number, _)| *number > 0) {
            stretches.push(Stretch {
                shard: self,
                parts: &self.parts[first..number],
                start,
                end: Some(midstate),
            });
            (first, start) = (number, Some(midstate));
        }
        stretches.push(Stretch {
            shard: self,
            parts: &self.parts[first..],
            start,
            end: None,
        });
        stretches
    }

    /// A finding says what is wrong with it.
    pub(super) fn set_damaged(&self) {
        self.damaged.store(true, Ordering::Relaxed);
    }

    /// A stretch of it was not read in one go.
    pub(super) fn set_unread(&self) {
        self.unread.store(true, Ordering::Relaxed);
    }

    fn pieces(
        &self,
        range: Range<u64>,
        reader: &mut PackCursor<'_>,
        buffer: &mut [u8],
        stop: &CancelToken,
        mut take: impl FnMut(&[u8]),
    ) -> Result<(), FormatError> {
        for part in &self.parts {
            let from = range.start.clamp(part.at, part.at + part.length) - part.at;
            let to = range.end.clamp(part.at, part.at + part.length) - part.at;
            if from == to {
                continue;
            }
            let take = |piece: &[u8]| {
                take(piece);
                Ok::<_, FormatError>(())
            };
            match part.what {
                What::Kept(file) => {
                    let input = reader.source().open(&file.stored_as)?;
                    input.for_each_piece(from..to, buffer, stop, take)?;
                }
                What::Tensor { tensor, .. } => reader.read_tensor(tensor, from..to, stop, take)?,
            }
        }
        Ok(())
    }

    /// What has come of it, with a finding for what no other finding explains.
    ///
    /// # Errors
    /// `Interrupted`.
    fn conclude(
        &self,
        weights: &PackReader<'_>,
        buffer: &mut [u8],
        findings: &Findings,
        stop: &CancelToken,
    ) -> Result<Restorable, FormatError> {
        if self.damaged.load(Ordering::Relaxed) {
            return Ok(Restorable::No);
        }
        let unread = self.unread.load(Ordering::Relaxed);
        if !unread && !self.differs.load(Ordering::Relaxed) {
            return Ok(Restorable::Yes);
        }
        // every part is what the manifest says, but the whole is not: only a read from the first
        // byte to the last tells what it is
        let mut sha256 = Sha256Hasher::default();
        let whole = 0..self.file.length;
        let mut reader = weights.cursor()?;
        let read = self.pieces(whole, &mut reader, buffer, stop, |piece| {
            sha256.update(piece);
        });
        let seen = sha256.finish();
        match read {
            Err(FormatError::Interrupted) => return Err(FormatError::Interrupted),
            Err(e) => findings.add(self.not_restorable(&super::describe(&e))),
            Ok(()) if seen == self.wanted && unread => return Ok(Restorable::Yes),
            Ok(()) if seen == self.wanted => {
                let what = format!(
                    "midstates of {:?} do not lead to its digest",
                    self.file.path
                );
                let finding = Finding::new(FindingKind::BadManifest).file(MANIFEST);
                findings.add(finding.seen(what));
                return Ok(Restorable::Yes);
            }
            Ok(()) => findings.add(self.not_restorable(&format!("SHA-256 {seen}"))),
        }
        Ok(Restorable::No)
    }

    fn not_restorable(&self, seen: &str) -> Finding {
        let finding = Finding::new(FindingKind::NotRestorable).file(&self.file.path);
        finding
            .seen(format!("what would be restored has {seen}"))
            .wanted(self.wanted)
    }
}

impl Stretch<'_, '_> {
    /// Bytes of its parts.
    pub(super) fn length(&self) -> u64 {
        self.parts.iter().map(|p| p.length).sum()
    }

    /// Whether all its bytes are stored as they are.
    pub(super) fn is_raw(&self) -> bool {
        self.parts.iter().all(|p| p.what.stored().is_some())
    }

    /// The digest of the shard before its first part.
    ///
    /// # Errors
    /// Where the bytes between the state and the first part, fewer than 64, cannot be read.
    pub(super) fn hasher(
        &self,
        reader: &mut PackCursor<'_>,
        stop: &CancelToken,
    ) -> Result<Sha256Hasher, FormatError> {
        let Some(start) = self.start else {
            return Ok(Sha256Hasher::default());
        };
        let first = self.parts.first().map_or(start.offset, |p| p.at);
        let mut hasher = Sha256Hasher::resume(start.state, start.offset).unwrap_or_default();
        let shard = self.shard;
        let mut buffer = [0; 64];
        shard.pieces(start.offset..first, reader, &mut buffer, stop, |piece| {
            hasher.update(piece);
        })?;
        Ok(hasher)
    }

    /// All its parts have gone through the hasher.
    pub(super) fn finish(&self, hasher: Sha256Hasher) {
        let same = match self.end {
            Some(end) => hasher.midstate() == (end.state, end.offset),
            None => hasher.finish() == self.shard.wanted,
        };
        if !same {
            self.shard.differs.store(true, Ordering::Relaxed);
        }
    }
}

/// Groups stretches, the longest first, for threads to check side by side.
pub(super) fn groups<'p, 'a>(mut stretches: Vec<Stretch<'p, 'a>>) -> Vec<Vec<Stretch<'p, 'a>>> {
    stretches.sort_by_key(|s| std::cmp::Reverse(s.length())); // stable
    let mut groups: Vec<Vec<Stretch<'_, '_>>> = Vec::new();
    for stretch in stretches {
        match groups.last_mut() {
            Some(open)
                if open.len() < SIDE_BY_SIDE
                    && open[0].length() <= MAX_SHARED_BYTES
                    && stretch.length() >= open[0].length() / 2 =>
            {
                open.push(stretch);
            }
            _ => groups.push(vec![stretch]),
        }
    }
    groups
}

/// One stretch on its way through its parts.
pub(super) struct Lane<'s, 'p, 'a> {
    pub stretch: &'s Stretch<'p, 'a>,
    /// Number of the begun part, and bytes of it that are taken.
    pub part: usize,
    pub taken: u64,
}

impl<'s, 'p, 'a> Lane<'s, 'p, 'a> {
    /// At the start of its stretch.
    pub(super) fn new(stretch: &'s Stretch<'p, 'a>) -> Self {
        Self {
            stretch,
            part: 0,
            taken: 0,
        }
    }

    /// The begun part.
    pub(super) fn current(&self) -> Option<&Part<'a>> {
        self.stretch.parts.get(self.part)
    }

    /// Bytes of the begun part that fit into a piece of this length.
    pub(super) fn next_length(&self, piece: usize) -> usize {
        self.current().map_or(0, |part| {
            to_usize((part.length - self.taken).min(piece as u64))
        })
    }
}

/// What is known of each file of the checkpoint once everything is read.
///
/// # Errors
/// `Interrupted`.
pub(super) fn results(
    weights: &PackReader<'_>,
    shards: &[Proving<'_>],
    checked: bool,
    findings: &Findings,
    buffer: &mut [u8],
    stop: &CancelToken,
) -> Result<Vec<FileResult>, FormatError> {
    let mut proved = BTreeMap::new();
    for shard in shards {
        let result = shard.conclude(weights, buffer, findings, stop)?;
        proved.insert(&*shard.file.path, result);
    }
    let manifest = weights.pack().manifest();
    let files = manifest.source_files.iter().map(|file| FileResult {
        path: file.path.clone(),
        restorable: match proved.get(&*file.path) {
            Some(result) => *result,
            None if file.excluded_bytes > 0 => Restorable::Excluded,
            None if file.sha256.is_none() => Restorable::NotRecorded,
            None if !checked => Restorable::NotChecked,
            None if file.kind == SourceFileKind::Shard => Restorable::No,
            None if findings.names(&file.stored_as) => Restorable::No,
            None => Restorable::Yes,
        },
    });
    Ok(files.collect())
}
