//! Bytes in and out: sources that may be hostile, shrinking, huge or far away, and files on their
//! way to the drive.
//!
//! [`ReadAt`] is what everything reads from that reads a checkpoint: a local file ([`InputFile`]),
//! bytes in memory ([`MemoryFile`]), or whatever else has bytes at positions. Nothing maps a file's
//! contents: a file that shrinks while it is read is an error, not a signal.
//!
//! What lies below the folder of a pack or an output is reached without following links:
//! [`InputFile::open_beneath`], [`create_beneath`].
//!
//! [`DirectFile`] reads past the page cache, [`SequentialWriter`] writes past it; a [`PendingFile`] is
//! reserved before the work whose result it holds. Long work polls a
//! [`CancelToken`].

mod beneath;
mod cancel;
mod direct;
mod exchange;
mod file_system;
mod handle;
mod limited;
mod local;
mod memory;
mod pending;
mod read_at;
mod sequential;
mod write;

pub use beneath::{
    EntryKind, create_beneath, entry_kind, make_parents_beneath, open_beneath, remove_beneath,
    rename_beneath,
};
pub use cancel::CancelToken;
pub use direct::{DIRECT_ALIGNMENT, DirectFile, ReadPath, align_outward};
pub use exchange::exchange;
pub use file_system::{FileSystem, file_system};
pub use limited::{read_limited, read_up_to};
pub use local::InputFile;
pub use memory::MemoryFile;
pub use pending::PendingFile;
pub use read_at::{ReadAt, Retried, Stamp};
pub use sequential::{SequentialWriter, WriteBuffer};
pub use write::{has_no_locks, sync_data, sync_file, sync_folder, write_all_at};

/// Bytes read at a time: small enough that several digests of one piece are taken from the L2
/// cache.
pub const READ_BYTES: usize = 512 << 10;

/// A length or position that memory holds as well, as an index. `usize::MAX` where this machine has
/// no such memory: the allocation or the bounds check that follows then fails.
#[inline]
pub fn to_usize(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}
