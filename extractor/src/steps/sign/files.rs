//! Signing a folder that is no pack, such as the files of a release: every file is read and digested.

use std::collections::BTreeMap;
use std::path::Path;

use segpack_formats::FormatError;
use segpack_formats::digest::Sha256;
use segpack_formats::io::{CancelToken, InputFile, READ_BYTES};
use segpack_manifests::documents::SignSummary;
use segpack_manifests::folder::MANIFEST;

use super::{IGNORED, Owner, SignError, SignSettings, destination, parts, write_signature};
use crate::output::files_below;
use crate::pack_writer::digest_file;
use crate::steps::StepError;

/// Signs all files below a folder, as they are now.
///
/// # Errors
/// `IsAPack` of a pack, which is verified before it is signed; `NoFiles`; `Exists` where there is a
/// signature and it is not to be replaced; `PrivateKey`, `Certificates`; `Link` with a link below
/// the folder; `Io`; `Interrupted`.
pub(crate) fn sign_files(
    folder: &Path,
    settings: &SignSettings,
    stop: &CancelToken,
) -> Result<SignSummary, StepError> {
    let owner = Owner::read(settings)?;
    if folder.join(MANIFEST).symlink_metadata().is_ok() {
        let path = folder.to_owned();
        return Err(SignError::IsAPack { path }.into());
    }
    let to = destination(folder, settings)?;
    let mut files = BTreeMap::new();
    for path in files_below(folder)? {
        let parts = parts(&path);
        if !IGNORED.contains(&parts[0].as_str()) {
            files.insert(parts, digest_of(folder, &path, stop)?);
        }
    }
    if files.is_empty() {
        let path = folder.to_owned();
        return Err(SignError::NoFiles { path }.into());
    }
    write_signature(folder, &files, &owner, &to, settings.force, None)
}

fn digest_of(folder: &Path, path: &str, stop: &CancelToken) -> Result<Sha256, FormatError> {
    let input = InputFile::open_beneath(folder, path)?;
    digest_file(&input, &mut vec![0; READ_BYTES], stop)
}
