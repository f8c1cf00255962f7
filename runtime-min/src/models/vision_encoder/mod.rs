//! The encoder of images and videos: patches in, one row for each placeholder out, and more rows for
//! the decoder's first layers (deepstack).
//!
//! The equations are those of transformers 5.23, `Qwen3OmniMoeVisionEncoder`
//! (modeling_qwen3_omni_moe.py:1129), which are those of `Qwen3VLMoeVisionModel`
//! (modeling_qwen3_vl_moe.py:647), too: a linear layer of each patch, learned positions that are
//! interpolated to the grid of the picture, blocks with a rotary embedding of row and column whose
//! attention stays in one frame, a merger of squares of patches.

mod bind;
mod grid;

use std::ops::Range;

use segpack_formats::FormatError;
use segpack_formats::io::to_usize;
use segpack_manifests::families::VisionTowerFacts;

use self::bind::{Block as BlockWeights, VisionWeights};
use self::grid::Grids;
pub(crate) use self::grid::visual_tokens;
use super::encoder::{
    BATCH, EncoderContext, EncoderLoader, EncoderObserver, EncoderStage, Projection, Scratch,
    SelfAttention,
};
use crate::error::RunError;
use crate::models::decoder::Rotary;
use crate::ops::Ops;
use crate::processing::VisualFeatures;
use crate::tensor::{Heads, Linear};
use crate::weights::Block;

/// What the layer norms add to the variance.
const EPS: f32 = 1e-6;

/// The sizes of the encoder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VisionSpec {
    pub(crate) blocks: usize,
    pub(crate) width: usize,
    pub(crate) heads: usize,
    pub(crate) ffn: usize,
    pub(crate) output: usize,
    pub(crate) position_side: usize,
    pub(crate) merge: usize,
    /// Channels, frames, height and width of a patch.
    pub(crate) patch: [usize; 4],
    /// Blocks whose output is merged for the decoder's first layers.
    pub(crate) deepstack: Vec<usize>,
}

impl From<&VisionTowerFacts> for VisionSpec {
    fn from(facts: &VisionTowerFacts) -> Self {
        let patch = [
            facts.channels,
            facts.patch_frames,
            facts.patch_side,
            facts.patch_side,
        ];
        Self {
            blocks: facts.blocks as usize,
            width: to_usize(facts.width),
            heads: to_usize(facts.heads),
            ffn: to_usize(facts.ffn),
            output: to_usize(facts.output),
            position_side: to_usize(facts.position_side),
            merge: to_usize(facts.merge),
            patch: patch.map(to_usize),
            deepstack: facts.deepstack.iter().map(|n| *n as usize).collect(),
        }
    }
}

impl VisionSpec {
    /// Patches of a square that becomes one row.
    fn square(&self) -> usize {
        self.merge * self.merge
    }

    /// Values of such a square.
    fn merged(&self) -> usize {
        self.square() * self.width
    }

    /// Values of a patch.
    fn patch_width(&self) -> usize {
        self.patch.iter().product()
    }
}

/// The rows of some images or videos.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct VisualRows {
    /// `[rows, output]`: what takes the placeholders' place.
    pub rows: Vec<f32>,
    /// `[rows, output]` each: what is added to the hidden states after the decoder's first layers.
    pub deepstack: Vec<Vec<f32>>,
}

impl VisualRows {
    /// Of nothing.
    const EMPTY: Self = Self {
        rows: Vec::new(),
        deepstack: Vec::new(),
    };
}

/// Features that are encoded together.
struct Parts<'o, const N: usize> {
    /// The end of the patches of each.
    ends: [usize; N],
    observe: &'o mut dyn FnMut(usize, EncoderStage, &[f32]),
}

impl<const N: usize> Parts<'_, N> {
    /// The ranges of `values` that are of each, in proportion to its patches.
    fn ranges(&self, values: usize) -> [Range<usize>; N] {
        let all = self.ends.last().copied().unwrap_or(0).max(1);
        let mut from = 0;
        self.ends.map(|end| {
            let range = from..values * end / all;
            from = range.end;
            range
        })
    }

    /// A stage is complete for all that have patches.
    fn stage(&mut self, stage: EncoderStage, values: &[f32]) {
        for (number, range) in self.ranges(values.len()).into_iter().enumerate() {
            if !range.is_empty() {
                (self.observe)(number, stage, &values[range]);
            }
        }
    }

    /// Rows of each.
    fn split(&self, mut rows: Vec<f32>) -> [Vec<f32>; N] {
        let mut split = [const { Vec::new() }; N];
        let ranges = self.ranges(rows.len());
        for (part, range) in split.iter_mut().zip(ranges).rev() {
            *part = match range.start {
                0 => std::mem::take(&mut rows),
                start => rows.split_off(start),
            };
        }
        split
    }
}

/// The encoder of a pack. It holds no memory of its own between two calls of
/// [`encode`](Self::encode).
pub struct VisionEncoder<'a> {
    context: EncoderContext<'a>,
    spec: VisionSpec,
    weights: VisionWeights<'a>,
}

/// Weights in memory that all blocks need.
struct Loaded<'l, 'a> {
    loader: &'l EncoderLoader<'a>,
    mergers: Block,
    rotary: Rotary,
}

impl<'a> VisionEncoder<'a> {
    /// Finds the weights. None is read; a missing one is found here.
    ///
    /// # Errors
    /// `Unsuitable` names what the pack lacks, or what cannot be computed with.
    pub fn new(context: EncoderContext<'a>, facts: &VisionTowerFacts) -> Result<Self, RunError> {
        let spec = VisionSpec::from(facts);
        let weights = VisionWeights::find(context.source, &spec, facts.names)?;
        Ok(Self {
            context,
            spec,
            weights,
        })
    }

    /// The rows of all images, or of all videos.
    ///
    /// # Errors
    /// `Media` where the features do not fit the model; `Memory`; damage of the pack; `Interrupted`.
    pub fn encode<O: Ops>(
        &self,
        ops: &O,
        features: &VisualFeatures,
        observer: &mut dyn EncoderObserver,
    ) -> Result<VisualRows, RunError> {
        let mut observe = |_, stage, values: &[f32]| observer.stage(stage, values);
        let [rows] = self.encode_each(ops, [features], &mut observe)?;
        Ok(rows)
    }

    /// The rows of several features, each as [`encode`](Self::encode) gives them; each block's
    /// weights are loaded once for all. `observe` gets the number of the features with each stage.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_each<O: Ops, const N: usize>(
        &self,
        ops: &O,
        features: [&VisualFeatures; N],
        observe: &mut dyn FnMut(usize, EncoderStage, &[f32]),
    ) -> Result<[VisualRows; N], RunError> {
        let mut grids = Grids::default();
        let mut ends = [0; N];
        for (features, end) in features.iter().zip(&mut ends) {
            grids.append(Grids::of(features, &self.spec)?);
            *end = grids.patches();
        }
        if grids.patches() == 0 {
            return Ok([const { VisualRows::EMPTY }; N]);
        }
        let mut parts = Parts { ends, observe };
        let blocks = self.weights.blocks.iter().map(|block| &block.group);
        let largest = blocks.max_by_key(|group| group.buffer_len());
        let at_once = largest
            .into_iter()
            .chain([&self.weights.mergers_group, &self.weights.stem.group]);
        let loader = self
            .context
            .open(&at_once.collect::<Vec<_>>(), self.values(&grids))?;
        let mut x = self.stem(ops, &loader, features, &grids)?;
        parts.stage(EncoderStage::Input, &x);
        let loaded = Loaded {
            loader: &loader,
            mergers: loader.load_alone(&self.weights.mergers_group)?,
            rotary: grids.rotary(&self.spec),
        };
        let mut encoded = self.blocks(ops, &loaded, &grids, &mut x, &mut parts)?;
        let rows = self.merge(ops, &loaded, &self.weights.merger, &x)?;
        parts.stage(EncoderStage::Output, &rows);
        for (encoded, rows) in encoded.iter_mut().zip(parts.split(rows)) {
            encoded.rows = rows;
        }
        Ok(encoded)
    }

    /// What enters the first block, `[patches, width]`.
    fn stem<const N: usize>(
        &self,
        ops: &impl Ops,
        loader: &EncoderLoader<'_>,
        features: [&VisualFeatures; N],
        grids: &Grids,
    ) -> Result<Vec<f32>, RunError> {
        let stem = &self.weights.stem;
        let block = loader.load_alone(&stem.group)?;
        let (width, compute) = (self.spec.width, ops.compute());
        let mut x = vec![0.0; grids.patches() * width];
        let bias = stem.patch.bias.values(&block);
        let (mut rounded, patch) = (Vec::new(), self.spec.patch_width());
        let batches = features.iter().flat_map(|f| f.values.chunks(BATCH * patch));
        let mut rest = &mut x[..];
        for values in batches {
            let (out, after) = rest.split_at_mut(values.len() / patch * width);
            rest = after;
            rounded.clear();
            rounded.extend_from_slice(values);
            compute.round_all(&mut rounded);
            let mut linear = [Linear {
                x: &rounded,
                weight: stem.patch.weight.matrix(&block),
                bias: Some(&bias),
                out,
            }];
            ops.linears_until(&mut linear, self.context.stop)?;
        }
        let table = stem.positions.values(&block);
        grids.add_positions(&self.spec, &table, compute, &mut x);
        Ok(x)
    }

    /// All blocks; returns what is merged on the way.
    fn blocks<O: Ops, const N: usize>(
        &self,
        ops: &O,
        loaded: &Loaded<'_, '_>,
        grids: &Grids,
        x: &mut [f32],
        parts: &mut Parts<'_, N>,
    ) -> Result<[VisualRows; N], RunError> {
        let groups = self.weights.blocks.iter().map(|block| &block.group);
        let mut memory = EncoderLoader::reserve(groups)?;
        let mut scratch = Scratch::default();
        let mut encoded = [const { VisualRows::EMPTY }; N];
        let mut mergers = self.spec.deepstack.iter().zip(&self.weights.deepstack);
        let mut next = mergers.next();
        let stop = self.context.stop;
        let heads = Heads {
            query: self.spec.heads,
            key_value: self.spec.heads,
            width: self.spec.width / self.spec.heads,
        };
        for (number, block) in self.weights.blocks.iter().enumerate() {
            stop.check()?;
            loaded.loader.load(&block.group, &mut memory)?;
            let attention = SelfAttention {
                norm: &block.attention_norm,
                eps: EPS,
                out: &block.proj,
                heads,
                segments: grids.frames(),
            };
            let weights = (block, &memory);
            attention.run(
                ops,
                &memory,
                |patches, normed, qkv| {
                    self.project(ops, weights, &loaded.rotary, patches, normed, qkv)
                },
                x,
                &mut scratch,
                stop,
            )?;
            let mlp = &mut scratch.mlp;
            block
                .mlp
                .run(ops, &memory, x, (EPS, O::gelu_tanh), mlp, stop)?;
            parts.stage(EncoderStage::Block(number), x);
            if let Some((_, merger)) = next.filter(|(block, _)| **block == number) {
                let rows = self.merge(ops, loaded, merger, x)?;
                let stage = EncoderStage::Deepstack(encoded[0].deepstack.len());
                parts.stage(stage, &rows);
                for (encoded, rows) in encoded.iter_mut().zip(parts.split(rows)) {
                    encoded.deepstack.push(rows);
                }
                next = mergers.next();
            }
        }
        Ok(encoded)
    }

    /// Queries, keys and values of some patches: one weight holds all three, one after the other.
    fn project(
        &self,
        ops: &impl Ops,
        (block, memory): (&BlockWeights<'_>, &Block),
        rotary: &Rotary,
        patches: Range<usize>,
        normed: &[f32],
        qkv: &mut [Vec<f32>; 3],
    ) -> Result<(), FormatError> {
        for (part, to) in qkv.iter_mut().enumerate() {
            let stop = self.context.stop;
            block
                .qkv
                .run_part(ops, memory, (part, 3), normed, to, stop)?;
        }
        let head = self.spec.width / self.spec.heads;
        let angles = patches.start * head / 2..patches.end * head / 2;
        let (cos, sin) = (&rotary.cos[angles.clone()], &rotary.sin[angles]);
        let [q, k, _] = qkv;
        ops.rope_in_f32(q, cos, sin, head);
        ops.rope_in_f32(k, cos, sin, head);
        Ok(())
    }

    /// Rows of squares of patches, `[squares, output]`.
    fn merge(
        &self,
        ops: &impl Ops,
        loaded: &Loaded<'_, '_>,
        merger: &Projection,
        x: &[f32],
    ) -> Result<Vec<f32>, FormatError> {
        merger.run(ops, &loaded.mergers, x, EPS, self.context.stop)
    }

    /// Values of activations that are in memory at once, at most.
    fn values(&self, grids: &Grids) -> u64 {
        let s = &self.spec;
        let patches = grids.patches() as u64;
        let [width, ffn, output, merged] = [s.width, s.ffn, s.output, s.merged()].map(|n| n as u64);
        let batch = patches.min(BATCH as u64);
        let rows = patches / s.square() as u64;
        let span = grids.longest_frame().max(BATCH.min(grids.patches())) as u64;
        let blocks = 5 * span * width + batch * (width + ffn);
        let squares = rows.min(BATCH as u64);
        let merger = squares * (2 * merged + output);
        let stem = batch * s.patch_width() as u64 + (s.position_side.pow(2) * s.width) as u64;
        let kept = rows * output * (1 + s.deepstack.len() as u64);
        let rotary = patches * (s.width / s.heads) as u64;
        patches * width + rotary + kept + stem.max(blocks + merger)
    }
}
