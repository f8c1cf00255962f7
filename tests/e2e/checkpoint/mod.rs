//! Checkpoints: what is in them, what should be, what is refused.

pub(crate) mod alone;
mod bad_checkpoints;
mod families;
mod names;
mod published;
mod quantization;
mod scan;
