//! Whose trace it is: recorded from the checkpoint that was packed, or from an export of the pack.

use segpack_formats::digest::Sha256;
use segpack_manifests::Pack;
use segpack_manifests::documents::{Finding, FindingKind, ValidateReport, Verdict};

/// Puts into a report what is found when a trace's origin is compared with a pack; the verdict is
/// `Foreign` where it is another one's. An export has other files than the checkpoint, but says which
/// pack it is of, and `compare_files` is not asked.
pub(super) fn check(
    report: &mut ValidateReport,
    exported_from: Option<Sha256>,
    pack: &Pack,
    compare_files: impl FnOnce() -> Vec<Finding>,
) {
    let own = pack.manifest_sha256();
    report.is_of_export = exported_from == Some(own);
    report.findings = match exported_from {
        Some(other) if other != own => vec![of_another_pack(other, own)],
        Some(_) => Vec::new(),
        None => compare_files(),
    };
    if Finding::any_error(&report.findings) {
        (report.verdict, report.ok) = (Verdict::Foreign, false);
    }
}

fn of_another_pack(seen: Sha256, wanted: Sha256) -> Finding {
    Finding::new(FindingKind::ForeignTrace)
        .seen(format!(
            "recorded from an export of the pack whose manifest has SHA-256 {seen}"
        ))
        .wanted(format!("{wanted}, this pack's"))
}
