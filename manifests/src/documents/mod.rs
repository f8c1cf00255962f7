//! The documents that segpack writes and reads. Their JSON Schemas are generated from these types
//! (`schemas/`).

mod bench_report;
mod devices_report;
mod experts_report;
mod export;
mod finding;
mod gpu_bench_report;
mod inventory;
mod manifest;
mod plan;
mod report;
mod run_report;
#[cfg(feature = "schema")]
pub mod schema;
mod validate_report;
mod version;

pub use bench_report::{
    BenchForecast, BenchForecastBudget, BenchLimits, BenchOnDemand, BenchPrefill, BenchRate,
    BenchReport, BenchResident,
};
pub use devices_report::{DeviceEntry, DevicesReport};
pub use experts_report::{ExpertsReport, LayerExperts};
pub use export::{
    ComponentExperts, ExpertParallelMap, ExportSummary, ExportTarget, Placement, RankExperts,
};
pub use finding::{Finding, FindingKind, Severity};
pub use gpu_bench_report::{GpuBenchOnDemand, GpuBenchPrefill, GpuBenchReport, GpuBenchResident};
pub use inventory::{
    ClassCount, Inventory, InventoryCounts, InventoryTensor, LeftOut, Provenance, RoleCount,
    SideFile, SourceShard,
};
pub use manifest::{
    Counts, Excluded, KnownSource, Layout, Manifest, ManifestError, ModelFacts, PackEntry,
    PackOptions, SegmentEntry, SourceFile, SourceFileKind, SourceRange, TensorEntry,
};
pub use plan::{Plan, PlannedPack, PlannedSegment, PlannedTensor};
pub use report::{
    PackSummary, UnpackSummary, UnrestorableFile, VerifyCounts, VerifyMode, VerifyReport,
};
pub use run_report::{
    DemoReport, DemoStep, RunCosts, RunEnd, RunPrompt, RunSummary, RunToken, ShownCandidate,
    ShownRank,
};
pub use validate_report::{
    Choice, ChoiceRow, FirstWrong, Precision, PromptRow, Quantity, ReferenceKind, ValidateReport,
    ValueRow, Verdict,
};
pub use version::FormatVersion;

/// What wrote a document: name and version of this build.
pub const GENERATOR: &str = concat!("segpack ", env!("CARGO_PKG_VERSION"));
