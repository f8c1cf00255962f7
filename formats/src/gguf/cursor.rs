//! The bytes of a header that nobody vouches for, one after the other.

use std::io::Read;

use super::error::GgufError;

/// The longest header that is read, in bytes. A vocabulary of 150,000 tokens with its merges takes
/// 6 MB.
pub const MAX_HEADER_BYTES: u64 = 256 << 20;

/// The bytes of a header, with what the file can still hold.
pub(super) struct Cursor<'a> {
    from: &'a mut dyn Read,
    at: u64,
    end: u64,
    file_length: u64,
}

impl<'a> Cursor<'a> {
    /// At the start of a file of this length.
    pub(super) fn new(from: &'a mut dyn Read, file_length: u64) -> Self {
        Self {
            from,
            at: 0,
            end: file_length.min(MAX_HEADER_BYTES),
            file_length,
        }
    }

    pub(super) fn at(&self) -> u64 {
        self.at
    }

    pub(super) fn remaining(&self) -> u64 {
        self.end - self.at
    }

    pub(super) fn take<const N: usize>(&mut self) -> Result<[u8; N], GgufError> {
        let mut bytes = [0; N];
        self.expect(N as u64)?;
        self.from
            .read_exact(&mut bytes)
            .map_err(|_| self.ended(N as u64))?;
        self.at += N as u64;
        Ok(bytes)
    }

    pub(super) fn bytes(&mut self, length: u64) -> Result<Vec<u8>, GgufError> {
        self.expect(length)?;
        let mut bytes = Vec::new();
        // grows with what is really there
        let read = (&mut *self.from).take(length).read_to_end(&mut bytes);
        if read.ok() != usize::try_from(length).ok() {
            return Err(self.ended(length));
        }
        self.at += length;
        Ok(bytes)
    }

    fn expect(&self, length: u64) -> Result<(), GgufError> {
        if length > self.remaining() {
            Err(self.ended(length))
        } else {
            Ok(())
        }
    }

    fn ended(&self, wanted: u64) -> GgufError {
        let at = self.at;
        GgufError::Rule(if self.end < self.file_length {
            format!(
                "the header is longer than {MAX_HEADER_BYTES} bytes (at byte {at}), which is not believed"
            )
        } else {
            let left = self.remaining();
            format!(
                "the header ends at byte {at}, where {wanted} more bytes belong and {left} are left: cut off?"
            )
        })
    }
}
