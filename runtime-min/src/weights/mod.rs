//! Weights of a pack, loaded into memory: read once, checked, decoded.

use segpack_formats::FormatError;
use segpack_formats::io::InputFile;
use segpack_manifests::documents::SegmentEntry;

mod arena;
mod budget;
mod expert_cache;
mod loader;

pub use arena::{Arena, BLOCK_ALIGNMENT, Block};
pub use budget::{Budget, Demand, Residency};
pub use expert_cache::{CacheStats, Eviction, ExpertCache, ExpertKey};
pub use loader::{Check, Load, LoadStats, Loader, begins_at, room_for, scratch_bytes};

/// A segment whose stored bytes have another digest than the manifest says.
pub(crate) fn damaged(file: &InputFile, segment: &SegmentEntry, seen: &str) -> FormatError {
    let what = format!(
        "segment {:?} at byte {} is damaged: BLAKE3 {seen}, wanted {}; `segpack verify` says more",
        segment.id, segment.offset, segment.blake3
    );
    FormatError::malformed(file.path(), what)
}
