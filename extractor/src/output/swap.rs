//! A folder that is replaced by a new one, and is whole at every moment: first the old one, then
//! the new one.
//!
//! The new folder is built in a hidden one beside the old, `.NAME.partial`:
//!
//! ```text
//! NAME/                    the old folder, untouched
//! .NAME.partial/
//!     lock                 held by the process that replaces
//!     replacing.json       says whose this is and how far it is
//!     new/                 the new folder; after the exchange, the old one
//!     old/                 the old folder, where the file system cannot exchange
//! ```
//!
//! When the new folder is complete, the two change places in one step; where the file system has no
//! such step, the old one is renamed, then the new one, and between the two a later run finds both,
//! whole, and goes on.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use segpack_formats::FormatError;
use segpack_formats::io::{
    EntryKind, InputFile, create_beneath, entry_kind, exchange, remove_beneath, rename_beneath,
    sync_file, sync_folder,
};
use segpack_manifests::folder::PARTIAL;
use serde::{Deserialize, Serialize};

use super::lock::{self, LOCK};
use super::{OutputError, refuse_busy};

const NEW: &str = "new";
const OLD: &str = "old";
const STATE: &str = "replacing.json";
const NEXT_STATE: &str = "replacing.new";

/// How far a replacement is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum State {
    /// `new` is being written.
    Building,
    /// `new` is complete. From here on either folder may have the name.
    Exchanging {
        /// What tells the new folder from the old one.
        new: Option<u64>,
    },
}

/// A replacement that is going on.
#[derive(Debug)]
pub(super) struct Swap {
    /// The folder that is replaced; no part of its path is a link.
    target: PathBuf,
    /// The hidden folder beside it.
    room: PathBuf,
    lock: File,
}

/// The hidden folder beside a file or folder; `None` where the path has no name.
pub(crate) fn beside(out: &Path) -> Option<PathBuf> {
    let mut hidden = OsString::from(".");
    hidden.push(out.file_name()?);
    hidden.push(".partial");
    Some(match out.parent() {
        Some(parent) if parent != Path::new("") => parent.join(hidden),
        _ => PathBuf::from(hidden),
    })
}

/// The folder that a path means, and the hidden one beside it.
fn places(out: &Path) -> Result<(PathBuf, PathBuf), OutputError> {
    let target = match out.canonicalize() {
        // between two renames it has no name
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            std::path::absolute(out).map_err(FormatError::io("find", out))?
        }
        target => target.map_err(FormatError::io("find", out))?,
    };
    match beside(&target) {
        Some(room) => Ok((target, room)),
        None => Err(OutputError::NoFileName { path: target }),
    }
}

/// Whether a hidden folder is one of a replacement; a link, or anything else, is not.
fn state_of(room: &Path) -> Result<Option<State>, OutputError> {
    if entry_kind(room)? != Some(EntryKind::Folder) {
        return Ok(None);
    }
    let Ok(input) = InputFile::open_beneath(room, STATE) else {
        // killed before it could say so, or before the last part of it was gone
        return Ok(is_bare(room)?.then_some(State::Building));
    };
    let json = input.read_range(0..input.length())?;
    Ok(serde_json::from_slice(&json).ok())
}

/// What a replacement that was interrupted left beside a folder.
pub(crate) fn leftover(out: &Path) -> Option<PathBuf> {
    let (_, room) = places(out).ok()?;
    let state = state_of(&room).ok()?;
    state.map(|_| room)
}

/// Whether the folder at a path is missing because its replacement was interrupted between two
/// renames: both folders are whole, beside it.
pub(crate) fn is_between(out: &Path) -> bool {
    !out.exists() && leftover(out).is_some_and(|room| room.join(OLD).exists())
}

/// Ends or undoes what an interrupted replacement left, so that a folder is at its path again.
/// What was being built stays for `resume`; without, it goes.
///
/// # Errors
/// `Busy` where the replacement is going on; `Io`.
pub(crate) fn recover(out: &Path, resume: bool) -> Result<(), OutputError> {
    let (target, room) = places(out)?;
    let Some(state) = state_of(&room)? else {
        return Ok(());
    };
    let lock = lock::acquire_at(&room, LOCK, out)?;
    let swap = Swap { target, room, lock };
    match state {
        State::Exchanging { new } => swap.finish_exchange(new),
        State::Building if swap.target.exists() => Ok(()),
        // what was to be replaced is gone: what was begun takes its place
        State::Building if resume && swap.building().exists() => {
            fs::rename(swap.building(), &swap.target)
                .map_err(FormatError::io("rename", swap.building()))?;
            swap.discard()
        }
        State::Building => swap.discard(),
    }
}

/// Removes what an interrupted replacement was building: the folder at its path is the one that is
/// wanted.
///
/// # Errors
/// `Busy`; `Io`.
pub(crate) fn discard(out: &Path) -> Result<(), OutputError> {
    recover(out, false)?;
    let (target, room) = places(out)?;
    if state_of(&room)?.is_none() {
        return Ok(());
    }
    let lock = lock::acquire_at(&room, LOCK, out)?;
    Swap { target, room, lock }.discard()
}

impl Swap {
    /// Begins to replace a folder, or goes on where `resume`.
    ///
    /// # Errors
    /// `Busy`; `NotOurs` where something else lies at the hidden path; `MountPoint` where the folder
    /// cannot be renamed; `Io`.
    pub(super) fn begin(out: &Path, resume: bool) -> Result<Self, OutputError> {
        refuse_busy(out)?;
        let (target, room) = places(out)?;
        refuse_mount_point(&target)?;
        if state_of(&room)?.is_none() {
            match entry_kind(&room)? {
                None => {}
                Some(EntryKind::Link) => return Err(OutputError::Link { path: room }),
                Some(_) => return Err(OutputError::NotOurs { path: room }),
            }
        }
        fs::create_dir_all(&room).map_err(FormatError::io("create", &room))?;
        let lock = lock::acquire_at(&room, LOCK, out)?;
        let swap = Self { target, room, lock };
        if !resume {
            remove_beneath(&swap.room, NEW)?;
        }
        swap.write_state(State::Building)?;
        Ok(swap)
    }

    /// Where the new folder is built.
    pub(super) fn building(&self) -> PathBuf {
        self.room.join(NEW)
    }

    /// The new folder is complete and durable: it takes the old one's place, and the old one goes.
    ///
    /// # Errors
    /// `Io`; then a later run goes on from here.
    pub(super) fn commit(self) -> Result<(), OutputError> {
        sync_folder(&self.room)?;
        let new = identity(&self.building());
        self.write_state(State::Exchanging { new })?;
        self.finish_exchange(new)
    }

    /// Whatever has been done of the exchange, does the rest.
    fn finish_exchange(self, new: Option<u64>) -> Result<(), OutputError> {
        let (building, old) = (self.building(), self.room.join(OLD));
        let is_new = |path: &Path| new.is_some() && identity(path) == new;
        if self.target.exists() {
            // where nothing tells the two apart, the one that has the name keeps it
            if is_new(&building) && !exchange(&building, &self.target)? {
                fs::rename(&self.target, &old).map_err(FormatError::io("rename", &self.target))?;
                fs::rename(&building, &self.target)
                    .map_err(FormatError::io("rename", &building))?;
            }
        } else {
            let whole = if is_new(&building) || !old.exists() {
                &building
            } else {
                &old
            };
            fs::rename(whole, &self.target).map_err(FormatError::io("rename", whole))?;
        }
        sync_folder(self.target.parent().unwrap_or(&self.target))?;
        self.discard()
    }

    /// Removes the hidden folder with all that is in it.
    ///
    /// # Errors
    /// `Io`.
    pub(super) fn discard(self) -> Result<(), OutputError> {
        let Self { room, lock, .. } = self;
        for name in [NEW, OLD, NEXT_STATE, STATE] {
            remove_beneath(&room, name)?;
        }
        // FUSE and NFS keep a file that is removed while it is open
        drop(lock);
        remove_beneath(&room, LOCK)?;
        fs::remove_dir(&room).map_err(FormatError::io("remove", &room))?;
        if let Some(parent) = room.parent() {
            sync_folder(parent)?;
        }
        Ok(())
    }

    fn write_state(&self, state: State) -> Result<(), OutputError> {
        let next = self.room.join(NEXT_STATE);
        let json =
            serde_json::to_vec(&state).map_err(|e| FormatError::io("write", &next)(e.into()))?;
        let mut file = create_beneath(&self.room, NEXT_STATE)?;
        file.write_all(&json)
            .map_err(FormatError::io("write", &next))?;
        sync_file(&file, &next)?;
        drop(file);
        rename_beneath((&self.room, NEXT_STATE), (&self.room, STATE))?;
        Ok(sync_folder(&self.room)?)
    }
}

/// Whether a hidden folder holds no more than what a replacement begins and ends with.
fn is_bare(room: &Path) -> Result<bool, OutputError> {
    let mut entries = fs::read_dir(room).map_err(FormatError::io("list", room))?;
    let begins = |name: OsString| name == LOCK || name == NEXT_STATE;
    Ok(entries.all(|entry| entry.is_ok_and(|e| begins(e.file_name()))))
}

/// What tells two folders of one file system apart.
fn identity(folder: &Path) -> Option<u64> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        folder.symlink_metadata().ok().map(|m| m.ino())
    }
    #[cfg(not(unix))]
    {
        // what a folder holds does not change when it is renamed
        let manifest = folder.join(segpack_manifests::folder::MANIFEST);
        let modified = manifest.symlink_metadata().ok()?.modified().ok()?;
        let since = modified.duration_since(std::time::UNIX_EPOCH).ok()?;
        u64::try_from(since.as_nanos()).ok()
    }
}

/// A folder that another file system is mounted on cannot be renamed.
fn refuse_mount_point(target: &Path) -> Result<(), OutputError> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let device = |path: &Path| path.metadata().ok().map(|m| m.dev());
        if device(target) != target.parent().and_then(device) {
            return Err(OutputError::MountPoint {
                path: target.to_owned(),
            });
        }
    }
    #[cfg(not(unix))]
    let _ = target;
    Ok(())
}

/// Whether an interrupted run left a new folder beside an old one.
pub(crate) fn is_being_replaced(out: &Path) -> bool {
    leftover(out).is_some_and(|room| room.join(NEW).exists())
}

/// Whether an interrupted run left something at, or beside, a folder that `resume` goes on with.
pub(crate) fn is_unfinished(out: &Path) -> bool {
    out.join(PARTIAL).exists() || leftover(out).is_some()
}
