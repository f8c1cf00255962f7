//! Writing a large file from its first byte to its last, past the page cache where the file system
//! can.
//!
//! Through the page cache every byte is copied once more, each page of it is taken from what is
//! being read, and the drive waits for a sync. Past it a write is on the drive when it returns; a
//! sync makes it durable.

use std::fmt;
use std::fs::File;
use std::io;
use std::path::Path;

use super::write_all_at;
use crate::{FormatError, Result};

/// Memory, offsets and lengths of direct writes are multiples of this many bytes: it serves every
/// drive in use.
const ALIGNMENT: usize = 4096;

/// Bytes written at a time: enough for a drive's full speed.
const WRITE_BYTES: usize = 1 << 20;

/// The bytes of one write, aligned as direct writes need it.
pub struct WriteBuffer {
    memory: Vec<u8>,
    start: usize,
    length: usize,
}

impl fmt::Debug for WriteBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WriteBuffer of {} bytes", self.length)
    }
}

impl Default for WriteBuffer {
    fn default() -> Self {
        let memory = vec![0; WRITE_BYTES + ALIGNMENT];
        // where the alignment cannot be computed, writes go through the page cache
        let start = memory.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
        Self {
            memory,
            start,
            length: 0,
        }
    }
}

impl WriteBuffer {
    /// Takes as much of `piece` as fits; returns the rest.
    pub fn take<'p>(&mut self, piece: &'p [u8]) -> &'p [u8] {
        let (now, later) = piece.split_at(piece.len().min(WRITE_BYTES - self.length));
        let at = self.start + self.length;
        self.memory[at..at + now.len()].copy_from_slice(now);
        self.length += now.len();
        later
    }

    /// Whether it has to be written before it takes more.
    pub fn is_full(&self) -> bool {
        self.length == WRITE_BYTES
    }

    /// The bytes taken so far.
    pub fn bytes(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.length]
    }

    /// Forgets them.
    pub fn clear(&mut self) {
        self.length = 0;
    }
}

/// Writes full buffers, then one that need not be full, to a new file.
#[derive(Debug)]
pub struct SequentialWriter<'f> {
    file: &'f File,
    path: &'f Path,
    at: u64,
    direct: bool,
}

impl<'f> SequentialWriter<'f> {
    /// Begins at the file's first byte; `path` is its name. Nobody else may write to the file
    /// meanwhile.
    pub fn new(file: &'f File, path: &'f Path) -> Self {
        Self {
            file,
            path,
            at: 0,
            direct: set_direct(file, true),
        }
    }

    /// Whether all that was written so far went past the page cache.
    pub fn is_direct(&self) -> bool {
        self.direct
    }

    /// Writes a buffer behind those before it.
    ///
    /// # Errors
    /// `Io` with the path.
    pub fn write(&mut self, buffer: &WriteBuffer) -> Result<()> {
        self.append(buffer.bytes())
            .map_err(FormatError::io("write", self.path))
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        if !bytes.len().is_multiple_of(ALIGNMENT) {
            self.leave_direct();
        }
        match write_all_at(self.file, bytes, self.at) {
            // the file system wants another alignment, or wrote a part that ends off it
            Err(e) if self.direct && e.kind() == io::ErrorKind::InvalidInput => {
                self.leave_direct();
                write_all_at(self.file, bytes, self.at)?;
            }
            written => written?,
        }
        self.at += bytes.len() as u64;
        Ok(())
    }

    fn leave_direct(&mut self) {
        if self.direct {
            set_direct(self.file, false);
            self.direct = false;
        }
    }
}

/// Lets an open file's writes go past the page cache, or no longer. Whether they do now.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn set_direct(file: &File, on: bool) -> bool {
    use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
    let set = fcntl_getfl(file).and_then(|mut flags| {
        flags.set(OFlags::DIRECT, on);
        fcntl_setfl(file, flags)
    });
    on && set.is_ok()
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn set_direct(_: &File, _: bool) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(length: usize) -> Vec<u8> {
        (0_u8..251).cycle().take(length).collect()
    }

    #[test]
    fn files_of_every_length_hold_what_was_written() {
        // the file system of the sources is one with a drive, that of temporary files often is not
        for folder in [tempfile::tempdir_in("."), tempfile::tempdir()].map(Result::unwrap) {
            for length in [
                0,
                1,
                4096,
                5000,
                WRITE_BYTES - 1,
                WRITE_BYTES,
                WRITE_BYTES + 1,
                3 * WRITE_BYTES + 4096,
            ] {
                let (path, bytes) = (folder.path().join("new"), pattern(length));
                let file = File::create(&path).unwrap();
                let mut writer = SequentialWriter::new(&file, &path);
                let mut buffer = WriteBuffer::default();
                for mut piece in bytes.chunks(300_007) {
                    while !piece.is_empty() {
                        piece = buffer.take(piece);
                        if buffer.is_full() {
                            writer.write(&buffer).unwrap();
                            buffer.clear();
                        }
                    }
                }
                writer.write(&buffer).unwrap();
                assert!(std::fs::read(&path).unwrap() == bytes, "{length} bytes");
            }
        }
    }

    #[test]
    fn what_cannot_go_past_the_page_cache_goes_through_it() {
        let folder = tempfile::tempdir_in(".").unwrap();
        let (path, bytes) = (folder.path().join("new"), pattern(3 * ALIGNMENT + 1));
        let file = File::create(&path).unwrap();
        let mut writer = SequentialWriter::new(&file, &path);
        let mut buffer = WriteBuffer::default();
        buffer.take(&bytes);
        let aligned = buffer.bytes();
        writer.append(&aligned[..ALIGNMENT]).unwrap();
        writer.append(&aligned[ALIGNMENT..2 * ALIGNMENT]).unwrap();
        // this memory is at an odd address
        let odd = &buffer.memory[buffer.start + 1..][..ALIGNMENT];
        writer.append(odd).unwrap();
        assert!(!writer.is_direct());
        writer.append(&aligned[2 * ALIGNMENT..]).unwrap();
        let wanted = [
            &bytes[..2 * ALIGNMENT],
            &bytes[1..=ALIGNMENT],
            &bytes[2 * ALIGNMENT..],
        ]
        .concat();
        assert!(std::fs::read(&path).unwrap() == wanted);
    }

    #[test]
    fn a_file_that_cannot_be_written_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new");
        std::fs::write(&path, b"").unwrap();
        let file = File::open(&path).unwrap();
        let mut buffer = WriteBuffer::default();
        buffer.take(&[1; 10]);
        let error = SequentialWriter::new(&file, &path)
            .write(&buffer)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("cannot write") && error.contains("new"),
            "{error}"
        );
    }
}
