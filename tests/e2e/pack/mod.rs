//! Packs: written, resumed, coded, given back.

mod all_or_nothing;
mod codecs;
mod consume;
mod filesystems;
mod graft;
#[cfg(target_os = "linux")]
mod manifest_memory;
mod parts;
mod pipeline;
mod places;
mod repair;
mod replace;
mod resume;
mod roundtrip;
mod space;
mod update;
