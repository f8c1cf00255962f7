//! Why a checkpoint cannot be found or opened.

use std::path::PathBuf;

use segpack_formats::FormatError;

#[cfg(feature = "remote")]
use super::RemoteError;

/// Why a checkpoint cannot be found or opened. What is wrong with its files is no error but a
/// finding.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// A file or folder cannot be read, or is not a checkpoint.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The argument is an address, but not one of a checkpoint.
    #[error("{}: {why}", address.display())]
    Address {
        /// The argument.
        address: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A checkpoint of a server, in a build that reads none.
    #[cfg(not(feature = "remote"))]
    #[error("{}: this build, without the feature `remote`, reads no servers", place.display())]
    WithoutRemote {
        /// The argument.
        place: PathBuf,
    },
    /// A checkpoint of a server, which may not be contacted.
    #[cfg(feature = "remote")]
    #[error("{}: HF_HUB_OFFLINE is set, and nothing is contacted", place.display())]
    Offline {
        /// The argument.
        place: PathBuf,
    },
    /// A checkpoint of a server cannot be had.
    #[cfg(feature = "remote")]
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// Something that only a checkpoint on this machine allows.
    #[error("{}: {why}", place.display())]
    OnlyLocal {
        /// The checkpoint.
        place: PathBuf,
        /// What cannot be done, and why.
        why: &'static str,
    },
    /// A pack on a server, for what only a folder of this machine allows.
    #[error("{}: {why}", place.display())]
    OnlyFolder {
        /// The pack.
        place: PathBuf,
        /// What cannot be done, and why.
        why: &'static str,
    },
    /// The argument is neither a path nor a repo id.
    #[error("{}: no such file or folder", path.display())]
    NotFound {
        /// The argument.
        path: PathBuf,
    },
    /// No environment variable and no home directory says where the hub cache is.
    #[error("there is no hub cache: neither HF_HUB_CACHE, HF_HOME nor a home directory is set")]
    NoHubCache,
    /// The argument looks like a repo id, but the hub cache does not hold it.
    #[error("{repo} is neither a path here nor in the hub cache {}", cache.display())]
    NotInCache {
        /// The repo id, `owner/name`.
        repo: String,
        /// The folder of the cache.
        cache: PathBuf,
    },
    /// The hub cache holds the repo, but not this revision.
    #[error(
        "{} has no snapshot for revision {revision:?}{}; it has {} snapshots: {}",
        folder.display(),
        commit.as_ref().map_or_else(String::new, |commit| format!(" (refs/{revision} names {commit:?})")),
        snapshots.len(),
        snapshots.join(", ")
    )]
    NoSnapshot {
        /// The repo's folder in the cache.
        folder: PathBuf,
        /// The revision: a branch, a tag or a commit.
        revision: String,
        /// The commit that the revision stands for, where the cache knows it.
        commit: Option<String>,
        /// The snapshots that are there, sorted.
        snapshots: Vec<String>,
    },
    /// A shard whose removal would take something else away, or free nothing.
    #[error("{} cannot be removed once it is packed: {why}", path.display())]
    Kept {
        /// The shard.
        path: PathBuf,
        /// Why it stays.
        why: String,
    },
    /// A file has a name that packs and unpacked checkpoints use themselves.
    #[error("{}: {file}: the names {} are reserved for packs", root.display(), reserved.join(" and "))]
    ReservedName {
        /// The checkpoint.
        root: PathBuf,
        /// The file, relative to it.
        file: String,
        /// The names at the top of a checkpoint that are reserved.
        reserved: &'static [&'static str],
    },
}
