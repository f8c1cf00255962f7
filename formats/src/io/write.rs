//! Positioned writes, and folders that keep their entries.

use std::fs::File;
use std::io;
use std::path::Path;

use crate::{FormatError, Result};

/// Writes all of `bytes` at `offset`, whatever the file's cursor.
///
/// # Errors
/// As the operating system's.
#[cfg(unix)]
pub fn write_all_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, offset)
}

/// Writes all of `bytes` at `offset`, whatever the file's cursor.
///
/// # Errors
/// As the operating system's.
#[cfg(windows)]
pub fn write_all_at(file: &File, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        let n = std::os::windows::fs::FileExt::seek_write(file, bytes, offset)?;
        bytes = &bytes[n..];
        offset += n as u64;
    }
    Ok(())
}

/// Makes a folder's entries durable after a rename. Does nothing where folders cannot be synced.
///
/// # Errors
/// `Io` where the folder cannot be opened or synced.
pub fn sync_folder(path: &Path) -> Result<()> {
    if cfg!(unix) {
        let folder = File::open(path).map_err(FormatError::io("open", path))?;
        sync(&folder).map_err(FormatError::io("sync", path))?;
    }
    Ok(())
}

/// Makes a file, its length and its bytes durable, as far as its file system can.
///
/// # Errors
/// `Io` with the path.
pub fn sync_file(file: &File, path: &Path) -> Result<()> {
    sync(file).map_err(FormatError::io("sync", path))
}

/// Makes a file's bytes durable, as far as its file system can.
///
/// # Errors
/// `Io` with the path.
pub fn sync_data(file: &File, path: &Path) -> Result<()> {
    match file.sync_data() {
        Err(e) if is_unsupported(&e) => Ok(()),
        synced => synced.map_err(FormatError::io("sync", path)),
    }
}

/// A file system that has no such thing as a sync is not asked again.
fn sync(file: &File) -> io::Result<()> {
    match file.sync_all() {
        Err(e) if is_unsupported(&e) => Ok(()),
        synced => synced,
    }
}

/// Whether an error says that a file system has no locks.
pub fn has_no_locks(error: &io::Error) -> bool {
    #[cfg(unix)]
    if error.raw_os_error() == Some(rustix::io::Errno::NOLCK.raw_os_error()) {
        return true;
    }
    is_unsupported(error)
}

/// Whether an error says that there is no such call here, or not for this kind of file.
#[cfg(unix)]
pub(super) fn is_unsupported(error: &io::Error) -> bool {
    use rustix::io::Errno;
    [Errno::INVAL, Errno::NOSYS, Errno::OPNOTSUPP, Errno::NOTSUP]
        .iter()
        .any(|e| error.raw_os_error() == Some(e.raw_os_error()))
}

/// Whether an error says that there is no such call here, or not for this kind of file.
#[cfg(not(unix))]
pub(super) fn is_unsupported(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::Unsupported
}
