//! Two folders that change places.

use std::path::Path;

use crate::Result;

/// Lets two files or folders of one file system change places in one step: at no moment is either
/// path without one. `false`, and nothing is changed, where the system or the file system cannot.
///
/// # Errors
/// `Io`.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub fn exchange(one: &Path, other: &Path) -> Result<bool> {
    use crate::FormatError;
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    match renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE) {
        Ok(()) => Ok(true),
        Err(e) if super::write::is_unsupported(&e.into()) => Ok(false),
        Err(e) => Err(FormatError::io("rename", one)(e.into())),
    }
}

/// Lets two files or folders of one file system change places in one step: at no moment is either
/// path without one. `false`, and nothing is changed, where the system or the file system cannot.
///
/// # Errors
/// None here: this system cannot.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub fn exchange(_: &Path, _: &Path) -> Result<bool> {
    Ok(false)
}
