use segpack_manifests::documents::ShareReport;

use super::findings::findings;
use super::numbers::{counted, grouped};
use super::page::Page;

/// Whether the folder at `place` is the share of a rank.
pub(crate) fn share(report: &ShareReport, place: &str) -> String {
    let mut page = Page::default();
    page.append(&findings(&report.findings));
    let (rank, ranks) = (report.rank, report.ranks);
    let verdict = match report.ok {
        true => format!("ok, the share of rank {rank} of {ranks}"),
        false => format!("NOT ok, not the share of rank {rank} of {ranks}"),
    };
    let (tensors, files) = (
        counted(report.tensors, "tensor"),
        counted(report.files, "file"),
    );
    let experts = grouped(report.expert_tensors);
    page.line(format_args!(
        "{place}: {verdict}; {tensors} in {files}, {experts} of experts"
    ));
    page.line(match report.manifest_sha256 {
        None => {
            "names, shapes and metadata; bytes were not compared, for want of a pack".to_owned()
        }
        Some(_) => bytes(report),
    });
    page.into_text()
}

fn bytes(report: &ShareReport) -> String {
    let compared = format!(
        "{} compared with the pack, byte for byte",
        counted(report.compared, "tensor")
    );
    match report.converted {
        0 => compared,
        n => format!(
            "{compared}; {} of another dtype, whose bytes were not compared",
            grouped(n)
        ),
    }
}
