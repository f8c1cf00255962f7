//! Where a checkpoint came from, and what the hub publishes of its files, as far as the local cache
//! or a download folder reveals it.
//!
//! A snapshot's files are links to blobs that are named by their etag: the SHA-256 for files in LFS
//! (<https://huggingface.co/docs/huggingface_hub/guides/manage-cache>). A download to a local folder
//! leaves `.cache/huggingface/download/FILE.metadata` with three lines: commit, etag, time.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;

use segpack_formats::FormatError;
use segpack_formats::digest::Sha256;
use segpack_manifests::documents::Provenance;

/// Where a download to a local folder keeps its records, relative to that folder.
pub(super) const DOWNLOAD_RECORDS: &str = ".cache/huggingface/download";

/// What the folder's path reveals of its origin: `…/models--OWNER--NAME/snapshots/REVISION`; for a
/// download folder the one commit that all files came from.
///
/// # Errors
/// `Io` where a record of the download cannot be read.
pub(super) fn provenance(root: &Path) -> Result<Provenance, FormatError> {
    let real = root.canonicalize().map_err(FormatError::io("open", root))?;
    let parts: Vec<String> = real
        .iter()
        .map(|p| p.to_string_lossy().into_owned())
        .collect();
    if let [.., repo, snapshots, revision] = &parts[..]
        && snapshots == "snapshots"
        && let Some(repo) = repo.strip_prefix("models--")
    {
        return Ok(Provenance {
            repo: Some(repo.replacen("--", "/", 1)),
            revision: Some(revision.clone()),
        });
    }
    Ok(Provenance {
        repo: None,
        revision: downloaded_revision(root)?,
    })
}

/// The commit in the records of a download folder, if they all have the same.
fn downloaded_revision(root: &Path) -> Result<Option<String>, FormatError> {
    let folder = root.join(DOWNLOAD_RECORDS);
    let entries = match fs::read_dir(&folder) {
        Err(e) if is_absent(&e) => return Ok(None),
        entries => entries.map_err(FormatError::io("list", &folder))?,
    };
    let mut commits = BTreeSet::new();
    for entry in entries {
        let path = entry.map_err(FormatError::io("list", &folder))?.path();
        if path.extension().is_some_and(|x| x == "metadata") {
            let text = fs::read_to_string(&path).map_err(FormatError::io("read", &path))?;
            commits.extend(text.lines().next().map(|line| line.trim().to_owned()));
        }
    }
    let only = commits.pop_first().filter(|_| commits.is_empty());
    Ok(only.filter(|commit| is_commit(commit)))
}

fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// The SHA-256 that the hub publishes for a file, where the cache or the download folder reveals
/// it.
///
/// # Errors
/// `Io` where the link or the record of the download cannot be read.
pub(super) fn published_sha256(root: &Path, relative: &str) -> Result<Option<Sha256>, FormatError> {
    let path = root.join(relative);
    if path.is_symlink() {
        let blob = path
            .canonicalize()
            .map_err(FormatError::io("open", &path))?;
        return Ok(blob_sha256(&blob));
    }
    let record = root
        .join(DOWNLOAD_RECORDS)
        .join(format!("{relative}.metadata"));
    match fs::read_to_string(&record) {
        Err(e) if is_absent(&e) => Ok(None),
        text => Ok(recorded_sha256(
            &text.map_err(FormatError::io("read", &record))?,
        )),
    }
}

/// The digest that a blob is named by; files outside of LFS are named by a shorter one.
fn blob_sha256(blob: &Path) -> Option<Sha256> {
    if blob.parent()?.file_name()? != "blobs" {
        return None;
    }
    blob.file_name()?.to_str()?.parse().ok()
}

/// The etag in the second line of a record, where it is a SHA-256.
fn recorded_sha256(record: &str) -> Option<Sha256> {
    let etag = record.lines().nth(1)?;
    etag.trim().trim_matches('"').parse().ok()
}

fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}
