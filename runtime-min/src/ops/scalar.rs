//! Every operation in plain loops: what the others are tested against.

use segpack_formats::Result;
use segpack_formats::io::CancelToken;

use super::{Attending, Ops, RotaryLayout, softmax};
use crate::kernels;
use crate::tensor::{Compute, Convolution, Heads, Linear};

/// The reference implementation: one thread, no instruction-set extensions, no blocking.
#[derive(Debug, Clone, Copy, Default)]
pub struct ScalarOps {
    /// The precision of the results.
    pub compute: Compute,
}

impl Ops for ScalarOps {
    fn compute(&self) -> Compute {
        self.compute
    }

    fn linears(&self, linears: &mut [Linear<'_>]) {
        // nobody requests this one's stop
        let _ = self.linears_until(linears, &CancelToken::default());
    }

    fn linears_in_f32(&self, linears: &mut [Linear<'_>]) {
        let compute = Compute::F32;
        Self { compute }.linears(linears);
    }

    fn linears_until(&self, linears: &mut [Linear<'_>], stop: &CancelToken) -> Result<()> {
        for Linear {
            x,
            weight,
            bias,
            out,
        } in linears
        {
            let mut row = vec![0.0; weight.columns];
            for n in 0..weight.rows {
                stop.check()?;
                weight.dtype.widen(weight.row(n), &mut row);
                for (x, out) in x
                    .chunks_exact(weight.columns)
                    .zip(out.chunks_exact_mut(weight.rows))
                {
                    let sum = dot(self.compute, x, &row);
                    out[n] = self.compute.round(sum + bias.map_or(0.0, |b| b[n]));
                }
            }
        }
        Ok(())
    }

    fn convolve_until(&self, convolution: Convolution<'_>, stop: &CancelToken) -> Result<()> {
        let Convolution {
            before,
            x,
            snake: beta,
            channels,
            dilation,
            weight,
            bias,
            out,
            adds,
        } = convolution;
        let mut x = [before, x].concat();
        if let Some(factors) = beta {
            snake(self.compute, &mut x, factors.alpha, factors.inverse_beta);
        }
        let rows: Vec<&[f32]> = x.chunks_exact(channels).collect();
        let kernel = weight.columns / channels;
        let under_kernel = |t| (0..kernel).map(move |tap| t + tap * dilation);
        let tokens = out.len() / weight.rows;
        let inputs = (0..tokens).flat_map(under_kernel).flat_map(|row| rows[row]);
        let x: Vec<f32> = inputs.copied().collect();
        let mut results = vec![0.0; out.len()];
        let linear = Linear {
            x: &x,
            weight,
            bias,
            out: &mut results,
        };
        self.linears_until(&mut [linear], stop)?;
        match adds {
            true => self.add(out, &results),
            false => out.copy_from_slice(&results),
        }
        Ok(())
    }

    fn attention(&self, q: &[f32], keys: &[f32], values: &[f32], heads: Heads, out: &mut [f32]) {
        self.attend_to_all(
            [q, keys, values],
            heads,
            Attending::to_all(heads).scale,
            out,
        );
    }

    fn attend_until(
        &self,
        qkv: [&[f32]; 3],
        heads: Heads,
        how: Attending<'_>,
        out: &mut [f32],
        stop: &CancelToken,
    ) -> Result<()> {
        stop.check()?;
        let (_, positions) = rows(qkv[0], qkv[1], heads);
        match how.is_to_all(positions) {
            true => self.attend_to_all(qkv, heads, how.scale, out),
            false => self.attend(qkv, heads, how, out),
        }
        stop.check()
    }

    fn attention_within(
        &self,
        [q, keys, values]: [&[f32]; 3],
        heads: Heads,
        segments: &[usize],
        out: &mut [f32],
    ) {
        let row = heads.query * heads.width;
        let scale = Attending::to_all(heads).scale;
        for segment in segments.windows(2) {
            let within = segment[0] * row..segment[1] * row;
            let (keys, values) = (&keys[within.clone()], &values[within]);
            let seen = segment[1] - segment[0];
            for t in segment[0]..segment[1] {
                for h in 0..heads.query {
                    let at = t * row + h * heads.width;
                    let (q, out) = (&q[at..at + heads.width], &mut out[at..at + heads.width]);
                    attend(self.compute, (q, scale), keys, values, heads, h, seen, out);
                }
            }
        }
    }
}

impl ScalarOps {
    fn attend_to_all(
        &self,
        [q, keys, values]: [&[f32]; 3],
        heads: Heads,
        scale: f32,
        out: &mut [f32],
    ) {
        let (tokens, positions) = rows(q, keys, heads);
        for t in 0..tokens {
            for h in 0..heads.query {
                let at = (t * heads.query + h) * heads.width;
                let seen = positions - tokens + t + 1;
                let (q, out) = (&q[at..at + heads.width], &mut out[at..at + heads.width]);
                attend(self.compute, (q, scale), keys, values, heads, h, seen, out);
            }
        }
    }
}

/// Tokens in `q`, positions in `keys`.
pub(super) fn rows(q: &[f32], keys: &[f32], heads: Heads) -> (usize, usize) {
    (
        q.len() / (heads.query * heads.width),
        keys.len() / (heads.key_value * heads.width),
    )
}

/// One query head of one token over the first `seen` positions, as the eager code does it: rounded
/// scores, softmax in f32, rounded probabilities, rounded sum.
#[expect(clippy::too_many_arguments, reason = "the operands of one formula")]
pub(super) fn attend(
    compute: Compute,
    (q, scale): (&[f32], f32),
    keys: &[f32],
    values: &[f32],
    heads: Heads,
    head: usize,
    seen: usize,
    out: &mut [f32],
) {
    let kv = head / (heads.query / heads.key_value);
    let stride = heads.key_value * heads.width;
    let row = |all: &'_ [f32], t: usize| -> std::ops::Range<usize> {
        debug_assert!((t + 1) * stride <= all.len());
        t * stride + kv * heads.width..t * stride + (kv + 1) * heads.width
    };
    let score =
        |t: usize| compute.round(compute.round(dot(compute, q, &keys[row(keys, t)])) * scale);
    let mut scores: Vec<f32> = (0..seen).map(score).collect();
    softmax(&mut scores);
    compute.round_all(&mut scores);
    out.fill(0.0);
    for (t, p) in scores.iter().enumerate() {
        out.iter_mut()
            .zip(&values[row(values, t)])
            .for_each(|(o, v)| *o += p * v);
    }
    compute.round_all(out);
}

/// A dot product in the order of the official code.
///
/// Under bf16 that is the order of `vdpbf16ps`, which torch uses on CPUs that have it: of every
/// pair the odd product first, each added with one rounding (Intel SDM, VDPBF16PS). With it the
/// public bf16 traces come out bit for bit; other orders round some logits differently. In f32 no
/// order is official.
pub(super) fn dot(compute: Compute, a: &[f32], b: &[f32]) -> f32 {
    if compute == Compute::F32 {
        return a.iter().zip(b).map(|(a, b)| a * b).sum();
    }
    let ((a, a_last), (b, b_last)) = (a.as_chunks::<2>(), b.as_chunks::<2>());
    let pair =
        |sum: f32, (a, b): (&[f32; 2], &[f32; 2])| a[0].mul_add(b[0], a[1].mul_add(b[1], sum));
    let sum = a.iter().zip(b).fold(0.0, pair);
    a_last
        .iter()
        .zip(b_last)
        .fold(sum, |sum, (a, b)| a.mul_add(*b, sum))
}

pub(super) fn rms_norm(compute: Compute, x: &mut [f32], weight: &[f32], eps: f32) {
    for row in x.chunks_exact_mut(weight.len()) {
        #[expect(clippy::cast_precision_loss, reason = "rows are short")]
        let mean = row.iter().map(|x| x * x).sum::<f32>() / row.len() as f32;
        let factor = 1.0 / (mean + eps).sqrt();
        row.iter_mut()
            .zip(weight)
            .for_each(|(x, w)| *x = compute.round(w * compute.round(*x * factor)));
    }
}

pub(super) fn rope(compute: Compute, x: &mut [f32], cos: &[f32], sin: &[f32], width: usize) {
    let half = width / 2;
    let tokens = cos.len() / half.max(1);
    let per_token = x.len() / tokens.max(1);
    for (t, row) in x.chunks_exact_mut(per_token.max(1)).enumerate() {
        let (cos, sin) = (
            &cos[t * half..(t + 1) * half],
            &sin[t * half..(t + 1) * half],
        );
        for head in row.chunks_exact_mut(width) {
            let (first, second) = head.split_at_mut(half);
            for j in 0..half {
                let (a, b) = (first[j], second[j]);
                first[j] = compute.round(compute.round(a * cos[j]) + compute.round(-b * sin[j]));
                second[j] = compute.round(compute.round(b * cos[j]) + compute.round(a * sin[j]));
            }
        }
    }
}

pub(super) fn silu_mul(compute: Compute, gate: &mut [f32], up: &[f32]) {
    for (g, u) in gate.iter_mut().zip(up) {
        let silu = compute.round(*g / (1.0 + (-*g).exp()));
        *g = compute.round(silu * u);
    }
}

pub(super) fn clamped_swiglu(
    compute: Compute,
    gate: &mut [f32],
    up: &[f32],
    [alpha, limit]: [f32; 2],
) {
    for (gate, up) in gate.iter_mut().zip(up) {
        let (g, u) = (gate.min(limit), up.clamp(-limit, limit));
        let sigmoid = compute.round(1.0 / (1.0 + (-compute.round(g * alpha)).exp()));
        let glu = compute.round(g * sigmoid);
        *gate = compute.round(compute.round(u + 1.0) * glu);
    }
}

pub(super) fn layer_norm(compute: Compute, x: &mut [f32], weight: &[f32], bias: &[f32], eps: f32) {
    for row in x.chunks_exact_mut(weight.len()) {
        #[expect(clippy::cast_precision_loss, reason = "rows are short")]
        let count = row.len() as f32;
        let mean = row.iter().sum::<f32>() / count;
        let variance = row.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>() / count;
        let factor = 1.0 / (variance + eps).sqrt();
        for ((x, w), b) in row.iter_mut().zip(weight).zip(bias) {
            *x = compute.round((*x - mean) * factor * w + b);
        }
    }
}

pub(super) fn gelu(compute: Compute, x: &mut [f32]) {
    for x in x {
        let erf = libm::erff(*x * std::f32::consts::FRAC_1_SQRT_2);
        *x = compute.round(0.5 * *x * (1.0 + erf));
    }
}

pub(super) fn gelu_tanh(compute: Compute, x: &mut [f32]) {
    for x in x {
        let inner = kernels::SQRT_2_OVER_PI * (*x + kernels::GELU_CUBIC * *x * *x * *x);
        *x = compute.round(0.5 * *x * (1.0 + inner.tanh()));
    }
}

pub(super) fn attend_window(
    compute: Compute,
    [q, keys, values]: [&[f32]; 3],
    heads: Heads,
    how: Attending<'_>,
    out: &mut [f32],
) {
    let Heads {
        query,
        key_value,
        width,
    } = heads;
    let row = key_value * width;
    let (tokens, positions) = rows(q, keys, heads);
    for (at, (q, out)) in q
        .chunks_exact(width)
        .zip(out.chunks_exact_mut(width))
        .enumerate()
    {
        let (position, head) = (positions - tokens + at / query, at % query);
        let column = head / (query / key_value) * width;
        let start = (position + 1).saturating_sub(how.window);
        let score = |j: usize| {
            let key = &keys[j * row + column..][..width];
            let sum = q.iter().zip(key).map(|(q, k)| q * k).sum();
            compute.round(compute.round(sum) * how.scale)
        };
        let mut scores: Vec<f32> = (start..=position).map(score).collect();
        if let Some(sinks) = how.sinks {
            scores.push(sinks[head]);
            kernels::below_the_highest(compute, &mut scores);
        }
        softmax(&mut scores);
        compute.round_all(&mut scores);
        out.fill(0.0);
        for (score, j) in scores.iter().zip(start..=position) {
            let value = &values[j * row + column..][..width];
            out.iter_mut()
                .zip(value)
                .for_each(|(out, v)| *out += score * v);
        }
        compute.round_all(out);
    }
}

/// Turns the first values of heads, pair by pair.
pub(super) fn rotate(
    compute: Compute,
    x: &mut [f32],
    cos: &[f32],
    sin: &[f32],
    layout: RotaryLayout,
) {
    let half = layout.turned / 2;
    let inner = match layout.is_in_f32 {
        true => Compute::F32,
        false => compute,
    };
    let tokens = cos.len() / half.max(1);
    let per_token = (x.len() / tokens.max(1)).max(1);
    for (row, (cos, sin)) in x
        .chunks_exact_mut(per_token)
        .zip(cos.chunks_exact(half).zip(sin.chunks_exact(half)))
    {
        for head in row.chunks_exact_mut(layout.width) {
            for (j, (cos, sin)) in cos.iter().zip(sin).enumerate() {
                let (first, second) = match layout.is_of_neighbours {
                    true => (2 * j, 2 * j + 1),
                    false => (j, j + half),
                };
                let (a, b) = (head[first], head[second]);
                let turned = [
                    inner.round(a * cos) + inner.round(-b * sin),
                    inner.round(b * cos) + inner.round(a * sin),
                ];
                [head[first], head[second]] = turned.map(|x| compute.round(x));
            }
        }
    }
}

pub(super) fn snake(compute: Compute, x: &mut [f32], alpha: &[f32], inverse_beta: &[f32]) {
    for row in x.chunks_exact_mut(alpha.len().max(1)) {
        for ((x, alpha), inverse) in row.iter_mut().zip(alpha).zip(inverse_beta) {
            let sin = (*x * alpha).sin();
            *x = compute.round(*x + inverse * (sin * sin));
        }
    }
}

pub(super) fn depthwise(
    compute: Compute,
    x: &[f32],
    weight: &[f32],
    bias: &[f32],
    out: &mut [f32],
) {
    let channels = bias.len().max(1);
    for (t, out) in out.chunks_exact_mut(channels).enumerate() {
        for (c, out) in out.iter_mut().enumerate() {
            let taps = weight.chunks_exact(channels).enumerate();
            let sum: f32 = taps.map(|(k, w)| w[c] * x[(t + k) * channels + c]).sum();
            *out = compute.round(sum + bias[c]);
        }
    }
}

pub(super) fn slide(
    compute: Compute,
    x: &[f32],
    channels: usize,
    weight: &[f32],
    bias: f32,
    out: &mut [f32],
) {
    for (t, out) in out.iter_mut().enumerate() {
        let sum: f32 = x[t * channels..]
            .iter()
            .zip(weight)
            .map(|(x, w)| x * w)
            .sum();
        *out = compute.round(sum + bias);
    }
}
