//! Where a model runs: memory, and the executors of models' operations.

pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
