//! Exports for other runtimes.

mod gguf;
mod targets;
