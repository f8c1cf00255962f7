//! Errors as Python exceptions with fields.

use std::error::Error;
use std::path::Path;

use pyo3::exceptions::{PyKeyboardInterrupt, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use segpack::steps::{Exit, StepError};
use segpack_formats::FormatError;
use segpack_manifests::{NotAPack, PackError};
use segpack_runtime_min::session::SessionError;
use segpack_runtime_min::{RunError, Unsuitable};

/// The module that defines the exceptions.
const ERRORS: &str = "segpack._errors";

/// The exception of an error; `tensor` is the one that was read.
pub(crate) fn exception(py: Python<'_>, error: &StepError, tensor: Option<&str>) -> PyErr {
    let class = match error.exit() {
        Exit::Interrupted | Exit::Terminated => return PyKeyboardInterrupt::new_err(()),
        Exit::Ok | Exit::Failed => "EnvironmentFailure",
        Exit::Usage => "UsageError",
        Exit::Damaged => "DamagedError",
    };
    // what an exception cannot be made of is an exception, too
    build(py, class, error, tensor).unwrap_or_else(|e| e)
}

/// A wrong argument.
pub(crate) fn usage(py: Python<'_>, message: &str, hint: Option<&str>) -> PyErr {
    let made = PyDict::new(py);
    let class = made
        .set_item("hint", hint)
        .and_then(|()| py.import(ERRORS)?.getattr("UsageError"));
    match class.and_then(|class| class.call((message,), Some(&made))) {
        Ok(exception) => PyErr::from_value(exception),
        Err(e) => e,
    }
}

fn build(py: Python<'_>, class: &str, error: &StepError, tensor: Option<&str>) -> PyResult<PyErr> {
    let fields = PyDict::new(py);
    let causes = causes(error);
    fields.set_item("file", file_of(error))?;
    fields.set_item("tensor", tensor)?;
    fields.set_item("hint", hint(error))?;
    fields.set_item("findings", findings(py, error)?)?;
    let message = error.to_string();
    let whole = causes.iter().fold(message, |text, cause| {
        if text.contains(cause) {
            return text;
        }
        format!("{text}: {cause}")
    });
    fields.set_item("causes", causes)?;
    let exception = py.import(ERRORS)?.getattr(class)?;
    Ok(PyErr::from_value(exception.call((whole,), Some(&fields))?))
}

/// The messages of the causes, the nearest first.
fn causes(error: &StepError) -> Vec<String> {
    let causes = std::iter::successors(error.source(), |cause| (**cause).source());
    causes.map(ToString::to_string).collect()
}

/// The file or folder that an error is about.
fn file_of(error: &StepError) -> Option<&Path> {
    match error {
        StepError::Pack(PackError::NotAPack { folder, .. }) => Some(folder),
        StepError::Pack(PackError::Manifest { path, .. } | PackError::Identity { path, .. }) => {
            Some(path)
        }
        other => other.format_error().and_then(FormatError::path),
    }
}

/// The findings, as the documents have them.
fn findings<'py>(py: Python<'py>, error: &StepError) -> PyResult<Option<Bound<'py, PyAny>>> {
    match error {
        StepError::Findings { findings, .. } => parsed(py, findings).map(Some),
        _ => Ok(None),
    }
}

/// A document as Python's own objects.
///
/// # Errors
/// None of a document of this project.
pub(crate) fn parsed<'py>(
    py: Python<'py>,
    document: &impl serde::Serialize,
) -> PyResult<Bound<'py, PyAny>> {
    let text = serde_json::to_string(document).map_err(|e| PyValueError::new_err(e.to_string()))?;
    py.import("json")?.call_method1("loads", (text,))
}

/// What to change, in the words of this package.
fn hint(error: &StepError) -> Option<String> {
    match error {
        StepError::Pack(PackError::NotAPack { why, .. }) => of_no_pack(*why).map(str::to_owned),
        StepError::Run(e) | StepError::Session(SessionError::Run(e)) => of_run(e),
        StepError::Session(SessionError::DeviceMemoryOnCpu) => {
            Some("device_memory requires device=\"cuda\" or device=\"auto\"".to_owned())
        }
        other => {
            let is_damage = other.exit() == Exit::Damaged && other.format_error().is_some();
            is_damage.then(|| {
                "segpack.verify(pack) tells all that is damaged, and the command `segpack repair` \
                 restores it from the checkpoint or another pack"
                    .to_owned()
            })
        }
    }
}

fn of_no_pack(why: NotAPack) -> Option<&'static str> {
    match why {
        NotAPack::Unfinished => Some("continue with the command `segpack pack --resume`"),
        NotAPack::Checkpoint => Some("make a pack of it with the command `segpack pack`"),
        NotAPack::Part => Some("the command `segpack join` makes a pack of all its parts"),
        NotAPack::Whole | NotAPack::NoManifest => None,
    }
}

fn of_run(error: &RunError) -> Option<String> {
    match error {
        RunError::Memory { minimum, .. } => Some(format!("memory={minimum} is enough")),
        RunError::DeviceMemory { minimum, .. } => {
            Some(format!("device_memory={minimum} is enough"))
        }
        RunError::Unsuitable(Unsuitable::Gpu(_)) => Some("device=\"cpu\" can run it".to_owned()),
        RunError::OutOfMemory { .. } => Some("a smaller `memory` needs less".to_owned()),
        _ => None,
    }
}
