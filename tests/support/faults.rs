//! Faults of the system on purpose: the program runs with `faults.c` preloaded.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use super::cli::{Run, program};
use super::folders::temp;

/// The library to preload, compiled once.
fn library() -> &'static Path {
    static LIBRARY: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = LIBRARY.get_or_init(|| {
        let folder = temp();
        let path = folder.path().join("faults.so");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/support/faults.c");
        let status = Command::new("cc")
            .args(["-O1", "-shared", "-fPIC", "-o"])
            .arg(&path)
            .arg(source)
            .arg("-ldl")
            .status()
            .expect("run cc");
        assert!(status.success(), "cc cannot compile faults.c");
        (folder, path)
    });
    path
}

/// A fault that is to happen.
#[allow(dead_code)]
#[derive(Debug, Clone, Copy)]
pub enum Fault<'a> {
    /// The process is killed before its nth writing call.
    Kill(u64),
    /// The nth writing call fails, once, with this error.
    Fails(u64, i32),
    /// So do all after it.
    Full(u64, i32),
    /// Calls that always fail: `name:errno,…`.
    Never(&'a str),
    /// The nth read fails, once, with this error.
    Read(u64, i32),
    /// So do all after it.
    Reads(u64, i32),
    /// The disk has so many bytes free, each time it is asked: `bytes,…`; the last one stays.
    Free(&'a str),
    /// Every file system says that it is of this type.
    FileSystem(&'a str),
    /// A file whose path ends so cannot be opened.
    Open(&'a str, i32),
}

/// A command of the program with a fault in it.
pub fn faulty(fault: Fault<'_>) -> Command {
    let mut command = program();
    command.env("LD_PRELOAD", library());
    let mut set = |name: &str, value: &str| {
        command.env(format!("FAULT_{name}"), value);
    };
    match fault {
        Fault::Kill(n) => set("AT", &n.to_string()),
        Fault::Fails(n, error) | Fault::Full(n, error) => {
            set("AT", &n.to_string());
            set("ERRNO", &error.to_string());
        }
        Fault::Never(calls) => set("NEVER", calls),
        Fault::Free(bytes) => set("FREE", bytes),
        Fault::FileSystem(kind) => set("STATFS", kind),
        Fault::Read(n, error) | Fault::Reads(n, error) => {
            set("READ", &n.to_string());
            set("ERRNO", &error.to_string());
        }
        Fault::Open(path, error) => {
            set("PATH", path);
            set("ERRNO", &error.to_string());
        }
    }
    if matches!(fault, Fault::Full(..) | Fault::Reads(..)) {
        set("STICKY", "1");
    }
    command
}

/// How many writing calls a command makes when all goes well.
pub fn count_writes(arguments: &[std::ffi::OsString]) -> u64 {
    count_writes_without("", arguments)
}

/// [`count_writes`], where some calls always fail, as in [`Fault::Never`].
pub fn count_writes_without(never: &str, arguments: &[std::ffi::OsString]) -> u64 {
    let folder = temp();
    let file = folder.path().join("count");
    let mut command = program();
    command
        .env("LD_PRELOAD", library())
        .env("FAULT_NEVER", never)
        .env("FAULT_COUNT", &file)
        .args(arguments);
    Run::of(&mut command).ok();
    let count = std::fs::read_to_string(file).expect("read the count");
    count.trim().parse().expect("a number")
}
