//! The checkpoint's other files, as the pack keeps them.

use segpack_manifests::Pack;
use segpack_manifests::folder::source_file;
use serde_json::Value;

use super::ExportError;
use crate::steps::StepError;

/// A JSON file of the checkpoint; `None` where there is no such file.
///
/// # Errors
/// `Malformed` where it is damaged, `TooLarge`; `SourceFile` where it is no JSON.
pub(super) fn source_json(pack: &Pack, name: &str) -> Result<Option<Value>, StepError> {
    let Some(bytes) = source_file(pack, name)? else {
        return Ok(None);
    };
    match serde_json::from_slice(&bytes) {
        Ok(json) => Ok(Some(json)),
        Err(e) => Err(ExportError::SourceFile {
            file: name.to_owned(),
            source: e.into(),
        }
        .into()),
    }
}
