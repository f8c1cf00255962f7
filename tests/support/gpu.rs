//! A GPU for tests: the host shim, a CUDA driver that runs the kernels on the CPU
//! (runtime-min/shim).

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use super::cli::{Run, program};

/// The folder with the shim, built once.
fn shim() -> &'static Path {
    static SHIM: OnceLock<PathBuf> = OnceLock::new();
    SHIM.get_or_init(|| {
        let build = Path::new(env!("CARGO_MANIFEST_DIR")).join("../runtime-min/shim/build");
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("segpack-shim");
        let built = Command::new(build).arg(&folder).status().unwrap();
        assert!(
            built.success(),
            "the host shim is not built: is there a C++ compiler (c++, or CXX)?"
        );
        // found first, under either name, whatever the machine has
        let _ = std::fs::remove_file(folder.join("libcuda.so"));
        std::fs::hard_link(folder.join("libcuda.so.1"), folder.join("libcuda.so")).unwrap();
        folder
    })
}

/// Makes the shim this process' driver, unless it has a real one.
pub fn load() {
    static LOADED: OnceLock<Option<libloading::Library>> = OnceLock::new();
    // SAFETY: our own library; later look-ups of its name, libcuda.so.1, find it
    #[expect(unsafe_code, reason = "a library's code runs when it is loaded")]
    let load = || Some(unsafe { libloading::Library::new(shim().join("libcuda.so.1")) }.unwrap());
    LOADED.get_or_init(|| {
        if segpack_runtime_min::devices::cuda::devices().is_ok() {
            None
        } else {
            load()
        }
    });
}

/// Runs the program with the shim as the driver, and these settings of it.
pub fn with_gpu(arguments: &str, settings: &[(&str, &str)]) -> Run {
    let mut command = program();
    command
        .env("LD_LIBRARY_PATH", shim())
        .args(arguments.split(' ').filter(|a| !a.is_empty()));
    for (name, value) in settings {
        command.env(format!("SEGPACK_SHIM_{name}"), value);
    }
    Run::of(&mut command)
}
