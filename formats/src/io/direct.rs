//! Reads that go past the page cache, for weights that are read again and again under a memory
//! limit.
//!
//! What lies in the page cache already is taken from there; the rest is read directly where the
//! file system can, and through the page cache where it cannot.

use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use super::handle::Place;
#[cfg(target_os = "linux")]
use super::handle::{Access, Handle};
use super::{InputFile, to_usize};
use crate::{FormatError, Result};

/// Offsets, lengths and memory of direct reads are multiples of this many bytes: it serves every
/// drive in use.
pub const DIRECT_ALIGNMENT: u64 = 4096;
#[cfg(target_os = "linux")]
const ALIGNMENT: usize = 4096;

/// How the bytes of a read came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadPath {
    /// From the drive, past the page cache.
    Direct,
    /// From the page cache, where they were.
    Cached,
    /// Through the page cache: this file system has no direct reads, or the memory was not aligned.
    Buffered,
    /// From something else than a file of this machine.
    Elsewhere,
}

/// A file that can be read past the page cache.
#[derive(Debug)]
pub struct DirectFile {
    file: InputFile,
    #[cfg(target_os = "linux")]
    direct: Option<Handle>,
    refused: AtomicBool,
}

/// A range rounded outward to [`DIRECT_ALIGNMENT`].
pub fn align_outward(range: &Range<u64>) -> Range<u64> {
    let end = range
        .end
        .checked_next_multiple_of(DIRECT_ALIGNMENT)
        .unwrap_or(range.end);
    range.start - range.start % DIRECT_ALIGNMENT..end
}

impl DirectFile {
    /// Opens a regular file both ways; that direct reads are not possible is no error.
    ///
    /// # Errors
    /// As [`InputFile::open`].
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_place(Place::Path(path.to_owned()))
    }

    /// [`open`](Self::open) below a folder, following no link on the way from it.
    ///
    /// # Errors
    /// As [`InputFile::open_beneath`].
    pub fn open_beneath(root: &Path, relative: &str) -> Result<Self> {
        Self::open_place(Place::Beneath(root.to_owned(), relative.to_owned()))
    }

    #[cfg(target_os = "linux")]
    fn open_place(place: Place) -> Result<Self> {
        let file = InputFile::open_place(place.clone())?;
        let direct = Handle::open(place, Access::Direct).ok();
        // between the two, another file may have got the name
        let direct = direct.and_then(|(handle, now)| file.compare(&now).is_ok().then_some(handle));
        Ok(Self {
            file,
            refused: AtomicBool::new(direct.is_none()),
            direct,
        })
    }

    #[cfg(not(target_os = "linux"))]
    fn open_place(place: Place) -> Result<Self> {
        Ok(Self {
            file: InputFile::open_place(place)?,
            refused: AtomicBool::new(true),
        })
    }

    /// The file, for other reads.
    pub fn file(&self) -> &InputFile {
        &self.file
    }

    /// Whether direct reads have worked so far, or have not been tried.
    pub fn is_direct(&self) -> bool {
        !self.refused.load(Ordering::Relaxed)
    }

    /// Reads `range`, a part of the file whose start is a multiple of [`DIRECT_ALIGNMENT`], to the
    /// start of `to`, which is long enough for the range rounded by [`align_outward`]. What lies behind the range
    /// in `to` is undefined after that.
    ///
    /// # Errors
    /// As [`InputFile::read_at`].
    pub fn read_aligned(&self, range: &Range<u64>, to: &mut [u8]) -> Result<ReadPath> {
        let length = to_usize(range.end.saturating_sub(range.start));
        if to.len() < length {
            let what = format!(
                "{length} bytes at {} do not fit into {}",
                range.start,
                to.len()
            );
            return Err(FormatError::malformed(self.file.path(), what));
        }
        if self.is_cached(range) {
            self.file.read_at(&mut to[..length], range.start)?;
            return Ok(ReadPath::Cached);
        }
        if self.is_direct() && self.read_direct(range, to, length)? {
            return Ok(ReadPath::Direct);
        }
        self.file.read_at(&mut to[..length], range.start)?;
        Ok(ReadPath::Buffered)
    }

    /// `false` where this has to be read another way.
    #[cfg(target_os = "linux")]
    fn read_direct(&self, range: &Range<u64>, to: &mut [u8], wanted: usize) -> Result<bool> {
        use std::os::unix::fs::FileExt;
        let padded = align_outward(range);
        let length = to_usize(padded.end - padded.start);
        let aligned = to.as_ptr().addr().is_multiple_of(ALIGNMENT);
        let Some(direct) = self
            .direct
            .as_ref()
            .filter(|_| aligned && length <= to.len() && range.start == padded.start)
        else {
            return Ok(false);
        };
        let direct = direct.file(|now| self.file.compare(now))?;
        let mut done = 0;
        loop {
            if done >= wanted {
                return Ok(true);
            }
            match direct.read_at(&mut to[done..length], range.start + done as u64) {
                Ok(n) if done + n >= wanted => return Ok(true),
                // the file ends here: the other way says so
                Ok(n) if n < ALIGNMENT => return Ok(false),
                // cut short: go on from the last whole block
                Ok(n) => done += n - n % ALIGNMENT,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) if e.raw_os_error() == Some(rustix::io::Errno::INVAL.raw_os_error()) => {
                    self.refused.store(true, Ordering::Relaxed);
                    return Ok(false);
                }
                Err(e) if crate::error::is_medium(&e) => {
                    self.file.note_retry(range.clone(), &e);
                    return Ok(false); // the other way tries again
                }
                Err(e) => return Err(FormatError::io("read", self.file.path())(e)),
            }
        }
    }

    #[cfg(not(target_os = "linux"))]
    fn read_direct(&self, _: &Range<u64>, _: &mut [u8], _: usize) -> Result<bool> {
        Ok(false)
    }

    /// Asks for the first and the last byte without waiting: both come only if they are in the page
    /// cache.
    #[cfg(target_os = "linux")]
    fn is_cached(&self, range: &Range<u64>) -> bool {
        range.start < range.end
            && self.is_byte_cached(range.start)
            && self.is_byte_cached(range.end - 1)
    }

    #[cfg(target_os = "linux")]
    fn is_byte_cached(&self, at: u64) -> bool {
        use rustix::io::{ReadWriteFlags, preadv2};
        let mut byte = [0];
        let buffers = &mut [std::io::IoSliceMut::new(&mut byte)];
        let file = self.file.file();
        file.is_ok_and(|file| {
            preadv2(&file, buffers, at, ReadWriteFlags::NOWAIT).is_ok_and(|n| n == 1)
        })
    }

    #[cfg(not(target_os = "linux"))]
    fn is_cached(&self, _: &Range<u64>) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The 4096-byte aligned part of a longer buffer.
    fn aligned(buffer: &mut [u8]) -> &mut [u8] {
        let skip = buffer.as_ptr().align_offset(4096);
        &mut buffer[skip..]
    }

    #[test]
    fn every_way_gives_the_same_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights");
        let bytes: Vec<u8> = (0..50_000_u32)
            .map(|i| u8::try_from(i * 7 % 251).unwrap())
            .collect();
        std::fs::write(&path, &bytes).unwrap();
        std::fs::File::open(&path).unwrap().sync_all().unwrap();
        let file = DirectFile::open(&path).unwrap();
        let mut seen = Vec::new();
        for (start, end) in [
            (0, 50_000),
            (4096, 4097),
            (8192, 49_999),
            (40_960, 50_000),
            (0, 0),
        ] {
            for drop_cache in [false, true] {
                if drop_cache {
                    let range = std::num::NonZeroU64::new(50_000);
                    rustix::fs::fadvise(
                        file.file.file().unwrap(),
                        0,
                        range,
                        rustix::fs::Advice::DontNeed,
                    )
                    .unwrap();
                }
                for skip in [0, 1] {
                    let mut buffer = vec![0; 70_000];
                    let to = &mut aligned(&mut buffer)[skip..];
                    seen.push(file.read_aligned(&(start as u64..end as u64), to).unwrap());
                    assert_eq!(
                        to[..end - start],
                        bytes[start..end],
                        "{start}..{end} {skip}"
                    );
                }
            }
        }
        assert!(seen.contains(&ReadPath::Cached), "{seen:?}");
        assert!(
            !file.is_direct() || seen.contains(&ReadPath::Direct),
            "{seen:?}"
        );
    }

    #[test]
    fn a_file_that_ends_too_early_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights");
        std::fs::write(&path, [1; 5000]).unwrap();
        let file = DirectFile::open(&path).unwrap();
        let mut buffer = vec![0; 30_000];
        let error = file
            .read_aligned(&(4096..8000), aligned(&mut buffer))
            .unwrap_err()
            .to_string();
        assert!(error.contains("ends before byte 8000"), "{error}");
        let error = file
            .read_aligned(&(0..5000), &mut [0; 100])
            .unwrap_err()
            .to_string();
        assert!(error.contains("do not fit into 100"), "{error}");
    }
}
