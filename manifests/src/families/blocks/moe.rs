//! Routed experts: the router, and SwiGLU experts stored one by one or stacked.

use std::ops::Range;

use crate::families::config::{ConfigError, MAX_COUNT, Section};
use crate::families::rules::{Dims, Placeholder, Row, Stack, row, stacked_names};
use crate::names::Role;

/// What the configuration class takes for keys that `config.json` leaves out.
pub(crate) struct MoeDefaults {
    pub(crate) experts: u64,
    pub(crate) intermediate: u64,
}

/// Which layers have experts.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sparsity {
    /// As `mlp_only_layers` and `decoder_sparse_step` say.
    ByLayer,
    /// All of them, whatever those keys say.
    Everywhere,
    /// None.
    Nowhere,
}

/// What a layer has in the place of its MLP.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Experts {
    /// A dense MLP.
    Absent,
    /// Experts, stored one by one.
    Apart,
    /// Experts, stored in one tensor for each role.
    Stacked,
}

/// Sizes of the experts of all layers.
pub(crate) struct Moe {
    hidden: u64,
    pub(crate) experts: u32,
    pub(crate) intermediate: u64,
    layers: Vec<Experts>,
}

impl Moe {
    pub(crate) fn read(
        section: &Section<'_>,
        defaults: &MoeDefaults,
        sparsity: Sparsity,
        layers: u32,
        hidden: u64,
    ) -> Result<Self, ConfigError> {
        if sparsity == Sparsity::Nowhere {
            return Ok(Self {
                hidden,
                experts: 0,
                intermediate: 0,
                layers: vec![Experts::Absent; layers as usize],
            });
        }
        // transformers 5 writes num_local_experts where 4 wrote num_experts
        let key = section.either("num_experts", "num_local_experts");
        let experts = section.count(key, Some(defaults.experts), 0)?;
        Ok(Self {
            hidden,
            experts,
            intermediate: section.size("moe_intermediate_size", Some(defaults.intermediate))?,
            layers: sparse_layers(section, sparsity, layers, experts)?,
        })
    }

    /// Finds the layers whose experts are stored stacked: `is_present` knows a stacked name.
    pub(crate) fn find_stacked(&mut self, prefix: &'static str, is_present: &dyn Fn(&str) -> bool) {
        for (layer, experts) in (0..).zip(&mut self.layers) {
            let mut names = stacked_names(prefix, MOE, layer);
            if *experts == Experts::Apart && names.any(|name| is_present(&name)) {
                *experts = Experts::Stacked;
            }
        }
    }

    /// For each layer whether it has no experts.
    pub(crate) fn dense_layers(&self) -> Vec<bool> {
        self.layers.iter().map(|e| *e == Experts::Absent).collect()
    }

    /// How many layers have experts.
    pub(crate) fn sparse_layers(&self) -> u32 {
        let sparse = self.layers.iter().filter(|e| **e != Experts::Absent);
        u32::try_from(sparse.count()).unwrap_or(u32::MAX)
    }

    fn at(&self, layer: u32) -> Experts {
        let experts = self.layers.get(layer as usize).copied();
        experts.unwrap_or(Experts::Absent)
    }

    fn is_moe(&self, layer: u32) -> bool {
        self.at(layer) != Experts::Absent
    }

    fn is_apart(&self, layer: u32) -> bool {
        self.at(layer) == Experts::Apart
    }

    fn is_stacked(&self, layer: u32) -> bool {
        self.at(layer) == Experts::Stacked
    }
}

impl Dims for Moe {
    fn range(&self, placeholder: Placeholder) -> Range<u32> {
        match placeholder {
            Placeholder::Layer => 0..u32::try_from(self.layers.len()).unwrap_or(0),
            Placeholder::Expert => 0..self.experts,
            Placeholder::Named(_) => 0..0,
        }
    }
}

/// For each layer of a decoder whether it has experts, as `mlp_only_layers` and
/// `decoder_sparse_step` say.
pub(crate) fn layers_with_experts(
    section: &Section<'_>,
    layers: u32,
    experts: u32,
) -> Result<Vec<bool>, ConfigError> {
    let layers = sparse_layers(section, Sparsity::ByLayer, layers, experts)?;
    Ok(layers.iter().map(|e| *e != Experts::Absent).collect())
}

/// Source: Qwen3OmniMoeThinkerTextDecoderLayer, transformers 5.23, modeling_qwen3_omni_moe.py:1524.
fn sparse_layers(
    section: &Section<'_>,
    sparsity: Sparsity,
    layers: u32,
    experts: u32,
) -> Result<Vec<Experts>, ConfigError> {
    let everywhere = match experts {
        0 => Experts::Absent,
        _ => Experts::Apart,
    };
    let mut sparse = vec![everywhere; layers as usize];
    if sparsity == Sparsity::ByLayer {
        // class defaults: every layer, no exceptions
        let step = section.integer("decoder_sparse_step", Some(1), 1..=MAX_COUNT)?;
        let dense = section.integers("mlp_only_layers", &[], 0..=MAX_COUNT)?;
        for (number, layer) in (1_u64..).zip(&mut sparse) {
            if number % step != 0 {
                *layer = Experts::Absent;
            }
        }
        for number in dense {
            let number = usize::try_from(number).unwrap_or(usize::MAX);
            if let Some(layer) = sparse.get_mut(number) {
                *layer = Experts::Absent;
            }
        }
    }
    Ok(sparse)
}

fn router(dims: &Moe, _: &[u32]) -> Vec<u64> {
    vec![dims.experts.into(), dims.hidden]
}

fn expert_in(dims: &Moe, _: &[u32]) -> Vec<u64> {
    vec![dims.intermediate, dims.hidden]
}

fn expert_out(dims: &Moe, _: &[u32]) -> Vec<u64> {
    vec![dims.hidden, dims.intermediate]
}

fn stacked_in(dims: &Moe, _: &[u32]) -> Vec<u64> {
    vec![dims.experts.into(), 2 * dims.intermediate, dims.hidden]
}

fn stacked_out(dims: &Moe, _: &[u32]) -> Vec<u64> {
    vec![dims.experts.into(), dims.hidden, dims.intermediate]
}

/// Source: Qwen3OmniMoeThinkerTextTopKRouter and …Experts, modeling_qwen3_omni_moe.py:1305-1353;
/// per expert as conversion_mapping.py:1297 takes them apart: gate rows before up rows.
pub(crate) static MOE: &[Row<Moe>] = &[
    row("model.layers.{layer}.mlp.gate.weight", Role::Router, router).when(Moe::is_moe),
    row(
        "model.layers.{layer}.mlp.experts.{expert}.gate_proj.weight",
        Role::ExpertGate,
        expert_in,
    )
    .when(Moe::is_apart),
    row(
        "model.layers.{layer}.mlp.experts.{expert}.up_proj.weight",
        Role::ExpertUp,
        expert_in,
    )
    .when(Moe::is_apart),
    row(
        "model.layers.{layer}.mlp.experts.{expert}.down_proj.weight",
        Role::ExpertDown,
        expert_out,
    )
    .when(Moe::is_apart),
    row(
        "model.layers.{layer}.mlp.experts.gate_up_proj",
        Role::ExpertGateUpStacked,
        stacked_in,
    )
    .when(Moe::is_stacked)
    .stack(Stack::of(&[Role::ExpertGate, Role::ExpertUp])),
    row(
        "model.layers.{layer}.mlp.experts.down_proj",
        Role::ExpertDownStacked,
        stacked_out,
    )
    .when(Moe::is_stacked)
    .stack(Stack::of(&[Role::ExpertDown])),
];
