//! Packs: written, resumed, coded, given back.

mod codecs;
mod pipeline;
mod resume;
mod roundtrip;
