//! When digests are compared, and the error where they differ.

use segpack_formats::FormatError;
use segpack_formats::io::ReadAt;
use segpack_manifests::documents::SegmentEntry;

/// When the digest of a segment is compared with the manifest's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ChecksumPolicy {
    /// At every load.
    #[default]
    Always,
    /// At the first load of each segment.
    First,
    /// Never.
    Never,
}

/// A segment whose stored bytes have another digest than the manifest says.
pub(crate) fn damaged(file: &dyn ReadAt, segment: &SegmentEntry, seen: &str) -> FormatError {
    let what = format!(
        "segment {:?} at byte {} is damaged: BLAKE3 {seen}, wanted {}",
        segment.id, segment.offset, segment.blake3
    );
    FormatError::malformed(file.name(), what)
}
