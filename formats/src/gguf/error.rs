//! What can be wrong with a GGUF header.

use std::str::Utf8Error;

/// What is wrong with a GGUF header, where in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GgufError {
    /// It breaks a rule of the format, in words that name the key, tensor or byte.
    #[error("{0}")]
    Rule(String),
    /// A string is not UTF-8.
    #[error("is a string that is not UTF-8 at byte {at}")]
    NotUtf8 {
        /// The byte, counted from the start of the file.
        at: u64,
        /// What is there.
        source: Utf8Error,
    },
    /// The key of a metadata entry.
    #[error("metadata key {number}")]
    Key {
        /// The entry, counted from 0.
        number: u64,
        /// What is wrong with it.
        source: Box<Self>,
    },
    /// The value of a metadata entry.
    #[error("metadata {key:?}")]
    Value {
        /// Its key.
        key: String,
        /// What is wrong with it.
        source: Box<Self>,
    },
    /// The name of a tensor.
    #[error("the name of tensor {number}")]
    Name {
        /// The tensor, counted from 0.
        number: u64,
        /// What is wrong with it.
        source: Box<Self>,
    },
    /// A tensor's shape and type.
    #[error("tensor {name:?}")]
    Tensor {
        /// Its name.
        name: String,
        /// What is wrong with them.
        source: Box<Self>,
    },
}

pub(super) fn wrong<T>(what: impl Into<String>) -> Result<T, GgufError> {
    Err(GgufError::Rule(what.into()))
}
