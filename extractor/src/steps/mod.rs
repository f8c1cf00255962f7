//! What segpack does, free of the command line.

#[cfg(feature = "run")]
pub mod bench;
pub mod cat;
pub mod demo;
#[cfg(feature = "run")]
pub mod devices;
mod error;
#[cfg(feature = "run")]
pub mod experts_report;
pub mod export;
pub mod pack;
pub mod repack;
#[cfg(feature = "run")]
pub mod run;
pub mod scan;
pub mod unpack;
#[cfg(feature = "run")]
pub mod validate;
pub mod verify;

pub use error::{Exit, StepError};
