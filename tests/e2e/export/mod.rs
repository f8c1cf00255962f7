//! Exports for other runtimes.

mod gguf;
mod gguf_families;
mod imatrix;
mod mmproj;
mod origin;
mod share;
mod targets;
