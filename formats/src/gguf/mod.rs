//! GGUF version 3, the file format of llama.cpp: headers written and read, file names of split
//! models.
//!
//! The specification is [`docs/gguf.md` of
//! ggml](https://github.com/ggml-org/ggml/blob/master/docs/gguf.md); where it is silent, what
//! llama.cpp's reader (`ggml/src/gguf.cpp`) demands is the rule: offsets without holes, names
//! shorter than 64 bytes, rows that are whole blocks. All numbers are little-endian.
//!
//! ```text
//! "GGUF" | version u32 = 3 | tensors u64 | metadata entries u64
//! metadata entry: key string | type u32 | value                (string: length u64, UTF-8 bytes)
//! tensor:         name string | dimensions u32 | sides u64 … | type u32 | offset u64
//! zeros to a multiple of the alignment; then each tensor's data, each padded to the alignment
//! ```
//!
//! Sides are stored innermost first (ggml's `ne[0]`); here shapes are outermost first, as
//! everywhere else in segpack.
//!
//! Crates that write GGUF were looked at: `gguf-rs-lib` 0.3 keeps metadata in a hash map and wrote
//! wrong type numbers for BF16 until 0.3; `ggus` 0.5 writes the whole file itself and unwraps;
//! `candle-core` and `gguf-rs` want each tensor in memory; `gguf` reads only. None reads strictly.
//! A header is all that is needed, and is a page.

mod cursor;
pub(crate) mod error;
mod header;
mod imatrix;
mod read;
mod split;
#[cfg(test)]
mod tests;
mod value;

pub use cursor::MAX_HEADER_BYTES;
pub use error::GgufError;
pub use header::{ALIGNMENT, Header, MAX_NAME_BYTES, TensorInfo, TensorSpec, TensorType, data_end};
pub use imatrix::{ActivationSums, ImportanceMatrix, write_imatrix, write_imatrix_list};
pub use read::read_header;
pub use split::{
    MAX_FILES, SPLIT_COUNT, SPLIT_NO, SPLIT_TENSORS_COUNT, split_metadata, split_name,
};
pub use value::{Array, Value};
