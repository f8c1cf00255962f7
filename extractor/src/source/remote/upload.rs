//! Files that go to an object store: small ones in one request, others in parts.
//!
//! An object is there as a whole or not at all: parts are none until the last request, and are
//! taken back where a file fails. S3 gets every request signed with the digest of its bytes, so that it
//! takes no others; Azure does not, and forgets parts of what was not completed after a week.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use object_store::multipart::PartId;
use object_store::path::Path as ObjectPath;
use object_store::{MultipartId, PutPayload};
use segpack_formats::io::{CancelToken, InputFile};
use segpack_formats::{FormatError, Result};
use segpack_manifests::documents::UploadedTo;
use segpack_manifests::folder::MANIFEST;

use super::client::{Client, Trouble};
use super::object_listing::list_objects;
use super::objects::Bucket;
use super::{Entry, Fetching, RemoteError};
use crate::source::SourceError;
use crate::source::place::{self, ObjectPlace, RemotePlace, StoreKind};
use crate::work::{Job, into_inner, lock, run_tasks};

/// Parts that an upload has at most.
/// <https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html>
const MAX_PARTS: u64 = 10_000;
/// So long the last request's answer is waited for after the user wants to stop, and that of a request
/// which takes parts back.
const GRACE: Duration = Duration::from_secs(2);

/// Objects below a prefix, to which more are added.
pub(crate) struct Uploads<'a> {
    place: ObjectPlace,
    bucket: Arc<Bucket>,
    client: Arc<Client>,
    /// Requests at the same time.
    connections: usize,
    job: Job<'a>,
    /// Lengths of the objects that are there, by path.
    there: Mutex<BTreeMap<String, u64>>,
    /// Objects that were written, and parts of them.
    objects: AtomicU64,
    parts: AtomicU64,
}

impl<'a> Uploads<'a> {
    /// Looks what is there.
    ///
    /// # Errors
    /// `Address` where the argument is none below a bucket of S3; `Io`.
    pub(crate) fn open(
        argument: &Path,
        Fetching { connections, rate }: Fetching,
        job: Job<'a>,
    ) -> std::result::Result<Self, SourceError> {
        let no_place = |why| SourceError::Address {
            address: argument.to_owned(),
            why,
        };
        let place = match place::parse(argument) {
            Some(Ok(RemotePlace::Objects(place))) if is_written_to(place.kind) => place,
            Some(Err(why)) => return Err(no_place(why)),
            _ => {
                return Err(no_place(
                    "packs are written to folders, to s3:// and to az:// only",
                ));
            }
        };
        if place.prefix.is_empty() {
            return Err(no_place(
                "wanted s3://BUCKET/PREFIX or az://CONTAINER/PREFIX: a pack is no whole bucket",
            ));
        }
        let error = |e| upload_error(argument, e);
        let client = Client::new(None).map_err(error)?.with_rate(rate);
        let client = Arc::new(client);
        let bucket = Arc::new(Bucket::open(&place, &client).map_err(error)?);
        let listed = client.watched(job, &CancelToken::new(), || {
            list_objects(&bucket, &client, job)
        });
        let files = listed?.map_err(error)?;
        let length = |(path, entry): (String, Entry)| (path, entry.identity.length);
        Ok(Self {
            place,
            bucket,
            client,
            connections: connections.max(1),
            job,
            there: Mutex::new(files.into_iter().map(length).collect()),
            objects: AtomicU64::new(0),
            parts: AtomicU64::new(0),
        })
    }

    /// What was sent so far.
    pub(crate) fn uploaded(&self) -> UploadedTo {
        use Ordering::Relaxed;
        let counts = &self.client.counts;
        UploadedTo {
            place: self.place.to_string(),
            objects: self.objects.load(Relaxed),
            parts: self.parts.load(Relaxed),
            requests: counts.requests.load(Relaxed),
            retries: counts.retries.load(Relaxed),
            sent_bytes: counts.sent.load(Relaxed),
        }
    }

    /// An object is there as a whole.
    fn is_there(&self, path: &str, length: u64) {
        lock(&self.there).insert(path.to_owned(), length);
        self.objects.fetch_add(1, Ordering::Relaxed);
    }

    /// The paths of the objects that are there.
    pub(crate) fn paths(&self) -> Vec<String> {
        lock(&self.there).keys().cloned().collect()
    }

    /// Whether an object of this path and length is there.
    pub(crate) fn has(&self, path: &str, length: u64) -> bool {
        lock(&self.there).get(path) == Some(&length)
    }

    /// Sends a document.
    ///
    /// # Errors
    /// `Io`; `Interrupted`.
    pub(crate) fn put(&self, path: &str, bytes: Vec<u8>) -> Result<()> {
        let (length, payload) = (bytes.len() as u64, PutPayload::from(bytes));
        let key = self.key(path)?;
        // whether there is a pack should be known at the end
        let is_manifest = path == MANIFEST;
        let grace = if is_manifest { GRACE } else { Duration::ZERO };
        self.watched(grace, || {
            let put = || self.bucket.put(&key, payload.clone());
            self.until(path, put)
        })?;
        self.is_there(path, length);
        Ok(())
    }

    /// Sends a file of this machine.
    ///
    /// # Errors
    /// `Io`; `Interrupted`. Parts that were sent are taken back then.
    pub(crate) fn take(&self, file: &Path, path: &str) -> Result<()> {
        let input = InputFile::open(file)?;
        let length = input.length();
        let part_bytes = self.client.part_bytes().max(length.div_ceil(MAX_PARTS));
        if length <= part_bytes {
            return self.put(path, input.read_range(0..length)?);
        }
        let key = self.key(path)?;
        let id = self.watched(Duration::ZERO, || {
            self.until(path, || self.bucket.begin(&key))
        })?;
        let send = || self.parts(path, (&key, &id), &input, part_bytes);
        let sent = self.watched(Duration::ZERO, send);
        if sent.is_err() {
            self.take_back(&key, &id);
        }
        sent?;
        self.is_there(path, length);
        Ok(())
    }

    /// Sends the parts of a file, several at a time, and makes an object of them.
    fn parts(
        &self,
        path: &str,
        (key, id): (&ObjectPath, &MultipartId),
        input: &InputFile,
        part_bytes: u64,
    ) -> Result<()> {
        let ranges = ranges(input.length(), part_bytes);
        let sent: Mutex<BTreeMap<usize, PartId>> = Mutex::default();
        let numbered: Vec<(usize, Range<u64>)> = ranges.into_iter().enumerate().collect();
        let state = || Ok(());
        run_tasks(self.connections, &numbered, state, |(), (number, range)| {
            self.job.stop.check()?;
            let payload = PutPayload::from(input.read_range(range.clone())?);
            let send = || self.bucket.put_part(key, id, *number, payload.clone());
            let part = self.until(path, send)?;
            self.parts.fetch_add(1, Ordering::Relaxed);
            lock(&sent).insert(*number, part);
            Ok::<_, FormatError>(())
        })?;
        let parts: Vec<PartId> = into_inner(sent).into_values().collect();
        self.until(path, || self.bucket.complete(key, id, parts.clone()))
    }

    /// Best effort: the error that led here is what the user must see. Another client, since this
    /// one may have been shut down, and one that a server does not keep waiting.
    fn take_back(&self, key: &ObjectPath, id: &MultipartId) {
        let _ = Client::new(None).and_then(|client| {
            let client = client.giving_up_after(GRACE);
            let bucket = Bucket::open(&self.place, &Arc::new(client))?;
            Ok(bucket.abort(key, id))
        });
    }

    fn key(&self, path: &str) -> Result<ObjectPath> {
        let key = format!("{}/{path}", self.place.prefix);
        ObjectPath::parse(&key).map_err(|e| FormatError::malformed(&self.name(path), e.to_string()))
    }

    /// As messages name it.
    fn name(&self, path: &str) -> PathBuf {
        PathBuf::from(self.place.to_string()).join(path)
    }

    fn until<T>(
        &self,
        path: &str,
        send: impl FnMut() -> std::result::Result<T, Trouble>,
    ) -> Result<T> {
        let name = self.name(path);
        let sent = self
            .client
            .until(&name.display().to_string(), self.job, send);
        sent.map_err(|e| upload_error(&name, e))
    }

    /// Ends the connections of `work` once the user wants to stop, and so much later. What is done by
    /// then is done.
    fn watched<T>(&self, grace: Duration, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let halt = CancelToken::new();
        let done = self.client.ended_after(grace, self.job, &halt, work);
        if done.is_err() {
            self.job.stop.check()?; // what the end of the connections broke is no error
        }
        done
    }
}

/// Whether packs are written to such stores. To Google's they are not: no server that is at hand takes
/// objects in parts as it does, so that this could not be tried.
fn is_written_to(kind: StoreKind) -> bool {
    match kind {
        StoreKind::S3 | StoreKind::Azure => true,
        StoreKind::Google => false,
    }
}

/// The parts of a file of this length.
fn ranges(length: u64, part_bytes: u64) -> Vec<Range<u64>> {
    let starts = (0..length.div_ceil(part_bytes)).map(|n| n * part_bytes);
    starts.map(|s| s..(s + part_bytes).min(length)).collect()
}

/// Whatever goes wrong at an output is of the environment.
fn upload_error(name: &Path, error: RemoteError) -> FormatError {
    match error {
        RemoteError::Interrupted => FormatError::Interrupted,
        error => FormatError::io("upload to", name)(std::io::Error::other(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_a_file() {
        assert_eq!(ranges(13, 10), [0..10, 10..13]);
        assert_eq!(ranges(20, 10), [0..10, 10..20]);
        assert!(ranges(0, 10).is_empty());
    }
}
