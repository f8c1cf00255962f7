//! A batch of linear layers, cut into tasks for rayon's current pool.

use segpack_formats::io::CancelToken;
use segpack_formats::numeric::FloatDtype;

#[cfg(target_arch = "x86_64")]
use super::amx::{self, Amx, Tiles};
#[cfg(target_arch = "x86_64")]
use super::avx512::Avx512;
#[cfg(target_arch = "aarch64")]
use super::bfmmla::{self, Bfmmla};
use super::gemm::{self, Gemm, Pack, Packed};
use super::gemv::{Gemv, pack_lanes};
use super::inputs::Inputs;
#[cfg(target_arch = "x86_64")]
use super::pairs::{self, Pairs};
use super::panel::Rows;
use super::parallel::each;
use super::product::Product;
use super::scratch::{Buffer, Key};
use super::shared::Columns;
use super::simd::LANES;
use super::skinny::{self, Skinny};
use super::taps::{Layout, TapInputs, Turn};
use super::tile::{Anywhere, groups};
use super::{Bf16Products, Kernels, Tokens};
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
    x: Source<'a>,
    /// Where `x` is packed.
    packed: usize,
    /// As how many values.
    values: usize,
    /// Rows of the result.
    tokens: usize,
    out: Columns<'a>,
    /// As in [`Gemm`].
    adds: bool,
}

/// Activations, and how they are packed.
#[derive(Debug, Clone, Copy)]
enum Source<'a> {
    /// As the kernel takes them.
    Rows(Inputs<'a>),
    /// Of a convolution, for [`Kind::Gemm`].
    Taps(&'a Layout, TapInputs<'a>),
    /// Of a convolution, for [`Kind::Tiles`].
    #[cfg(target_arch = "x86_64")]
    TapPieces(&'a amx::Layout, TapInputs<'a>),
}

/// How the inputs of a convolution are packed.
enum TapLayout {
    Values(Layout),
    #[cfg(target_arch = "x86_64")]
    Pieces(Amx, amx::Layout),
}

impl TapLayout {
    /// For a weight, and so many rows of inputs at most; it does not depend on how many they are.
    fn new(
        kernels: Kernels,
        compute: Compute,
        weight: &Matrix<'_>,
        [channels, dilation]: [usize; 2],
        rows: usize,
    ) -> Self {
        #[cfg(target_arch = "x86_64")]
        if let (Bf16Products::Tiles(amx), Compute::F32, FloatDtype::BF16) =
            (kernels.bf16, compute, weight.dtype)
            && let Some(layout) = amx::Layout::new(channels, dilation, rows)
        {
            return Self::Pieces(amx, layout);
        }
        // elsewhere nothing asks for them
        let _ = kernels;
        Self::Values(Layout::new(
            compute,
            [channels, dilation, weight.columns],
            rows,
        ))
    }

    fn kind(&self) -> Kind {
        match self {
            Self::Values(_) => Kind::Gemm,
            #[cfg(target_arch = "x86_64")]
            Self::Pieces(amx, _) => Kind::Tiles(*amx),
        }
    }

    fn source<'a>(&'a self, x: TapInputs<'a>) -> Source<'a> {
        match self {
            Self::Values(layout) => Source::Taps(layout, x),
            #[cfg(target_arch = "x86_64")]
            Self::Pieces(_, layout) => Source::TapPieces(layout, x),
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Values(layout) => layout.len(),
            #[cfg(target_arch = "x86_64")]
            Self::Pieces(_, layout) => layout.len(),
        }
    }
}

/// How a part is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Gemm,
    Gemv,
    Skinny,
    #[cfg(target_arch = "x86_64")]
    Pairs(Avx512<true>),
    #[cfg(target_arch = "x86_64")]
    Tiles(Amx),
    #[cfg(target_arch = "aarch64")]
    Blocks(Bfmmla),
}

impl Kind {
    fn of(x: &Inputs<'_>, dtype: FloatDtype, kernels: Kernels, compute: Compute) -> Self {
        let is_bf16 = dtype == FloatDtype::BF16;
        if is_bf16 {
            match (kernels.bf16, compute) {
                #[cfg(target_arch = "x86_64")]
                (Bf16Products::Tiles(amx), _) => return Self::Tiles(amx),
                #[cfg(target_arch = "x86_64")]
                (Bf16Products::Pairs(pairs), Compute::Bf16) => return Self::Pairs(pairs),
                #[cfg(target_arch = "aarch64")]
                (Bf16Products::Blocks(bfmmla), Compute::Bf16) => return Self::Blocks(bfmmla),
                _ => {}
            }
        }
        let is_few = compute == Compute::F32 && x.rows() <= kernels.tokens().few;
        if is_bf16 && x.rows() == 1 {
            Self::Gemv
        } else if is_bf16 && is_few {
            Self::Skinny
        } else {
            Self::Gemm
        }
    }

    /// As how many values `x` is packed.
    fn packed(self, compute: Compute, x: &Source<'_>) -> usize {
        match (self, x) {
            #[cfg(target_arch = "x86_64")]
            (Self::Pairs(_), Source::Rows(x)) => x.rows() * pairs::pairs(x.columns()),
            #[cfg(target_arch = "x86_64")]
            (Self::Tiles(_), Source::Rows(x)) => {
                let groups = amx::Group::of(compute, x.rows(), x.columns());
                groups.map(|group| group.len(x.columns())).sum()
            }
            #[cfg(target_arch = "aarch64")]
            (Self::Blocks(_), Source::Rows(x)) => bfmmla::packed(x.rows(), x.columns()),
            (_, Source::Rows(x)) => x.len(),
            (_, Source::Taps(layout, _)) => layout.len(),
            #[cfg(target_arch = "x86_64")]
            (_, Source::TapPieces(layout, _)) => layout.len(),
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
            wave.product(Inputs::new(x, weight.columns), *weight, *bias, out);
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
        before,
        x,
        snake,
        channels,
        dilation,
        weight,
        bias,
        out,
        adds,
    } = convolution;
    check_weight(&weight, bias);
    assert!(
        channels > 0 && weight.columns.is_multiple_of(channels) && weight.rows > 0,
        "a convolution of {channels} channels and a weight [{}, {}]",
        weight.rows,
        weight.columns
    );
    if let Some(snake) = &snake {
        let factors = [snake.alpha, snake.inverse_beta].map(<[f32]>::len);
        assert_eq!(factors, [channels; 2], "factors of {channels} channels");
    }
    let x = TapInputs {
        before: Inputs::new(before, channels),
        x: Inputs::new(x, channels),
        snake,
    };
    let history = (weight.columns / channels).saturating_sub(1) * dilation;
    let tokens = x.rows().saturating_sub(history);
    assert_eq!(out.len(), tokens * weight.rows, "results of {tokens} rows");
    let rows = history + tokens.min(gemm::TOKENS);
    let layout = TapLayout::new(kernels, compute, &weight, [channels, dilation], rows);
    let mut wave = Wave::new(kernels, compute, stop);
    let mut out = Columns::all(out, weight.rows);
    for first in (0..tokens).step_by(gemm::TOKENS) {
        let tokens = gemm::TOKENS.min(tokens - first);
        wave.add(Part {
            weight: rows_of(weight),
            bias,
            kind: layout.kind(),
            x: layout.source(x.part(first, history + tokens)),
            packed: 0,
            values: layout.len(),
            tokens,
            out: out.take_rows(tokens),
            adds,
        });
    }
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
        let mut out = Columns::all(out, weight.rows);
        for first in (0..x.rows()).step_by(gemm::TOKENS) {
            let tokens = gemm::TOKENS.min(x.rows() - first);
            let x = x.part(first, tokens);
            let kind = Kind::of(&x, weight.dtype, self.kernels, self.compute);
            let x = Source::Rows(x);
            self.add(Part {
                weight: rows_of(weight),
                bias,
                kind,
                x,
                packed: 0,
                values: kind.packed(self.compute, &x),
                tokens,
                out: out.take_rows(tokens),
                adds: false,
            });
        }
    }

    fn add(&mut self, mut part: Part<'a>) {
        let before = self.parts.iter().rev().find(|p| p.packs_the_same(&part));
        if let Some(packed) = before.map(|p| p.packed) {
            part.packed = packed;
        } else {
            if self.packed > 0 && self.packed + part.values > PACKED {
                self.run();
            }
            part.packed = self.packed;
            self.packed += part.values;
        }
        self.parts.push(part);
    }

    /// Computes what was added, and forgets it.
    fn run(&mut self) {
        let mut buffer = Buffer::take(Key::Batch);
        let buffer = buffer.values(self.packed);
        let work: usize = self.parts.iter().map(Part::products).sum();
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
        let mut packs = Vec::new();
        let mut rest = buffer;
        let mut done = 0;
        for part in &self.parts {
            if part.packed < done {
                continue; // another part packs the same
            }
            let (to, after) = rest.split_at_mut(part.values);
            done += to.len();
            part.packs(kernels, compute, to, &mut packs);
            rest = after;
        }
        each(packs, done > SMALL, self.stop, |pack| {
            pack.run(kernels, compute);
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
                    before.product.ahead = &weight.bytes[..weight.rows * weight.stride];
                }
                let x = &packed[part.packed..][..part.values];
                let bias = part.bias.map(|b| &b[first..first + weight.rows]);
                let out = part.out.take(weight.rows);
                tasks.push(Task {
                    product: Product {
                        weight,
                        x,
                        tokens: part.tokens,
                        bias,
                        out,
                        ahead: &[],
                    },
                    kind: part.kind,
                    source: part.x,
                    adds: part.adds,
                });
            }
        }
        tasks
    }
}

fn rows_of(weight: Matrix<'_>) -> Rows<'_> {
    Rows {
        dtype: weight.dtype,
        bytes: weight.bytes,
        stride: weight.columns * weight.dtype.byte_width(),
        rows: weight.rows,
        columns: weight.columns,
    }
}

impl<'a> Part<'a> {
    /// Multiply-adds.
    fn products(&self) -> usize {
        self.tokens * self.weight.columns * self.weight.rows
    }

    /// Whether the packed `x` of this part is that of the other.
    fn packs_the_same(&self, other: &Self) -> bool {
        match (self.x, other.x) {
            (Source::Rows(x), Source::Rows(other_x)) => {
                self.kind == other.kind && x.is_same(&other_x)
            }
            _ => false,
        }
    }

    /// Adds what packs `x`.
    fn packs<'b>(
        &self,
        kernels: Kernels,
        compute: Compute,
        to: &'b mut [f32],
        packs: &mut Vec<PackTask<'b>>,
    ) where
        'a: 'b,
    {
        let x = match self.x {
            Source::Rows(x) => x,
            Source::Taps(layout, x) => {
                packs.extend(layout.turns(x, compute, to).map(PackTask::Taps));
                return;
            }
            #[cfg(target_arch = "x86_64")]
            Source::TapPieces(layout, x) => {
                packs.extend(layout.turns(x, to).map(PackTask::TapPieces));
                return;
            }
        };
        let Tokens { tile, beside, .. } = kernels.tokens();
        match self.kind {
            #[cfg(target_arch = "x86_64")]
            Kind::Tiles(_) => packs.extend(tiles(compute, x, to)),
            #[cfg(target_arch = "x86_64")]
            Kind::Pairs(_) => packs.extend(in_groups(x, to, tile).map(pairs_of_a_group)),
            #[cfg(target_arch = "aarch64")]
            Kind::Blocks(_) => {
                packs.extend(bfmmla::packs(x, to).into_iter().map(PackTask::Blocks));
            }
            Kind::Gemv => packs.push(PackTask::Row(x.row(0), to)),
            Kind::Skinny => {
                let groups = in_groups(x, to, beside);
                packs.extend(groups.map(|(x, to)| PackTask::Few(x, to)));
            }
            Kind::Gemm => {
                let groups = in_groups(x, to, tile);
                packs.extend(groups.map(|(x, to)| PackTask::Group(x, to)));
            }
        }
    }

    fn rows_of_a_task(&self) -> usize {
        match self.kind {
            Kind::Gemm => gemm::ROWS,
            #[cfg(target_arch = "x86_64")]
            Kind::Pairs(_) => gemm::ROWS,
            #[cfg(target_arch = "aarch64")]
            Kind::Blocks(_) => gemm::ROWS,
            #[cfg(target_arch = "x86_64")]
            Kind::Tiles(_) => amx::rows_of_a_task(&self.weight, self.tokens),
            Kind::Gemv | Kind::Skinny => (TASK_BYTES / self.weight.stride)
                .next_multiple_of(LANES)
                .max(LANES),
        }
    }
}

/// Inputs that are packed, and where to.
enum PackTask<'a> {
    Row(&'a [f32], &'a mut [f32]),
    Few(Inputs<'a>, &'a mut [f32]),
    Group(Inputs<'a>, &'a mut [f32]),
    #[cfg(target_arch = "x86_64")]
    Pairs(pairs::Pack<'a>),
    #[cfg(target_arch = "x86_64")]
    Tile(amx::Pack<'a>),
    #[cfg(target_arch = "aarch64")]
    Blocks(bfmmla::Pack<'a>),
    Taps(Turn<'a>),
    #[cfg(target_arch = "x86_64")]
    TapPieces(amx::Turn<'a>),
}

/// Rows in groups of at most `max`, each with its part of `to`.
fn in_groups<'a>(
    x: Inputs<'a>,
    to: &'a mut [f32],
    max: usize,
) -> impl Iterator<Item = (Inputs<'a>, &'a mut [f32])> {
    let of_a_row = to.len() / x.rows();
    let mut rest = to;
    groups(x.rows(), max).map(move |(first, rows)| {
        let (to, after) = std::mem::take(&mut rest).split_at_mut(rows * of_a_row);
        rest = after;
        (x.part(first, rows), to)
    })
}

/// What packs a group for [`Kind::Pairs`].
#[cfg(target_arch = "x86_64")]
fn pairs_of_a_group<'a>((x, to): (Inputs<'a>, &'a mut [f32])) -> PackTask<'a> {
    let tokens = x.rows();
    PackTask::Pairs(pairs::Pack { x, tokens, to })
}

/// What packs rows for [`Kind::Tiles`].
#[cfg(target_arch = "x86_64")]
fn tiles<'a>(compute: Compute, x: Inputs<'a>, to: &'a mut [f32]) -> Vec<PackTask<'a>> {
    let mut packs = Vec::new();
    let mut rest = to;
    for group in amx::Group::of(compute, x.rows(), x.columns()) {
        let (to, after) = rest.split_at_mut(group.len(x.columns()));
        packs.extend(group.packs(x, to).map(PackTask::Tile));
        rest = after;
    }
    packs
}

impl PackTask<'_> {
    fn run(self, kernels: Kernels, compute: Compute) {
        match self {
            Self::Row(x, to) => match compute {
                Compute::F32 => pack_lanes(x, to),
                Compute::Bf16 => to.copy_from_slice(x),
            },
            Self::Few(x, to) => skinny::pack(x, to),
            Self::Group(x, to) => kernels.run(Pack { x, compute, to }),
            #[cfg(target_arch = "x86_64")]
            Self::Pairs(pack) => kernels.run(pack),
            #[cfg(target_arch = "x86_64")]
            Self::Tile(pack) => kernels.run(pack),
            #[cfg(target_arch = "aarch64")]
            Self::Blocks(pack) => pack.run(),
            Self::Taps(turn) => kernels.run(turn),
            #[cfg(target_arch = "x86_64")]
            Self::TapPieces(turn) => kernels.run(turn),
        }
    }
}

/// Some rows of a weight, times all tokens of a part.
struct Task<'a> {
    product: Product<'a>,
    kind: Kind,
    /// What was packed.
    source: Source<'a>,
    /// As in [`Gemm`].
    adds: bool,
}

impl Task<'_> {
    fn run(self, kernels: Kernels, compute: Compute) {
        let Self {
            product,
            kind,
            source,
            adds,
        } = self;
        match kind {
            #[cfg(target_arch = "x86_64")]
            Kind::Pairs(instructions) => instructions.run(Pairs(product)),
            #[cfg(target_arch = "x86_64")]
            Kind::Tiles(amx) => kernels.run(Tiles {
                amx,
                compute,
                product,
                taps: match source {
                    Source::TapPieces(layout, _) => Some(layout),
                    Source::Rows(_) | Source::Taps(..) => None,
                },
                adds,
            }),
            #[cfg(target_arch = "aarch64")]
            Kind::Blocks(bfmmla) => bfmmla.run(product),
            Kind::Skinny => kernels.run(Skinny(product)),
            Kind::Gemv => {
                let Product {
                    weight,
                    x,
                    bias,
                    mut out,
                    ahead,
                    ..
                } = product;
                kernels.run(Gemv {
                    weight,
                    x,
                    bias,
                    out: out.row(0),
                    ahead,
                    compute,
                });
            }
            Kind::Gemm => {
                let Product {
                    weight,
                    x,
                    tokens,
                    bias,
                    out,
                    ahead,
                } = product;
                kernels.run(Gemm {
                    weight,
                    x: match source {
                        Source::Taps(layout, _) => Packed::Anywhere(Anywhere {
                            values: x,
                            places: layout.places(),
                        }),
                        _ => Packed::Groups(x),
                    },
                    tokens,
                    bias,
                    out,
                    adds,
                    ahead,
                    compute,
                });
            }
        }
    }
}
