//! The model families, one file each.

pub(crate) mod qwen3_moe;
pub(crate) mod qwen3_omni_moe;
