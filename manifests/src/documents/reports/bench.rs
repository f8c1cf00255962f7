//! What `bench` prints: the limits of this machine, and how close a model comes to them.
//!
//! Rates are medians. Sizes are in bytes, times in seconds.

use serde::{Deserialize, Serialize};

use super::Precision;
use crate::documents::FormatVersion;

/// The limits of a machine, the rates of a model, and a forecast for the whole model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct BenchReport {
    /// Version of this document.
    #[cfg_attr(
        feature = "schema",
        schemars(with = "crate::documents::schema::VersionText")
    )]
    pub format_version: FormatVersion,
    /// Name and version of the program that wrote it.
    pub generator: String,
    /// Instruction set of the kernels.
    pub instruction_set: String,
    /// Precision of the activations; `float32` where it is missing (before version 1.2).
    #[serde(default = "float32")]
    pub compute: Precision,
    /// Number of measurements of each figure; the median is reported.
    pub repeats: u32,
    /// Whether digests were compared on every load.
    pub checked: bool,
    /// Rate of the drive with several direct reads in flight, in bytes per second; `null` if the
    /// pack could not be read past the page cache.
    pub drive_rate: Option<f64>,
    /// BLAKE3 on one thread, bytes per second.
    pub blake3_rate: f64,
    /// Limits of processor and memory, for each number of threads.
    pub limits: Vec<BenchLimits>,
    /// The model with all weights in memory; empty if they do not fit.
    pub resident: Vec<BenchResident>,
    /// The model in less memory than it has weights.
    pub on_demand: Vec<BenchOnDemand>,
    /// Forecast for a model of the same width, computed from the figures above.
    pub forecast: BenchForecast,
}

fn float32() -> Precision {
    Precision::Float32
}

/// Limits of processor and memory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct BenchLimits {
    /// Threads.
    pub threads: u64,
    /// Reading memory in huge pages, bytes per second.
    pub read_bandwidth: f64,
    /// The highest of its measurements, bytes per second.
    pub highest_read_bandwidth: f64,
    /// Multiply-adds of products in the precision of `compute`, operations per second (a multiply-add is
    /// two).
    pub fma_peak: f64,
    /// The highest of its measurements, operations per second.
    pub highest_fma_peak: f64,
}

/// The model with all weights in memory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct BenchResident {
    /// Threads.
    pub threads: u64,
    /// Decoding, one token at a time.
    pub decode: BenchRate,
    /// Weights that a token reads, in bytes.
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
    /// Share of the limit, which was measured right before and after: the median of the repetitions.
    pub share_of_limit: f64,
    /// Share that the median rate has of the highest limit of all repetitions. It is lower than
    /// `share_of_limit` where others used the machine: their load lowers limit and rate alike.
    pub share_of_highest_limit: f64,
}

/// A prompt.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct BenchPrefill {
    /// Tokens of the prompt.
    pub tokens: u64,
    /// Its rate and the share of its limit.
    pub rate: BenchRate,
    /// What that limit is; `multiply_add` where it is missing (before version 1.2).
    #[serde(default)]
    pub limit: BenchPrefillLimit,
}

/// What a prompt cannot be faster than: the slower of two.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum BenchPrefillLimit {
    /// The multiply-add peak over all products with weights (those of attention are not counted).
    #[default]
    MultiplyAdd,
    /// The memory bandwidth over the weights that the prompt needs, each read once.
    Memory,
}

/// The model in less memory than it has weights, from a cold page cache.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct BenchOnDemand {
    /// Memory budget of the process, in bytes.
    pub memory: u64,
    /// Threads.
    pub threads: u64,
    /// Slots for experts.
    pub expert_slots: u64,
    /// Whether dense weights stayed in memory.
    pub dense_resident: bool,
    /// Hit rate of the expert cache.
    pub hit_rate: f64,
    /// Bytes read per token.
    pub bytes_read_per_token: f64,
    /// Decoding, one token at a time; the limit is 1 / (bytes read / drive rate + bytes per token /
    /// read bandwidth).
    pub decode: BenchRate,
    /// Share of the time spent waiting for weights, with nothing to compute.
    pub waiting: f64,
}

/// What a model with that many layers would need and reach: computed, not measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct BenchForecast {
    /// Layers of the model.
    pub layers: u64,
    /// All weights of the text model except the embedding, which is read row by row, in bytes.
    pub weights: u64,
    /// Weights that a token reads, in bytes.
    pub bytes_per_token: u64,
    /// Minimum memory of the process, in bytes.
    pub least_memory: u64,
    /// Tokens per second with everything in memory.
    pub resident_tokens_per_second: f64,
    /// At several budgets, with experts chosen evenly (the worst case for a cache).
    pub budgets: Vec<BenchForecastBudget>,
}

/// One budget of a forecast.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct BenchForecastBudget {
    /// Memory budget of the process, in bytes.
    pub memory: u64,
    /// Hit rate of the expert cache.
    pub hit_rate: f64,
    /// Bytes read per token.
    pub bytes_read_per_token: f64,
    /// Tokens per second.
    pub tokens_per_second: f64,
}
