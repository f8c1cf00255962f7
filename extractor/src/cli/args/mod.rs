//! Options that several commands share, and the parsers of their values.

mod codec;
mod jobs;
#[cfg(feature = "run")]
mod model;
mod tolerate;
pub mod values;

pub use codec::{CodecArgs, CodecName};
pub use jobs::Jobs;
#[cfg(feature = "run")]
pub use model::{CheckName, ComputeName, Placement, Resources};
pub use tolerate::Tolerate;

/// Headings of options in the help, in the order in which they appear there.
pub const INPUT: &str = "Input";
pub const SAMPLING: &str = "Sampling";
pub const MEASUREMENT: &str = "Measurement";
pub const DEVICE: &str = "Device and memory";
pub const PERFORMANCE: &str = "Performance";
pub const OUTPUT: &str = "Output";
pub const GLOBAL: &str = "Global";
