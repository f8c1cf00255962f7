//! The CUDA driver: devices, memory, streams, kernels. Every call's result is checked; an error
//! names the call.

mod arguments;
mod error;
mod gpu;
mod info;
mod memory;
mod pointer;
mod ptx;
mod streams;

pub(super) use arguments::{Argument, Choice, Experts, Norm, Product, Products};
pub use error::CudaError;
pub(super) use gpu::{Gpu, Stream};
pub use info::{DeviceInfo, devices};
pub(super) use memory::{DeviceMemory, HostMemory};
pub(super) use pointer::DevicePtr;
#[cfg(test)]
pub(super) use ptx::{entries, ptx};
pub(super) use streams::{Event, Graph};
