//! The model on this machine.

use std::cell::Cell;
use std::time::Instant;

use segpack_formats::io::{CancelToken, InputFile};
use segpack_manifests::Pack;
use segpack_manifests::documents::{
    BenchOnDemand, BenchPrefill, BenchPrefillLimit, BenchRate, BenchResident,
};
use segpack_runtime_min::limits::{multiply_add_peak, read_bandwidth};
use segpack_runtime_min::session::{
    Logits, MemoryLimit, Model, Reservation, Session, SessionOptions,
};
use segpack_runtime_min::weights::{Demand, Residency};
use segpack_runtime_min::{Kernels, Unobserved};

use super::machine::{FMA_STEPS, drive_rate};
use super::{BenchSettings, Repetitions, median};
use crate::steps::StepError;

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
        memory: MemoryLimit,
        longest: usize,
        work: impl FnOnce(&mut Model<'_>, &mut Ids) -> Result<T, StepError> + Send,
    ) -> Result<T, StepError> {
        let mut options = SessionOptions::default();
        options.memory = memory;
        options.check = self.settings.check;
        options.compute = self.settings.compute;
        options.threads = Some(threads);
        let session = Session::open_cancellable(self.pack, &options, self.stop)?;
        let reservation = Reservation {
            positions: longest + self.settings.tokens + 1,
            longest_pass: longest,
        };
        session.with_model(reservation, |model| {
            let mut ids = Ids::new(model.facts().vocab);
            work(model, &mut ids)
        })
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
            MemoryLimit::Unlimited,
            longest,
            |model, ids| {
                model.preload()?;
                let bytes_per_token = touched(&model.demand(), model);
                let decode = self.rate(
                    model,
                    |model| Ok(self.read_bandwidth(model) / float(bytes_per_token)),
                    |model| self.decode(model, ids).map(|d| d.tokens_per_second),
                )?;
                let prompts = &self.settings.prompts;
                let prefill = prompts
                    .iter()
                    .map(|tokens| self.prefill(model, ids, *tokens));
                let prefill = prefill.collect::<Result<_, _>>()?;
                Ok(BenchResident {
                    threads,
                    decode,
                    bytes_per_token,
                    prefill,
                })
            },
        )
    }

    /// A prompt, whose limit is the slower of multiplying and of reading what it needs: everything dense,
    /// and the experts that it chooses.
    fn prefill(
        &self,
        model: &mut Model<'_>,
        ids: &mut Ids,
        tokens: usize,
    ) -> Result<BenchPrefill, StepError> {
        let operations = float(tokens as u64) * products_per_token(model);
        // of the latest prompt: one comes before the first limit
        let bytes = Cell::new(0);
        let limit = Cell::new(BenchPrefillLimit::default());
        let least_seconds = |model: &Model<'_>| {
            let compute = self.settings.compute;
            let multiplying = operations / multiply_add_peak(self.kernels, compute, FMA_STEPS);
            let reading = float(bytes.get()) / self.read_bandwidth(model);
            limit.set(match reading > multiplying {
                true => BenchPrefillLimit::Memory,
                false => BenchPrefillLimit::MultiplyAdd,
            });
            reading.max(multiplying)
        };
        let rate = self.rate(
            model,
            |model| Ok(float(tokens as u64) / least_seconds(model)),
            |model| {
                let before = visits(model);
                let rate = prefill_rate(model, &ids.some(tokens))?;
                let network = model.demand().network;
                bytes.set(network.dense + (visits(model) - before) * network.expert);
                Ok(rate)
            },
        )?;
        Ok(BenchPrefill {
            tokens: tokens as u64,
            rate,
            limit: limit.get(),
        })
    }

    /// In less memory, from a cold page cache.
    pub(super) fn on_demand(&self, memory: u64, threads: u64) -> Result<BenchOnDemand, StepError> {
        self.forget()?;
        self.with(
            usize::try_from(threads).unwrap_or(1),
            MemoryLimit::Bytes(memory),
            PROMPT,
            |model, ids| {
                // slots in use and favourites in them, as after a text of some length: fresh memory
                // is slow once
                model.preload()?;
                self.decode(model, ids)?;
                let touched = float(touched(&model.demand(), model));
                let (mut seen, mut repetitions) = (Vec::new(), Repetitions::default());
                for _ in 0..self.settings.repeats {
                    let before = self.limits(model)?;
                    let decoded = self.decode(model, ids)?;
                    let after = self.limits(model)?;
                    let limits = [before, after].map(|[drive, memory]| {
                        1.0 / (decoded.bytes_read_per_token / drive + touched / memory)
                    });
                    repetitions.add(decoded.tokens_per_second, limits);
                    seen.push(decoded);
                }
                let of = |f: fn(&Decoded) -> f64| median(seen.iter().map(f).collect());
                Ok(BenchOnDemand {
                    memory,
                    threads,
                    expert_slots: model.budget().slots,
                    dense_resident: model.budget().residency == Residency::Resident,
                    hit_rate: of(|d| d.hit_rate),
                    bytes_read_per_token: of(|d| d.bytes_read_per_token),
                    decode: repetitions.into_rate(),
                    waiting: of(|d| d.waiting),
                })
            },
        )
    }

    /// Rates of the drive and of memory, in bytes per second.
    fn limits(&self, model: &Model<'_>) -> Result<[f64; 2], StepError> {
        // 0 where the drive cannot be read past the page cache
        let drive = drive_rate(self.pack, DRIVE_BYTES, self.stop)?.unwrap_or(0.0);
        Ok([drive, self.read_bandwidth(model)])
    }

    /// A rate and its share of a limit, both in tokens per second. They take turns: other users of
    /// the machine, and its clock, meet both.
    fn rate<'a>(
        &self,
        model: &mut Model<'a>,
        limit: impl Fn(&Model<'a>) -> Result<f64, StepError>,
        mut figure: impl FnMut(&mut Model<'a>) -> Result<f64, StepError>,
    ) -> Result<BenchRate, StepError> {
        figure(model)?; // the first time memory is touched and threads wake
        let mut repetitions = Repetitions::default();
        for _ in 0..self.settings.repeats {
            let before = limit(model)?;
            let rate = figure(model)?;
            repetitions.add(rate, [before, limit(model)?]);
        }
        Ok(repetitions.into_rate())
    }

    /// The rate at which the weights that are in memory can be read.
    fn read_bandwidth(&self, model: &Model<'_>) -> f64 {
        read_bandwidth(self.kernels, &model.resident_memory())
    }

    /// The rest of the demand that a forecast needs.
    pub(super) fn demand(&self) -> Result<(Demand, u64, u64), StepError> {
        self.with(1, MemoryLimit::Unlimited, PROMPT, |model, _| {
            let layers = u64::from(model.facts().layers);
            Ok((model.demand(), layers, model.head_bytes()))
        })
    }

    /// A short prompt, then token by token.
    fn decode(&self, model: &mut Model<'_>, ids: &mut Ids) -> Result<Decoded, StepError> {
        model.reset();
        model.forward(&ids.some(PROMPT), Logits::Last, &mut Unobserved)?;
        let (before, began) = (model.stats(), Instant::now());
        for _ in 0..self.settings.tokens {
            model.forward(&[ids.next()], Logits::Last, &mut Unobserved)?;
        }
        let (seconds, after) = (began.elapsed().as_secs_f64(), model.stats());
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
        let Some(folder) = self.pack.local() else {
            return Ok(()); // this machine's page cache holds nothing of it
        };
        for pack in &self.pack.manifest().packs {
            InputFile::open_beneath(folder, &pack.path)?.forget();
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

/// Visits of experts until now.
fn visits(model: &Model<'_>) -> u64 {
    let cache = model.stats().cache;
    cache.hits + cache.misses
}

pub(super) fn prefill_rate(model: &mut Model<'_>, ids: &[u32]) -> Result<f64, StepError> {
    model.reset();
    let began = Instant::now();
    model.forward(ids, Logits::Last, &mut Unobserved)?;
    #[expect(clippy::cast_precision_loss, reason = "few")]
    let tokens = ids.len() as f64;
    Ok(tokens / began.elapsed().as_secs_f64())
}

#[expect(clippy::cast_precision_loss, reason = "for rates")]
pub(super) fn float(n: u64) -> f64 {
    n as f64
}

/// Bytes of weights that one token reads: everything dense, and its experts.
pub(super) fn touched(demand: &Demand, model: &Model<'_>) -> u64 {
    demand.network.dense
        + model.expert_layers() * demand.network.experts_per_token * demand.network.expert
}

/// Floating-point operations in the products of one token of a prompt, the head left out: two for
/// each weight.
pub(super) fn products_per_token(model: &Model<'_>) -> f64 {
    2.0 * float(touched(&model.demand(), model) - model.head_bytes())
        / float(model.bytes_per_weight())
}
