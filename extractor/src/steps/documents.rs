//! Documents that a command wrote, read again by another.

use std::path::Path;

use segpack_formats::FormatError;
use segpack_formats::io::InputFile;
use segpack_manifests::documents::{Document, FormatVersion};
use serde::de::DeserializeOwned;

/// Reads a document; `wrong` is what is said of a file that is none, such as "is not a receipt of
/// verify".
///
/// # Errors
/// `Io`; `Malformed` where it is none, has more than `max_bytes`, or is newer than this build reads.
pub(crate) fn read_document<D: Document + DeserializeOwned>(
    path: &Path,
    max_bytes: u64,
    wrong: &str,
) -> Result<D, FormatError> {
    /// Newer documents may have words that this build does not know, but always this.
    #[derive(serde::Deserialize)]
    struct Head {
        format_version: FormatVersion,
    }
    let input = InputFile::open(path)?;
    if input.length() > max_bytes {
        let what = format!(
            "has {} bytes, over the limit of {max_bytes}",
            input.length()
        );
        return Err(FormatError::malformed(path, what));
    }
    let json = input.read_range(0..input.length())?;
    let none = |e| FormatError::malformed(path, format!("{wrong}: {e}"));
    let head: Head = serde_json::from_slice(&json).map_err(none)?;
    let readable = head.format_version.check_readable(D::VERSION);
    readable.map_err(|e| FormatError::malformed(path, e.to_string()))?;
    serde_json::from_slice(&json).map_err(none)
}
