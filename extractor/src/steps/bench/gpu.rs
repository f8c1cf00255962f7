//! A model on a GPU: with all its weights there, and with fewer.

use std::time::Instant;

use segpack_formats::io::CancelToken;
use segpack_manifests::Pack;
use segpack_manifests::PackReader;
use segpack_manifests::documents::{
    GENERATOR, GpuBenchOnDemand, GpuBenchPrefill, GpuBenchReport, GpuBenchResident, Precision,
};
use segpack_runtime_min::devices::cuda::Cuda;
use segpack_runtime_min::generate::Greatest;
use segpack_runtime_min::models::decoder::{Check, Logits, RunSettings, Thinker};
use segpack_runtime_min::ops::Compute;
use segpack_runtime_min::weights::Residency;
use segpack_runtime_min::{RunError, Unobserved};

use super::median;
use super::model::{Ids, PROMPT, float, prefill_rate, products_per_token, touched};
use crate::steps::StepError;

/// Steps of one token before the device chooses tokens itself.
const WARM_STEPS: usize = 3;
/// Short prompts before what is measured on demand: with random tokens nearly every expert is in
/// one of them.
const WARM_PROMPTS: usize = 8;

/// What to measure on a GPU.
#[derive(Debug, Clone)]
pub struct GpuBenchSettings {
    /// Its number.
    pub number: u32,
    /// Host memory for a model that does not fit; slots for a few experts where it is none.
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
    pub check: Check,
}

/// Measures a model on a GPU.
///
/// # Errors
/// No such GPU; a pack that cannot be run or is damaged; too little memory.
pub fn bench_gpu(
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
    fn with<T>(
        &self,
        (device, host): (Option<u64>, Option<u64>),
        longest: usize,
        work: impl FnOnce(&mut Thinker<'_, Cuda>, &mut Ids) -> Result<T, StepError>,
    ) -> Result<T, StepError> {
        let cuda = Cuda::open(self.settings.number, self.settings.compute, device)
            .map_err(RunError::from)?;
        let source = PackReader::new(self.pack);
        let settings = RunSettings {
            memory: host,
            positions: longest + self.settings.tokens + WARM_STEPS + 1,
            longest_pass: longest,
            check: self.settings.check,
            ..RunSettings::default()
        };
        let mut thinker = Thinker::new(&source, cuda, settings, self.stop)?;
        let mut ids = Ids::new(thinker.facts().vocab);
        work(&mut thinker, &mut ids)
    }

    /// The report without any rate.
    fn describe(&self) -> Result<GpuBenchReport, StepError> {
        let cuda = Cuda::open(self.settings.number, self.settings.compute, None)
            .map_err(RunError::from)?;
        let device = format!("cuda:{} {}", cuda.info().number, cuda.info().name);
        let source = PackReader::new(self.pack);
        let settings = RunSettings {
            positions: 1,
            longest_pass: 1,
            ..RunSettings::default()
        };
        let thinker = Thinker::new(&source, cuda, settings, self.stop)?;
        let demand = thinker.demand();
        Ok(GpuBenchReport {
            format_version: GpuBenchReport::VERSION,
            generator: GENERATOR.to_owned(),
            device,
            compute: match self.settings.compute {
                Compute::F32 => Precision::Float32,
                Compute::Bf16 => Precision::Bfloat16,
            },
            repeats: self.settings.repeats,
            checked: self.settings.check == Check::Always,
            host_memory: self.settings.memory,
            bytes_per_token: touched(&demand, &thinker),
            operations_per_token: products_per_token(&thinker),
            weights: demand.dense + demand.experts * demand.expert,
            resident: None,
            on_demand: Vec::new(),
        })
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
        self.with((None, None), longest, |thinker, ids| {
            if thinker.budget().residency != Residency::Resident
                || thinker.budget().slots < thinker.demand().experts
            {
                let what =
                    "the GPU has too little memory for all weights; --no-resident leaves that out";
                return Err(StepError::Refused(what.to_owned()));
            }
            let began = Instant::now();
            thinker.preload(&mut |_| ())?;
            let load_seconds = began.elapsed().as_secs_f64();
            let decode_tokens_per_second = median(self.repeat(|| self.decode(thinker, ids))?);
            let greedy_tokens_per_second = median(self.repeat(|| self.greedy(thinker, ids))?);
            let mut prefill = Vec::new();
            for tokens in &self.settings.prompts {
                let rate = median(self.repeat(|| prefill_rate(thinker, &ids.some(*tokens)))?);
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
            |thinker, ids| {
                // slots in use, on the GPU and in host memory, as after a text of some length
                for _ in 0..WARM_PROMPTS {
                    thinker.reset();
                    thinker.forward(&ids.some(PROMPT), Logits::Last, &mut Unobserved)?;
                }
                self.decode(thinker, ids)?;
                let before = thinker.stats();
                let mut rates = Vec::new();
                for _ in 0..self.settings.repeats {
                    rates.push(self.decode(thinker, ids)?);
                }
                let after = thinker.stats();
                let tokens = float(u64::from(self.settings.repeats))
                    * float((1 + WARM_STEPS + self.settings.tokens) as u64);
                let hits = float(after.cache.hits - before.cache.hits);
                let uses = hits + float(after.cache.misses - before.cache.misses);
                Ok(GpuBenchOnDemand {
                    device_memory: memory,
                    expert_slots: thinker.budget().slots,
                    dense_resident: thinker.budget().residency == Residency::Resident,
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
    fn decode(&self, thinker: &mut Thinker<'_, Cuda>, ids: &mut Ids) -> Result<f64, StepError> {
        self.warm(thinker, ids)?;
        let began = Instant::now();
        for _ in 0..self.settings.tokens {
            thinker.forward(&[ids.next()], Logits::Last, &mut Unobserved)?;
        }
        Ok(float(self.settings.tokens as u64) / began.elapsed().as_secs_f64())
    }

    /// The same, with tokens that the device chooses.
    fn greedy(&self, thinker: &mut Thinker<'_, Cuda>, ids: &mut Ids) -> Result<f64, StepError> {
        self.warm(thinker, ids)?;
        let began = Instant::now();
        let mut next = vec![Greatest::default(); self.settings.tokens];
        if !thinker.greedy(ids.next(), &mut next)? {
            return Err(StepError::Refused(
                "the GPU cannot go on by itself: not all weights are there".to_owned(),
            ));
        }
        let rate = float(self.settings.tokens as u64) / began.elapsed().as_secs_f64();
        for greatest in next {
            greatest
                .token()
                .map_err(|e| StepError::Refused(e.to_string()))?;
        }
        Ok(rate)
    }

    fn warm(&self, thinker: &mut Thinker<'_, Cuda>, ids: &mut Ids) -> Result<(), StepError> {
        thinker.reset();
        for _ in 0..=WARM_STEPS {
            thinker.forward(&[ids.next()], Logits::Last, &mut Unobserved)?;
        }
        Ok(())
    }
}
