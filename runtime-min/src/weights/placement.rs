//! Where tensors lie in the memory that their segments are loaded to.

use segpack_formats::codec::Codec;
use segpack_formats::io::to_usize;
use segpack_formats::io::{DIRECT_ALIGNMENT, align_outward};
use segpack_formats::numeric::FloatDtype;
use segpack_manifests::documents::{SegmentEntry, TensorEntry};

use crate::error::{RunError, Unsuitable};
use crate::tensor::Matrix;

/// Where the raw bytes of a segment begin in the memory that it is loaded to: direct reads are
/// aligned outward.
pub fn data_offset(segment: &SegmentEntry) -> usize {
    match segment.codec {
        Codec::Raw => to_usize(segment.offset % DIRECT_ALIGNMENT),
        Codec::Zstd | Codec::Bf16Zstd | Codec::Bf16Rans => 0,
    }
}

/// Bytes of memory that a segment is loaded to.
pub fn buffer_len(segment: &SegmentEntry) -> u64 {
    let range = segment.offset..segment.offset.saturating_add(segment.raw_length);
    match segment.codec {
        Codec::Raw => align_outward(&range).end - align_outward(&range).start,
        Codec::Zstd | Codec::Bf16Zstd | Codec::Bf16Rans => {
            segment.raw_length.next_multiple_of(DIRECT_ALIGNMENT)
        }
    }
}

/// A tensor within the memory of what it is loaded with: a group of segments, or one segment.
#[derive(Debug, Clone, Copy)]
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

/// Segments that are loaded together, one behind the other.
#[derive(Debug, Default)]
pub struct SegmentGroup<'a> {
    segments: Vec<&'a SegmentEntry>,
    buffer_len: usize,
}

impl<'a> SegmentGroup<'a> {
    /// Where the raw bytes of a segment begin in the group's memory. A new one is added.
    pub fn place(&mut self, segment: &'a SegmentEntry) -> usize {
        let mut start = 0;
        for known in &self.segments {
            if known.id == segment.id {
                return start + data_offset(segment);
            }
            start += to_usize(buffer_len(known));
        }
        self.segments.push(segment);
        self.buffer_len += to_usize(buffer_len(segment));
        start + data_offset(segment)
    }

    /// Its segments, in their order in memory.
    pub fn segments(&self) -> &[&'a SegmentEntry] {
        &self.segments
    }

    /// Bytes of memory that it is loaded to.
    pub fn buffer_len(&self) -> usize {
        self.buffer_len
    }

    /// Raw bytes of its segments.
    pub fn raw_bytes(&self) -> u64 {
        self.segments.iter().map(|s| s.raw_length).sum()
    }
}
