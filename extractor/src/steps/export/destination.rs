//! Where an export goes: a folder or one file, which gets its name when everything is written and
//! checked.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use segpack_formats::FormatError;
use segpack_formats::io::{EntryKind, entry_kind, sync_folder};
use segpack_manifests::folder::PARTIAL;

use crate::output::{Before, OutputError, OutputFolder, inspect, refuse_busy};

/// An output that nobody sees before it is whole.
#[derive(Debug)]
pub(super) struct Destination {
    /// Holds the unfinished files.
    folder: OutputFolder,
    /// Where they go.
    into: PathBuf,
    /// Whether the folder is only for the unfinished files.
    staging: bool,
}

impl Destination {
    /// A folder that does not exist, is empty, or holds nothing but what an interrupted export
    /// left.
    ///
    /// # Errors
    /// Where anything else is there, or another process writes to it.
    pub(super) fn folder(out: &Path) -> Result<Self, OutputError> {
        refuse_busy(out)?;
        let path = || out.to_owned();
        match inspect(out)? {
            Before::Nothing => {}
            Before::Unfinished if only_partial(out)? => {}
            Before::Unfinished => return Err(OutputError::Unfinished { path: path() }),
            Before::Occupied => return Err(OutputError::NotEmpty { path: path() }),
        }
        let folder = OutputFolder::open(out)?;
        folder.clear_unfinished()?;
        Ok(Self {
            folder,
            into: out.to_owned(),
            staging: false,
        })
    }

    /// A file that does not exist. Until it is whole it is in a hidden folder beside it.
    ///
    /// # Errors
    /// Where it exists, or its folder does not.
    pub(super) fn file(out: &Path) -> Result<Self, OutputError> {
        let path = || out.to_owned();
        if out.symlink_metadata().is_ok() {
            return Err(OutputError::Exists { path: path() });
        }
        let Some(name) = out.file_name() else {
            return Err(OutputError::NoFileName { path: path() });
        };
        let parent = match out.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        if !parent.is_dir() {
            return Err(OutputError::NoParent { path: path() });
        }
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(".partial");
        let hidden = parent.join(hidden);
        // nobody named it, so nobody meant a link
        if entry_kind(&hidden)? == Some(EntryKind::Link) {
            return Err(OutputError::Link { path: hidden });
        }
        let mut destination = Self::folder(&hidden)?;
        destination.into = parent.to_owned();
        destination.staging = true;
        Ok(destination)
    }

    /// Files beside one another, `out` or what it is split into, none of which exists.
    ///
    /// # Errors
    /// As [`file`](Self::file).
    pub(super) fn files<'p>(
        out: &Path,
        names: impl Iterator<Item = &'p str>,
    ) -> Result<Self, OutputError> {
        let mut paths = names.map(|name| out.with_file_name(name));
        if let Some(there) = paths.find(|path| path.symlink_metadata().is_ok()) {
            return Err(OutputError::Exists { path: there });
        }
        Self::file(out)
    }

    /// The folder of the unfinished files.
    pub(super) fn unfinished(&self) -> &OutputFolder {
        &self.folder
    }

    /// Creates an unfinished file.
    ///
    /// # Errors
    /// `Io`.
    pub(super) fn create(&self, relative: &str) -> Result<(Arc<File>, PathBuf), OutputError> {
        self.folder.create(relative)
    }

    /// Moves all files, which are durable, to their places, the index and the configuration last, and
    /// takes away what was for the unfinished ones.
    ///
    /// # Errors
    /// `Io`; what was moved before stays.
    pub(super) fn publish<'p>(
        self,
        files: impl Iterator<Item = &'p str>,
    ) -> Result<(), OutputError> {
        // whoever sees the index or the configuration sees all that they speak of
        let mut files: Vec<&str> = files.collect();
        files.sort_by_key(|path| speaks_of_others(path));
        let mut folders = BTreeSet::from([self.into.clone()]);
        for relative in files {
            self.folder.move_into(&self.into, relative)?;
            let path = self.into.join(relative);
            let above = path.ancestors().skip(1);
            folders.extend(
                above
                    .take_while(|a| a.starts_with(&self.into))
                    .map(Path::to_owned),
            );
        }
        // the deepest first: a new folder is durable once the one that holds it is
        folders
            .iter()
            .rev()
            .try_for_each(|folder| sync_folder(folder))?;
        let staging = self.staging.then(|| self.folder.path().to_owned());
        self.folder.finish()?;
        match staging {
            Some(path) => Ok(fs::remove_dir(&path).map_err(FormatError::io("remove", &path))?),
            None => Ok(()),
        }
    }

    /// Takes back everything.
    pub(super) fn abandon(self) {
        let staging = self.staging.then(|| self.folder.path().to_owned());
        self.folder.abandon(&[]);
        if let Some(path) = staging {
            let _ = fs::remove_dir(path); // best effort, as all of this
        }
    }
}

/// What is published last: files that say that others are there.
fn speaks_of_others(path: &str) -> u8 {
    match path {
        "config.json" => 2,
        path if path.ends_with(".index.json") => 1,
        _ => 0,
    }
}

fn only_partial(folder: &Path) -> Result<bool, OutputError> {
    let mut entries = fs::read_dir(folder).map_err(FormatError::io("list", folder))?;
    Ok(entries.all(|entry| entry.is_ok_and(|e| e.file_name() == PARTIAL)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_published_before_what_speaks_of_them() {
        let mut files = [
            "config.json",
            "model.safetensors.index.json",
            "tokenizer.json",
            "model-00001-of-00001.safetensors",
        ];
        files.sort_by_key(|path| speaks_of_others(path));
        assert_eq!(files[2..], ["model.safetensors.index.json", "config.json"]);
    }
}
