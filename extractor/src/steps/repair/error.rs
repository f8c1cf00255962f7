//! Why a pack is not repaired.

use std::path::PathBuf;

use segpack_formats::digest::Sha256;

/// Why a pack is not repaired. Nothing was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RepairError {
    /// The manifest is damaged, and nothing proves what it was.
    #[error(
        "{} is damaged or missing, and no copy of it is known to be right{}",
        path.display(),
        wanted.map_or_else(String::new, |wanted| format!(": its SHA-256 was {wanted}"))
    )]
    Manifest {
        /// The manifest.
        path: PathBuf,
        /// The digest that it had, where SHA256SUMS or the user says so.
        wanted: Option<Sha256>,
    },
    /// The source is the damaged pack itself.
    #[error("{} cannot be repaired from itself", folder.display())]
    Itself {
        /// The pack.
        folder: PathBuf,
    },
    /// This build codes a segment in another way than the one that wrote the pack.
    #[error(
        "segment {segment} was written by {written_by}, and this build codes it with other bytes"
    )]
    OtherCoding {
        /// The segment.
        segment: String,
        /// Who wrote the pack.
        written_by: String,
    },
    /// A file that was put together from what the manifest lists has not the digest that it lists.
    #[error("{path} would have SHA-256 {seen}, wanted {wanted}: the manifest contradicts itself")]
    NotTheSame {
        /// The file.
        path: String,
        /// The digest of what was written.
        seen: Sha256,
        /// The digest in the manifest.
        wanted: Sha256,
    },
}
