//! What `bench` prints: what this machine can do, and how near a model comes to it.
//!
//! Rates are medians. Bytes are bytes, not multiples of 1024; times are seconds.

use serde::{Deserialize, Serialize};

use crate::documents::FormatVersion;

/// A machine's limits, a model's rates beside them, and what follows for the whole model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct BenchReport {
    /// Version of this document.
    #[cfg_attr(
        feature = "schema",
        schemars(with = "crate::documents::schema::VersionText")
    )]
    pub format_version: FormatVersion,
    /// What wrote it.
    pub generator: String,
    /// Instruction set of the kernels.
    pub instruction_set: String,
    /// How often each figure was measured; the median is given.
    pub repeats: u32,
    /// Whether digests were compared at every load.
    pub checked: bool,
    /// The drive, with several direct reads in flight, bytes per second; none where the pack could
    /// not be read past the page cache.
    pub drive_rate: Option<f64>,
    /// BLAKE3 on one thread, bytes per second.
    pub blake3_rate: f64,
    /// What the processor and the memory can do, for each number of threads.
    pub limits: Vec<BenchLimits>,
    /// The model with all weights in memory; none where they do not fit.
    pub resident: Vec<BenchResident>,
    /// The model in less memory than it has weights.
    pub on_demand: Vec<BenchOnDemand>,
    /// What follows for a model of the same width, computed from the figures above.
    pub forecast: BenchForecast,
}

/// What the processor and the memory can do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct BenchLimits {
    /// Threads.
    pub threads: u64,
    /// Reading memory in huge pages, bytes per second.
    pub read_bandwidth: f64,
    /// f32 multiply-adds, operations per second (a multiply-add is two).
    pub fma_peak: f64,
}

/// The model with all weights in memory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct BenchResident {
    /// Threads.
    pub threads: u64,
    /// Tokens one by one.
    pub decode: BenchRate,
    /// Weights that a token reads, bytes.
    pub bytes_per_token: u64,
    /// Prompts.
    pub prefill: Vec<BenchPrefill>,
}

/// A rate and its share of the limit.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct BenchRate {
    /// Tokens per second.
    pub tokens_per_second: f64,
    /// Share of what the limit allows, which was measured right before and after.
    pub share_of_limit: f64,
}

/// A prompt.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct BenchPrefill {
    /// Tokens of the prompt.
    pub tokens: u64,
    /// Its rate; the limit is the peak of multiply-adds over all products of weights (attention's
    /// own are not counted).
    pub rate: BenchRate,
}

/// The model in less memory than it has weights, from a cold page cache.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct BenchOnDemand {
    /// Memory of the process, bytes.
    pub memory: u64,
    /// Threads.
    pub threads: u64,
    /// Slots for experts.
    pub expert_slots: u64,
    /// Whether dense weights stayed in memory.
    pub dense_resident: bool,
    /// Share of experts that were in memory when needed.
    pub hit_rate: f64,
    /// Bytes read for a token.
    pub bytes_read_per_token: f64,
    /// Tokens one by one; the limit is 1 / (bytes read / drive rate + bytes per token / read
    /// bandwidth).
    pub decode: BenchRate,
    /// Share of the time in which nothing could be computed, because weights were not there yet.
    pub waiting: f64,
}

/// What a model of so many layers would need and reach: computed, not measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct BenchForecast {
    /// Layers of the model.
    pub layers: u64,
    /// All weights of the text model but the embedding, which is read row by row: bytes.
    pub weights: u64,
    /// Weights that a token reads, bytes.
    pub bytes_per_token: u64,
    /// The least memory that works, bytes.
    pub least_memory: u64,
    /// Tokens per second with everything in memory.
    pub resident_tokens_per_second: f64,
    /// At some budgets, experts being chosen evenly (the worst case for a cache).
    pub budgets: Vec<BenchForecastBudget>,
}

/// One budget of a forecast.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct BenchForecastBudget {
    /// Memory of the process, bytes.
    pub memory: u64,
    /// Share of experts that are in memory when needed.
    pub hit_rate: f64,
    /// Bytes read for a token.
    pub bytes_read_per_token: f64,
    /// Tokens per second.
    pub tokens_per_second: f64,
}
