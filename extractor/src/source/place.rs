//! Checkpoints that are not on this machine: the addresses that name them.

use std::path::Path;

use super::SourceError;
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
    /// `s3://BUCKET/PREFIX`, `gs://…`, `az://CONTAINER/PREFIX`: objects under a prefix of a bucket.
    Objects(ObjectPlace),
}

/// Objects of an object store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ObjectPlace {
    /// Whose store it is.
    pub kind: StoreKind,
    /// The bucket; of Azure the container.
    pub bucket: String,
    /// What the keys begin with, without slashes at its ends; empty for the whole bucket.
    pub prefix: String,
}

impl std::fmt::Display for ObjectPlace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let separator = if self.prefix.is_empty() { "" } else { "/" };
        let (scheme, bucket) = (self.kind.scheme(), &self.bucket);
        write!(f, "{scheme}{bucket}{separator}{}", self.prefix)
    }
}

/// The protocols of object stores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StoreKind {
    /// Amazon S3, and what speaks its protocol.
    S3,
    /// Google Cloud Storage.
    Google,
    /// Azure Blob Storage.
    Azure,
}

impl StoreKind {
    const ALL: [Self; 3] = [Self::S3, Self::Google, Self::Azure];

    /// What its addresses begin with.
    pub(crate) fn scheme(self) -> &'static str {
        match self {
            Self::S3 => "s3://",
            Self::Google => "gs://",
            Self::Azure => "az://",
        }
    }
}

/// Why a text that looks like an address names no checkpoint.
pub(super) type WhyNot = &'static str;

/// The error of an address that names none.
pub(super) fn no_place(argument: &Path, why: WhyNot) -> SourceError {
    SourceError::Address {
        address: argument.to_owned(),
        why,
    }
}

/// Other names of schemes, which are not taken: what else they say of an account differs.
const OTHER_NAMES: [&str; 5] = ["s3a://", "azure://", "abfs://", "abfss://", "adl://"];

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
    for kind in StoreKind::ALL {
        if let Some(rest) = text.strip_prefix(kind.scheme()) {
            return Some(objects(kind, rest).map(RemotePlace::Objects));
        }
    }
    let is_other = OTHER_NAMES.iter().any(|scheme| text.starts_with(scheme));
    is_other.then_some(Err("wanted s3://BUCKET/PREFIX or az://CONTAINER/PREFIX"))
}

/// Whether an argument looks like the address of an object store.
pub(crate) fn is_store(argument: &Path) -> bool {
    let known = StoreKind::ALL.map(StoreKind::scheme);
    let text = argument.to_str().unwrap_or_default();
    known
        .iter()
        .chain(&OTHER_NAMES)
        .any(|s| text.starts_with(s))
}

fn objects(kind: StoreKind, rest: &str) -> Result<ObjectPlace, WhyNot> {
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    let of_names = |c: char| c.is_ascii_alphanumeric() || "-_.$".contains(c);
    if bucket.is_empty() || !bucket.chars().all(of_names) {
        return Err("wanted BUCKET/PREFIX; a bucket has letters, digits, '-', '_' and '.'");
    }
    let prefix = prefix.trim_end_matches('/');
    let bad = |part: &str| matches!(part, "" | "." | "..") || part.contains(char::is_control);
    if !prefix.is_empty() && prefix.split('/').any(bad) {
        return Err("a prefix has no empty parts, '.', '..' or control characters");
    }
    Ok(ObjectPlace {
        kind,
        bucket: bucket.to_owned(),
        prefix: prefix.to_owned(),
    })
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
            "s3://",
            "s3:///model",
            "s3://key:secret@bucket/model",
            "s3://bucket//model",
            "gs://bucket/../model",
            "abfs://container@account.dfs.core.windows.net/model",
        ] {
            assert!(matches!(of(bad), Some(Err(_))), "{bad}");
        }
    }

    #[test]
    fn addresses_name_buckets_and_prefixes() {
        let all = [
            ("s3://b/a/m/", "s3://b/a/m", "a/m"),
            ("gs://b-1.x", "gs://b-1.x", ""),
            ("az://c/a b?#%20", "az://c/a b?#%20", "a b?#%20"), // keys are taken as they are
        ];
        for (text, shown, prefix) in all {
            let Some(Ok(RemotePlace::Objects(place))) = of(text) else {
                panic!("{text}");
            };
            assert_eq!((&*place.to_string(), &*place.prefix), (shown, prefix));
        }
    }
}
