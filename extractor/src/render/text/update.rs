use segpack_manifests::documents::{DiffChange, UpdateReport};

use super::findings::findings;
use super::numbers::counted;
use super::page::Page;

/// What `update` did to the pack at `place`.
pub(crate) fn update(report: &UpdateReport, place: &str) -> String {
    let mut page = Page::default();
    for file in &report.files {
        let word = match file.change {
            DiffChange::Added => "added",
            DiffChange::Removed => "removed",
            DiffChange::Changed => "changed",
        };
        page.line(format_args!("  {}: {word}", file.path));
    }
    for pack in &report.written_packs {
        page.line(format_args!("  {pack}: written"));
    }
    for pack in &report.removed_packs {
        page.line(format_args!("  {pack}: removed"));
    }
    page.append(&findings(&report.warnings));
    let kept = counted(report.kept_packs, "pack");
    let verdict = match (report.changed, report.written_packs.len() as u64) {
        (false, _) => "up to date".to_owned(),
        (true, n) => format!("updated; {} written", counted(n, "pack")),
    };
    page.line(format_args!("{place}: {verdict}, {kept} as before"));
    page.line(format_args!("manifest SHA-256 {}", report.manifest_sha256));
    page.into_text()
}
