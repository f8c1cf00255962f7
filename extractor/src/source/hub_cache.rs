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

use crate::steps::StepError;

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
