//! The checkpoint's other files, as the pack keeps them.

use segpack_formats::digest::Sha256;
use segpack_formats::io::InputFile;
use segpack_manifests::Pack;
use segpack_manifests::documents::{SourceFile, SourceFileKind};
use serde_json::Value;

use super::ExportError;
use crate::steps::StepError;

/// The bytes of a small file of the checkpoint, compared with its digest; `None` where there is no
/// such file.
///
/// # Errors
/// `Malformed` where it is damaged.
pub(super) fn source_bytes(pack: &Pack, name: &str) -> Result<Option<Vec<u8>>, StepError> {
    let is_it = |f: &&SourceFile| f.path == name && f.kind == SourceFileKind::File;
    let listed = pack.manifest().source_files.iter().find(is_it);
    listed.map(|listed| stored_bytes(pack, listed)).transpose()
}

/// A JSON file of the checkpoint; `None` where there is no such file.
///
/// # Errors
/// `Malformed` where it is damaged, `SourceFile` where it is no JSON.
pub(super) fn source_json(pack: &Pack, name: &str) -> Result<Option<Value>, StepError> {
    let Some(bytes) = source_bytes(pack, name)? else {
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

/// The bytes that are kept of a file of the checkpoint, compared with their digest.
///
/// # Errors
/// `Malformed` where they are damaged.
pub(super) fn stored_bytes(pack: &Pack, listed: &SourceFile) -> Result<Vec<u8>, StepError> {
    let path = pack.path(&listed.stored_as);
    let input = InputFile::open(&path)?;
    let bytes = input.read_range(0..input.length())?;
    if Sha256::of(&bytes) != listed.stored_sha256 {
        return Err(StepError::malformed(
            &path,
            "is damaged: its SHA-256 is not the manifest's",
        ));
    }
    Ok(bytes)
}
