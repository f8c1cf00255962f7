//! Free space on the disk of an output.

use std::path::Path;

use crate::steps::StepError;

/// How much free space stays beyond what a step is known to need, in bytes.
const SPARE_BYTES: u64 = 16 << 20;

/// Refuses what the disk of an existing folder cannot hold, even with what will be `freed` before.
///
/// # Errors
/// `Refused` with both figures.
pub fn check_space(folder: &Path, needed: u64, freed: u64) -> Result<(), StepError> {
    let free =
        fs4::available_space(folder).map_err(StepError::io("find the free space of", folder))?;
    if free.saturating_add(freed) >= needed.saturating_add(SPARE_BYTES) {
        return Ok(());
    }
    Err(StepError::Refused(format!(
        "{} needs {needed} bytes and {SPARE_BYTES} to spare, but its disk has only {free} free",
        folder.display()
    )))
}
