//! One function per operation: checks that the operands fit together, and queues the kernels.

mod attention;
mod codes;
mod experts;
mod linear;
mod operands;
mod router;
mod rows;

use super::driver::Argument::{self, Int};
use super::driver::{CudaError, Gpu};
use crate::tensor::Compute;

pub(super) use attention::{MAX_HEAD_WIDTH, MAX_PARTS, WHOLE_POSITIONS, counters, partial_values};
pub(super) use codes::{CodeChoice, MAX_CODES, SAMPLING_BYTES, sampling};
#[cfg(test)]
pub(super) use experts::expert_tile;
pub(super) use experts::tiles_bytes;
#[cfg(test)]
pub(super) use linear::dense_tile;
pub(super) use operands::{
    ExpertBlock, HeadNorms, KvCache, LinearOperands, MatrixView, Norm, RouterBuffers, View,
    activation_bytes,
};
pub(super) use rows::ARGMAX_BYTES;

/// Tokens up to which linear layers go row by row.
pub(super) const FEW_TOKENS: usize = 4;
/// Dynamic shared memory that every device gives a block that asks for it: 99 KiB (8.6, 8.9 and
/// 12.x give no more), less what a kernel declares itself.
const SHARED_BYTES: usize = 98 << 10;
/// Threads of a block that multiplies row by row, and its warps.
const GEMV_THREADS: u32 = 256;
const GEMV_WARPS: usize = 8;
/// Columns that a warp loads at a time (dot.cuh).
const WARP_COLUMNS: usize = 256;

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
        // SAFETY: the sizes of the operands are checked by the callers in this folder, and `DeviceMemory`
        // waits before it is freed
        unsafe {
            self.gpu
                .launch(name, grid.map(count), block, count(shared), arguments)
        }
    }

    /// Whether linear layers of so many tokens go row by row, which can norm their input themselves.
    pub(super) fn is_few(tokens: usize, columns: usize) -> bool {
        tokens <= FEW_TOKENS && input_bytes(columns) <= SHARED_BYTES
    }
}

/// Shared memory of an input of so many values.
fn input_bytes(columns: usize) -> usize {
    columns.next_multiple_of(WARP_COLUMNS) * size_of::<f32>()
}
