//! Neural networks, each in a folder of its own.

pub mod audio_encoder;
pub mod code2wav;
pub mod decoder;
pub mod encoder;
pub mod omni;
pub mod talker;
pub mod vision_encoder;
