use segpack_manifests::documents::{RepairDamage, RepairReport, RepairedFile};

use super::numbers::{Sizes, counted};
use super::page::Page;

/// Segments that are named one by one.
const MAX_SEGMENTS: usize = 8;

/// What `repair` did to the pack at `place`; sizes as `sizes` says.
pub(crate) fn repair(report: &RepairReport, place: &str, sizes: Sizes) -> String {
    let mut page = Page::default();
    for file in &report.repaired {
        page.append(&repaired(file, sizes));
    }
    let checked = counted(report.checked_files, "file");
    let bytes = sizes.bytes(report.checked_bytes);
    let verdict = match report.repaired.len() as u64 {
        0 => "nothing to repair".to_owned(),
        n => format!("repaired: {}", counted(n, "file")),
    };
    page.line(format_args!(
        "{place}: {verdict}; checked {checked} ({bytes})"
    ));
    page.line(format_args!("manifest SHA-256 {}", report.manifest_sha256));
    page.into_text()
}

fn repaired(file: &RepairedFile, sizes: Sizes) -> String {
    let mut page = Page::default();
    let damage = match file.damage {
        RepairDamage::Missing => "was missing",
        RepairDamage::NotAFile => "was not a file",
        RepairDamage::WrongLength => "had another length",
        RepairDamage::WrongBytes => "had other bytes",
        RepairDamage::Unreadable => "could not be read",
    };
    let size = sizes.bytes(file.length);
    page.line(format_args!("  {}: {damage} ({size})", file.path));
    for segment in file.segments.iter().take(MAX_SEGMENTS) {
        page.line(format_args!("    segment {segment}"));
    }
    if file.segments.len() > MAX_SEGMENTS {
        let more = file.segments.len() - MAX_SEGMENTS;
        page.line(format_args!(
            "    and {more} more segments (--json lists all)"
        ));
    }
    page.into_text()
}
