//! Checkpoints: what is in them, what should be, what is refused.

pub(crate) mod alone;
mod bad_checkpoints;
mod families;
mod int8;
mod names;
pub(crate) mod published;
mod quantization;
mod scan;
