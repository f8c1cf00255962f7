//! The projections from a thinker's hidden states into its talker.

use std::ops::Range;

use crate::families::rules::{Dims, Placeholder, Row, bias, row};
use crate::names::Role;

/// Sizes of the projections.
pub(crate) struct TalkerInput {
    pub(crate) hidden: u64,
    pub(crate) intermediate: u64,
    /// Width of what the projections take in.
    pub(crate) thinker_hidden: u64,
}

impl Dims for TalkerInput {
    fn range(&self, _: Placeholder) -> Range<u32> {
        0..0
    }
}

fn hidden_vector(dims: &TalkerInput, _: &[u32]) -> Vec<u64> {
    vec![dims.hidden]
}

/// Source: Qwen3OmniMoeTalkerResizeMLP, transformers 5.23, modeling_qwen3_omni_moe.py:2391.
pub(crate) static TALKER_INPUT: &[Row<TalkerInput>] = &[
    row(
        "text_projection.linear_fc1.weight",
        Role::Projection,
        |d, _| vec![d.intermediate, d.thinker_hidden],
    ),
    bias(
        "text_projection.linear_fc1.bias",
        Role::Projection,
        |d, _| vec![d.intermediate],
    ),
    row(
        "text_projection.linear_fc2.weight",
        Role::Projection,
        |d, _| vec![d.hidden, d.intermediate],
    ),
    bias(
        "text_projection.linear_fc2.bias",
        Role::Projection,
        hidden_vector,
    ),
    row(
        "hidden_projection.linear_fc1.weight",
        Role::Projection,
        |d, _| vec![d.intermediate, d.thinker_hidden],
    ),
    bias(
        "hidden_projection.linear_fc1.bias",
        Role::Projection,
        |d, _| vec![d.intermediate],
    ),
    row(
        "hidden_projection.linear_fc2.weight",
        Role::Projection,
        |d, _| vec![d.hidden, d.intermediate],
    ),
    bias(
        "hidden_projection.linear_fc2.bias",
        Role::Projection,
        hidden_vector,
    ),
];
