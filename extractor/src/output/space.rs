//! Free space on the disk of an output.

use std::path::Path;

use segpack_formats::FormatError;

use super::OutputError;

/// How much free space stays beyond what a step is known to need, in bytes.
const SPARE_BYTES: u64 = 16 << 20;

/// What an output will take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Needed {
    /// Bytes on the disk.
    pub bytes: u64,
    /// Whether that is an estimate.
    pub estimated: bool,
}

impl Needed {
    /// No more than this.
    pub(crate) fn exactly(bytes: u64) -> Self {
        Self {
            bytes,
            estimated: false,
        }
    }
}

/// Refuses what the disk of an existing folder cannot hold, even with what will be `freed` before.
///
/// # Errors
/// `NoSpace`; `Io`.
pub(crate) fn check_space(folder: &Path, needed: Needed, freed: u64) -> Result<(), OutputError> {
    let free =
        fs4::available_space(folder).map_err(FormatError::io("find the free space of", folder))?;
    if free.saturating_add(freed) >= needed.bytes.saturating_add(SPARE_BYTES) {
        return Ok(());
    }
    Err(OutputError::NoSpace {
        folder: folder.to_owned(),
        needed: needed.bytes,
        estimated: needed.estimated,
        spare: SPARE_BYTES,
        free,
    })
}
