//! A model on a GPU: with all its weights there, and with fewer.

use std::time::Instant;

use segpack_formats::io::CancelToken;
use segpack_manifests::Pack;
use segpack_manifests::documents::{
    GENERATOR, GpuBenchOnDemand, GpuBenchPrefill, GpuBenchReport, GpuBenchResident,
};
use segpack_runtime_min::Unobserved;
use segpack_runtime_min::generate::ArgMax;
use segpack_runtime_min::session::{
    DeviceChoice, Logits, MemoryLimit, Model, Reservation, Session, SessionError, SessionOptions,
};
use segpack_runtime_min::tensor::Compute;
use segpack_runtime_min::weights::ChecksumPolicy;
use segpack_runtime_min::weights::Residency;

use super::error::BenchError;
use super::median;
use super::model::{Ids, PROMPT, float, prefill_rate, products_per_token, touched};
use crate::steps::{StepError, precision};

/// Steps of one token before the device chooses tokens itself.
const WARM_STEPS: usize = 3;
/// Short prompts before what is measured on demand: with random tokens nearly every expert is in
/// one of them.
const WARM_PROMPTS: usize = 8;

/// What to measure on a GPU.
#[derive(Debug, Clone)]
pub(crate) struct GpuBenchSettings {
    /// Its number.
    pub number: u32,
    /// Host memory for a model that does not fit; `None`: slots for a few experts.
    pub memory: Option<u64>,
    /// Precision of activations.
    pub compute: Compute,
    /// Lengths of prompts.
    pub prompts: Vec<usize>,
    /// Tokens to generate for each figure.
    pub tokens: usize,
    /// Budgets of GPU memory below what the model needs, in bytes.
    pub device_memory: Vec<u64>,
    /// Whether to measure with all weights on the GPU.
    pub resident: bool,
    /// How often to measure each figure.
    pub repeats: u32,
    /// When digests are compared.
    pub check: ChecksumPolicy,
}

/// Measures a model on a GPU.
///
/// # Errors
/// No such GPU; a pack that cannot be run or is damaged; too little memory.
pub(crate) fn bench_gpu(
    pack: &Pack,
    settings: &GpuBenchSettings,
    stop: &CancelToken,
) -> Result<GpuBenchReport, StepError> {
    let bench = GpuBench {
        pack,
        settings,
        stop,
    };
    let mut report = bench.describe()?;
    for memory in &settings.device_memory {
        report.on_demand.push(bench.on_demand(*memory)?);
    }
    if settings.resident {
        report.resident = Some(bench.resident()?);
    }
    Ok(report)
}

struct GpuBench<'a> {
    pack: &'a Pack,
    settings: &'a GpuBenchSettings,
    stop: &'a CancelToken,
}

impl GpuBench<'_> {
    fn session(&self, device: Option<u64>, host: Option<u64>) -> Result<Session<'_>, StepError> {
        let mut options = SessionOptions::default();
        options.device = DeviceChoice::Cuda(self.settings.number);
        options.compute = self.settings.compute;
        options.device_memory = device;
        options.memory = host.map_or(MemoryLimit::Unlimited, MemoryLimit::Bytes);
        options.check = self.settings.check;
        Ok(Session::open_cancellable(self.pack, &options, self.stop)?)
    }

    /// Measures with so much memory of the GPU and the host.
    fn with<T: Send>(
        &self,
        (device, host): (Option<u64>, Option<u64>),
        longest: usize,
        work: impl FnOnce(&mut Model<'_>, &mut Ids) -> Result<T, StepError> + Send,
    ) -> Result<T, StepError> {
        let reservation = Reservation {
            positions: longest + self.settings.tokens + WARM_STEPS + 1,
            longest_pass: longest,
        };
        self.session(device, host)?
            .with_model(reservation, |model| {
                let mut ids = Ids::new(model.facts().vocab);
                work(model, &mut ids)
            })
    }

    /// The report without any rate.
    fn describe(&self) -> Result<GpuBenchReport, StepError> {
        let session = self.session(None, None)?;
        session.with_model(
            Reservation {
                positions: 1,
                longest_pass: 1,
            },
            |model| {
                let demand = model.demand();
                Ok(GpuBenchReport {
                    format_version: GpuBenchReport::VERSION,
                    generator: GENERATOR.to_owned(),
                    device: session.device_name(),
                    compute: precision(self.settings.compute),
                    repeats: self.settings.repeats,
                    checked: self.settings.check == ChecksumPolicy::Always,
                    host_memory: self.settings.memory,
                    bytes_per_token: touched(&demand, model),
                    operations_per_token: products_per_token(model),
                    weights: demand.network.dense + demand.network.experts * demand.network.expert,
                    resident: None,
                    on_demand: Vec::new(),
                })
            },
        )
    }

    fn resident(&self) -> Result<GpuBenchResident, StepError> {
        let longest = self
            .settings
            .prompts
            .iter()
            .copied()
            .max()
            .unwrap_or(0)
            .max(PROMPT);
        self.with((None, None), longest, |model, ids| {
            if model.budget().residency != Residency::Resident
                || model.budget().slots < model.demand().network.experts
            {
                return Err(BenchError::NotResident.into());
            }
            let began = Instant::now();
            model.preload()?;
            let load_seconds = began.elapsed().as_secs_f64();
            let decode_tokens_per_second = median(self.repeat(|| self.decode(model, ids))?);
            let greedy_tokens_per_second = median(self.repeat(|| self.greedy(model, ids))?);
            let mut prefill = Vec::new();
            for tokens in &self.settings.prompts {
                let rate = median(self.repeat(|| prefill_rate(model, &ids.some(*tokens)))?);
                prefill.push(GpuBenchPrefill {
                    tokens: *tokens as u64,
                    tokens_per_second: rate,
                });
            }
            Ok(GpuBenchResident {
                load_seconds,
                decode_tokens_per_second,
                greedy_tokens_per_second,
                prefill,
            })
        })
    }

    fn on_demand(&self, memory: u64) -> Result<GpuBenchOnDemand, StepError> {
        self.with(
            (Some(memory), self.settings.memory),
            PROMPT,
            |model, ids| {
                // slots in use, on the GPU and in host memory, as after a text of some length
                for _ in 0..WARM_PROMPTS {
                    model.reset();
                    model.forward(&ids.some(PROMPT), Logits::Last, &mut Unobserved)?;
                }
                self.decode(model, ids)?;
                let before = model.stats();
                let mut rates = Vec::new();
                for _ in 0..self.settings.repeats {
                    rates.push(self.decode(model, ids)?);
                }
                let after = model.stats();
                let tokens = float(u64::from(self.settings.repeats))
                    * float((1 + WARM_STEPS + self.settings.tokens) as u64);
                let hits = float(after.cache.hits - before.cache.hits);
                let uses = hits + float(after.cache.misses - before.cache.misses);
                Ok(GpuBenchOnDemand {
                    device_memory: memory,
                    expert_slots: model.budget().slots,
                    dense_resident: model.budget().residency == Residency::Resident,
                    hit_rate: if uses > 0.0 { hits / uses } else { 1.0 },
                    bytes_copied_per_token: float(after.bytes_copied - before.bytes_copied)
                        / tokens,
                    bytes_read_per_token: float(after.bytes_read - before.bytes_read) / tokens,
                    decode_tokens_per_second: median(rates),
                })
            },
        )
    }

    fn repeat(
        &self,
        mut figure: impl FnMut() -> Result<f64, StepError>,
    ) -> Result<Vec<f64>, StepError> {
        figure()?;
        (0..self.settings.repeats).map(|_| figure()).collect()
    }

    /// One token to begin with, then token by token.
    fn decode(&self, model: &mut Model<'_>, ids: &mut Ids) -> Result<f64, StepError> {
        self.warm(model, ids)?;
        let began = Instant::now();
        for _ in 0..self.settings.tokens {
            model.forward(&[ids.next()], Logits::Last, &mut Unobserved)?;
        }
        Ok(float(self.settings.tokens as u64) / began.elapsed().as_secs_f64())
    }

    /// The same, with tokens that the device chooses.
    fn greedy(&self, model: &mut Model<'_>, ids: &mut Ids) -> Result<f64, StepError> {
        self.warm(model, ids)?;
        let began = Instant::now();
        let mut next = vec![ArgMax::default(); self.settings.tokens];
        if !model.greedy(ids.next(), &mut next)? {
            return Err(BenchError::NotOnItsOwn.into());
        }
        let rate = float(self.settings.tokens as u64) / began.elapsed().as_secs_f64();
        for greatest in next {
            greatest.token().map_err(SessionError::from)?;
        }
        Ok(rate)
    }

    fn warm(&self, model: &mut Model<'_>, ids: &mut Ids) -> Result<(), StepError> {
        model.reset();
        for _ in 0..=WARM_STEPS {
            model.forward(&[ids.next()], Logits::Last, &mut Unobserved)?;
        }
        Ok(())
    }
}
