//! A GPU for tests: a real one where there is one, else the host shim.

use std::ffi::{CStr, c_char};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, OnceLock};

use cudarc::driver::sys;
use libloading::Library;

use super::driver::Gpu;

/// `SEGPACK_TEST_SHIM=1` takes the shim even where there is a GPU.
const SHIM_VARIABLE: &str = "SEGPACK_TEST_SHIM";

/// The shim, loaded for the rest of the process; none where a real driver is used.
fn shim() -> Option<&'static Library> {
    static SHIM: OnceLock<Option<Library>> = OnceLock::new();
    SHIM.get_or_init(load_shim).as_ref()
}

/// Builds the shim and loads it, unless there is a driver that is to be used.
fn load_shim() -> Option<Library> {
    let wanted = std::env::var_os(SHIM_VARIABLE).is_some_and(|v| v == "1");
    // SAFETY: only looks
    if !wanted && unsafe { sys::is_culib_present() } {
        return None;
    }
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("shim");
    let folder = std::env::current_exe()
        .unwrap()
        .parent()
        .unwrap()
        .join("segpack-shim");
    let built = Command::new(here.join("build"))
        .arg(&folder)
        .status()
        .unwrap();
    assert!(
        built.success(),
        "the host shim is not built: is there a C++ compiler (c++, or CXX)?"
    );
    // SAFETY: our own library; its name is libcuda.so.1, which is then what the loader finds
    // under that name
    Some(unsafe { Library::new(folder.join("libcuda.so.1")) }.unwrap())
}

/// The first device.
pub(crate) fn gpu() -> Arc<Gpu> {
    static GPU: OnceLock<Arc<Gpu>> = OnceLock::new();
    Arc::clone(GPU.get_or_init(open_first))
}

fn open_first() -> Arc<Gpu> {
    shim();
    Gpu::open(0).unwrap()
}

/// How often lanes of a kernel shared banks of shared memory so far; none where there is no shim.
pub(super) fn bank_conflicts(kernel: &CStr) -> Option<u64> {
    // SAFETY: the function has this type (driver.cpp)
    unsafe {
        let conflicts: libloading::Symbol<'_, unsafe extern "C" fn(*const c_char) -> u64> =
            shim()?.get(b"segpack_shim_conflicts\0").unwrap();
        Some(conflicts(kernel.as_ptr()))
    }
}

/// In which order the shim's lanes run; whether there is a shim.
pub(super) fn run_lanes_backwards(backwards: bool) -> bool {
    let Some(shim) = shim() else { return false };
    // SAFETY: the function has this type (driver.cpp)
    unsafe {
        let reverse: libloading::Symbol<'_, unsafe extern "C" fn(i32)> =
            shim.get(b"segpack_shim_reverse\0").unwrap();
        reverse(i32::from(backwards));
    }
    true
}
