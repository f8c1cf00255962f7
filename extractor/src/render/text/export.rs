use segpack_manifests::documents::ExportSummary;

use super::numbers::{bytes, counted};
use super::page::Page;

/// What `export` wrote to `place`.
pub(crate) fn export(summary: &ExportSummary, place: &str) -> String {
    let mut page = Page::default();
    for note in &summary.notes {
        page.line(format_args!("note: {note}"));
    }
    let checked = if summary.checked {
        "read back and equal to the pack"
    } else {
        "not read back"
    };
    page.line(format_args!(
        "{place}: {}, {}, {}; {checked}",
        counted(summary.files, "file"),
        bytes(summary.bytes),
        counted(summary.tensors, "tensor"),
    ));
    page.into_text()
}
