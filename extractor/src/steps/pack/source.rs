//! The bytes of planned tensors, read from their shards.

use std::collections::HashMap;

use segpack_formats::io::CancelToken;
use segpack_formats::numeric::ValueCheck;
use segpack_formats::pack::TensorSource;
use segpack_formats::{FormatError, Result};
use segpack_manifests::documents::{Finding, FindingKind, PlannedPack, PlannedTensor};

use crate::source::Checkpoint;

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
        let range = tensor.source.offset..tensor.source.offset + tensor.source.length;
        let mut values = ValueCheck::new(tensor.dtype);
        self.checkpoint.shards[shard].shard.input.for_each_piece(
            range,
            self.buffer,
            self.stop,
            |piece| {
                values.update(piece);
                take(piece)
            },
        )?;
        if values.is_all_zero() {
            self.warn(tensor, FindingKind::AllZero, "every value is zero");
        }
        if !values.is_finite() {
            self.warn(tensor, FindingKind::NotFinite, "holds infinities or NaN");
        }
        Ok(())
    }
}

impl ShardSource<'_> {
    fn warn(&mut self, tensor: &PlannedTensor, kind: FindingKind, seen: &str) {
        let warning = Finding::new(kind)
            .tensor(&tensor.name)
            .file(&tensor.source.file)
            .seen(seen);
        // a segment that does not shrink is read twice
        if !self.warnings.contains(&warning) {
            self.warnings.push(warning);
        }
    }
}
