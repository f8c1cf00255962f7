//! Packs: written, resumed, coded, given back.

mod codecs;
#[cfg(target_os = "linux")]
mod manifest_memory;
mod pipeline;
mod replace;
mod resume;
mod roundtrip;
