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
        folder.sync_all().map_err(FormatError::io("sync", path))?;
    }
    Ok(())
}
