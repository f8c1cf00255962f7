//! The CPU: weights and activations in ordinary memory, operations of [`Ops`](crate::ops::Ops) on
//! rayon's threads.

mod demand;
mod executor;
mod experts;
mod head;
mod router;
mod scratch;

#[cfg_attr(
    not(feature = "cuda"),
    expect(unused_imports, reason = "a GPU's host memory is counted the same way")
)]
pub(crate) use demand::program_bytes;
pub use executor::CpuExecutor;
