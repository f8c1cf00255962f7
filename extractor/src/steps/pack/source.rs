//! The bytes of planned tensors, read from their shards.

use std::collections::HashMap;
use std::ops::Range;

use segpack_formats::io::{CancelToken, to_usize};
use segpack_formats::numeric::ValueCheck;
use segpack_formats::pack::TensorSource;
use segpack_formats::{FormatError, Result};
use segpack_manifests::documents::{Finding, FindingKind, PlannedPack, PlannedTensor};

use crate::source::Checkpoint;

/// Where a planned tensor lies in its shard.
pub(super) fn range_of(tensor: &PlannedTensor) -> Range<u64> {
    tensor.source.offset..tensor.source.offset + tensor.source.length
}

/// Reads the tensors of one planned pack, and inspects their values on the way.
pub(super) struct ShardSource<'a> {
    pub checkpoint: &'a Checkpoint,
    pub shards: &'a HashMap<&'a str, usize>,
    pub pack: &'a PlannedPack,
    pub stop: &'a CancelToken,
    pub buffer: &'a mut [u8],
    pub warnings: Vec<Finding>,
}

impl TensorSource for ShardSource<'_> {
    fn read(
        &mut self,
        segment: usize,
        tensor: usize,
        take: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let tensor = &self.pack.segments[segment].tensors[tensor];
        let Some(&shard) = self.shards.get(tensor.source.file.as_str()) else {
            let what = format!(
                "the plan takes {:?} from it, but it is not open",
                tensor.name
            );
            return Err(FormatError::malformed(tensor.source.file.as_ref(), what));
        };
        let mut values = ValueCheck::new(tensor.dtype);
        let inspect = |piece: &[u8]| {
            values.update(piece);
            take(piece)
        };
        let input = self.checkpoint.shards[shard].bytes();
        input.for_each_piece(range_of(tensor), self.buffer, self.stop, inspect)?;
        warnings_of(tensor, values)
            .into_iter()
            .for_each(|w| self.warn(w));
        Ok(())
    }
}

/// Inspects the values of tensors while the bytes of their shard pass, in any pieces.
pub(super) struct ShardValues<'a> {
    /// In the order of their bytes.
    tensors: Vec<&'a PlannedTensor>,
    /// The begun one, or the next.
    number: usize,
    check: Option<ValueCheck>,
    /// The bytes of a value of which the rest is still to come.
    begun: Vec<u8>,
    /// Bytes taken.
    at: u64,
    warnings: Vec<Finding>,
}

impl<'a> ShardValues<'a> {
    /// Nothing is taken yet of a shard with these tensors.
    pub(super) fn new(mut tensors: Vec<&'a PlannedTensor>) -> Self {
        tensors.retain(|t| t.source.length > 0);
        tensors.sort_by_key(|t| t.source.offset);
        Self {
            tensors,
            number: 0,
            check: None,
            begun: Vec::new(),
            at: 0,
            warnings: Vec::new(),
        }
    }

    /// Takes the next bytes.
    pub(super) fn take(&mut self, mut piece: &[u8]) {
        while let Some(tensor) = self.tensors.get(self.number).copied() {
            let (start, end) = (
                tensor.source.offset,
                tensor.source.offset + tensor.source.length,
            );
            let skipped = to_usize(start.saturating_sub(self.at)).min(piece.len());
            let wanted = to_usize(end.saturating_sub(self.at.max(start)));
            let (now, later) = piece[skipped..].split_at(wanted.min(piece.len() - skipped));
            self.at += (skipped + now.len()) as u64;
            self.inspect(tensor, now);
            if self.at < end {
                return;
            }
            self.finish_tensor(tensor);
            piece = later;
        }
    }

    /// Whole values at a time.
    fn inspect(&mut self, tensor: &PlannedTensor, mut bytes: &[u8]) {
        let check = self
            .check
            .get_or_insert_with(|| ValueCheck::new(tensor.dtype));
        let width = tensor.dtype.byte_width().unwrap_or(1);
        if !self.begun.is_empty() {
            let missing = (width - self.begun.len()).min(bytes.len());
            self.begun.extend_from_slice(&bytes[..missing]);
            bytes = &bytes[missing..];
            if self.begun.len() < width {
                return;
            }
            check.update(&self.begun);
            self.begun.clear();
        }
        let whole = bytes.len() / width * width;
        check.update(&bytes[..whole]);
        self.begun.extend_from_slice(&bytes[whole..]);
    }

    fn finish_tensor(&mut self, tensor: &PlannedTensor) {
        if let Some(check) = self.check.take() {
            self.warnings.extend(warnings_of(tensor, check));
        }
        self.begun.clear();
        self.number += 1;
    }

    /// What there is to say of all that was taken.
    pub(super) fn warnings(self) -> Vec<Finding> {
        self.warnings
    }
}

/// What there is to say of the values of a tensor.
fn warnings_of(tensor: &PlannedTensor, values: ValueCheck) -> Vec<Finding> {
    let warning = |kind, seen: &str| {
        Finding::new(kind)
            .tensor(&tensor.name)
            .file(&tensor.source.file)
            .seen(seen)
    };
    let mut warnings = Vec::new();
    if values.is_all_zero() {
        warnings.push(warning(FindingKind::AllZero, "every value is zero"));
    }
    if !values.is_finite() {
        warnings.push(warning(FindingKind::NotFinite, "holds infinities or NaN"));
    }
    warnings
}

impl ShardSource<'_> {
    fn warn(&mut self, warning: Finding) {
        // a segment that does not shrink is read twice
        if !self.warnings.contains(&warning) {
            self.warnings.push(warning);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn tensor(name: &str, offset: u64, length: u64) -> PlannedTensor {
        let source = json!({"file": "s", "tensor": name, "offset": offset, "length": length});
        serde_json::from_value(json!({
            "name": name, "dtype": "F32", "shape": [length / 4], "role": "norm", "source": source
        }))
        .unwrap()
    }

    #[test]
    fn values_are_inspected_whatever_the_pieces_are() {
        // zeros at an odd place, a gap, then numbers, one of which is no number
        let tensors = [tensor("zero", 3, 16), tensor("nan", 24, 12)];
        let mut bytes = [0; 40];
        bytes[..3].fill(7);
        bytes[19..24].fill(9);
        bytes[28..32].copy_from_slice(&f32::NAN.to_le_bytes());
        bytes[36..].fill(0xff);
        for size in [1, 2, 3, 5, 8, 40] {
            let mut values = ShardValues::new(tensors.iter().rev().collect());
            bytes.chunks(size).for_each(|piece| values.take(piece));
            let kinds: Vec<_> = values.warnings().iter().map(|w| w.kind).collect();
            let wanted = [FindingKind::AllZero, FindingKind::NotFinite];
            assert_eq!(kinds, wanted, "pieces of {size}");
        }
    }
}
