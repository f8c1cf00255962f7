//! Reads packs on demand. For now: checked, decoded bytes of tensors and segments; the forward pass comes next.
//!
//! This crate never writes packs and knows nothing of command lines.

mod weights;

pub use weights::{WeightReader, WeightSource};
