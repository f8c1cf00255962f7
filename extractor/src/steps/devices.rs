//! `devices`: the GPUs that the driver knows, and which device `auto` takes.

use segpack_manifests::documents::{DeviceEntry, DevicesReport, GENERATOR};
use segpack_runtime_min::RunError;
use segpack_runtime_min::devices::cuda::{CudaError, DeviceInfo, devices};

use super::StepError;

/// What there is, and what `auto` would take.
///
/// # Errors
/// Where the driver fails. That there is no driver, or no GPU, is no error, but reported.
pub(crate) fn list() -> Result<DevicesReport, StepError> {
    let (devices, problem) = match devices() {
        Ok(devices) => (devices, None),
        Err(e @ (CudaError::NoDriver | CudaError::NoDevice { .. })) => {
            (Vec::new(), Some(e.to_string()))
        }
        Err(e) => return Err(RunError::from(e).into()),
    };
    let automatic = DeviceInfo::first_supported(&devices);
    Ok(DevicesReport {
        format_version: DevicesReport::VERSION,
        generator: GENERATOR.to_owned(),
        driver_cuda_version: devices.first().map(driver_version),
        problem,
        auto: automatic.map_or("cpu".to_owned(), |gpu| format!("cuda:{}", gpu.number)),
        devices: devices.iter().map(entry).collect(),
    })
}

/// The driver counts 1000 · major + 10 · minor.
fn driver_version(device: &DeviceInfo) -> String {
    format!("{}.{}", device.driver / 1000, device.driver % 1000 / 10)
}

fn entry(device: &DeviceInfo) -> DeviceEntry {
    DeviceEntry {
        number: device.number,
        name: device.name.clone(),
        compute_capability: format!("{}.{}", device.capability.0, device.capability.1),
        multiprocessors: device.multiprocessors,
        memory: device.memory,
        supported: device.is_supported(),
    }
}
