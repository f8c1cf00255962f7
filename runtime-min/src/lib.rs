//! Reads packs on demand and runs the text thinker straight from them. Never writes packs, knows no
//! command lines.
//!
//! * [`weights`]: checked, decoded bytes of tensors and segments.
//! * [`tensor`]: matrices, heads and the precision of activations, which the rooms below share.
//! * [`ops`]: the operations that models are written in, and who computes them.
//! * [`models`]: the forward passes.
//! * [`devices`]: where they run: the CPU, an NVIDIA GPU.
//! * [`trace`]: what a forward pass computed, written and read.
//! * [`processing`], [`generate`]: from text to tokens and back.

pub mod devices;
mod error;
pub mod generate;
pub mod guide;
mod kernels;
pub mod models;
mod observer;
pub mod ops;
pub mod processing;
#[cfg(test)]
mod samples;
pub mod session;
pub mod tensor;
pub mod trace;
pub mod weights;

pub use error::{GpuLimit, RunError, Unsuitable};
pub use kernels::{CPU_VARIABLE, Kernels, UnknownKernels, limits};
pub use observer::{Observer, Routing, Unobserved};
