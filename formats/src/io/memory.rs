//! Bytes in memory, read like a file.

use std::path::{Path, PathBuf};

use super::{ReadAt, Stamp, to_usize};
use crate::{FormatError, Result};

/// Bytes in memory under a name.
#[derive(Debug, Clone)]
pub struct MemoryFile {
    name: PathBuf,
    bytes: Vec<u8>,
}

impl MemoryFile {
    /// These bytes; messages call them `name`.
    pub fn new(name: impl Into<PathBuf>, bytes: Vec<u8>) -> Self {
        Self {
            name: name.into(),
            bytes,
        }
    }
}

impl ReadAt for MemoryFile {
    fn name(&self) -> &Path {
        &self.name
    }

    fn stamp(&self) -> Stamp {
        Stamp::of_length(self.bytes.len() as u64)
    }

    fn read_at(&self, to: &mut [u8], offset: u64) -> Result<()> {
        let end = offset.saturating_add(to.len() as u64);
        let from = self
            .bytes
            .get(to_usize(offset)..to_usize(end))
            .ok_or_else(|| FormatError::ends_early(&self.name, end, self.length()))?;
        to.copy_from_slice(from);
        Ok(())
    }

    fn check_unchanged(&self) -> Result<()> {
        Ok(())
    }
}
