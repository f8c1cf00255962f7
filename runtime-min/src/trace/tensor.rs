//! A tensor on its way into a trace.

use segpack_formats::numeric::{Dtype, FloatDtype};

use crate::tensor::Compute;

/// A tensor to be written.
#[derive(Debug)]
pub(super) struct Tensor {
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<u64>,
    pub(super) bytes: Vec<u8>,
}

impl Tensor {
    /// Activations, one row per token.
    pub(super) fn activations(compute: Compute, rows: usize, values: &[f32]) -> Self {
        let shape = [rows, values.len() / rows.max(1)];
        Self {
            dtype: dtype_of(compute).into(),
            shape: shape.map(|side| side as u64).to_vec(),
            bytes: float_bytes(compute, values),
        }
    }
}

/// Exact: under bf16 every activation is a bf16 value.
pub(super) fn float_bytes(compute: Compute, values: &[f32]) -> Vec<u8> {
    let dtype = dtype_of(compute);
    let mut bytes = Vec::with_capacity(values.len() * dtype.byte_width());
    dtype.narrow(values, &mut bytes);
    bytes
}

fn dtype_of(compute: Compute) -> FloatDtype {
    match compute {
        Compute::F32 => FloatDtype::F32,
        Compute::Bf16 => FloatDtype::BF16,
    }
}
