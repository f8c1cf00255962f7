//! Checkpoints of a hub, of folders of web servers, and of object stores.
//!
//! Nothing is asked of any server that the user has not named. What is published is pinned when it
//! is opened: the commit of a repository, the lengths and versions of files. Everything is read by
//! ranges; [`fetch`] brings a whole file to the disk.

mod client;
mod environment;
mod error;
mod fetch;
mod file;
mod hub;
mod json_server;
mod object_listing;
mod objects;
mod pack_files;
mod proxy;
mod rate;
mod upload;
#[cfg(feature = "run")]
mod web_files;
mod web_folder;
mod windows;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, Weak};
use std::thread;
use std::time::Duration;

use segpack_formats::digest::Sha256;
use segpack_formats::io::{CancelToken, MemoryFile, ReadAt};
use segpack_formats::{FormatError, Result};
use segpack_manifests::documents::Provenance;

use super::place::RemotePlace;
use crate::work::{Job, lock};
use client::Client;
pub(crate) use client::Counts;
pub(super) use environment::is_offline;
pub(crate) use error::RemoteError;
pub(crate) use fetch::{Fetching, fetch, list_of};
pub(crate) use file::RemoteFile;
use file::{Address, Identity};
pub(crate) use json_server::JsonServer;
pub(crate) use pack_files::RemotePack;
pub(crate) use upload::Uploads;
#[cfg(feature = "run")]
pub(crate) use web_files::WebFiles;

/// How often it is looked whether the user asked to stop.
const TICK: Duration = Duration::from_millis(20);

/// A file that is there.
#[derive(Debug, Clone)]
struct Entry {
    address: Address,
    identity: Identity,
}

/// What is there.
struct Listing {
    /// As messages name it.
    name: PathBuf,
    provenance: Provenance,
    files: BTreeMap<String, Entry>,
}

/// Whoever asks a place.
#[derive(Debug, Clone)]
pub(crate) struct Requests(Arc<Client>);

impl Requests {
    /// Does something that asks. Once `job` is to stop nobody waits for an answer any more.
    ///
    /// # Errors
    /// `Interrupted`.
    pub(crate) fn watched<T>(&self, job: Job<'_>, work: impl FnOnce() -> T) -> Result<T> {
        self.0.watched(job, &CancelToken::new(), work)
    }

    /// Nobody waits for an answer any more once `job` is to stop, as long as anybody may ask.
    pub(crate) fn end_with(&self, job: Job<'static>) {
        let client = Arc::downgrade(&self.0);
        thread::spawn(move || end_requests(&client, job));
    }
}

/// Ends what threads wait for once the user asks to stop.
fn end_requests(client: &Weak<Client>, job: Job<'_>) {
    while let Some(client) = client.upgrade() {
        client.tell(job.progress);
        if job.stop.is_cancelled() {
            client.shut_down();
            return;
        }
        drop(client);
        thread::sleep(TICK);
    }
}

/// An opened place, with the list of its files.
#[derive(Debug)]
pub(crate) struct Remote {
    /// As messages name it: a hub's repository with its commit, or an address.
    pub name: PathBuf,
    /// Repository and commit.
    pub provenance: Provenance,
    files: BTreeMap<String, Entry>,
    client: Arc<Client>,
    /// Small files that were read.
    small: Mutex<BTreeMap<String, Arc<Vec<u8>>>>,
}

impl Remote {
    /// Asks what is there.
    ///
    /// # Errors
    /// Where there is no checkpoint, or nothing can be asked; `Interrupted`.
    pub(super) fn open(
        place: &RemotePlace,
        job: Job<'_>,
    ) -> std::result::Result<Self, RemoteError> {
        let client = Arc::new(match place {
            RemotePlace::Hub { .. } => hub::client()?,
            RemotePlace::Folder(_) | RemotePlace::Objects(_) => Client::new(None)?,
        });
        let list = || match place {
            RemotePlace::Hub { repo, revision } => {
                hub::list(&client, (repo, revision.as_deref()), job)
            }
            RemotePlace::Folder(url) => web_folder::list(&client, url, job),
            RemotePlace::Objects(place) => object_listing::list(&client, place, job),
        };
        let listed = Requests(Arc::clone(&client)).watched(job, list);
        let Listing {
            name,
            provenance,
            files,
        } = listed.map_err(|_| RemoteError::Interrupted)??;
        Ok(Self {
            name,
            provenance,
            files,
            client,
            small: Mutex::default(),
        })
    }

    /// Whoever asks.
    pub(super) fn requests(&self) -> Requests {
        Requests(Arc::clone(&self.client))
    }

    /// What was asked for and received so far.
    pub(crate) fn counts(&self) -> &Counts {
        &self.client.counts
    }

    /// Relative paths, as the server lists them: they may be anything.
    pub(super) fn paths(&self) -> impl Iterator<Item = &String> {
        self.files.keys()
    }

    /// Whether there is such a file.
    pub(super) fn has(&self, path: &str) -> bool {
        self.files.contains_key(path)
    }

    /// Its length, where it is there.
    pub(super) fn length(&self, path: &str) -> Option<u64> {
        self.files.get(path).map(|entry| entry.identity.length)
    }

    /// The SHA-256 that the hub publishes of it.
    pub(super) fn published_sha256(&self, path: &str) -> Option<Sha256> {
        self.files.get(path)?.identity.sha256
    }

    fn entry(&self, path: &str) -> Result<&Entry> {
        self.files.get(path).ok_or_else(|| {
            let missing = std::io::ErrorKind::NotFound.into();
            FormatError::io("open", self.name.join(path))(missing)
        })
    }

    /// A file to be read by ranges. Nothing is asked yet.
    ///
    /// # Errors
    /// `Io` where it is not listed.
    pub(super) fn file(&self, path: &str) -> Result<RemoteFile> {
        let Entry { address, identity } = self.entry(path)?.clone();
        let (client, name) = (Arc::clone(&self.client), self.name.join(path));
        Ok(RemoteFile::new(client, name, address, identity))
    }

    /// [`file`](Self::file); one that was read as a whole before is not asked for again.
    ///
    /// # Errors
    /// As [`file`](Self::file).
    pub(super) fn open_file(&self, path: &str) -> Result<Arc<dyn ReadAt>> {
        let known = lock(&self.small).get(path).cloned();
        Ok(match known {
            Some(bytes) => Arc::new(MemoryFile::new(self.name.join(path), (*bytes).clone())),
            None => Arc::new(self.file(path)?),
        })
    }

    /// A small file as a whole.
    ///
    /// # Errors
    /// `TooLarge`; `Changed` where it has another length than the listed one; as [`RemoteFile`].
    pub(super) fn read_limited(&self, path: &str, limit: u64) -> Result<Vec<u8>> {
        let name = self.name.join(path);
        let entry = self.entry(path)?;
        let length = entry.identity.length;
        if length > limit {
            return Err(FormatError::TooLarge {
                path: name,
                length,
                limit,
            });
        }
        let known = lock(&self.small).get(path).cloned();
        if let Some(bytes) = known {
            return Ok((*bytes).clone());
        }
        let file = self.file(path)?;
        let mut bytes = Vec::new();
        file.receive(0..length, self.client.own_job(), &mut |piece| {
            bytes.extend_from_slice(piece);
            Ok(())
        })?;
        let kept = Arc::new(bytes.clone());
        lock(&self.small).insert(path.to_owned(), kept);
        Ok(bytes)
    }
}
