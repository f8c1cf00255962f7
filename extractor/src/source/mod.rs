//! A checkpoint to read: found by its argument, with its files, its headers and where it came from.

mod checkpoint;
mod error;
mod hub_cache;
mod place;
mod provenance;
#[cfg(feature = "remote")]
mod remote;
mod removed;
mod store;

pub(crate) use checkpoint::{Checkpoint, CheckpointShard, OpenOptions};
pub use error::SourceError;
#[cfg(feature = "remote")]
pub use remote::RemoteError;
pub(crate) use removed::{KeptBytes, Removable, RemovedFile, RemovedShard};
