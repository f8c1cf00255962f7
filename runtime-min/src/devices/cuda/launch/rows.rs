//! Operations on rows of activations: embedding, norms, sums, the choice of the next token.

use super::super::driver::Argument::{self, Int, Long};
use super::super::driver::{CudaError, DevicePtr};
use super::operands::{MatrixView, Norm, View, dtype_code};
use super::{GEMV_THREADS, Launch, input_bytes, int};

/// Most blocks that look for the greatest logit.
pub(super) const ARGMAX_PARTS: usize = 256;
/// Bytes of what `argmax` keeps in between.
pub(in crate::devices::cuda) const ARGMAX_BYTES: usize = ARGMAX_PARTS * 8;

impl Launch<'_> {
    /// `x[t]` = row `ids[t]` of the embedding, ids below its rows.
    pub(in crate::devices::cuda) fn embed(
        &self,
        table: MatrixView,
        ids: DevicePtr,
        x: View,
    ) -> Result<(), CudaError> {
        let tokens = x.len / table.columns.max(1);
        let arguments = [
            table.argument(),
            Int(dtype_code(table.dtype).0),
            Argument::Pointer(ids),
            int(table.columns),
            self.rounds(),
            x.argument(),
        ];
        self.queue("embed", [tokens, 1, 1], 256, 0, &arguments)
    }

    /// Rows of `x`, normed; see [`Norm`].
    pub(in crate::devices::cuda) fn norm(&self, x: View, norm: Norm) -> Result<(), CudaError> {
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
    pub(in crate::devices::cuda) fn add(&self, to: View, x: View) -> Result<(), CudaError> {
        assert_eq!(to.len, x.len);
        let arguments = [
            to.argument(),
            x.argument(),
            Long(to.len as u64),
            self.rounds(),
        ];
        self.queue("add", [to.len.div_ceil(256), 1, 1], 256, 0, &arguments)
    }

    /// `to[t] += x[t] · sigmoid(gates[t])`, a gate for each token.
    pub(in crate::devices::cuda) fn add_gated(
        &self,
        to: View,
        x: View,
        gates: View,
    ) -> Result<(), CudaError> {
        let hidden = to.len / gates.len.max(1);
        assert!(
            to.len == x.len && to.len == gates.len * hidden,
            "{gates:?} for {to:?}"
        );
        let arguments = [
            to.argument(),
            x.argument(),
            gates.argument(),
            int(hidden),
            self.rounds(),
        ];
        let grid = [gates.len, hidden.div_ceil(256), 1];
        self.queue("add_gated", grid, 256, 0, &arguments)
    }

    /// `gate = silu(gate) · up`.
    pub(in crate::devices::cuda) fn silu_mul(&self, gate: View, up: View) -> Result<(), CudaError> {
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

    /// The lowest id of the greatest of these logits becomes the next token, and one more position
    /// is counted.
    pub(in crate::devices::cuda) fn argmax(
        &self,
        logits: View,
        parts: DevicePtr,
        [id, position, logit]: [DevicePtr; 3],
    ) -> Result<(), CudaError> {
        let blocks = logits.len.div_ceil(1024).min(ARGMAX_PARTS);
        let parts = Argument::Pointer(parts);
        self.queue(
            "argmax_parts",
            [blocks, 1, 1],
            256,
            0,
            &[logits.argument(), int(logits.len), self.rounds(), parts],
        )?;
        let [id, position, logit] = [id, position, logit].map(Argument::Pointer);
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
