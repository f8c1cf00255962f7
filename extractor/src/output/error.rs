//! Why an output cannot be written.

use std::path::PathBuf;

use segpack_formats::FormatError;

use super::limits::FileLimit;
use crate::work::TaskError;

/// Why an output cannot be written. All but [`Format`](Self::Format) are refusals: nothing was
/// begun.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OutputError {
    /// A file or folder cannot be written, or a thread that writes died.
    #[error(transparent)]
    Format(FormatError),
    /// A link lies where the output, or what is unfinished of it, would be.
    #[error("{} is a link; nothing is read, written or removed through it", path.display())]
    Link {
        /// The link.
        path: PathBuf,
    },
    /// A pack cannot be written to this place in an object store.
    #[error("{}: {why}", place.display())]
    Store {
        /// Its address.
        place: PathBuf,
        /// What is there.
        why: String,
    },
    /// The output path is a file.
    #[error("{} exists and is not a folder", path.display())]
    NotAFolder {
        /// The output path.
        path: PathBuf,
    },
    /// The output folder holds the only copy of weights whose files were removed once they were
    /// packed.
    #[error(
        "{} holds an unfinished pack whose source was removed while it was packed: it is the only \
         copy, and is not replaced",
        path.display()
    )]
    OnlyCopy {
        /// The output folder.
        path: PathBuf,
    },
    /// The output folder holds something else.
    #[error("{} exists and is not empty", path.display())]
    NotEmpty {
        /// The output folder.
        path: PathBuf,
    },
    /// The output file exists.
    #[error("{} exists", path.display())]
    Exists {
        /// The output file.
        path: PathBuf,
    },
    /// An interrupted run left something that another one can go on with.
    #[error("{} holds what an interrupted run finished", path.display())]
    Unfinished {
        /// The hidden folder.
        path: PathBuf,
    },
    /// What an interrupted run left is of another pack, or of other options.
    #[error("what an interrupted run left of {} is of another pack or of other options", path.display())]
    OtherRun {
        /// The output path.
        path: PathBuf,
    },
    /// What an interrupted run left is of another command.
    #[error("{} holds what another interrupted command left", path.display())]
    OtherCommand {
        /// The hidden folder.
        path: PathBuf,
    },
    /// A file that lies where the output would be is none that the command writes.
    #[error("{} is no file that this command writes; it is not replaced", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// A file that the output would have is there with other bytes.
    #[error("{} exists and is not what the pack holds", path.display())]
    Differs {
        /// The file.
        path: PathBuf,
    },
    /// The file system cannot hold a file.
    #[error("{} cannot hold {file:?}: {why}", folder.display())]
    Limit {
        /// Where the output would be.
        folder: PathBuf,
        /// The file, by its path in the output.
        file: String,
        /// Why not.
        why: FileLimit,
    },
    /// The hidden folder beside the output, in which its replacement is built, holds something else.
    #[error("{} is in the way: a replacement would be built there", path.display())]
    NotOurs {
        /// The hidden folder.
        path: PathBuf,
    },
    /// The output folder cannot be exchanged for another one.
    #[error("another file system is mounted on {}, so that it cannot be exchanged for a new folder", path.display())]
    MountPoint {
        /// The output folder.
        path: PathBuf,
    },
    /// Another process writes there at this moment.
    #[error("another segpack is writing to {}", path.display())]
    Busy {
        /// The output folder.
        path: PathBuf,
    },
    /// The output is a part of the input.
    #[error("output {} lies inside the input {}", output.display(), input.display())]
    InsideInput {
        /// The output.
        output: PathBuf,
        /// The input.
        input: PathBuf,
    },
    /// An input is a part of the output, which may be replaced.
    #[error("the input {} lies inside the output {}", input.display(), output.display())]
    HoldsInput {
        /// The input.
        input: PathBuf,
        /// The output.
        output: PathBuf,
    },
    /// The output is the address of a server.
    #[error("{} is on a server, and this command writes to folders of this machine", path.display())]
    Address {
        /// The output.
        path: PathBuf,
    },
    /// The disk has too little free space.
    #[error(
        "{} needs {}{needed} bytes and {spare} to spare, but its disk has only {free} free",
        folder.display(),
        about(*estimated)
    )]
    NoSpace {
        /// The output folder.
        folder: PathBuf,
        /// Bytes that the output takes.
        needed: u64,
        /// Whether that is an estimate.
        estimated: bool,
        /// Bytes that must stay free.
        spare: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// The path of an output file has no last part.
    #[error("{} has no file name", path.display())]
    NoFileName {
        /// The output path.
        path: PathBuf,
    },
    /// The folder that an output file would go into does not exist.
    #[error("{} would be written into a folder that does not exist", path.display())]
    NoParent {
        /// The output path.
        path: PathBuf,
    },
}

fn about(estimated: bool) -> &'static str {
    if estimated { "about " } else { "" }
}

/// A link in an output is no damage.
impl From<FormatError> for OutputError {
    fn from(error: FormatError) -> Self {
        match error {
            FormatError::Link { path } => Self::Link { path },
            other => Self::Format(other),
        }
    }
}

impl TaskError for OutputError {
    fn is_stop(&self) -> bool {
        matches!(self, Self::Format(e) if e.is_stop())
    }
}
