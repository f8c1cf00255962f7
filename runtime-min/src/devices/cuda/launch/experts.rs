//! The experts of a layer: row by row of few tokens, sorted and in tiles of many.

use super::super::driver::Argument;
use super::super::driver::{CudaError, DevicePtr, Experts};
use super::linear::{MAX_TILE, MIN_TILE, TILE_ROWS};
use super::operands::{ExpertBlock, RouterBuffers, View, by_dtype, dtype_code};
use super::{GEMV_THREADS, GEMV_WARPS, Launch, SHARED_BYTES, input_bytes, int};

/// Bytes of the list of tiles that experts with so many pairs can have.
pub(in crate::devices::cuda) fn tiles_bytes(pairs: usize, experts: usize) -> usize {
    (1 + max_tiles(pairs, experts, MIN_TILE)) * 16
}

pub(super) fn max_tiles(pairs: usize, experts: usize, tile: usize) -> usize {
    pairs / tile + experts.min(pairs)
}

/// Tokens of an expert's tile. Larger ones want less of the caches, smaller ones leave room for
/// more blocks, which wait for memory side by side.
pub(in crate::devices::cuda) fn expert_tile(pairs: usize, experts: usize) -> usize {
    if pairs > experts * MIN_TILE {
        MAX_TILE
    } else {
        MIN_TILE
    }
}

/// One linear layer of all experts of a layer.
struct ExpertTiles {
    /// Kernels: `mma` of small tiles, of large ones, `fma`.
    names: [&'static str; 3],
    x: View,
    out: View,
    rows: usize,
    columns: usize,
    /// Rows of weights that a block takes.
    rows_of_block: usize,
    /// A pair's row of `x` is its number divided by this.
    divide: usize,
}

impl Launch<'_> {
    /// `y[pair]` = the output of the pair's expert, for those experts that the table has now.
    /// `between` has room for `[pairs, inner]`, `y` for `[pairs, hidden]`.
    pub(in crate::devices::cuda) fn experts(
        &self,
        x: View,
        layer: ExpertBlock,
        choice: RouterBuffers,
        places: [View; 2],
    ) -> Result<(), CudaError> {
        self.experts_in_tiles(x, layer, choice, places, None)
    }

    /// [`experts`](Self::experts), of many tokens in tiles of so many, as [`sort_in_tiles`](Self::sort_in_tiles) made them.
    pub(in crate::devices::cuda) fn experts_in_tiles(
        &self,
        x: View,
        layer: ExpertBlock,
        choice: RouterBuffers,
        [between, y]: [View; 2],
        tile: Option<usize>,
    ) -> Result<(), CudaError> {
        let ExpertBlock {
            table,
            dtype,
            experts,
            top_k,
            hidden,
            inner,
        } = layer;
        let tokens = x.len / hidden;
        let pairs = tokens * top_k;
        assert!(
            between.len == pairs * inner && y.len == pairs * hidden,
            "{layer:?}"
        );
        let (table, ids) = (Argument::Pointer(table), Argument::Pointer(choice.ids));
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
        let gated = ExpertTiles {
            names: [
                "expert_gated_mma_64",
                "expert_gated_mma_128",
                by_dtype!(dtype, "expert_gated_fma"),
            ],
            x,
            out: between,
            rows: inner,
            columns: hidden,
            rows_of_block: TILE_ROWS / 2,
            divide: top_k,
        };
        self.queue_expert_tiles(layer, choice, pairs, tile, &gated)?;
        let down = ExpertTiles {
            names: [
                "expert_mma_64",
                "expert_mma_128",
                by_dtype!(dtype, "expert_fma"),
            ],
            x: between,
            out: y,
            rows: hidden,
            columns: inner,
            rows_of_block: TILE_ROWS,
            divide: 1,
        };
        self.queue_expert_tiles(layer, choice, pairs, tile, &down)
    }

    /// Queues one linear layer of all experts, in tiles of so many tokens.
    fn queue_expert_tiles(
        &self,
        layer: ExpertBlock,
        choice: RouterBuffers,
        pairs: usize,
        tile: usize,
        tiles: &ExpertTiles,
    ) -> Result<(), CudaError> {
        let operands = Experts {
            table: layer.table.0,
            sorted: choice.sorted.0,
            tiles: choice.tiles.0,
            x: tiles.x.ptr.0,
            out: tiles.out.ptr.0,
            rows: i32::try_from(tiles.rows).unwrap_or(i32::MAX),
            columns: i32::try_from(tiles.columns).unwrap_or(i32::MAX),
            divide: i32::try_from(tiles.divide).unwrap_or(i32::MAX),
            padding: 0,
        };
        let blocks = tiles.rows.div_ceil(tiles.rows_of_block);
        let grid = [blocks, max_tiles(pairs, layer.experts, tile), 1];
        let arguments = vec![Argument::Experts(operands)];
        self.tiles(tiles.names, layer.dtype, tile, grid, arguments)
    }

    /// `gate[pair]` = silu(gate · x) · (up · x) of few tokens.
    pub(super) fn gate_up(
        &self,
        x: View,
        layer: ExpertBlock,
        choice: RouterBuffers,
        gate: View,
    ) -> Result<(), CudaError> {
        let ExpertBlock {
            table,
            dtype,
            top_k,
            hidden,
            inner,
            ..
        } = layer;
        let arguments = [
            Argument::Pointer(table),
            Argument::Pointer(choice.ids),
            int(top_k),
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
    pub(in crate::devices::cuda) fn all_experts(
        &self,
        x: View,
        layer: ExpertBlock,
        choice: RouterBuffers,
        gate: View,
        added: View,
    ) -> Result<bool, CudaError> {
        let ExpertBlock {
            table,
            dtype,
            top_k,
            hidden,
            inner,
            ..
        } = layer;
        let tokens = x.len / hidden;
        assert!(
            gate.len == tokens * top_k * inner && added.len == x.len,
            "{layer:?}"
        );
        // inputs, and of each expert pointer, weight and offset
        let shared = top_k * (input_bytes(inner) + 16);
        if !layer.is_few(tokens) || shared > SHARED_BYTES {
            return Ok(false);
        }
        self.gate_up(x, layer, choice, gate)?;
        let arguments = [
            Argument::Pointer(table),
            Argument::Pointer(choice.ids),
            Argument::Pointer(choice.weights),
            Argument::Pointer(choice.order),
            int(top_k),
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
    pub(in crate::devices::cuda) fn sort(
        &self,
        tokens: usize,
        layer: ExpertBlock,
        choice: RouterBuffers,
    ) -> Result<(), CudaError> {
        self.sort_in_tiles(tokens, layer, choice, None)
    }

    /// [`sort`](Self::sort), in tiles of so many.
    pub(in crate::devices::cuda) fn sort_in_tiles(
        &self,
        tokens: usize,
        layer: ExpertBlock,
        choice: RouterBuffers,
        tile: Option<usize>,
    ) -> Result<(), CudaError> {
        let few = layer.is_few(tokens);
        if few && (tokens == 1 || choice.uses == DevicePtr::NULL) {
            return Ok(()); // nothing to list, and nothing left to count
        }
        // of one token `route` counted the uses
        let uses = if tokens == 1 {
            DevicePtr::NULL
        } else {
            choice.uses
        };
        let pairs = int(tokens * layer.top_k);
        let (ids, counts) = (
            Argument::Pointer(choice.ids),
            Argument::Pointer(choice.counts),
        );
        self.queue(
            "expert_count",
            [layer.experts, 1, 1],
            256,
            0,
            &[ids, pairs, counts, Argument::Pointer(uses)],
        )?;
        if few {
            return Ok(());
        }
        let tile = tile.unwrap_or_else(|| expert_tile(tokens * layer.top_k, layer.experts));
        let arguments = [
            ids,
            pairs,
            counts,
            int(layer.experts),
            int(tile),
            Argument::Pointer(choice.sorted),
            Argument::Pointer(choice.tiles),
        ];
        self.queue("expert_sort", [layer.experts, 1, 1], 256, 0, &arguments)
    }

    /// `added[t]` = the weighted outputs of the token's experts, added in ascending order of
    /// experts.
    pub(in crate::devices::cuda) fn combine(
        &self,
        y: View,
        layer: ExpertBlock,
        choice: RouterBuffers,
        added: View,
    ) -> Result<(), CudaError> {
        let tokens = added.len / layer.hidden;
        assert_eq!(y.len, tokens * layer.top_k * layer.hidden);
        let arguments = [
            y.argument(),
            Argument::Pointer(choice.weights),
            Argument::Pointer(choice.order),
            int(layer.top_k),
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
}
