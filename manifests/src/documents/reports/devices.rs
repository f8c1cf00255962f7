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
    /// Name and version of the program that wrote it.
    pub generator: String,
    /// CUDA version of the driver; `null` without a driver or device.
    pub driver_cuda_version: Option<String>,
    /// Why no GPU can be used, if none was found.
    pub problem: Option<String>,
    /// The devices that the driver lists.
    pub devices: Vec<DeviceEntry>,
    /// The device that `--device auto` selects: `cpu` or `cuda:N`.
    pub auto: String,
}

/// A GPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct DeviceEntry {
    /// Its number: N of `cuda:N`.
    pub number: u32,
    /// Its name.
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
