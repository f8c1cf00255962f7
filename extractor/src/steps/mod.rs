//! What segpack does, free of the command line.

mod batches;
pub mod bench;
pub mod cat;
pub mod checkpoint;
pub mod demo;
pub mod device;
mod error;
pub mod experts_report;
pub mod export;
mod hub;
mod memory;
mod output;
pub mod pack;
pub mod progress;
pub mod repack;
pub mod run;
pub mod scan;
pub mod unpack;
pub mod validate;
pub mod verify;
mod workers;

pub use error::{Exit, StepError};
pub use workers::default_jobs;
