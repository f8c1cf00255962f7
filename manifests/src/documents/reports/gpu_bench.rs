//! What `bench --device cuda` prints: a model on a GPU.
//!
//! Rates are medians. Bytes are bytes, not multiples of 1024; times are seconds.

use serde::{Deserialize, Serialize};

use crate::documents::{FormatVersion, Precision};

/// A model's rates on a GPU, and what a limit has to be multiplied with to judge them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct GpuBenchReport {
    /// Version of this document.
    #[cfg_attr(
        feature = "schema",
        schemars(with = "crate::documents::schema::VersionText")
    )]
    pub format_version: FormatVersion,
    /// What wrote it.
    pub generator: String,
    /// `cuda:N` and the GPU's name.
    pub device: String,
    /// Precision of activations.
    pub compute: Precision,
    /// How often each figure was measured; the median is given.
    pub repeats: u32,
    /// Whether digests were compared at every load.
    pub checked: bool,
    /// Host memory, of which what is left is for experts that the GPU has no room for, bytes; none
    /// where nobody gave it.
    pub host_memory: Option<u64>,
    /// Weights that one token reads, bytes.
    pub bytes_per_token: u64,
    /// Operations in the products of one token of a prompt, the head left out: two for each weight.
    pub operations_per_token: f64,
    /// All weights that a long prompt reads, bytes.
    pub weights: u64,
    /// The model with all weights on the GPU; none where it was not asked for.
    pub resident: Option<GpuBenchResident>,
    /// The model in less memory than it has weights.
    pub on_demand: Vec<GpuBenchOnDemand>,
}

/// All weights on the GPU.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct GpuBenchResident {
    /// Loading all weights, from the pack to the GPU.
    pub load_seconds: f64,
    /// Tokens one by one, each chosen by the host: tokens per second.
    pub decode_tokens_per_second: f64,
    /// Tokens one by one, each chosen by the GPU: tokens per second.
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
    /// Memory of the GPU, bytes.
    pub device_memory: u64,
    /// Slots for experts.
    pub expert_slots: u64,
    /// Whether dense weights stayed on the GPU.
    pub dense_resident: bool,
    /// Share of experts that were on the GPU when needed.
    pub hit_rate: f64,
    /// Bytes copied to the GPU for a token.
    pub bytes_copied_per_token: f64,
    /// Bytes read from the pack for a token.
    pub bytes_read_per_token: f64,
    /// Tokens one by one: tokens per second.
    pub decode_tokens_per_second: f64,
}
