//! What is damaged: every file of the folder against the manifest, by its SHA-256.

use std::io;
use std::path::Path;
use std::sync::Mutex;

use segpack_formats::FormatError;
use segpack_formats::digest::{Sha256, Sha256Hasher};
use segpack_formats::io::{InputFile, READ_BYTES};
use segpack_manifests::documents::{Finding, FindingKind, Manifest, RepairDamage};
use segpack_manifests::folder::{MANIFEST, MAX_MANIFEST_BYTES, SUMS};

use crate::steps::StepError;
use crate::steps::listing::{list, listed_paths};
use crate::work::{Job, into_inner, lock, run_tasks};

/// A file that is not as the manifest says.
#[derive(Debug, Clone)]
pub(super) struct Damaged {
    pub path: String,
    pub damage: RepairDamage,
}

/// Compares every file that the manifest lists, in the order of the list.
///
/// # Errors
/// Where the environment, not the file, is at fault; `Interrupted`.
pub(super) fn find(
    folder: &Path,
    manifest: &Manifest,
    job: Job<'_>,
) -> Result<Vec<Damaged>, StepError> {
    let files = manifest.files();
    let bytes = files.iter().map(|(_, length, _)| length).sum();
    job.progress.start("checking files", bytes);
    let found = Mutex::new(Vec::new());
    let done = run_tasks(
        job.threads,
        &files,
        || Ok::<_, FormatError>(vec![0; READ_BYTES]),
        |buffer, (path, length, sha256)| {
            if let Some(damage) = inspect(folder, path, *length, *sha256, buffer, job)? {
                let path = (*path).to_owned();
                lock(&found).push(Damaged { path, damage });
            }
            Ok(())
        },
    );
    job.progress.finish();
    done?;
    let mut found = into_inner(found);
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

fn inspect(
    folder: &Path,
    path: &str,
    length: u64,
    wanted: Sha256,
    buffer: &mut [u8],
    job: Job<'_>,
) -> Result<Option<RepairDamage>, FormatError> {
    let input = match open_own(folder, path)? {
        Ok(input) => input,
        Err(damage) => {
            job.progress.advance(length);
            return Ok(Some(damage));
        }
    };
    if input.length() != length {
        job.progress.advance(length);
        return Ok(Some(RepairDamage::WrongLength));
    }
    let mut sha256 = Sha256Hasher::default();
    let read = input.for_each_piece(0..length, buffer, job.stop, |piece| {
        sha256.update(piece);
        job.progress.advance(piece.len() as u64);
        Ok::<_, FormatError>(())
    });
    match read {
        Ok(()) => Ok((sha256.finish() != wanted).then_some(RepairDamage::WrongBytes)),
        Err(e) if is_damage(&e) => Ok(Some(RepairDamage::Unreadable)),
        Err(e) => Err(e),
    }
}

/// Opens a file of the folder, or says why there is none. Links are not followed.
///
/// # Errors
/// Where the environment is at fault.
pub(super) fn open_own(
    folder: &Path,
    path: &str,
) -> Result<Result<InputFile, RepairDamage>, FormatError> {
    match InputFile::open_beneath(folder, path) {
        Ok(input) => Ok(Ok(input)),
        Err(FormatError::Link { .. } | FormatError::Malformed { .. }) => {
            Ok(Err(RepairDamage::NotAFile))
        }
        Err(FormatError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            Ok(Err(RepairDamage::Missing))
        }
        Err(e) if is_damage(&e) => Ok(Err(RepairDamage::Unreadable)),
        Err(e) => Err(e),
    }
}

/// Whether it is the file that cannot be read: where the environment is at fault, another run may
/// read what this one cannot.
pub(super) fn is_damage(error: &FormatError) -> bool {
    !error.is_environment() && !matches!(error, FormatError::Interrupted)
}

/// Refuses a folder that holds what the manifest does not list: it is not known what that is, and
/// nothing may be lost.
///
/// # Errors
/// `Findings`; `Io` where the folder cannot be listed.
pub(super) fn refuse_unlisted(folder: &Path, manifest: &Manifest) -> Result<(), StepError> {
    let listed = listed_paths(manifest, MANIFEST, manifest.options.sums);
    let mut findings = list(folder, &listed)?.findings;
    // a link in a file's place is damage
    let is_listed = |f: &Finding| f.file.as_deref().is_some_and(|f| listed.contains_key(f));
    findings.retain(|f| f.kind == FindingKind::UnlistedFile && !is_listed(f));
    if findings.is_empty() {
        return Ok(());
    }
    let what = format!("{}: nothing was repaired", folder.display());
    Err(StepError::Findings { what, findings })
}

/// The bytes of a document of the folder; `None` where there is none that can be read, or it is
/// larger than any document is.
///
/// # Errors
/// Where the environment is at fault.
pub(super) fn read_own(folder: &Path, path: &str) -> Result<Option<Vec<u8>>, FormatError> {
    let Ok(input) = open_own(folder, path)? else {
        return Ok(None);
    };
    if input.length() > MAX_MANIFEST_BYTES {
        return Ok(None);
    }
    Ok(input.read_range(0..input.length()).ok())
}

/// Whether SHA256SUMS is there with this text.
///
/// # Errors
/// Where the environment is at fault.
pub(super) fn has_sums(folder: &Path, text: &str) -> Result<bool, FormatError> {
    let seen = read_own(folder, SUMS)?;
    Ok(seen.is_some_and(|seen| seen == text.as_bytes()))
}

/// What is wrong with a document that has not the bytes that it should have.
pub(super) fn why(folder: &Path, path: &str) -> RepairDamage {
    match open_own(folder, path) {
        Ok(Err(damage)) => damage,
        Ok(Ok(_)) => RepairDamage::WrongBytes,
        Err(_) => RepairDamage::Unreadable,
    }
}
