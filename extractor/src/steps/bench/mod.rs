//! `bench`: what this machine can do, how near a model comes to it, and what follows for the whole
//! model.

mod error;
mod forecast;
mod gpu;
mod machine;
mod model;

use segpack_formats::io::CancelToken;
use segpack_manifests::Pack;
use segpack_manifests::documents::{BenchRate, BenchReport, GENERATOR};
use segpack_runtime_min::Kernels;
use segpack_runtime_min::session::SessionError;
use segpack_runtime_min::tensor::Compute;
use segpack_runtime_min::weights::ChecksumPolicy;

pub use self::error::BenchError;
pub(crate) use self::gpu::{GpuBenchSettings, bench_gpu};
use self::machine::Machine;
use self::model::ModelBench;
use super::{StepError, precision};
use crate::work::Progress;

/// What to measure.
#[derive(Debug, Clone)]
pub(crate) struct BenchSettings {
    /// Numbers of threads.
    pub threads: Vec<usize>,
    /// Lengths of prompts.
    pub prompts: Vec<usize>,
    /// Tokens to generate for each figure.
    pub tokens: usize,
    /// Budgets below what the model needs, in bytes, and whether to measure it wholly in memory
    /// too.
    pub memory: Vec<u64>,
    /// Whether to measure with everything in memory.
    pub resident: bool,
    /// How often to measure each figure.
    pub repeats: u32,
    /// Precision of activations.
    pub compute: Compute,
    /// When digests are compared.
    pub check: ChecksumPolicy,
    /// Layers of the model that the forecast is for; `None`: the pack's own.
    pub layers: Option<u32>,
    /// Budgets of the forecast, in bytes.
    pub forecast: Vec<u64>,
}

/// Measures the machine and the model.
///
/// # Errors
/// A pack that cannot be run or is damaged; too little memory.
pub(crate) fn bench(
    pack: &Pack,
    settings: &BenchSettings,
    stop: &CancelToken,
    progress: &dyn Progress,
) -> Result<BenchReport, StepError> {
    let kernels = Kernels::from_environment().map_err(SessionError::from)?;
    let model = ModelBench {
        pack,
        kernels,
        settings,
        stop,
    };
    let steps =
        settings.threads.len() * (1 + settings.memory.len() + usize::from(settings.resident)) + 1;
    progress.start_counting("measuring", steps as u64, "figure");
    let machine = Machine::measure(pack, kernels, settings, stop, progress)?;
    // the smallest budgets first: memory that a process had stays in its peak
    let mut memory = settings.memory.clone();
    memory.sort_unstable();
    let mut on_demand = Vec::new();
    for memory in memory {
        for limits in &machine.limits {
            on_demand.push(model.on_demand(memory, limits.threads)?);
            progress.advance(1);
        }
    }
    let mut resident = Vec::new();
    for limits in machine.limits.iter().filter(|_| settings.resident) {
        resident.push(model.resident(limits.threads)?);
        progress.advance(1);
    }
    progress.finish();
    let forecast = model.forecast(&machine)?;
    Ok(BenchReport {
        format_version: BenchReport::VERSION,
        generator: GENERATOR.to_owned(),
        instruction_set: kernels.name().to_owned(),
        compute: precision(settings.compute),
        repeats: settings.repeats,
        checked: settings.check == ChecksumPolicy::Always,
        drive_rate: machine.drive_rate,
        blake3_rate: machine.blake3_rate,
        limits: machine.limits,
        resident,
        on_demand,
        forecast,
    })
}

/// The middle one; of an even number the lower of the two.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values
        .get(values.len().saturating_sub(1) / 2)
        .copied()
        .unwrap_or(0.0)
}

/// The load of others lowers the median, and the highest less.
fn median_and_highest(values: Vec<f64>) -> (f64, f64) {
    let highest = values.iter().copied().fold(0.0, f64::max);
    (median(values), highest)
}

/// Rates of repetitions, each between two measurements of its limit.
#[derive(Debug, Default)]
struct Repetitions {
    rates: Vec<f64>,
    shares: Vec<f64>,
    highest_limit: f64,
}

impl Repetitions {
    /// A rate, and the limit before and after it.
    fn add(&mut self, rate: f64, [before, after]: [f64; 2]) {
        self.rates.push(rate);
        self.shares.push(rate / f64::midpoint(before, after));
        self.highest_limit = self.highest_limit.max(before).max(after);
    }

    fn into_rate(self) -> BenchRate {
        let tokens_per_second = median(self.rates);
        // of a limit that could not be measured, no share
        let finite = |share: f64| if share.is_finite() { share } else { 0.0 };
        BenchRate {
            tokens_per_second,
            share_of_limit: finite(median(self.shares)),
            share_of_highest_limit: finite(tokens_per_second / self.highest_limit),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_the_middle() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0]), 1.0);
        assert_eq!(median(Vec::new()), 0.0);
    }

    #[test]
    fn a_limit_that_sank_under_load_makes_no_share_larger() {
        let mut repetitions = Repetitions::default();
        for (rate, limit) in [(8.0, 10.0), (4.0, 5.0), (4.0, 5.0)] {
            repetitions.add(rate, [limit; 2]);
        }
        let rate = repetitions.into_rate();
        assert_eq!((rate.tokens_per_second, rate.share_of_limit), (4.0, 0.8));
        assert_eq!(rate.share_of_highest_limit, 0.4);
        assert_eq!(
            Repetitions::default().into_rate().share_of_highest_limit,
            0.0
        );
    }
}
