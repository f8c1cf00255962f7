//! Measures the CPU kernels at the shapes of Qwen3-Omni's thinker, each as a share of what the
//! machine can do.
//!
//! ```text
//! cargo run --release -p segpack-runtime-min --example kernels [bf16] [THREADS...] [NAME...]
//! ```
//!
//! Without numbers of threads: 1 and 2. With names: only the lines that contain one of them. With
//! `bf16`: activations are bf16 values.
//!
//! `SEGPACK_CPU` chooses the instruction set, as everywhere. Limits and kernels take turns, so that
//! a noisy neighbour meets both; figures are medians. One layer's experts (1.2 GB of bf16 weights)
//! lie on huge pages and are far larger than the caches.

use std::error::Error;
use std::time::Instant;

use memmap2::{Advice, MmapMut};
use rayon::prelude::*;
use segpack_formats::numeric::FloatDtype;
use segpack_runtime_min::ops::{CpuOps, Ops};
use segpack_runtime_min::tensor::{Compute, Heads, Linear, Matrix};
use segpack_runtime_min::{Kernels, limits};

const HIDDEN: usize = 2048;
const QUERY: usize = 4096;
const KEY: usize = 512;
const EXPERT: usize = 768;
const EXPERTS: usize = 128;
const BEST: usize = 8;
const VOCAB: usize = 151_936;
const HEADS: Heads = Heads {
    query: 32,
    key_value: 4,
    width: 128,
};
const RUNS: usize = 7;

fn main() -> Result<(), Box<dyn Error>> {
    let kernels = Kernels::from_environment()?;
    let (mut threads, mut names) = (Vec::new(), Vec::new());
    let mut compute = Compute::F32;
    for argument in std::env::args().skip(1) {
        match argument.parse::<usize>() {
            Ok(n) => threads.push(n),
            Err(_) if argument == "bf16" => compute = Compute::Bf16,
            Err(_) => names.push(argument),
        }
    }
    let threads = if threads.is_empty() {
        vec![1, 2]
    } else {
        threads
    };
    let weights = Weights::new()?;
    for threads in threads {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()?;
        println!(
            "\n{} kernels, {compute:?}, {threads} threads",
            kernels.name()
        );
        let ops = CpuOps::with_kernels(compute, kernels);
        pool.install(|| {
            Bench {
                kernels,
                ops,
                weights: &weights,
                names: &names,
            }
            .run();
        });
    }
    Ok(())
}

/// Memory on huge pages, cut into matrices.
struct Weights(MmapMut);

impl Weights {
    fn new() -> Result<Self, Box<dyn Error>> {
        let mut map = MmapMut::map_anon(EXPERTS * 3 * EXPERT * HIDDEN * 2)?;
        #[cfg(target_os = "linux")]
        map.advise(Advice::HugePage)?;
        map.par_chunks_mut(1 << 20)
            .enumerate()
            .for_each(|(i, part)| {
                let mut state = u32::try_from(i).unwrap_or(0);
                for bytes in part.as_chunks_mut::<2>().0 {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    // random signs and mantissas, exponents of values around 0.02
                    let mantissa = u16::try_from(state >> 16).unwrap_or(0) & 0x80ff;
                    *bytes = (mantissa | 0x3c00).to_le_bytes();
                }
            });
        Ok(Self(map))
    }

    /// The matrix that starts at the next byte, and wraps around at the end.
    fn next(&self, at: &mut usize, rows: usize, columns: usize) -> Matrix<'_> {
        let length = rows * columns * 2;
        if *at + length > self.0.len() {
            *at = 0;
        }
        let bytes = &self.0[*at..*at + length];
        *at += length;
        Matrix {
            dtype: FloatDtype::BF16,
            bytes,
            rows,
            columns,
        }
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[expect(clippy::cast_precision_loss, reason = "rates")]
fn float(n: usize) -> f64 {
    n as f64
}

fn seconds(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64()
}

fn activations(n: usize) -> Vec<f32> {
    (0..n)
        .map(|i| f32::from(u8::try_from(i * 31 % 251).unwrap_or(0)) / 128.0 - 1.0)
        .collect()
}

struct Bench<'a> {
    kernels: Kernels,
    ops: CpuOps,
    weights: &'a Weights,
    names: &'a [String],
}

/// Matrices with their inputs' and outputs' places: one call of `products`.
struct Call<'a> {
    weights: Vec<(Matrix<'a>, usize)>,
}

impl Call<'_> {
    fn bytes(&self) -> usize {
        self.weights.iter().map(|(w, _)| w.bytes.len()).sum()
    }

    fn operations(&self) -> usize {
        self.weights
            .iter()
            .map(|(w, tokens)| 2 * w.rows * w.columns * tokens)
            .sum()
    }

    fn run(&self, ops: &CpuOps, x: &[f32], out: &mut Vec<f32>) {
        let length = self.weights.iter().map(|(w, tokens)| w.rows * tokens).sum();
        if out.len() < length {
            out.resize(length, 0.0);
        }
        let mut rest = &mut out[..];
        let mut products = Vec::new();
        for (weight, tokens) in &self.weights {
            let (out, after) = rest.split_at_mut(weight.rows * tokens);
            rest = after;
            products.push(Linear {
                x: &x[..weight.columns * tokens],
                weight: *weight,
                bias: None,
                out,
            });
        }
        ops.linears(&mut products);
    }
}

impl Bench<'_> {
    /// Prints the medians of a rate and its share of a limit, over pairs of (limit, rate), and the best
    /// rate, which neighbours on the machine lower least.
    fn report(&self, name: &str, unit: &str, runs: usize, mut measure: impl FnMut() -> (f64, f64)) {
        if !self.names.is_empty() && !self.names.iter().any(|n| name.contains(n.as_str())) {
            return;
        }
        let pairs: Vec<(f64, f64)> = (0..runs).map(|_| measure()).collect();
        let rate = median(pairs.iter().map(|(_, rate)| rate / 1e9).collect());
        let share = median(pairs.iter().map(|(limit, rate)| rate / limit).collect());
        let best = pairs.iter().map(|(_, rate)| rate / 1e9).fold(0.0, f64::max);
        let share = 100.0 * share;
        println!("    {name:32} {rate:6.1} {unit:8} {share:4.0} %   best {best:6.1}");
    }

    fn run(&self) {
        let read = || limits::read_bandwidth(self.kernels, &[&self.weights.0]);
        let compute = self.ops.compute();
        let peak = || limits::multiply_add_peak(self.kernels, compute, 20_000_000);
        read();
        println!(
            "  limits: read {:.1} GB/s, multiply-add {:.0} GFLOP/s",
            median((0..3).map(|_| read()).collect()) / 1e9,
            median((0..3).map(|_| peak()).collect()) / 1e9
        );
        println!("  one token: share of read bandwidth");
        let mut at = 0;
        let attention = |at: &mut usize| {
            [(QUERY, HIDDEN), (KEY, HIDDEN), (KEY, HIDDEN)]
                .map(|(r, c)| self.weights.next(at, r, c))
        };
        let some = |n: usize, at: &mut usize, rows: usize, columns: usize| -> Vec<Matrix<'_>> {
            (0..n)
                .map(|_| self.weights.next(at, rows, columns))
                .collect()
        };
        self.decode("q, k, v", 24, &read, || attention(&mut at).to_vec());
        self.decode("o", 24, &read, || some(1, &mut at, HIDDEN, QUERY));
        self.decode("router", 200, &read, || some(1, &mut at, EXPERTS, HIDDEN));
        self.decode("8 experts, gate and up", 12, &read, || {
            some(2 * BEST, &mut at, EXPERT, HIDDEN)
        });
        self.decode("8 experts, down", 24, &read, || {
            some(BEST, &mut at, HIDDEN, EXPERT)
        });
        self.decode("head", 1, &read, || some(1, &mut at, VOCAB, HIDDEN));
        println!("  many tokens: share of the multiply-add peak");
        for tokens in [8, 32, 128, 512] {
            self.dense(tokens, &peak);
        }
        for tokens in [128, 512] {
            self.experts(tokens, &peak);
        }
        println!("  the same, were weights laid out anew while loading: the inner loop alone");
        self.report("re-laid, 1 token (read bandwidth)", "GB/s", RUNS, || {
            (
                read(),
                limits::relaid_product(self.kernels, &self.weights.0, HIDDEN, 1),
            )
        });
        for tokens in [36, 516] {
            let part = &self.weights.0[..(1 << 30) / tokens];
            self.report(
                &format!("re-laid, {tokens} tokens"),
                "GFLOP/s",
                RUNS,
                || {
                    // a weight is two bytes, and a multiply-add two operations
                    #[expect(clippy::cast_precision_loss, reason = "few")]
                    let flops = tokens as f64;
                    (
                        peak(),
                        flops * limits::relaid_product(self.kernels, part, HIDDEN, tokens),
                    )
                },
            );
        }
        println!("  attention");
        for (tokens, positions) in [(512, 512), (4096, 4096)] {
            self.prefill_attention(tokens, positions, &peak);
        }
        for positions in [4096, 32_768] {
            self.decode_attention(positions, &read);
        }
        println!("  rows and values, 512 tokens: share of read bandwidth (bytes read and written)");
        self.rows(&read);
    }

    /// `calls` calls per run, each on weights of its own.
    fn decode<'w>(
        &self,
        name: &str,
        calls: usize,
        read: &dyn Fn() -> f64,
        mut make: impl FnMut() -> Vec<Matrix<'w>>,
    ) {
        let x = activations(QUERY);
        let mut out = Vec::new();
        self.report(name, "GB/s", RUNS, || {
            let calls: Vec<Call<'_>> = (0..calls)
                .map(|_| Call {
                    weights: make().into_iter().map(|w| (w, 1)).collect(),
                })
                .collect();
            let limit = read();
            let time = seconds(|| {
                calls
                    .iter()
                    .for_each(|call| call.run(&self.ops, &x, &mut out));
            });
            (limit, float(calls.iter().map(Call::bytes).sum()) / time)
        });
    }

    fn many(&self, name: &str, calls: &[Call<'_>], peak: &dyn Fn() -> f64) {
        let widest = calls
            .iter()
            .flat_map(|c| &c.weights)
            .map(|(w, tokens)| w.columns * tokens)
            .max();
        let x = activations(widest.unwrap_or(0));
        let mut out = Vec::new();
        self.report(name, "GFLOP/s", RUNS, || {
            let limit = peak();
            let time = seconds(|| {
                calls
                    .iter()
                    .for_each(|call| call.run(&self.ops, &x, &mut out));
            });
            (
                limit,
                float(calls.iter().map(Call::operations).sum()) / time,
            )
        });
    }

    fn dense(&self, tokens: usize, peak: &dyn Fn() -> f64) {
        let mut at = 0;
        let shapes = [
            ("q", QUERY, HIDDEN),
            ("k", KEY, HIDDEN),
            ("o", HIDDEN, QUERY),
            ("router", EXPERTS, HIDDEN),
        ];
        for (name, rows, columns) in shapes {
            let calls = (0..(1024 / tokens).clamp(2, 8)).map(|_| Call {
                weights: vec![(self.weights.next(&mut at, rows, columns), tokens)],
            });
            self.many(
                &format!("{name}, {tokens} tokens"),
                &calls.collect::<Vec<_>>(),
                peak,
            );
        }
    }

    /// Tokens spread over all experts, as unevenly as chance has it.
    fn experts(&self, tokens: usize, peak: &dyn Fn() -> f64) {
        let mut counts = vec![0; EXPERTS];
        let mut state = 1_u32;
        for _ in 0..tokens * BEST {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            counts[(state >> 25) as usize] += 1;
        }
        let mut at = 0;
        let (mut first, mut second) = (Vec::new(), Vec::new());
        for tokens in counts.into_iter().filter(|n| *n > 0) {
            for _ in 0..2 {
                first.push((self.weights.next(&mut at, EXPERT, HIDDEN), tokens));
            }
            second.push((self.weights.next(&mut at, HIDDEN, EXPERT), tokens));
        }

        let each = first
            .chunks(2)
            .zip(second.chunks(1))
            .flat_map(|(a, b)| {
                [
                    Call {
                        weights: a.to_vec(),
                    },
                    Call {
                        weights: b.to_vec(),
                    },
                ]
            })
            .collect::<Vec<_>>();
        self.many(&format!("experts, {tokens} tokens, 1 a call"), &each, peak);
        let all = [Call { weights: first }, Call { weights: second }];
        self.many(&format!("experts, {tokens} tokens, all"), &all, peak);
    }

    fn prefill_attention(&self, tokens: usize, positions: usize, peak: &dyn Fn() -> f64) {
        let q = activations(tokens * QUERY);
        let (keys, values) = (activations(positions * KEY), activations(positions * KEY));
        let mut out = vec![0.0; q.len()];
        let seen: usize = (positions - tokens + 1..=positions).sum();
        let operations = float(4 * seen * QUERY);
        self.report(
            &format!("attention, {tokens} tokens of {positions}"),
            "GFLOP/s",
            3,
            || {
                let limit = peak();
                (
                    limit,
                    operations
                        / seconds(|| self.ops.attention(&q, &keys, &values, HEADS, &mut out)),
                )
            },
        );
    }

    fn decode_attention(&self, positions: usize, read: &dyn Fn() -> f64) {
        let q = activations(QUERY);
        // layers of their own, as in a model, so that they come from memory
        let layers = (131_072 / positions).min(16);
        let caches: Vec<_> = (0..layers)
            .map(|_| (activations(positions * KEY), activations(positions * KEY)))
            .collect();
        let mut out = vec![0.0; q.len()];
        let bytes = float(layers * 2 * positions * KEY * 4);
        self.report(
            &format!("attention, 1 token of {positions}"),
            "GB/s",
            RUNS,
            || {
                let limit = read();
                let time = seconds(|| {
                    for (keys, values) in &caches {
                        self.ops.attention(&q, keys, values, HEADS, &mut out);
                    }
                });
                (limit, bytes / time)
            },
        );
    }

    fn rows(&self, read: &dyn Fn() -> f64) {
        let tokens = 512;
        let weight = activations(HIDDEN);
        let (cos, sin) = (
            activations(tokens * HEADS.width / 2),
            activations(tokens * HEADS.width / 2),
        );
        let (mut x, y) = (activations(tokens * QUERY), activations(tokens * QUERY));
        let (routed, hidden) = (tokens * BEST * EXPERT, tokens * HIDDEN);
        let mut gate = activations(routed);
        let up = activations(routed);
        let mut logits = activations(tokens * EXPERTS);
        let measure = |name: &str, bytes: usize, work: &mut dyn FnMut()| {
            self.report(name, "GB/s", RUNS, || {
                let limit = read();
                (limit, float(bytes) / seconds(&mut *work))
            });
        };
        measure("rms_norm", hidden * 8, &mut || {
            self.ops.rms_norm(&mut x[..hidden], &weight, 1e-6);
        });
        measure("rope", tokens * QUERY * 8, &mut || {
            self.ops.rope(&mut x, &cos, &sin, HEADS.width);
        });
        measure("silu_mul", routed * 12, &mut || {
            self.ops.silu_mul(&mut gate, &up);
        });
        measure("add", hidden * 12, &mut || {
            self.ops.add(&mut x[..hidden], &y[..hidden]);
        });
        measure("softmax", tokens * EXPERTS * 8, &mut || {
            self.ops.softmax(&mut logits, EXPERTS);
        });
    }
}
