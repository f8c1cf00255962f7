//! The manifest of a pack against the one that follows from what the pack keeps of its checkpoint.

use std::io::ErrorKind;

use segpack_formats::FormatError;
use segpack_manifests::Pack;
use segpack_manifests::derive::{Kept, KeptError, derive};
use segpack_manifests::documents::{Finding, FindingKind, Manifest, Severity};

use super::StepError;
use crate::causes::without_path;

/// Refuses a pack whose manifest is not the one that follows from what it keeps. `outcome` says
/// what is left undone.
///
/// # Errors
/// `Findings` with every difference; where a kept file cannot be read, why not.
pub(super) fn refuse_underived(pack: &Pack, outcome: &str) -> Result<(), StepError> {
    refuse_underived_manifest(pack.manifest(), pack, outcome)
}

/// The same for a manifest that is not written yet, of the files that another folder keeps.
///
/// # Errors
/// As [`refuse_underived`].
pub(super) fn refuse_underived_manifest(
    manifest: &Manifest,
    pack: &Pack,
    outcome: &str,
) -> Result<(), StepError> {
    let mut findings = match Kept::read(pack) {
        Ok(kept) => derive(manifest, kept).findings,
        Err(errors) => {
            let findings: Result<Vec<_>, _> = errors.into_iter().map(finding_of).collect();
            findings?
        }
    };
    findings.retain(|f| f.severity == Severity::Error);
    if findings.is_empty() {
        return Ok(());
    }
    Finding::sort(&mut findings);
    let what = format!(
        "{}: damaged, or not what its config.json and headers describe; {outcome}",
        pack.folder().display()
    );
    Err(StepError::Findings { what, findings })
}

/// A kept file that is not there is damage; one that cannot be read may be so for now.
fn finding_of(error: KeptError) -> Result<Finding, StepError> {
    match error {
        KeptError::Wrong(finding) => Ok(*finding),
        KeptError::Unreadable { file, source } => match &source {
            FormatError::Io { source: cause, .. } if cause.kind() != ErrorKind::NotFound => {
                Err(source.into())
            }
            _ => Ok(Finding::new(FindingKind::Unreadable)
                .file(file)
                .seen(without_path(&source))),
        },
    }
}
