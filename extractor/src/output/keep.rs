//! Files of an existing folder that a new one keeps as they are.

use std::fs;
use std::io;
use std::path::Path;

use segpack_formats::FormatError;
use segpack_formats::io::{open_beneath, remove_beneath, sync_folder};

use super::{OutputError, OutputFolder};

impl OutputFolder {
    /// Gives a file of another folder its path in this one, too: as a second name of the same bytes
    /// where the file system has such, as a copy elsewhere. The file was synced when it was written.
    ///
    /// # Errors
    /// `Io`.
    pub(crate) fn keep(&self, from: &Path, relative: &str) -> Result<(), OutputError> {
        match self.link(from, relative)? {
            true => Ok(()),
            false => self.copy(from, relative),
        }
    }

    /// Gives a file of another folder its path in this one as a second name of the same bytes;
    /// `false` where the file system has no such. The file was synced when it was written.
    ///
    /// # Errors
    /// `Io`.
    pub(crate) fn link(&self, from: &Path, relative: &str) -> Result<bool, OutputError> {
        let (old, new) = (from.join(relative), self.path().join(relative));
        let parent = new.parent().unwrap_or(self.path());
        fs::create_dir_all(parent).map_err(FormatError::io("create", parent))?;
        match fs::hard_link(&old, &new) {
            Ok(()) => {
                // new folders are durable once those above them are
                let above = parent.ancestors();
                let mut inside = above.take_while(|a| a.starts_with(self.path()));
                inside.try_for_each(sync_folder)?;
                Ok(true)
            }
            Err(e) if has_no_links(&e) => Ok(false),
            Err(e) => Err(FormatError::io("link", &old)(e).into()),
        }
    }

    fn copy(&self, folder: &Path, relative: &str) -> Result<(), OutputError> {
        let (mut file, path) = self.create(relative)?;
        let mut from = open_beneath(folder, relative)?;
        let to = std::sync::Arc::get_mut(&mut file);
        if let Some(to) = to {
            io::copy(&mut from, to).map_err(FormatError::io("write", path))?;
        }
        self.publish(&file, relative)
    }
}

/// Removes these files of a folder that is of no use any more, then those of its folders that are
/// empty, and itself where it is.
///
/// # Errors
/// `Link`; `Io`.
pub(crate) fn remove_from(
    folder: &Path,
    files: &[&str],
    folders: &[&str],
) -> Result<(), OutputError> {
    for file in files {
        remove_beneath(folder, file)?;
    }
    for below in folders {
        let walk = walkdir::WalkDir::new(folder.join(below)).contents_first(true);
        for entry in walk.into_iter().flatten() {
            if entry.file_type().is_dir() {
                // what is not empty holds what is somebody else's
                let _ = fs::remove_dir(entry.path());
            }
        }
    }
    let _ = fs::remove_dir(folder);
    Ok(())
}

/// Whether it says that there cannot be a second name: FAT, FUSE and network file systems, a file
/// with too many names.
fn has_no_links(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::Unsupported
            | io::ErrorKind::PermissionDenied
            | io::ErrorKind::CrossesDevices
            | io::ErrorKind::TooManyLinks
    ) || error.raw_os_error() == Some(ENOSYS)
}

/// A file system in user space that does not implement links.
const ENOSYS: i32 = 38;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kept_file_is_the_same_or_a_copy() {
        let folder = tempfile::tempdir().unwrap();
        let (old, new) = (folder.path().join("old"), folder.path().join("new"));
        fs::create_dir_all(old.join("a/b")).unwrap();
        fs::write(old.join("a/b/c"), b"bytes").unwrap();
        let output = OutputFolder::open(&new).unwrap();
        output.keep(&old, "a/b/c").unwrap();
        assert_eq!(fs::read(new.join("a/b/c")).unwrap(), b"bytes");
        fs::write(old.join("a/d"), b"other").unwrap();
        output.copy(&old, "a/d").unwrap();
        assert_eq!(fs::read(new.join("a/d")).unwrap(), b"other");
        assert!(output.keep(&old, "a/x").is_err());
        output.finish().unwrap();
    }
}
