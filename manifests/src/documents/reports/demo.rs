//! The report of `demo`.

use serde::{Deserialize, Serialize};

use crate::documents::{FormatVersion, ValidateReport};

/// One step of the demonstration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct DemoStep {
    /// The command that a user would give.
    pub command: String,
    /// Its outcome.
    pub outcome: String,
    /// Whether the outcome is the expected one.
    pub ok: bool,
    /// The report of `validate`, at its step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation: Option<Box<ValidateReport>>,
}

/// The report of `demo`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct DemoReport {
    /// Version of this document.
    #[cfg_attr(
        feature = "schema",
        schemars(with = "crate::documents::schema::VersionText")
    )]
    pub format_version: FormatVersion,
    /// Name and version of the program that wrote it.
    pub generator: String,
    /// Whether every step had the expected outcome.
    pub ok: bool,
    /// The steps, in order.
    pub steps: Vec<DemoStep>,
}
