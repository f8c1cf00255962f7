//! NVIDIA GPUs: the driver is found at run time, the kernels are embedded as PTX, nothing of CUDA
//! is needed to build.
//!
//! * `driver`: the driver's functions, each call checked and named.
//! * `launch`: one function per operation.
//! * `executor`: the model's place on a GPU; `layout`, `dense`, `slots` and `shapes` are its parts.
//! * `kernels/`: the sources; `build/build_ptx.py` makes `ptx/` of them.
#![expect(
    unsafe_code,
    reason = "the driver's interface is C's; every call is behind a safe one here"
)]

mod dense;
mod driver;
mod executor;
mod launch;
mod layout;
mod shapes;
mod slots;

pub use driver::{CudaError, DeviceInfo, devices};
pub use executor::Cuda;

/// The bytes of values, as they are in memory; the device has the same byte order, little-endian.
fn bytes(values: &[f32]) -> &[u8] {
    // SAFETY: f32 has no padding, and any byte may be read
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

/// As [`bytes`], to be written.
fn bytes_mut(values: &mut [f32]) -> &mut [u8] {
    // SAFETY: as in `bytes`; any bits are an f32
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), size_of_val(values)) }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod testing;
#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests;
