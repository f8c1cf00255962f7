#![doc = include_str!("../FORMAT.md")]

pub mod codec;
pub mod digest;
mod error;
pub mod gguf;
pub mod io;
pub mod npy;
pub mod numeric;
pub mod pack;
pub mod safetensors;
pub mod strict_json;

pub use error::{FormatError, Result};
