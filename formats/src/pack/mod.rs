//! A pack: one valid safetensors file that holds segments, each a contiguous range of bytes.

mod header;
mod reader;
mod writer;

use crate::numeric::Dtype;
use serde::{Deserialize, Serialize};

use crate::codec::Codec;
use crate::digest::{Blake3, Sha256};

pub use header::{coded_header, data_start, raw_header};
pub use reader::{SegmentReader, Unpacker};
pub use writer::{TensorSource, write_pack, write_raw_pack};

/// The data section of a pack starts at a multiple of this; so do coded segments that follow coded
/// ones.
pub const ALIGNMENT: u64 = 4096;

/// A tensor as it goes into a pack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackTensor {
    /// Name in the raw pack.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Shape, outermost dimension first.
    pub shape: Vec<u64>,
    /// Bytes: shape × dtype.
    pub length: u64,
}

/// A segment as it goes into a pack: tensors that one consumer loads at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentSpec {
    /// Its name, unique in the whole pack folder.
    pub id: String,
    /// Its tensors, adjacent in this order.
    pub tensors: Vec<PackTensor>,
}

impl SegmentSpec {
    /// Bytes of the raw segment.
    pub fn raw_length(&self) -> u64 {
        self.tensors
            .iter()
            .map(|t| t.length)
            .fold(0, u64::saturating_add)
    }
}

/// Where a segment lies in its pack, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredSegment {
    /// First byte, from the pack file's start.
    pub offset: u64,
    /// Bytes in the pack.
    pub stored_length: u64,
    /// Bytes once decoded.
    pub raw_length: u64,
    /// How it is coded.
    pub codec: Codec,
    /// Digest of the stored bytes.
    pub blake3: Blake3,
}

/// A pack that was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WrittenPack {
    /// Bytes of the file.
    pub length: u64,
    /// Digest of the file.
    pub sha256: Sha256,
    /// One for each segment, in order.
    pub segments: Vec<StoredSegment>,
    /// Digest of the raw little-endian bytes of each tensor of each segment, in order.
    pub tensors: Vec<Sha256>,
}
