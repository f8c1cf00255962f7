//! Where a model runs: on the CPU, or on a GPU that the driver knows.

use segpack_manifests::documents::{DeviceEntry, DevicesReport, GENERATOR};
use segpack_runtime_min::RunError;
use segpack_runtime_min::devices::cuda::{Cuda, CudaError, DeviceInfo, devices};
use segpack_runtime_min::ops::{Compute, CpuOps};

use super::StepError;
use super::run::cpu_ops;
use crate::work::available_memory;

/// Where to run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// On the CPU.
    #[default]
    Cpu,
    /// On the GPU of this number.
    Cuda(u32),
    /// On the first GPU that can run the kernels, on the CPU where there is none.
    Auto,
}

impl std::str::FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "cpu" => Ok(Self::Cpu),
            "auto" => Ok(Self::Auto),
            "cuda" => Ok(Self::Cuda(0)),
            _ => text
                .strip_prefix("cuda:")
                .and_then(|number| number.parse().ok())
                .map(Self::Cuda)
                .ok_or_else(|| format!("{text:?} is none of cpu, cuda, cuda:N and auto")),
        }
    }
}

/// A device that was opened.
pub enum Opened {
    /// The CPU.
    Cpu(CpuOps),
    /// A GPU.
    Cuda(Cuda),
}

impl Opened {
    /// What reports call it.
    pub fn name(&self) -> String {
        match self {
            Self::Cpu(_) => "cpu".to_owned(),
            Self::Cuda(cuda) => format!("cuda:{} {}", cuda.info().number, cuda.info().name),
        }
    }

    /// The memory budget of this process: on the CPU, where nobody says, what the model needs, at
    /// most seven eighths of what is available.
    pub fn memory(&self, asked: Option<u64>) -> Option<u64> {
        match self {
            Self::Cpu(_) => asked.or_else(available_memory),
            Self::Cuda(_) => asked,
        }
    }
}

/// Opens the device of a choice. `memory` is the most of a GPU's memory to use.
///
/// # Errors
/// Where there is no such device, or the driver fails; a memory budget of a GPU where there is
/// none.
pub fn open(
    choice: DeviceChoice,
    compute: Compute,
    memory: Option<u64>,
) -> Result<Opened, StepError> {
    let number = match choice {
        DeviceChoice::Cpu if memory.is_some() => {
            return Err(StepError::Usage(
                "--device-memory is of a GPU: it needs --device cuda or auto".to_owned(),
            ));
        }
        DeviceChoice::Cpu => None,
        DeviceChoice::Cuda(number) => Some(number),
        DeviceChoice::Auto => best(&known()?),
    };
    match number {
        Some(number) => {
            let cuda = Cuda::open(number, compute, memory).map_err(RunError::from)?;
            Ok(Opened::Cuda(cuda))
        }
        None => Ok(Opened::Cpu(cpu_ops(compute)?)),
    }
}

/// All GPUs; none where there is no driver, or the driver has none.
fn known() -> Result<Vec<DeviceInfo>, StepError> {
    match devices() {
        Ok(devices) => Ok(devices),
        Err(CudaError::NoDriver | CudaError::NoDevice { .. }) => Ok(Vec::new()),
        Err(e) => Err(RunError::from(e).into()),
    }
}

/// The GPU that `auto` takes.
fn best(devices: &[DeviceInfo]) -> Option<u32> {
    devices.iter().find(|d| d.is_supported()).map(|d| d.number)
}

/// What there is, and what `auto` would take.
///
/// # Errors
/// Where the driver fails. That there is none is no error, but told.
pub fn list() -> Result<DevicesReport, StepError> {
    let problem = match devices() {
        Err(e @ (CudaError::NoDriver | CudaError::NoDevice { .. })) => Some(e.to_string()),
        _ => None,
    };
    let devices = known()?;
    let entry = |d: &DeviceInfo| DeviceEntry {
        number: d.number,
        name: d.name.clone(),
        compute_capability: format!("{}.{}", d.capability.0, d.capability.1),
        multiprocessors: d.multiprocessors,
        memory: d.memory,
        supported: d.is_supported(),
    };
    Ok(DevicesReport {
        format_version: DevicesReport::VERSION,
        generator: GENERATOR.to_owned(),
        driver_cuda_version: devices
            .first()
            .map(|d| format!("{}.{}", d.driver / 1000, d.driver % 1000 / 10)),
        problem,
        auto: best(&devices).map_or("cpu".to_owned(), |number| format!("cuda:{number}")),
        devices: devices.iter().map(entry).collect(),
    })
}
