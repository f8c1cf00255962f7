//! Why a model cannot be run.

use segpack_formats::FormatError;

#[cfg(feature = "cuda")]
use crate::devices::cuda::CudaError;

/// Why a model cannot be run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The pack cannot be read, or is damaged.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The pack does not hold what this model needs.
    #[error("the pack cannot be run: {0}")]
    Unsuitable(String),
    /// The memory budget is too small.
    #[error(
        "{memory} bytes of memory are too little for this model and prompt; {least} bytes work"
    )]
    Memory {
        /// The budget.
        memory: u64,
        /// The least that works.
        least: u64,
    },
    /// The budget of the GPU's memory is too small.
    #[error(
        "{memory} bytes of GPU memory are too little for this model and prompt; {least} bytes work (--device-memory)"
    )]
    DeviceMemory {
        /// The budget.
        memory: u64,
        /// The least that works.
        least: u64,
    },
    /// A GPU cannot be used, or failed.
    #[cfg(feature = "cuda")]
    #[error(transparent)]
    Cuda(#[from] CudaError),
    /// The system does not give the memory.
    #[error("cannot have {bytes} bytes of memory: {source}; a smaller --memory takes less")]
    OutOfMemory {
        /// What was asked for.
        bytes: u64,
        /// Why not.
        source: std::io::Error,
    },
    /// Threads cannot be started.
    #[error("cannot start threads: {0}")]
    Threads(String),
    /// A token id that the embedding does not have.
    #[error(
        "token id {id} is not in the embedding, which has {rows} rows: is this the model's own tokenizer?"
    )]
    TokenId {
        /// The id.
        id: u32,
        /// Rows of the embedding.
        rows: u64,
    },
    /// The prompt and the tokens to generate are more than was reserved.
    #[error("{wanted} positions are needed, {reserved} were reserved")]
    TooLong {
        /// Positions needed.
        wanted: usize,
        /// Positions reserved.
        reserved: usize,
    },
}
