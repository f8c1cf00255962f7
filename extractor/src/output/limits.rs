//! What a file system cannot hold, found out before anything is written: files that are too large,
//! names that it does not allow, names that are one and the same to it.

use std::collections::HashMap;
use std::fmt;
use std::io::ErrorKind;

use segpack_formats::FormatError;
use segpack_formats::io::{FileSystem, create_beneath, entry_kind, file_system, remove_beneath};

use super::lock::{LOCK, in_partial};
use super::{OutputError, OutputFolder, unfinished};

/// Characters that FAT and exFAT allow in no name, beside those below the space.
const FORBIDDEN: &str = "\"*:<>?\\|";
/// UTF-16 units of a name there.
const MAX_FAT_NAME: usize = 255;
/// Bytes of a file on FAT.
const MAX_FAT_FILE: u64 = u32::MAX as u64;
/// Every file system in use has names of so many bytes (eCryptfs has the shortest).
const ALWAYS_FITS: usize = 143;
/// EILSEQ: bytes that are no text in the file system's encoding.
const EILSEQ: i32 = 84;

/// Why a file system cannot hold a file.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum FileLimit {
    /// It is too large.
    Size {
        /// Its bytes.
        length: u64,
        /// The most that a file has there.
        max: u64,
    },
    /// A part of its path is too long, or has characters that are not allowed there.
    Name {
        /// The part.
        part: String,
    },
    /// Another file has the same name there.
    SameName {
        /// The other one, or the folder that it is in.
        other: String,
    },
}

impl fmt::Display for FileLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Size { length, max } => {
                write!(f, "it has {length} bytes, and a file there at most {max}")
            }
            Self::Name { part } => write!(f, "the name {part:?} is not allowed there"),
            Self::SameName { other } => write!(f, "{other:?} has the same name there"),
        }
    }
}

/// Finds out what a file system is like.
trait Probe {
    fn kind(&self) -> Result<FileSystem, OutputError>;

    /// Whether names that differ only in case are one and the same.
    fn ignores_case(&self) -> Result<bool, OutputError>;

    /// Whether a file may have a name.
    fn accepts(&self, name: &str) -> Result<bool, OutputError>;
}

/// The first of some files, with their lengths, that cannot be there.
fn first_refused<'f>(
    files: impl Iterator<Item = (&'f str, u64)>,
    probe: &dyn Probe,
) -> Result<Option<(String, FileLimit)>, OutputError> {
    let kind = probe.kind()?;
    // asked for only where two names would be one
    let mut ignores_case = (kind != FileSystem::Other).then_some(true);
    let mut seen: HashMap<String, &str> = HashMap::new();
    for (path, length) in files {
        let refused = |why| Ok(Some((path.to_owned(), why)));
        if kind == FileSystem::Fat && length > MAX_FAT_FILE {
            let max = MAX_FAT_FILE;
            return refused(FileLimit::Size { length, max });
        }
        for part in path.split('/') {
            if !accepts(kind, part, probe)? {
                let part = part.to_owned();
                return refused(FileLimit::Name { part });
            }
        }
        // the folders on the way have names, too
        let ends = path.match_indices('/').map(|(at, _)| at);
        for prefix in ends.chain([path.len()]).map(|end| &path[..end]) {
            let other = *seen.entry(fold(prefix)).or_insert(prefix);
            if other == prefix {
                continue;
            }
            let ignored = match ignores_case {
                Some(known) => known,
                None => *ignores_case.insert(probe.ignores_case()?),
            };
            if ignored {
                let other = other.to_owned();
                return refused(FileLimit::SameName { other });
            }
        }
    }
    Ok(None)
}

/// What a file system that ignores case, and dots and spaces at the end, makes of a path.
fn fold(path: &str) -> String {
    let parts = path
        .split('/')
        .map(|part| part.trim_end_matches(['.', ' ']));
    parts.collect::<Vec<_>>().join("/").to_lowercase()
}

fn accepts(kind: FileSystem, part: &str, probe: &dyn Probe) -> Result<bool, OutputError> {
    let forbidden = |c: char| c < ' ' || FORBIDDEN.contains(c);
    let is_odd = part.contains(forbidden) || part.ends_with(['.', ' ']);
    match kind {
        FileSystem::Fat | FileSystem::ExFat => {
            Ok(!is_odd && part.encode_utf16().count() <= MAX_FAT_NAME)
        }
        // others are asked only about names that not all have
        _ if is_odd || part.len() > ALWAYS_FITS => probe.accepts(part),
        _ => Ok(true),
    }
}

impl Probe for OutputFolder {
    fn kind(&self) -> Result<FileSystem, OutputError> {
        Ok(file_system(&self.path)?)
    }

    fn ignores_case(&self) -> Result<bool, OutputError> {
        let other = self.path.join(in_partial(&LOCK.to_uppercase()));
        Ok(entry_kind(&other)?.is_some())
    }

    fn accepts(&self, name: &str) -> Result<bool, OutputError> {
        let path = unfinished(name);
        match create_beneath(&self.path, &path) {
            Ok(file) => {
                drop(file);
                remove_beneath(&self.path, &path)?;
                Ok(true)
            }
            Err(FormatError::Io { source, .. }) => {
                let refuses = [ErrorKind::InvalidInput, ErrorKind::InvalidFilename];
                let unreadable = source.raw_os_error() == Some(EILSEQ);
                // whatever else is wrong is found when the file is written
                Ok(!refuses.contains(&source.kind()) && !unreadable)
            }
            Err(e) => Err(e.into()),
        }
    }
}

impl OutputFolder {
    /// Refuses, by name, files that the file system cannot hold; `files` are their paths and lengths.
    ///
    /// # Errors
    /// `Limit` with the first; `Io`.
    pub(crate) fn check_limits<'f>(
        &self,
        files: impl Iterator<Item = (&'f str, u64)>,
    ) -> Result<(), OutputError> {
        match first_refused(files, self)? {
            None => Ok(()),
            Some((file, why)) => Err(OutputError::Limit {
                folder: self.place().to_owned(),
                file,
                why,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file system as it is imagined.
    struct Imagined {
        kind: FileSystem,
        ignores_case: bool,
        refuses: &'static str,
    }

    impl Probe for Imagined {
        fn kind(&self) -> Result<FileSystem, OutputError> {
            Ok(self.kind)
        }

        fn ignores_case(&self) -> Result<bool, OutputError> {
            assert_eq!(self.kind, FileSystem::Other, "this is known");
            Ok(self.ignores_case)
        }

        fn accepts(&self, name: &str) -> Result<bool, OutputError> {
            assert_eq!(self.kind, FileSystem::Other, "this is known");
            Ok(!self.refuses.contains(name))
        }
    }

    fn other(ignores_case: bool, refuses: &'static str) -> Imagined {
        Imagined {
            kind: FileSystem::Other,
            ignores_case,
            refuses,
        }
    }

    fn known(kind: FileSystem) -> Imagined {
        Imagined {
            kind,
            ..other(false, "")
        }
    }

    fn refused(files: &[(&str, u64)], probe: &Imagined) -> Option<(String, FileLimit)> {
        first_refused(files.iter().copied(), probe).unwrap()
    }

    #[test]
    fn files_that_are_too_large_are_refused() {
        let files = [("small", 1), ("large", 1 << 32), ("most", (1 << 32) - 1)];
        let printed = refused(&files, &known(FileSystem::Fat)).unwrap();
        assert_eq!(printed.0, "large");
        assert!(
            printed.1.to_string().contains("4294967295"),
            "{}",
            printed.1
        );
        assert_eq!(refused(&files, &known(FileSystem::ExFat)), None);
        assert_eq!(refused(&files, &other(true, "")), None);
    }

    #[test]
    fn names_that_differ_only_in_case_are_refused() {
        for (one, two) in [
            ("a.bin", "A.BIN"),
            ("sub/x", "Sub/y"),
            ("x.", "x"),
            ("ÄÖ", "äö"),
            ("a", "A/b"),
        ] {
            let files = [(one, 1), ("between", 1), (two, 1)];
            for probe in [known(FileSystem::Fat), known(FileSystem::ExFat)] {
                if !one.ends_with('.') {
                    let printed = refused(&files, &probe).unwrap();
                    assert_eq!(printed.0, two);
                    assert!(
                        matches!(printed.1, FileLimit::SameName { .. }),
                        "{}",
                        printed.1
                    );
                }
            }
            assert!(refused(&files, &other(true, "")).is_some(), "{two}");
            assert_eq!(refused(&files, &other(false, "")), None, "{two}");
        }
    }

    #[test]
    fn names_that_are_not_allowed_are_refused() {
        let long = "x".repeat(256);
        for name in ["a:b", "sub/a*b", "a\\b", "a\u{1}", "end.", "end ", &long] {
            let files = [("fine", 1), (name, 1)];
            let printed = refused(&files, &known(FileSystem::ExFat)).unwrap();
            assert!(matches!(printed.1, FileLimit::Name { .. }), "{name}");
            assert_eq!(printed.0, name);
            assert_eq!(refused(&files, &other(false, "")), None, "{name}");
        }
        let files = [("model.layers.0:x.npy", 1)];
        assert!(refused(&files, &other(false, "model.layers.0:x.npy")).is_some());
    }

    #[test]
    fn a_real_folder_is_probed() {
        let folder = tempfile::tempdir().unwrap();
        let output = OutputFolder::open(&folder.path().join("out")).unwrap();
        let long = format!("{}.npy", "x".repeat(300));
        let names = ["a:b", "A:B", "fine"];
        output
            .check_limits(names.into_iter().map(|n| (n, 1)))
            .unwrap();
        let printed = output.check_limits([(&*long, 1)].into_iter()).unwrap_err();
        assert!(
            printed.to_string().contains("is not allowed there"),
            "{printed}"
        );
        // nothing of it is left
        output.finish().unwrap();
        let left = std::fs::read_dir(folder.path().join("out")).unwrap();
        assert_eq!(left.count(), 0);
    }
}
