//! The model families, one file and one row each.

mod qwen3_moe;
mod qwen3_omni_moe;

use super::FamilyRow;

/// The registry: where two families name equally many tensors, the last is guessed.
pub(crate) static FAMILIES: &[&FamilyRow] = &[&qwen3_omni_moe::FAMILY, &qwen3_moe::FAMILY];
