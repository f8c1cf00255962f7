//! One fuzz target for each parser of segpack. The bodies are shared with `tests/e2e/integrity/fuzz_smoke.rs`.
//!
//! In the repository's root, on a stable toolchain, with `cargo install cargo-fuzz`:
//!
//! ```text
//! cd formats && mkdir -p fuzz/corpus-found/manifest
//! RUSTC_BOOTSTRAP=1 cargo fuzz run manifest fuzz/corpus-found/manifest fuzz/corpus/manifest -- \
//!     -max_total_time=60 -malloc_limit_mb=64
//! ```
//!
//! `corpus/` is committed and small; `cargo run --example seeds`, in this folder, writes it again.
//! What a run finds goes to `corpus-found/`, which git ignores.

pub mod bodies;
