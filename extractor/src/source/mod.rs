//! A checkpoint to read: found by its argument, with its files, its headers and where it came from.

mod assembled;
mod checkpoint;
mod error;
mod extra;
mod hub_cache;
mod packs;
mod place;
mod provenance;
#[cfg(feature = "remote")]
mod remote;
mod removed;
mod segment_cache;
mod store;

pub(crate) use assembled::{AssembledShard, Bytes, Piece};
#[cfg(feature = "remote")]
pub(crate) use checkpoint::Fetched;
pub(crate) use checkpoint::{Checkpoint, CheckpointShard, OpenOptions};
pub use error::SourceError;
pub use extra::Extra;
pub(crate) use extra::is_weight_file;
pub(crate) use packs::{PackPlace, local_pack};
pub(crate) use place::is_store;
#[cfg(feature = "remote")]
pub(crate) use remote::RemoteError;
#[cfg(all(feature = "remote", feature = "run"))]
pub(crate) use remote::WebFiles;
#[cfg(feature = "remote")]
pub(crate) use remote::{Fetching, JsonServer, Remote, Uploads, fetch, list_of};
pub(crate) use removed::{KeptBytes, Removable, RemovedFile, RemovedShard};
pub use segment_cache::SegmentCacheError;
pub(crate) use segment_cache::{CachedFiles, SegmentCache};
#[cfg(feature = "remote")]
pub(crate) use store::Store;
