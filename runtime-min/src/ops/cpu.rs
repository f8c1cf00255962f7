//! The CPU: the kernels of one instruction set, shared out to the threads of rayon's current pool.
//!
//! Results do not depend on the number of threads, nor on how tokens are cut into batches (see the
//! kernels).

use rayon::prelude::*;
use segpack_formats::Result;
use segpack_formats::io::CancelToken;

use super::{Attending, Ops, RotaryLayout, scalar};
use crate::kernels::{self, Kernels, UnknownKernels};
use crate::tensor::{Compute, Convolution, Heads, Linear};

/// Values of one task of an operation that is quick per value.
const TASK: usize = 1 << 14;
/// Positions of a task of attention to a window.
const WINDOW_ROWS: usize = 16;

/// Runs on rayon's current thread pool.
#[derive(Debug, Clone, Copy)]
pub struct CpuOps {
    compute: Compute,
    kernels: Kernels,
}

impl CpuOps {
    /// With the best kernels that this processor has.
    pub fn new(compute: Compute) -> Self {
        Self::with_kernels(compute, Kernels::detect())
    }

    /// With the kernels that the environment variable `SEGPACK_CPU` names, or the best.
    ///
    /// # Errors
    /// Where it names some that are not there.
    pub fn from_environment(compute: Compute) -> Result<Self, UnknownKernels> {
        Ok(Self::with_kernels(compute, Kernels::from_environment()?))
    }

    /// With these kernels.
    pub fn with_kernels(compute: Compute, kernels: Kernels) -> Self {
        Self { compute, kernels }
    }

    /// The kernels in use.
    pub fn kernels(&self) -> Kernels {
        self.kernels
    }

    fn attention_of<'x>(
        &self,
        [q, keys, values]: [&'x [f32]; 3],
        heads: Heads,
    ) -> kernels::Attention<'x> {
        kernels::Attention {
            q,
            keys,
            values,
            heads,
            scale: Attending::to_all(heads).scale,
            compute: self.compute,
        }
    }

    /// Adds `factor * x` on the calling thread.
    fn add_scaled_here(&self, to: &mut [f32], x: &[f32], factor: f32) {
        self.kernels.run(kernels::AddScaled {
            compute: self.compute,
            to,
            x,
            factor,
        });
    }

    /// Multiplies `up` by SiLU of `gate`, in place of `gate`, on the calling thread.
    fn silu_mul_here(&self, gate: &mut [f32], up: &[f32]) {
        self.kernels.run(kernels::SiluMul {
            compute: self.compute,
            gate,
            up,
        });
    }

    /// Rotates heads in this precision.
    fn rope_in(&self, compute: Compute, x: &mut [f32], [cos, sin]: [&[f32]; 2], width: usize) {
        let half = width / 2;
        let tokens = cos.len() / half.max(1);
        let run = |(x, (cos, sin)): (&mut [f32], (&[f32], &[f32]))| {
            self.kernels.run(kernels::Rope {
                compute,
                x,
                cos,
                sin,
                width,
            });
        };
        if x.len() <= TASK || half == 0 || tokens == 0 {
            return run((x, (cos, sin)));
        }
        let row = x.len() / tokens;
        let some = (TASK / row.max(1)).max(1);
        let turns = cos.par_chunks(some * half).zip(sin.par_chunks(some * half));
        x.par_chunks_mut(some * row).zip(turns).for_each(run);
    }
}

/// Values of a task that are whole rows of this length.
fn task(row: usize) -> usize {
    (TASK / row.max(1)).max(1) * row.max(1)
}

/// `run` on parts of whole rows, on several threads where there is work for them.
fn in_tasks(x: &mut [f32], row: usize, run: impl Fn(&mut [f32]) + Send + Sync) {
    if x.len() <= TASK {
        return run(x);
    }
    x.par_chunks_mut(task(row)).for_each(run);
}

impl Ops for CpuOps {
    fn compute(&self) -> Compute {
        self.compute
    }

    fn linears(&self, linears: &mut [Linear<'_>]) {
        kernels::linears(self.kernels, self.compute, linears, &CancelToken::default());
    }

    fn linears_in_f32(&self, linears: &mut [Linear<'_>]) {
        let stop = CancelToken::default();
        kernels::linears(self.kernels, Compute::F32, linears, &stop);
    }

    fn linears_until(&self, linears: &mut [Linear<'_>], stop: &CancelToken) -> Result<()> {
        kernels::linears(self.kernels, self.compute, linears, stop);
        stop.check()
    }

    fn convolve_until(&self, convolution: Convolution<'_>, stop: &CancelToken) -> Result<()> {
        kernels::convolution(self.kernels, self.compute, convolution, stop);
        stop.check()
    }

    fn attention(&self, q: &[f32], keys: &[f32], values: &[f32], heads: Heads, out: &mut [f32]) {
        let what = self.attention_of([q, keys, values], heads);
        kernels::attention(self.kernels, what, out, &CancelToken::default());
    }

    fn attention_within(
        &self,
        qkv: [&[f32]; 3],
        heads: Heads,
        segments: &[usize],
        out: &mut [f32],
    ) {
        let what = self.attention_of(qkv, heads);
        kernels::attention_within(self.kernels, what, segments, out, &CancelToken::default());
    }

    fn attention_within_until(
        &self,
        qkv: [&[f32]; 3],
        heads: Heads,
        segments: &[usize],
        out: &mut [f32],
        stop: &CancelToken,
    ) -> Result<()> {
        let what = self.attention_of(qkv, heads);
        kernels::attention_within(self.kernels, what, segments, out, stop);
        stop.check()
    }

    fn attend(
        &self,
        [q, keys, values]: [&[f32]; 3],
        heads: Heads,
        attending: Attending<'_>,
        out: &mut [f32],
    ) {
        let row = heads.query * heads.width;
        let tokens = q.len() / row.max(1);
        let positions = keys.len() / (heads.key_value * heads.width).max(1);
        let mut rest = kernels::Columns::all(out, row);
        let mut tasks = Vec::new();
        for first in (0..tokens).step_by(WINDOW_ROWS) {
            let rows = WINDOW_ROWS.min(tokens - first);
            tasks.push(kernels::WindowAttention {
                compute: self.compute,
                q,
                keys,
                values,
                heads,
                attending,
                before: positions - tokens,
                first,
                out: rest.take_rows(rows),
                rows,
            });
        }
        tasks
            .into_par_iter()
            .for_each(|task| self.kernels.run(task));
    }

    fn attend_until(
        &self,
        [q, keys, values]: [&[f32]; 3],
        heads: Heads,
        how: Attending<'_>,
        out: &mut [f32],
        stop: &CancelToken,
    ) -> Result<()> {
        // which kernel a token gets depends on its position alone, not on those that come with it
        let row = heads.query * heads.width;
        let of_position = (heads.key_value * heads.width).max(1);
        let positions = keys.len() / of_position;
        let before = positions - q.len() / row.max(1);
        let seen = how.seen_by_all(positions);
        let tokens = seen.saturating_sub(before);
        let (q, q_behind) = q.split_at(tokens * row);
        let (out, out_behind) = out.split_at_mut(tokens * row);
        if !q.is_empty() {
            let first = [
                q,
                &keys[..seen * of_position],
                &values[..seen * of_position],
            ];
            let mut what = self.attention_of(first, heads);
            what.scale = how.scale;
            kernels::attention(self.kernels, what, out, stop);
        }
        stop.check()?;
        if !q_behind.is_empty() {
            self.attend([q_behind, keys, values], heads, how, out_behind);
        }
        stop.check()
    }

    fn rms_norm_once(&self, x: &mut [f32], weight: &[f32], eps: f32) {
        in_tasks(x, weight.len(), |x| {
            self.kernels.run(kernels::RmsNorm {
                compute: Compute::F32,
                x: &mut *x,
                weight,
                eps,
            });
            self.compute.round_all(x);
        });
    }

    fn snake(&self, x: &mut [f32], alpha: &[f32], inverse_beta: &[f32]) {
        in_tasks(x, alpha.len(), |x| {
            self.kernels.run(kernels::Snake {
                compute: self.compute,
                x,
                alpha,
                inverse_beta,
            });
        });
    }

    fn depthwise(&self, x: &[f32], weight: &[f32], bias: &[f32], out: &mut [f32]) {
        let channels = bias.len().max(1);
        let rows = (TASK / channels).max(1);
        out.par_chunks_mut(rows * channels)
            .enumerate()
            .for_each(|(task, out)| {
                self.kernels.run(kernels::Depthwise {
                    compute: self.compute,
                    x: &x[task * rows * channels..],
                    weight,
                    bias,
                    out,
                });
            });
    }

    fn slide(&self, x: &[f32], channels: usize, weight: &[f32], bias: f32, out: &mut [f32]) {
        let rows = (TASK / weight.len().max(1)).max(1);
        out.par_chunks_mut(rows)
            .enumerate()
            .for_each(|(task, out)| {
                self.kernels.run(kernels::Slide {
                    compute: self.compute,
                    x: &x[task * rows * channels..],
                    channels,
                    weight,
                    bias,
                    out,
                });
            });
    }

    fn layer_norm(&self, x: &mut [f32], weight: &[f32], bias: &[f32], eps: f32) {
        in_tasks(x, weight.len(), |x| {
            self.kernels.run(kernels::LayerNorm {
                compute: self.compute,
                x,
                weight,
                bias,
                eps,
            });
        });
    }

    fn gelu(&self, x: &mut [f32]) {
        let compute = self.compute;
        in_tasks(x, 1, |x| self.kernels.run(kernels::Gelu { compute, x }));
    }

    fn gelu_tanh(&self, x: &mut [f32]) {
        let compute = self.compute;
        in_tasks(x, 1, |x| self.kernels.run(kernels::GeluTanh { compute, x }));
    }

    fn rms_norm(&self, x: &mut [f32], weight: &[f32], eps: f32) {
        in_tasks(x, weight.len(), |x| {
            self.kernels.run(kernels::RmsNorm {
                compute: self.compute,
                x,
                weight,
                eps,
            });
        });
    }

    fn rotate_some(&self, x: &mut [f32], cos: &[f32], sin: &[f32], layout: RotaryLayout) {
        let half = layout.turned / 2;
        let tokens = cos.len() / half.max(1);
        if x.len() <= TASK || tokens == 0 {
            return scalar::rotate(self.compute, x, cos, sin, layout);
        }
        let row = x.len() / tokens;
        let some = (TASK / row.max(1)).max(1);
        let turns = cos.par_chunks(some * half).zip(sin.par_chunks(some * half));
        x.par_chunks_mut(some * row)
            .zip(turns)
            .for_each(|(x, (cos, sin))| scalar::rotate(self.compute, x, cos, sin, layout));
    }

    fn rope(&self, x: &mut [f32], cos: &[f32], sin: &[f32], width: usize) {
        self.rope_in(self.compute, x, [cos, sin], width);
    }

    fn rope_in_f32(&self, x: &mut [f32], cos: &[f32], sin: &[f32], width: usize) {
        self.rope_in(Compute::F32, x, [cos, sin], width);
        if self.compute == Compute::Bf16 {
            x.par_chunks_mut(TASK)
                .for_each(|x| self.compute.round_all(x));
        }
    }

    fn gather(&self, x: &[f32], width: usize, tokens: &[(usize, f32)], to: &mut [f32]) {
        let rows = TASK / width.max(1) + 1;
        to.par_chunks_mut(rows * width.max(1))
            .zip(tokens.par_chunks(rows))
            .for_each(|(to, tokens)| {
                for ((token, _), to) in tokens.iter().zip(to.chunks_exact_mut(width.max(1))) {
                    to.copy_from_slice(&x[token * width..(token + 1) * width]);
                }
            });
    }

    fn scatter_add(&self, y: &[f32], width: usize, tokens: &[(usize, f32)], out: &mut [f32]) {
        let row = |i: usize| &y[i * width..(i + 1) * width];
        if tokens.len() * width <= TASK {
            for (i, (token, weight)) in tokens.iter().enumerate() {
                let to = &mut out[token * width..(token + 1) * width];
                self.add_scaled_here(to, row(i), *weight);
            }
            return;
        }
        // a row of `out` belongs to one task, which adds to it in the order of `tokens`
        let mut order: Vec<usize> = (0..tokens.len()).collect();
        order.sort_by_key(|i| tokens[*i].0); // stable
        let rows = (TASK / width.max(1)).max(1);
        out.par_chunks_mut(rows * width.max(1))
            .enumerate()
            .for_each(|(block, out)| {
                let first = block * rows;
                let begin = order.partition_point(|i| tokens[*i].0 < first);
                let mine = order[begin..]
                    .iter()
                    .take_while(|i| tokens[**i].0 < first + rows);
                for i in mine {
                    let (token, weight) = tokens[*i];
                    let at = (token - first) * width;
                    self.add_scaled_here(&mut out[at..at + width], row(*i), weight);
                }
            });
    }

    fn silu_mul(&self, gate: &mut [f32], up: &[f32]) {
        if gate.len() <= TASK {
            return self.silu_mul_here(gate, up);
        }
        gate.par_chunks_mut(TASK)
            .zip(up.par_chunks(TASK))
            .for_each(|(gate, up)| self.silu_mul_here(gate, up));
    }

    fn add_scaled(&self, to: &mut [f32], x: &[f32], factor: f32) {
        if to.len() <= TASK {
            return self.add_scaled_here(to, x, factor);
        }
        to.par_chunks_mut(TASK)
            .zip(x.par_chunks(TASK))
            .for_each(|(to, x)| self.add_scaled_here(to, x, factor));
    }

    fn add(&self, to: &mut [f32], x: &[f32]) {
        let compute = self.compute;
        let run = |(to, x): (&mut [f32], &[f32])| self.kernels.run(kernels::Add { compute, to, x });
        if to.len() <= TASK {
            return run((to, x));
        }
        to.par_chunks_mut(TASK)
            .zip(x.par_chunks(TASK))
            .for_each(run);
    }

    fn softmax(&self, rows: &mut [f32], width: usize) {
        let run = |rows: &mut [f32]| self.kernels.run(kernels::Softmax { rows, width });
        if rows.len() <= TASK {
            return run(rows);
        }
        rows.par_chunks_mut(task(width)).for_each(run);
    }
}
