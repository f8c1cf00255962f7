//! The bytes of planned tensors, read from their shards.

use std::collections::HashMap;

use segpack_formats::io::CancelToken;
use segpack_formats::numeric::ValueCheck;
use segpack_formats::pack::TensorSource;
use segpack_formats::{FormatError, Result};
use segpack_manifests::documents::{Finding, FindingKind, PlannedPack};

use crate::source::Checkpoint;

/// Reads the tensors of one planned pack, and looks at their values on the way.
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
        let warn = |kind, seen: &str| {
            Finding::new(kind)
                .tensor(&tensor.name)
                .file(&tensor.source.file)
                .seen(seen)
        };
        let zero = values
            .is_all_zero()
            .then(|| warn(FindingKind::AllZero, "every value is zero"));
        let wild =
            (!values.is_finite()).then(|| warn(FindingKind::NotFinite, "holds infinities or NaN"));
        for warning in zero.into_iter().chain(wild) {
            // a segment that does not shrink is read twice
            if !self.warnings.contains(&warning) {
                self.warnings.push(warning);
            }
        }
        Ok(())
    }
}
