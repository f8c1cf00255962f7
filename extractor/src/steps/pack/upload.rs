//! Packing into an object store: each pack is written into a folder of this machine, the spool, sent
//! to the store, and removed. The manifest is sent last.
//!
//! The spool holds the journal, so that `--resume` continues from there. Packs count as done that the
//! journal calls finished and of which an object of the same length is in the store.

use std::path::{Path, PathBuf};

use segpack_formats::io::CancelToken;
use segpack_manifests::documents::PackSummary;
use segpack_manifests::folder::{MANIFEST, PART, SUMS};

use super::{PackSettings, Planned, pack_with, plan_into, write};
use crate::output::{Elsewhere, OutputError};
use crate::source::{Fetching, Uploads};
use crate::steps::StepError;
use crate::work::{Job, Progress};

impl Elsewhere for Uploads<'_> {
    fn take(&self, file: &Path, path: &str) -> Result<(), OutputError> {
        Ok(Uploads::take(self, file, path)?)
    }

    fn put(&self, path: &str, bytes: Vec<u8>) -> Result<(), OutputError> {
        Ok(Uploads::put(self, path, bytes)?)
    }

    fn has(&self, path: &str, length: u64) -> bool {
        Uploads::has(self, path, length)
    }
}

/// The folder for what is on the way to a store, where the user names none: beside the working
/// folder's other files, with the last name of the address.
pub(crate) fn spool_of(address: &Path) -> PathBuf {
    let name = address.file_name().unwrap_or_default();
    PathBuf::from(format!("{}.spool", name.to_string_lossy()))
}

/// Packs a checkpoint into an object store, by way of a folder of this machine.
///
/// # Errors
/// As [`pack`](super::pack); `Store` where other objects are there; `Io` where the store does not
/// take them.
pub(crate) fn pack_to_store(
    argument: &Path,
    (address, spool): (&Path, &Path),
    settings: &PackSettings,
    stop: &CancelToken,
    progress: &dyn Progress,
) -> Result<PackSummary, StepError> {
    let job = Job {
        threads: settings.jobs,
        stop,
        progress,
    };
    let how = Fetching {
        connections: settings.fetch.connections,
        rate: settings.fetch.rate,
    };
    let uploads = Uploads::open(address, how, job)?;
    let planned = plan_into(argument, spool, settings, job)?;
    refuse_there(address, &uploads, &planned, settings.resume)?;
    let summary = pack_with(argument, &planned, (spool, Some(&uploads)), settings, job)?;
    Ok(PackSummary {
        uploaded_to: Some(uploads.uploaded()),
        ..summary
    })
}

/// Refuses a place with other objects than those of this pack, and one with a pack.
fn refuse_there(
    address: &Path,
    uploads: &Uploads<'_>,
    planned: &Planned,
    resume: bool,
) -> Result<(), StepError> {
    let there = uploads.paths();
    let refuse = |why: String| {
        let place = address.to_owned();
        Err(OutputError::Store { place, why }.into())
    };
    if there.iter().any(|path| [MANIFEST, PART].contains(&&**path)) {
        return refuse("there is a pack already, and none is replaced in a store".to_owned());
    }
    let mut listed = write::planned_files(planned);
    listed.insert(SUMS.to_owned());
    if let Some(other) = there.iter().find(|path| !listed.contains(*path)) {
        return refuse(format!("there is {other:?}, which this pack will not have"));
    }
    if !resume && !there.is_empty() {
        let count = there.len();
        return refuse(format!("there are {count} objects of an unfinished pack"));
    }
    Ok(())
}
