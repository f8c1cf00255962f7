//! Errors of the driver, and how it is called: every call's result is checked and named.

use std::ffi::{CStr, c_char};
use std::ptr::null;

use cudarc::driver::sys;
use segpack_formats::FormatError;

/// Why a GPU cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CudaError {
    /// There is no driver on this machine.
    #[error("there is no NVIDIA driver here: libcuda is not found")]
    NoDriver,
    /// There is a driver, but not this device.
    #[error("there is no CUDA device {wanted}: the driver knows {count}")]
    NoDevice {
        /// Its number.
        wanted: u32,
        /// Devices that there are.
        count: u32,
    },
    /// The device is too old for the kernels.
    #[error(
        "{name} has compute capability {major}.{minor}; the kernels need 8.0 (Ampere) or later"
    )]
    TooOld {
        /// The device.
        name: String,
        /// Its compute capability.
        major: u32,
        /// And its second digit.
        minor: u32,
    },
    /// The driver is too old for the kernels.
    #[error("the NVIDIA driver has CUDA {}.{}; the kernels need 11.8 or later: install a newer driver", .driver / 1000, .driver % 1000 / 10)]
    OldDriver {
        /// Its version, as it counts.
        driver: u32,
    },
    /// A call of the driver failed.
    #[error("{call} failed: {name} ({description})")]
    Call {
        /// The driver's function.
        call: &'static str,
        /// The driver's name of the error.
        name: String,
        /// What the driver says about it.
        description: String,
        /// Whether the device has no memory left.
        out_of_memory: bool,
    },
    /// The device has no memory left.
    #[error("the GPU cannot allocate {bytes} bytes ({what})")]
    OutOfMemory {
        /// What was asked for.
        bytes: u64,
        /// What for.
        what: &'static str,
    },
    /// The kernels in the program cannot be decompressed.
    #[error("the embedded GPU kernels cannot be decompressed")]
    Kernels(#[source] FormatError),
}

/// A driver function that gives the text of a status.
type StatusText = unsafe fn(sys::CUresult, *mut *const c_char) -> sys::CUresult;

/// What the driver says about a status.
fn status_text(status: sys::CUresult, function: StatusText) -> String {
    let mut text = null();
    // SAFETY: the driver sets the pointer to a text that stays, or fails
    let found = unsafe { function(status, &raw mut text) } == sys::CUresult::CUDA_SUCCESS;
    if !found || text.is_null() {
        return format!("error {status:?}");
    }
    // SAFETY: a text of the driver that ends with 0
    unsafe { CStr::from_ptr(text) }
        .to_string_lossy()
        .into_owned()
}

/// The result of a call as an error that names it.
pub(super) fn checked(call: &'static str, status: sys::CUresult) -> Result<(), CudaError> {
    if status == sys::CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    Err(CudaError::Call {
        call,
        name: status_text(status, sys::cuGetErrorName),
        description: status_text(status, sys::cuGetErrorString),
        out_of_memory: status == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY,
    })
}

/// Calls a function of the driver: `driver!(cuInit(0))`. The arguments have to be as the function's
/// documentation wants them.
macro_rules! driver {
    ($function:ident($($argument:expr),* $(,)?)) => {{
        // SAFETY: the driver is loaded before anything that can be passed here exists (see
        // `info::load`); the arguments are as the function's documentation wants them
        let status = unsafe { cudarc::driver::sys::$function($($argument),*) };
        $crate::devices::cuda::driver::error::checked(stringify!($function), status)
    }};
}
pub(super) use driver;
