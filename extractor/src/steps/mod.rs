//! What segpack does, free of the command line.

#[cfg(feature = "run")]
pub(crate) mod bench;
pub(crate) mod cat;
#[cfg(feature = "run")]
pub mod chat;
pub(crate) mod contents;
pub(crate) mod demo;
mod derivation;
#[cfg(feature = "run")]
pub(crate) mod devices;
pub(crate) mod diff;
mod documents;
mod error;
#[cfg(feature = "run")]
pub(crate) mod experts_report;
pub(crate) mod export;
pub mod info;
pub(crate) mod join;
mod listing;
pub mod open;
pub mod pack;
pub(crate) mod receipt;
pub(crate) mod repack;
pub(crate) mod repair;
pub(crate) mod report;
#[cfg(feature = "run")]
pub mod run;
pub mod scan;
#[cfg(feature = "serve")]
pub(crate) mod serve;
pub(crate) mod sign;
#[cfg(feature = "run")]
pub(crate) mod speak;
pub(crate) mod unpack;
#[cfg(feature = "run")]
pub(crate) mod validate;
pub mod verify;
#[cfg(feature = "run")]
pub(crate) mod vocode;

#[cfg(feature = "run")]
use segpack_manifests::documents::Precision;
#[cfg(feature = "run")]
use segpack_runtime_min::tensor::Compute;

pub use crate::output::{FileLimit, OutputError};
pub use crate::pack_writer::PackWriterError;
pub use crate::source::{SegmentCacheError, SourceError};
#[cfg(feature = "run")]
pub use bench::BenchError;
pub use cat::CatError;
pub use error::{Exit, StepError};
pub use export::{Difference, ExportError, ExportOption, GgufExportError};
pub use join::JoinError;
pub use repair::RepairError;
#[cfg(feature = "serve")]
pub use serve::ServeError;
pub use sign::SignError;
#[cfg(feature = "run")]
pub use speak::SpeakError;
pub use unpack::UnpackError;
#[cfg(feature = "run")]
pub use validate::ValidateError;
#[cfg(feature = "run")]
pub use vocode::VocodeError;

/// The word of documents for a precision.
#[cfg(feature = "run")]
fn precision(compute: Compute) -> Precision {
    match compute {
        Compute::F32 => Precision::Float32,
        Compute::Bf16 => Precision::Bfloat16,
    }
}
