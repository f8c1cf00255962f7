//! A file that is reserved before the work whose result it will hold.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::{FormatError, Result};

/// A file that is open for writing beside its name, and gets it when it is whole. Where it is
/// dropped before that, nothing is left.
///
/// Whoever computes for an hour learns at once that a folder does not exist or cannot be written.
#[derive(Debug)]
pub struct PendingFile {
    path: PathBuf,
    partial: PathBuf,
    out: BufWriter<File>,
    is_published: bool,
}

impl PendingFile {
    /// Creates `path.partial`, which a run that was killed may have left. A link of that name is
    /// replaced, not followed.
    ///
    /// # Errors
    /// `Io` where it cannot be created, or `path` is a folder.
    pub fn create(path: &Path) -> Result<Self> {
        if path.is_dir() {
            let folder = io::Error::from(io::ErrorKind::IsADirectory);
            return Err(FormatError::io("write", path)(folder));
        }
        refuse_special(path)?;
        let mut partial = path.as_os_str().to_owned();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        match fs::remove_file(&partial) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(FormatError::io("replace", &partial)(e));
            }
            _ => {}
        }
        let file = File::create_new(&partial).map_err(FormatError::io("write to", path))?;
        Ok(Self {
            path: path.to_owned(),
            partial,
            out: BufWriter::new(file),
            is_published: false,
        })
    }

    /// The name that it will have.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes its contents and gives it its name, in the place of a file that has it.
    ///
    /// # Errors
    /// `Io` where it cannot be written or renamed; then nothing is left of it.
    pub fn publish(mut self, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
        let written = write(&mut self.out)
            .and_then(|()| self.out.flush())
            .and_then(|()| fs::rename(&self.partial, &self.path));
        written.map_err(FormatError::io("write", &self.path))?;
        self.is_published = true;
        Ok(())
    }
}

/// A device or a pipe would be replaced by a file, and nothing would come through it.
fn refuse_special(path: &Path) -> Result<()> {
    let Ok(metadata) = path.symlink_metadata() else {
        return Ok(());
    };
    let kind = metadata.file_type();
    if kind.is_file() || kind.is_symlink() {
        return Ok(());
    }
    let special = "is a device, a pipe or a socket, which a file would replace";
    Err(FormatError::io("write", path)(io::Error::new(
        io::ErrorKind::InvalidInput,
        special,
    )))
}

impl Drop for PendingFile {
    fn drop(&mut self) {
        if !self.is_published {
            // where it cannot be removed there is nobody left to tell
            let _ = fs::remove_file(&self.partial);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let name = |e: io::Result<fs::DirEntry>| e.unwrap().file_name().into_string().unwrap();
        let mut names: Vec<String> = entries.map(name).collect();
        names.sort();
        names
    }

    fn fill_the_disk(out: &mut dyn Write) -> io::Result<()> {
        out.write_all(b"some")?;
        Err(io::ErrorKind::StorageFull.into())
    }

    #[cfg(unix)]
    #[test]
    fn a_socket_is_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let _socket = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert!(PendingFile::create(&path).is_err());
        assert_eq!(names(folder.path()), ["socket"]);
    }

    #[test]
    fn it_appears_whole_or_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("trace.json");
        fs::write(&path, "before").unwrap();
        drop(PendingFile::create(&path).unwrap());
        let failing = PendingFile::create(&path).unwrap();
        assert!(failing.publish(fill_the_disk).is_err());
        assert_eq!(names(folder.path()), ["trace.json"]);
        assert_eq!(fs::read(&path).unwrap(), b"before");
        let pending = PendingFile::create(&path).unwrap();
        assert_eq!(names(folder.path()).len(), 2);
        pending.publish(|out| out.write_all(b"after")).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"after");
        assert_eq!(names(folder.path()), ["trace.json"]);
    }

    #[test]
    fn what_cannot_be_written_is_refused_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("none/trace.json");
        let error = PendingFile::create(&missing).unwrap_err().to_string();
        assert!(error.starts_with("cannot write to "), "{error}");
        let error = PendingFile::create(folder.path()).unwrap_err().to_string();
        assert!(error.starts_with("cannot write "), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn a_link_in_its_place_is_not_written_through() {
        let folder = tempfile::tempdir().unwrap();
        let (path, other) = (folder.path().join("a"), folder.path().join("other"));
        fs::write(&other, "precious").unwrap();
        for link in [folder.path().join("a.partial"), path.clone()] {
            std::os::unix::fs::symlink(&other, link).unwrap();
        }
        let pending = PendingFile::create(&path).unwrap();
        pending.publish(|out| out.write_all(b"new")).unwrap();
        assert_eq!(fs::read(&other).unwrap(), b"precious");
        assert_eq!(fs::read(&path).unwrap(), b"new");
    }
}
