//! What a command that failed prints with `--json`.

use serde::{Deserialize, Serialize};

use crate::documents::{Finding, FormatVersion};

/// What failed, as the exit status says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The environment or the output: exit status 1.
    Environment,
    /// The command line: exit status 2.
    Usage,
    /// The input is damaged, incomplete or different: exit status 3.
    Input,
    /// Interrupted or asked to terminate: exit status 130 or 143.
    Interrupted,
}

/// Why a command failed: the only document of one that has no other to print, or the last line of
/// one that prints an object per line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ErrorReport {
    /// Version of this document.
    #[cfg_attr(
        feature = "schema",
        schemars(with = "crate::documents::schema::VersionText")
    )]
    pub format_version: FormatVersion,
    /// Name and version of the program that wrote it.
    pub generator: String,
    /// Always true: tells it from every other document.
    pub error: bool,
    /// What failed.
    pub kind: ErrorKind,
    /// The exit status.
    pub exit_status: u8,
    /// What went wrong.
    pub message: String,
    /// Why, the nearest cause first.
    pub causes: Vec<String>,
    /// What to do about it.
    pub hint: Option<String>,
    /// Everything that is wrong with the input, where that is what failed.
    pub findings: Vec<Finding>,
}
