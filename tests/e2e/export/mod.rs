//! Exports for other runtimes.

mod gguf;
mod imatrix;
mod origin;
mod share;
mod targets;
