//! The files of a pack on a server, read by ranges.
//!
//! A hub and an object store list their files. A web folder does not: a file of it is asked for when it is first named,
//! and is pinned then by its length and its entity tag.
//!
//! Nobody but [`SegmentReader`](segpack_formats::pack::SegmentReader) and the loader knows which
//! bytes are needed, so what they ask for is what is fetched. Whoever reads a file from its front to
//! its back in small pieces ([`Ahead`]) gets larger and larger ones, but never beyond a segment.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};

use segpack_formats::io::{MemoryFile, ReadAt, Stamp, to_usize};
use segpack_formats::{FormatError, Result};
use segpack_manifests::documents::Manifest;
use segpack_manifests::folder::{AlignedFile, PackFiles};

use super::client::Client;
use super::file::as_format_error;
use super::{Entry, Remote, RemoteError, RemoteFile, Requests, web_folder};
use crate::source::place::RemotePlace;
use crate::work::{Job, lock};

/// A file that has at most so many bytes, and holds no segments, is fetched as a whole and kept.
const SMALL_BYTES: u64 = 1 << 20;
/// Bytes that a file which is read from its front to its back is asked for at first.
const FIRST_AHEAD: u64 = 256 << 10;
/// Bytes that it is asked for at most.
const MOST_AHEAD: u64 = 4 << 20;
/// Bytes of all files together that were fetched ahead and are kept.
const KEPT_BYTES: usize = 64 << 20;
/// Files that a hub puts into each repository, which are no part of a pack.
const OF_THE_HUB: [&str; 1] = [".gitattributes"];

/// Where each segment of a file ends, sorted, by the path of the file.
type Ends = BTreeMap<String, Vec<u64>>;

/// The files of a pack on a server.
#[derive(Debug)]
pub(crate) struct RemotePack {
    place: Place,
    job: Job<'static>,
    ends: OnceLock<Ends>,
    small: Mutex<BTreeMap<String, Arc<Vec<u8>>>>,
    ahead: Arc<Ahead>,
}

#[derive(Debug)]
enum Place {
    /// One that lists what it has.
    Listed(Remote),
    /// One that does not.
    Folder(WebFolder),
}

/// A folder of a web server, of whose files those are known that were asked for.
#[derive(Debug)]
struct WebFolder {
    /// Ends in `/`.
    url: String,
    name: PathBuf,
    client: Arc<Client>,
    job: Job<'static>,
    known: Mutex<BTreeMap<String, Option<Entry>>>,
}

impl RemotePack {
    /// Finds out what a repository holds; of a folder nothing is asked yet. `job` says when to stop,
    /// and hears of requests that are sent again.
    ///
    /// # Errors
    /// Where there is no repository, or nothing can be asked.
    pub(crate) fn open(
        place: &RemotePlace,
        job: Job<'static>,
    ) -> std::result::Result<Self, RemoteError> {
        let place = match place {
            RemotePlace::Folder(url) => Place::Folder(WebFolder {
                url: url.clone(),
                name: PathBuf::from(url.trim_end_matches('/')),
                client: Arc::new(Client::new(None)?),
                job,
                known: Mutex::default(),
            }),
            listed @ (RemotePlace::Hub { .. } | RemotePlace::Objects(_)) => {
                Place::Listed(Remote::open(listed, job)?)
            }
        };
        let opened = Self {
            place,
            job,
            ends: OnceLock::new(),
            small: Mutex::default(),
            ahead: Arc::default(),
        };
        Requests(Arc::clone(opened.client())).end_with(job);
        Ok(opened)
    }

    /// Says where segments are: nothing beyond one is fetched for its sake.
    pub(crate) fn learn(&self, manifest: &Manifest) {
        let mut ends = Ends::new();
        for segment in &manifest.segments {
            let of_file = ends.entry(segment.pack.clone()).or_default();
            // the header ends where the first segment begins
            of_file.extend([segment.offset, segment.offset + segment.stored_length]);
        }
        for of_file in ends.values_mut() {
            of_file.sort_unstable();
            of_file.dedup();
        }
        // who is told twice is told the same
        let _ = self.ends.set(ends);
    }

    fn client(&self) -> &Arc<Client> {
        match &self.place {
            Place::Listed(remote) => &remote.client,
            Place::Folder(folder) => &folder.client,
        }
    }

    fn file(&self, path: &str) -> Result<RemoteFile> {
        match &self.place {
            Place::Listed(remote) => remote.file(path),
            Place::Folder(folder) => folder.file(path),
        }
    }

    fn open_whole(&self, path: &str, is_read_ahead: bool) -> Result<Arc<dyn ReadAt>> {
        let name = self.root().join(path);
        let known = lock(&self.small).get(path).cloned();
        if let Some(bytes) = known {
            return Ok(Arc::new(MemoryFile::new(name, (*bytes).clone())));
        }
        let ends = self.ends.get().and_then(|ends| ends.get(path));
        let file = PackFile {
            file: self.file(path)?,
            job: self.job,
            ends: ends.cloned().unwrap_or_default(),
            ahead: is_read_ahead.then(|| Arc::clone(&self.ahead)),
        };
        if !file.ends.is_empty() || file.length() > SMALL_BYTES {
            return Ok(Arc::new(file));
        }
        let bytes = file.read_range(0..file.length())?;
        lock(&self.small).insert(path.to_owned(), Arc::new(bytes.clone()));
        Ok(Arc::new(MemoryFile::new(name, bytes)))
    }
}

impl PackFiles for RemotePack {
    fn root(&self) -> &Path {
        match &self.place {
            Place::Listed(remote) => &remote.name,
            Place::Folder(folder) => &folder.name,
        }
    }

    fn has(&self, path: &str) -> Result<bool> {
        Ok(self.length(path)?.is_some())
    }

    fn length(&self, path: &str) -> Result<Option<u64>> {
        match &self.place {
            Place::Listed(remote) => Ok(remote.length(path)),
            Place::Folder(folder) => Ok(folder.entry(path)?.map(|e| e.identity.length)),
        }
    }

    fn paths(&self) -> Result<Option<Vec<String>>> {
        Ok(match &self.place {
            Place::Listed(remote) => {
                let of_pack = |path: &&String| !OF_THE_HUB.contains(&path.as_str());
                Some(remote.paths().filter(of_pack).cloned().collect())
            }
            Place::Folder(_) => None,
        })
    }

    fn open(&self, path: &str) -> Result<Arc<dyn ReadAt>> {
        self.open_whole(path, true)
    }

    /// Read by several threads at once, each the bytes that it needs: none is read ahead.
    fn open_direct(&self, path: &str) -> Result<AlignedFile> {
        Ok(AlignedFile::Elsewhere(self.open_whole(path, false)?))
    }
}

impl WebFolder {
    /// What the server says of a file; asked once.
    fn entry(&self, path: &str) -> Result<Option<Entry>> {
        let known = lock(&self.known).get(path).cloned();
        if let Some(known) = known {
            return Ok(known);
        }
        let requested = web_folder::entry(&self.client, &self.url, path, self.job);
        let requested = requested.map_err(|e| as_format_error(&self.name.join(path), e))?;
        // of two threads that ask at once, both read what the first one saw
        let mut known = lock(&self.known);
        Ok(known.entry(path.to_owned()).or_insert(requested).clone())
    }

    fn file(&self, path: &str) -> Result<RemoteFile> {
        let name = self.name.join(path);
        let Some(Entry { address, identity }) = self.entry(path)? else {
            let missing = std::io::ErrorKind::NotFound.into();
            return Err(FormatError::io("open", name)(missing));
        };
        let client = Arc::clone(&self.client);
        Ok(RemoteFile::new(client, name, address, identity))
    }
}

/// A file of a pack on a server.
#[derive(Debug)]
struct PackFile {
    file: RemoteFile,
    job: Job<'static>,
    /// Where segments end, sorted.
    ends: Vec<u64>,
    /// `None` where only what is asked for is fetched.
    ahead: Option<Arc<Ahead>>,
}

/// What was fetched ahead, of all files; the newest last.
#[derive(Debug, Default)]
struct Ahead(Mutex<VecDeque<Piece>>);

/// Bytes of a file from `start` on.
#[derive(Debug, Clone)]
struct Piece {
    file: PathBuf,
    start: u64,
    bytes: Arc<Vec<u8>>,
}

impl Piece {
    fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }
}

impl Ahead {
    /// The piece that has this byte.
    fn with(&self, file: &Path, at: u64) -> Option<Piece> {
        let kept = lock(&self.0);
        let has = |p: &&Piece| p.start <= at && at < p.end() && p.file == file;
        kept.iter().find(has).cloned()
    }

    /// How long the piece is that ends at this byte. It is not needed any more.
    fn take_before(&self, file: &Path, at: u64) -> Option<u64> {
        let mut kept = lock(&self.0);
        let found = kept.iter().position(|p| p.end() == at && p.file == file)?;
        kept.remove(found).map(|piece| piece.bytes.len() as u64)
    }

    fn keep(&self, piece: Piece) {
        let mut kept = lock(&self.0);
        kept.push_back(piece);
        let mut bytes: usize = kept.iter().map(|p| p.bytes.len()).sum();
        while bytes > KEPT_BYTES && kept.len() > 1 {
            bytes -= kept.pop_front().map_or(0, |p| p.bytes.len());
        }
    }
}

impl PackFile {
    /// Fills `to` with what is fetched now.
    fn fetch(&self, to: &mut [u8], offset: u64) -> Result<()> {
        let (end, mut at) = (offset + to.len() as u64, 0);
        self.file.receive(offset..end, self.job, &mut |piece| {
            to[at..at + piece.len()].copy_from_slice(piece);
            at += piece.len();
            Ok(())
        })
    }

    /// Where the segment, or what lies between two, ends that has this byte.
    fn end_at(&self, offset: u64) -> u64 {
        let next = self.ends.partition_point(|end| *end <= offset);
        self.ends.get(next).copied().unwrap_or(self.file.length())
    }

    /// Fills the front of `to`, with at least one byte, from what was fetched ahead or is now. How
    /// many bytes.
    fn read_ahead(&self, ahead: &Ahead, to: &mut [u8], offset: u64) -> Result<usize> {
        let name = self.file.name();
        let piece = if let Some(piece) = ahead.with(name, offset) {
            piece
        } else {
            let before = ahead.take_before(name, offset);
            let wanted = before.map_or(FIRST_AHEAD, |length| (2 * length).min(MOST_AHEAD));
            let wanted = wanted.min(self.end_at(offset) - offset);
            if wanted <= to.len() as u64 {
                self.fetch(to, offset)?;
                return Ok(to.len());
            }
            let mut bytes = vec![0; to_usize(wanted)];
            self.fetch(&mut bytes, offset)?;
            let piece = Piece {
                file: name.to_owned(),
                start: offset,
                bytes: Arc::new(bytes),
            };
            ahead.keep(piece.clone());
            piece
        };
        let bytes = &piece.bytes[to_usize(offset - piece.start)..];
        let length = bytes.len().min(to.len());
        to[..length].copy_from_slice(&bytes[..length]);
        Ok(length)
    }
}

impl ReadAt for PackFile {
    fn name(&self) -> &Path {
        self.file.name()
    }

    fn stamp(&self) -> Stamp {
        self.file.stamp()
    }

    fn length(&self) -> u64 {
        self.file.length()
    }

    fn read_at(&self, mut to: &mut [u8], mut offset: u64) -> Result<()> {
        let end = offset.saturating_add(to.len() as u64);
        if end > self.length() {
            return Err(FormatError::ends_early(self.name(), end, self.length()));
        }
        let Some(ahead) = &self.ahead else {
            return self.fetch(to, offset);
        };
        while !to.is_empty() {
            let length = self.read_ahead(ahead, to, offset)?;
            to = &mut to[length..];
            offset += length as u64;
        }
        Ok(())
    }

    fn check_unchanged(&self) -> Result<()> {
        self.file.check_unchanged()
    }
}
