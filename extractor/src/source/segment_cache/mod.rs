//! A folder of this machine that keeps segments of packs on servers: as they are stored, each a file
//! under the name of its digest.
//!
//! ```text
//! DIR/CACHEDIR.TAG        says whose folder it is, and that no backup needs it
//! DIR/lock                locked while room is made
//! DIR/4f/4f…c2-183040     a segment: BLAKE3 and length of its stored bytes
//! DIR/partial/…           one that is being received, locked by who receives it
//! ```
//!
//! Several processes may share it. The digest of a segment is compared before it gets its name, and
//! again by every process that takes it. What was not used for longest makes room.

mod error;
mod files;
mod room;

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use segpack_formats::digest::{Blake3, Blake3Hasher};
use segpack_formats::io::{
    EntryKind, InputFile, READ_BYTES, create_beneath, entry_kind, has_no_locks, open_beneath,
    remove_beneath, rename_beneath, write_all_at,
};
use segpack_formats::{FormatError, Result};

pub use error::SegmentCacheError;
pub(crate) use files::CachedFiles;

use crate::work::{Job, lock};

/// The file that makes a folder a cache (<https://bford.info/cachedir/>).
const TAG: &str = "CACHEDIR.TAG";
/// What it is called while it is written, before the number of the process.
const NEW_TAG: &str = ".CACHEDIR.TAG.";
/// What it says.
const TAG_TEXT: &str = "Signature: 8a477f597d28d172789f06886806bc55\n\
# Segments of packs on servers, kept by segpack. Everything here can be deleted.\n";
/// The file that is locked while room is made.
const LOCK: &str = "lock";
/// The folder of segments that are being received.
const PARTIAL: &str = "partial";
/// That a segment was used is recorded again after so long.
const USED_EVERY: Duration = Duration::from_secs(10);

/// What a segment is called: its digest and length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    blake3: Blake3,
    length: u64,
}

impl Key {
    /// Its path below the cache's folder.
    fn path(self) -> String {
        let digest = self.blake3.to_string();
        format!("{}/{digest}-{}", &digest[..2], self.length)
    }
}

/// A segment that was taken, and when that was recorded.
type Slot = Mutex<Option<(Arc<InputFile>, Instant)>>;

/// The cache, as this process uses it.
#[derive(Debug)]
pub(crate) struct SegmentCache {
    folder: PathBuf,
    /// Bytes that all segments together may have.
    limit: u64,
    /// Says when to stop, and hears of what was thrown away.
    job: Job<'static>,
    taken: Mutex<HashMap<Key, Arc<Slot>>>,
    /// Names what is being received.
    count: AtomicU64,
}

/// Gives the bytes of a segment, in order.
type Fetch<'f> = &'f dyn Fn(&mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()>;

impl SegmentCache {
    /// Opens a cache, or makes one of a folder that is empty or not there.
    ///
    /// # Errors
    /// `NotACache` where the folder holds something else; `Format` where it cannot be read or
    /// written.
    pub(crate) fn open(
        folder: &Path,
        limit: u64,
        job: Job<'static>,
    ) -> std::result::Result<Self, SegmentCacheError> {
        fs::create_dir_all(folder).map_err(FormatError::io("create", folder))?;
        if !is_tagged(folder)? {
            if is_empty(folder)? {
                tag(folder)?;
            } else if !is_tagged(folder)? {
                // nor has another process made it one since
                let folder = folder.to_owned();
                return Err(SegmentCacheError::NotACache { folder });
            }
        }
        Ok(Self {
            folder: folder.to_owned(),
            limit,
            job,
            taken: Mutex::default(),
            count: AtomicU64::new(0),
        })
    }

    /// A segment as a file: that of the cache, or what `fetch` gives, which is kept. `None` where the
    /// cache has no room for it.
    ///
    /// # Errors
    /// `Malformed`, for `name`, where what was fetched has another digest; those of `fetch`; `Io`.
    fn get(&self, key: Key, name: &Path, fetch: Fetch<'_>) -> Result<Option<Arc<InputFile>>> {
        let slot = Arc::clone(lock(&self.taken).entry(key).or_default());
        // threads that want the same segment wait here for the one that fetches it
        let mut slot = lock(&slot);
        if let Some((file, used)) = &mut *slot {
            if used.elapsed() > USED_EVERY {
                self.record_use(key);
                *used = Instant::now();
            }
            return Ok(Some(Arc::clone(file)));
        }
        let found = match self.take(key)? {
            Some(file) => Some(file),
            None => self.put(key, name, fetch)?,
        };
        let file = found.map(Arc::new);
        *slot = file.clone().map(|file| (file, Instant::now()));
        Ok(file)
    }

    /// Another process has made room of a segment: it is taken or fetched anew.
    fn forget(&self, key: Key) {
        lock(&self.taken).remove(&key);
    }

    /// The segment that the cache holds. What is damaged, or no segment, is thrown away.
    fn take(&self, key: Key) -> Result<Option<InputFile>> {
        let path = key.path();
        match entry_kind(&self.folder.join(&path))? {
            None => return Ok(None),
            Some(EntryKind::File) => {}
            Some(EntryKind::Link | EntryKind::Folder | EntryKind::Other) => {
                self.throw_away(&path, "is no file")?;
                return Ok(None);
            }
        }
        let file = match InputFile::open_beneath(&self.folder, &path) {
            // another process has made room of it
            Err(FormatError::Io { source, .. })
                if source.kind() == std::io::ErrorKind::NotFound =>
            {
                return Ok(None);
            }
            opened => opened?,
        };
        let mut blake3 = Blake3Hasher::default();
        if file.length() == key.length {
            let mut buffer = vec![0; READ_BYTES];
            file.for_each_piece(0..key.length, &mut buffer, self.job.stop, |piece| {
                blake3.update(piece);
                Ok::<_, FormatError>(())
            })?;
        }
        if file.length() != key.length || blake3.finish() != key.blake3 {
            self.throw_away(&path, "is damaged")?;
            return Ok(None);
        }
        self.record_use(key);
        Ok(Some(file))
    }

    fn throw_away(&self, path: &str, why: &str) -> Result<()> {
        let at = self.folder.join(path);
        let line = format!(
            "segment cache: {} {why}; it is thrown away and fetched again",
            at.display()
        );
        self.job.progress.note(&line);
        remove_beneath(&self.folder, path)
    }

    /// What was used last stays longest.
    fn record_use(&self, key: Key) {
        // where the time cannot be set, the segment only goes earlier
        let file = open_beneath(&self.folder, &key.path());
        let _ = file.map(|file| file.set_modified(SystemTime::now()));
    }

    /// Fetches a segment and keeps it.
    fn put(&self, key: Key, name: &Path, fetch: Fetch<'_>) -> Result<Option<InputFile>> {
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        let partial = format!("{PARTIAL}/{}-{number}", std::process::id());
        let Some(file) = self.reserve(key.length, &partial)? else {
            return Ok(None);
        };
        let put = self
            .receive(key, name, &file, fetch)
            .and_then(|()| rename_beneath((&self.folder, &partial), (&self.folder, &key.path())));
        if let Err(e) = put {
            remove_beneath(&self.folder, &partial)?;
            return Err(e);
        }
        Ok(Some(InputFile::open_beneath(&self.folder, &key.path())?))
    }

    /// Writes what is fetched to a file, and compares its digest.
    fn receive(&self, key: Key, name: &Path, to: &File, fetch: Fetch<'_>) -> Result<()> {
        let (mut blake3, mut at) = (Blake3Hasher::default(), 0);
        fetch(&mut |piece| {
            blake3.update(piece);
            write_all_at(to, piece, at).map_err(FormatError::io("write to", &self.folder))?;
            at += piece.len() as u64;
            Ok(())
        })?;
        let (seen, wanted) = (blake3.finish(), key.blake3);
        if seen == wanted {
            return Ok(());
        }
        let what = format!("a segment of it is damaged: BLAKE3 {seen}, wanted {wanted}");
        Err(FormatError::malformed(name, what))
    }

    /// A file of `length` bytes, which count from now on; `None` where there is no room for them.
    fn reserve(&self, length: u64, partial: &str) -> Result<Option<File>> {
        if length > self.limit {
            return Ok(None);
        }
        let guard = create_beneath(&self.folder, LOCK)?;
        locked(&guard, &self.folder.join(LOCK))?;
        if !self.make_room(length)? {
            return Ok(None);
        }
        let file = create_beneath(&self.folder, partial)?;
        let at = self.folder.join(partial);
        locked(&file, &at)?;
        file.set_len(length).map_err(FormatError::io("write", at))?;
        Ok(Some(file))
    }
}

/// Whether a folder says that it is a cache of segments.
fn is_tagged(folder: &Path) -> Result<bool> {
    match InputFile::open_beneath(folder, TAG) {
        Err(FormatError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            Ok(false)
        }
        opened => {
            let tag = opened?;
            let length = tag.length().min(TAG_TEXT.len() as u64);
            Ok(tag.read_range(0..length)? == TAG_TEXT.as_bytes())
        }
    }
}

/// Whether a folder holds nothing, but for tags that other processes are writing.
fn is_empty(folder: &Path) -> Result<bool> {
    let list = FormatError::io("list", folder);
    let names = fs::read_dir(folder).and_then(|entries| {
        let names = entries.map(|entry| entry.map(|e| e.file_name()));
        names.collect::<std::io::Result<Vec<_>>>()
    });
    let is_new_tag = |name: &OsString| name.to_string_lossy().starts_with(NEW_TAG);
    names
        .map_err(list)
        .map(|names| names.iter().all(is_new_tag))
}

/// Makes an empty folder a cache. The tag appears whole: another process may look for it.
fn tag(folder: &Path) -> Result<()> {
    let new = format!("{NEW_TAG}{}", std::process::id());
    let written = create_beneath(folder, &new)?.write_all(TAG_TEXT.as_bytes());
    written.map_err(FormatError::io("write", folder.join(&new)))?;
    let renamed = fs::rename(folder.join(&new), folder.join(TAG));
    renamed.map_err(FormatError::io("rename", folder.join(&new)))
}

/// Waits for the lock of a file, which is released when the file is closed.
fn locked(file: &File, path: &Path) -> Result<()> {
    match file.lock() {
        // some file systems have no locks: then two processes together may pass the limit
        Err(e) if !has_no_locks(&e) => Err(FormatError::io("lock", path)(e)),
        _ => Ok(()),
    }
}
