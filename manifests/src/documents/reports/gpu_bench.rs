//! What `bench --device cuda` prints: a model on a GPU.
//!
//! Rates are medians. Sizes are in bytes, times in seconds.

use serde::{Deserialize, Serialize};

use crate::documents::{FormatVersion, Precision};

/// The rates of a model on a GPU, and the quantities that relate them to the GPU's limits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct GpuBenchReport {
    /// Version of this document.
    #[cfg_attr(
        feature = "schema",
        schemars(with = "crate::documents::schema::VersionText")
    )]
    pub format_version: FormatVersion,
    /// Name and version of the program that wrote it.
    pub generator: String,
    /// `cuda:N` and the GPU's name.
    pub device: String,
    /// Precision of activations.
    pub compute: Precision,
    /// Number of measurements of each figure; the median is reported.
    pub repeats: u32,
    /// Whether digests were compared on every load.
    pub checked: bool,
    /// Memory budget of the host in bytes, which caches experts that do not fit on the GPU; `null`
    /// if none was given.
    pub host_memory: Option<u64>,
    /// Weights that one token reads, in bytes.
    pub bytes_per_token: u64,
    /// Operations in the matrix products of one token of a prompt, without the head: two for each
    /// weight.
    pub operations_per_token: f64,
    /// All weights that a long prompt reads, in bytes.
    pub weights: u64,
    /// The model with all weights on the GPU; `null` if that was not measured.
    pub resident: Option<GpuBenchResident>,
    /// The model in less memory than it has weights.
    pub on_demand: Vec<GpuBenchOnDemand>,
}

/// All weights on the GPU.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct GpuBenchResident {
    /// Seconds to load all weights from the pack to the GPU.
    pub load_seconds: f64,
    /// Decoding with tokens chosen by the host, in tokens per second.
    pub decode_tokens_per_second: f64,
    /// Decoding with tokens chosen by the GPU, in tokens per second.
    pub greedy_tokens_per_second: f64,
    /// Prompts.
    pub prefill: Vec<GpuBenchPrefill>,
}

/// A prompt.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct GpuBenchPrefill {
    /// Tokens of the prompt.
    pub tokens: u64,
    /// Tokens per second.
    pub tokens_per_second: f64,
}

/// A budget of GPU memory.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct GpuBenchOnDemand {
    /// Memory budget on the GPU, in bytes.
    pub device_memory: u64,
    /// Slots for experts.
    pub expert_slots: u64,
    /// Whether dense weights stayed on the GPU.
    pub dense_resident: bool,
    /// Hit rate of the expert slots on the GPU.
    pub hit_rate: f64,
    /// Bytes copied to the GPU per token.
    pub bytes_copied_per_token: f64,
    /// Bytes read from the pack per token.
    pub bytes_read_per_token: f64,
    /// Decoding, in tokens per second.
    pub decode_tokens_per_second: f64,
}
