//! The router: its logits, and the choice of every token's experts.

use super::super::driver::Argument::{self, Int};
use super::super::driver::{CudaError, DevicePtr};
use super::linear::product;
use super::operands::{
    ExpertBlock, LinearOperands, Norm, RouterBuffers, View, by_dtype, dtype_code,
};
use super::{GEMV_THREADS, GEMV_WARPS, Launch, input_bytes, int};

impl Launch<'_> {
    /// Softmax of the router's logits, `[tokens, experts]`, and the top k experts of every token.
    pub(in crate::devices::cuda) fn route(
        &self,
        logits: View,
        layer: ExpertBlock,
        normalise: bool,
        choice: RouterBuffers,
    ) -> Result<(), CudaError> {
        let arguments = [
            logits.argument(),
            int(layer.experts),
            int(layer.top_k),
            Int(i32::from(normalise)),
            self.rounds(),
            choice.argument(),
        ];
        let grid = [logits.len / layer.experts, 1, 1];
        self.queue("route", grid, 32, choice_bytes(layer), &arguments)
    }

    /// The router's product after a norm, then as [`route`](Self::route): one launch for few
    /// tokens. `arrived` has a number for each of them, which is 0.
    pub(in crate::devices::cuda) fn router(
        &self,
        x: View,
        norm: Option<&Norm>,
        linear: LinearOperands,
        layer: ExpertBlock,
        normalise: bool,
        (choice, arrived): (RouterBuffers, DevicePtr),
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
            int(layer.top_k),
            Int(i32::from(normalise)),
            self.rounds(),
            choice.argument(),
            Argument::Pointer(arrived),
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
}

/// Shared memory of a choice of experts.
pub(super) fn choice_bytes(layer: ExpertBlock) -> usize {
    assert!(layer.top_k <= layer.experts, "{layer:?}");
    (2 * layer.experts + layer.top_k) * size_of::<f32>()
}
