//! What can be wrong with a manifest.

use segpack_formats::safetensors::LengthError;

use super::Counts;
use crate::documents::VersionError;

/// Why a manifest cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestError {
    /// It is not JSON of the right form.
    #[error("is not a valid manifest")]
    Json(#[source] serde_json::Error),
    /// It is newer than this build reads.
    #[error(transparent)]
    Version(#[from] VersionError),
    /// What one of several machines packed is not its share.
    #[error("{what}")]
    Part {
        /// What is wrong with it.
        what: String,
    },
    /// A path leaves the folder, or means different things on different systems.
    #[error("path {path:?}: {why}")]
    UnsafePath {
        /// The path.
        path: String,
        /// Why it is refused.
        why: &'static str,
    },
    /// A path contradicts another.
    #[error("path {path:?} {what}")]
    Path {
        /// The path.
        path: String,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A file of the checkpoint contradicts another, or itself.
    #[error("source file {path:?} {what}")]
    SourceFile {
        /// Its path.
        path: String,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The segments of a pack do not tile it.
    #[error("pack {path}: {what}")]
    Pack {
        /// Its path.
        path: String,
        /// What is wrong with it.
        what: String,
    },
    /// A segment is not where it should be, or not as long as its tensors.
    #[error("segment {id:?} {what}")]
    Segment {
        /// Its id.
        id: String,
        /// What is wrong with it.
        what: String,
    },
    /// A tensor is not where it should be.
    #[error("tensor {name:?} {what}")]
    Tensor {
        /// Its name.
        name: String,
        /// What is wrong with it.
        what: String,
    },
    /// Shape and dtype of a tensor give no length.
    #[error("tensor {name:?} has no length")]
    Shape {
        /// Its name.
        name: String,
        /// Why not.
        source: LengthError,
    },
    /// Bytes of a shard are not accounted for.
    #[error("shard {path:?}: {accounted} bytes are accounted for, of {length}")]
    Shard {
        /// Its path.
        path: String,
        /// Bytes of its header, its tensors, and what was excluded.
        accounted: u64,
        /// Bytes of the file.
        length: u64,
    },
    /// The sums are not those of the lists.
    #[error("counts are {seen:?}, wanted {wanted:?}")]
    Counts {
        /// Those of the manifest.
        seen: Box<Counts>,
        /// Those of its lists.
        wanted: Box<Counts>,
    },
}
