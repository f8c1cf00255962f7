//! A whole file of a server, brought to the disk by several connections.
//!
//! Beside the file lies a list of its parts that are there and synced, so that a later run asks only
//! for the others. Nothing believes the bytes because of that list: whoever fetched the file digests
//! it.

use std::collections::{BTreeSet, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::thread;

use segpack_formats::io::{CancelToken, EntryKind, ReadAt, entry_kind, sync_data, write_all_at};
use segpack_formats::{FormatError, Result};

use super::file::RemoteFile;
use super::rate::Limit;
use crate::work::{Job, into_inner, lock};

/// How files are fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fetching {
    /// Connections at the same time, at least one.
    pub connections: usize,
    /// Bytes a second at most, of all connections together.
    pub rate: Option<u64>,
}

/// The list of parts that lies beside a file.
pub(crate) fn list_of(path: &Path) -> PathBuf {
    path.with_extension("parts")
}

/// Fetches a file to `path`, or what an earlier run has left to fetch of it. Progress is in bytes of
/// the file.
///
/// # Errors
/// As [`RemoteFile::receive`]; `Io` on the disk.
pub(crate) fn fetch(
    file: &RemoteFile,
    path: &Path,
    settings: Fetching,
    job: Job<'_>,
) -> Result<()> {
    let (parts, done) = Parts::open(file, path)?;
    let there: u64 = done.iter().map(|n| bytes_of(&parts.range(*n))).sum();
    job.progress.advance(there);
    let halt = CancelToken::default();
    let fetch = Fetch {
        file,
        path,
        to: &parts.file,
        limit: Limit::new(settings.rate),
        job: Job { stop: &halt, ..job },
    };
    file.client().watched(job, &halt, || {
        if file.is_without_ranges() {
            fetch.whole(&parts, there)
        } else {
            fetch.by_parts(&parts, &done, settings.connections, &halt)
        }
    })?
}

/// First and one-past-last byte of a part.
fn part(number: u64, part_bytes: u64, length: u64) -> Range<u64> {
    let start = number.saturating_mul(part_bytes).min(length);
    start..start.saturating_add(part_bytes).min(length)
}

fn bytes_of(range: &Range<u64>) -> u64 {
    range.end.saturating_sub(range.start)
}

/// One file on its way to the disk.
struct Fetch<'a> {
    file: &'a RemoteFile,
    path: &'a Path,
    to: &'a File,
    limit: Limit,
    job: Job<'a>,
}

impl Fetch<'_> {
    fn range(&self, range: Range<u64>) -> Result<()> {
        let mut at = range.start;
        self.file.receive(range, self.job, &mut |piece| {
            self.limit.wait(piece.len() as u64, self.job.stop);
            write_all_at(self.to, piece, at).map_err(FormatError::io("write", self.path))?;
            at += piece.len() as u64;
            self.job.progress.advance(piece.len() as u64);
            Ok(())
        })
    }

    /// From a server without ranges: all of it in one answer.
    fn whole(&self, parts: &Parts, counted: u64) -> Result<()> {
        let length = self.file.length();
        if counted == length {
            return Ok(());
        }
        self.range(0..length)?;
        parts.numbers().try_for_each(|number| parts.add(number))
    }

    fn by_parts(
        &self,
        parts: &Parts,
        done: &BTreeSet<u64>,
        connections: usize,
        halt: &CancelToken,
    ) -> Result<()> {
        let missing: VecDeque<u64> = parts.numbers().filter(|n| !done.contains(n)).collect();
        let threads = connections.clamp(1, missing.len().max(1));
        let queue = Mutex::new(missing);
        let failed = Mutex::new(None);
        let work = || {
            if let Err(e) = self.take_parts(parts, &queue) {
                lock(&failed).get_or_insert(e);
                halt.cancel(); // the others need not go on
            }
        };
        thread::scope(|scope| {
            for _ in 1..threads {
                // with fewer threads it takes longer
                let _ = thread::Builder::new().spawn_scoped(scope, work);
            }
            work();
        });
        match into_inner(failed) {
            Some(e) => Err(e),
            None => Ok(()),
        }
    }

    fn take_parts(&self, parts: &Parts, queue: &Mutex<VecDeque<u64>>) -> Result<()> {
        loop {
            let Some(number) = lock(queue).pop_front() else {
                return Ok(());
            };
            self.job.stop.check()?;
            self.range(parts.range(number))?;
            parts.add(number)?;
        }
    }
}

/// The file on the disk, and the list of its parts that are there.
struct Parts {
    file: File,
    path: PathBuf,
    list: Mutex<File>,
    list_path: PathBuf,
    part_bytes: u64,
    length: u64,
}

impl Parts {
    /// Opens both; also returns the parts that an earlier run fetched of the same file.
    fn open(remote: &RemoteFile, path: &Path) -> Result<(Self, BTreeSet<u64>)> {
        let list_path = list_of(path);
        let (length, part_bytes) = (remote.length(), remote.client().part_bytes());
        let first_line = format!("{length} {part_bytes} {:?}\n", remote.stamp().tag);
        for path in path.parent().into_iter().chain([path, &*list_path]) {
            if entry_kind(path)? == Some(EntryKind::Link) {
                let path = path.to_owned();
                return Err(FormatError::Link { path });
            }
        }
        let text = fs::read_to_string(&list_path).unwrap_or_default();
        let known = text.strip_prefix(&first_line).filter(|_| path.exists());
        let done: BTreeSet<u64> = known.map(parts_in).unwrap_or_default();
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(FormatError::io("create", folder))?;
        }
        let open = |path: &Path| {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false);
            options.open(path).map_err(FormatError::io("create", path))
        };
        let file = open(path)?;
        file.set_len(length)
            .map_err(FormatError::io("write", path))?;
        let mut list = open(&list_path)?;
        let mut new = first_line;
        done.iter().for_each(|n| new.push_str(&format!("{n}\n")));
        list.set_len(0)
            .and_then(|()| list.write_all(new.as_bytes()))
            .map_err(FormatError::io("write", &list_path))?;
        let parts = Self {
            file,
            path: path.to_owned(),
            list: Mutex::new(list),
            list_path,
            part_bytes,
            length,
        };
        Ok((parts, done))
    }

    /// The numbers of all parts.
    fn numbers(&self) -> Range<u64> {
        0..self.length.div_ceil(self.part_bytes)
    }

    fn range(&self, number: u64) -> Range<u64> {
        part(number, self.part_bytes, self.length)
    }

    /// A part is there: synced before the list says so.
    fn add(&self, number: u64) -> Result<()> {
        sync_data(&self.file, &self.path)?;
        let mut list = lock(&self.list);
        list.write_all(format!("{number}\n").as_bytes())
            .map_err(FormatError::io("write", &self.list_path))
    }
}

/// The numbers in whole lines; a line that was cut off does not count.
fn parts_in(text: &str) -> BTreeSet<u64> {
    let lines = text.split_inclusive('\n');
    lines
        .filter_map(|line| line.strip_suffix('\n')?.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::client::Client;
    use super::super::file::{Address, Identity};
    use super::*;

    #[test]
    fn parts_cover_a_file_and_a_line_that_was_cut_off_is_none() {
        assert_eq!(part(0, 10, 5), 0..5);
        assert_eq!(part(1, 10, 13), 10..13);
        assert_eq!(part(u64::MAX, 10, 13), 13..13);
        assert_eq!(parts_in("0\n3\n12"), BTreeSet::from([0, 3]));
        assert_eq!(parts_in("\0\0\n7\n"), BTreeSet::from([7]));
    }

    #[test]
    #[cfg(unix)]
    fn nothing_is_written_through_a_link() {
        let folder = tempfile::tempdir().unwrap();
        let [target, path] = ["target", "shard"].map(|name| folder.path().join(name));
        fs::write(&target, b"precious").unwrap();
        std::os::unix::fs::symlink(&target, &path).unwrap();
        let client = Arc::new(Client::new(None).unwrap());
        let address = Address::Web("http://localhost/".to_owned());
        let identity = Identity {
            length: 4,
            ..Identity::default()
        };
        let file = RemoteFile::new(client, "shard".into(), address, identity);
        let opened = Parts::open(&file, &path).map(drop);
        assert!(
            matches!(opened, Err(FormatError::Link { .. })),
            "{opened:?}"
        );
        assert_eq!(fs::read(&target).unwrap(), b"precious");
    }
}
