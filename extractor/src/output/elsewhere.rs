//! Files that do not stay in the output folder.

use std::path::Path;

use super::OutputError;

/// Where finished files go, if not into the output folder.
pub(crate) trait Elsewhere: Sync {
    /// Takes a copy of a whole file of this machine; from here on it is there under this path.
    ///
    /// # Errors
    /// `Io`; `Interrupted`.
    fn take(&self, file: &Path, path: &str) -> Result<(), OutputError>;

    /// Takes a small document.
    ///
    /// # Errors
    /// As [`take`](Self::take).
    fn put(&self, path: &str, bytes: Vec<u8>) -> Result<(), OutputError>;

    /// Whether a file of this path and this length is there.
    fn has(&self, path: &str, length: u64) -> bool;
}
