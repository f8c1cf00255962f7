//! Free space on the disk of an output.

use std::path::Path;

use segpack_formats::FormatError;

use super::OutputError;

/// How much free space stays beyond what a step is known to need, in bytes.
const SPARE_BYTES: u64 = 16 << 20;

/// Refuses what the disk of an existing folder cannot hold, even with what will be `freed` before.
///
/// # Errors
/// `NoSpace`; `Io`.
pub(crate) fn check_space(folder: &Path, needed: u64, freed: u64) -> Result<(), OutputError> {
    let free =
        fs4::available_space(folder).map_err(FormatError::io("find the free space of", folder))?;
    if free.saturating_add(freed) >= needed.saturating_add(SPARE_BYTES) {
        return Ok(());
    }
    Err(OutputError::NoSpace {
        folder: folder.to_owned(),
        needed,
        spare: SPARE_BYTES,
        free,
    })
}
