//! Weights of a pack in memory: how a budget is shared out, and how segments are read, checked,
//! decoded and kept. What several networks of one process share.
//!
//! * [`PlacedTensor`], [`SegmentGroup`]: where tensors lie in the memory of what they are loaded
//!   with.
//! * [`SegmentLoad`], [`Decoding`]: what the bytes of a segment become there.
//! * [`Loader`]: whole segments into memory, several reads in flight.
//! * [`Demand`], [`Budget`]: what a network needs, and what it gets.
//! * [`Arena`], [`ExpertCache`]: huge-page memory in blocks, and experts in a fixed number of them.
//! * [`WeightStore`]: all of it, in host memory.

mod arena;
mod budget;
mod checksum;
mod decoding;
mod dense;
mod expert_cache;
mod loader;
mod placed;
mod placement;
mod rows;
mod store;

pub use arena::{Arena, BLOCK_ALIGNMENT, Block};
pub(crate) use budget::program_bytes;
pub use budget::{Budget, Demand, NetworkDemand, Residency};
pub use checksum::ChecksumPolicy;
pub(crate) use checksum::damaged;
pub use decoding::{Decoding, StoredRows, StoredValues};
pub use dense::streamed_bytes;
pub use expert_cache::{CacheStats, ExpertCache, ExpertKey};
pub use loader::{Load, LoadStats, Loader, scratch_bytes};
pub use placed::PlacedTensor;
pub use placement::{SegmentGroup, SegmentLoad, buffer_len, data_offset};
pub(crate) use rows::{read_rows, row_bytes};
pub(crate) use store::ExpertStore;
pub use store::{ExpertSegment, MAX_LOADS, WeightStore};
