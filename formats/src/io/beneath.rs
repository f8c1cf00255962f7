//! Files below a folder, reached without following links.
//!
//! A pack, an output and what is unfinished hold no links of their own. One that lies there all the
//! same would lead reads and writes elsewhere. So each part of a path below the folder is opened by
//! itself, in the one above it, and a link among them is [`FormatError::Link`]. The folder's own
//! path may have links: whoever gave it meant it.

use std::fs::File;
use std::path::Path;

use crate::{FormatError, Result};

/// What lies at a path; links are not followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file.
    File,
    /// A folder.
    Folder,
    /// A symbolic link.
    Link,
    /// A pipe, a socket or a device.
    Other,
}

impl From<std::fs::FileType> for EntryKind {
    fn from(kind: std::fs::FileType) -> Self {
        if kind.is_symlink() {
            Self::Link
        } else if kind.is_dir() {
            Self::Folder
        } else if kind.is_file() {
            Self::File
        } else {
            Self::Other
        }
    }
}

/// What lies at a path, which is not followed where it is a link; `None` where nothing does.
///
/// # Errors
/// `Io`.
pub fn entry_kind(path: &Path) -> Result<Option<EntryKind>> {
    match path.symlink_metadata() {
        Ok(metadata) => Ok(Some(metadata.file_type().into())),
        Err(e) if is_nothing(&e) => Ok(None),
        Err(e) => Err(FormatError::io("inspect", path)(e)),
    }
}

/// Whether an error says that there is nothing at a path.
fn is_nothing(error: &std::io::Error) -> bool {
    use std::io::ErrorKind;
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

/// Opens a file below a folder for reading.
///
/// # Errors
/// `Link` where a part of the path is one; `Io`.
pub fn open_beneath(root: &Path, relative: &str) -> Result<File> {
    #[cfg(unix)]
    let opened = system::open(root, relative, rustix::fs::OFlags::NONBLOCK);
    #[cfg(not(unix))]
    let opened = system::open(root, relative);
    opened
}

/// Creates, or empties, a file below a folder, for reading and writing. Folders that lack are made.
///
/// # Errors
/// `Link` where a part of the path is one; `Io`.
pub fn create_beneath(root: &Path, relative: &str) -> Result<File> {
    system::create(root, relative)
}

/// Makes the folders that a path below a folder lacks, but not the last part of it.
///
/// # Errors
/// `Link`; `Io`.
pub fn make_parents_beneath(root: &Path, relative: &str) -> Result<()> {
    system::make_parents(root, relative)
}

/// Moves a file of one folder to a place below another, over a file that lies there. Folders that
/// lack are made.
///
/// # Errors
/// `Link`; `Io`.
pub fn rename_beneath(from: (&Path, &str), to: (&Path, &str)) -> Result<()> {
    system::rename(from, to)
}

/// Removes what lies at a path below a folder: a file, a link, or a folder with all that is in it.
/// Nothing there is fine.
///
/// # Errors
/// `Link` where the way to it leads through one; `Io`.
pub fn remove_beneath(root: &Path, relative: &str) -> Result<()> {
    if !system::has_parents(root, relative)? {
        return Ok(());
    }
    let path = root.join(relative);
    // std removes links and what is below a folder without following any
    let removed = match entry_kind(&path)? {
        None => return Ok(()),
        Some(EntryKind::Folder) => std::fs::remove_dir_all(&path),
        Some(_) => std::fs::remove_file(&path),
    };
    match removed {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(FormatError::io("remove", path)(e))
        }
        _ => Ok(()),
    }
}

pub(super) use system::open;

#[cfg(unix)]
mod system {
    use std::ffi::OsStr;
    use std::fs::File;
    use std::os::fd::{AsFd, OwnedFd};
    use std::path::{Path, PathBuf};

    use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, mkdirat, openat, renameat, statat};
    use rustix::io::Errno;

    use crate::{FormatError, Result};

    /// To pass through a folder, the right to search it is enough.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    const SEARCH: OFlags = OFlags::PATH;
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    const SEARCH: OFlags = OFlags::RDONLY;

    /// The rights of what is created, before the user's mask.
    const FILE_MODE: Mode = Mode::from_raw_mode(0o666);
    const FOLDER_MODE: Mode = Mode::from_raw_mode(0o777);

    /// An open folder on the way to a file.
    struct Descent {
        folder: OwnedFd,
        path: PathBuf,
    }

    impl Descent {
        fn root(path: &Path) -> Result<Self> {
            let flags = SEARCH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            // an empty path is the working folder
            let named = if path.as_os_str().is_empty() {
                Path::new(".")
            } else {
                path
            };
            let folder = openat(CWD, named, flags, Mode::empty())
                .map_err(|e| FormatError::io("open", path)(e.into()))?;
            Ok(Self {
                folder,
                path: path.to_owned(),
            })
        }

        /// The folder `name` in this one.
        fn enter(&self, name: &OsStr, make: bool) -> Result<Self> {
            let path = self.path.join(name);
            let flags = SEARCH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let mut opened = openat(&self.folder, name, flags, Mode::empty());
            if make && opened.as_ref().err() == Some(&Errno::NOENT) {
                match mkdirat(&self.folder, name, FOLDER_MODE) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(e) => return Err(FormatError::io("create", path)(e.into())),
                }
                opened = openat(&self.folder, name, flags, Mode::empty());
            }
            match opened {
                Ok(folder) => Ok(Self { folder, path }),
                Err(e) => Err(match self.explain(name, "open", e) {
                    FormatError::Io { .. } if e == Errno::NOTDIR => {
                        FormatError::malformed(&path, "is not a folder")
                    }
                    other => other,
                }),
            }
        }

        /// Why what is in this folder could not be opened: a link is named as one.
        fn explain(&self, name: &OsStr, action: &'static str, error: Errno) -> FormatError {
            let path = self.path.join(name);
            if !matches!(error, Errno::LOOP | Errno::NOTDIR | Errno::MLINK) {
                return FormatError::io(action, path)(error.into());
            }
            let kind = statat(&self.folder, name, AtFlags::SYMLINK_NOFOLLOW)
                .map(|stat| FileType::from_raw_mode(stat.st_mode));
            match kind {
                Ok(FileType::Symlink) => FormatError::Link { path },
                _ => FormatError::io(action, path)(error.into()),
            }
        }
    }

    /// The folder that the last part of a relative path lies in, and that part.
    fn parent<'r>(root: &Path, relative: &'r str, make: bool) -> Result<(Descent, &'r OsStr)> {
        let mut step = Descent::root(root)?;
        let mut parts = relative.split('/').filter(|part| !part.is_empty());
        let last = parts.next_back().unwrap_or(".");
        for part in parts {
            step = step.enter(OsStr::new(part), make)?;
        }
        Ok((step, OsStr::new(last)))
    }

    /// Opens a file for reading, with further flags.
    pub(in super::super) fn open(root: &Path, relative: &str, flags: OFlags) -> Result<File> {
        let (step, name) = parent(root, relative, false)?;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | flags;
        openat(&step.folder, name, flags, Mode::empty())
            .map(File::from)
            .map_err(|e| step.explain(name, "open", e))
    }

    pub(super) fn create(root: &Path, relative: &str) -> Result<File> {
        let (step, name) = parent(root, relative, true)?;
        // never waits for the reader of a pipe
        let flags = OFlags::RDWR
            | OFlags::CREATE
            | OFlags::TRUNC
            | OFlags::NOFOLLOW
            | OFlags::NONBLOCK
            | OFlags::CLOEXEC;
        openat(&step.folder, name, flags, FILE_MODE)
            .map(File::from)
            .map_err(|e| step.explain(name, "create", e))
    }

    pub(super) fn make_parents(root: &Path, relative: &str) -> Result<()> {
        parent(root, relative, true).map(drop)
    }

    pub(super) fn rename(from: (&Path, &str), to: (&Path, &str)) -> Result<()> {
        let (old, old_name) = parent(from.0, from.1, false)?;
        let (new, new_name) = parent(to.0, to.1, true)?;
        // a link at the new name is replaced, not followed
        renameat(old.folder.as_fd(), old_name, new.folder.as_fd(), new_name)
            .map_err(|e| FormatError::io("rename", from.0.join(from.1))(e.into()))
    }

    /// Whether all folders on the way to the last part of a path are there, none of them a link.
    pub(super) fn has_parents(root: &Path, relative: &str) -> Result<bool> {
        match parent(root, relative, false) {
            Ok(_) => Ok(true),
            Err(FormatError::Io { source, .. }) if super::is_nothing(&source) => Ok(false),
            Err(e) => Err(e),
        }
    }
}

#[cfg(not(unix))]
mod system {
    //! Without a way to open one part after another, links are looked for before.

    use std::fs::{self, File};
    use std::path::Path;

    use super::{EntryKind, entry_kind};
    use crate::{FormatError, Result};

    pub(in super::super) fn open(root: &Path, relative: &str) -> Result<File> {
        refuse_links(root, relative, true)?;
        let path = root.join(relative);
        File::open(&path).map_err(FormatError::io("open", &path))
    }

    pub(super) fn create(root: &Path, relative: &str) -> Result<File> {
        make_parents(root, relative)?;
        refuse_links(root, relative, true)?;
        let path = root.join(relative);
        File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path)
            .map_err(FormatError::io("create", &path))
    }

    pub(super) fn make_parents(root: &Path, relative: &str) -> Result<()> {
        refuse_links(root, relative, false)?;
        let path = root.join(relative);
        let parent = path.parent().unwrap_or(root);
        fs::create_dir_all(parent).map_err(FormatError::io("create", parent))
    }

    pub(super) fn rename(from: (&Path, &str), to: (&Path, &str)) -> Result<()> {
        refuse_links(from.0, from.1, false)?;
        make_parents(to.0, to.1)?;
        let (old, new) = (from.0.join(from.1), to.0.join(to.1));
        fs::rename(&old, new).map_err(FormatError::io("rename", &old))
    }

    pub(super) fn has_parents(root: &Path, relative: &str) -> Result<bool> {
        refuse_links(root, relative, false)?;
        Ok(root.join(relative).parent().is_some_and(Path::exists))
    }

    fn refuse_links(root: &Path, relative: &str, last_too: bool) -> Result<()> {
        let mut path = root.to_owned();
        let parts: Vec<&str> = relative.split('/').collect();
        let count = parts.len() - usize::from(!last_too);
        for part in &parts[..count] {
            path.push(part);
            if entry_kind(&path)? == Some(EntryKind::Link) {
                return Err(FormatError::Link { path });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    /// A folder with `real/file`, and links to both.
    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("real")).unwrap();
        fs::write(at("real/file"), b"precious").unwrap();
        symlink("real", at("folder")).unwrap();
        symlink("file", at("real/link")).unwrap();
        folder
    }

    #[test]
    fn no_way_leads_through_a_link() {
        let folder = folder();
        let root = folder.path();
        for relative in ["folder/file", "real/link", "folder/link"] {
            let opened = open(root, relative, rustix::fs::OFlags::empty());
            let created = create_beneath(root, relative);
            for error in [opened.map(drop), created.map(drop)] {
                assert!(
                    matches!(error, Err(FormatError::Link { .. })),
                    "{relative}: {error:?}"
                );
            }
        }
        for error in [
            make_parents_beneath(root, "folder/more/x"),
            remove_beneath(root, "folder/file"),
            rename_beneath((root, "folder/file"), (root, "x")),
            rename_beneath((root, "real/file"), (root, "folder/x")),
        ] {
            assert!(matches!(error, Err(FormatError::Link { .. })), "{error:?}");
        }
        assert_eq!(fs::read(root.join("real/file")).unwrap(), b"precious");
        assert_eq!(fs::read_dir(root.join("real")).unwrap().count(), 2);
    }

    #[test]
    fn a_link_itself_is_removed_or_replaced() {
        let folder = folder();
        let root = folder.path();
        remove_beneath(root, "folder").unwrap();
        fs::write(root.join("new"), b"new").unwrap();
        rename_beneath((root, "new"), (root, "real/link")).unwrap();
        assert_eq!(fs::read(root.join("real/link")).unwrap(), b"new");
        assert_eq!(fs::read(root.join("real/file")).unwrap(), b"precious");
        remove_beneath(root, "real").unwrap();
        remove_beneath(root, "real/file").unwrap();
        assert_eq!(fs::read_dir(root).unwrap().count(), 0);
    }

    #[test]
    fn folders_are_made_and_a_file_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let linked = folder.path().join("linked");
        symlink(".", &linked).unwrap();
        // the folder itself may be a link
        drop(create_beneath(&linked, "a/b/file").unwrap());
        assert!(folder.path().join("a/b/file").is_file());
        let error = create_beneath(folder.path(), "a/b/file/x").unwrap_err();
        assert!(error.to_string().contains("is not a folder"), "{error}");
    }
}
