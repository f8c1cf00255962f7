//! What the commands print with `--json`, one file per report.

mod batch;
mod bench;
mod demo;
mod devices;
mod diff;
mod error;
mod expert_mask;
mod experts;
mod export;
mod gpu_bench;
mod graft;
mod info;
mod pack;
mod receipt;
mod repair;
mod report;
mod run;
mod serve;
mod share;
mod sign;
mod speak;
mod unpack;
mod update;
mod validate;
mod values;
mod verify;
mod vocode;

pub use batch::{BatchSummary, PromptId, PromptResult};
pub use bench::{
    BenchForecast, BenchForecastBudget, BenchLimits, BenchOnDemand, BenchPrefill,
    BenchPrefillLimit, BenchRate, BenchReport, BenchResident,
};
pub use demo::{DemoReport, DemoStep};
pub use devices::{DeviceEntry, DevicesReport};
pub use diff::{
    DiffChange, DiffCounts, DiffFile, DiffGroup, DiffKind, DiffMoved, DiffReport, DiffSide,
    DiffTensor, DiffTensorSide,
};
pub use error::{ErrorKind, ErrorReport};
pub use expert_mask::{ExpertMask, MaskedLayers, NoLayer, RestrictedExperts};
pub use experts::{ExpertsReport, LayerExperts};
pub use export::{
    ComponentExperts, ExpertParallelMap, ExportSummary, ExportTarget, Placement, RankExperts,
};
pub use gpu_bench::{GpuBenchOnDemand, GpuBenchPrefill, GpuBenchReport, GpuBenchResident};
pub use graft::GraftReport;
pub use info::{InfoComponent, InfoReport, InfoVerified, SinceReceipt};
pub use pack::{PackSummary, PackedFrom, UploadedTo};
pub use receipt::{ReceiptFile, VerifyReceipt};
pub use repair::{RepairDamage, RepairReport, RepairedFile};
pub use report::{ReportData, ReportDecoder, ReportGroup, ReportSubject, ReportValues};
pub use run::{
    PromptMedia, RunCosts, RunDrafts, RunEnd, RunPrompt, RunSummary, RunToken, ShownCandidate,
    ShownRank,
};
pub use serve::ServeStarted;
pub use share::ShareReport;
pub use sign::{CheckedSignature, SignSummary, SigningCertificate};
pub use speak::SpeakSummary;
pub use unpack::{UnpackSummary, UnrestorableFile};
pub use update::UpdateReport;
pub use validate::{
    Choice, ChoiceRow, FirstWrong, Precision, PromptRow, Quantity, ReferenceKind, Stage, StageRow,
    ValidateReport, ValueRow, Verdict,
};
pub use values::{TensorValues, ValuesReport};
pub use verify::{FileResult, Restorable, VerifyCounts, VerifyMode, VerifyReport};
pub use vocode::VocodeSummary;
