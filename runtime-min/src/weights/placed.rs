//! Where a tensor lies in the memory that its segment is loaded to.

use segpack_formats::io::to_usize;
use segpack_formats::numeric::FloatDtype;
use segpack_manifests::documents::TensorEntry;

use crate::error::{RunError, Unsuitable};
use crate::tensor::Matrix;

/// A tensor within the memory of what it is loaded with: a group of segments, or one segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlacedTensor {
    /// Element type.
    pub dtype: FloatDtype,
    /// Where its first byte is.
    pub offset: usize,
    /// Bytes.
    pub length: usize,
    /// The first dimension, or 1.
    pub rows: usize,
    /// The second dimension, or 1.
    pub columns: usize,
}

impl PlacedTensor {
    /// A tensor in memory where its segment's raw bytes begin at this byte.
    ///
    /// # Errors
    /// `Unsuitable` names a tensor whose values no device computes with.
    pub fn new(tensor: &TensorEntry, segment_offset: usize) -> Result<Self, RunError> {
        let dtype = FloatDtype::try_from(tensor.dtype).map_err(|_| Unsuitable::Dtype {
            tensor: tensor.name.clone(),
            dtype: tensor.dtype.to_string(),
        })?;
        let dimension = |i: usize| tensor.shape.get(i).copied().map_or(1, to_usize);
        Ok(Self {
            dtype,
            offset: segment_offset + to_usize(tensor.offset),
            length: to_usize(tensor.length),
            rows: dimension(0),
            columns: dimension(1),
        })
    }

    /// The same in memory where what it is a part of begins at this byte.
    pub fn moved(self, begin: usize) -> Self {
        let offset = begin + self.offset;
        Self { offset, ..self }
    }

    /// One row as a vector.
    pub fn as_vector(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            ..self
        }
    }

    /// As a matrix, in this memory.
    pub fn matrix<'m>(&self, memory: &'m [u8]) -> Matrix<'m> {
        Matrix {
            dtype: self.dtype,
            bytes: &memory[self.offset..self.offset + self.length],
            rows: self.rows,
            columns: self.columns,
        }
    }

    /// Its values in f32.
    pub fn values(&self, memory: &[u8]) -> Vec<f32> {
        let mut values = vec![0.0; self.rows * self.columns];
        self.dtype.widen(self.matrix(memory).bytes, &mut values);
        values
    }
}
