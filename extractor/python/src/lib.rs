//! The native half of the Python package `segpack`: packs, verification, sessions, the command.
//!
//! Everything that takes long releases the interpreter's lock. What Python users see is in
//! `python/segpack`; names here are its private business.

mod command;
mod error;
mod interrupt;
mod pack;
mod session;
mod verify;

use pyo3::prelude::*;

/// `segpack._native`.
#[pymodule]
mod _native {
    #[pymodule_export]
    use super::command::main;
    #[pymodule_export]
    use super::pack::{Pack, TensorInfo, dtypes};
    #[pymodule_export]
    use super::session::{Session, Stream};
    #[pymodule_export]
    use super::verify::verify;

    use super::{Bound, PyModule, PyModuleMethods, PyResult};

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
