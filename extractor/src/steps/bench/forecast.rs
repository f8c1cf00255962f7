//! From the figures of a few layers to the whole model: arithmetic, no measurement.

use segpack_manifests::documents::{BenchForecast, BenchForecastBudget};
use segpack_runtime_min::weights::Demand;

use super::machine::Machine;
use super::model::{ModelBench, float};
use crate::steps::StepError;

/// A model of so many layers like those measured.
fn scaled(demand: &Demand, head: u64, from: u64, to: u64) -> Demand {
    let scale = |n: u64| n.checked_div(from).unwrap_or(0) * to;
    let layers = demand.dense.saturating_sub(head);
    Demand {
        manifest: scale(demand.manifest),
        kv: scale(demand.kv),
        dense: scale(layers) + head,
        experts: scale(demand.experts),
        ..*demand
    }
}

impl ModelBench<'_> {
    /// What a model of the same width needs and reaches, with the best limits measured.
    pub(super) fn forecast(&self, machine: &Machine) -> Result<BenchForecast, StepError> {
        let (demand, measured_layers, head) = self.demand()?;
        let layers = self.settings.layers.map_or(measured_layers, u64::from);
        let demand = scaled(&demand, head, measured_layers, layers);
        let of_experts = demand.experts.checked_div(layers).unwrap_or(0);
        let expert_layers = if of_experts > 0 { layers } else { 0 };
        let visited = expert_layers * demand.experts_per_token;
        let touched = demand.dense + visited * demand.expert;
        let bandwidth = machine
            .limits
            .iter()
            .map(|l| l.read_bandwidth)
            .fold(0.0, f64::max);
        let budget = |memory: u64| -> Option<BenchForecastBudget> {
            let shared = demand.share(Some(memory), None).ok()?;
            let hit_rate = if demand.experts > 0 {
                float(shared.slots) / float(demand.experts)
            } else {
                1.0
            };
            let dense = if shared.residency == segpack_runtime_min::weights::Residency::Resident {
                0
            } else {
                demand.dense
            };
            let read = (1.0 - hit_rate) * float(visited * demand.expert) + float(dense);
            let drive = machine.drive_rate?;
            let tokens_per_second = 1.0 / (read / drive + float(touched) / bandwidth);
            Some(BenchForecastBudget {
                memory,
                hit_rate,
                bytes_read_per_token: read,
                tokens_per_second,
            })
        };
        Ok(BenchForecast {
            layers,
            weights: demand.dense + demand.experts * demand.expert,
            bytes_per_token: touched,
            least_memory: demand.least(),
            resident_tokens_per_second: bandwidth / float(touched),
            budgets: self
                .settings
                .forecast
                .iter()
                .filter_map(|m| budget(*m))
                .collect(),
        })
    }
}
