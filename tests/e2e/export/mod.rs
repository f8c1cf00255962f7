//! Exports for other runtimes.

mod gguf;
mod origin;
mod targets;
