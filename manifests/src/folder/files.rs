//! Where the files of a pack are: a folder of this machine, or wherever else they can be read from.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use segpack_formats::io::{
    DirectFile, InputFile, ReadAt, ReadPath, align_outward, entry_kind, to_usize,
};
use segpack_formats::{FormatError, Result};

/// The files of a pack, which is read from there and not written. Paths are relative, with `/`
/// between their parts, as the manifest has them.
pub trait PackFiles: fmt::Debug + Send + Sync {
    /// The folder or the address that messages name; joined with a path, it names the file.
    fn root(&self) -> &Path;

    /// The folder, where it is one of this machine.
    fn local(&self) -> Option<&Path> {
        None
    }

    /// Whether something has this path, if only a link that leads nowhere.
    ///
    /// # Errors
    /// `Io` where that cannot be found out.
    fn has(&self, path: &str) -> Result<bool>;

    /// Bytes of the file of this path; `None` where there is none.
    ///
    /// # Errors
    /// `Io` where that cannot be found out.
    fn length(&self, path: &str) -> Result<Option<u64>>;

    /// The paths of all files that are there; `None` where the place does not tell.
    ///
    /// # Errors
    /// `Io` where they cannot be listed.
    fn paths(&self) -> Result<Option<Vec<String>>>;

    /// Opens a file.
    ///
    /// # Errors
    /// `Io` (of kind `NotFound` where there is none), `Link`; `Malformed` where it is no regular
    /// file.
    fn open(&self, path: &str) -> Result<Arc<dyn ReadAt>>;

    /// Opens a file whose large parts are read again and again, which no page cache has to hold.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    fn open_direct(&self, path: &str) -> Result<AlignedFile> {
        Ok(AlignedFile::Elsewhere(self.open(path)?))
    }
}

/// The files of a folder of this machine. No link below it is followed.
#[derive(Debug, Clone)]
pub struct LocalFiles {
    folder: PathBuf,
}

impl LocalFiles {
    /// Of this folder. Nothing is opened.
    pub fn new(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
        }
    }
}

impl PackFiles for LocalFiles {
    fn root(&self) -> &Path {
        &self.folder
    }

    fn local(&self) -> Option<&Path> {
        Some(&self.folder)
    }

    fn has(&self, path: &str) -> Result<bool> {
        Ok(entry_kind(&self.folder.join(path))?.is_some())
    }

    fn length(&self, path: &str) -> Result<Option<u64>> {
        match self.has(path)? {
            true => Ok(Some(InputFile::open_beneath(&self.folder, path)?.length())),
            false => Ok(None),
        }
    }

    /// A folder holds more than files: links, pipes, other folders. Who wants to know walks it.
    fn paths(&self) -> Result<Option<Vec<String>>> {
        Ok(None)
    }

    fn open(&self, path: &str) -> Result<Arc<dyn ReadAt>> {
        Ok(Arc::new(InputFile::open_beneath(&self.folder, path)?))
    }

    fn open_direct(&self, path: &str) -> Result<AlignedFile> {
        let file = DirectFile::open_beneath(&self.folder, path)?;
        Ok(AlignedFile::Local(Box::new(file)))
    }
}

/// A file whose segments are read whole, to memory that suits direct reads.
#[derive(Debug)]
pub enum AlignedFile {
    /// A file of this machine, read past the page cache where that is possible.
    Local(Box<DirectFile>),
    /// Any other.
    Elsewhere(Arc<dyn ReadAt>),
}

impl AlignedFile {
    /// The file, for other reads.
    pub fn file(&self) -> &dyn ReadAt {
        match self {
            Self::Local(file) => file.file(),
            Self::Elsewhere(file) => &**file,
        }
    }

    /// Reads `wanted` to the place in `to` where it is if `to` begins with the page that its first
    /// byte is in. A file of this machine is read as [`DirectFile::read_aligned`] says, from the
    /// start of that page on; of any other, nothing but what is wanted. What else is in `to` is
    /// undefined after that.
    ///
    /// # Errors
    /// As [`ReadAt::read_at`]; `Malformed` where `to` is too short.
    pub fn read_pages(&self, wanted: &Range<u64>, to: &mut [u8]) -> Result<ReadPath> {
        let first = align_outward(wanted).start;
        let file = match self {
            Self::Local(file) => return file.read_aligned(&(first..wanted.end), to),
            Self::Elsewhere(file) => file,
        };
        let place = to_usize(wanted.start - first)..to_usize(wanted.end.saturating_sub(first));
        let room = to.len();
        let Some(to) = to.get_mut(place) else {
            let length = wanted.end.saturating_sub(first);
            let what = format!("{length} bytes at {first} do not fit into {room}");
            return Err(FormatError::malformed(file.name(), what));
        };
        file.read_at(to, wanted.start)?;
        Ok(ReadPath::Elsewhere)
    }
}
