//! Why a folder cannot be a cache of segments.

use std::path::PathBuf;

use segpack_formats::FormatError;

/// Why a folder cannot be a cache of segments.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SegmentCacheError {
    /// It cannot be read or written.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// It holds something else.
    #[error("{} is no cache of segments: it is not empty, and has no CACHEDIR.TAG of segpack", folder.display())]
    NotACache {
        /// The folder.
        folder: PathBuf,
    },
}
