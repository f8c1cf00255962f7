//! The folder that a step writes: refused where it would destroy something, locked, whole or
//! resumable.

mod document;
mod elsewhere;
mod error;
mod inspect;
mod journal;
mod keep;
mod limits;
mod lock;
mod moves;
mod publisher;
mod space;
mod stage;
mod swap;
mod walk;
mod write_behind;

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use segpack_formats::FormatError;
use segpack_formats::io::{
    create_beneath, entry_kind, remove_beneath, rename_beneath, sync_file, sync_folder,
};
use segpack_manifests::folder::PARTIAL;

pub(crate) use document::write_whole;
pub(crate) use elsewhere::Elsewhere;
pub use error::OutputError;
pub(crate) use inspect::{Before, inspect, refuse_holding, refuse_inside, refuse_overlap};
pub(crate) use journal::{JOURNAL, Journal, JournalRead, KeptRanges, Record, ShardDigests};
pub(crate) use keep::remove_from;
pub use limits::FileLimit;
use lock::{LOCK, in_partial};
pub(crate) use publisher::{Flushing, Publisher};
pub(crate) use space::{Needed, check_space};
pub(crate) use stage::{Shape, Staging};
use swap::Swap;
pub(crate) use swap::{
    discard, is_being_replaced, is_between, is_unfinished, leftover, recover, refuse_busy,
};
pub(crate) use walk::files_below;
pub(crate) use write_behind::{WRITE_BEHIND_MEMORY, write_behind};

/// Folder, below [`PARTIAL`], of files that are being written.
const FILES: &str = "files";

/// Folder, below [`PARTIAL`], of whole files that the run itself needs until it is finished.
const KEPT: &str = "kept";

/// What a run that failed leaves of its output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leave {
    /// Nothing at all: the input is at fault, and no other run can go on.
    Nothing,
    /// What was there before: the run was refused.
    Before,
    /// Everything that `resume` needs.
    Unfinished,
}

/// An output folder under this process's lock; unfinished things live in its `.partial`.
#[derive(Debug)]
pub(crate) struct OutputFolder {
    path: PathBuf,
    created: bool,
    lock: File,
    /// Where this one goes when it is finished.
    swap: Option<Swap>,
    /// A folder that has some of the files already and gets those that it lacks.
    completes: Option<PathBuf>,
}

impl OutputFolder {
    /// Makes the folder and its `.partial`, and locks it.
    ///
    /// # Errors
    /// `Busy` where another process writes there; `Link` where `.partial` is one; `OnlyCopy` where
    /// an unfinished pack there has no source any more; `Io`.
    pub(crate) fn open(path: &Path) -> Result<Self, OutputError> {
        refuse_only_copy(path)?;
        Self::go_on(path)
    }

    /// [`open`](Self::open) for the run that goes on with what is there.
    ///
    /// # Errors
    /// As [`open`](Self::open), but for `OnlyCopy`.
    pub(crate) fn go_on(path: &Path) -> Result<Self, OutputError> {
        let created = !path.exists();
        Ok(Self {
            path: path.to_owned(),
            created,
            lock: lock::acquire(path)?,
            swap: None,
            completes: None,
        })
    }

    /// A new folder, beside an existing one, which stays whole until the new one takes its place;
    /// where `resume`, the one that an interrupted run was building.
    ///
    /// # Errors
    /// As [`open`](Self::open); `NotOurs`, `MountPoint`.
    pub(crate) fn replace(out: &Path, resume: bool) -> Result<Self, OutputError> {
        Self::open_in(Swap::begin(out, resume)?)
    }

    /// A folder that is built out of sight.
    fn open_in(swap: Swap) -> Result<Self, OutputError> {
        let mut output = Self::open(&swap.building())?;
        output.swap = Some(swap);
        Ok(output)
    }

    /// Where the user wants it.
    fn place(&self) -> &Path {
        self.swap.as_ref().map_or(&*self.path, Swap::target)
    }

    /// Whether an earlier run finished a file, or seems to have.
    ///
    /// # Errors
    /// `Io`.
    pub(crate) fn has(&self, relative: &str) -> Result<bool, OutputError> {
        Ok(entry_kind(&self.path.join(relative))?.is_some())
    }

    /// The folder in which a file is already: the one that is completed, or this one, where an
    /// earlier run finished it.
    ///
    /// # Errors
    /// `Io`.
    pub(crate) fn folder_with(&self, relative: &str) -> Result<Option<&Path>, OutputError> {
        if let Some(folder) = &self.completes
            && entry_kind(&folder.join(relative))?.is_some()
        {
            return Ok(Some(folder));
        }
        Ok(self.has(relative)?.then_some(&*self.path))
    }

    /// Whether a file of the right length is there; its bytes are looked at later.
    pub(crate) fn may_have(&self, relative: &str, length: u64) -> bool {
        let folders = [Some(&self.path), self.completes.as_ref()];
        let paths = folders.into_iter().flatten().map(|f| f.join(relative));
        let mut found = paths.filter_map(|path| path.symlink_metadata().ok());
        found.any(|m| m.is_file() && m.len() == length)
    }

    /// Removes a file of [`folder_with`](Self::folder_with) that is not what it should be: one of
    /// our own is written again, another is nobody's to replace.
    ///
    /// # Errors
    /// `Differs` where it is in the folder that is completed; `Io`.
    pub(crate) fn remove_wrong(&self, folder: &Path, relative: &str) -> Result<(), OutputError> {
        if self.completes.as_deref() == Some(folder) {
            let path = folder.join(relative);
            return Err(OutputError::Differs { path });
        }
        self.remove(relative)
    }

    /// The folder.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Where a file is written before it is whole.
    pub(crate) fn partial(&self, relative: &str) -> PathBuf {
        self.path.join(unfinished(relative))
    }

    /// Removes files that an interrupted run did not finish: they are of no use and take space.
    ///
    /// # Errors
    /// `Link`; `Io`.
    pub(crate) fn clear_unfinished(&self) -> Result<(), OutputError> {
        Ok(remove_beneath(&self.path, &in_partial(FILES))?)
    }

    /// The path of a file that is kept until the run is finished, from the folder.
    pub(crate) fn kept(name: &str) -> String {
        format!("{PARTIAL}/{KEPT}/{name}")
    }

    /// A file of the run itself, gone when it is finished.
    pub(crate) fn control(&self, name: &str) -> PathBuf {
        self.path.join(PARTIAL).join(name)
    }

    /// Removes something at a path in the folder; nothing there is fine.
    ///
    /// # Errors
    /// `Link` where the way to it leads through one; `Io`.
    pub(crate) fn remove(&self, relative: &str) -> Result<(), OutputError> {
        Ok(remove_beneath(&self.path, relative)?)
    }

    /// Creates an empty unfinished file, its folders too.
    ///
    /// # Errors
    /// `Link`; `Io`.
    pub(crate) fn create(&self, relative: &str) -> Result<(Arc<File>, PathBuf), OutputError> {
        let file = create_beneath(&self.path, &unfinished(relative))?;
        Ok((Arc::new(file), self.partial(relative)))
    }

    /// Makes an unfinished file durable and moves it to its path.
    ///
    /// # Errors
    /// `Link`; `Io`.
    pub(crate) fn publish(&self, file: &File, relative: &str) -> Result<(), OutputError> {
        sync_file(file, &self.partial(relative))?;
        let to = self.path.join(relative);
        let parent = to.parent().unwrap_or(&self.path);
        let is_new = !parent.exists();
        self.move_into(&self.path, relative)?;
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

    /// Moves an unfinished file to its path below another folder.
    ///
    /// # Errors
    /// `Link`; `Io`.
    pub(crate) fn move_into(&self, into: &Path, relative: &str) -> Result<(), OutputError> {
        let from = (&*self.path, &*unfinished(relative));
        Ok(rename_beneath(from, (into, relative))?)
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
        check_space(&self.path, Needed::exactly(needed), 0)
    }

    /// Every file has its name: removes `.partial`. What was built out of sight takes its place.
    ///
    /// # Errors
    /// `Io`.
    pub(crate) fn finish(self) -> Result<(), OutputError> {
        let Self {
            path, lock, swap, ..
        } = self;
        remove_partial(&path, lock)?;
        sync_folder(&path)?;
        match swap {
            Some(swap) => swap.commit(),
            None => Ok(()),
        }
    }

    /// Ends a run: what is whole takes its place; after an error, what `leave` says stays.
    ///
    /// # Errors
    /// That of the run, or `Io`.
    pub(crate) fn close<T, E: From<OutputError>>(
        self,
        done: Result<T, E>,
        leave: impl FnOnce(&E) -> Leave,
    ) -> Result<T, E> {
        match done.as_ref().map_err(leave) {
            Ok(_) => self.finish()?,
            Err(Leave::Nothing) => self.abandon(&[]),
            // in a folder that was refused nothing is left
            Err(Leave::Before) if self.completes.is_some() => self.abandon(&[]),
            Err(Leave::Before | Leave::Unfinished) => self.leave_finished(),
        }
        done
    }

    /// Ends a run that failed. What is finished stays, since another run can go on with it; what is
    /// not is of no use and goes. Where nothing is finished, nothing stays.
    fn leave_finished(self) {
        // best effort: the error that led here is what the user must see
        let _ = self.clear_unfinished();
        if !self.swap.as_ref().is_some_and(Swap::has_finished) {
            self.abandon(&[]);
        }
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
        let Self {
            path,
            created,
            lock,
            swap,
            ..
        } = self;
        // best effort, all of it: the error that led here is what the user must see
        for entry in entries {
            let _ = remove_beneath(&path, entry);
        }
        let _ = remove_partial(&path, lock);
        if let Some(swap) = swap {
            swap.abandon();
        } else if created {
            let _ = fs::remove_dir(&path);
        }
    }
}

/// Refuses a folder with an unfinished pack that is the only copy of its source.
///
/// # Errors
/// `OnlyCopy`; `Io`.
pub(crate) fn refuse_only_copy(path: &Path) -> Result<(), OutputError> {
    if Journal::is_only_copy(path)? {
        let path = path.to_owned();
        return Err(OutputError::OnlyCopy { path });
    }
    Ok(())
}

/// The path of an unfinished file, from the output folder.
pub(crate) fn unfinished(relative: &str) -> String {
    format!("{PARTIAL}/{FILES}/{relative}")
}

/// Removes `.partial`. The lock is closed before it is removed: FUSE and NFS keep a file that is
/// still open under another name, and the folder could not go.
fn remove_partial(path: &Path, lock: File) -> Result<(), OutputError> {
    let partial = path.join(PARTIAL);
    // all that takes long while nobody else can begin
    for entry in fs::read_dir(&partial).map_err(FormatError::io("list", &partial))? {
        let name = entry
            .map_err(FormatError::io("list", &partial))?
            .file_name();
        if let Some(name) = name.to_str().filter(|name| *name != LOCK) {
            remove_beneath(path, &in_partial(name))?;
        }
    }
    drop(lock);
    Ok(remove_beneath(path, PARTIAL)?)
}
