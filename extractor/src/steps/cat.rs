//! `ls` and `cat`: what is in a pack, and the bytes of it.

use std::io::Write;
use std::ops::Range;

use segpack_formats::digest::Sha256Hasher;
use segpack_formats::io::Stop;
use segpack_manifests::Pack;
use segpack_manifests::documents::{SegmentEntry, TensorEntry};
use segpack_runtime_min::{WeightReader, WeightSource};

use super::StepError;
use super::unpack::globs;

/// Segments whose id matches one of the globs (all without globs).
///
/// # Errors
/// `Input` where globs match nothing.
pub fn find_segments<'a>(pack: &'a Pack, patterns: &[String]) -> Result<Vec<&'a SegmentEntry>, StepError> {
    filter(&pack.manifest().segments, patterns, |s| &s.id)
}

/// Tensors whose name matches one of the globs (all without globs).
///
/// # Errors
/// `Input` where globs match nothing.
pub fn find_tensors<'a>(pack: &'a Pack, patterns: &[String]) -> Result<Vec<&'a TensorEntry>, StepError> {
    filter(&pack.manifest().tensors, patterns, |t| &t.name)
}

fn filter<'a, T>(
    all: &'a [T],
    patterns: &[String],
    name: impl Fn(&T) -> &String,
) -> Result<Vec<&'a T>, StepError> {
    let set = globs(patterns)?;
    let found: Vec<&T> =
        all.iter().filter(|entry| patterns.is_empty() || set.is_match(name(entry))).collect();
    if found.is_empty() && !patterns.is_empty() {
        return Err(StepError::Input(format!("nothing in the pack matches {}", patterns.join(" "))));
    }
    Ok(found)
}

/// Writes the decoded bytes of a tensor, a segment, or a tensor that the checkpoint stores stacked.
///
/// Whole tensors are compared with their digests; `rows` (of a tensor's first dimension) are not, since the digest
/// is that of the whole.
///
/// # Errors
/// `Input` where there is no such name or row; damage, after the bytes before it were written; `Stdout`.
pub fn cat(
    pack: &Pack,
    name: &str,
    rows: Option<Range<u64>>,
    to: &mut dyn Write,
    stop: &Stop,
) -> Result<(), StepError> {
    let weights = WeightSource::new(pack);
    let mut reader = weights.reader()?;
    let mut write = Cat { reader: &mut reader, to, stop };
    if let Some(tensor) = pack.tensor(name) {
        return match rows {
            None => write.tensor(tensor),
            Some(rows) => write.rows(tensor, rows),
        };
    }
    if rows.is_some() {
        return Err(StepError::Input(format!("--rows needs a tensor, and the pack has none named {name:?}")));
    }
    if let Some(segment) = pack.segment(name) {
        return pack
            .manifest()
            .tensors
            .iter()
            .filter(|t| t.segment == segment.id)
            .try_for_each(|t| write.tensor(t));
    }
    let slices = pack.slices_of(name);
    if slices.is_empty() {
        return Err(StepError::Input(format!(
            "the pack has no tensor or segment named {name:?}; `segpack ls --tensors` lists them"
        )));
    }
    slices.into_iter().try_for_each(|t| write.tensor(t))
}

struct Cat<'a, 'r> {
    reader: &'a mut WeightReader<'r>,
    to: &'a mut dyn Write,
    stop: &'a Stop,
}

impl Cat<'_, '_> {
    fn tensor(&mut self, tensor: &TensorEntry) -> Result<(), StepError> {
        let mut sha256 = Sha256Hasher::default();
        self.reader.read_tensor(tensor, 0..tensor.length, self.stop, |piece| {
            sha256.update(piece);
            self.to.write_all(piece).map_err(StepError::Stdout)
        })?;
        let seen = sha256.finish();
        if seen == tensor.sha256 {
            return Ok(());
        }
        Err(StepError::Input(format!(
            "tensor {:?} is damaged: SHA-256 {seen}, wanted {}; the bytes written are wrong",
            tensor.name, tensor.sha256
        )))
    }

    fn rows(&mut self, tensor: &TensorEntry, rows: Range<u64>) -> Result<(), StepError> {
        let count = tensor.shape.first().copied().unwrap_or(0);
        if rows.start > rows.end || rows.end > count {
            return Err(StepError::Input(format!(
                "rows {}..{} of {:?}: it has {count} rows",
                rows.start, rows.end, tensor.name
            )));
        }
        let row = tensor.length.checked_div(count).unwrap_or(0);
        self.reader.read_tensor(tensor, rows.start * row..rows.end * row, self.stop, |piece| {
            self.to.write_all(piece).map_err(StepError::Stdout)
        })
    }
}

/// Parses `A..B` (B exclusive) or `A`.
///
/// # Errors
/// In words, where it is neither.
pub fn parse_rows(text: &str) -> Result<Range<u64>, String> {
    let wrong = || format!("{text:?} is not A..B (B not included) or a single row");
    match text.split_once("..") {
        Some((start, end)) => Ok(start.parse().map_err(|_| wrong())?..end.parse().map_err(|_| wrong())?),
        None => {
            let row: u64 = text.parse().map_err(|_| wrong())?;
            Ok(row..row.checked_add(1).ok_or_else(wrong)?)
        }
    }
}
