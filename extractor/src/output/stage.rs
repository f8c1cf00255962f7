//! Where an output that is no pack is built, and what may lie at its place: a restored checkpoint,
//! the files of an export.
//!
//! It is built in the hidden folder beside its place. Only where a folder exists that cannot be
//! renamed, or lacks some of its files, it is built inside that folder, and its files are moved.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use segpack_formats::FormatError;
use segpack_formats::digest::Sha256;
use segpack_formats::io::{EntryKind, entry_kind};
use segpack_manifests::folder::PARTIAL;

use super::swap::{
    Goal, State, Swap, beside, has_finished, is_bare, is_mount_point, is_only_ours, places,
    refuse_mount_point, state_of,
};
use super::walk::files_below;
use super::{OutputError, OutputFolder, refuse_busy};

/// What an output consists of.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Shape<'a> {
    /// A folder.
    Folder,
    /// Files of these names in the folder that the output path lies in: the path itself, or what it
    /// is split into.
    Files(&'a [String]),
}

/// An output that is about to be written.
pub(crate) struct Staging<'a> {
    /// Its path.
    pub out: &'a Path,
    /// What it consists of.
    pub shape: Shape<'a>,
    /// Go on where an interrupted run stopped, and complete what is there.
    pub resume: bool,
    /// Replace what is there.
    pub force: bool,
    /// Identifies what is written: only the same run goes on.
    pub run: Sha256,
    /// Whether a file, by its path below the output folder, is one that this command writes: nothing
    /// else is replaced.
    pub is_ours: &'a dyn Fn(&str) -> bool,
}

/// What lies at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum There {
    Nothing,
    /// A folder that holds nothing but what an interrupted run left.
    Empty,
    Something,
}

/// A hidden folder, and how far the output in it is.
struct Room {
    path: PathBuf,
    state: Option<State>,
}

impl Room {
    /// `inside` the output folder, where other versions left folders without a state.
    fn look(path: PathBuf, inside: bool) -> Result<Self, OutputError> {
        let state = match entry_kind(&path)? {
            None => None,
            Some(EntryKind::Link) => return Err(OutputError::Link { path }),
            Some(EntryKind::Folder) => match state_of(&path)? {
                // of a pack; or it was killed before it could say whose it is
                Some(State::Building) if !inside && !is_bare(&path)? => {
                    return Err(OutputError::OtherCommand { path });
                }
                Some(state) => Some(state),
                None if inside && is_only_ours(&path)? => Some(State::Building),
                None => return Err(OutputError::NotOurs { path }),
            },
            Some(_) => return Err(OutputError::NotOurs { path }),
        };
        Ok(Self { path, state })
    }

    /// Whether a run was interrupted while it put its output in place.
    fn is_begun(&self) -> bool {
        matches!(
            self.state,
            Some(State::Exchanging { .. } | State::Moving { .. })
        )
    }

    /// Whether there is something that another run can go on with.
    fn is_of_use(&self) -> bool {
        self.is_begun() || self.state.is_some() && has_finished(&self.path)
    }

    fn finish_begun(self, target: &Path) -> Result<(), OutputError> {
        if self.is_begun() {
            Swap::enter(target.to_owned(), self.path, target)?.finish_begun()?;
        }
        Ok(())
    }

    /// The same place with nothing there.
    fn removed(self, target: &Path) -> Result<Self, OutputError> {
        if self.state.is_some() {
            Swap::enter(target.to_owned(), self.path.clone(), target)?.discard()?;
        }
        Ok(Self {
            state: None,
            ..self
        })
    }

    fn refuse_unfinished(&self) -> Result<(), OutputError> {
        match self.is_of_use() {
            true => Err(OutputError::Unfinished {
                path: self.path.clone(),
            }),
            false => Ok(()),
        }
    }
}

impl Staging<'_> {
    /// Opens the folder in which the output is built.
    ///
    /// # Errors
    /// Where something is at its place that may not be replaced, or something unfinished that nobody
    /// asked to go on with; `Busy`; `Io`.
    pub(crate) fn open(&self) -> Result<OutputFolder, OutputError> {
        refuse_busy(self.out)?;
        match self.shape {
            Shape::Folder => self.open_folder(),
            Shape::Files(names) => self.open_files(names),
        }
    }

    fn open_folder(&self) -> Result<OutputFolder, OutputError> {
        let (target, room) = places(self.out)?;
        let look = || Ok::<_, OutputError>((Room::look(room.clone(), false)?, inside(&target)?));
        let (mut beside, mut inside) = look()?;
        let mut there = what_is_there(&target, self.out)?;

        // what was being put in place comes first: then it is there, or what it replaces is
        if self.resume || self.force {
            beside.finish_begun(&target)?;
            inside.finish_begun(&target)?;
            (beside, inside) = look()?;
            there = what_is_there(&target, self.out)?;
        } else {
            beside.refuse_unfinished()?;
            inside.refuse_unfinished()?;
        }

        match there {
            There::Something => self.open_occupied(target, beside, inside),
            There::Empty => self.open_empty(target, beside, inside),
            There::Nothing => self.build((target, beside.path), Goal::Whole),
        }
    }

    /// A folder that holds something.
    fn open_occupied(
        &self,
        target: PathBuf,
        beside: Room,
        inside: Room,
    ) -> Result<OutputFolder, OutputError> {
        let not_empty = || OutputError::NotEmpty {
            path: self.out.to_owned(),
        };
        // what a run that was killed left is of no use to any other
        let beside = match beside.is_of_use() {
            true => beside,
            false => beside.removed(&target)?,
        };
        match (self.resume, self.force) {
            (false, false) if inside.state.is_some() => {
                return Err(OutputError::Unfinished { path: inside.path });
            }
            (false, false) => return Err(not_empty()),
            // this is what was to be replaced: without `force` it is not
            (true, false) if beside.is_of_use() => return Err(not_empty()),
            _ => {}
        }
        let files = files_below(&target)?;
        let partial = format!("{PARTIAL}/");
        let mut own = files.iter().filter(|file| !file.starts_with(&partial));
        if let Some(foreign) = own.find(|file| !(self.is_ours)(file)) {
            return Err(OutputError::Foreign {
                path: self.out.join(foreign),
            });
        }
        if self.force {
            refuse_mount_point(&target)?;
            return self.build((target, beside.path), Goal::Whole);
        }
        let mut output = self.build((target.clone(), inside.path), Goal::Files)?;
        output.completes = Some(target);
        Ok(output)
    }

    /// An empty folder gives its place to the new one. It stays where it cannot be renamed, or where
    /// whoever made it is in it.
    fn open_empty(
        &self,
        target: PathBuf,
        beside: Room,
        inside: Room,
    ) -> Result<OutputFolder, OutputError> {
        let is_here = std::env::current_dir().is_ok_and(|here| here == target);
        let goes_on_inside = self.resume && inside.is_of_use();
        let stays = goes_on_inside || is_here || is_mount_point(&target);
        if !stays {
            match self.build((target.clone(), beside.path.clone()), Goal::Whole) {
                Err(OutputError::Format(e)) if is_forbidden(&e) => forget(beside.path, &target),
                built => return built,
            }
        } else {
            beside.removed(&target)?;
        }
        self.build((target, inside.path), Goal::Files)
    }

    fn open_files(&self, names: &[String]) -> Result<OutputFolder, OutputError> {
        let (folder, target) = file_places(self.out)?;
        let Some(room) = beside(&target) else {
            return Err(OutputError::NoFileName {
                path: self.out.to_owned(),
            });
        };
        let mut room = Room::look(room, false)?;
        if self.resume || self.force {
            let path = room.path.clone();
            room.finish_begun(&target)?;
            room = Room::look(path, false)?;
        } else {
            room.refuse_unfinished()?;
        }

        // files that are there are completed or replaced, or nothing is done
        let mut any = false;
        for name in names {
            let path = folder.join(name);
            any |= match entry_kind(&path)? {
                None => false,
                Some(EntryKind::Link) => return Err(OutputError::Link { path }),
                Some(EntryKind::File) if self.resume && !self.force => true,
                Some(EntryKind::File) if self.force && (self.is_ours)(name) => true,
                Some(_) if self.force => return Err(OutputError::Foreign { path }),
                Some(_) => {
                    let path = self.out.with_file_name(name);
                    return Err(OutputError::Exists { path });
                }
            };
        }
        let mut output = self.build((target, room.path), Goal::Files)?;
        output.completes = (any && !self.force).then_some(folder);
        Ok(output)
    }

    fn build(&self, places: (PathBuf, PathBuf), goal: Goal) -> Result<OutputFolder, OutputError> {
        let rights = fs::metadata(&places.0).map(|m| m.permissions());
        let swap = Swap::stage(places, goal, self.run, self.resume)?;
        let output = OutputFolder::open_in(swap)?;
        output.clear_unfinished()?;
        // a folder keeps the rights that somebody gave it; some file systems have none
        if let (Goal::Whole, Ok(rights)) = (goal, rights)
            && !rights.readonly()
        {
            let _ = fs::set_permissions(output.path(), rights);
        }
        Ok(output)
    }
}

/// Removes a hidden folder that could be made, but not written to, where it holds nothing of use.
/// Best effort: where it cannot be removed either, the output is built elsewhere for that reason.
fn forget(room: PathBuf, target: &Path) {
    if let Ok(room) = Room::look(room, false)
        && !room.is_of_use()
    {
        let _ = room.removed(target);
    }
}

/// The hidden folder inside an output folder.
fn inside(target: &Path) -> Result<Room, OutputError> {
    Room::look(target.join(PARTIAL), true)
}

fn what_is_there(target: &Path, out: &Path) -> Result<There, OutputError> {
    match entry_kind(target)? {
        None => return Ok(There::Nothing),
        Some(EntryKind::Folder) => {}
        Some(_) => {
            return Err(OutputError::NotAFolder {
                path: out.to_owned(),
            });
        }
    }
    for entry in fs::read_dir(target).map_err(FormatError::io("list", target))? {
        let name = entry.map_err(FormatError::io("list", target))?.file_name();
        if name != PARTIAL {
            return Ok(There::Something);
        }
    }
    Ok(There::Empty)
}

/// The folder of an output file, and the file's own path; no part of either is a link but for the
/// file itself.
fn file_places(out: &Path) -> Result<(PathBuf, PathBuf), OutputError> {
    let path = || out.to_owned();
    let Some(name) = out.file_name() else {
        return Err(OutputError::NoFileName { path: path() });
    };
    let folder = match out.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    if !folder.is_dir() {
        return Err(OutputError::NoParent { path: path() });
    }
    let folder = folder
        .canonicalize()
        .map_err(FormatError::io("find", folder))?;
    let target = folder.join(name);
    Ok((folder, target))
}

/// Whether nothing may be made in a folder.
fn is_forbidden(error: &FormatError) -> bool {
    let FormatError::Io { source, .. } = error else {
        return false;
    };
    matches!(
        source.kind(),
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem
    )
}
