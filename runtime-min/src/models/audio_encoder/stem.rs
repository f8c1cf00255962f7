//! Three convolutions over each chunk, a linear layer over the channels and bins of each step, and
//! sinusoids.

use super::AudioSpec;
use super::bind::Stem;
use super::chunks::{Chunk, Chunks};
use crate::error::RunError;
use crate::models::encoder::{BATCH, EncoderLoader};
use crate::ops::{Conv2d, Ops};
use crate::processing::{AudioFeatures, audio_tokens};
use crate::tensor::{Linear, Matrix};
use crate::weights::Block;

/// Values of activations, and of weights that are put into another order, while a chunk of so many
/// frames is convolved.
pub(super) fn values(spec: &AudioSpec, frames: usize) -> usize {
    let sides = [1, 2].map(|n| {
        (0..n).fold(spec.mel_bins, |side, _| Conv2d::side(side))
            * (0..n).fold(frames, |side, _| Conv2d::side(side))
    });
    let [first, second] = sides;
    let kernels = 2 * spec.channels * spec.channels * 9;
    spec.mel_bins * frames + spec.channels * (first + second) + second * 9 * spec.channels + kernels
}

/// One convolution as it is computed.
struct Convolution {
    weight: Vec<u8>,
    bias: Vec<f32>,
}

/// Reused memory.
#[derive(Default)]
struct Scratch {
    unrolled: Vec<f32>,
    x: Vec<f32>,
    y: Vec<f32>,
}

impl Stem<'_> {
    /// What enters the first layer, `[tokens, width]`.
    pub(super) fn run(
        &self,
        ops: &impl Ops,
        loader: &EncoderLoader<'_>,
        features: &AudioFeatures,
        chunks: &Chunks,
    ) -> Result<Vec<f32>, RunError> {
        let block = loader.load_alone(&self.group)?;
        let convolutions = self.convolutions.map(|convolution| Convolution {
            weight: Conv2d::channels_last(convolution.weight.matrix(&block)),
            bias: convolution.bias.values(&block),
        });
        let sinusoids = sinusoids(&self.spec);
        let mut scratch = Scratch::default();
        let mut tokens = Vec::with_capacity(chunks.tokens() * self.spec.width);
        // steps of some chunks, then one linear layer of them all
        let (mut steps, mut places) = (Vec::new(), Vec::new());
        for (number, chunk) in chunks.all.iter().enumerate() {
            let spectrogram = padded(features, *chunk, chunks.padded());
            self.convolve(
                ops,
                loader,
                &convolutions,
                spectrogram,
                chunks.padded(),
                &mut scratch,
            )?;
            let count = audio_tokens(chunk.frames);
            self.flatten(&scratch.x, chunks.padded(), count, &mut steps);
            places.extend(0..count);
            let is_last = number + 1 == chunks.all.len();
            if places.len() >= BATCH || is_last {
                self.project(
                    ops,
                    loader,
                    &block,
                    &sinusoids,
                    (&mut steps, &mut places),
                    &mut tokens,
                )?;
            }
        }
        Ok(tokens)
    }

    /// Three times a convolution and GELU; the result is in `scratch.x`.
    fn convolve(
        &self,
        ops: &impl Ops,
        loader: &EncoderLoader<'_>,
        convolutions: &[Convolution; 3],
        mut spectrogram: Vec<f32>,
        frames: usize,
        scratch: &mut Scratch,
    ) -> Result<(), RunError> {
        ops.compute().round_all(&mut spectrogram);
        scratch.x = spectrogram;
        let mut sides = [self.spec.mel_bins, frames];
        for (placed, convolution) in self.convolutions.iter().zip(convolutions) {
            let conv = Conv2d {
                weight: Matrix {
                    dtype: placed.weight.dtype,
                    bytes: &convolution.weight,
                    rows: placed.weight.rows,
                    columns: placed.weight.columns,
                },
                bias: &convolution.bias,
            };
            let Scratch { unrolled, x, y } = scratch;
            conv.run(ops, x, sides, unrolled, y, loader.stop())?;
            ops.gelu(y);
            std::mem::swap(x, y);
            sides = sides.map(Conv2d::side);
        }
        Ok(())
    }

    /// The first `count` steps of a chunk, each with its bins behind each other for every channel.
    fn flatten(&self, x: &[f32], frames: usize, count: usize, to: &mut Vec<f32>) {
        let (channels, bins) = (self.spec.channels, self.spec.last_bins());
        let steps = (0..3).fold(frames, |side, _| Conv2d::side(side));
        for step in 0..count {
            for channel in 0..channels {
                to.extend((0..bins).map(|bin| x[(bin * steps + step) * channels + channel]));
            }
        }
    }

    /// A linear layer of steps, and the sinusoids of their places in their chunks.
    fn project(
        &self,
        ops: &impl Ops,
        loader: &EncoderLoader<'_>,
        block: &Block,
        sinusoids: &[f32],
        (steps, places): (&mut Vec<f32>, &mut Vec<usize>),
        tokens: &mut Vec<f32>,
    ) -> Result<(), RunError> {
        let width = self.spec.width;
        let before = tokens.len();
        tokens.resize(before + places.len() * width, 0.0);
        let out = &mut tokens[before..];
        ops.linears_until(
            &mut [Linear {
                x: steps,
                weight: self.out.matrix(block),
                bias: None,
                out,
            }],
            loader.stop(),
        )?;
        let compute = ops.compute();
        for (token, place) in out.chunks_exact_mut(width).zip(places.iter()) {
            let sinusoid = &sinusoids[place * width..][..width];
            for (x, s) in token.iter_mut().zip(sinusoid) {
                *x = compute.round(*x + compute.round(*s));
            }
        }
        steps.clear();
        places.clear();
        Ok(())
    }
}

/// `[mel, frames]` of a chunk, with zeros behind it.
fn padded(features: &AudioFeatures, chunk: Chunk, frames: usize) -> Vec<f32> {
    let all = features.values.len() / features.mel_bins.max(1);
    let mut padded = vec![0.0; features.mel_bins * frames];
    for (row, to) in features
        .values
        .chunks_exact(all)
        .zip(padded.chunks_exact_mut(frames))
    {
        to[..chunk.frames].copy_from_slice(&row[chunk.first..chunk.first + chunk.frames]);
    }
    padded
}

/// `[steps of a chunk, width]`: sines of all frequencies, then cosines, in f32 as torch computes
/// them. The exponents are spread over half the width less one.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "f32, as torch does"
)]
fn sinusoids(spec: &AudioSpec) -> Vec<f32> {
    let half = spec.width / 2;
    let increment = (10_000_f64.ln() / (half as f64 - 1.0)) as f32;
    let exponents = (0..half).map(|i| f64::from(-increment * i as f32));
    let frequencies: Vec<f32> = exponents.map(|e| e.exp() as f32).collect();
    let steps = (0..3).fold(spec.chunk_frames, |side, _| Conv2d::side(side));
    let mut values = Vec::with_capacity(steps * spec.width);
    for step in 0..steps {
        let angles = || frequencies.iter().map(|f| f64::from(step as f32 * f));
        values.extend(angles().map(|angle| angle.sin() as f32));
        values.extend(angles().map(|angle| angle.cos() as f32));
    }
    values
}
