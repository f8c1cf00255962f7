//! What `demo` shows.

use serde::{Deserialize, Serialize};

use crate::documents::{FormatVersion, ValidateReport};

/// One step of the demonstration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct DemoStep {
    /// The command that a user would give.
    pub command: String,
    /// What came of it.
    pub outcome: String,
    /// Whether that is what had to come of it.
    pub ok: bool,
    /// The report of `validate`, at its step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation: Option<Box<ValidateReport>>,
}

/// What `demo` showed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct DemoReport {
    /// Version of this document.
    #[cfg_attr(
        feature = "schema",
        schemars(with = "crate::documents::schema::VersionText")
    )]
    pub format_version: FormatVersion,
    /// What wrote it.
    pub generator: String,
    /// Whether every step came out as it had to.
    pub ok: bool,
    /// In order.
    pub steps: Vec<DemoStep>,
}
