//! Room in a cache of segments: what was not used for longest goes.

use std::fs::TryLockError;
use std::path::Path;
use std::time::SystemTime;

use segpack_formats::Result;
use segpack_formats::io::{open_beneath, remove_beneath};
use walkdir::WalkDir;

use super::{Key, PARTIAL, SegmentCache};
use crate::work::lock;

/// A file that counts.
struct Kept {
    /// Below the cache's folder.
    path: String,
    /// What it is, unless it is being received.
    key: Option<Key>,
    length: u64,
    used: SystemTime,
}

impl SegmentCache {
    /// Removes segments until there is room for `length` more bytes; `false` where that is not
    /// enough, as others are being received. Called with the lock.
    pub(super) fn make_room(&self, length: u64) -> Result<bool> {
        let mut kept = self.list();
        let mut total: u64 = kept.iter().map(|k| k.length).sum();
        kept.sort_by_key(|k| k.used);
        for oldest in kept {
            if total.saturating_add(length) <= self.limit {
                break;
            }
            let Some(key) = oldest.key else {
                continue;
            };
            remove_beneath(&self.folder, &oldest.path)?;
            // whoever reads it at this moment has it open
            lock(&self.taken).remove(&key);
            total -= oldest.length;
        }
        Ok(total.saturating_add(length) <= self.limit)
    }

    /// What there is. Files with other names do not count, and stay.
    fn list(&self) -> Vec<Kept> {
        let walk = WalkDir::new(&self.folder).min_depth(2).max_depth(2);
        // what another process removes meanwhile needs no room
        let files = walk.into_iter().filter_map(std::result::Result::ok);
        let kept = files.filter_map(|entry| {
            let metadata = entry.metadata().ok()?;
            if !metadata.is_file() {
                return None;
            }
            let path = below(entry.path().strip_prefix(&self.folder).ok()?);
            let key = Key::of_path(&path);
            if key.is_none() && (!path.starts_with(PARTIAL) || self.is_left_behind(&path)) {
                return None;
            }
            Some(Kept {
                path,
                key,
                length: metadata.len(),
                used: metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH),
            })
        });
        kept.collect()
    }

    /// Whether nobody receives a segment any more; it is removed then.
    fn is_left_behind(&self, path: &str) -> bool {
        let Ok(file) = open_beneath(&self.folder, path) else {
            return true; // it got its name, or was removed
        };
        match file.try_lock() {
            Ok(()) => remove_beneath(&self.folder, path).is_ok(),
            Err(TryLockError::WouldBlock | TryLockError::Error(_)) => false,
        }
    }
}

/// A path with `/` between its parts.
fn below(path: &Path) -> String {
    let parts: Vec<_> = path.iter().map(|part| part.to_string_lossy()).collect();
    parts.join("/")
}

impl Key {
    /// The segment that has this path; `None` where none has.
    fn of_path(path: &str) -> Option<Self> {
        let (_, name) = path.split_once('/')?;
        let (digest, length) = name.split_once('-')?;
        let key = Self {
            blake3: digest.parse().ok()?,
            length: length.parse().ok()?,
        };
        (key.path() == path).then_some(key)
    }
}
