//! A batch of linear layers, cut into tasks for rayon's current pool.

use segpack_formats::io::CancelToken;
use segpack_formats::numeric::FloatDtype;

use super::Kernels;
use super::gemm::{self, Gemm, Pack};
use super::gemv::{Gemv, pack_lanes};
use super::inputs::Inputs;
use super::panel::Rows;
use super::parallel::each;
use super::scratch::{Buffer, Key};
use super::shared::Columns;
use super::simd::LANES;
use super::skinny::{self, Skinny};
use super::tile::groups;
use crate::tensor::{Compute, Convolution, Linear, Matrix};

/// Bytes of weights of one task where there is one token.
const TASK_BYTES: usize = 128 << 10;
/// Most packed activations at a time, in f32 values: the bound is 8 MiB, or one block of
/// [`gemm::TOKENS`] tokens.
const PACKED: usize = 2 << 20;
/// Multiplications below which a batch is not worth a hand-over to other threads.
const SMALL: usize = 1 << 15;

/// A product, or some tokens of one.
struct Part<'a> {
    weight: Rows<'a>,
    bias: Option<&'a [f32]>,
    kind: Kind,
    x: Inputs<'a>,
    /// Where `x` is packed.
    packed: usize,
    out: Columns<'a>,
}

/// How a part is computed, and its `x` packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Gemm,
    Gemv,
    Skinny,
}

impl Kind {
    fn of(x: &Inputs<'_>, dtype: FloatDtype, kernels: Kernels, compute: Compute) -> Self {
        let is_bf16 = dtype == FloatDtype::BF16;
        let is_few = compute == Compute::F32 && x.rows() <= kernels.tokens().few;
        if is_bf16 && x.row().is_some() {
            Self::Gemv
        } else if is_bf16 && is_few && x.are_apart() {
            Self::Skinny
        } else {
            Self::Gemm
        }
    }
}

/// Computes all linear layers; some values are undefined once `stop` is requested.
///
/// # Panics
/// Where the sizes of a product do not fit together.
pub(crate) fn linears(
    kernels: Kernels,
    compute: Compute,
    linears: &mut [Linear<'_>],
    stop: &CancelToken,
) {
    let mut wave = Wave::new(kernels, compute, stop);
    for linear in linears {
        let Linear {
            x,
            weight,
            bias,
            out,
        } = linear;
        check(x, weight, *bias, out);
        if weight.columns == 0 {
            out.chunks_exact_mut(weight.rows.max(1))
                .for_each(|out| empty_sums(compute, *bias, out));
        } else if weight.rows > 0 {
            wave.product(Inputs::rows_of(x, weight.columns), *weight, *bias, out);
        }
    }
    wave.run();
}

/// As [`linears`], a convolution, whose inputs are packed from where they lie.
///
/// # Panics
/// As there.
pub(crate) fn convolution(
    kernels: Kernels,
    compute: Compute,
    convolution: Convolution<'_>,
    stop: &CancelToken,
) {
    let Convolution {
        x,
        channels,
        dilation,
        weight,
        bias,
        out,
    } = convolution;
    check_weight(&weight, bias);
    assert!(
        channels > 0 && weight.columns.is_multiple_of(channels) && weight.rows > 0,
        "a convolution of {channels} channels and a weight [{}, {}]",
        weight.rows,
        weight.columns
    );
    let x = Inputs::under_kernel(x, channels, dilation, weight.columns);
    assert_eq!(
        out.len(),
        x.rows() * weight.rows,
        "results of {} rows",
        x.rows()
    );
    let mut wave = Wave::new(kernels, compute, stop);
    wave.product(x, weight, bias, out);
    wave.run();
}

fn check(x: &[f32], weight: &Matrix<'_>, bias: Option<&[f32]>, out: &[f32]) {
    check_weight(weight, bias);
    let Matrix { rows, columns, .. } = *weight;
    let tokens = x
        .len()
        .checked_div(columns)
        .unwrap_or(out.len() / rows.max(1));
    assert_eq!(
        x.len(),
        tokens * columns,
        "inputs of a weight of {columns} columns"
    );
    assert_eq!(
        out.len(),
        tokens * rows,
        "outputs of a weight of {rows} rows for {tokens} tokens"
    );
}

fn check_weight(weight: &Matrix<'_>, bias: Option<&[f32]>) {
    let Matrix {
        dtype,
        bytes,
        rows,
        columns,
    } = *weight;
    assert_eq!(
        bytes.len(),
        rows * columns * dtype.byte_width(),
        "bytes of a weight [{rows}, {columns}]"
    );
    assert!(
        bias.is_none_or(|b| b.len() == rows),
        "values of a bias of {rows} rows"
    );
}

/// Sums over no column.
fn empty_sums(compute: Compute, bias: Option<&[f32]>, out: &mut [f32]) {
    match bias {
        Some(bias) => out
            .iter_mut()
            .zip(bias)
            .for_each(|(out, b)| *out = compute.round(*b)),
        None => out.fill(0.0),
    }
}

/// Parts whose packed activations fit into the buffer together.
struct Wave<'a> {
    kernels: Kernels,
    compute: Compute,
    stop: &'a CancelToken,
    parts: Vec<Part<'a>>,
    packed: usize,
}

impl<'a> Wave<'a> {
    fn new(kernels: Kernels, compute: Compute, stop: &'a CancelToken) -> Self {
        Self {
            kernels,
            compute,
            stop,
            parts: Vec::new(),
            packed: 0,
        }
    }

    /// Adds a product, some tokens at a time.
    fn product(
        &mut self,
        x: Inputs<'a>,
        weight: Matrix<'a>,
        bias: Option<&'a [f32]>,
        out: &'a mut [f32],
    ) {
        let weight = Rows {
            dtype: weight.dtype,
            bytes: weight.bytes,
            stride: weight.columns * weight.dtype.byte_width(),
            rows: weight.rows,
            columns: weight.columns,
        };
        let mut out = Columns::all(out, weight.rows);
        for first in (0..x.rows()).step_by(gemm::TOKENS) {
            let x = x.part(first, gemm::TOKENS.min(x.rows() - first));
            let kind = Kind::of(&x, weight.dtype, self.kernels, self.compute);
            let out = out.take_rows(x.rows());
            self.add(Part {
                weight,
                bias,
                kind,
                x,
                packed: 0,
                out,
            });
        }
    }

    fn add(&mut self, mut part: Part<'a>) {
        let same = |p: &&Part<'_>| p.kind == part.kind && p.x.is_same(&part.x);
        if let Some(packed) = self.parts.iter().rev().find(same).map(|p| p.packed) {
            part.packed = packed;
        } else {
            if self.packed > 0 && self.packed + part.x.len() > PACKED {
                self.run();
            }
            part.packed = self.packed;
            self.packed += part.x.len();
        }
        self.parts.push(part);
    }

    /// Computes what was added, and forgets it.
    fn run(&mut self) {
        let mut buffer = Buffer::take(Key::Batch);
        let buffer = buffer.values(self.packed);
        let work: usize = self.parts.iter().map(|p| p.x.len() * p.weight.rows).sum();
        self.pack(buffer);
        let tasks = self.tasks(buffer);
        let (kernels, compute) = (self.kernels, self.compute);
        each(tasks, work > SMALL, self.stop, |task| {
            task.run(kernels, compute);
        });
        self.packed = 0;
    }

    fn pack(&self, buffer: &mut [f32]) {
        let (kernels, compute) = (self.kernels, self.compute);
        let most = kernels.tokens();
        let mut packs = Vec::new();
        let mut rest = buffer;
        let mut done = 0;
        for part in &self.parts {
            if part.packed < done {
                continue; // another part packs the same
            }
            done = part.packed + part.x.len();
            let max = match part.kind {
                Kind::Skinny => most.beside,
                Kind::Gemm | Kind::Gemv => most.tile,
            };
            for (first, tokens) in groups(part.x.rows(), max) {
                let x = part.x.part(first, tokens);
                let (to, after) = rest.split_at_mut(x.len());
                packs.push((part.kind, Pack { x, compute, to }));
                rest = after;
            }
        }
        each(packs, done > SMALL, self.stop, |(kind, pack)| {
            match (kind, compute, pack.x.row()) {
                (Kind::Gemv, Compute::F32, Some(x)) => pack_lanes(x, pack.to),
                (Kind::Gemv, Compute::Bf16, Some(x)) => pack.to.copy_from_slice(x),
                (Kind::Skinny, ..) => skinny::pack(pack.x, pack.to),
                _ => kernels.run(pack),
            }
        });
    }

    fn tasks<'b>(&mut self, packed: &'b [f32]) -> Vec<Task<'b>>
    where
        'a: 'b,
    {
        let mut tasks: Vec<Task<'b>> = Vec::new();
        for mut part in self.parts.drain(..) {
            let rows = part.rows_of_a_task();
            for first in (0..part.weight.rows).step_by(rows) {
                let weight = part.weight.part(first, rows, 0, part.weight.columns);
                if let Some(before) = tasks.last_mut() {
                    before.ahead = &weight.bytes[..weight.rows * weight.stride];
                }
                let x = &packed[part.packed..][..part.x.len()];
                let bias = part.bias.map(|b| &b[first..first + weight.rows]);
                let out = part.out.take(weight.rows);
                tasks.push(Task {
                    weight,
                    x,
                    tokens: part.x.rows(),
                    kind: part.kind,
                    bias,
                    out,
                    ahead: &[],
                });
            }
        }
        tasks
    }
}

impl Part<'_> {
    fn rows_of_a_task(&self) -> usize {
        match self.kind {
            Kind::Gemm => gemm::ROWS,
            Kind::Gemv | Kind::Skinny => (TASK_BYTES / self.weight.stride)
                .next_multiple_of(LANES)
                .max(LANES),
        }
    }
}

/// Some rows of a weight, times all tokens of a part.
struct Task<'a> {
    weight: Rows<'a>,
    x: &'a [f32],
    tokens: usize,
    kind: Kind,
    bias: Option<&'a [f32]>,
    out: Columns<'a>,
    /// The weights of the next task.
    ahead: &'a [u8],
}

impl Task<'_> {
    fn run(self, kernels: Kernels, compute: Compute) {
        let Self {
            weight,
            x,
            tokens,
            kind,
            bias,
            mut out,
            ahead,
        } = self;
        match kind {
            Kind::Gemv => kernels.run(Gemv {
                weight,
                x,
                bias,
                out: out.row(0),
                ahead,
                compute,
            }),
            Kind::Skinny => kernels.run(Skinny {
                weight,
                x,
                tokens,
                bias,
                out,
                ahead,
            }),
            Kind::Gemm => kernels.run(Gemm {
                weight,
                x,
                tokens,
                bias,
                out,
                ahead,
                compute,
            }),
        }
    }
}
