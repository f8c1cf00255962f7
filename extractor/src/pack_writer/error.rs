//! Why a pack folder cannot be written or continued.

use std::path::PathBuf;

use segpack_formats::FormatError;
use segpack_manifests::PackError;
use segpack_manifests::documents::Finding;

use crate::output::OutputError;
use crate::work::TaskError;

/// Why a pack folder cannot be written or continued. All but [`Format`](Self::Format),
/// [`NotWritten`](Self::NotWritten) and [`Fingerprint`](Self::Fingerprint) are refusals: nothing was
/// begun, and what is there stays as it is.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PackWriterError {
    /// A file or folder cannot be read or written.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The output folder is refused.
    #[error(transparent)]
    Output(OutputError),
    /// The folder holds an unfinished pack, and the options do not say what to do with it.
    #[error("{} holds an unfinished pack", folder.display())]
    Unfinished {
        /// The output folder.
        folder: PathBuf,
    },
    /// A source file that is to be removed has bytes that do not go into packs.
    #[error("{file} cannot be removed once it is packed: {bytes} of its bytes are not packed")]
    NotAllPacked {
        /// The file, relative to the checkpoint.
        file: String,
        /// Bytes that are left out.
        bytes: u64,
    },
    /// The folder holds a finished pack.
    #[error("{} exists and holds a pack", folder.display())]
    HoldsPack {
        /// The output folder.
        folder: PathBuf,
    },
    /// The folder holds an unfinished pack that another run began.
    #[error(
        "{} holds an unfinished pack of another source, or with other options (the source may have \
         changed since)",
        folder.display()
    )]
    OtherRun {
        /// The output folder.
        folder: PathBuf,
    },
    /// The folder holds something beside a pack.
    #[error("{}: only a pack may be continued or replaced, but the folder holds {name:?} too", folder.display())]
    ForeignEntry {
        /// The output folder.
        folder: PathBuf,
        /// The name of what does not belong there.
        name: String,
    },
    /// The folder holds a pack with files that the new one does not have.
    #[error(
        "{}: only a pack may be continued or replaced, but it holds {file:?}, which this pack will \
         not have (another source's, or your own)",
        folder.display()
    )]
    ForeignFile {
        /// The output folder.
        folder: PathBuf,
        /// The file, relative to it.
        file: String,
    },
    /// The folder holds something that is no readable pack.
    #[error("{}: only a pack may be continued or replaced", folder.display())]
    NotAPack {
        /// The output folder.
        folder: PathBuf,
        /// Why it is none.
        #[source]
        source: PackError,
    },
    /// A folder cannot be listed.
    #[error("cannot list {}", folder.display())]
    List {
        /// The folder.
        folder: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The folder holds a finished pack that was written with other options.
    #[error("{} holds a finished pack with other options", folder.display())]
    OtherOptions {
        /// The output folder.
        folder: PathBuf,
    },
    /// The folder holds a finished pack of another source.
    #[error("{} holds a finished pack of another {what}{}", folder.display(), differs(file.as_deref()))]
    OtherSource {
        /// The output folder.
        folder: PathBuf,
        /// What the source is: `checkpoint` or `pack`.
        what: &'static str,
        /// The first file that differs, where one does.
        file: Option<String>,
    },
    /// The folder holds a finished pack that does not pass its verification.
    #[error("{} holds a finished pack that is damaged{} ({first})", folder.display(), or_foreign(*compared))]
    Damaged {
        /// The output folder.
        folder: PathBuf,
        /// Whether it was compared with its checkpoint, too.
        compared: bool,
        /// The first thing that is wrong with it.
        first: Box<Finding>,
    },
    /// A file of the pack is missing when its manifest is to be written.
    #[error("{path} was not finished")]
    NotWritten {
        /// The file, relative to the output folder.
        path: String,
    },
    /// The state of the run cannot be encoded.
    #[error("cannot identify the run")]
    Fingerprint(#[source] serde_json::Error),
}

fn differs(file: Option<&str>) -> String {
    file.map_or_else(String::new, |file| format!(" ({file} differs)"))
}

fn or_foreign(compared: bool) -> &'static str {
    if compared {
        " or of another checkpoint"
    } else {
        ""
    }
}

/// A refusal of the folder is one of the pack, too.
impl From<OutputError> for PackWriterError {
    fn from(error: OutputError) -> Self {
        match error {
            OutputError::Format(e) => Self::Format(e),
            refusal => Self::Output(refusal),
        }
    }
}

impl TaskError for PackWriterError {
    fn is_stop(&self) -> bool {
        matches!(self, Self::Format(e) if e.is_stop())
    }
}
