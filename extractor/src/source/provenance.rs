//! Where a checkpoint came from, and what the hub publishes of its files, as far as the local cache or
//! a download folder reveals it.

use std::fs;
use std::path::Path;

use segpack_formats::digest::Sha256;
use segpack_manifests::documents::Provenance;

/// What the folder's place tells of its origin: `…/models--OWNER--NAME/snapshots/REVISION`.
pub fn provenance(root: &Path) -> Provenance {
    let parts: Vec<String> = root
        .canonicalize()
        .unwrap_or_default()
        .iter()
        .map(|p| p.to_string_lossy().into_owned())
        .collect();
    if let [.., repo, snapshots, revision] = &parts[..]
        && snapshots == "snapshots"
        && let Some(repo) = repo.strip_prefix("models--")
    {
        let repo = repo.replacen("--", "/", 1);
        return Provenance {
            repo: Some(repo),
            revision: Some(revision.clone()),
        };
    }
    Provenance {
        repo: None,
        revision: downloaded_revision(root),
    }
}

/// The one commit that all files of a download folder came from.
fn downloaded_revision(root: &Path) -> Option<String> {
    let entries = fs::read_dir(root.join(".cache/huggingface/download")).ok()?;
    let mut commits: Vec<String> = entries
        .filter_map(|e| {
            Some(e.ok()?.path()).filter(|p| p.extension().is_some_and(|x| x == "metadata"))
        })
        .filter_map(|p| {
            Some(
                fs::read_to_string(p)
                    .ok()?
                    .lines()
                    .next()?
                    .trim()
                    .to_owned(),
            )
        })
        .collect();
    commits.sort();
    commits.dedup();
    match &commits[..] {
        [only] if is_commit(only) => Some(only.clone()),
        _ => None,
    }
}

fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// The SHA-256 that the hub publishes for a file, where the cache or the download folder reveals
/// it.
pub fn published_sha256(root: &Path, relative: &str) -> Option<Sha256> {
    let path = root.join(relative);
    if path.is_symlink() {
        let blob = path.canonicalize().ok()?;
        let in_blobs = blob.parent()?.file_name()? == "blobs";
        return in_blobs
            .then(|| blob.file_name()?.to_str()?.parse().ok())
            .flatten();
    }
    let metadata = root
        .join(".cache/huggingface/download")
        .join(format!("{relative}.metadata"));
    let text = fs::read_to_string(metadata).ok()?;
    text.lines().nth(1)?.trim().trim_matches('"').parse().ok()
}
