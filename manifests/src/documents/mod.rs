//! The documents that segpack writes and reads. Their JSON Schemas are generated from these types
//! (`schemas/`).

mod pack;
mod reports;
#[cfg(feature = "schema")]
pub mod schema;

pub use pack::*;
pub use reports::*;

/// A kind of document, with its own version.
pub trait Document {
    /// Its name: that of its schema.
    const NAME: &'static str;
    /// The version that this build writes.
    const VERSION: FormatVersion;
}

macro_rules! documents {
    ($($type:ident = $name:literal $major:literal . $minor:literal,)*) => {
        $(
            impl $type {
                /// The version that this build writes.
                pub const VERSION: FormatVersion = FormatVersion::new($major, $minor);
            }

            impl Document for $type {
                const NAME: &'static str = $name;
                const VERSION: FormatVersion = Self::VERSION;
            }
        )*
    };
}

// A new optional key, or a new word, is a minor version: older readers ignore or show it.
documents! {
    Manifest = "manifest" 1 . 2,
    Inventory = "inventory" 1 . 2,
    Plan = "plan" 1 . 2,
    PartManifest = "part-manifest" 1 . 0,
    PackSummary = "pack-summary" 1 . 4,
    UnpackSummary = "unpack-summary" 1 . 0,
    VerifyReport = "verify-report" 1 . 2,
    ValidateReport = "validate-report" 1 . 1,
    RunToken = "run-token" 1 . 1,
    RunSummary = "run-summary" 1 . 2,
    RunPrompt = "run-prompt" 1 . 1,
    PromptResult = "prompt-result" 1 . 0,
    BatchSummary = "batch-summary" 1 . 0,
    ExpertMask = "expert-mask" 1 . 0,
    DemoReport = "demo-report" 1 . 0,
    BenchReport = "bench-report" 1 . 2,
    GpuBenchReport = "gpu-bench-report" 1 . 0,
    DevicesReport = "devices-report" 1 . 0,
    ExpertsReport = "experts-report" 1 . 1,
    ExportSummary = "export-summary" 1 . 1,
    ExpertParallelMap = "expert-parallel" 1 . 0,
    InfoReport = "info-report" 1 . 0,
    RepairReport = "repair-report" 1 . 0,
    ReportData = "report-data" 1 . 0,
    UpdateReport = "update-report" 1 . 0,
    GraftReport = "graft-report" 1 . 0,
    ErrorReport = "error-report" 1 . 0,
    DiffReport = "diff-report" 1 . 0,
    ServeStarted = "serve-started" 1 . 0,
    ShareReport = "share-report" 1 . 0,
    SignSummary = "sign-summary" 1 . 1,
    SpeakSummary = "speak-summary" 1 . 0,
    VocodeSummary = "vocode-summary" 1 . 0,
    VerifyReceipt = "verify-receipt" 1 . 0,
}

/// What wrote a document: name and version of this build.
pub const GENERATOR: &str = concat!("segpack ", env!("CARGO_PKG_VERSION"));
