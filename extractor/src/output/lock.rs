//! One process at a time writes an output folder.

use std::fs::{File, TryLockError};
use std::path::Path;

use segpack_manifests::folder::PARTIAL;

use crate::steps::StepError;

/// Name, in [`PARTIAL`], of the file that whoever writes has locked.
pub const LOCK: &str = "lock";

/// Refuses an unfinished output that another process is writing to at this moment.
///
/// # Errors
/// `Refused` with the path.
pub fn refuse_busy(path: &Path) -> Result<(), StepError> {
    // without a lock to open nobody writes; other errors come up when it is taken
    match File::open(path.join(PARTIAL).join(LOCK)).map(|lock| lock.try_lock()) {
        Ok(Err(TryLockError::WouldBlock)) => Err(busy(path)),
        _ => Ok(()),
    }
}

pub(super) fn busy(path: &Path) -> StepError {
    StepError::Refused(format!("another segpack is writing to {}", path.display()))
}
