//! The local cache of the Hugging Face hub: where it is, and which snapshot a repo id means.
//!
//! Layout: <https://huggingface.co/docs/huggingface_hub/guides/manage-cache>.

use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use segpack_formats::FormatError;

use super::SourceError;

/// The folder of the hub cache: `HF_HUB_CACHE`, else `HF_HOME/hub`, else
/// `~/.cache/huggingface/hub`.
fn cache_folder() -> Option<PathBuf> {
    path_in("HF_HUB_CACHE")
        .or_else(|| path_in("HUGGINGFACE_HUB_CACHE"))
        .or_else(|| Some(path_in("HF_HOME")?.join("hub")))
        .or_else(|| Some(path_in("XDG_CACHE_HOME")?.join("huggingface/hub")))
        .or_else(|| Some(env::home_dir()?.join(".cache/huggingface/hub")))
}

/// The path in an environment variable that is set and not empty.
fn path_in(variable: &str) -> Option<PathBuf> {
    let value = env::var_os(variable)?;
    (!value.is_empty()).then(|| value.into())
}

/// Splits `owner/name` or `owner/name@revision`.
pub(super) fn parse_repo_id(text: &str) -> Option<(&str, Option<&str>)> {
    let (repo, revision) = match text.split_once('@') {
        Some((repo, revision)) => (repo, Some(revision)),
        None => (text, None),
    };
    let (owner, name) = repo.split_once('/')?;
    (is_repo_word(owner)
        && is_repo_word(name)
        && revision.is_none_or(|r| !r.is_empty() && !r.contains("..")))
    .then_some((repo, revision))
}

/// Whether a text may be an owner or a name.
fn is_repo_word(text: &str) -> bool {
    let mut chars = text.chars();
    !text.is_empty()
        && !text.starts_with('.')
        && chars.all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

/// The snapshot folder of a repo in the local cache.
///
/// # Errors
/// `NoHubCache`, `NotInCache`, or as [`snapshot_of`].
pub(super) fn find_snapshot(repo: &str, revision: Option<&str>) -> Result<PathBuf, SourceError> {
    let cache = cache_folder().ok_or(SourceError::NoHubCache)?;
    let folder = cache.join(format!("models--{}", repo.replace('/', "--")));
    if !folder.is_dir() {
        return Err(SourceError::NotInCache {
            repo: repo.to_owned(),
            cache,
        });
    }
    snapshot_of(&folder, revision)
}

/// The snapshot of a repo folder (`models--owner--name`): that of `revision`, else of `refs/main`,
/// else, where there is no `refs/main`, the only one.
///
/// # Errors
/// `NoSnapshot` naming what was looked for and what is there; `Io` where a reference or the folder
/// of snapshots cannot be read.
pub(super) fn snapshot_of(folder: &Path, revision: Option<&str>) -> Result<PathBuf, SourceError> {
    let name = revision.unwrap_or("main");
    let commit = commit_of(&folder.join("refs").join(name))?;
    let snapshots = folder.join("snapshots");
    let wanted = snapshots.join(commit.as_deref().unwrap_or(name));
    if wanted.is_dir() && wanted != snapshots {
        return Ok(wanted);
    }
    let there = list_snapshots(&snapshots)?;
    if let ([only], None, None) = (&there[..], revision, &commit) {
        return Ok(snapshots.join(only));
    }
    Err(SourceError::NoSnapshot {
        folder: folder.to_owned(),
        revision: name.to_owned(),
        commit,
        snapshots: there,
    })
}

/// The commit that a reference names; `None` where there is no such reference.
fn commit_of(reference: &Path) -> Result<Option<String>, SourceError> {
    match fs::read_to_string(reference) {
        Ok(text) => Ok(Some(text.trim().to_owned())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        // a revision may be a commit, or a folder of references
        Err(_) if reference.is_dir() => Ok(None),
        Err(e) => Err(FormatError::io("read", reference)(e).into()),
    }
}

/// The names of all snapshots, sorted; none where their folder does not exist.
fn list_snapshots(folder: &Path) -> Result<Vec<String>, SourceError> {
    let entries = match fs::read_dir(folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(FormatError::io("list", folder))?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(FormatError::io("list", folder))?;
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
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
