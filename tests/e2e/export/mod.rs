//! Exports for other runtimes.

mod gguf;
mod gguf_families;
mod imatrix;
mod origin;
mod share;
mod targets;
