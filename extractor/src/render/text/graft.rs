use segpack_manifests::documents::GraftReport;

use super::findings::findings;
use super::numbers::{counted, grouped};
use super::page::Page;

/// What `graft` wrote to `place`.
pub(crate) fn graft(report: &GraftReport, place: &str) -> String {
    let mut page = Page::default();
    page.append(&findings(&report.warnings));
    let tensors = counted(report.thinker_tensors, "tensor");
    let changed = grouped(report.changed_tensors);
    let (written, kept) = (report.written_packs.len() as u64, report.kept_packs);
    page.line(format_args!(
        "{place}: a thinker of {tensors}, {changed} of them other than before; {} written, {} as \
         before",
        counted(written, "pack"),
        counted(kept, "pack")
    ));
    page.line(format_args!("manifest SHA-256 {}", report.manifest_sha256));
    page.into_text()
}
