//! What the index of a written file says of a tensor.

use segpack_formats::safetensors;

/// A tensor as the index of a written file has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrittenTensor {
    /// Its name; none where the format has none.
    pub name: Option<String>,
    /// Its element type, as the format names it.
    pub dtype: String,
    /// Its shape, outermost dimension first.
    pub shape: Vec<u64>,
    /// Its first byte, from the start of the file.
    pub offset: u64,
}

impl From<safetensors::TensorInfo> for WrittenTensor {
    fn from(entry: safetensors::TensorInfo) -> Self {
        Self {
            name: Some(entry.name),
            dtype: entry.dtype.to_string(),
            shape: entry.shape,
            offset: entry.offset,
        }
    }
}
