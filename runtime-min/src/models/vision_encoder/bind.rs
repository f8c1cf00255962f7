//! The tensors of the encoder.

use segpack_manifests::PackReader;
use segpack_manifests::families::VisionTowerNames;

use super::VisionSpec;
use crate::error::RunError;
use crate::models::encoder::{Affine, Dense, EncoderTensors, Mlp, Projection};
use crate::weights::{PlacedTensor, SegmentGroup};

/// All of them.
pub(super) struct VisionWeights<'a> {
    pub(super) stem: Stem<'a>,
    pub(super) blocks: Vec<Block<'a>>,
    /// Of all mergers, which share a segment.
    pub(super) mergers_group: SegmentGroup<'a>,
    pub(super) merger: Projection,
    pub(super) deepstack: Vec<Projection>,
}

/// What comes before the blocks.
pub(super) struct Stem<'a> {
    pub(super) group: SegmentGroup<'a>,
    /// `[width, values of a patch]`
    pub(super) patch: Dense,
    /// `[side², width]`
    pub(super) positions: PlacedTensor,
}

/// One block.
pub(super) struct Block<'a> {
    pub(super) group: SegmentGroup<'a>,
    pub(super) attention_norm: Affine,
    /// Queries, keys and values of all heads, one after the other.
    pub(super) qkv: Dense,
    pub(super) proj: Dense,
    pub(super) mlp: Mlp,
}

impl<'a> VisionWeights<'a> {
    /// Finds every tensor that the encoder needs, and none besides.
    pub(super) fn find(
        source: &'a PackReader<'a>,
        spec: &VisionSpec,
        names: &VisionTowerNames,
    ) -> Result<Self, RunError> {
        let mut tensors = EncoderTensors::find(source, names.component, names.prefix)?;
        let stem = Stem::find(&mut tensors, spec)?;
        let blocks = (0..spec.blocks).map(|number| Block::find(&mut tensors, spec, number));
        let blocks = blocks.collect::<Result<Vec<_>, _>>()?;
        let mut group = SegmentGroup::default();
        // the last merger norms patches, the others whole squares
        let mut merger =
            |name: &str, width| merger(&mut tensors, spec, (names, name), width, &mut group);
        let last = merger(names.merger, spec.width)?;
        let mut deepstack = Vec::new();
        for number in 0..spec.deepstack.len() {
            let name = format!("{}.{number}", names.deepstack_mergers);
            deepstack.push(merger(&name, spec.merged())?);
        }
        tensors.finish()?;
        Ok(Self {
            stem,
            blocks,
            mergers_group: group,
            merger: last,
            deepstack,
        })
    }
}

impl<'a> Stem<'a> {
    fn find(tensors: &mut EncoderTensors<'a>, spec: &VisionSpec) -> Result<Self, RunError> {
        let mut group = SegmentGroup::default();
        let [channels, frames, height, width] = spec.patch;
        let shape = [spec.width, channels, frames, height, width];
        let positions = [spec.position_side * spec.position_side, spec.width];
        Ok(Self {
            patch: Dense {
                weight: tensors.take("patch_embed.proj.weight", &shape, &mut group)?,
                bias: tensors.take("patch_embed.proj.bias", &[spec.width], &mut group)?,
            },
            positions: tensors.take("pos_embed.weight", &positions, &mut group)?,
            group,
        })
    }
}

impl<'a> Block<'a> {
    fn find(
        tensors: &mut EncoderTensors<'a>,
        spec: &VisionSpec,
        number: usize,
    ) -> Result<Self, RunError> {
        let mut group = SegmentGroup::default();
        let (width, ffn) = (spec.width, spec.ffn);
        let name = |rest: &str| format!("blocks.{number}.{rest}");
        Ok(Self {
            attention_norm: tensors.affine(&name("norm1"), width, &mut group)?,
            qkv: tensors.dense(&name("attn.qkv"), [3 * width, width], &mut group)?,
            proj: tensors.dense(&name("attn.proj"), [width, width], &mut group)?,
            mlp: Mlp {
                norm: tensors.affine(&name("norm2"), width, &mut group)?,
                up: tensors.dense(&name("mlp.linear_fc1"), [ffn, width], &mut group)?,
                down: tensors.dense(&name("mlp.linear_fc2"), [width, ffn], &mut group)?,
            },
            group,
        })
    }
}

/// A merger of squares of patches, whose norm is as wide as a patch or as a square.
fn merger<'a>(
    tensors: &mut EncoderTensors<'a>,
    spec: &VisionSpec,
    (names, name): (&VisionTowerNames, &str),
    norm: usize,
    group: &mut SegmentGroup<'a>,
) -> Result<Projection, RunError> {
    let merged = spec.merged();
    let of = |part: &str| format!("{name}.{part}");
    Ok(Projection {
        norm: tensors.affine(&of(names.norm), norm, group)?,
        first: tensors.dense(&of(names.first), [merged, merged], group)?,
        second: tensors.dense(&of(names.second), [spec.output, merged], group)?,
    })
}
