//! The model on this machine.

use std::time::Instant;

use segpack_formats::io::{CancelToken, InputFile};
use segpack_manifests::Pack;
use segpack_manifests::PackReader;
use segpack_manifests::documents::{BenchOnDemand, BenchPrefill, BenchRate, BenchResident};
use segpack_runtime_min::limits::{fma_peak, read_bandwidth};
use segpack_runtime_min::models::decoder::{Backend, Logits, RunSettings, Thinker};
use segpack_runtime_min::ops::{Compute, CpuOps};
use segpack_runtime_min::weights::{Demand, Residency};
use segpack_runtime_min::{Kernels, Unobserved};

use super::machine::{FMA_STEPS, drive_rate};
use super::{BenchSettings, median, on_threads};
use crate::steps::StepError;
use crate::steps::run::cpu_ops;

/// Tokens before those that are measured: a short prompt, as the start of any text.
pub(super) const PROMPT: usize = 16;
/// Bytes that are read from the drive before and after each figure.
const DRIVE_BYTES: u64 = 512 << 20;

/// Measures one pack.
pub(super) struct ModelBench<'a> {
    pub(super) pack: &'a Pack,
    pub(super) kernels: Kernels,
    pub(super) settings: &'a BenchSettings,
    pub(super) stop: &'a CancelToken,
}

/// Token ids without a pattern, so that experts are chosen as evenly as the router allows.
pub(super) struct Ids {
    state: u64,
    vocab: u64,
}

impl Ids {
    pub(super) fn new(vocab: u64) -> Self {
        Self { state: 1, vocab }
    }

    pub(super) fn next(&mut self) -> u32 {
        self.state = self
            .state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        u32::try_from((self.state >> 33) % self.vocab.max(1)).unwrap_or(0)
    }

    pub(super) fn some(&mut self, n: usize) -> Vec<u32> {
        (0..n).map(|_| self.next()).collect()
    }
}

impl ModelBench<'_> {
    fn with<T: Send>(
        &self,
        threads: usize,
        memory: Option<u64>,
        longest: usize,
        work: impl FnOnce(&mut Thinker<'_, CpuOps>, &mut Ids) -> Result<T, StepError> + Send,
    ) -> Result<T, StepError> {
        on_threads(threads, || {
            let source = PackReader::new(self.pack);
            let settings = RunSettings {
                memory,
                expert_slots: None,
                positions: longest + self.settings.tokens + 1,
                longest_pass: longest,
                check: self.settings.check,
            };
            let mut thinker = Thinker::new(&source, cpu_ops(Compute::F32)?, settings, self.stop)?;
            let mut ids = Ids::new(thinker.facts().vocab);
            work(&mut thinker, &mut ids)
        })?
    }

    /// With everything in memory.
    pub(super) fn resident(&self, threads: u64) -> Result<BenchResident, StepError> {
        let longest = self
            .settings
            .prompts
            .iter()
            .copied()
            .max()
            .unwrap_or(0)
            .max(PROMPT);
        self.with(
            usize::try_from(threads).unwrap_or(1),
            None,
            longest,
            |thinker, ids| {
                thinker.preload(&mut |_| ())?;
                let bytes_per_token = touched(&thinker.demand(), thinker);
                let decode = self.rate(
                    thinker,
                    |thinker| Ok(self.read_bandwidth(thinker) / float(bytes_per_token)),
                    |thinker| self.decode(thinker, ids).map(|d| d.tokens_per_second),
                )?;
                let flops = products_per_token(thinker);
                let mut prefill = Vec::new();
                for tokens in &self.settings.prompts {
                    let rate = self.rate(
                        thinker,
                        |_| Ok(fma_peak(self.kernels, FMA_STEPS) / flops),
                        |thinker| prefill_rate(thinker, &ids.some(*tokens)),
                    )?;
                    prefill.push(BenchPrefill {
                        tokens: *tokens as u64,
                        rate,
                    });
                }
                Ok(BenchResident {
                    threads,
                    decode,
                    bytes_per_token,
                    prefill,
                })
            },
        )
    }

    /// In less memory, from a cold page cache.
    pub(super) fn on_demand(&self, memory: u64, threads: u64) -> Result<BenchOnDemand, StepError> {
        self.forget()?;
        self.with(
            usize::try_from(threads).unwrap_or(1),
            Some(memory),
            PROMPT,
            |thinker, ids| {
                // slots in use and favourites in them, as after a text of some length: fresh memory
                // is slow once
                thinker.preload(&mut |_| ())?;
                self.decode(thinker, ids)?;
                let touched = float(touched(&thinker.demand(), thinker));
                let (mut seen, mut shares) = (Vec::new(), Vec::new());
                for _ in 0..self.settings.repeats {
                    let limits = |thinker: &Thinker<'_, CpuOps>| -> Result<[f64; 2], StepError> {
                        // 0 where the drive cannot be read past the page cache
                        let drive = drive_rate(self.pack, DRIVE_BYTES, self.stop)?.unwrap_or(0.0);
                        Ok([drive, self.read_bandwidth(thinker)])
                    };
                    let before = limits(thinker)?;
                    let decoded = self.decode(thinker, ids)?;
                    let after = limits(thinker)?;
                    let [drive, memory] = [0, 1].map(|i| f64::midpoint(before[i], after[i]));
                    let seconds = decoded.bytes_read_per_token / drive + touched / memory;
                    shares.push(decoded.tokens_per_second * seconds);
                    seen.push(decoded);
                }
                let of = |f: fn(&Decoded) -> f64| median(seen.iter().map(f).collect());
                let share_of_limit = Some(median(shares))
                    .filter(|s| s.is_finite())
                    .unwrap_or(0.0);
                Ok(BenchOnDemand {
                    memory,
                    threads,
                    expert_slots: thinker.budget().slots,
                    dense_resident: thinker.budget().residency == Residency::Resident,
                    hit_rate: of(|d| d.hit_rate),
                    bytes_read_per_token: of(|d| d.bytes_read_per_token),
                    decode: BenchRate {
                        tokens_per_second: of(|d| d.tokens_per_second),
                        share_of_limit,
                    },
                    waiting: of(|d| d.waiting),
                })
            },
        )
    }

    /// A rate and its share of a limit, both in tokens per second. They take turns: other users of
    /// the machine, and its clock, meet both.
    fn rate<'a>(
        &self,
        thinker: &mut Thinker<'a, CpuOps>,
        limit: impl Fn(&Thinker<'a, CpuOps>) -> Result<f64, StepError>,
        mut figure: impl FnMut(&mut Thinker<'a, CpuOps>) -> Result<f64, StepError>,
    ) -> Result<BenchRate, StepError> {
        figure(thinker)?; // the first time memory is touched and threads wake
        let (mut rates, mut shares) = (Vec::new(), Vec::new());
        for _ in 0..self.settings.repeats {
            let before = limit(thinker)?;
            let rate = figure(thinker)?;
            rates.push(rate);
            shares.push(rate / f64::midpoint(before, limit(thinker)?));
        }
        Ok(BenchRate {
            tokens_per_second: median(rates),
            share_of_limit: median(shares),
        })
    }

    /// The rate at which the weights that are in memory can be read.
    fn read_bandwidth(&self, thinker: &Thinker<'_, CpuOps>) -> f64 {
        read_bandwidth(self.kernels, &thinker.resident_memory())
    }

    /// The rest of the demand that a forecast needs.
    pub(super) fn demand(&self) -> Result<(Demand, u64, u64), StepError> {
        self.with(1, None, PROMPT, |thinker, _| {
            let layers = u64::from(thinker.facts().layers);
            Ok((thinker.demand(), layers, thinker.head_bytes()))
        })
    }

    /// A short prompt, then token by token.
    fn decode(
        &self,
        thinker: &mut Thinker<'_, CpuOps>,
        ids: &mut Ids,
    ) -> Result<Decoded, StepError> {
        thinker.reset();
        thinker.forward(&ids.some(PROMPT), Logits::Last, &mut Unobserved)?;
        let (before, began) = (thinker.stats(), Instant::now());
        for _ in 0..self.settings.tokens {
            thinker.forward(&[ids.next()], Logits::Last, &mut Unobserved)?;
        }
        let (seconds, after) = (began.elapsed().as_secs_f64(), thinker.stats());
        #[expect(clippy::cast_precision_loss, reason = "few")]
        let tokens = self.settings.tokens as f64;
        let hits = float(after.cache.hits - before.cache.hits);
        let uses = hits + float(after.cache.misses - before.cache.misses);
        Ok(Decoded {
            tokens_per_second: tokens / seconds,
            bytes_read_per_token: float(after.bytes_read - before.bytes_read) / tokens,
            hit_rate: if uses > 0.0 { hits / uses } else { 1.0 },
            waiting: (after.waited - before.waited).as_secs_f64() / seconds,
        })
    }

    fn forget(&self) -> Result<(), StepError> {
        for pack in &self.pack.manifest().packs {
            InputFile::open(&self.pack.path(&pack.path))?.forget();
        }
        Ok(())
    }
}

struct Decoded {
    tokens_per_second: f64,
    bytes_read_per_token: f64,
    hit_rate: f64,
    waiting: f64,
}

pub(super) fn prefill_rate<B: Backend>(
    thinker: &mut Thinker<'_, B>,
    ids: &[u32],
) -> Result<f64, StepError> {
    thinker.reset();
    let began = Instant::now();
    thinker.forward(ids, Logits::Last, &mut Unobserved)?;
    #[expect(clippy::cast_precision_loss, reason = "few")]
    let tokens = ids.len() as f64;
    Ok(tokens / began.elapsed().as_secs_f64())
}

#[expect(clippy::cast_precision_loss, reason = "for rates")]
pub(super) fn float(n: u64) -> f64 {
    n as f64
}

/// Bytes of weights that one token reads: everything dense, and its experts.
pub(super) fn touched<B: Backend>(demand: &Demand, thinker: &Thinker<'_, B>) -> u64 {
    demand.dense + thinker.expert_layers() * demand.experts_per_token * demand.expert
}

/// Floating-point operations in the products of one token of a prompt, the head left out: two for
/// each weight.
pub(super) fn products_per_token<B: Backend>(thinker: &Thinker<'_, B>) -> f64 {
    2.0 * float(touched(&thinker.demand(), thinker) - thinker.head_bytes())
        / float(thinker.bytes_per_weight())
}
