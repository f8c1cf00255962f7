//! Receipts of `verify`: what was verified, when, and which files there were.
//!
//! A pack holds no times: the same checkpoint gives the same bytes. So a receipt lies elsewhere,
//! and says by lengths and times of modification whether it still speaks of the files that are
//! there. That is a hint, as those of `make` are, and no proof: only `verify` reads the bytes.

use std::fs;
use std::path::Path;
use std::time::UNIX_EPOCH;

use jiff::{Timestamp, Unit};
use segpack_formats::FormatError;
use segpack_manifests::Pack;
use segpack_manifests::documents::{
    GENERATOR, ReceiptFile, SinceReceipt, VerifyReceipt, VerifyReport,
};
use segpack_manifests::folder::{MANIFEST, SUMS};
use segpack_manifests::json;

use super::StepError;
use super::documents::read_document;
use crate::output::{OutputError, refuse_inside, write_whole};

/// More than a receipt of the largest pack takes, findings included.
const MAX_RECEIPT_BYTES: u64 = 256 << 20;

/// The files of a pack as they are now.
pub(crate) fn files_now(pack: &Pack) -> Vec<ReceiptFile> {
    let manifest = pack.manifest();
    let listed = manifest.files().into_iter().map(|(path, ..)| path);
    let sums = manifest.options.sums.then_some(SUMS);
    let paths = listed.chain([MANIFEST]).chain(sums);
    paths.filter_map(|path| file_now(pack, path)).collect()
}

/// A file with its length and time; `None` where there is none.
fn file_now(pack: &Pack, path: &str) -> Option<ReceiptFile> {
    let metadata = fs::symlink_metadata(pack.path(path)).ok()?;
    let modified = metadata.modified().ok();
    let since = modified.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    Some(ReceiptFile {
        path: path.to_owned(),
        length: metadata.len(),
        modified: since.map(|d| d.as_nanos().to_string()),
    })
}

/// The receipt of a verification that ends now, of these `files`.
pub(crate) fn receipt(report: &VerifyReport, files: Vec<ReceiptFile>) -> VerifyReceipt {
    let now = Timestamp::now();
    // whole seconds: nobody needs more, and the text is the same length always
    let time = now.round(Unit::Second).unwrap_or(now).to_string();
    VerifyReceipt {
        format_version: VerifyReceipt::VERSION,
        generator: GENERATOR.to_owned(),
        time,
        report: VerifyReport {
            values: None,
            ..report.clone()
        },
        files,
    }
}

/// Refuses a path that no receipt may be written to: in the pack, where it would be a file too many,
/// or that of a file that is something else.
///
/// # Errors
/// `InsideInput`, `Exists`; `Io`.
pub(crate) fn check_receipt_path(path: &Path, pack: &Path) -> Result<(), StepError> {
    refuse_inside(path, pack)?;
    if path.symlink_metadata().is_ok() && read_receipt(path).is_err() {
        let path = path.to_owned();
        return Err(OutputError::Exists { path }.into());
    }
    Ok(())
}

/// Writes a receipt, whole or not at all, in the place of an earlier one.
///
/// # Errors
/// `Io`.
pub(crate) fn write_receipt(path: &Path, receipt: &VerifyReceipt) -> Result<(), StepError> {
    let write = |out: &mut fs::File| json::write_document(out, receipt);
    Ok(write_whole(path, true, write)?)
}

/// Reads a receipt.
///
/// # Errors
/// `Io`; `Malformed` where it is none, or newer.
pub(crate) fn read_receipt(path: &Path) -> Result<VerifyReceipt, FormatError> {
    read_document(path, MAX_RECEIPT_BYTES, "is not a receipt of verify")
}

/// Whether a receipt still speaks of the files of a pack, and the first that differs.
pub(crate) fn since(pack: &Pack, receipt: &VerifyReceipt) -> (SinceReceipt, Option<String>) {
    if receipt.report.manifest_sha256 != Some(pack.manifest_sha256()) {
        return (SinceReceipt::OtherPack, None);
    }
    let now = files_now(pack);
    let differs = |a: &ReceiptFile, b: &[ReceiptFile]| !b.contains(a);
    let gone = receipt.files.iter().find(|f| differs(f, &now));
    let new = || now.iter().find(|f| differs(f, &receipt.files));
    match gone.or_else(new) {
        None => (SinceReceipt::Unchanged, None),
        Some(file) => (SinceReceipt::Changed, Some(file.path.clone())),
    }
}
