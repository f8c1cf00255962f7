//! Verification.

use std::path::PathBuf;

use pyo3::prelude::*;
use segpack::steps::verify::{VerifySettings, verify_place};
use segpack::work::default_jobs;
use segpack_manifests::documents::VerifyMode;

use crate::error::{exception, parsed, usage};
use crate::interrupt::interruptible;
use crate::pack::{digest, lasting_job};

/// Checks a pack; returns the document of `segpack verify --json`.
#[pyfunction]
#[pyo3(signature = (place, *, mode, against, values, restorable, allow_unaudited, manifest_sha256, jobs))]
#[expect(
    clippy::needless_pass_by_value,
    clippy::too_many_arguments,
    reason = "keywords of the Python function"
)]
pub(crate) fn verify<'py>(
    py: Python<'py>,
    place: PathBuf,
    mode: &str,
    against: Option<PathBuf>,
    values: bool,
    restorable: bool,
    allow_unaudited: bool,
    manifest_sha256: Option<&str>,
    jobs: Option<usize>,
) -> PyResult<Bound<'py, PyAny>> {
    if jobs == Some(0) {
        return Err(usage(py, "jobs is 0: at least one thread is needed", None));
    }
    let mut settings =
        VerifySettings::new(self::mode(py, mode)?, jobs.unwrap_or_else(default_jobs));
    settings.against = against;
    settings.values = values;
    settings.restorable = restorable;
    settings.allow_unaudited = allow_unaudited;
    settings.manifest_sha256 = digest(py, manifest_sha256)?;
    let job = lasting_job();
    let verified = interruptible(py, job.stop, || verify_place(&place, &settings, job))?;
    let report = verified.map_err(|e| exception(py, &e, None))?;
    parsed(py, &report)
}

fn mode(py: Python<'_>, name: &str) -> PyResult<VerifyMode> {
    match name {
        "quick" => Ok(VerifyMode::Quick),
        "full" => Ok(VerifyMode::Full),
        "sums" => Ok(VerifyMode::Sums),
        _ => {
            let message = format!("{name:?} is no way to verify: wanted quick, full or sums");
            Err(usage(py, &message, None))
        }
    }
}
