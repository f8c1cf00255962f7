//! The checkpoint's other files, as a pack keeps them.

use std::fs;

use segpack_formats::digest::Sha256;
use segpack_formats::{FormatError, Result};
use segpack_manifests::Pack;
use segpack_manifests::documents::SourceFileKind;

/// A file of the checkpoint as the pack keeps it, checked against its digest. `None` where the
/// checkpoint had no such file.
///
/// # Errors
/// `Io` where it cannot be read, `Malformed` where it is damaged.
pub fn source_file(pack: &Pack, name: &str) -> Result<Option<Vec<u8>>> {
    let mut files = pack.manifest().source_files.iter();
    let Some(file) = files.find(|f| f.kind == SourceFileKind::File && f.path == name) else {
        return Ok(None);
    };
    let path = pack.path(&file.stored_as);
    let bytes = fs::read(&path).map_err(FormatError::io("read", &path))?;
    let (seen, wanted) = (Sha256::of(&bytes), file.stored_sha256);
    if seen != wanted {
        let what = format!("is damaged: SHA-256 {seen}, wanted {wanted}");
        return Err(FormatError::malformed(&path, what));
    }
    Ok(Some(bytes))
}
