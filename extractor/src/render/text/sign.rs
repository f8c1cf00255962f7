use segpack_manifests::documents::SignSummary;

use super::numbers::counted;
use super::page::Page;

/// What `sign` signed at `place`.
pub(crate) fn sign(summary: &SignSummary, place: &str) -> String {
    let mut page = Page::default();
    let files = counted(summary.files, "file");
    page.line(format_args!("{place}: verified and signed, {files}"));
    page.line(format_args!("public key SHA-256 {}", summary.key_sha256));
    page.line(format_args!("manifest SHA-256 {}", summary.manifest_sha256));
    page.into_text()
}
