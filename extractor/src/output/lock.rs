//! One process at a time writes an output folder.

use std::fs::{self, File, TryLockError};
use std::path::Path;

use segpack_formats::FormatError;
use segpack_formats::io::{create_beneath, has_no_locks, open_beneath};
use segpack_manifests::folder::PARTIAL;

use super::OutputError;

/// Name, in [`PARTIAL`], of the file that the process that writes has locked.
pub(crate) const LOCK: &str = "lock";

/// Refuses what another process has locked: `relative`, below `root`, for the output `path`.
///
/// # Errors
/// `Busy`.
pub(super) fn refuse_locked(root: &Path, relative: &str, path: &Path) -> Result<(), OutputError> {
    // without a lock to open nobody writes; other errors come up when it is taken
    match open_beneath(root, relative).map(|lock| lock.try_lock()) {
        Ok(Err(TryLockError::WouldBlock)) => Err(busy(path)),
        _ => Ok(()),
    }
}

/// The path of a thing in `.partial`, from the output folder.
pub(super) fn in_partial(name: &str) -> String {
    format!("{PARTIAL}/{name}")
}

/// Makes `.partial` in a folder and locks it. Dropping the file releases the lock.
///
/// # Errors
/// `Busy`; `Io`.
pub(super) fn acquire(path: &Path) -> Result<File, OutputError> {
    fs::create_dir_all(path).map_err(FormatError::io("create", path))?;
    acquire_at(path, &in_partial(LOCK), path)
}

/// Locks a file below a folder for the process that writes `path`.
///
/// # Errors
/// `Busy`; `Link`; `Io`.
pub(super) fn acquire_at(root: &Path, relative: &str, path: &Path) -> Result<File, OutputError> {
    let lock = create_beneath(root, relative)?;
    match lock.try_lock() {
        Err(TryLockError::WouldBlock) => Err(busy(path)),
        // some file systems have no locks: then nothing keeps two from writing to one place
        Ok(()) => Ok(lock),
        Err(TryLockError::Error(e)) if has_no_locks(&e) => Ok(lock),
        Err(TryLockError::Error(e)) => Err(FormatError::io("lock", root.join(relative))(e).into()),
    }
}

fn busy(path: &Path) -> OutputError {
    OutputError::Busy {
        path: path.to_owned(),
    }
}
