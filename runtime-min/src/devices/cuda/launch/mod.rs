//! One function per operation: checks that the operands fit together, and queues the kernels.

use std::ops::Range;

use segpack_formats::numeric::FloatDtype;

use super::driver::{self, Argument, CudaError, Experts, Gpu, Place, Products};
use crate::tensor::{Compute, Heads};

use Argument::{Float, Int, Long};

/// Tokens up to which products go row by row.
pub(super) const FEW_TOKENS: usize = 4;
/// The widest heads that attention takes.
pub(super) const MOST_HEAD_WIDTH: usize = 128;
/// Dynamic shared memory that every device gives a block that asks for it: 99 KiB (8.6, 8.9 and
/// 12.x give no more), less what a kernel declares itself.
const SHARED_BYTES: usize = 98 << 10;
/// Threads of a block that multiplies row by row, and its warps.
const GEMV_THREADS: u32 = 256;
const GEMV_WARPS: usize = 8;
/// Columns that a warp loads at a time (dot.cuh).
const WARP_COLUMNS: usize = 256;
/// Blocks of dense products row by row that a multiprocessor has at a time: more would only bring
/// their input again.
const GEMV_BLOCKS: usize = 4;
/// Rows of weights of a tile of many tokens, and the fewest and most tokens of one (gemm.cu).
const TILE_ROWS: usize = 128;
const LEAST_TILE: usize = 64;
const MOST_TILE: usize = 128;
/// Shared memory of such a tile: two steps of `fma`, three stages of `mma` of up to 64 tokens, then
/// 128.
const FMA_SHARED: usize = 2 * 8 * (MOST_TILE + TILE_ROWS) * 4;
const MMA_SHARED: [usize; 2] = [
    3 * 64 * (LEAST_TILE + TILE_ROWS) * 2,
    3 * 32 * (MOST_TILE + TILE_ROWS) * 2,
];
/// Query heads of a block of `attention_parts`, and its shared memory in values.
const DECODE_HEADS: usize = 8;
const DECODE_SHARED: usize = (8 + 4 + 8 * 8) * MOST_HEAD_WIDTH + 2 * 16 * 8;
/// Positions that `attention_whole` takes, and its shared memory in values.
pub(super) const WHOLE_POSITIONS: usize = 1024;
const WHOLE_SHARED: usize = (1 + 4 + 8) * MOST_HEAD_WIDTH + WHOLE_POSITIONS + 2 * 8;
/// Tokens of a block of `attention_tokens`, and its shared memory in values.
const PREFILL_TOKENS: usize = 64;
const PREFILL_SHARED: usize = (64 + 2 * 32) * (MOST_HEAD_WIDTH + 4) + 64 * (32 + 4);
/// Tokens of a block of `attention_mma`; its shared memory has three tiles of so many rows.
const MMA_TOKENS: usize = 64;
const MMA_STAGES: usize = 3;
/// Heads up to this width take the narrow one.
const NARROW_HEAD: usize = 64;
/// Most parts that the positions of decoding's attention are cut into.
pub(super) const MOST_PARTS: usize = 32;
/// Most blocks that look for the greatest logit.
const ARGMAX_PARTS: usize = 256;
/// Bytes of what `argmax` keeps in between.
pub(super) const ARGMAX_BYTES: usize = ARGMAX_PARTS * 8;

/// Values on the device: activations, which are f32, or bf16 under bf16 compute; or f32 in between.
#[derive(Debug, Clone, Copy)]
pub(super) struct Values {
    pub(super) place: Place,
    pub(super) len: usize,
    /// Bytes of each.
    pub(super) width: usize,
}

impl Values {
    /// f32 values.
    pub(super) fn f32(place: Place, len: usize) -> Self {
        Self {
            place,
            len,
            width: size_of::<f32>(),
        }
    }

    /// Activations.
    pub(super) fn activations(compute: Compute, place: Place, len: usize) -> Self {
        Self {
            place,
            len,
            width: activation_bytes(compute),
        }
    }

    pub(super) fn part(self, range: Range<usize>) -> Self {
        assert!(
            range.start <= range.end && range.end <= self.len,
            "{range:?} of {}",
            self.len
        );
        Self {
            place: self.place.byte(range.start * self.width),
            len: range.len(),
            ..self
        }
    }

    fn argument(self) -> Argument {
        Argument::Place(self.place)
    }
}

/// A vector or matrix of weights on the device.
#[derive(Debug, Clone, Copy)]
pub(super) struct Weights {
    pub(super) place: Place,
    pub(super) dtype: FloatDtype,
    pub(super) rows: usize,
    pub(super) columns: usize,
}

impl Weights {
    fn argument(self) -> Argument {
        Argument::Place(self.place)
    }
}

/// The number that the kernels know a dtype by, and the end of their names.
fn kind(dtype: FloatDtype) -> (i32, usize) {
    match dtype {
        FloatDtype::BF16 => (0, 0),
        FloatDtype::F16 => (1, 1),
        FloatDtype::F32 => (2, 2),
    }
}

macro_rules! by_dtype {
    ($dtype:expr, $name:literal) => {
        [
            concat!($name, "_bf16"),
            concat!($name, "_f16"),
            concat!($name, "_f32"),
        ][kind($dtype).1]
    };
}

/// A product: weight, bias, result.
pub(super) type Linear = (Weights, Option<Weights>, Values);

/// Where the router's choice lies, for `tokens · best` pairs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Choice {
    /// `[tokens, experts]`, f32.
    pub(super) probabilities: Place,
    /// `[tokens, best]`, u32.
    pub(super) ids: Place,
    /// `[tokens, best]`, f32.
    pub(super) weights: Place,
    /// `[tokens, best]`, u32.
    pub(super) order: Place,
    /// `[experts]`, u32.
    pub(super) counts: Place,
    /// `[tokens, best]`, u32.
    pub(super) sorted: Place,
    /// [`tiles_bytes`].
    pub(super) tiles: Place,
    /// `[experts]`, u32, counts the passes that use each; or null.
    pub(super) uses: Place,
}

impl Choice {
    fn argument(self) -> Argument {
        Argument::Choice(driver::Choice {
            probabilities: self.probabilities.0,
            ids: self.ids.0,
            weights: self.weights.0,
            order: self.order.0,
            uses: self.uses.0,
        })
    }
}

/// Bytes of the list of tiles that experts with so many pairs can have.
pub(super) fn tiles_bytes(pairs: usize, experts: usize) -> usize {
    (1 + most_tiles(pairs, experts, LEAST_TILE)) * 16
}

fn most_tiles(pairs: usize, experts: usize, tile: usize) -> usize {
    pairs / tile + experts.min(pairs)
}

/// Tokens of an expert's tile. Larger ones want less of the caches, smaller ones leave room for
/// more blocks, which wait for memory side by side.
pub(super) fn expert_tile(pairs: usize, experts: usize) -> usize {
    if pairs > experts * LEAST_TILE {
        MOST_TILE
    } else {
        LEAST_TILE
    }
}

/// Tokens of a tile of so many rows of tiles: the most where every multiprocessor still has one, so
/// that each reads as little as it can for what it computes.
pub(super) fn dense_tile(tokens: usize, rows: usize, multiprocessors: usize) -> usize {
    let blocks = |tile: usize| tokens.div_ceil(tile) * rows;
    if tokens > LEAST_TILE && blocks(MOST_TILE) >= multiprocessors {
        MOST_TILE
    } else if 2 * blocks(LEAST_TILE) >= multiprocessors {
        LEAST_TILE
    } else {
        LEAST_TILE / 2
    }
}

/// The experts of a layer: sizes, and the table of their matrices.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layer {
    pub(super) table: Place,
    pub(super) dtype: FloatDtype,
    pub(super) experts: usize,
    pub(super) best: usize,
    pub(super) hidden: usize,
    pub(super) inner: usize,
}

impl Layer {
    /// Whether so many tokens go through the experts row by row.
    fn is_few(&self, tokens: usize) -> bool {
        Launch::is_few(tokens, self.hidden) && Launch::is_few(tokens, self.inner)
    }
}

/// What attention reads.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cache {
    pub(super) keys: Values,
    pub(super) values: Values,
    /// Positions cached before this pass, an i32 on the device.
    pub(super) position: Place,
}

impl Cache {
    fn arguments(self) -> [Argument; 3] {
        [
            Argument::Place(self.position),
            self.keys.argument(),
            self.values.argument(),
        ]
    }
}

/// Norms and turns of the heads of q and k.
#[derive(Debug, Clone, Copy)]
pub(super) struct Turns {
    pub(super) q_norm: Weights,
    pub(super) k_norm: Weights,
    /// `[positions, width / 2]`.
    pub(super) cos: Values,
    pub(super) sin: Values,
    pub(super) eps: f32,
}

/// Bytes of an activation.
pub(super) fn activation_bytes(compute: Compute) -> usize {
    match compute {
        Compute::F32 => 4,
        Compute::Bf16 => 2,
    }
}

/// An RMS norm: of `x + added`, which `sum` becomes, or of `x`. `sum` may be `x` only where the
/// norm is alone.
#[derive(Debug, Clone, Copy)]
pub(super) struct Norm {
    pub(super) weight: Weights,
    pub(super) eps: f32,
    /// What is added, and where the sum goes.
    pub(super) added: Option<(Values, Values)>,
    pub(super) normed: Values,
}

impl Norm {
    /// For the kernels. `x` is what is normed.
    fn argument(this: Option<&Self>, x: Values, alone: bool) -> Argument {
        let Some(norm) = this else {
            return Argument::Norm(driver::Norm::default());
        };
        assert!(
            norm.normed.len == x.len && x.len.is_multiple_of(norm.weight.rows),
            "{norm:?} of {}",
            x.len
        );
        if let Some((added, sum)) = norm.added {
            assert!(
                added.len == x.len && sum.len == x.len,
                "as many values to add"
            );
            assert!(alone || sum.place != x.place, "others still read x");
        }
        let [added, sum] = norm
            .added
            .map_or([Place::NULL; 2], |(added, sum)| [added.place, sum.place]);
        Argument::Norm(driver::Norm {
            added: added.0,
            weight: norm.weight.place.0,
            sum: sum.0,
            normed: norm.normed.place.0,
            kind: kind(norm.weight.dtype).0,
            eps: norm.eps,
        })
    }
}

/// A GPU at one precision.
#[derive(Debug, Clone, Copy)]
pub(super) struct Launch<'g> {
    pub(super) gpu: &'g Gpu,
    pub(super) compute: Compute,
}

fn int(n: usize) -> Argument {
    Int(i32::try_from(n).unwrap_or(i32::MAX))
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

impl Launch<'_> {
    fn rounds(&self) -> Argument {
        Int(i32::from(self.compute == Compute::Bf16))
    }

    /// Every function here gives kernels memory that it has compared with what they touch.
    fn queue(
        &self,
        name: &'static str,
        grid: [usize; 3],
        block: u32,
        shared: usize,
        arguments: &[Argument],
    ) -> Result<(), CudaError> {
        // SAFETY: the sizes of the operands are checked by the callers in this file, and `Memory`
        // waits before it is freed
        unsafe {
            self.gpu
                .launch(name, grid.map(count), block, count(shared), arguments)
        }
    }

    /// `x[t]` = row `ids[t]` of the embedding, ids below its rows.
    pub(super) fn embed(&self, table: Weights, ids: Place, x: Values) -> Result<(), CudaError> {
        let tokens = x.len / table.columns.max(1);
        let arguments = [
            table.argument(),
            Int(kind(table.dtype).0),
            Argument::Place(ids),
            int(table.columns),
            self.rounds(),
            x.argument(),
        ];
        self.queue("embed", [tokens, 1, 1], 256, 0, &arguments)
    }

    /// Rows of `x`, normed; see [`Norm`].
    pub(super) fn norm(&self, x: Values, norm: Norm) -> Result<(), CudaError> {
        let width = norm.weight.rows;
        let arguments = [
            x.argument(),
            Norm::argument(Some(&norm), x, true),
            int(width),
            self.rounds(),
        ];
        self.queue(
            "rms_norm",
            [x.len / width, 1, 1],
            GEMV_THREADS,
            input_bytes(width),
            &arguments,
        )
    }

    /// `to += x`.
    pub(super) fn add(&self, to: Values, x: Values) -> Result<(), CudaError> {
        assert_eq!(to.len, x.len);
        let arguments = [
            to.argument(),
            x.argument(),
            Long(to.len as u64),
            self.rounds(),
        ];
        self.queue("add", [to.len.div_ceil(256), 1, 1], 256, 0, &arguments)
    }

    /// `gate = silu(gate) · up`.
    pub(super) fn silu_mul(&self, gate: Values, up: Values) -> Result<(), CudaError> {
        assert_eq!(gate.len, up.len);
        let arguments = [
            gate.argument(),
            up.argument(),
            Long(gate.len as u64),
            self.rounds(),
        ];
        self.queue(
            "silu_mul",
            [gate.len.div_ceil(256), 1, 1],
            256,
            0,
            &arguments,
        )
    }

    /// Whether products of so many tokens go row by row, which can norm their input themselves.
    pub(super) fn is_few(tokens: usize, columns: usize) -> bool {
        tokens <= FEW_TOKENS && input_bytes(columns) <= SHARED_BYTES
    }

    /// Up to three products of the same `x`, whose weights have one dtype; after a norm, if they go
    /// row by row.
    pub(super) fn products(
        &self,
        x: Values,
        norm: Option<&Norm>,
        linears: &[Linear],
    ) -> Result<(), CudaError> {
        let Some((first, _, _)) = linears.first() else {
            return Ok(());
        };
        let (dtype, columns) = (first.dtype, first.columns);
        let tokens = x.len / columns.max(1);
        if !Self::is_few(tokens, columns) {
            assert!(
                norm.is_none(),
                "products of {tokens} tokens are normed before"
            );
            return self.products_in_tiles(x, linears, None);
        }
        let rows: usize = linears.iter().map(|l| l.0.rows).sum();
        let most = self.gpu.info().multiprocessors as usize * GEMV_BLOCKS;
        let grid = [rows.div_ceil(GEMV_WARPS).min(most.max(1)), tokens, 1];
        let (products, norm) = (of_one_input(x, linears), Norm::argument(norm, x, false));
        let arguments = [products, x.argument(), norm, int(columns), self.rounds()];
        self.queue(
            by_dtype!(dtype, "gemv"),
            grid,
            GEMV_THREADS,
            input_bytes(columns),
            &arguments,
        )
    }

    /// [`products`](Self::products) in tiles of so many tokens.
    pub(super) fn products_in_tiles(
        &self,
        x: Values,
        linears: &[Linear],
        tile: Option<usize>,
    ) -> Result<(), CudaError> {
        let Some((first, _, _)) = linears.first() else {
            return Ok(());
        };
        let (dtype, columns) = (first.dtype, first.columns);
        let tokens = x.len / columns;
        let rows: usize = linears.iter().map(|l| l.0.rows.div_ceil(TILE_ROWS)).sum();
        let multiprocessors = self.gpu.info().multiprocessors as usize;
        let tile = tile.unwrap_or_else(|| dense_tile(tokens, rows, multiprocessors));
        let arguments = vec![
            of_one_input(x, linears),
            x.argument(),
            int(columns),
            int(tokens),
            int(tile),
        ];
        let names = ["gemm_mma_64", "gemm_mma_128", by_dtype!(dtype, "gemm_fma")];
        self.tiles(
            names,
            dtype,
            tile,
            [tokens.div_ceil(tile), rows, 1],
            arguments,
        )
    }

    /// Queues tiles of so many tokens: by `mma` of up to 64 or 128 tokens, or by `fma`.
    fn tiles(
        &self,
        [small, large, fma]: [&'static str; 3],
        dtype: FloatDtype,
        tile: usize,
        grid: [usize; 3],
        mut arguments: Vec<Argument>,
    ) -> Result<(), CudaError> {
        if !self.uses_mma(dtype) {
            arguments.push(self.rounds());
            return self.queue(fma, grid, 256, FMA_SHARED, &arguments);
        }
        let (name, shared) = if tile <= LEAST_TILE {
            (small, MMA_SHARED[0])
        } else {
            (large, MMA_SHARED[1])
        };
        self.queue(name, grid, 128, shared, &arguments)
    }

    fn uses_mma(&self, dtype: FloatDtype) -> bool {
        self.compute == Compute::Bf16 && dtype == FloatDtype::BF16
    }

    /// Norms and turns the heads of q and k, puts k and v into the cache, and attends to all
    /// positions up to each token's: `out`. q may change. The cache is cut into so many `parts`
    /// where tokens are few; `partial` has room for
    /// [`partial_values`] and begins with [`counters`] zeros, as it then does again.
    pub(super) fn attend(
        &self,
        qkv: [Values; 3],
        heads: Heads,
        turns: Turns,
        cache: Cache,
        (parts, partial): (usize, Values),
        out: Values,
    ) -> Result<(), CudaError> {
        let Heads {
            query,
            key_value,
            width,
        } = heads;
        let [q, k, v] = qkv;
        let tokens = q.len / (query * width);
        assert!(
            q.len == tokens * query * width
                && k.len == v.len
                && k.len == tokens * key_value * width
        );
        assert!(
            turns.q_norm.rows == width && turns.k_norm.rows == width,
            "norms of {width} values"
        );
        assert!(width <= MOST_HEAD_WIDTH && out.len == q.len && cache.keys.len == cache.values.len);
        if tokens <= FEW_TOKENS {
            return self.attend_few(qkv, heads, turns, cache, (parts, partial), out);
        }
        let mut arguments = head_arguments(qkv, heads, turns);
        arguments.extend(cache.arguments());
        arguments.push(self.rounds());
        let grid = [tokens, (query + 2 * key_value).div_ceil(4), 1];
        self.queue("heads", grid, 128, 0, &arguments)?;
        self.attend_many(q, heads, cache, out)
    }

    /// Causal attention of the last tokens, whose heads are normed, over all positions.
    fn attend_many(
        &self,
        q: Values,
        heads: Heads,
        cache: Cache,
        out: Values,
    ) -> Result<(), CudaError> {
        let Heads {
            query,
            key_value,
            width,
        } = heads;
        let tokens = q.len / (query * width);
        let arguments = [
            q.argument(),
            cache.keys.argument(),
            cache.values.argument(),
            int(query),
            int(key_value),
            int(width),
            Float(scale(width)),
            Argument::Place(cache.position),
            int(tokens),
            out.argument(),
        ];
        if self.compute == Compute::F32 {
            let grid = [query, tokens.div_ceil(PREFILL_TOKENS), 1];
            return self.queue(
                "attention_tokens",
                grid,
                256,
                PREFILL_SHARED * 4,
                &arguments,
            );
        }
        let (name, width) = if width > NARROW_HEAD {
            ("attention_mma", MOST_HEAD_WIDTH)
        } else {
            ("attention_mma_narrow", NARROW_HEAD)
        };
        let shared = MMA_STAGES * MMA_TOKENS * width * 2;
        self.queue(
            name,
            [query, tokens.div_ceil(MMA_TOKENS), 1],
            128,
            shared,
            &arguments,
        )
    }

    /// All of `attend` in one kernel, or two under bf16 with several parts.
    fn attend_few(
        &self,
        qkv: [Values; 3],
        heads: Heads,
        turns: Turns,
        cache: Cache,
        (parts, partial): (usize, Values),
        out: Values,
    ) -> Result<(), CudaError> {
        let Heads {
            query,
            key_value,
            width,
        } = heads;
        let tokens = out.len / (query * width);
        let positions = cache.keys.len / (key_value * width);
        let room = partial_values(tokens, heads, self.compute, parts, positions);
        assert!(
            partial.len >= room,
            "{partial:?} for {parts} parts of {positions} positions"
        );
        assert!((1..=MOST_PARTS).contains(&parts), "{parts} parts");
        assert!(
            parts > 1 || positions <= WHOLE_POSITIONS,
            "{positions} positions in one part"
        );
        let mut arguments = head_arguments(qkv, heads, turns);
        arguments.push(Float(scale(width)));
        arguments.extend(cache.arguments());
        arguments.extend([
            self.rounds(),
            partial.argument(),
            int(positions),
            out.argument(),
        ]);
        if parts == 1 {
            return self.queue(
                "attention_whole",
                [query, tokens, 1],
                256,
                WHOLE_SHARED * 4,
                &arguments,
            );
        }
        let grid = [
            parts,
            tokens,
            key_value * (query / key_value).div_ceil(DECODE_HEADS),
        ];
        let names: &[&'static str] = match self.compute {
            Compute::F32 => &["attention_parts"],
            Compute::Bf16 => &["attention_sums", "attention_results"],
        };
        names
            .iter()
            .try_for_each(|name| self.queue(name, grid, 256, DECODE_SHARED * 4, &arguments))
    }

    /// Softmax of the router's logits, `[tokens, experts]`, and the best experts of every token.
    pub(super) fn route(
        &self,
        logits: Values,
        layer: Layer,
        normalise: bool,
        choice: Choice,
    ) -> Result<(), CudaError> {
        let arguments = [
            logits.argument(),
            int(layer.experts),
            int(layer.best),
            Int(i32::from(normalise)),
            self.rounds(),
            choice.argument(),
        ];
        let grid = [logits.len / layer.experts, 1, 1];
        self.queue("route", grid, 32, choice_bytes(layer), &arguments)
    }

    /// The router's product after a norm, then as [`route`](Self::route): one launch for few
    /// tokens. `arrived` has a number for each of them, which is 0.
    pub(super) fn router(
        &self,
        x: Values,
        norm: Option<&Norm>,
        linear: Linear,
        layer: Layer,
        normalise: bool,
        (choice, arrived): (Choice, Place),
    ) -> Result<(), CudaError> {
        let (weight, _, logits) = linear;
        let (columns, tokens) = (weight.columns, logits.len / weight.rows);
        assert!(
            Self::is_few(tokens, columns)
                && x.len == tokens * columns
                && weight.rows == layer.experts
        );
        let arguments = [
            Argument::Product(product(linear)),
            x.argument(),
            Norm::argument(norm, x, false),
            int(columns),
            int(layer.best),
            Int(i32::from(normalise)),
            self.rounds(),
            choice.argument(),
            Argument::Place(arrived),
        ];
        let grid = [weight.rows.div_ceil(GEMV_WARPS), tokens, 1];
        let shared = input_bytes(columns).max(choice_bytes(layer));
        self.queue(
            by_dtype!(weight.dtype, "router"),
            grid,
            GEMV_THREADS,
            shared,
            &arguments,
        )
    }

    /// `y[pair]` = the output of the pair's expert, for those experts that the table has now.
    /// `between` has room for `[pairs, inner]`, `y` for `[pairs, hidden]`.
    pub(super) fn experts(
        &self,
        x: Values,
        layer: Layer,
        choice: Choice,
        places: [Values; 2],
    ) -> Result<(), CudaError> {
        self.experts_in_tiles(x, layer, choice, places, None)
    }

    /// [`experts`](Self::experts), of many tokens in tiles of so many, as [`sort_in_tiles`](Self::sort_in_tiles) made them.
    pub(super) fn experts_in_tiles(
        &self,
        x: Values,
        layer: Layer,
        choice: Choice,
        [between, y]: [Values; 2],
        tile: Option<usize>,
    ) -> Result<(), CudaError> {
        let Layer {
            table,
            dtype,
            experts,
            best,
            hidden,
            inner,
        } = layer;
        let tokens = x.len / hidden;
        let pairs = tokens * best;
        assert!(
            between.len == pairs * inner && y.len == pairs * hidden,
            "{layer:?}"
        );
        let (table, ids) = (Argument::Place(table), Argument::Place(choice.ids));
        if layer.is_few(tokens) {
            self.gate_up(x, layer, choice, between)?;
            let arguments = [
                table,
                ids,
                between.argument(),
                int(inner),
                int(hidden),
                self.rounds(),
                y.argument(),
            ];
            let grid = [hidden.div_ceil(GEMV_WARPS), pairs, 1];
            let shared = input_bytes(inner);
            return self.queue(
                by_dtype!(dtype, "expert_down"),
                grid,
                GEMV_THREADS,
                shared,
                &arguments,
            );
        }
        let tile = tile.unwrap_or_else(|| expert_tile(pairs, experts));
        let run = |names,
                   x: Values,
                   out: Values,
                   [rows, columns, of_block]: [usize; 3],
                   divide: usize| {
            let of = Experts {
                table: layer.table.0,
                sorted: choice.sorted.0,
                tiles: choice.tiles.0,
                x: x.place.0,
                out: out.place.0,
                rows: i32::try_from(rows).unwrap_or(i32::MAX),
                columns: i32::try_from(columns).unwrap_or(i32::MAX),
                divide: i32::try_from(divide).unwrap_or(i32::MAX),
                padding: 0,
            };
            let grid = [rows.div_ceil(of_block), most_tiles(pairs, experts, tile), 1];
            self.tiles(names, dtype, tile, grid, vec![Argument::Experts(of)])
        };
        let gated = [
            "expert_gated_mma_64",
            "expert_gated_mma_128",
            by_dtype!(dtype, "expert_gated_fma"),
        ];
        run(gated, x, between, [inner, hidden, TILE_ROWS / 2], best)?;
        let down = [
            "expert_mma_64",
            "expert_mma_128",
            by_dtype!(dtype, "expert_fma"),
        ];
        run(down, between, y, [hidden, inner, TILE_ROWS], 1)
    }

    /// `gate[pair]` = silu(gate · x) · (up · x) of few tokens.
    fn gate_up(
        &self,
        x: Values,
        layer: Layer,
        choice: Choice,
        gate: Values,
    ) -> Result<(), CudaError> {
        let Layer {
            table,
            dtype,
            best,
            hidden,
            inner,
            ..
        } = layer;
        let arguments = [
            Argument::Place(table),
            Argument::Place(choice.ids),
            int(best),
            x.argument(),
            int(hidden),
            int(inner),
            self.rounds(),
            gate.argument(),
        ];
        let grid = [inner.div_ceil(GEMV_WARPS), gate.len / inner, 1];
        self.queue(
            by_dtype!(dtype, "expert_gate_up"),
            grid,
            GEMV_THREADS,
            input_bytes(hidden),
            &arguments,
        )
    }

    /// [`experts`](Self::experts) and [`combine`](Self::combine) of few tokens whose experts are all there, with the same
    /// bits: `added[t]`. False where it cannot be done in one.
    pub(super) fn all_experts(
        &self,
        x: Values,
        layer: Layer,
        choice: Choice,
        gate: Values,
        added: Values,
    ) -> Result<bool, CudaError> {
        let Layer {
            table,
            dtype,
            best,
            hidden,
            inner,
            ..
        } = layer;
        let tokens = x.len / hidden;
        assert!(
            gate.len == tokens * best * inner && added.len == x.len,
            "{layer:?}"
        );
        // inputs, and of each expert pointer, weight and offset
        let shared = best * (input_bytes(inner) + 16);
        if !layer.is_few(tokens) || shared > SHARED_BYTES {
            return Ok(false);
        }
        self.gate_up(x, layer, choice, gate)?;
        let arguments = [
            Argument::Place(table),
            Argument::Place(choice.ids),
            Argument::Place(choice.weights),
            Argument::Place(choice.order),
            int(best),
            gate.argument(),
            int(inner),
            int(hidden),
            self.rounds(),
            added.argument(),
        ];
        let grid = [hidden.div_ceil(GEMV_WARPS), tokens, 1];
        self.queue(
            by_dtype!(dtype, "expert_down_all"),
            grid,
            GEMV_THREADS,
            shared,
            &arguments,
        )?;
        Ok(true)
    }

    /// Counts the pairs of every expert and lists them in tiles, what [`experts`](Self::experts) of
    /// many tokens needs.
    pub(super) fn sort(
        &self,
        tokens: usize,
        layer: Layer,
        choice: Choice,
    ) -> Result<(), CudaError> {
        self.sort_in_tiles(tokens, layer, choice, None)
    }

    /// [`sort`](Self::sort), in tiles of so many.
    pub(super) fn sort_in_tiles(
        &self,
        tokens: usize,
        layer: Layer,
        choice: Choice,
        tile: Option<usize>,
    ) -> Result<(), CudaError> {
        let few = layer.is_few(tokens);
        if few && (tokens == 1 || choice.uses == Place::NULL) {
            return Ok(()); // nothing to list, and nothing left to count
        }
        // of one token `route` counted the uses
        let uses = if tokens == 1 {
            Place::NULL
        } else {
            choice.uses
        };
        let pairs = int(tokens * layer.best);
        let (ids, counts) = (Argument::Place(choice.ids), Argument::Place(choice.counts));
        self.queue(
            "expert_count",
            [layer.experts, 1, 1],
            256,
            0,
            &[ids, pairs, counts, Argument::Place(uses)],
        )?;
        if few {
            return Ok(());
        }
        let tile = tile.unwrap_or_else(|| expert_tile(tokens * layer.best, layer.experts));
        let arguments = [
            ids,
            pairs,
            counts,
            int(layer.experts),
            int(tile),
            Argument::Place(choice.sorted),
            Argument::Place(choice.tiles),
        ];
        self.queue("expert_sort", [layer.experts, 1, 1], 256, 0, &arguments)
    }

    /// `added[t]` = the weighted outputs of the token's experts, added in ascending order of
    /// experts.
    pub(super) fn combine(
        &self,
        y: Values,
        layer: Layer,
        choice: Choice,
        added: Values,
    ) -> Result<(), CudaError> {
        let tokens = added.len / layer.hidden;
        assert_eq!(y.len, tokens * layer.best * layer.hidden);
        let arguments = [
            y.argument(),
            Argument::Place(choice.weights),
            Argument::Place(choice.order),
            int(layer.best),
            int(layer.hidden),
            self.rounds(),
            added.argument(),
        ];
        self.queue(
            "expert_combine",
            [tokens, layer.hidden.div_ceil(128), 1],
            128,
            0,
            &arguments,
        )
    }

    /// The lowest id of the greatest of these logits becomes the next token, and one more position
    /// is counted.
    pub(super) fn argmax(
        &self,
        logits: Values,
        parts: Place,
        [id, position, logit]: [Place; 3],
    ) -> Result<(), CudaError> {
        let blocks = logits.len.div_ceil(1024).min(ARGMAX_PARTS);
        let parts = Argument::Place(parts);
        self.queue(
            "argmax_parts",
            [blocks, 1, 1],
            256,
            0,
            &[logits.argument(), int(logits.len), self.rounds(), parts],
        )?;
        let [id, position, logit] = [id, position, logit].map(Argument::Place);
        let arguments = [
            parts,
            int(blocks),
            id,
            position,
            logit,
            logits.argument(),
            self.rounds(),
        ];
        self.queue("argmax_next", [1, 1, 1], 32, 0, &arguments)
    }
}

/// Up to three products of the same input, for the kernels.
fn of_one_input(x: Values, linears: &[Linear]) -> Argument {
    let mut products = Products::default();
    for (to, (weight, bias, out)) in products.iter_mut().zip(linears) {
        let tokens = x.len / weight.columns.max(1);
        let first = linears[0].0;
        assert!(
            (weight.dtype, weight.columns) == (first.dtype, first.columns),
            "products of one input"
        );
        assert!(
            linears.len() <= 3 && tokens * weight.columns == x.len,
            "{x:?} for {weight:?}"
        );
        assert!(
            out.len == tokens * weight.rows && bias.is_none_or(|b| b.rows == weight.rows),
            "{out:?}"
        );
        *to = product((*weight, *bias, *out));
    }
    Argument::Products(products)
}

/// A product for the kernels.
fn product((weight, bias, out): Linear) -> driver::Product {
    driver::Product {
        weight: weight.place.0,
        bias: bias.map_or(0, |b| b.place.0),
        out: out.place.0,
        rows: i32::try_from(weight.rows).unwrap_or(i32::MAX),
        bias_type: bias.map_or(0, |b| kind(b.dtype).0),
    }
}

/// Shared memory of an input of so many values.
fn input_bytes(columns: usize) -> usize {
    columns.next_multiple_of(WARP_COLUMNS) * size_of::<f32>()
}

/// Shared memory of a choice of experts.
fn choice_bytes(layer: Layer) -> usize {
    assert!(layer.best <= layer.experts, "{layer:?}");
    (2 * layer.experts + layer.best) * size_of::<f32>()
}

/// What the kernels that norm heads want first.
fn head_arguments([q, k, v]: [Values; 3], heads: Heads, turns: Turns) -> Vec<Argument> {
    vec![
        q.argument(),
        k.argument(),
        v.argument(),
        turns.q_norm.argument(),
        Int(kind(turns.q_norm.dtype).0),
        turns.k_norm.argument(),
        Int(kind(turns.k_norm.dtype).0),
        turns.cos.argument(),
        turns.sin.argument(),
        Float(turns.eps),
        int(heads.query),
        int(heads.key_value),
        int(heads.width),
    ]
}

#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "applied in f32, as torch does"
)]
fn scale(width: usize) -> f32 {
    (width as f64).powf(-0.5) as f32
}

/// Counters, u32, at the start of what [`Launch::attend`] keeps in between; they must be 0.
pub(super) fn counters(heads: Heads) -> usize {
    FEW_TOKENS * heads.query
}

/// f32 values that [`Launch::attend`] of few tokens keeps in between.
pub(super) fn partial_values(
    tokens: usize,
    heads: Heads,
    compute: Compute,
    parts: usize,
    positions: usize,
) -> usize {
    if parts == 1 {
        return 0;
    }
    let scores = match compute {
        Compute::F32 => 0,
        Compute::Bf16 => positions.div_ceil(2),
    };
    counters(heads) + tokens.min(FEW_TOKENS) * heads.query * (parts * (2 + heads.width) + scores)
}
