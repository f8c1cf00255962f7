//! Options that several commands share, and the parsers of their values.

mod codec;
mod jobs;
mod model;
mod tolerate;
pub mod values;

pub use codec::{CodecArgs, CodecName};
pub use jobs::Jobs;
pub use model::{CheckName, ComputeName, Placement, Resources};
pub use tolerate::Tolerate;
