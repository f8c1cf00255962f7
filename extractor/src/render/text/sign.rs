use segpack_manifests::documents::SignSummary;

use super::numbers::counted;
use super::page::Page;

/// What `sign` signed at `place`: a pack, or the files of a folder that is none.
pub(crate) fn sign(summary: &SignSummary, place: &str) -> String {
    let mut page = Page::default();
    let files = counted(summary.files, "file");
    match summary.manifest_sha256 {
        Some(_) => page.line(format_args!("{place}: verified and signed, {files}")),
        None => page.line(format_args!("{place}: signed, {files}")),
    }
    page.line(format_args!("public key SHA-256 {}", summary.key_sha256));
    if let Some(identity) = summary.manifest_sha256 {
        page.line(format_args!("manifest SHA-256 {identity}"));
    }
    page.into_text()
}
