//! One error type for everything that reads or writes bytes.

use std::io;
use std::path::{Path, PathBuf};

use crate::gguf::error::GgufError;
use crate::safetensors::error::HeaderError;

/// What went wrong with some bytes, and where.
///
/// Messages name the file, the tensor or byte, what was seen and what was wanted.
/// The cause of an I/O error is its `source`, not part of the message.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// The operating system refused.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried, a verb: `open`, `read`, …
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
    /// The file's bytes are not what its format demands.
    #[error("{}: {what}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where in it and what is wrong with it.
        what: String,
    },
    /// A file that is read whole has more bytes than any file of its kind.
    #[error("{}: has {length} bytes; at most {limit} are read of such a file", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its bytes.
        length: u64,
        /// The bytes that are read of one.
        limit: u64,
    },
    /// The header of a safetensors file is not what the format demands.
    #[error("{}: malformed header", path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: HeaderError,
    },
    /// The header of a GGUF file is not what the format demands.
    #[error("{}: malformed header", path.display())]
    Gguf {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: GgufError,
    },
    /// The file ended early or changed while it was being read.
    #[error("{}: {what}", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
        /// What was seen and what was wanted.
        what: String,
    },
    /// A coded byte stream breaks the rules of its framing or codec.
    #[error("coded segment: {what}")]
    Coded {
        /// Where in the segment and what is wrong.
        what: String,
    },
    /// A link lies where none may be followed: in a pack, or in what is being written.
    #[error("{} is a link, and links are not followed there", path.display())]
    Link {
        /// The link.
        path: PathBuf,
    },
    /// A thread could not be started.
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
    /// The user asked to stop.
    #[error("interrupted")]
    Interrupted,
    /// A thread of the program died before its work was done: a defect of the program, not of its
    /// input.
    #[error("the {thread} thread died; this is a bug in segpack")]
    WorkerDied {
        /// What the thread was for.
        thread: &'static str,
    },
}

/// Shorthand for results of this crate.
pub type Result<T, E = FormatError> = std::result::Result<T, E>;

impl FormatError {
    /// An I/O error with its verb and path.
    pub fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }

    /// A malformed file.
    pub fn malformed(path: &Path, what: impl Into<String>) -> Self {
        Self::Malformed {
            path: path.to_owned(),
            what: what.into(),
        }
    }

    /// A file that changed or shrank under the reader.
    pub fn changed(path: &Path, what: impl Into<String>) -> Self {
        Self::Changed {
            path: path.to_owned(),
            what: what.into(),
        }
    }

    /// A source that has fewer bytes than it had when it was opened.
    pub fn ends_early(path: &Path, end: u64, length: u64) -> Self {
        let what = format!(
            "ends before byte {end}; it had {length} bytes when it was opened: it was cut or changed while being read"
        );
        Self::changed(path, what)
    }

    /// The file or folder that it is about, where it is about one.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Io { path, .. }
            | Self::Malformed { path, .. }
            | Self::TooLarge { path, .. }
            | Self::Header { path, .. }
            | Self::Gguf { path, .. }
            | Self::Changed { path, .. }
            | Self::Link { path } => Some(path),
            Self::Coded { .. } | Self::Thread(_) | Self::Interrupted | Self::WorkerDied { .. } => {
                None
            }
        }
    }

    /// Whether it is the environment that failed, and nothing is known of the bytes: no permission,
    /// no descriptor, memory, space or thread left. `false` where the bytes are wrong or missing, or
    /// the drive cannot read them.
    pub fn is_environment(&self) -> bool {
        match self {
            Self::Io { source, .. } => !is_medium(source) && !is_missing(source),
            Self::Thread(_) | Self::WorkerDied { .. } => true,
            Self::Malformed { .. }
            | Self::Changed { .. }
            | Self::Coded { .. }
            | Self::Link { .. }
            | Self::TooLarge { .. }
            | Self::Header { .. }
            | Self::Gguf { .. }
            | Self::Interrupted => false,
        }
    }

    /// Whether the drive failed, not what is around it.
    pub fn is_medium(&self) -> bool {
        matches!(self, Self::Io { source, .. } if is_medium(source))
    }

    /// A broken coded stream.
    pub fn coded(what: impl Into<String>) -> Self {
        Self::Coded { what: what.into() }
    }
}

/// Whether the drive, not the system around it, failed a read.
pub(crate) fn is_medium(error: &io::Error) -> bool {
    #[cfg(unix)]
    {
        use rustix::io::Errno;
        let mut codes = vec![Errno::IO, Errno::BADMSG, Errno::NXIO];
        #[cfg(target_os = "linux")]
        codes.extend([Errno::UCLEAN, Errno::REMOTEIO, Errno::NODATA]);
        let code = error.raw_os_error();
        codes.iter().any(|c| code == Some(c.raw_os_error()))
    }
    #[cfg(not(unix))]
    {
        // ERROR_CRC, ERROR_READ_FAULT, ERROR_IO_DEVICE
        matches!(error.raw_os_error(), Some(23 | 30 | 1117))
    }
}

/// Whether there is nothing to read, not enough of it, or something else than a file.
fn is_missing(error: &io::Error) -> bool {
    #[cfg(unix)]
    if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) {
        return true;
    }
    matches!(
        error.kind(),
        io::ErrorKind::NotFound
            | io::ErrorKind::IsADirectory
            | io::ErrorKind::UnexpectedEof
            | io::ErrorKind::InvalidData
    )
}

/// The messages of an error and of its causes, as `{e:#}` of anyhow joins them.
#[cfg(test)]
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |e| e.source());
    let messages: Vec<String> = causes.map(ToString::to_string).collect();
    messages.join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_message_repeats_its_cause() {
        let path = Path::new("model.safetensors");
        let denied = io::Error::other("permission denied");
        let io = FormatError::io("open", path)(denied);
        assert_eq!(
            chain(&io),
            "cannot open model.safetensors: permission denied"
        );
        for error in [
            FormatError::malformed(path, "is empty"),
            FormatError::changed(path, "is shorter"),
            FormatError::TooLarge {
                path: path.to_owned(),
                length: 9,
                limit: 8,
            },
            FormatError::ends_early(path, 9, 5),
            FormatError::coded("is damaged"),
            FormatError::Interrupted,
            FormatError::WorkerDied { thread: "digest" },
        ] {
            assert_eq!(chain(&error), error.to_string());
        }
    }
}
