//! The documents that segpack writes and reads. Their JSON Schemas are generated from these types
//! (`schemas/`).

mod pack;
mod reports;
#[cfg(feature = "schema")]
pub mod schema;

pub use pack::*;
pub use reports::*;

/// What wrote a document: name and version of this build.
pub const GENERATOR: &str = concat!("segpack ", env!("CARGO_PKG_VERSION"));
