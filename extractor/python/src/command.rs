//! The command `segpack`.

use std::ffi::OsString;

use pyo3::prelude::*;

/// Runs the command line with these arguments, the first of them the program's name, and returns its
/// exit status. Signals are its own from then on, so the process has to end after it.
#[pyfunction]
pub(crate) fn main(py: Python<'_>, arguments: Vec<OsString>) -> u8 {
    py.detach(|| segpack::cli::main_with(arguments))
}
