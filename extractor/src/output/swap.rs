//! An output that is built out of sight and takes its place when it is whole. What it replaces is
//! whole until then.
//!
//! It is built in a hidden folder beside its place, `.NAME.partial`:
//!
//! ```text
//! NAME/                    the old folder, untouched; or nothing
//! .NAME.partial/
//!     lock                 held by the process that writes
//!     replacing.json       says whose this is and how far it is
//!     new/                 the new folder; after the exchange, the old one
//!     old/                 the old folder, where the file system cannot exchange
//! ```
//!
//! When the new folder is complete, it is renamed; where there is an old one, the two change places
//! in one step; where the file system has no such step, the old one is renamed, then the new one,
//! and between the two a later run finds both, whole, and goes on.
//!
//! Files that go into a folder which stays (one file, the parts of one, what a folder lacks, a folder
//! that cannot be renamed) are moved there one after the other; a run that was killed between two
//! moves is ended by the next one.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use segpack_formats::FormatError;
use segpack_formats::digest::Sha256;
use segpack_formats::io::{
    EntryKind, InputFile, create_beneath, entry_kind, exchange, remove_beneath, rename_beneath,
    sync_file, sync_folder,
};
use segpack_manifests::folder::PARTIAL;
use serde::{Deserialize, Serialize};

use super::lock::{self, LOCK};
use super::{FILES, JOURNAL, OutputError, moves};

const NEW: &str = "new";
const OLD: &str = "old";
const STATE: &str = "replacing.json";
const NEXT_STATE: &str = "replacing.new";
/// A journal that was being begun.
const NEXT_JOURNAL: &str = "journal.new";

/// How far it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum State {
    /// `new` is being written: a pack that replaces another.
    Building,
    /// `new` is being written: files of no pack.
    Staged {
        /// Identifies what is written: only the same run goes on.
        run: Sha256,
    },
    /// `new` is complete, and its files are moved to the folder that the hidden one lies in.
    Moving {
        /// Their paths, in the order of the moves.
        files: Vec<String>,
    },
    /// `new` is complete. From here on either folder may have the name.
    Exchanging {
        /// What tells the new folder from the old one.
        new: Option<u64>,
    },
}

/// How `new` gets to its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Goal {
    /// As a whole, in exchange for what is there.
    Whole,
    /// File by file, into the folder that the hidden one lies in.
    Files,
}

/// An output that is being built, or put in its place.
#[derive(Debug)]
pub(super) struct Swap {
    /// Its place; no part of the path is a link.
    target: PathBuf,
    /// The hidden folder.
    room: PathBuf,
    goal: Goal,
    /// Folders above the place that were made for it, the lowest first.
    made: Vec<PathBuf>,
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
pub(super) fn places(out: &Path) -> Result<(PathBuf, PathBuf), OutputError> {
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

/// How far the output in a hidden folder is; `None` where the folder is none of ours: a link, or
/// anything else.
pub(super) fn state_of(room: &Path) -> Result<Option<State>, OutputError> {
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

/// Refuses an unfinished output that another process is writing to at this moment.
///
/// # Errors
/// `Busy`.
pub(crate) fn refuse_busy(path: &Path) -> Result<(), OutputError> {
    if let Some(room) = leftover(path) {
        lock::refuse_locked(&room, LOCK, path)?;
    }
    lock::refuse_locked(path, &lock::in_partial(LOCK), path)
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
    if matches!(state, State::Staged { .. } | State::Moving { .. }) {
        return Err(OutputError::OtherCommand { path: room });
    }
    let swap = Swap::enter(target, room, out)?;
    match state {
        State::Staged { .. } | State::Moving { .. } => Ok(()),
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
    Swap::enter(target, room, out)?.discard()
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
        let swap = Self::enter(target, room, out)?;
        if !resume {
            remove_beneath(&swap.room, NEW)?;
        }
        swap.refuse_link()?;
        swap.write_state(&State::Building)?;
        Ok(swap)
    }

    /// Locks a hidden folder that is there.
    pub(super) fn enter(target: PathBuf, room: PathBuf, out: &Path) -> Result<Self, OutputError> {
        let lock = lock::acquire_at(&room, LOCK, out)?;
        Ok(Self {
            target,
            room,
            goal: Goal::Whole,
            made: Vec::new(),
            lock,
        })
    }

    /// Begins to build an output, or goes on where `resume`: then what is there has to be of the
    /// same run.
    ///
    /// # Errors
    /// `Busy`; `OtherRun`; `Io`.
    pub(super) fn stage(
        (target, room): (PathBuf, PathBuf),
        goal: Goal,
        run: Sha256,
        resume: bool,
    ) -> Result<Self, OutputError> {
        let made = make_folders(room.parent().unwrap_or(Path::new(".")))?;
        fs::create_dir_all(&room).map_err(FormatError::io("create", &room))?;
        let out = target.clone();
        let mut swap = Self::enter(target, room, &out)?;
        (swap.goal, swap.made) = (goal, made);
        match state_of(&swap.room)? {
            Some(State::Staged { run: seen }) if resume && seen == run => {}
            Some(State::Staged { .. }) if resume => {
                return Err(OutputError::OtherRun { path: out });
            }
            _ => swap.clear()?,
        }
        swap.refuse_link()?;
        swap.write_state(&State::Staged { run })?;
        Ok(swap)
    }

    /// What is built is a folder of ours: nothing is written through a link that lies there.
    fn refuse_link(&self) -> Result<(), OutputError> {
        let path = self.building();
        match entry_kind(&path)? {
            Some(EntryKind::Link) => Err(OutputError::Link { path }),
            _ => Ok(()),
        }
    }

    /// Ends what an interrupted run has begun to put in its place; nothing where it has not.
    ///
    /// # Errors
    /// `Io`.
    pub(super) fn finish_begun(self) -> Result<(), OutputError> {
        match state_of(&self.room)? {
            Some(State::Exchanging { new }) => self.finish_exchange(new),
            Some(State::Moving { files }) => self.finish_moving(&files),
            _ => Ok(()),
        }
    }

    /// The folder that files are moved to.
    fn base(&self) -> &Path {
        self.room.parent().unwrap_or(Path::new("."))
    }

    /// Where the output goes.
    pub(super) fn target(&self) -> &Path {
        &self.target
    }

    /// Whether another run can go on with what is built.
    pub(super) fn has_finished(&self) -> bool {
        has_finished(&self.room)
    }

    /// Where the new folder is built.
    pub(super) fn building(&self) -> PathBuf {
        self.room.join(NEW)
    }

    /// The new folder is complete and durable: it takes the old one's place, and the old one goes;
    /// or its files go to theirs.
    ///
    /// # Errors
    /// `Io`; then a later run goes on from here.
    pub(super) fn commit(self) -> Result<(), OutputError> {
        sync_folder(&self.room)?;
        if self.goal == Goal::Files {
            let files = moves::in_order(&self.building())?;
            self.write_state(&State::Moving {
                files: files.clone(),
            })?;
            return self.finish_moving(&files);
        }
        let new = identity(&self.building());
        self.write_state(&State::Exchanging { new })?;
        self.finish_exchange(new)
    }

    /// Moves what has not been moved yet.
    fn finish_moving(self, files: &[String]) -> Result<(), OutputError> {
        moves::carry_out((&self.room, NEW), (&self.room, OLD), self.base(), files)?;
        self.discard()
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
        // a new folder is durable once the one that holds it is
        for made in &self.made {
            sync_folder(made.parent().unwrap_or(made))?;
        }
        self.discard()
    }

    /// Removes what was built and what was replaced.
    fn clear(&self) -> Result<(), OutputError> {
        for name in [NEW, OLD, FILES, JOURNAL, NEXT_JOURNAL, NEXT_STATE] {
            remove_beneath(&self.room, name)?;
        }
        Ok(())
    }

    /// Takes back all that was built, and the folders that were made for it.
    pub(super) fn abandon(self) {
        let made = self.made.clone();
        // best effort: the error that led here is what the user must see
        let _ = self.discard();
        for folder in made {
            let _ = fs::remove_dir(folder);
        }
    }

    /// Removes the hidden folder with all that is in it.
    ///
    /// # Errors
    /// `Io`.
    pub(super) fn discard(self) -> Result<(), OutputError> {
        self.clear()?;
        let Self { room, lock, .. } = self;
        remove_beneath(&room, STATE)?;
        // FUSE and NFS keep a file that is removed while it is open
        drop(lock);
        remove_beneath(&room, LOCK)?;
        fs::remove_dir(&room).map_err(FormatError::io("remove", &room))?;
        if let Some(parent) = room.parent() {
            sync_folder(parent)?;
        }
        Ok(())
    }

    fn write_state(&self, state: &State) -> Result<(), OutputError> {
        let next = self.room.join(NEXT_STATE);
        let json =
            serde_json::to_vec(state).map_err(|e| FormatError::io("write", &next)(e.into()))?;
        let mut file = create_beneath(&self.room, NEXT_STATE)?;
        file.write_all(&json)
            .map_err(FormatError::io("write", &next))?;
        sync_file(&file, &next)?;
        drop(file);
        rename_beneath((&self.room, NEXT_STATE), (&self.room, STATE))?;
        Ok(sync_folder(&self.room)?)
    }
}

/// Makes a folder and those above it; returns those that were made, the lowest first.
fn make_folders(folder: &Path) -> Result<Vec<PathBuf>, OutputError> {
    let above = folder.ancestors().filter(|a| *a != Path::new(""));
    let missing: Vec<PathBuf> = above
        .take_while(|a| a.symlink_metadata().is_err())
        .map(Path::to_owned)
        .collect();
    fs::create_dir_all(folder).map_err(FormatError::io("create", folder))?;
    Ok(missing)
}

/// Whether everything in a hidden folder inside an output is of ours.
pub(super) fn is_only_ours(room: &Path) -> Result<bool, OutputError> {
    let known = [
        LOCK,
        STATE,
        NEXT_STATE,
        NEW,
        OLD,
        FILES,
        JOURNAL,
        NEXT_JOURNAL,
    ];
    let mut entries = fs::read_dir(room).map_err(FormatError::io("list", room))?;
    Ok(entries.all(|entry| entry.is_ok_and(|e| known.iter().any(|k| e.file_name() == *k))))
}

/// Whether a hidden folder holds something finished that another run can go on with.
pub(super) fn has_finished(room: &Path) -> bool {
    let entries = fs::read_dir(room.join(NEW));
    entries.is_ok_and(|entries| {
        let mut names = entries.flatten().map(|e| e.file_name());
        names.any(|name| name != PARTIAL)
    })
}

/// Whether a hidden folder holds no more than what a replacement begins and ends with.
pub(super) fn is_bare(room: &Path) -> Result<bool, OutputError> {
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
        // a folder that is renamed stays as old as it is
        let created = folder.symlink_metadata().ok()?.created().ok()?;
        let since = created.duration_since(std::time::UNIX_EPOCH).ok()?;
        u64::try_from(since.as_nanos()).ok()
    }
}

/// A folder that another file system is mounted on cannot be renamed.
pub(super) fn refuse_mount_point(target: &Path) -> Result<(), OutputError> {
    if is_mount_point(target) {
        return Err(OutputError::MountPoint {
            path: target.to_owned(),
        });
    }
    Ok(())
}

/// Whether another file system is mounted on a folder.
pub(super) fn is_mount_point(target: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let device = |path: &Path| path.metadata().ok().map(|m| m.dev());
        device(target) != target.parent().and_then(device)
    }
    #[cfg(not(unix))]
    {
        let _ = target;
        false
    }
}

/// Whether an interrupted run left a new folder beside an old one.
pub(crate) fn is_being_replaced(out: &Path) -> bool {
    leftover(out).is_some_and(|room| room.join(NEW).exists())
}

/// Whether an interrupted run left something at, or beside, a folder that `resume` goes on with.
pub(crate) fn is_unfinished(out: &Path) -> bool {
    out.join(PARTIAL).exists() || leftover(out).is_some()
}
