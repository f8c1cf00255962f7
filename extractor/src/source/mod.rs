//! A checkpoint to read: found by its argument, with its files, its headers and where it came from.

mod error;
mod hub_cache;
mod local;
mod provenance;
mod removed;

pub use error::SourceError;
pub(crate) use local::{Checkpoint, CheckpointShard, OpenOptions};
pub(crate) use removed::{KeptBytes, Removable, RemovedFile, RemovedShard};
