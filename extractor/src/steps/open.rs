//! Opening a pack to read, wherever it is.

use std::path::Path;

use segpack_formats::digest::Sha256;
use segpack_manifests::Pack;
use segpack_manifests::folder::OpenOptions;

use super::StepError;
use crate::source::PackPlace;
use crate::work::Job;

/// Opens the pack of a folder, or of an address as every command takes it (`hf://OWNER/NAME`,
/// `https://HOST/FOLDER/`, `s3://BUCKET/PREFIX`, …). Its manifest must have this SHA-256, where one is
/// given. `job` says when to stop what is asked of a server, as long as the pack is used.
///
/// # Errors
/// Where it is no pack, not the one that it must be, or cannot be read.
pub fn open_pack(
    place: &Path,
    manifest_sha256: Option<Sha256>,
    job: Job<'static>,
) -> Result<Pack, StepError> {
    let options = OpenOptions::new().manifest_sha256(manifest_sha256);
    Ok(PackPlace::find(place, job)?.open(options)?)
}
