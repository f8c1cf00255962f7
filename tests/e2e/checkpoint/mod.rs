//! Checkpoints: what is in them, what should be, what is refused.

mod alone;
mod bad_checkpoints;
mod families;
mod published;
mod quantization;
mod scan;
