//! Operands of kernels: memory of the device, and what lies there.

use std::ops::Range;

use segpack_formats::numeric::FloatDtype;

use super::super::driver::{self, Argument, DevicePtr};
use super::Launch;
use crate::tensor::Compute;

/// Values on the device: activations, which are f32, or bf16 under bf16 compute; or f32 in between.
#[derive(Debug, Clone, Copy)]
pub(in crate::devices::cuda) struct View {
    pub(in crate::devices::cuda) ptr: DevicePtr,
    pub(in crate::devices::cuda) len: usize,
    /// Bytes of each.
    pub(in crate::devices::cuda) width: usize,
}

impl View {
    /// f32 values.
    pub(in crate::devices::cuda) fn f32(ptr: DevicePtr, len: usize) -> Self {
        Self {
            ptr,
            len,
            width: size_of::<f32>(),
        }
    }

    /// Activations.
    pub(in crate::devices::cuda) fn activations(
        compute: Compute,
        ptr: DevicePtr,
        len: usize,
    ) -> Self {
        Self {
            ptr,
            len,
            width: activation_bytes(compute),
        }
    }

    pub(in crate::devices::cuda) fn part(self, range: Range<usize>) -> Self {
        assert!(
            range.start <= range.end && range.end <= self.len,
            "{range:?} of {}",
            self.len
        );
        Self {
            ptr: self.ptr.offset(range.start * self.width),
            len: range.len(),
            ..self
        }
    }

    pub(super) fn argument(self) -> Argument {
        Argument::Pointer(self.ptr)
    }
}

/// A vector or matrix of weights on the device.
#[derive(Debug, Clone, Copy)]
pub(in crate::devices::cuda) struct MatrixView {
    pub(in crate::devices::cuda) ptr: DevicePtr,
    pub(in crate::devices::cuda) dtype: FloatDtype,
    pub(in crate::devices::cuda) rows: usize,
    pub(in crate::devices::cuda) columns: usize,
}

impl MatrixView {
    pub(super) fn argument(self) -> Argument {
        Argument::Pointer(self.ptr)
    }
}

/// The number that the kernels know a dtype by, and the end of their names.
pub(super) fn dtype_code(dtype: FloatDtype) -> (i32, usize) {
    match dtype {
        FloatDtype::BF16 => (0, 0),
        FloatDtype::F16 => (1, 1),
        FloatDtype::F32 => (2, 2),
    }
}

/// The name of the kernel for this dtype of weights.
macro_rules! by_dtype {
    ($dtype:expr, $name:literal) => {
        [
            concat!($name, "_bf16"),
            concat!($name, "_f16"),
            concat!($name, "_f32"),
        ][dtype_code($dtype).1]
    };
}
pub(in crate::devices::cuda) use by_dtype;

/// A linear layer: weight, bias, result.
pub(in crate::devices::cuda) type LinearOperands = (MatrixView, Option<MatrixView>, View);

/// Where the router's choice lies, for `tokens · top_k` pairs.
#[derive(Debug, Clone, Copy)]
pub(in crate::devices::cuda) struct RouterBuffers {
    /// `[tokens, experts]`, f32.
    pub(in crate::devices::cuda) probabilities: DevicePtr,
    /// `[tokens, top_k]`, u32.
    pub(in crate::devices::cuda) ids: DevicePtr,
    /// `[tokens, top_k]`, f32.
    pub(in crate::devices::cuda) weights: DevicePtr,
    /// `[tokens, top_k]`, u32.
    pub(in crate::devices::cuda) order: DevicePtr,
    /// `[experts]`, u32.
    pub(in crate::devices::cuda) counts: DevicePtr,
    /// `[tokens, top_k]`, u32.
    pub(in crate::devices::cuda) sorted: DevicePtr,
    /// [`tiles_bytes`].
    pub(in crate::devices::cuda) tiles: DevicePtr,
    /// `[experts]`, u32, counts the forward passes that use each; or null.
    pub(in crate::devices::cuda) uses: DevicePtr,
}

impl RouterBuffers {
    pub(super) fn argument(self) -> Argument {
        Argument::Choice(driver::Choice {
            probabilities: self.probabilities.0,
            ids: self.ids.0,
            weights: self.weights.0,
            order: self.order.0,
            uses: self.uses.0,
        })
    }
}

/// The experts of a layer: sizes, and the table of their matrices.
#[derive(Debug, Clone, Copy)]
pub(in crate::devices::cuda) struct ExpertBlock {
    pub(in crate::devices::cuda) table: DevicePtr,
    pub(in crate::devices::cuda) dtype: FloatDtype,
    pub(in crate::devices::cuda) experts: usize,
    pub(in crate::devices::cuda) top_k: usize,
    pub(in crate::devices::cuda) hidden: usize,
    pub(in crate::devices::cuda) inner: usize,
}

impl ExpertBlock {
    /// Whether so many tokens go through the experts row by row.
    pub(super) fn is_few(&self, tokens: usize) -> bool {
        Launch::is_few(tokens, self.hidden) && Launch::is_few(tokens, self.inner)
    }
}

/// What attention reads.
#[derive(Debug, Clone, Copy)]
pub(in crate::devices::cuda) struct KvCache {
    pub(in crate::devices::cuda) keys: View,
    pub(in crate::devices::cuda) values: View,
    /// Positions cached before this forward pass, an i32 on the device.
    pub(in crate::devices::cuda) position: DevicePtr,
}

impl KvCache {
    pub(super) fn arguments(self) -> [Argument; 3] {
        [
            Argument::Pointer(self.position),
            self.keys.argument(),
            self.values.argument(),
        ]
    }
}

/// Norms of the heads of q and k, and their rotary embedding.
#[derive(Debug, Clone, Copy)]
pub(in crate::devices::cuda) struct HeadNorms {
    pub(in crate::devices::cuda) q_norm: MatrixView,
    pub(in crate::devices::cuda) k_norm: MatrixView,
    /// `[positions, width / 2]`.
    pub(in crate::devices::cuda) cos: View,
    pub(in crate::devices::cuda) sin: View,
    pub(in crate::devices::cuda) eps: f32,
}

/// Bytes of an activation.
pub(in crate::devices::cuda) fn activation_bytes(compute: Compute) -> usize {
    match compute {
        Compute::F32 => 4,
        Compute::Bf16 => 2,
    }
}

/// An RMS norm: of `x + added`, which `sum` becomes, or of `x`. `sum` may be `x` only where the
/// norm is alone.
#[derive(Debug, Clone, Copy)]
pub(in crate::devices::cuda) struct Norm {
    pub(in crate::devices::cuda) weight: MatrixView,
    pub(in crate::devices::cuda) eps: f32,
    /// What is added, and where the sum goes.
    pub(in crate::devices::cuda) added: Option<(View, View)>,
    pub(in crate::devices::cuda) normed: View,
}

impl Norm {
    /// For the kernels. `x` is what is normed.
    pub(super) fn argument(this: Option<&Self>, x: View, alone: bool) -> Argument {
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
            assert!(alone || sum.ptr != x.ptr, "others still read x");
        }
        let [added, sum] = norm
            .added
            .map_or([DevicePtr::NULL; 2], |(added, sum)| [added.ptr, sum.ptr]);
        Argument::Norm(driver::Norm {
            added: added.0,
            weight: norm.weight.ptr.0,
            sum: sum.0,
            normed: norm.normed.ptr.0,
            kind: dtype_code(norm.weight.dtype).0,
            eps: norm.eps,
        })
    }
}
