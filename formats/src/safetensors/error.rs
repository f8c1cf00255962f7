//! What can be wrong with a header or an index.

use std::str::Utf8Error;

use crate::numeric::{Dtype, UnknownDtype};

/// What is wrong with a header, or with an index of shards.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HeaderError {
    /// It breaks a rule of the format, in words that name the tensor or byte.
    #[error("{0}")]
    Rule(String),
    /// Its text is not UTF-8.
    #[error("header is not UTF-8 at byte {at}")]
    NotUtf8 {
        /// The byte, counted from the start of the file.
        at: u64,
        /// What is there.
        source: Utf8Error,
    },
    /// It is not a JSON table of tensors.
    #[error("header is not a valid tensor table")]
    Table(#[source] serde_json::Error),
    /// It is not the JSON of an index.
    #[error("is not a valid shard index")]
    Index(#[source] serde_json::Error),
    /// A tensor is of a dtype that this build does not know.
    #[error("tensor {tensor:?} cannot be read")]
    Dtype {
        /// The tensor.
        tensor: String,
        /// Its dtype.
        source: UnknownDtype,
    },
    /// Dtype and shape of a tensor give no length.
    #[error("tensor {tensor:?} has no length")]
    Length {
        /// The tensor.
        tensor: String,
        /// Why not.
        source: LengthError,
    },
}

/// Why a tensor of some shape and dtype has no length.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LengthError {
    /// Its bits are more than 64 bits can count.
    #[error("shape {shape:?} of {dtype} overflows 64 bits")]
    Overflow {
        /// The dtype.
        dtype: Dtype,
        /// The shape.
        shape: Vec<u64>,
    },
    /// Values smaller than a byte do not fill whole bytes.
    #[error("shape {shape:?} of {dtype} ends inside a byte")]
    PartOfAByte {
        /// The dtype.
        dtype: Dtype,
        /// The shape.
        shape: Vec<u64>,
    },
}
