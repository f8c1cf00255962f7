use segpack_manifests::documents::{Completeness, Restorable, VerifyMode, VerifyReport};

use super::findings::findings;
use super::numbers::{bytes, counted};
use super::page::Page;

/// What `verify` found in the pack at `place`.
pub(crate) fn verify(report: &VerifyReport, place: &str) -> String {
    let mut page = Page::default();
    match report.part {
        Some([k, n]) => page.line(format_args!(
            "part {k} of {n} of a pack: whether the whole is complete is checked when its parts are \
             joined"
        )),
        None => page.line(completeness(report)),
    }
    page.append(&findings(&report.findings));
    if let Some(values) = &report.values {
        page.append(&super::values::values(values, &report.findings));
    }
    let part = report
        .subset
        .map_or(String::new(), |[k, n]| format!(" (part {k} of {n})"));
    page.append(&restorable(report));
    if let Some(signature) = &report.signature {
        let files = counted(signature.files, "file");
        let by = super::sign::signer(signature);
        page.line(format_args!("signature: of all {files}, by {by}"));
    }
    let (verdict, checked) = (verdict(report), checked(report));
    page.line(format_args!("{place}: {verdict}; checked {checked}{part}"));
    if let Some(sha256) = report.manifest_sha256 {
        let of = report.part.map_or("manifest", |_| "part");
        page.line(format_args!("{of} SHA-256 {sha256}"));
    }
    page.into_text()
}

/// Whether the pack's own `config.json` finds all its tensors.
fn completeness(report: &VerifyReport) -> String {
    let why = match report.completeness {
        Completeness::Complete => "every tensor that config.json requires is there",
        Completeness::Incomplete => "the tensors are not those that config.json requires",
        Completeness::NotKnown => "whether tensors are missing could not be derived",
    };
    format!("completeness: {} ({why})", report.completeness)
}

/// Files of the checkpoint that can be given back, or not, in this way.
fn count(report: &VerifyReport, wanted: Restorable) -> u64 {
    let files = report.files.iter().filter(|f| f.restorable == wanted);
    files.count() as u64
}

/// Which files of the checkpoint `unpack` gives back.
fn restorable(report: &VerifyReport) -> String {
    let mut page = Page::default();
    let proven = count(report, Restorable::Yes);
    if proven > 0 {
        let files = counted(proven, "source file");
        page.line(format_args!("restorable: {files}, byte for byte"));
    }
    let others = [
        (Restorable::No, "not restorable"),
        (Restorable::NotRecorded, "their SHA-256 was not recorded"),
        (Restorable::Excluded, "some of their tensors were excluded"),
        (Restorable::NotChecked, "not checked whether restorable"),
    ];
    for (wanted, why) in others
        .into_iter()
        .filter(|(wanted, _)| count(report, *wanted) > 0)
    {
        let files = counted(count(report, wanted), "source file");
        page.line(format_args!("{files}: {why}"));
    }
    page.into_text()
}

fn checked(report: &VerifyReport) -> String {
    let c = &report.checked;
    let packs = counted(c.packs, "pack");
    if report.mode == VerifyMode::Quick {
        return format!("the structure of {packs}");
    }
    format!(
        "{packs}, {}, {} and {} of source/ ({})",
        counted(c.segments, "segment"),
        counted(c.tensors, "tensor"),
        counted(c.files, "file"),
        bytes(c.bytes)
    )
}

fn verdict(report: &VerifyReport) -> String {
    let quick = report.mode == VerifyMode::Quick;
    match (report.ok, report.against) {
        (false, _) => format!(
            "NOT ok: {}",
            counted(report.findings.len() as u64, "finding")
        ),
        (true, false) => "ok".to_owned(),
        (true, true) if quick => {
            "ok; the manifest matches the checkpoint (no weights of the pack were read)".to_owned()
        }
        (true, true) => "ok, equal to the checkpoint".to_owned(),
    }
}
