//! Local files.

use std::fs::{File, Metadata};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::handle::{Access, Handle, Place};
use super::{CancelToken, ReadAt, Retried, Stamp};
use crate::error::is_medium;
use crate::{FormatError, Result};

/// How often a read that the drive failed is tried again.
const RETRIES: usize = 2;

/// A regular file, opened for positioned reads, with the length it had when it was opened.
///
/// Where the process has few descriptors, it may be closed between reads.
#[derive(Debug)]
pub struct InputFile {
    handle: Handle,
    path: PathBuf,
    stamp: Stamp,
    retried: Mutex<Vec<Retried>>,
}

fn stamp_of(metadata: &Metadata) -> Stamp {
    Stamp {
        length: metadata.len(),
        modified: metadata.modified().ok(),
        changed: changed_of(metadata),
        tag: None,
    }
}

#[cfg(unix)]
#[expect(clippy::unnecessary_wraps, reason = "other systems do not have it")]
fn changed_of(metadata: &Metadata) -> Option<i128> {
    use std::os::unix::fs::MetadataExt;
    const NANOSECONDS: i128 = 1_000_000_000;
    Some(i128::from(metadata.ctime()) * NANOSECONDS + i128::from(metadata.ctime_nsec()))
}

#[cfg(not(unix))]
fn changed_of(_: &Metadata) -> Option<i128> {
    None
}

impl InputFile {
    /// Opens a regular file (links are followed).
    ///
    /// # Errors
    /// `Io` where it cannot be opened, `Malformed` where it is a folder, pipe or device.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_place(Place::Path(path.to_owned()))
    }

    /// Opens a regular file below a folder, with `/` between the parts of its relative path. No
    /// link is followed on the way from the folder to it.
    ///
    /// # Errors
    /// As [`open`](Self::open); `Link` where a part of the path is one.
    pub fn open_beneath(root: &Path, relative: &str) -> Result<Self> {
        Self::open_place(Place::Beneath(root.to_owned(), relative.to_owned()))
    }

    pub(super) fn open_place(place: Place) -> Result<Self> {
        let path = place.path();
        let (handle, metadata) = Handle::open(place, Access::Buffered)?;
        if !metadata.is_file() {
            return Err(FormatError::malformed(&path, "is not a regular file"));
        }
        Ok(Self {
            handle,
            path,
            stamp: stamp_of(&metadata),
            retried: Mutex::default(),
        })
    }

    /// Length in bytes when the file was opened.
    pub fn length(&self) -> u64 {
        self.stamp.length
    }

    /// The path that it was opened under.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The open file, for calls of the operating system.
    ///
    /// # Errors
    /// `Changed` where it had to be opened again and is another one now; `Io`.
    pub(super) fn file(&self) -> Result<Arc<File>> {
        self.handle.file(|metadata| self.compare(metadata))
    }

    /// Whether a file is still the one that was opened.
    pub(super) fn compare(&self, now: &Metadata) -> Result<()> {
        if stamp_of(now) == self.stamp {
            return Ok(());
        }
        Err(FormatError::changed(
            &self.path,
            format!(
                "changed while it was being read ({} bytes before, {} now); start again once nothing writes to it",
                self.stamp.length,
                now.len()
            ),
        ))
    }

    /// Fills `to` with the bytes from `offset` on. A read that the drive fails is tried again, and
    /// [`retried`](Self::retried) says so.
    ///
    /// # Errors
    /// `Changed` where the file ends before that, `Io` where the read fails.
    pub fn read_at(&self, to: &mut [u8], offset: u64) -> Result<()> {
        let file = self.file()?;
        let mut failed = None;
        loop {
            match read_exact_at(&file, to, offset) {
                Ok(()) => {
                    if let Some((_, error)) = failed {
                        self.note_retry(offset..offset + to.len() as u64, &error);
                    }
                    return Ok(());
                }
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                    let end = offset.saturating_add(to.len() as u64);
                    return Err(FormatError::ends_early(&self.path, end, self.stamp.length));
                }
                Err(e) => {
                    let tries = failed.map_or(0, |(tries, _)| tries);
                    if tries == RETRIES || !is_medium(&e) {
                        return Err(FormatError::io("read", &self.path)(e));
                    }
                    failed = Some((tries + 1, e));
                }
            }
        }
    }

    /// The reads that failed and then did not.
    pub fn retried(&self) -> Vec<Retried> {
        let retried = self.retried.lock();
        retried.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A read failed, but the bytes came another way.
    pub(super) fn note_retry(&self, range: Range<u64>, error: &io::Error) {
        /// A drive that fails all over need not fill the memory, too.
        const MAX: usize = 1000;
        let retried = self.retried.lock();
        let mut retried = retried.unwrap_or_else(PoisonError::into_inner);
        if retried.len() < MAX {
            retried.push(Retried {
                range,
                error: error.to_string(),
            });
        }
    }

    /// The bytes of a range, in one new buffer. For headers and other small things.
    ///
    /// # Errors
    /// As [`ReadAt::read_range`].
    pub fn read_range(&self, range: Range<u64>) -> Result<Vec<u8>> {
        ReadAt::read_range(self, range)
    }

    /// Passes the bytes of a range to `take`, a piece at a time, through the reused `buffer`.
    ///
    /// # Errors
    /// As [`read_at`](Self::read_at); `Interrupted` once `cancel` says so; whatever `take` returns.
    pub fn for_each_piece<E: From<FormatError>>(
        &self,
        range: Range<u64>,
        buffer: &mut [u8],
        cancel: &CancelToken,
        take: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let this: &dyn ReadAt = self;
        this.for_each_piece(range, buffer, cancel, take)
    }

    /// Asks the operating system to drop the file's clean pages from its cache: the next read comes
    /// from the drive. Only a hint; what is not written yet stays.
    pub fn forget(&self) {
        #[cfg(any(target_os = "linux", target_os = "android"))]
        if let Ok(file) = self.file() {
            let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
        }
    }
}

impl ReadAt for InputFile {
    fn name(&self) -> &Path {
        &self.path
    }

    fn stamp(&self) -> Stamp {
        self.stamp.clone()
    }

    fn length(&self) -> u64 {
        self.stamp.length
    }

    fn read_at(&self, to: &mut [u8], offset: u64) -> Result<()> {
        Self::read_at(self, to, offset)
    }

    fn retried(&self) -> Vec<Retried> {
        Self::retried(self)
    }

    fn check_unchanged(&self) -> Result<()> {
        let now = self
            .file()?
            .metadata()
            .map_err(FormatError::io("read the length of", &self.path))?;
        self.compare(&now)
    }

    fn close(&self) {
        self.handle.close();
    }

    fn will_need(&self, range: Range<u64>) {
        if let Ok(file) = self.file() {
            advise_will_need(&file, range);
        }
    }
}

#[cfg(unix)]
fn read_exact_at(file: &File, to: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, to, offset)
}

#[cfg(windows)]
fn read_exact_at(file: &File, mut to: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !to.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, to, offset) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => {
                to = &mut to[n..];
                offset += n as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn advise_will_need(file: &File, range: Range<u64>) {
    if let Some(length) = std::num::NonZeroU64::new(range.end.saturating_sub(range.start)) {
        // a hint: where it fails only time is lost
        let _ = rustix::fs::fadvise(
            file,
            range.start,
            Some(length),
            rustix::fs::Advice::WillNeed,
        );
    }
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn advise_will_need(_: &File, _: Range<u64>) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_shrinks_is_an_error_with_both_lengths() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("shard");
        std::fs::write(&path, [7; 100]).unwrap();
        let input = InputFile::open(&path).unwrap();
        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(40)
            .unwrap();
        let error = input.read_range(0..100).unwrap_err().to_string();
        assert!(
            error.contains("ends before byte 100; it had 100 bytes"),
            "{error}"
        );
        let error = input.check_unchanged().unwrap_err().to_string();
        assert!(error.contains("100 bytes before, 40 now"), "{error}");
    }

    /// Bytes 3 to 200, in pieces of 17.
    fn pieces(input: &InputFile, cancel: &CancelToken) -> Result<Vec<u8>> {
        let mut seen = Vec::new();
        input.for_each_piece::<FormatError>(3..200, &mut [0; 17], cancel, |piece| {
            seen.extend_from_slice(piece);
            Ok(())
        })?;
        Ok(seen)
    }

    #[test]
    fn pieces_cover_the_range_and_stop_when_asked() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        let bytes: Vec<u8> = (0..=255).collect();
        std::fs::write(&path, &bytes).unwrap();
        let input = InputFile::open(&path).unwrap();
        let cancel = CancelToken::default();
        assert_eq!(pieces(&input, &cancel).unwrap(), bytes[3..200]);
        cancel.cancel();
        let stopped = pieces(&input, &cancel);
        assert!(matches!(stopped, Err(FormatError::Interrupted)));
    }

    #[test]
    #[cfg(unix)]
    fn a_change_under_the_old_time_of_modification_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("shard");
        std::fs::write(&path, [7; 100]).unwrap();
        let input = InputFile::open(&path).unwrap();
        input.check_unchanged().unwrap();
        // clocks of file systems tick every few milliseconds
        std::thread::sleep(std::time::Duration::from_millis(20));
        let modified = std::fs::metadata(&path).unwrap().modified().unwrap();
        let writer = File::options().write(true).open(&path).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&writer, &[8], 50).unwrap();
        writer.set_modified(modified).unwrap();
        let error = input.check_unchanged().unwrap_err().to_string();
        assert!(error.contains("changed while"), "{error}");
    }

    #[test]
    fn a_folder_is_not_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let error = InputFile::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains("is not a regular file"), "{error}");
    }
}
