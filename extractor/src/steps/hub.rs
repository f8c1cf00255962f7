//! The local cache of the Hugging Face hub, and what it reveals of a file's digest.
//!
//! Layout: <https://huggingface.co/docs/huggingface_hub/guides/manage-cache>. A snapshot's files
//! are links to blobs that are named by their etag: the SHA-256 for files in LFS. A download to a
//! local folder leaves `.cache/huggingface/download/FILE.metadata` with three lines: commit, etag,
//! time.

use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use segpack_formats::digest::Sha256;
use segpack_manifests::documents::Provenance;

use super::StepError;

/// The folder of the hub cache: `HF_HUB_CACHE`, else `HF_HOME/hub`, else
/// `~/.cache/huggingface/hub`.
pub fn cache_folder() -> Option<PathBuf> {
    let set = |name: &str| {
        env::var_os(name)
            .filter(|v| !v.is_empty())
            .map(PathBuf::from)
    };
    set("HF_HUB_CACHE")
        .or_else(|| set("HUGGINGFACE_HUB_CACHE"))
        .or_else(|| Some(set("HF_HOME")?.join("hub")))
        .or_else(|| Some(set("XDG_CACHE_HOME")?.join("huggingface/hub")))
        .or_else(|| Some(env::home_dir()?.join(".cache/huggingface/hub")))
}

/// Splits `owner/name` or `owner/name@revision`.
pub fn parse_repo_id(text: &str) -> Option<(&str, Option<&str>)> {
    let (repo, revision) = match text.split_once('@') {
        Some((repo, revision)) => (repo, Some(revision)),
        None => (text, None),
    };
    let word = |w: &str| {
        !w.is_empty()
            && !w.starts_with('.')
            && w.chars()
                .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    let (owner, name) = repo.split_once('/')?;
    (word(owner) && word(name) && revision.is_none_or(|r| !r.is_empty() && !r.contains("..")))
        .then_some((repo, revision))
}

/// The snapshot folder of a repo in the local cache.
///
/// # Errors
/// `Input` naming what was looked for and what is there.
pub fn find_snapshot(repo: &str, revision: Option<&str>) -> Result<PathBuf, StepError> {
    let cache = cache_folder()
        .ok_or_else(|| StepError::Input("no hub cache: set HF_HUB_CACHE".to_owned()))?;
    let folder = cache.join(format!("models--{}", repo.replace('/', "--")));
    if !folder.is_dir() {
        return Err(StepError::Input(format!(
            "{repo} is neither a path here nor in the hub cache {}: download it with `hf download {repo}`",
            cache.display()
        )));
    }
    snapshot_of(&folder, revision)
}

/// The snapshot of a repo folder (`models--owner--name`): that of `revision`, else of `refs/main`,
/// else, where there is no `refs/main`, the only one.
///
/// # Errors
/// `Input` naming what was looked for and what is there.
pub fn snapshot_of(folder: &Path, revision: Option<&str>) -> Result<PathBuf, StepError> {
    let snapshots = folder.join("snapshots");
    let name = revision.unwrap_or("main");
    let reference = folder.join("refs").join(name);
    let commit = match fs::read_to_string(&reference) {
        Ok(text) => Some(text.trim().to_owned()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        // a revision may be a commit, or a folder of references
        Err(_) if reference.is_dir() => None,
        Err(e) => return Err(StepError::io("read", reference)(e)),
    };
    let wanted = snapshots.join(commit.as_deref().unwrap_or(name));
    if wanted.is_dir() && wanted != snapshots {
        return Ok(wanted);
    }
    let mut there: Vec<PathBuf> = fs::read_dir(&snapshots)
        .into_iter()
        .flatten()
        .filter_map(|e| Some(e.ok()?.path()))
        .collect();
    there.sort();
    if let ([only], None, None) = (&there[..], revision, &commit) {
        return Ok(only.clone());
    }
    let named = commit.map_or(String::new(), |c| format!(" (refs/{name} names {c:?})"));
    Err(StepError::Input(format!(
        "{} has no snapshot for revision {name:?}{named}; it has {} snapshots: {}",
        folder.display(),
        there.len(),
        there
            .iter()
            .filter_map(|p| Some(p.file_name()?.to_string_lossy()))
            .collect::<Vec<_>>()
            .join(", ")
    )))
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repo_ids_are_owner_slash_name() {
        assert_eq!(
            parse_repo_id("Qwen/Qwen3-30B"),
            Some(("Qwen/Qwen3-30B", None))
        );
        assert_eq!(parse_repo_id("a/b@v1.0"), Some(("a/b", Some("v1.0"))));
        for bad in [
            "a",
            "a/b/c",
            "/a",
            "a/",
            "../b",
            "./b",
            "a/b@",
            "a/b@../..",
            "a b/c",
        ] {
            assert_eq!(parse_repo_id(bad), None, "{bad}");
        }
    }
}
