//! RMS norms of a decoder: before attention and MLP of each layer, and after the last layer.

use std::ops::Range;

use crate::families::rules::{Dims, Placeholder, Row, row};
use crate::names::Role;

/// Sizes of the norms.
pub(crate) struct Norms {
    pub(crate) layers: u32,
    pub(crate) hidden: u64,
}

impl Dims for Norms {
    fn range(&self, placeholder: Placeholder) -> Range<u32> {
        match placeholder {
            Placeholder::Layer => 0..self.layers,
            _ => 0..0,
        }
    }
}

fn hidden_vector(dims: &Norms, _: &[u32]) -> Vec<u64> {
    vec![dims.hidden]
}

/// Source: Qwen3OmniMoeThinkerTextDecoderLayer, transformers 5.23,
/// modeling_qwen3_omni_moe.py:1524; Qwen3MoeDecoderLayer is the same.
pub(crate) static NORMS: &[Row<Norms>] = &[
    row(
        "model.layers.{layer}.input_layernorm.weight",
        Role::InputNorm,
        hidden_vector,
    ),
    row(
        "model.layers.{layer}.post_attention_layernorm.weight",
        Role::PostAttentionNorm,
        hidden_vector,
    ),
    row("model.norm.weight", Role::FinalNorm, hidden_vector),
];
