//! What kind of file system a folder is on, where that limits the files in it.

use std::path::Path;

use crate::Result;

/// A file system whose limits are known beforehand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum FileSystem {
    /// FAT: files of less than 4 GiB, names without some characters, that differ in more than case.
    Fat,
    /// exFAT: the same names as FAT.
    ExFat,
    /// Any other, or one that says nothing of itself.
    Other,
}

/// What a folder is on.
///
/// # Errors
/// `Io`.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub fn file_system(folder: &Path) -> Result<FileSystem> {
    use crate::FormatError;
    // linux/magic.h
    const MSDOS_SUPER_MAGIC: i128 = 0x4d44;
    const EXFAT_SUPER_MAGIC: i128 = 0x2011_bab0;
    let about = match rustix::fs::statfs(folder) {
        Ok(about) => about,
        Err(e) if super::write::is_unsupported(&e.into()) => return Ok(FileSystem::Other),
        Err(e) => {
            return Err(FormatError::io("inspect the file system of", folder)(
                e.into(),
            ));
        }
    };
    // a narrower number on some systems, and with musl one without a sign
    Ok(match i128::from(about.f_type) {
        MSDOS_SUPER_MAGIC => FileSystem::Fat,
        EXFAT_SUPER_MAGIC => FileSystem::ExFat,
        _ => FileSystem::Other,
    })
}

/// What a folder is on: this system is not asked.
///
/// # Errors
/// None here.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub fn file_system(_: &Path) -> Result<FileSystem> {
    Ok(FileSystem::Other)
}
