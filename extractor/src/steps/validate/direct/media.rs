//! The encoders calculated straight from the shards of a checkpoint, in plain loops: put together on
//! its own from the tensors' names, so that it shares no mistake with the runtime's.

use std::ops::Range;

use segpack_formats::io::to_usize;
use segpack_manifests::families::{AudioTowerFacts, MediaFacts};
use segpack_runtime_min::ops::{Heads, Ops, ScalarOps};
use segpack_runtime_min::processing::{AudioFeatures, VisualFeatures, audio_tokens};

use super::Direct;
use crate::steps::StepError;

/// What is compared of an encoder, by the names that a trace has.
pub(in crate::steps::validate) type Calculation = Vec<(String, Vec<f32>)>;

/// What layer norms of the encoders of audio and of pictures add to the variance.
const EPS: [f32; 2] = [1e-5, 1e-6];

fn add(x: &mut [f32], y: &[f32]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

impl Direct<'_> {
    /// The prefix of an encoder's tensors.
    fn encoder(&self, name: &str) -> String {
        let thinker = format!("thinker.{name}");
        let has = |prefix: &str| self.places.keys().any(|key| key.starts_with(prefix));
        if has(&thinker) {
            thinker
        } else {
            name.to_owned()
        }
    }

    fn layer_norm(&self, name: &str, x: &[f32], eps: f32) -> Result<Vec<f32>, StepError> {
        let [weight, bias] = self.weight_and_bias(name)?;
        let mut out = x.to_vec();
        ScalarOps::default().layer_norm(&mut out, &weight, &bias, eps);
        Ok(out)
    }

    fn weight_and_bias(&self, name: &str) -> Result<[Vec<f32>; 2], StepError> {
        let read = |part: &str| self.all_values(&format!("{name}.{part}"));
        Ok([read("weight")?, read("bias")?])
    }

    /// All values of a tensor of any number of dimensions.
    fn all_values(&self, name: &str) -> Result<Vec<f32>, StepError> {
        let weights = self.read(name)?;
        let mut values = vec![0.0; weights.bytes.len() / weights.dtype.byte_width()];
        weights.dtype.widen(&weights.bytes, &mut values);
        Ok(values)
    }

    /// Attention of the tokens of each segment to each other.
    fn attend(qkv: [&[f32]; 3], heads: usize, width: usize, segments: &[usize]) -> Vec<f32> {
        let heads = Heads {
            query: heads,
            key_value: heads,
            width: width / heads,
        };
        let mut out = vec![0.0; qkv[0].len()];
        ScalarOps::default().attention_within(qkv, heads, segments, &mut out);
        out
    }

    /// The encoder of audio, of one clip.
    pub(in crate::steps::validate) fn audio(
        &self,
        a: &AudioTowerFacts,
        features: &AudioFeatures,
    ) -> Result<Calculation, StepError> {
        let [width, heads, chunk] = [a.width, a.heads, a.chunk_frames].map(to_usize);
        let prefix = self.encoder("audio_tower");
        let name = |rest: &str| format!("{prefix}.{rest}");
        let frames = features.lengths.iter().sum::<usize>();
        let mut x = Vec::new();
        let mut tokens = Vec::new();
        for first in (0..frames).step_by(chunk) {
            let count = chunk.min(frames - first);
            let steps = self.audio_chunk(&name(""), features, (first, count), frames.min(chunk))?;
            let kept = audio_tokens(count);
            x.extend_from_slice(&steps[..kept * width]);
            tokens.push(kept);
        }
        let mut found = vec![("audio.conv".to_owned(), x.clone())];
        // one clip: windows of whole chunks
        let window = tokens.iter().max().unwrap_or(&1) * to_usize(a.window_chunks);
        let all = tokens.iter().sum::<usize>();
        let segments: Vec<usize> = (0..all).step_by(window.max(1)).chain([all]).collect();
        for layer in 0..a.layers {
            let of = |rest: &str| name(&format!("layers.{layer}.{rest}"));
            let h = self.layer_norm(&of("self_attn_layer_norm"), &x, EPS[0])?;
            let q = self.linear(&of("self_attn.q_proj"), &h)?;
            let k = self.linear(&of("self_attn.k_proj"), &h)?;
            let v = self.linear(&of("self_attn.v_proj"), &h)?;
            let attended = Self::attend([&q, &k, &v], heads, width, &segments);
            add(&mut x, &self.linear(&of("self_attn.out_proj"), &attended)?);
            let mut h = self.linear(
                &of("fc1"),
                &self.layer_norm(&of("final_layer_norm"), &x, EPS[0])?,
            )?;
            ScalarOps::default().gelu(&mut h);
            add(&mut x, &self.linear(&of("fc2"), &h)?);
            found.push((format!("audio.layer.{layer}"), x.clone()));
        }
        let h = self.layer_norm(&name("ln_post"), &x, EPS[0])?;
        let mut h = self.linear(&name("proj1"), &h)?;
        ScalarOps::default().gelu(&mut h);
        found.push(("audio.out".to_owned(), self.linear(&name("proj2"), &h)?));
        Ok(found)
    }

    /// The steps of a chunk, `[steps, width]`, with zeros up to `padded` frames behind it.
    fn audio_chunk(
        &self,
        prefix: &str,
        features: &AudioFeatures,
        (first, count): (usize, usize),
        padded: usize,
    ) -> Result<Vec<f32>, StepError> {
        let all = features.values.len() / features.mel_bins;
        let mut sides = [features.mel_bins, padded];
        let mut x = vec![0.0; features.mel_bins * padded];
        for (bin, to) in x.chunks_exact_mut(padded).enumerate() {
            to[..count].copy_from_slice(&features.values[bin * all + first..][..count]);
        }
        for number in 1..=3 {
            let [weight, bias] = self.weight_and_bias(&format!("{prefix}conv2d{number}"))?;
            x = convolve(&x, sides, &weight, &bias);
            ScalarOps::default().gelu(&mut x);
            sides = sides.map(|side| side.div_ceil(2));
        }
        // of each step all channels, and of each channel all bins
        let [bins, steps] = sides;
        let channels = x.len() / bins / steps;
        let mut flat = Vec::with_capacity(x.len());
        for step in 0..steps {
            flat.extend((0..channels * bins).map(|at| x[at * steps + step]));
        }
        let mut out = self.linear(&format!("{prefix}conv_out"), &flat)?;
        let width = out.len() / steps.max(1);
        for (step, row) in out.chunks_exact_mut(width.max(1)).enumerate() {
            add_sinusoid(step, row);
        }
        Ok(out)
    }

    /// The encoder of pictures.
    pub(in crate::steps::validate) fn pictures(
        &self,
        facts: &MediaFacts,
        features: &VisualFeatures,
    ) -> Result<Calculation, StepError> {
        let v = &facts.vision;
        let [width, heads, side, merge] =
            [v.width, v.heads, v.position_side, v.merge].map(to_usize);
        let prefix = self.encoder("visual");
        let name = |rest: &str| format!("{prefix}.{rest}");
        let [weight, bias] = self.weight_and_bias(&name("patch_embed.proj"))?;
        let mut x = Vec::new();
        for patch in features.values.chunks_exact(features.patch_width) {
            let rows = weight.chunks_exact(features.patch_width).zip(&bias);
            x.extend(rows.map(|(row, b)| dot(row, patch) + b));
        }
        let table = self.all_values(&name("pos_embed.weight"))?;
        let (places, segments) = places(&features.grids, merge);
        for (x, place) in x.chunks_exact_mut(width).zip(&places) {
            add_position(&table, side, place, x);
        }
        let mut found = vec![("image.embed".to_owned(), x.clone())];
        let mut features_of_layers = v.deepstack.iter().enumerate();
        let mut next = features_of_layers.next();
        for block in 0..v.blocks {
            let of = |rest: &str| name(&format!("blocks.{block}.{rest}"));
            let h = self.layer_norm(&of("norm1"), &x, EPS[1])?;
            let qkv = self.linear(&of("attn.qkv"), &h)?;
            let [mut q, mut k, values] =
                [0, 1, 2].map(|part| columns(&qkv, 3 * width, part * width..(part + 1) * width));
            for x in [&mut q, &mut k] {
                rotate(x, width, width / heads, &places);
            }
            let attended = Self::attend([&q, &k, &values], heads, width, &segments);
            add(&mut x, &self.linear(&of("attn.proj"), &attended)?);
            let h = self.layer_norm(&of("norm2"), &x, EPS[1])?;
            let mut h = self.linear(&of("mlp.linear_fc1"), &h)?;
            ScalarOps::default().gelu_tanh(&mut h);
            add(&mut x, &self.linear(&of("mlp.linear_fc2"), &h)?);
            found.push((format!("image.layer.{block}"), x.clone()));
            if let Some((k, _)) = next.filter(|(_, at)| **at == block) {
                let rows = self.merger(&name(&format!("merger_list.{k}")), &x)?;
                found.push((format!("image.deepstack.{k}"), rows));
                next = features_of_layers.next();
            }
        }
        found.push(("image.out".to_owned(), self.merger(&name("merger"), &x)?));
        Ok(found)
    }

    /// The norm is as wide as its weight, a patch or a square of them.
    fn merger(&self, name: &str, x: &[f32]) -> Result<Vec<f32>, StepError> {
        let x = self.layer_norm(&format!("{name}.ln_q"), x, EPS[1])?;
        let mut h = self.linear(&format!("{name}.mlp.0"), &x)?;
        ScalarOps::default().gelu(&mut h);
        self.linear(&format!("{name}.mlp.2"), &h)
    }
}

/// Some columns of every row.
fn columns(rows: &[f32], stride: usize, columns: Range<usize>) -> Vec<f32> {
    let rows = rows.chunks_exact(stride);
    rows.flat_map(|row| row[columns.clone()].to_vec()).collect()
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// `[channels, rows, columns]` in and out; a kernel of 3 x 3, stride 2, a zero around the input.
fn convolve(x: &[f32], [rows, columns]: [usize; 2], weight: &[f32], bias: &[f32]) -> Vec<f32> {
    let channels = x.len() / rows / columns;
    let mut out = Vec::new();
    for (kernel, bias) in weight.chunks_exact(channels * 9).zip(bias) {
        for row in 0..rows.div_ceil(2) {
            for column in 0..columns.div_ceil(2) {
                let mut sum = *bias;
                for (at, w) in kernel.iter().enumerate() {
                    let (channel, y, z) = (at / 9, 2 * row + at / 3 % 3, 2 * column + at % 3);
                    if (1..=rows).contains(&y) && (1..=columns).contains(&z) {
                        sum += w * x[(channel * rows + y - 1) * columns + z - 1];
                    }
                }
                out.push(sum);
            }
        }
    }
    out
}

/// Sines of all frequencies, then cosines.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "f32, as torch does"
)]
fn add_sinusoid(step: usize, row: &mut [f32]) {
    let half = row.len() / 2;
    for i in 0..half {
        let frequency = (-(10_000_f64.ln()) / (half as f64 - 1.0) * i as f64).exp();
        let angle = step as f64 * frequency;
        row[i] += angle.sin() as f32;
        row[half + i] += angle.cos() as f32;
    }
}

/// Where a patch is.
struct Place {
    row: usize,
    column: usize,
    height: usize,
    width: usize,
}

/// Of all patches, square by square, and the first patch of each frame with the end of the last.
fn places(grids: &[[usize; 3]], merge: usize) -> (Vec<Place>, Vec<usize>) {
    let (mut places, mut segments) = (Vec::new(), vec![0]);
    for [time, height, width] in grids.iter().copied() {
        for _ in 0..time {
            for top in (0..height).step_by(merge) {
                for left in (0..width).step_by(merge) {
                    for inside in 0..merge * merge {
                        places.push(Place {
                            row: top + inside / merge,
                            column: left + inside % merge,
                            height,
                            width,
                        });
                    }
                }
            }
            segments.push(places.len());
        }
    }
    (places, segments)
}

/// The learned positions are stretched so that their corners are those of the picture.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a side is short"
)]
fn add_position(table: &[f32], side: usize, place: &Place, x: &mut [f32]) {
    let source = |at: usize, size: usize| at as f64 * (side - 1) as f64 / (size.max(2) - 1) as f64;
    let (y, z) = (
        source(place.row, place.height),
        source(place.column, place.width),
    );
    for (r, wr) in [(y.floor(), 1.0 - y.fract()), (y.floor() + 1.0, y.fract())] {
        for (c, wc) in [(z.floor(), 1.0 - z.fract()), (z.floor() + 1.0, z.fract())] {
            let [r, c] = [r, c].map(|at| (at as usize).min(side - 1));
            let learned = &table[(r * side + c) * x.len()..][..x.len()];
            x.iter_mut()
                .zip(learned)
                .for_each(|(x, l)| *x += (f64::from(*l) * wr * wc) as f32);
        }
    }
}

/// The first half of a head's frequencies goes by row, the second by column.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "f32, as torch does"
)]
fn rotate(x: &mut [f32], width: usize, head: usize, places: &[Place]) {
    let (half, quarter) = (head / 2, head / 4);
    for (row, place) in x.chunks_exact_mut(width).zip(places) {
        for head in row.chunks_exact_mut(head) {
            for j in 0..half {
                let at = if j < quarter { place.row } else { place.column };
                let exponent = 2.0 * (j % quarter) as f64 / half as f64;
                let (sin, cos) = (at as f64 / 10_000_f64.powf(exponent)).sin_cos();
                let (a, b) = (f64::from(head[j]), f64::from(head[j + half]));
                head[j] = (a * cos - b * sin) as f32;
                head[j + half] = (b * cos + a * sin) as f32;
            }
        }
    }
}
