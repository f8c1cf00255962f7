//! What a hub says of a repository: its commit, its files, and their digests.
//!
//! `GET /api/models/REPO/revision/REVISION?blobs=true`
//! (<https://huggingface.co/docs/hub/api>) lists the files with their lengths, and of those in LFS
//! the SHA-256. `/REPO/resolve/COMMIT/PATH` has their bytes, often by a redirect.

use std::collections::BTreeMap;
use std::path::PathBuf;

use segpack_formats::digest::Sha256;
use segpack_manifests::documents::Provenance;
use serde::Deserialize;

use super::client::{Client, Trouble, answer, host_of, origin_of, text_of};
use super::file::{Address, Identity};
use super::{Entry, Listing, RemoteError, environment};
use crate::work::Job;

/// More than the list of any repository takes.
const MAX_LIST_BYTES: u64 = 64 << 20;

#[derive(Deserialize)]
struct ModelInfo {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: Sha256,
    size: u64,
}

/// Who asks the hub, with the user's token.
///
/// # Errors
/// `Environment`, `Token`.
pub(super) fn client() -> Result<Client, RemoteError> {
    let origin = origin_of(&environment::endpoint()?);
    Client::new(environment::token()?.map(|token| (origin, token)))
}

/// Asks what a revision of a repository holds. The commit that it is at this moment is what is read
/// from here on.
///
/// # Errors
/// `NoRepository`, `NoRevision`, `NotAllowed`; `Answer` where the list is not one; what ended the
/// last try.
pub(super) fn list(
    client: &Client,
    (repo, revision): (&str, Option<&str>),
    job: Job<'_>,
) -> Result<Listing, RemoteError> {
    let endpoint = environment::endpoint()?;
    let wanted = revision.unwrap_or("main");
    let info = ask(client, &endpoint, (repo, wanted), job)?;
    let url = format!("{endpoint}/{repo}");
    let is_hex = |text: &str| text.len() == 40 && text.bytes().all(|b| b.is_ascii_hexdigit());
    if !is_hex(&info.sha) {
        return Err(answer(&url, format!("{:?} is no commit", info.sha)));
    }
    if is_hex(wanted) && !wanted.eq_ignore_ascii_case(&info.sha) {
        let what = format!("commit {}, wanted {wanted}", info.sha);
        return Err(answer(&url, what));
    }
    let mut files = BTreeMap::new();
    for sibling in info.siblings {
        let (path, entry) = entry(&url, &info.sha, sibling)?;
        if files.insert(path.clone(), entry).is_some() {
            return Err(answer(&url, format!("{path:?} is listed twice")));
        }
    }
    Ok(Listing {
        name: PathBuf::from(format!("hf://{repo}@{}", info.sha)),
        provenance: Provenance {
            repo: Some(repo.to_owned()),
            revision: Some(info.sha),
        },
        files,
    })
}

fn entry(url: &str, commit: &str, file: Sibling) -> Result<(String, Entry), RemoteError> {
    let path = file.rfilename;
    let length = file.lfs.as_ref().map(|lfs| lfs.size).or(file.size);
    let length = length.ok_or_else(|| answer(url, format!("no length of {path:?}")))?;
    let entry = Entry {
        address: Address::Web(format!("{url}/resolve/{commit}/{}", escaped(&path))),
        identity: Identity {
            length,
            sha256: file.lfs.map(|lfs| lfs.sha256),
            commit: Some(commit.to_owned()),
            tag: None,
        },
    };
    Ok((path, entry))
}

fn ask(
    client: &Client,
    endpoint: &str,
    (repo, revision): (&str, &str),
    job: Job<'_>,
) -> Result<ModelInfo, RemoteError> {
    let revision_in_url = escaped(revision).replace('/', "%2F");
    let url = format!("{endpoint}/api/models/{repo}/revision/{revision_in_url}?blobs=true");
    let json = client.until(&url, job, || {
        let from = client.ask(&url, false, None)?;
        let code = text_of(&from.headers, "x-error-code").map(str::to_owned);
        match (from.status, code.as_deref()) {
            (200, _) => {}
            (404, Some("RevisionNotFound")) => {
                return Err(Trouble::Final(RemoteError::NoRevision {
                    repo: repo.to_owned(),
                    revision: revision.to_owned(),
                }));
            }
            // a hub answers 401 for what is private, and for what is not there
            (404, _) | (401, Some("RepoNotFound")) => {
                return Err(Trouble::Final(RemoteError::NoRepository {
                    host: host_of(endpoint),
                    repo: repo.to_owned(),
                }));
            }
            (status @ (401 | 403), _) => {
                return Err(Trouble::Final(RemoteError::NotAllowed {
                    host: host_of(endpoint),
                    what: repo.to_owned(),
                    status,
                }));
            }
            _ => {}
        }
        client.take_body(&mut from.expect(&[200])?, MAX_LIST_BYTES)
    })?;
    serde_json::from_slice(&json).map_err(|e| answer(&url, format!("is no list of files: {e}")))
}

/// A path as a part of an address.
pub(super) fn escaped(path: &str) -> String {
    let mut escaped = String::with_capacity(path.len());
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~/".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_escaped_in_addresses() {
        assert_eq!(escaped("a/b-1.0_x"), "a/b-1.0_x");
        assert_eq!(escaped("a b?c#d%é"), "a%20b%3Fc%23d%25%C3%A9");
    }
}
