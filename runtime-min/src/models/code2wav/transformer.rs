//! The transformer over frames: embeddings of all groups, layers whose attention sees the last few
//! frames, scaled before they are added.

use segpack_formats::FormatError;
use segpack_formats::io::CancelToken;

use super::bind::{Layer, Projection, VocoderWeights};
use super::{VocoderObserver, VocoderSpec, WaveStage};
use crate::error::RunError;
use crate::models::encoder::{BATCH, EncoderLoader};
use crate::ops::Ops;
use crate::tensor::Linear;
use crate::weights::PlacedTensor;

/// Reused memory of a layer.
#[derive(Default)]
struct Scratch {
    normed: Vec<f32>,
    qkv: [Vec<f32>; 3],
    attended: Vec<f32>,
    added: Vec<f32>,
    mlp: [Vec<f32>; 2],
}

/// Cosines and sines of all positions.
struct Rotary {
    cos: Vec<f32>,
    sin: Vec<f32>,
}

/// Values of activations of so many frames, at most.
pub(super) fn values(spec: &VocoderSpec, frames: usize) -> u64 {
    let heads = spec.attention;
    let attention = (2 * heads.query + 2 * heads.key_value) * heads.width + heads.width;
    let batch = frames.min(BATCH) as u64;
    let mlp = batch * (2 * spec.intermediate + spec.hidden) as u64;
    frames as u64 * (3 * spec.hidden + attention) as u64 + mlp
}

/// What leaves the last layer, `[frames, hidden]`, before the last norm. `codes` is `[frames,
/// groups]`.
pub(super) fn run<O: Ops>(
    ops: &O,
    loader: &EncoderLoader<'_>,
    spec: &VocoderSpec,
    weights: &VocoderWeights<'_>,
    codes: &[u32],
    observer: &mut dyn VocoderObserver,
) -> Result<Vec<f32>, RunError> {
    let mut x = embed(loader, spec, weights, codes)?;
    observer.stage(WaveStage::Embed, &x, spec.hidden);
    let rotary = rotary(spec, codes.len() / spec.groups);
    let mut block = EncoderLoader::reserve(weights.layers.iter().map(|layer| &layer.group))?;
    let mut scratch = Scratch::default();
    for (number, layer) in weights.layers.iter().enumerate() {
        loader.stop().check()?;
        loader.load(&layer.group, &mut block)?;
        layer.attend(
            ops,
            spec,
            &block,
            &rotary,
            &mut x,
            &mut scratch,
            loader.stop(),
        )?;
        layer.mlp(ops, spec, &block, &mut x, &mut scratch, loader.stop())?;
        observer.stage(WaveStage::Layer(number), &x, spec.hidden);
    }
    Ok(x)
}

/// The mean of the embeddings of a frame's codes, each from the rows of its group.
fn embed(
    loader: &EncoderLoader<'_>,
    spec: &VocoderSpec,
    weights: &VocoderWeights<'_>,
    codes: &[u32],
) -> Result<Vec<f32>, RunError> {
    let block = loader.load_alone(&weights.embedding_group)?;
    let table = weights.embedding.matrix(&block);
    let mut row = vec![0.0; spec.hidden];
    let mut x = vec![0.0; codes.len() / spec.groups * spec.hidden];
    #[expect(clippy::cast_precision_loss, reason = "groups are few")]
    let count = spec.groups as f32;
    for (codes, x) in codes
        .chunks_exact(spec.groups)
        .zip(x.chunks_exact_mut(spec.hidden))
    {
        for (group, code) in codes.iter().enumerate() {
            let at = group * spec.codebook + *code as usize;
            table.dtype.widen(table.row(at), &mut row);
            x.iter_mut().zip(&row).for_each(|(x, row)| *x += row);
        }
        x.iter_mut().for_each(|x| *x /= count);
    }
    Ok(x)
}

/// Angles in f32, as torch computes them.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "f32, as torch does"
)]
fn rotary(spec: &VocoderSpec, frames: usize) -> Rotary {
    let width = spec.attention.width;
    let frequency = |j: usize| {
        let exponent = (2 * j) as f32 / width as f32;
        1.0 / (spec.rope_theta.powf(f64::from(exponent)) as f32)
    };
    let frequencies: Vec<f32> = (0..width / 2).map(frequency).collect();
    let mut rotary = Rotary {
        cos: Vec::new(),
        sin: Vec::new(),
    };
    for position in 0..frames {
        for frequency in &frequencies {
            let angle = f64::from(position as f32 * frequency);
            rotary.cos.push(angle.cos() as f32);
            rotary.sin.push(angle.sin() as f32);
        }
    }
    rotary
}

impl Layer<'_> {
    /// `x += scale ⊙ out(attention(norm(x)))`
    #[expect(
        clippy::too_many_arguments,
        reason = "a layer and all that it works on"
    )]
    fn attend(
        &self,
        ops: &impl Ops,
        spec: &VocoderSpec,
        memory: &[u8],
        rotary: &Rotary,
        x: &mut [f32],
        scratch: &mut Scratch,
        stop: &CancelToken,
    ) -> Result<(), FormatError> {
        let Scratch {
            normed,
            qkv,
            attended,
            added,
            ..
        } = scratch;
        norm(ops, spec, &self.attention_norm, memory, x, normed);
        for (projection, to) in [&self.q, &self.k, &self.v].into_iter().zip(&mut *qkv) {
            projection.run(ops, memory, normed, to, stop)?;
        }
        let [q, k, v] = qkv;
        for heads in [&mut *q, &mut *k] {
            ops.rope(heads, &rotary.cos, &rotary.sin, spec.attention.width);
        }
        attended.resize(q.len(), 0.0);
        ops.attention_window([q, k, v], spec.attention, spec.window, attended);
        self.out.run(ops, memory, attended, added, stop)?;
        add_scaled(x, added, &self.attention_scale.values(memory));
        Ok(())
    }

    /// `x += scale ⊙ down(silu(gate(norm(x))) ⊙ up(norm(x)))`, a batch of frames at a time.
    fn mlp(
        &self,
        ops: &impl Ops,
        spec: &VocoderSpec,
        memory: &[u8],
        x: &mut [f32],
        scratch: &mut Scratch,
        stop: &CancelToken,
    ) -> Result<(), FormatError> {
        let scale = self.mlp_scale.values(memory);
        for x in x.chunks_mut(BATCH * spec.hidden) {
            let Scratch {
                normed,
                added,
                mlp: [gate, up],
                ..
            } = scratch;
            norm(ops, spec, &self.mlp_norm, memory, x, normed);
            let rows = x.len() / spec.hidden;
            for inner in [&mut *gate, &mut *up] {
                inner.resize(rows * spec.intermediate, 0.0);
            }
            let linear = |weight: &PlacedTensor, out| Linear {
                x: normed,
                weight: weight.matrix(memory),
                bias: None,
                out,
            };
            let mut both = [linear(&self.gate, gate), linear(&self.up, up)];
            ops.linears_until(&mut both, stop)?;
            ops.silu_mul(gate, up);
            added.resize(x.len(), 0.0);
            let down = Linear {
                x: gate,
                weight: self.down.matrix(memory),
                bias: None,
                out: added,
            };
            ops.linears_until(&mut [down], stop)?;
            add_scaled(x, added, &scale);
        }
        Ok(())
    }
}

impl Projection {
    fn run(
        &self,
        ops: &impl Ops,
        memory: &[u8],
        x: &[f32],
        out: &mut Vec<f32>,
        stop: &CancelToken,
    ) -> Result<(), FormatError> {
        let weight = self.weight.matrix(memory);
        out.resize(x.len() / weight.columns * weight.rows, 0.0);
        let bias = self.bias.map(|bias| bias.values(memory));
        let bias = bias.as_deref();
        ops.linears_until(
            &mut [Linear {
                x,
                weight,
                bias,
                out,
            }],
            stop,
        )
    }
}

/// `to` becomes the RMS norm of `x`.
fn norm(
    ops: &impl Ops,
    spec: &VocoderSpec,
    weight: &PlacedTensor,
    memory: &[u8],
    x: &[f32],
    to: &mut Vec<f32>,
) {
    to.clear();
    to.extend_from_slice(x);
    ops.rms_norm(to, &weight.values(memory), spec.rms_norm_eps);
}

/// `to += scale ⊙ x`, a factor for every channel.
pub(super) fn add_scaled(to: &mut [f32], x: &[f32], scale: &[f32]) {
    for (to, x) in to
        .chunks_exact_mut(scale.len())
        .zip(x.chunks_exact(scale.len()))
    {
        for ((to, x), scale) in to.iter_mut().zip(x).zip(scale) {
            *to += scale * x;
        }
    }
}
