//! Why a step failed, and the exit status that says so.

use std::io;
use std::path::{Path, PathBuf};

use segpack_formats::FormatError;
use segpack_manifests::PackError;
use segpack_manifests::documents::Finding;
use segpack_manifests::layout::PlanError;
use segpack_runtime_min::RunError;

/// Exit status of the program. README.md and the end of every `--help` have this list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// All is well (a closed pipe too).
    Ok = 0,
    /// The environment or the output failed: no space, no permission, output exists.
    Failed = 1,
    /// Wrong command line.
    Usage = 2,
    /// The input is damaged, incomplete or different.
    Damaged = 3,
    /// Interrupted by Ctrl-C.
    Interrupted = 130,
    /// Asked to terminate.
    Terminated = 143,
}

impl Exit {
    /// Of a report: whether what it looked at is sound.
    pub fn of(ok: bool) -> Self {
        if ok { Self::Ok } else { Self::Damaged }
    }
}

/// Why a step failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StepError {
    /// Bytes could not be read or written, or are malformed.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// A pack folder cannot be opened.
    #[error(transparent)]
    Pack(#[from] PackError),
    /// A model cannot be run.
    #[error(transparent)]
    Run(#[from] RunError),
    /// The selection or a stacked tensor leaves no plan.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The input is damaged, incomplete or different.
    #[error("{what}: {} found", count(.findings))]
    Findings {
        /// Which input, and what cannot be done with it.
        what: String,
        /// All that is wrong with it.
        findings: Vec<Finding>,
    },
    /// The input lacks something or is unsuitable.
    #[error("{0}")]
    Input(String),
    /// The output or the environment does not allow it.
    #[error("{0}")]
    Refused(String),
    /// Options that do not go together.
    #[error("{0}")]
    Usage(String),
    /// Standard output was closed or failed.
    #[error("cannot write to standard output")]
    Stdout(#[source] io::Error),
}

fn count(findings: &[Finding]) -> String {
    match findings.len() {
        1 => "1 problem".to_owned(),
        n => format!("{n} problems"),
    }
}

impl StepError {
    /// An I/O error with its verb and path.
    pub fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let wrap = FormatError::io(action, path);
        move |e| Self::Format(wrap(e))
    }

    /// A malformed input file.
    pub fn malformed(path: &Path, what: impl Into<String>) -> Self {
        Self::Format(FormatError::malformed(path, what))
    }

    /// Whether the user asked to stop.
    pub fn is_interrupted(&self) -> bool {
        matches!(
            self,
            Self::Format(FormatError::Interrupted)
                | Self::Run(RunError::Format(FormatError::Interrupted))
        )
    }

    /// The exit status for it.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Format(e) | Self::Pack(PackError::Format(e)) | Self::Run(RunError::Format(e)) => {
                match e {
                    FormatError::Io { .. } => Exit::Failed,
                    FormatError::Interrupted => Exit::Interrupted,
                    _ => Exit::Damaged,
                }
            }
            Self::Plan(PlanError::NoSuchComponent { .. } | PlanError::Empty) | Self::Usage(_) => {
                Exit::Usage
            }
            Self::Run(
                RunError::Memory { .. }
                | RunError::DeviceMemory { .. }
                | RunError::Cuda(_)
                | RunError::TokenId { .. }
                | RunError::TooLong { .. },
            ) => Exit::Failed,
            Self::Run(_)
            | Self::Pack(_)
            | Self::Plan(_)
            | Self::Findings { .. }
            | Self::Input(_) => Exit::Damaged,
            Self::Refused(_) | Self::Stdout(_) => Exit::Failed,
        }
    }
}
