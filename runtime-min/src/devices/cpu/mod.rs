//! The CPU: weights and activations in ordinary memory, operations of [`Ops`](crate::ops::Ops) on
//! rayon's threads.

mod demand;
mod executor;
mod experts;
mod head;
mod router;
mod scratch;
mod sequences;

pub use executor::CpuExecutor;
