//! One process at a time writes an output folder.

use std::fs::{self, File, TryLockError};
use std::path::Path;

use segpack_formats::FormatError;
use segpack_manifests::folder::PARTIAL;

use super::OutputError;

/// Name, in [`PARTIAL`], of the file that the process that writes has locked.
pub(crate) const LOCK: &str = "lock";

/// Refuses an unfinished output that another process is writing to at this moment.
///
/// # Errors
/// `Busy`.
pub(crate) fn refuse_busy(path: &Path) -> Result<(), OutputError> {
    // without a lock to open nobody writes; other errors come up when it is taken
    match File::open(path.join(PARTIAL).join(LOCK)).map(|lock| lock.try_lock()) {
        Ok(Err(TryLockError::WouldBlock)) => Err(busy(path)),
        _ => Ok(()),
    }
}

/// Makes `.partial` in a folder and locks it. Dropping the file releases the lock.
///
/// # Errors
/// `Busy`; `Io`.
pub(super) fn acquire(path: &Path) -> Result<File, OutputError> {
    let partial = path.join(PARTIAL);
    fs::create_dir_all(&partial).map_err(FormatError::io("create", &partial))?;
    let lock_path = partial.join(LOCK);
    let lock = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&lock_path)
        .map_err(FormatError::io("create", &lock_path))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(busy(path)),
        Err(TryLockError::Error(e)) => Err(FormatError::io("lock", &lock_path)(e).into()),
    }
}

fn busy(path: &Path) -> OutputError {
    OutputError::Busy {
        path: path.to_owned(),
    }
}
