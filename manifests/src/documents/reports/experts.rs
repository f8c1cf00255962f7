//! Which experts a run used, and whether they were in memory: `run --experts-report=FILE.json`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::expert_mask::RestrictedExperts;
use crate::documents::FormatVersion;

/// Uses of experts, layer by layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ExpertsReport {
    /// Version of this document.
    #[cfg_attr(
        feature = "schema",
        schemars(with = "crate::documents::schema::VersionText")
    )]
    pub format_version: FormatVersion,
    /// Name and version of the program that wrote it.
    pub generator: String,
    /// Forward passes: one for the prompt, one for each token after the first.
    pub passes: u64,
    /// Experts of a layer.
    pub experts: u32,
    /// Layers that have experts.
    pub layers: Vec<LayerExperts>,
    /// Of each layer whose router was restricted, the experts that it could choose: these are not
    /// uses of the model. Since version 1.1.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub restricted_experts: RestrictedExperts,
}

/// Uses of the experts of a layer. A forward pass that routes several tokens to an expert counts
/// once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct LayerExperts {
    /// Number of the layer.
    pub layer: u32,
    /// Uses of experts that were in memory.
    pub hits: u64,
    /// Uses of experts that had to be loaded.
    pub misses: u64,
    /// Uses of each expert, by its number.
    pub uses: Vec<u64>,
}
