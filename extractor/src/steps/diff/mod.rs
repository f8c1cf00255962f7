//! `diff`: what differs between two packs, two checkpoints, or one of each.
//!
//! Shapes and dtypes first, then digests: a pack's are in its manifest, a checkpoint's tensors are
//! read for theirs. How tensors are spread over shards is no difference.

mod moved;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use segpack_formats::FormatError;
use segpack_formats::digest::Sha256;
use segpack_manifests::documents::{
    DiffChange, DiffCounts, DiffFile, DiffGroup, DiffKind, DiffReport, DiffSide, DiffTensor,
    DiffTensorSide, GENERATOR,
};
use segpack_manifests::names::{Component, Role};

use super::StepError;
use super::contents::{Contents, Cursor, Reader, SideContent, Tensor};
use crate::work::{Job, into_inner, jobs_within_memory, lock, run_tasks};
use moved::{Moving, Windows};

/// What to report beside the sums.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct DiffSettings {
    /// How much values moved.
    pub stat: bool,
    /// Every tensor that is not equal.
    pub tensors: bool,
}

/// One side, opened.
struct Side<'a> {
    contents: &'a Contents,
    reader: Reader<'a>,
    tensors: BTreeMap<String, Tensor>,
    files: BTreeMap<String, SideContent>,
}

impl<'a> Side<'a> {
    fn open(contents: &'a Contents) -> Result<Self, StepError> {
        Ok(Self {
            contents,
            reader: contents.reader(),
            tensors: contents.tensors()?,
            files: contents.files(),
        })
    }

    fn describe(&self) -> DiffSide {
        let pack = self.contents.pack();
        DiffSide {
            kind: pack.map_or(DiffKind::Checkpoint, |_| DiffKind::Pack),
            manifest_sha256: pack.map(segpack_manifests::Pack::manifest_sha256),
            family: self.contents.family(),
            tensors: self.tensors.len() as u64,
            bytes: self.tensors.values().map(|t| t.length).sum(),
            files: self.files.len() as u64,
            excluded: self.contents.excluded(),
        }
    }
}

/// A tensor of one side or both.
struct Row<'a> {
    name: &'a str,
    a: Option<&'a Tensor>,
    b: Option<&'a Tensor>,
    change: Option<DiffChange>,
    digests: [Option<Sha256>; 2],
    moved: Option<Moving>,
}

impl<'a> Row<'a> {
    /// Compares all that is known without reading: equal so far where nothing differs.
    fn new(name: &'a str, a: Option<&'a Tensor>, b: Option<&'a Tensor>) -> Self {
        let may_be_equal = a
            .zip(b)
            .is_some_and(|(a, b)| (a.dtype, &a.shape) == (b.dtype, &b.shape));
        let change = (!may_be_equal).then(|| DiffChange::between(a, b));
        let digest = |t: Option<&Tensor>| t.and_then(|t| t.sha256);
        Self {
            name,
            a,
            b,
            change,
            digests: [digest(a), digest(b)],
            moved: None,
        }
    }

    /// The side that says what the tensor is: the second, where both have it.
    fn tensor(&self) -> Option<&'a Tensor> {
        self.b.or(self.a)
    }
}

/// What differs between two.
///
/// # Errors
/// Where one cannot be read.
pub(crate) fn diff(
    a: &Contents,
    b: &Contents,
    settings: DiffSettings,
    job: Job<'_>,
) -> Result<DiffReport, StepError> {
    let (a, b) = (Side::open(a)?, Side::open(b)?);
    let names: BTreeSet<&String> = a.tensors.keys().chain(b.tensors.keys()).collect();
    let rows = names.iter().map(|name| {
        let (a, b) = (a.tensors.get(*name), b.tensors.get(*name));
        Row::new(name, a, b)
    });
    let mut rows: Vec<Row<'_>> = rows.collect();
    compare_digests(&mut rows, &a, &b, job)?;
    if settings.stat {
        measure(&mut rows, &a, &b, job)?;
    }
    let changed_files = compare_files(&a, &b, job)?;
    let tensors = count(rows.iter().map(|row| row.change));
    let files = count_files(&a, &b, &changed_files);
    let changed_tensors = settings.tensors.then(|| {
        let changed = rows.iter().filter_map(describe);
        changed.collect()
    });
    Ok(DiffReport {
        format_version: DiffReport::VERSION,
        generator: GENERATOR.to_owned(),
        equal: tensors.is_equal() && files.is_equal(),
        a: a.describe(),
        b: b.describe(),
        tensors,
        files,
        groups: groups(&rows),
        changed_files,
        changed_tensors,
    })
}

fn count(changes: impl Iterator<Item = Option<DiffChange>>) -> DiffCounts {
    let mut counts = DiffCounts::default();
    changes.for_each(|change| add_change(&mut counts, change));
    counts
}

fn add_change(counts: &mut DiffCounts, change: Option<DiffChange>) {
    *match change {
        None => &mut counts.equal,
        Some(DiffChange::Added) => &mut counts.added,
        Some(DiffChange::Removed) => &mut counts.removed,
        Some(DiffChange::Changed) => &mut counts.changed,
    } += 1;
}

/// Reads the tensors of checkpoints that may be equal, and compares digests.
fn compare_digests(
    rows: &mut [Row<'_>],
    a: &Side<'_>,
    b: &Side<'_>,
    job: Job<'_>,
) -> Result<(), StepError> {
    // by the place of the first side's bytes, so that shards are read from front to back
    let open = rows
        .iter()
        .enumerate()
        .filter(|(_, row)| row.change.is_none());
    let mut open: Vec<(usize, &Row<'_>)> = open.collect();
    open.sort_by_key(|(_, row)| row.a.or(row.b).map(Tensor::order));
    let bytes = open.iter().map(|(_, row)| unread_bytes(row)).sum();
    if bytes > 0 {
        job.progress.start("digesting tensors", bytes);
    }
    let found = Mutex::new(Vec::new());
    let done = run_tasks(
        job.threads,
        &open,
        || Ok::<_, FormatError>((a.reader.cursor()?, b.reader.cursor()?)),
        |(from_a, from_b), (number, row)| {
            let first = digest(row.a, from_a, job)?;
            let second = digest(row.b, from_b, job)?;
            lock(&found).push((*number, [first, second]));
            Ok(())
        },
    );
    if bytes > 0 {
        job.progress.finish();
    }
    done?;
    for (number, digests) in into_inner(found) {
        let row = &mut rows[number];
        row.digests = digests;
        row.change = (digests[0] != digests[1]).then_some(DiffChange::Changed);
    }
    Ok(())
}

fn unread_bytes(row: &Row<'_>) -> u64 {
    let sides = [row.a, row.b].into_iter().flatten();
    sides.filter(|t| t.sha256.is_none()).map(|t| t.length).sum()
}

fn digest(
    tensor: Option<&Tensor>,
    from: &mut Cursor<'_>,
    job: Job<'_>,
) -> Result<Option<Sha256>, FormatError> {
    match tensor {
        None => Ok(None),
        Some(t) if t.sha256.is_some() => Ok(t.sha256),
        Some(t) => from
            .digest(t, job.stop, |bytes| job.progress.advance(bytes))
            .map(Some),
    }
}

/// Compares the values of every tensor that changed.
fn measure(
    rows: &mut [Row<'_>],
    a: &Side<'_>,
    b: &Side<'_>,
    job: Job<'_>,
) -> Result<(), StepError> {
    let both = rows.iter().enumerate().filter_map(|(number, row)| {
        let (a, b) = (row.a?, row.b?);
        let measured = row.change.is_some() && moved::are_comparable(a, b);
        measured.then_some((number, a, b))
    });
    let tasks: Vec<(usize, &Tensor, &Tensor)> = both.collect();
    let bytes = tasks.iter().map(|(_, a, b)| a.length + b.length).sum();
    job.progress.start("comparing values", bytes);
    let found = Mutex::new(Vec::new());
    let done = run_tasks(
        jobs_within_memory(job.threads, moved::WINDOW_MEMORY),
        &tasks,
        || {
            let cursors = (a.reader.cursor()?, b.reader.cursor()?);
            Ok::<_, FormatError>((cursors, Windows::default()))
        },
        |((from_a, from_b), windows), (number, a, b)| {
            let advance = |bytes| job.progress.advance(bytes);
            let moving = moved::compare((a, from_a), (b, from_b), windows, job.stop, advance)?;
            lock(&found).push((*number, moving));
            Ok(())
        },
    );
    job.progress.finish();
    done?;
    for (number, moving) in into_inner(found) {
        rows[number].moved = Some(moving);
    }
    Ok(())
}

/// The files beside the shards that are not equal.
fn compare_files(a: &Side<'_>, b: &Side<'_>, job: Job<'_>) -> Result<Vec<DiffFile>, StepError> {
    let paths: BTreeSet<&String> = a.files.keys().chain(b.files.keys()).collect();
    let mut changed = Vec::new();
    for path in paths {
        let (in_a, in_b) = (a.files.get(path), b.files.get(path));
        if let Some((x, y)) = in_a.zip(in_b)
            && same_file((x, &a.reader), (y, &b.reader), job)?
        {
            continue;
        }
        let length = |file: Option<&SideContent>| file.map(|f| f.length);
        changed.push(DiffFile::new(path, length(in_a), length(in_b)));
    }
    Ok(changed)
}

fn same_file(
    (a, from_a): (&SideContent, &Reader<'_>),
    (b, from_b): (&SideContent, &Reader<'_>),
    job: Job<'_>,
) -> Result<bool, FormatError> {
    Ok(a.length == b.length && digest_of_file(a, from_a, job)? == digest_of_file(b, from_b, job)?)
}

fn digest_of_file(
    file: &SideContent,
    from: &Reader<'_>,
    job: Job<'_>,
) -> Result<Sha256, FormatError> {
    match file.sha256 {
        Some(known) => Ok(known),
        None => from.digest_file(file, job.stop),
    }
}

fn count_files(a: &Side<'_>, b: &Side<'_>, changed: &[DiffFile]) -> DiffCounts {
    let mut counts = count(changed.iter().map(|f| Some(f.change)));
    let in_both = a.files.keys().filter(|path| b.files.contains_key(*path));
    counts.equal = in_both.count() as u64 - counts.changed;
    counts
}

/// Sums by component, layer and role, of those groups in which something differs.
fn groups(rows: &[Row<'_>]) -> Vec<DiffGroup> {
    type Key = (Component, Option<u32>, Role);
    let mut sums: BTreeMap<Key, (DiffCounts, Option<Moving>)> = BTreeMap::new();
    for row in rows {
        let Some(tensor) = row.tensor() else { continue };
        let c = tensor.classification;
        let (counts, moved) = sums.entry((c.component, c.layer, c.role)).or_default();
        add_change(counts, row.change);
        if let Some(moving) = &row.moved {
            moved.get_or_insert_default().join(moving);
        }
    }
    let differ = sums
        .into_iter()
        .filter(|(_, (counts, _))| !counts.is_equal());
    let group = differ.map(|((component, layer, role), (tensors, moved))| DiffGroup {
        component,
        layer,
        role,
        tensors,
        moved: moved.map(|m| m.moved()),
    });
    group.collect()
}

/// A tensor on one side, where it is there.
fn describe_side(tensor: Option<&Tensor>, sha256: Option<Sha256>) -> Option<DiffTensorSide> {
    let tensor = tensor?;
    Some(DiffTensorSide {
        dtype: tensor.dtype,
        shape: tensor.shape.clone(),
        sha256,
    })
}

/// A tensor that is not equal.
fn describe(row: &Row<'_>) -> Option<DiffTensor> {
    let (change, c) = (row.change?, row.tensor()?.classification);
    Some(DiffTensor {
        name: row.name.to_owned(),
        change,
        component: c.component,
        role: c.role,
        part: c.part,
        layer: c.layer,
        expert: c.expert,
        a: describe_side(row.a, row.digests[0]),
        b: describe_side(row.b, row.digests[1]),
        moved: row.moved.as_ref().map(Moving::moved),
    })
}
