//! What segpack does, free of the command line.

pub mod bench;
pub mod cat;
pub mod demo;
pub mod devices;
mod error;
pub mod experts_report;
pub mod export;
pub mod pack;
pub mod repack;
pub mod run;
pub mod scan;
pub mod unpack;
pub mod validate;
pub mod verify;

pub use error::{Exit, StepError};
