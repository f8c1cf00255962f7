//! What `devices` prints with `--json`.

use serde::{Deserialize, Serialize};

use crate::documents::FormatVersion;

/// The GPUs of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct DevicesReport {
    /// Version of this document.
    #[cfg_attr(
        feature = "schema",
        schemars(with = "crate::documents::schema::VersionText")
    )]
    pub format_version: FormatVersion,
    /// What wrote it.
    pub generator: String,
    /// Version of CUDA that the driver has; none where there is no driver or no device.
    pub driver_cuda_version: Option<String>,
    /// Why no GPU can be used, where none was found.
    pub problem: Option<String>,
    /// What the driver knows.
    pub devices: Vec<DeviceEntry>,
    /// What `--device auto` takes: `cpu` or `cuda:N`.
    pub auto: String,
}

/// A GPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct DeviceEntry {
    /// Its number: N of `cuda:N`.
    pub number: u32,
    /// What it is called.
    pub name: String,
    /// Compute capability, MAJOR.MINOR.
    pub compute_capability: String,
    /// Multiprocessors.
    pub multiprocessors: u32,
    /// Bytes of memory.
    pub memory: u64,
    /// Whether models can run on it.
    pub supported: bool,
}
