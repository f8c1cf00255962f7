//! Linear layers: row by row of few tokens, in tiles of many.

use segpack_formats::numeric::FloatDtype;

use super::super::driver::{self, Argument, CudaError, Products};
use super::operands::{LinearOperands, Norm, View, by_dtype, dtype_code};
use super::{GEMV_THREADS, GEMV_WARPS, Launch, input_bytes, int};
use crate::tensor::Compute;

/// Blocks of dense products row by row that a multiprocessor has at a time: more would only bring
/// their input again.
pub(super) const GEMV_BLOCKS: usize = 4;
/// Rows of weights of a tile of many tokens, and the fewest and most tokens of one (gemm.cu).
pub(super) const TILE_ROWS: usize = 128;
pub(super) const MIN_TILE: usize = 64;
pub(super) const MAX_TILE: usize = 128;
/// Shared memory of such a tile: two steps of `fma`, three stages of `mma` of up to 64 tokens, then
/// 128.
pub(super) const FMA_SHARED: usize = 2 * 8 * (MAX_TILE + TILE_ROWS) * 4;
pub(super) const MMA_SHARED: [usize; 2] = [
    3 * 64 * (MIN_TILE + TILE_ROWS) * 2,
    3 * 32 * (MAX_TILE + TILE_ROWS) * 2,
];

/// Tokens of a tile of so many rows of tiles: the most where every multiprocessor still has one, so
/// that each reads as little as it can for what it computes.
pub(in crate::devices::cuda) fn dense_tile(
    tokens: usize,
    rows: usize,
    multiprocessors: usize,
) -> usize {
    let blocks = |tile: usize| tokens.div_ceil(tile) * rows;
    if tokens > MIN_TILE && blocks(MAX_TILE) >= multiprocessors {
        MAX_TILE
    } else if 2 * blocks(MIN_TILE) >= multiprocessors {
        MIN_TILE
    } else {
        MIN_TILE / 2
    }
}

impl Launch<'_> {
    /// Up to three products of the same `x`, whose weights have one dtype; after a norm, if they go
    /// row by row.
    pub(in crate::devices::cuda) fn linears(
        &self,
        x: View,
        norm: Option<&Norm>,
        linears: &[LinearOperands],
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
            return self.linears_in_tiles(x, linears, None);
        }
        let rows: usize = linears.iter().map(|l| l.0.rows).sum();
        let max_blocks = self.gpu.info().multiprocessors as usize * GEMV_BLOCKS;
        let grid = [rows.div_ceil(GEMV_WARPS).min(max_blocks.max(1)), tokens, 1];
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

    /// [`products`](Self::linears) in tiles of so many tokens.
    pub(in crate::devices::cuda) fn linears_in_tiles(
        &self,
        x: View,
        linears: &[LinearOperands],
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
    pub(super) fn tiles(
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
        let (name, shared) = if tile <= MIN_TILE {
            (small, MMA_SHARED[0])
        } else {
            (large, MMA_SHARED[1])
        };
        self.queue(name, grid, 128, shared, &arguments)
    }

    pub(super) fn uses_mma(&self, dtype: FloatDtype) -> bool {
        self.compute == Compute::Bf16 && dtype == FloatDtype::BF16
    }
}

/// Up to three products of the same input, for the kernels.
pub(super) fn of_one_input(x: View, linears: &[LinearOperands]) -> Argument {
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
pub(super) fn product((weight, bias, out): LinearOperands) -> driver::Product {
    driver::Product {
        weight: weight.ptr.0,
        bias: bias.map_or(0, |b| b.ptr.0),
        out: out.ptr.0,
        rows: i32::try_from(weight.rows).unwrap_or(i32::MAX),
        bias_type: bias.map_or(0, |b| dtype_code(b.dtype).0),
    }
}
