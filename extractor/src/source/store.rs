//! Where the files of a checkpoint are: a folder of this machine, or a place behind an address.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use segpack_formats::digest::Sha256;
use segpack_formats::io::{InputFile, ReadAt, read_limited};
use segpack_formats::{FormatError, Result};
use segpack_manifests::documents::Provenance;

use super::provenance;
#[cfg(feature = "remote")]
use super::remote::{Remote, RemoteFile};
use crate::work::Job;

/// Where the files of a checkpoint are.
#[derive(Debug)]
pub(crate) enum Store {
    /// A folder of this machine.
    Folder(PathBuf),
    /// A repository of a hub, or a folder of a web server.
    #[cfg(feature = "remote")]
    Remote(Remote),
}

/// A shard's bytes, to be read at positions.
pub(super) struct StoredShard {
    pub input: Arc<dyn ReadAt>,
    /// The same, where it is on a server.
    #[cfg(feature = "remote")]
    pub remote: Option<Arc<RemoteFile>>,
}

impl Store {
    /// As messages name it.
    pub(super) fn root(&self) -> &Path {
        match self {
            Self::Folder(root) => root,
            #[cfg(feature = "remote")]
            Self::Remote(remote) => &remote.name,
        }
    }

    /// The folder, where it is one of this machine.
    pub(crate) fn folder(&self) -> Option<&Path> {
        match self {
            Self::Folder(root) => Some(root),
            #[cfg(feature = "remote")]
            Self::Remote(_) => None,
        }
    }

    /// Does something that reads it. Once `job` is to stop nobody waits for a server any more.
    ///
    /// # Errors
    /// `Interrupted`, where it is on a server.
    pub(super) fn watched<T>(&self, job: Job<'_>, work: impl FnOnce() -> T) -> Result<T> {
        match self {
            Self::Folder(_) => {
                let _ = job; // files of this machine make nobody wait
                Ok(work())
            }
            #[cfg(feature = "remote")]
            Self::Remote(remote) => remote.requests().watched(job, work),
        }
    }

    /// Nobody waits for a server any more once `job` is to stop.
    pub(super) fn end_with(&self, job: Job<'static>) {
        match self {
            Self::Folder(_) => {
                let _ = job;
            }
            #[cfg(feature = "remote")]
            Self::Remote(remote) => remote.requests().end_with(job),
        }
    }

    /// Where it came from.
    ///
    /// # Errors
    /// `Io` where a record of the download cannot be read.
    pub(super) fn provenance(&self) -> Result<Provenance> {
        match self {
            Self::Folder(root) => provenance::provenance(root),
            #[cfg(feature = "remote")]
            Self::Remote(remote) => Ok(remote.provenance.clone()),
        }
    }

    /// Whether a file is there.
    ///
    /// # Errors
    /// `Io`.
    pub(super) fn has(&self, path: &str) -> Result<bool> {
        match self {
            Self::Folder(root) => {
                let path = root.join(path);
                path.try_exists().map_err(FormatError::io("read", &path))
            }
            #[cfg(feature = "remote")]
            Self::Remote(remote) => Ok(remote.has(path)),
        }
    }

    /// Bytes of a file.
    ///
    /// # Errors
    /// `Io`.
    pub(super) fn length(&self, path: &str) -> Result<u64> {
        match self {
            Self::Folder(root) => {
                let path = root.join(path);
                let metadata = fs::metadata(&path).map_err(FormatError::io("read", &path))?;
                Ok(metadata.len())
            }
            #[cfg(feature = "remote")]
            Self::Remote(remote) => Ok(remote.length(path).unwrap_or_default()),
        }
    }

    /// A file of at most `limit` bytes as a whole.
    ///
    /// # Errors
    /// `TooLarge`, `Io`; of a server what [`Remote::read_limited`] says.
    pub(super) fn read_limited(&self, path: &str, limit: u64) -> Result<Vec<u8>> {
        match self {
            Self::Folder(root) => read_limited(&root.join(path), limit),
            #[cfg(feature = "remote")]
            Self::Remote(remote) => remote.read_limited(path, limit),
        }
    }

    /// Opens a file that is no shard.
    ///
    /// # Errors
    /// `Io`, `Malformed`.
    pub(super) fn open_file(&self, path: &str) -> Result<Arc<dyn ReadAt>> {
        match self {
            Self::Folder(root) => Ok(Arc::new(InputFile::open(&root.join(path))?)),
            #[cfg(feature = "remote")]
            Self::Remote(remote) => remote.open_file(path),
        }
    }

    /// Opens a shard.
    ///
    /// # Errors
    /// `Io`, `Malformed`.
    pub(super) fn open_shard(&self, path: &str) -> Result<StoredShard> {
        match self {
            Self::Folder(root) => Ok(StoredShard {
                input: Arc::new(InputFile::open(&root.join(path))?),
                #[cfg(feature = "remote")]
                remote: None,
            }),
            #[cfg(feature = "remote")]
            Self::Remote(remote) => {
                let file = Arc::new(remote.file(path)?);
                Ok(StoredShard {
                    input: Arc::clone(&file) as Arc<dyn ReadAt>,
                    remote: Some(file),
                })
            }
        }
    }

    /// The SHA-256 that the hub publishes for a file, where that is known.
    ///
    /// # Errors
    /// `Io` where a record of the download cannot be read.
    pub(super) fn published_sha256(&self, path: &str) -> Result<Option<Sha256>> {
        match self {
            Self::Folder(root) => provenance::published_sha256(root, path),
            #[cfg(feature = "remote")]
            Self::Remote(remote) => Ok(remote.published_sha256(path)),
        }
    }

    /// Whether a file of this length is what git-lfs leaves in a file's place. A hub never sends one
    /// for the file itself.
    ///
    /// # Errors
    /// `Io`.
    pub(super) fn is_lfs_pointer(&self, path: &str, length: u64) -> Result<bool> {
        const POINTER: &[u8] = b"version https://git-lfs.github.com/spec/";
        const MAX_POINTER_BYTES: u64 = 1024;
        match self {
            Self::Folder(root) => {
                if length > MAX_POINTER_BYTES {
                    return Ok(false);
                }
                let path = root.join(path);
                let bytes = fs::read(&path).map_err(FormatError::io("read", &path))?;
                Ok(bytes.starts_with(POINTER))
            }
            #[cfg(feature = "remote")]
            Self::Remote(_) => Ok(false),
        }
    }
}
