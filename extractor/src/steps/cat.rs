//! `ls` and `cat`: what is in a pack, and the bytes of it.

use std::io::Write;
use std::ops::Range;

use segpack_formats::digest::{Sha256, Sha256Hasher};
use segpack_formats::io::{CancelToken, READ_BYTES};
use segpack_manifests::Pack;
use segpack_manifests::documents::{SegmentEntry, SourceFile, SourceFileKind, TensorEntry};
use segpack_manifests::{PackCursor, PackReader};

use super::StepError;
use super::unpack::globs;

/// Why nothing of a pack is listed or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CatError {
    /// Nothing in the pack matches the globs.
    #[error("nothing in the pack matches {}", globs.join(" "))]
    NoMatch {
        /// The globs.
        globs: Vec<String>,
    },
    /// The pack has nothing of this name.
    #[error("the pack has no tensor, segment or file named {name:?}")]
    NoSuchName {
        /// The name.
        name: String,
    },
    /// A shard of the checkpoint, whose bytes are in many segments.
    #[error("{name:?} is a shard of the checkpoint, which is not written as a whole")]
    Shard {
        /// Its path in the checkpoint.
        name: String,
    },
    /// The bytes of a file of the checkpoint, which are written already, have another digest.
    #[error(
        "file {name:?} is damaged: SHA-256 {seen}, wanted {wanted}; the bytes written are wrong"
    )]
    DamagedFile {
        /// Its path in the checkpoint.
        name: String,
        /// The digest of its bytes.
        seen: Sha256,
        /// The digest in the manifest.
        wanted: Sha256,
    },
    /// Rows of something that has none: a segment, or a tensor that is stored in slices.
    #[error("rows are taken from a tensor, and {name:?} is not one")]
    RowsOfNoTensor {
        /// The name.
        name: String,
    },
    /// A tensor has fewer rows.
    #[error("rows {}..{} of {name:?}: it has {count} rows", rows.start, rows.end)]
    NoSuchRows {
        /// The tensor.
        name: String,
        /// The rows that were requested.
        rows: Range<u64>,
        /// How many rows it has.
        count: u64,
    },
    /// The bytes of a tensor, which are written already, have another digest.
    #[error(
        "tensor {name:?} is damaged: SHA-256 {seen}, wanted {wanted}; the bytes written are wrong"
    )]
    Damaged {
        /// The tensor.
        name: String,
        /// The digest of its bytes.
        seen: Sha256,
        /// The digest in the manifest.
        wanted: Sha256,
    },
}

/// Segments whose id matches one of the globs (all without globs).
///
/// # Errors
/// `NoMatch` where globs match nothing.
pub(crate) fn find_segments<'a>(
    pack: &'a Pack,
    patterns: &[String],
) -> Result<Vec<&'a SegmentEntry>, StepError> {
    filter(&pack.manifest().segments, patterns, |s| &s.id)
}

/// Tensors whose name matches one of the globs (all without globs).
///
/// # Errors
/// `NoMatch` where globs match nothing.
pub(crate) fn find_tensors<'a>(
    pack: &'a Pack,
    patterns: &[String],
) -> Result<Vec<&'a TensorEntry>, StepError> {
    filter(&pack.manifest().tensors, patterns, |t| &t.name)
}

fn filter<'a, T>(
    all: &'a [T],
    patterns: &[String],
    name: impl Fn(&T) -> &String,
) -> Result<Vec<&'a T>, StepError> {
    let set = globs(patterns)?;
    let found: Vec<&T> = all
        .iter()
        .filter(|entry| patterns.is_empty() || set.is_match(name(entry)))
        .collect();
    if found.is_empty() && !patterns.is_empty() {
        return Err(CatError::NoMatch {
            globs: patterns.to_vec(),
        }
        .into());
    }
    Ok(found)
}

/// What a name stands for.
enum Named<'a> {
    /// One tensor, those of a segment, or the slices of a stacked one.
    Tensors(Vec<&'a TensorEntry>),
    /// A file beside the shards.
    File(&'a SourceFile),
}

/// What begins the name of a file where a tensor or segment has the same.
const FILE_PREFIX: &str = "./";

/// Whether all names are those of files beside the shards.
///
/// # Errors
/// As [`cat`], of names that stand for nothing.
pub(crate) fn are_files(pack: &Pack, names: &[String]) -> Result<bool, StepError> {
    let found = names.iter().map(|name| resolve(pack, name, None));
    let found: Vec<Named<'_>> = found.collect::<Result<_, _>>()?;
    Ok(found.iter().all(|named| matches!(named, Named::File(_))))
}

/// Writes the decoded bytes of tensors, segments, tensors that the checkpoint stores stacked, and
/// files beside the shards, in the order of `names`. All names are looked up before the first byte
/// is written. A name is looked for in this order; `./` before it says that it is a file's.
///
/// Whole tensors are compared with their digests; `rows` (of a tensor's first dimension) are not,
/// since the digest is that of the whole.
///
/// # Errors
/// `NoSuchName`, `Shard`, `RowsOfNoTensor`, `NoSuchRows`; `Damaged`, `DamagedFile`, after the bytes before it were written;
/// `Stdout`.
pub(crate) fn cat(
    pack: &Pack,
    names: &[String],
    rows: Option<&Range<u64>>,
    to: &mut dyn Write,
    stop: &CancelToken,
) -> Result<(), StepError> {
    let mut found = Vec::new();
    for name in names {
        found.push(resolve(pack, name, rows)?);
    }
    let weights = PackReader::new(pack);
    let mut reader = weights.cursor()?;
    let mut write = Cat {
        reader: &mut reader,
        to,
        stop,
    };
    for named in found {
        match (named, rows) {
            (Named::File(file), _) => write.file(file)?,
            (Named::Tensors(tensors), None) => {
                tensors.into_iter().try_for_each(|t| write.tensor(t))?;
            }
            (Named::Tensors(tensors), Some(rows)) => {
                tensors.into_iter().try_for_each(|t| write.rows(t, rows))?;
            }
        }
    }
    Ok(())
}

/// What a name stands for; with `rows`, one tensor that has them.
fn resolve<'a>(
    pack: &'a Pack,
    name: &str,
    rows: Option<&Range<u64>>,
) -> Result<Named<'a>, StepError> {
    if let Some(tensor) = pack.tensor(name) {
        return check_rows(tensor, rows).map(|()| Named::Tensors(vec![tensor]));
    }
    let found = match pack.segment(name) {
        Some(segment) => pack
            .manifest()
            .tensors
            .iter()
            .filter(|t| t.segment == segment.id)
            .collect(),
        None => pack.slices_of(name),
    };
    let name = || name.to_owned();
    let named = if found.is_empty() {
        Named::File(find_file(pack, &name())?)
    } else {
        Named::Tensors(found)
    };
    if rows.is_some() {
        return Err(CatError::RowsOfNoTensor { name: name() }.into());
    }
    Ok(named)
}

/// A file beside the shards, by its path in the checkpoint.
fn find_file<'a>(pack: &'a Pack, name: &str) -> Result<&'a SourceFile, CatError> {
    let path = name.strip_prefix(FILE_PREFIX).unwrap_or(name);
    let mut files = pack.manifest().source_files.iter();
    let name = name.to_owned();
    match files.find(|f| f.path == path) {
        None => Err(CatError::NoSuchName { name }),
        Some(f) if f.kind == SourceFileKind::Shard => Err(CatError::Shard { name }),
        Some(file) => Ok(file),
    }
}

fn check_rows(tensor: &TensorEntry, rows: Option<&Range<u64>>) -> Result<(), StepError> {
    let count = row_count(tensor);
    match rows {
        Some(rows) if rows.start > rows.end || rows.end > count => Err(CatError::NoSuchRows {
            name: tensor.name.clone(),
            rows: rows.clone(),
            count,
        }
        .into()),
        _ => Ok(()),
    }
}

fn row_count(tensor: &TensorEntry) -> u64 {
    tensor.shape.first().copied().unwrap_or(0)
}

struct Cat<'a, 'r> {
    reader: &'a mut PackCursor<'r>,
    to: &'a mut dyn Write,
    stop: &'a CancelToken,
}

impl Cat<'_, '_> {
    fn tensor(&mut self, tensor: &TensorEntry) -> Result<(), StepError> {
        let mut sha256 = Sha256Hasher::default();
        self.reader
            .read_tensor(tensor, 0..tensor.length, self.stop, |piece| {
                sha256.update(piece);
                self.to.write_all(piece).map_err(StepError::Stdout)
            })?;
        let seen = sha256.finish();
        if seen == tensor.sha256 {
            return Ok(());
        }
        Err(CatError::Damaged {
            name: tensor.name.clone(),
            seen,
            wanted: tensor.sha256,
        }
        .into())
    }

    fn file(&mut self, file: &SourceFile) -> Result<(), StepError> {
        let input = self.reader.source().open(&file.stored_as)?;
        let (mut sha256, mut buffer) = (Sha256Hasher::default(), vec![0; READ_BYTES]);
        input.for_each_piece(0..file.stored_length, &mut buffer, self.stop, |piece| {
            sha256.update(piece);
            self.to.write_all(piece).map_err(StepError::Stdout)
        })?;
        let (seen, wanted) = (sha256.finish(), file.stored_sha256);
        if seen == wanted {
            return Ok(());
        }
        let name = file.path.clone();
        Err(CatError::DamagedFile { name, seen, wanted }.into())
    }

    fn rows(&mut self, tensor: &TensorEntry, rows: &Range<u64>) -> Result<(), StepError> {
        let row = tensor.length.checked_div(row_count(tensor)).unwrap_or(0);
        self.reader.read_tensor(
            tensor,
            rows.start * row..rows.end * row,
            self.stop,
            |piece| self.to.write_all(piece).map_err(StepError::Stdout),
        )
    }
}

/// Parses `A..B` (B exclusive) or `A`.
///
/// # Errors
/// In words, where it is neither.
pub(crate) fn parse_rows(text: &str) -> Result<Range<u64>, String> {
    let wrong = || format!("{text:?} is not A..B (B not included) or a single row");
    match text.split_once("..") {
        Some((start, end)) => {
            Ok(start.parse().map_err(|_| wrong())?..end.parse().map_err(|_| wrong())?)
        }
        None => {
            let row: u64 = text.parse().map_err(|_| wrong())?;
            Ok(row..row.checked_add(1).ok_or_else(wrong)?)
        }
    }
}
