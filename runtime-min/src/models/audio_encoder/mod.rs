//! The encoder of audio: a log-mel spectrogram in, one row for each placeholder out.
//!
//! The equations are those of transformers 5.23, `Qwen3OmniMoeAudioEncoder`
//! (modeling_qwen3_omni_moe.py:754): three convolutions over chunks of 100 frames, which are padded
//! to the longest chunk of all clips, sinusoids that restart with each chunk, layers whose attention
//! stays in windows of 8 seconds of one clip, a projection.

mod bind;
mod chunks;
mod stem;

use segpack_formats::io::to_usize;
use segpack_manifests::families::AudioTowerFacts;

use self::bind::AudioWeights;
use self::chunks::Chunks;
use super::encoder::{
    BATCH, EncoderContext, EncoderLoader, EncoderObserver, EncoderStage, Scratch, SelfAttention,
};
use crate::error::RunError;
use crate::ops::{Conv2d, Ops};
use crate::processing::AudioFeatures;
use crate::tensor::Heads;

/// What the layer norms add to the variance; torch's default.
const EPS: f32 = 1e-5;

/// The sizes of the encoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AudioSpec {
    pub(crate) layers: usize,
    pub(crate) width: usize,
    pub(crate) heads: usize,
    pub(crate) ffn: usize,
    pub(crate) channels: usize,
    pub(crate) mel_bins: usize,
    pub(crate) output: usize,
    pub(crate) chunk_frames: usize,
    pub(crate) window_chunks: usize,
}

impl AudioSpec {
    /// Bins after the three convolutions.
    fn last_bins(&self) -> usize {
        (0..3).fold(self.mel_bins, |bins, _| Conv2d::side(bins))
    }

    /// Values of a step after the convolutions: all channels and bins.
    fn flattened(&self) -> usize {
        self.channels * self.last_bins()
    }
}

impl From<&AudioTowerFacts> for AudioSpec {
    fn from(facts: &AudioTowerFacts) -> Self {
        Self {
            layers: facts.layers as usize,
            width: to_usize(facts.width),
            heads: to_usize(facts.heads),
            ffn: to_usize(facts.ffn),
            channels: to_usize(facts.channels),
            mel_bins: to_usize(facts.mel_bins),
            output: to_usize(facts.output),
            chunk_frames: to_usize(facts.chunk_frames),
            window_chunks: to_usize(facts.window_chunks),
        }
    }
}

/// The encoder of a pack. It holds no memory of its own between two calls of
/// [`encode`](Self::encode).
pub struct AudioEncoder<'a> {
    context: EncoderContext<'a>,
    spec: AudioSpec,
    weights: AudioWeights<'a>,
}

impl<'a> AudioEncoder<'a> {
    /// Finds the weights. None is read; a missing one is found here.
    ///
    /// # Errors
    /// `Unsuitable` names what the pack lacks, or what cannot be computed with.
    pub fn new(context: EncoderContext<'a>, facts: &AudioTowerFacts) -> Result<Self, RunError> {
        let spec = AudioSpec::from(facts);
        let weights = AudioWeights::find(context.source, &spec)?;
        Ok(Self {
            context,
            spec,
            weights,
        })
    }

    /// The rows of all clips, `[tokens, output]`.
    ///
    /// # Errors
    /// `Media` where the features do not fit the model; `Memory`; damage of the pack; `Interrupted`.
    pub fn encode<O: Ops>(
        &self,
        ops: &O,
        features: &AudioFeatures,
        observer: &mut dyn EncoderObserver,
    ) -> Result<Vec<f32>, RunError> {
        let chunks = Chunks::of(features, &self.spec)?;
        if chunks.tokens() == 0 {
            return Ok(Vec::new());
        }
        let demand = self.values(&chunks);
        let layer = self.weights.layers.iter().map(|layer| &layer.group);
        let largest = layer.max_by_key(|group| group.buffer_len());
        let stem = &self.weights.stem.group;
        // the stem's memory goes back before that of the layers is taken
        let at_once = largest.into_iter().chain([stem, &self.weights.head.group]);
        let loader = self.context.open(&at_once.collect::<Vec<_>>(), demand)?;
        let mut x = self.weights.stem.run(ops, &loader, features, &chunks)?;
        observer.stage(EncoderStage::Input, &x);
        self.layers(ops, &loader, &chunks, &mut x, observer)?;
        let head = &self.weights.head;
        let block = loader.load_alone(&head.group)?;
        let out = head
            .projection
            .run(ops, &block, &x, EPS, self.context.stop)?;
        observer.stage(EncoderStage::Output, &out);
        Ok(out)
    }

    fn layers<O: Ops>(
        &self,
        ops: &O,
        loader: &EncoderLoader<'_>,
        chunks: &Chunks,
        x: &mut [f32],
        observer: &mut dyn EncoderObserver,
    ) -> Result<(), RunError> {
        let groups = self.weights.layers.iter().map(|layer| &layer.group);
        let mut block = EncoderLoader::reserve(groups)?;
        let windows = chunks.windows(&self.spec);
        let mut scratch = Scratch::default();
        let stop = self.context.stop;
        let heads = Heads {
            query: self.spec.heads,
            key_value: self.spec.heads,
            width: self.spec.width / self.spec.heads,
        };
        for (number, layer) in self.weights.layers.iter().enumerate() {
            stop.check()?;
            loader.load(&layer.group, &mut block)?;
            let attention = SelfAttention {
                norm: &layer.attention_norm,
                eps: EPS,
                out: &layer.out,
                heads,
                segments: &windows,
            };
            attention.run(
                ops,
                &block,
                |_, normed, qkv| layer.project(ops, &block, normed, qkv, stop),
                x,
                &mut scratch,
                stop,
            )?;
            let mlp = &mut scratch.mlp;
            layer.mlp.run(ops, &block, x, (EPS, O::gelu), mlp, stop)?;
            observer.stage(EncoderStage::Block(number), x);
        }
        Ok(())
    }

    /// Values of activations that are in memory at once, at most.
    fn values(&self, chunks: &Chunks) -> u64 {
        let s = &self.spec;
        let tokens = chunks.tokens() as u64;
        let [width, ffn, output] = [s.width, s.ffn, s.output].map(|n| n as u64);
        let batch = tokens.min(BATCH as u64);
        // windows of a span are as many as fit a batch, or one that is longer
        let span = chunks.longest_window(s).max(BATCH.min(chunks.tokens())) as u64;
        let layers = 5 * span * width + batch * (width + ffn);
        // steps of a batch, and what the last chunk brings more
        let steps = batch + 13;
        let of_stem = stem::values(s, chunks.padded()) as u64 + steps * s.flattened() as u64;
        tokens * (width + output) + layers.max(of_stem)
    }
}
