use segpack_manifests::documents::UnpackSummary;

use super::numbers::{bytes, counted};
use super::page::Page;

/// What `unpack` restored in `place`.
pub(crate) fn unpack(summary: &UnpackSummary, place: &str) -> String {
    let mut page = Page::default();
    for left in &summary.not_restored {
        page.line(format_args!("not restored: {}: {}", left.path, left.why));
    }
    let (files, size) = (counted(summary.files, "file"), bytes(summary.bytes));
    page.line(format_args!(
        "{place}: {files}, {size}, byte for byte as in the checkpoint"
    ));
    page.into_text()
}
