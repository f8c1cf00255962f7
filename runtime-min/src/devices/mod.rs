//! Where a model runs: memory, and the executors of models' operations.

pub(crate) mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
