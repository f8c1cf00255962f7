//! The operations that a model is written in. A device implements them; the model code is written
//! once.
//!
//! Activations are f32, row-major, one row per token. Under [`Compute::Bf16`] every operation
//! rounds its result to bf16 where the official bf16 code does, and the values stay in f32
//! variables.

mod conv;
mod conv1d;
mod cpu;
mod scalar;

pub use conv::Conv2d;
pub use conv1d::{Conv1d, Onto};
pub use cpu::CpuOps;
pub use scalar::ScalarOps;

use segpack_formats::Result;
use segpack_formats::io::CancelToken;

pub use crate::tensor::{Attending, Compute, Heads, Matrix, RotaryLayout};
use crate::tensor::{Convolution, Linear};

/// What a device computes.
pub trait Ops: Send + Sync {
    /// The precision of the results.
    fn compute(&self) -> Compute;

    /// Independent linear layers, as one piece of work (query, key and value; all experts of a
    /// token): f32 accumulation, the bias added before the one rounding. A value depends on its row
    /// of `x` and of the weight alone, never on what else is in the batch.
    fn linears(&self, linears: &mut [Linear<'_>]);

    /// As [`linears`](Self::linears), not rounded, whatever the precision is.
    fn linears_in_f32(&self, linears: &mut [Linear<'_>]);

    /// One linear layer.
    fn linear(&self, x: &[f32], weight: Matrix<'_>, bias: Option<&[f32]>, out: &mut [f32]) {
        self.linears(&mut [Linear {
            x,
            weight,
            bias,
            out,
        }]);
    }

    /// As [`linears`](Self::linears); ends soon after `stop` is requested.
    ///
    /// # Errors
    /// `Interrupted` then; some of the results are undefined.
    fn linears_until(&self, linears: &mut [Linear<'_>], stop: &CancelToken) -> Result<()> {
        stop.check()?;
        self.linears(linears);
        stop.check()
    }

    /// A convolution over time, with the bits that [`linears`](Self::linears) gives for its inputs next
    /// to each other; ends soon after `stop` is requested.
    ///
    /// # Errors
    /// `Interrupted` then; some of the results are undefined.
    fn convolve_until(&self, convolution: Convolution<'_>, stop: &CancelToken) -> Result<()>;

    /// Causal attention of the last `tokens` positions over all cached ones. `q` is `[tokens, query
    /// × width]`, `keys` and `values` are `[positions, key_value × width]`, `out` is like `q`.
    /// Scale is `width^-0.5`.
    fn attention(&self, q: &[f32], keys: &[f32], values: &[f32], heads: Heads, out: &mut [f32]);

    /// Attention of tokens to all of their segment, before and after them. `q`, `keys` and `values`
    /// are `[tokens, heads × width]`, `out` is like them. `segments` has the first token of each
    /// segment, and the end of the last. Scale is `width^-0.5`.
    fn attention_within(&self, qkv: [&[f32]; 3], heads: Heads, segments: &[usize], out: &mut [f32]);

    /// As [`attention_within`](Self::attention_within); ends soon after `stop` is requested.
    ///
    /// # Errors
    /// `Interrupted` then; some of the results are undefined.
    fn attention_within_until(
        &self,
        qkv: [&[f32]; 3],
        heads: Heads,
        segments: &[usize],
        out: &mut [f32],
        stop: &CancelToken,
    ) -> Result<()> {
        stop.check()?;
        self.attention_within(qkv, heads, segments, out);
        stop.check()
    }

    /// Causal attention of all positions to the last `window` of those before them, themselves among
    /// them. `q` and `out` are `[positions, query × width]`, `keys` and `values` `[positions,
    /// key_value × width]`. Scale is `width^-0.5`.
    fn attention_window(&self, qkv: [&[f32]; 3], heads: Heads, window: usize, out: &mut [f32]) {
        let attending = Attending {
            window,
            ..Attending::to_all(heads)
        };
        self.attend(qkv, heads, attending, out);
    }

    /// As [`attention`](Self::attention), with another scale, to a window, or with sinks.
    fn attend(&self, qkv: [&[f32]; 3], heads: Heads, how: Attending<'_>, out: &mut [f32]) {
        scalar::attend_window(self.compute(), qkv, heads, how, out);
    }

    /// As [`attend`](Self::attend); ends soon after `stop` is requested.
    ///
    /// # Errors
    /// `Interrupted` then; some of the results are undefined.
    fn attend_until(
        &self,
        qkv: [&[f32]; 3],
        heads: Heads,
        how: Attending<'_>,
        out: &mut [f32],
        stop: &CancelToken,
    ) -> Result<()> {
        stop.check()?;
        self.attend(qkv, heads, how, out);
        stop.check()
    }

    /// `SnakeBeta` of rows of channels: `x + inverse_beta · sin²(x · alpha)`, in f32, rounded once.
    fn snake(&self, x: &mut [f32], alpha: &[f32], inverse_beta: &[f32]) {
        scalar::snake(self.compute(), x, alpha, inverse_beta);
    }

    /// A convolution of every channel by itself: `x` is `[rows + kernel - 1, channels]`, `weight`
    /// `[kernel, channels]`, `out` `[rows, channels]`; rounded once.
    fn depthwise(&self, x: &[f32], weight: &[f32], bias: &[f32], out: &mut [f32]) {
        scalar::depthwise(self.compute(), x, weight, bias, out);
    }

    /// A convolution to one channel: `x` is `[rows + kernel - 1, channels]`, `weight` `[kernel,
    /// channels]`, `out` `[rows]`; rounded once.
    fn slide(&self, x: &[f32], channels: usize, weight: &[f32], bias: f32, out: &mut [f32]) {
        scalar::slide(self.compute(), x, channels, weight, bias, out);
    }

    /// Layer norm of every row: `(x - mean) · rsqrt(variance + eps) · weight + bias`, in f32,
    /// rounded once.
    fn layer_norm(&self, x: &mut [f32], weight: &[f32], bias: &[f32], eps: f32) {
        scalar::layer_norm(self.compute(), x, weight, bias, eps);
    }

    /// `x · Φ(x)`, Φ being the distribution function of the normal distribution; in f32, rounded
    /// once.
    fn gelu(&self, x: &mut [f32]) {
        scalar::gelu(self.compute(), x);
    }

    /// `x / 2 · (1 + tanh(√(2/π) · (x + 0.044715 x³)))`, in f32, rounded once.
    fn gelu_tanh(&self, x: &mut [f32]) {
        scalar::gelu_tanh(self.compute(), x);
    }

    /// RMS norm of every row: `w · round(x · rsqrt(mean(x²) + eps))`, rounded. The cast comes
    /// before the weight (modeling_qwen3_omni_moe.py, `Qwen3OmniMoeThinkerTextRMSNorm`).
    fn rms_norm(&self, x: &mut [f32], weight: &[f32], eps: f32) {
        scalar::rms_norm(self.compute(), x, weight, eps);
    }

    /// RMS norm of every row, rounded once: `round(w · x · rsqrt(mean(x²) + eps))` (modeling_gpt_oss.py,
    /// `GptOssRMSNorm`).
    fn rms_norm_once(&self, x: &mut [f32], weight: &[f32], eps: f32) {
        scalar::rms_norm(Compute::F32, x, weight, eps);
        self.compute().round_all(x);
    }

    /// Rotates the first values of every head of every row, `[tokens, heads × width]`, the others
    /// stay. `cos` and `sin` are `[tokens, layout.turned / 2]`.
    fn rotate(&self, x: &mut [f32], cos: &[f32], sin: &[f32], layout: RotaryLayout) {
        if layout.turned == layout.width && !layout.is_of_neighbours {
            return match layout.is_in_f32 {
                true => self.rope_in_f32(x, cos, sin, layout.width),
                false => self.rope(x, cos, sin, layout.width),
            };
        }
        self.rotate_some(x, cos, sin, layout);
    }

    /// [`rotate`](Self::rotate) where a part of each head is turned, or neighbours are.
    fn rotate_some(&self, x: &mut [f32], cos: &[f32], sin: &[f32], layout: RotaryLayout) {
        scalar::rotate(self.compute(), x, cos, sin, layout);
    }

    /// Rotates every head of every row, halves paired (j, j + width/2): `round(x·cos) +
    /// round(rotate_half(x)·sin)`, rounded. `cos` and `sin` are `[tokens, width / 2]`.
    fn rope(&self, x: &mut [f32], cos: &[f32], sin: &[f32], width: usize) {
        scalar::rope(self.compute(), x, cos, sin, width);
    }

    /// As [`rope`](Self::rope), in f32 whatever the precision is, and rounded once.
    fn rope_in_f32(&self, x: &mut [f32], cos: &[f32], sin: &[f32], width: usize) {
        scalar::rope(Compute::F32, x, cos, sin, width);
        self.compute().round_all(x);
    }

    /// `gate = round(round(silu(gate)) · up)`.
    fn silu_mul(&self, gate: &mut [f32], up: &[f32]) {
        scalar::silu_mul(self.compute(), gate, up);
    }

    /// `gate = (u + 1) · (g · sigmoid(alpha · g))`, `g = min(gate, limit)`, `u` = up from `-limit` to
    /// `limit`; rounded after every operation (modeling_gpt_oss.py, `GptOssExperts._apply_gate`).
    fn clamped_swiglu(&self, gate: &mut [f32], up: &[f32], alpha: f32, limit: f32) {
        scalar::clamped_swiglu(self.compute(), gate, up, [alpha, limit]);
    }

    /// `to = round(to + round(x · factor))`.
    fn add_scaled(&self, to: &mut [f32], x: &[f32], factor: f32) {
        let compute = self.compute();
        to.iter_mut()
            .zip(x)
            .for_each(|(to, x)| *to = compute.round(*to + compute.round(x * factor)));
    }

    /// Copies the rows of some tokens: `to[i] = x[tokens[i]]`, rows of `width` values.
    fn gather(&self, x: &[f32], width: usize, tokens: &[(usize, f32)], to: &mut [f32]) {
        for ((token, _), to) in tokens.iter().zip(to.chunks_exact_mut(width)) {
            to.copy_from_slice(&x[token * width..(token + 1) * width]);
        }
    }

    /// `out[token] = round(out[token] + round(y[i] · weight))` for every `(token, weight)` at i, in
    /// their order.
    fn scatter_add(&self, y: &[f32], width: usize, tokens: &[(usize, f32)], out: &mut [f32]) {
        for ((token, weight), y) in tokens.iter().zip(y.chunks_exact(width)) {
            self.add_scaled(&mut out[token * width..(token + 1) * width], y, *weight);
        }
    }

    /// `to = round(to + x)`.
    fn add(&self, to: &mut [f32], x: &[f32]) {
        let compute = self.compute();
        to.iter_mut()
            .zip(x)
            .for_each(|(to, x)| *to = compute.round(*to + x));
    }

    /// Softmax of every row of `width` values, in f32.
    fn softmax(&self, rows: &mut [f32], width: usize) {
        rows.chunks_exact_mut(width.max(1)).for_each(softmax);
    }
}

/// Softmax in f32, in place.
pub fn softmax(row: &mut [f32]) {
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for x in row.iter_mut() {
        *x = (*x - max).exp();
        sum += *x;
    }
    row.iter_mut().for_each(|x| *x /= sum);
}
