//! What has bytes at positions.

use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::time::SystemTime;

use super::{CancelToken, to_usize};
use crate::{FormatError, Result};

/// Bytes that are read at positions, by several threads at once: a local file, or what lies behind
/// an address.
///
/// Its length is that of the moment it was opened. An implementation returns all the bytes that it
/// is asked for or an error, never fewer.
pub trait ReadAt: fmt::Debug + Send + Sync {
    /// The path or address that messages name.
    fn name(&self) -> &Path;

    /// What it was when it was opened.
    fn stamp(&self) -> Stamp;

    /// Fills `to` with the bytes from `offset` on.
    ///
    /// # Errors
    /// `Changed` where it ends before that (see [`FormatError::ends_early`]), `Io` where the read
    /// fails.
    fn read_at(&self, to: &mut [u8], offset: u64) -> Result<()>;

    /// Asks whether the bytes are still those that were opened.
    ///
    /// # Errors
    /// `Changed` where the stamp is another one now.
    fn check_unchanged(&self) -> Result<()>;

    /// The reads that failed and, tried again, did not: what they are of is whole, but the drive may
    /// be failing.
    fn retried(&self) -> Vec<Retried> {
        Vec::new()
    }

    /// Length in bytes when it was opened.
    fn length(&self) -> u64 {
        self.stamp().length
    }

    /// Closes what is open, so that the space of a file that was removed is free. A later read opens
    /// it again.
    fn close(&self) {}

    /// Says that these bytes will be needed soon. Only a hint.
    fn will_need(&self, _range: Range<u64>) {}

    /// The bytes of a range, in one new buffer. For headers and other small things.
    ///
    /// # Errors
    /// As [`read_at`](Self::read_at); `Changed` where the range goes beyond the length.
    fn read_range(&self, range: Range<u64>) -> Result<Vec<u8>> {
        // a length that was lied about must not become an allocation
        if range.end > self.length() {
            return Err(FormatError::ends_early(
                self.name(),
                range.end,
                self.length(),
            ));
        }
        let mut bytes = vec![0; to_usize(range.end.saturating_sub(range.start))];
        self.read_at(&mut bytes, range.start)?;
        Ok(bytes)
    }
}

impl dyn ReadAt + '_ {
    /// Passes the bytes of a range to `take`, a piece at a time, through the reused `buffer`.
    ///
    /// # Errors
    /// As [`read_at`](ReadAt::read_at); `Interrupted` once `cancel` says so; whatever `take` returns.
    pub fn for_each_piece<E: From<FormatError>>(
        &self,
        range: Range<u64>,
        buffer: &mut [u8],
        cancel: &CancelToken,
        mut take: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut at = range.start;
        while at < range.end {
            cancel.check()?;
            let length = (range.end - at).min(buffer.len() as u64);
            let piece = &mut buffer[..to_usize(length)];
            self.read_at(piece, at)?;
            take(piece)?;
            at += length;
        }
        Ok(())
    }
}

/// What tells whether bytes are still those that were opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stamp {
    /// Length in bytes.
    pub length: u64,
    /// Time of the last modification, where it is known.
    pub modified: Option<SystemTime>,
    /// Time of the last change of its bytes or its attributes, in nanoseconds since 1970, where it
    /// is known. Unlike [`modified`](Self::modified), no program can set it back.
    pub changed: Option<i128>,
    /// What a server calls this version of the bytes, such as an entity tag.
    pub tag: Option<String>,
}

impl Stamp {
    /// Of bytes of which nothing is known but how many they are.
    #[must_use]
    pub const fn of_length(length: u64) -> Self {
        Self {
            length,
            modified: None,
            changed: None,
            tag: None,
        }
    }
}

/// A read that failed and, tried again, did not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retried {
    /// The bytes that were read.
    pub range: Range<u64>,
    /// Why the read failed, in the system's words.
    pub error: String,
}
