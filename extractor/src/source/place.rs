//! Checkpoints that are not on this machine: the addresses that name them.

use std::path::Path;

use super::hub_cache::parse_repo_id;

/// A checkpoint behind an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RemotePlace {
    /// `hf://OWNER/NAME[@REVISION]`: a repository of a Hugging Face hub.
    Hub {
        /// `OWNER/NAME`.
        repo: String,
        /// A branch, a tag or a commit; `main` where there is none.
        revision: Option<String>,
    },
    /// `http://…` or `https://…`: a folder of a web server, ending in `/`.
    Folder(String),
}

/// Why a text that looks like an address names no checkpoint.
pub(super) type WhyNot = &'static str;

/// The schemes that mean something elsewhere, or nowhere.
const OBJECT_STORES: [&str; 4] = ["s3://", "gs://", "az://", "abfs://"];

/// What an argument means, where it is an address; `None` where it is a path or a repo id.
///
/// # Errors
/// Where it is an address, but not of a checkpoint.
pub(super) fn parse(argument: &Path) -> Option<Result<RemotePlace, WhyNot>> {
    let text = argument.to_str()?;
    if let Some(rest) = text.strip_prefix("hf://") {
        return Some(hub(rest));
    }
    if text.starts_with("http://") || text.starts_with("https://") {
        return Some(folder(text));
    }
    let is_object_store = OBJECT_STORES.iter().any(|scheme| text.starts_with(scheme));
    is_object_store.then_some(Err(
        "object stores cannot be read: copy the checkpoint to a disk, or serve it by http",
    ))
}

fn hub(rest: &str) -> Result<RemotePlace, WhyNot> {
    let parsed = parse_repo_id(rest.trim_end_matches('/'));
    let (repo, revision) = parsed.ok_or("wanted hf://OWNER/NAME or hf://OWNER/NAME@REVISION")?;
    Ok(RemotePlace::Hub {
        repo: repo.to_owned(),
        revision: revision.map(str::to_owned),
    })
}

fn folder(text: &str) -> Result<RemotePlace, WhyNot> {
    let (_, rest) = text.split_once("://").unwrap_or_default();
    let host = rest.split('/').next().unwrap_or_default();
    if host.is_empty() {
        return Err("wanted the address of a folder: http://HOST/FOLDER/");
    }
    if host.contains('@') {
        return Err("an address with a name or a password in it is not taken");
    }
    if text.contains(['?', '#']) {
        return Err("an address with a query or a fragment names no folder");
    }
    let printable = |c: char| c.is_ascii_graphic();
    if !text.chars().all(printable) {
        return Err("an address has no blanks, and other letters as %XX");
    }
    Ok(RemotePlace::Folder(format!(
        "{}/",
        text.trim_end_matches('/')
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Option<Result<RemotePlace, WhyNot>> {
        parse(Path::new(text))
    }

    #[test]
    fn addresses_name_repositories_and_folders() {
        let hub = |repo: &str, revision: Option<&str>| RemotePlace::Hub {
            repo: repo.to_owned(),
            revision: revision.map(str::to_owned),
        };
        assert_eq!(of("hf://a/b"), Some(Ok(hub("a/b", None))));
        assert_eq!(of("hf://a/b@v1/"), Some(Ok(hub("a/b", Some("v1")))));
        let folder = RemotePlace::Folder("http://h:80/a/b/".to_owned());
        assert_eq!(of("http://h:80/a/b"), Some(Ok(folder.clone())));
        assert_eq!(of("http://h:80/a/b/"), Some(Ok(folder)));
        for path in ["a/b", "./hf:/a", "/tmp/http", "C:\\model"] {
            assert_eq!(of(path), None, "{path}");
        }
    }

    #[test]
    fn other_addresses_are_refused_with_a_reason() {
        for bad in [
            "hf://a",
            "hf://a/b/c",
            "hf://../b",
            "http://",
            "https:///a",
            "https://name:secret@host/",
            "https://host/a?token=x",
            "https://host/a b",
            "s3://bucket/model",
        ] {
            assert!(matches!(of(bad), Some(Err(_))), "{bad}");
        }
    }
}
