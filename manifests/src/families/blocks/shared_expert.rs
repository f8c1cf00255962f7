//! The shared expert, which every token visits, with its scalar gate.

use std::ops::Range;

use crate::families::rules::{Dims, Placeholder, Row, row};
use crate::names::Role;

/// Sizes of the shared experts.
pub(crate) struct SharedExpert {
    pub(crate) layers: u32,
    pub(crate) hidden: u64,
    pub(crate) intermediate: u64,
}

impl Dims for SharedExpert {
    fn range(&self, placeholder: Placeholder) -> Range<u32> {
        match placeholder {
            Placeholder::Layer => 0..self.layers,
            _ => 0..0,
        }
    }
}

fn shared_in(dims: &SharedExpert, _: &[u32]) -> Vec<u64> {
    vec![dims.intermediate, dims.hidden]
}

/// Source: Qwen3OmniMoeTalkerTextSparseMoeBlock, modeling_qwen3_omni_moe.py:2881.
pub(crate) static SHARED_EXPERT: &[Row<SharedExpert>] = &[
    row(
        "model.layers.{layer}.mlp.shared_expert.gate_proj.weight",
        Role::SharedExpertGate,
        shared_in,
    ),
    row(
        "model.layers.{layer}.mlp.shared_expert.up_proj.weight",
        Role::SharedExpertUp,
        shared_in,
    ),
    row(
        "model.layers.{layer}.mlp.shared_expert.down_proj.weight",
        Role::SharedExpertDown,
        |d, _| vec![d.hidden, d.intermediate],
    ),
    row(
        "model.layers.{layer}.mlp.shared_expert_gate.weight",
        Role::SharedExpertRouter,
        |d, _| vec![1, d.hidden],
    ),
];
