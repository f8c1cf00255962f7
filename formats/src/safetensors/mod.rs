//! The safetensors format, read strictly.
//!
//! A shard is `[u64 little-endian header length N][N bytes of JSON][data]`. The stock reader lets
//! some malformed headers through (duplicate keys, odd names); here each is an error that names the
//! tensor. Format: <https://github.com/huggingface/safetensors#format>.

pub(crate) mod error;
mod header;
mod index;
mod reader;
mod writer;

pub use crate::numeric::Dtype;
pub use error::{HeaderError, LengthError};
pub use header::{MAX_HEADER_BYTES, ShardHeader, TensorInfo, byte_length};
pub use index::{ShardIndex, check_relative_path};
pub use reader::Shard;
pub(crate) use writer::push_entry;
pub use writer::{NewTensor, new_header};
