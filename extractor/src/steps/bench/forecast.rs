//! From the figures of a few layers to the whole model: arithmetic, no measurement.

use segpack_manifests::documents::{BenchForecast, BenchForecastBudget};
use segpack_runtime_min::weights::{Demand, NetworkDemand, Residency};

use super::machine::Machine;
use super::model::{ModelBench, float};
use crate::steps::StepError;

/// A model of so many layers like those measured.
fn scaled(demand: &Demand, head: u64, from: u64, to: u64) -> Demand {
    let scale = |n: u64| n.checked_div(from).unwrap_or(0) * to;
    let layers = demand.network.dense.saturating_sub(head);
    Demand {
        manifest: scale(demand.manifest),
        network: NetworkDemand {
            state: scale(demand.network.state),
            dense: scale(layers) + head,
            experts: scale(demand.network.experts),
            ..demand.network
        },
        ..*demand
    }
}

/// What one token takes.
struct PerToken {
    /// Bytes of its experts.
    experts: u64,
    /// Bytes of all weights that it reads.
    touched: u64,
    /// Bytes of memory that can be read in a second.
    bandwidth: f64,
    /// Bytes of the drive, where it can be read past the page cache.
    drive: Option<f64>,
}

impl PerToken {
    /// A budget that is too small, or a drive that is not known, has no forecast.
    fn forecast(&self, demand: &Demand, memory: u64) -> Option<BenchForecastBudget> {
        let budget = demand.share(Some(memory), None).ok()?;
        let hit_rate = match demand.network.experts {
            0 => 1.0,
            experts => float(budget.slots) / float(experts),
        };
        let dense = match budget.residency {
            Residency::Resident => 0,
            Residency::Streamed => demand.network.dense,
        };
        let read = (1.0 - hit_rate) * float(self.experts) + float(dense);
        let seconds = read / self.drive? + float(self.touched) / self.bandwidth;
        Some(BenchForecastBudget {
            memory,
            hit_rate,
            bytes_read_per_token: read,
            tokens_per_second: 1.0 / seconds,
        })
    }
}

impl ModelBench<'_> {
    /// What a model of the same width needs and reaches, with the best limits measured.
    pub(super) fn forecast(&self, machine: &Machine) -> Result<BenchForecast, StepError> {
        let (demand, measured_layers, head) = self.demand()?;
        let layers = self.settings.layers.map_or(measured_layers, u64::from);
        let demand = scaled(&demand, head, measured_layers, layers);
        let of_experts = demand.network.experts.checked_div(layers).unwrap_or(0);
        let expert_layers = if of_experts > 0 { layers } else { 0 };
        let visited = expert_layers * demand.network.experts_per_token;
        let touched = demand.network.dense + visited * demand.network.expert;
        let bandwidth = machine
            .limits
            .iter()
            .map(|l| l.read_bandwidth)
            .fold(0.0, f64::max);
        let per_token = PerToken {
            experts: visited * demand.network.expert,
            touched,
            bandwidth,
            drive: machine.drive_rate,
        };
        Ok(BenchForecast {
            layers,
            weights: demand.network.dense + demand.network.experts * demand.network.expert,
            bytes_per_token: touched,
            least_memory: demand.min(),
            resident_tokens_per_second: bandwidth / float(touched),
            budgets: self
                .settings
                .forecast
                .iter()
                .filter_map(|memory| per_token.forecast(&demand, *memory))
                .collect(),
        })
    }
}
