//! Positioned reads of files that may be hostile, shrinking or huge.
//!
//! Nothing here maps file contents: a file that shrinks while it is read is an error, not a signal.

use std::fs::{File, Metadata};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use crate::{FormatError, Result};

mod direct;
mod sequential;

pub use direct::{DIRECT_ALIGNMENT, DirectFile, ReadPath, outward};
pub use sequential::{SequentialWriter, WriteBuffer};

/// Bytes read at a time: small enough that several digests of one piece are taken from the L2
/// cache.
pub const READ_BYTES: usize = 512 << 10;

/// A regular file, opened for positioned reads, with the length it had when it was opened.
#[derive(Debug)]
pub struct InputFile {
    file: File,
    path: PathBuf,
    stamp: Stamp,
}

/// What tells whether a file is still the one that was opened: its length and time of change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Length in bytes.
    pub length: u64,
    /// Time of the last modification, where the file system has one.
    pub modified: Option<SystemTime>,
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            length: metadata.len(),
            modified: metadata.modified().ok(),
        }
    }
}

impl InputFile {
    /// Opens a regular file (links are followed).
    ///
    /// # Errors
    /// `Io` where it cannot be opened, `Malformed` where it is a folder, pipe or device.
    pub fn open(path: &Path) -> Result<Self> {
        let file = open_for_reading(path).map_err(FormatError::io("open", path))?;
        let metadata = file
            .metadata()
            .map_err(FormatError::io("read the length of", path))?;
        if !metadata.is_file() {
            return Err(FormatError::malformed(path, "is not a regular file"));
        }
        Ok(Self {
            file,
            path: path.to_owned(),
            stamp: Stamp::of(&metadata),
        })
    }

    /// Length in bytes when the file was opened.
    pub fn length(&self) -> u64 {
        self.stamp.length
    }

    /// Length and time of change when the file was opened.
    pub fn stamp(&self) -> Stamp {
        self.stamp
    }

    /// The path that it was opened under.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Fills `to` with the bytes from `offset` on.
    ///
    /// # Errors
    /// `Changed` where the file ends before that, `Io` where the read fails.
    pub fn read_at(&self, to: &mut [u8], offset: u64) -> Result<()> {
        read_exact_at(&self.file, to, offset).map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => FormatError::changed(
                &self.path,
                format!(
                    "ends before byte {}; it had {} bytes when it was opened: it was cut or changed while being read",
                    offset.saturating_add(to.len() as u64),
                    self.stamp.length
                ),
            ),
            _ => FormatError::Io { action: "read", path: self.path.clone(), source: e },
        })
    }

    /// The bytes of a range, in one new buffer. For headers and other small things.
    ///
    /// # Errors
    /// As [`read_at`](Self::read_at).
    pub fn read_range(&self, range: Range<u64>) -> Result<Vec<u8>> {
        let length = usize::try_from(range.end.saturating_sub(range.start))
            .map_err(|_| FormatError::malformed(&self.path, "range does not fit into memory"))?;
        let mut bytes = vec![0; length];
        self.read_at(&mut bytes, range.start)?;
        Ok(bytes)
    }

    /// Passes the bytes of a range to `take`, a piece at a time, through the reused `buffer`.
    ///
    /// # Errors
    /// As [`read_at`](Self::read_at); `Interrupted` once `stop` is set; whatever `take` returns.
    pub fn for_each_piece<E: From<FormatError>>(
        &self,
        range: Range<u64>,
        buffer: &mut [u8],
        stop: &CancelToken,
        mut take: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut at = range.start;
        while at < range.end {
            stop.check()?;
            let piece = (range.end - at).min(buffer.len() as u64);
            let piece = &mut buffer[..usize::try_from(piece).unwrap_or(usize::MAX)];
            self.read_at(piece, at)?;
            take(piece)?;
            at += piece.len() as u64;
        }
        Ok(())
    }

    /// Asks whether the file on disk is still the one that was opened.
    ///
    /// # Errors
    /// `Changed` where its length or time of modification differ.
    pub fn check_unchanged(&self) -> Result<()> {
        let metadata = self
            .file
            .metadata()
            .map_err(FormatError::io("read the length of", &self.path))?;
        if Stamp::of(&metadata) == self.stamp {
            return Ok(());
        }
        Err(FormatError::changed(
            &self.path,
            format!(
                "changed while it was being read ({} bytes before, {} now); start again once nothing writes to it",
                self.stamp.length,
                metadata.len()
            ),
        ))
    }

    /// Tells the operating system that these bytes will be needed soon. Only a hint.
    pub fn will_need(&self, range: Range<u64>) {
        advise_will_need(&self.file, range);
    }
}

impl InputFile {
    /// Asks the operating system to drop the file's clean pages from its cache: the next read comes
    /// from the drive. Only a hint; what is not written yet stays.
    pub fn forget(&self) {
        #[cfg(any(target_os = "linux", target_os = "android"))]
        let _ = rustix::fs::fadvise(&self.file, 0, None, rustix::fs::Advice::DontNeed);
    }
}

/// Opens without ever blocking on a pipe that has no writer.
#[cfg(unix)]
fn open_for_reading(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let flags = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or(0);
    File::options().read(true).custom_flags(flags).open(path)
}

#[cfg(not(unix))]
fn open_for_reading(path: &Path) -> io::Result<File> {
    File::open(path)
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

/// Writes all of `bytes` at `offset`, whatever the file's cursor.
///
/// # Errors
/// As the operating system's.
#[cfg(unix)]
pub fn write_all_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, offset)
}

/// Writes all of `bytes` at `offset`, whatever the file's cursor.
///
/// # Errors
/// As the operating system's.
#[cfg(windows)]
pub fn write_all_at(file: &File, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        let n = std::os::windows::fs::FileExt::seek_write(file, bytes, offset)?;
        bytes = &bytes[n..];
        offset += n as u64;
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

/// Makes a folder's entries durable after a rename. Does nothing where folders cannot be synced.
///
/// # Errors
/// `Io` where the folder cannot be opened or synced.
pub fn sync_folder(path: &Path) -> Result<()> {
    if cfg!(unix) {
        let folder = File::open(path).map_err(FormatError::io("open", path))?;
        folder.sync_all().map_err(FormatError::io("sync", path))?;
    }
    Ok(())
}

/// A request to stop, polled between pieces of work.
#[derive(Debug, Default)]
pub struct CancelToken(AtomicBool);

impl CancelToken {
    /// Asks everything that polls this to stop.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether a stop was asked for.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// # Errors
    /// `Interrupted` once a stop was asked for.
    pub fn check(&self) -> Result<()> {
        if self.is_cancelled() {
            Err(FormatError::Interrupted)
        } else {
            Ok(())
        }
    }
}

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

    #[test]
    fn pieces_cover_the_range_and_stop_when_asked() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        let bytes: Vec<u8> = (0..=255).collect();
        std::fs::write(&path, &bytes).unwrap();
        let input = InputFile::open(&path).unwrap();
        let (mut seen, stop) = (Vec::new(), CancelToken::default());
        let take = |seen: &mut Vec<u8>, stop: &CancelToken| {
            input.for_each_piece::<FormatError>(3..200, &mut [0; 17], stop, |piece| {
                seen.extend_from_slice(piece);
                Ok(())
            })
        };
        take(&mut seen, &stop).unwrap();
        assert_eq!(seen, bytes[3..200]);
        stop.cancel();
        assert!(matches!(
            take(&mut seen, &stop),
            Err(FormatError::Interrupted)
        ));
    }

    #[test]
    fn a_folder_is_not_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let error = InputFile::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains("is not a regular file"), "{error}");
    }
}
