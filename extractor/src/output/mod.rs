//! The folder that a step writes: refused where it would destroy something, locked, whole or
//! resumable.

mod error;
mod inspect;
mod journal;
mod lock;
mod publisher;
mod space;
mod write_behind;

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use segpack_formats::FormatError;
use segpack_formats::io::sync_folder;
use segpack_manifests::folder::PARTIAL;

pub use error::OutputError;
pub(crate) use inspect::{Before, inspect, refuse_holding, refuse_inside};
pub(crate) use journal::{JOURNAL, Journal, JournalRead, Record, ShardDigests};
pub(crate) use lock::refuse_busy;
pub(crate) use publisher::{Flushing, Publisher};
pub(crate) use space::check_space;
pub(crate) use write_behind::{WRITE_BEHIND_MEMORY, WriteBehind, write_behind};

/// Folder, below [`PARTIAL`], of files that are being written.
const FILES: &str = "files";

/// An output folder under this process's lock; unfinished things live in its `.partial`.
#[derive(Debug)]
pub(crate) struct OutputFolder {
    path: PathBuf,
    created: bool,
    _lock: File,
}

impl OutputFolder {
    /// Makes the folder and its `.partial`, and locks it.
    ///
    /// # Errors
    /// `Busy` where another process writes there; `Io`.
    pub(crate) fn open(path: &Path) -> Result<Self, OutputError> {
        let created = !path.exists();
        Ok(Self {
            path: path.to_owned(),
            created,
            _lock: lock::acquire(path)?,
        })
    }

    /// The folder.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Where a file is written before it is whole.
    pub(crate) fn partial(&self, relative: &str) -> PathBuf {
        self.path.join(PARTIAL).join(FILES).join(relative)
    }

    /// Removes files that an interrupted run did not finish: they are of no use and take space.
    ///
    /// # Errors
    /// `Io`.
    pub(crate) fn clear_unfinished(&self) -> Result<(), OutputError> {
        remove_all(&self.path.join(PARTIAL).join(FILES))
    }

    /// A file of the run itself, gone when it is finished.
    pub(crate) fn control(&self, name: &str) -> PathBuf {
        self.path.join(PARTIAL).join(name)
    }

    /// Creates an empty unfinished file, its folders too.
    ///
    /// # Errors
    /// `Io`.
    pub(crate) fn create(&self, relative: &str) -> Result<(Arc<File>, PathBuf), OutputError> {
        let path = self.partial(relative);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(FormatError::io("create", parent))?;
        }
        let file = File::create(&path).map_err(FormatError::io("create", &path))?;
        Ok((Arc::new(file), path))
    }

    /// Makes an unfinished file durable and moves it to its path.
    ///
    /// # Errors
    /// `Io`.
    pub(crate) fn publish(&self, file: &File, relative: &str) -> Result<(), OutputError> {
        let (from, to) = (self.partial(relative), self.path.join(relative));
        file.sync_all().map_err(FormatError::io("sync", &from))?;
        let parent = to.parent().unwrap_or(&self.path);
        let is_new = !parent.exists();
        fs::create_dir_all(parent).map_err(FormatError::io("create", parent))?;
        fs::rename(&from, &to).map_err(FormatError::io("rename", &from))?;
        sync_folder(parent)?;
        if is_new {
            // a new folder is durable once the one that holds it is
            let mut above = parent
                .ancestors()
                .skip(1)
                .take_while(|a| a.starts_with(&self.path));
            above.try_for_each(sync_folder)?;
        }
        Ok(())
    }

    /// Writes a small file and publishes it.
    ///
    /// # Errors
    /// `Io`.
    pub(crate) fn write_small(
        &self,
        relative: &str,
        write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> Result<(), OutputError> {
        let (file, path) = self.create(relative)?;
        let mut buffered = io::BufWriter::new(&*file);
        write(&mut buffered)
            .and_then(|()| buffered.flush())
            .map_err(FormatError::io("write", &path))?;
        drop(buffered);
        self.publish(&file, relative)
    }

    /// Refuses to begin what the disk cannot hold.
    ///
    /// # Errors
    /// `NoSpace`; `Io`.
    pub(crate) fn check_space(&self, needed: u64) -> Result<(), OutputError> {
        check_space(&self.path, needed, 0)
    }

    /// Every file has its name: removes `.partial`.
    ///
    /// # Errors
    /// `Io`.
    pub(crate) fn finish(self) -> Result<(), OutputError> {
        let partial = self.path.join(PARTIAL);
        fs::remove_dir_all(&partial).map_err(FormatError::io("remove", &partial))?;
        Ok(sync_folder(&self.path)?)
    }

    /// Takes back a folder that was made for this run, as long as nothing is in it.
    pub(crate) fn abandon_if_new(self) {
        let only_partial = fs::read_dir(&self.path).is_ok_and(|entries| entries.count() == 1);
        if self.created && only_partial {
            self.abandon(&[]);
        }
    }

    /// Takes back everything that this and earlier unfinished runs wrote below these entries.
    pub(crate) fn abandon(self, entries: &[&str]) {
        for entry in entries.iter().chain(&[PARTIAL]) {
            let path = self.path.join(entry);
            // best effort: the error that led here is what the user must see
            let _ = if path.is_dir() {
                fs::remove_dir_all(&path)
            } else {
                fs::remove_file(&path)
            };
        }
        if self.created {
            let _ = fs::remove_dir(&self.path);
        }
    }
}

/// Removes a file, or a folder with all that is in it; nothing there is fine.
///
/// # Errors
/// `Io`.
pub(crate) fn remove_all(path: &Path) -> Result<(), OutputError> {
    let removed = if path.is_dir() {
        fs::remove_dir_all(path)
    } else {
        fs::remove_file(path)
    };
    match removed {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(FormatError::io("remove", path)(e).into())
        }
        _ => Ok(()),
    }
}
