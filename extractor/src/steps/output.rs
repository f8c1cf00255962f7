//! The folder that a step writes: refused where it would destroy something, locked, whole or resumable.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use segpack_formats::io::sync_folder;
use segpack_manifests::pack_folder::PARTIAL;

use super::StepError;

/// How much free space stays beyond what a step is known to need, in bytes.
const SPARE_BYTES: u64 = 16 << 20;

/// An output folder under this process's lock; unfinished things live in its `.partial`.
#[derive(Debug)]
pub struct OutputFolder {
    path: PathBuf,
    created: bool,
    _lock: File,
}

/// What a folder holds before anything is written to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Before {
    /// It does not exist, or is empty.
    Nothing,
    /// An unfinished run's `.partial`.
    Unfinished,
    /// Something else.
    Occupied,
}

/// Looks at an output path.
///
/// # Errors
/// `Refused` where it is a file or a link that leads nowhere.
pub fn look(path: &Path) -> Result<Before, StepError> {
    if fs::symlink_metadata(path).is_err() {
        return Ok(Before::Nothing);
    }
    if !path.is_dir() {
        return Err(StepError::Refused(format!("{} exists and is not a folder", path.display())));
    }
    let mut entries = fs::read_dir(path).map_err(StepError::io("list", path))?;
    if path.join(PARTIAL).is_dir() {
        return Ok(Before::Unfinished);
    }
    Ok(if entries.next().is_none() { Before::Nothing } else { Before::Occupied })
}

/// Refuses an output folder inside the input folder: its files would become part of the input.
///
/// # Errors
/// `Refused` with both paths.
pub fn refuse_inside(output: &Path, input: &Path) -> Result<(), StepError> {
    let input = input.canonicalize().map_err(StepError::io("open", input))?;
    // the part that exists decides; what follows it is new
    let mut existing = std::path::absolute(output).map_err(StepError::io("find", output))?;
    while !existing.exists() && existing.pop() {}
    let existing = existing.canonicalize().map_err(StepError::io("open", &existing))?;
    if existing.starts_with(&input) {
        return Err(StepError::Refused(format!(
            "output {} lies inside the input {}; choose another place",
            output.display(),
            input.display()
        )));
    }
    Ok(())
}

impl OutputFolder {
    /// Makes the folder and its `.partial`, and locks it.
    ///
    /// # Errors
    /// `Refused` where another process writes there; `Io`.
    pub fn open(path: &Path) -> Result<Self, StepError> {
        let created = !path.exists();
        let partial = path.join(PARTIAL);
        fs::create_dir_all(&partial).map_err(StepError::io("create", &partial))?;
        let lock_path = partial.join("lock");
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .map_err(StepError::io("create", &lock_path))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path: path.to_owned(), created, _lock: lock }),
            Err(TryLockError::WouldBlock) => {
                Err(StepError::Refused(format!("another segpack is writing to {}", path.display())))
            }
            Err(TryLockError::Error(e)) => Err(StepError::io("lock", &lock_path)(e)),
        }
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where a file is written before it is whole.
    pub fn partial(&self, relative: &str) -> PathBuf {
        self.path.join(PARTIAL).join(relative)
    }

    /// Creates an empty unfinished file, its folders too.
    ///
    /// # Errors
    /// `Io`.
    pub fn create(&self, relative: &str) -> Result<(File, PathBuf), StepError> {
        let path = self.partial(relative);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(StepError::io("create", parent))?;
        }
        let file = File::create(&path).map_err(StepError::io("create", &path))?;
        Ok((file, path))
    }

    /// Makes an unfinished file durable and moves it to its place.
    ///
    /// # Errors
    /// `Io`.
    pub fn publish(&self, file: &File, relative: &str) -> Result<(), StepError> {
        let (from, to) = (self.partial(relative), self.path.join(relative));
        file.sync_all().map_err(StepError::io("sync", &from))?;
        let parent = to.parent().unwrap_or(&self.path);
        fs::create_dir_all(parent).map_err(StepError::io("create", parent))?;
        fs::rename(&from, &to).map_err(StepError::io("rename", &from))?;
        Ok(sync_folder(parent)?)
    }

    /// Writes a small file and publishes it.
    ///
    /// # Errors
    /// `Io`.
    pub fn write_small(
        &self,
        relative: &str,
        write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> Result<(), StepError> {
        let (file, path) = self.create(relative)?;
        let mut buffered = io::BufWriter::new(&file);
        write(&mut buffered).and_then(|()| buffered.flush()).map_err(StepError::io("write", &path))?;
        drop(buffered);
        self.publish(&file, relative)
    }

    /// Refuses to begin what the disk cannot hold.
    ///
    /// # Errors
    /// `Refused` with both figures.
    pub fn check_space(&self, needed: u64) -> Result<(), StepError> {
        let free =
            fs4::available_space(&self.path).map_err(StepError::io("find the free space of", &self.path))?;
        if free >= needed.saturating_add(SPARE_BYTES) {
            return Ok(());
        }
        Err(StepError::Refused(format!(
            "{} needs {needed} bytes and {SPARE_BYTES} to spare, but its disk has only {free} free",
            self.path.display()
        )))
    }

    /// Everything is in place: takes `.partial` away.
    ///
    /// # Errors
    /// `Io`.
    pub fn finish(self) -> Result<(), StepError> {
        let partial = self.path.join(PARTIAL);
        fs::remove_dir_all(&partial).map_err(StepError::io("remove", &partial))?;
        Ok(sync_folder(&self.path)?)
    }

    /// Takes back everything that this and earlier unfinished runs wrote below these entries.
    pub fn abandon(self, entries: &[&str]) {
        for entry in entries.iter().chain(&[PARTIAL]) {
            let path = self.path.join(entry);
            // best effort: the error that led here is what the user must see
            let _ = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        }
        if self.created {
            let _ = fs::remove_dir(&self.path);
        }
    }
}
