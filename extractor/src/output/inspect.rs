//! What lies at an output path, and what must not be written to.

use std::fs;
use std::path::{Path, PathBuf};

use segpack_formats::FormatError;
use segpack_formats::io::{EntryKind, entry_kind};
use segpack_manifests::Pack;
use segpack_manifests::folder::{MANIFEST, PART, PARTIAL, SUMS};

use super::OutputError;

/// What a folder holds before anything is written to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Before {
    /// It does not exist, or is empty.
    Nothing,
    /// An unfinished run's `.partial`.
    Unfinished,
    /// Something else.
    Occupied,
}

/// What lies at an output path.
///
/// # Errors
/// `NotAFolder` where it is a file or a link that leads nowhere; `Link` where its `.partial` or a
/// document of a pack is one; `Io`.
pub(crate) fn inspect(path: &Path) -> Result<Before, OutputError> {
    if entry_kind(path)?.is_none() {
        return Ok(Before::Nothing);
    }
    if !path.is_dir() {
        return Err(OutputError::NotAFolder {
            path: path.to_owned(),
        });
    }
    let mut entries = fs::read_dir(path).map_err(FormatError::io("list", path))?;
    for name in [MANIFEST, PART, SUMS, PARTIAL] {
        let path = path.join(name);
        match entry_kind(&path)? {
            Some(EntryKind::Link) => return Err(OutputError::Link { path }),
            Some(EntryKind::Folder) if name == PARTIAL => return Ok(Before::Unfinished),
            Some(_) | None => {}
        }
    }
    Ok(if entries.next().is_none() {
        Before::Nothing
    } else {
        Before::Occupied
    })
}

/// Refuses an output that is the address of a server: a folder of that name would be made here.
///
/// # Errors
/// `Address`.
fn refuse_address(path: &Path) -> Result<(), OutputError> {
    let text = path.to_string_lossy();
    let scheme = text.split_once("://").map_or("", |(scheme, _)| scheme);
    let is_address = !scheme.is_empty() && scheme.chars().all(|c| c.is_ascii_alphanumeric());
    match is_address {
        true => Err(OutputError::Address {
            path: path.to_owned(),
        }),
        false => Ok(()),
    }
}

/// Refuses an output folder inside the input folder: its files would become part of the input.
///
/// # Errors
/// `InsideInput`; `Io`.
pub(crate) fn refuse_inside(output: &Path, input: &Path) -> Result<(), OutputError> {
    let real = input
        .canonicalize()
        .map_err(FormatError::io("open", input))?;
    if resolve(output)?.starts_with(&real) {
        return Err(OutputError::InsideInput {
            output: output.to_owned(),
            input: real,
        });
    }
    Ok(())
}

/// Refuses an output folder that holds one of the inputs: replacing it would destroy them.
///
/// # Errors
/// `HoldsInput`; `Io`.
pub(crate) fn refuse_holding(output: &Path, inputs: &[PathBuf]) -> Result<(), OutputError> {
    let folder = resolve(output)?;
    for input in inputs {
        let real = input
            .canonicalize()
            .map_err(FormatError::io("open", input))?;
        if real.starts_with(&folder) {
            return Err(OutputError::HoldsInput {
                input: input.clone(),
                output: output.to_owned(),
            });
        }
    }
    Ok(())
}

/// Refuses an output that lies in a pack which is read, or that holds it. One that is not a folder
/// of this machine is never in the way.
///
/// # Errors
/// As [`refuse_inside`] and [`refuse_holding`].
pub(crate) fn refuse_overlap(output: &Path, pack: &Pack) -> Result<(), OutputError> {
    let Some(folder) = pack.local() else {
        return Ok(());
    };
    refuse_inside(output, folder)?;
    refuse_holding(output, &[folder.to_owned()])
}

/// Where a path will be once the folders that it lacks are made: links followed as far as it
/// exists.
fn resolve(path: &Path) -> Result<PathBuf, OutputError> {
    refuse_address(path)?;
    let absolute = std::path::absolute(path).map_err(FormatError::io("find", path))?;
    let mut real = PathBuf::new();
    for part in absolute.components() {
        match part {
            std::path::Component::ParentDir => {
                real.pop();
            }
            part => real.push(part),
        }
        if real.exists() {
            real = real
                .canonicalize()
                .map_err(FormatError::io("open", &real))?;
        }
    }
    Ok(real)
}
