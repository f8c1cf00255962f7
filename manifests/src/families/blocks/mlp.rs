//! The SwiGLU MLP of dense layers.

use std::ops::Range;

use crate::families::rules::{Dims, Placeholder, Row, row};
use crate::names::Role;

/// Sizes of the dense MLPs.
pub(crate) struct Mlp {
    pub(crate) hidden: u64,
    pub(crate) intermediate: u64,
    /// For each layer whether it is dense.
    pub(crate) dense: Vec<bool>,
}

impl Mlp {
    fn is_dense(&self, layer: u32) -> bool {
        self.dense.get(layer as usize).copied().unwrap_or(false)
    }
}

impl Dims for Mlp {
    fn range(&self, placeholder: Placeholder) -> Range<u32> {
        match placeholder {
            Placeholder::Layer => 0..u32::try_from(self.dense.len()).unwrap_or(0),
            _ => 0..0,
        }
    }
}

fn mlp_in(dims: &Mlp, _: &[u32]) -> Vec<u64> {
    vec![dims.intermediate, dims.hidden]
}

fn mlp_out(dims: &Mlp, _: &[u32]) -> Vec<u64> {
    vec![dims.hidden, dims.intermediate]
}

/// Source: Qwen3OmniMoeThinkerTextMLP, modeling_qwen3_omni_moe.py:1504.
pub(crate) static MLP: &[Row<Mlp>] = &[
    row(
        "model.layers.{layer}.mlp.gate_proj.weight",
        Role::MlpGate,
        mlp_in,
    )
    .when(Mlp::is_dense),
    row(
        "model.layers.{layer}.mlp.up_proj.weight",
        Role::MlpUp,
        mlp_in,
    )
    .when(Mlp::is_dense),
    row(
        "model.layers.{layer}.mlp.down_proj.weight",
        Role::MlpDown,
        mlp_out,
    )
    .when(Mlp::is_dense),
];
