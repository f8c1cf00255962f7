//! Where models run: on the CPU, or on a GPU that the driver knows.

use super::{SessionError, SessionOptions};
#[cfg(feature = "cuda")]
use crate::devices::cuda::{Cuda, CudaError, DeviceInfo, devices};
#[cfg(feature = "cuda")]
use crate::error::RunError;
use crate::ops::CpuOps;

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

/// A text that names no device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{seen:?} is none of cpu, cuda, cuda:N and auto")]
pub struct UnknownDevice {
    /// The text.
    pub seen: String,
}

impl std::str::FromStr for DeviceChoice {
    type Err = UnknownDevice;

    fn from_str(text: &str) -> Result<Self, UnknownDevice> {
        match text {
            "cpu" => Ok(Self::Cpu),
            "auto" => Ok(Self::Auto),
            "cuda" => Ok(Self::Cuda(0)),
            _ => text
                .strip_prefix("cuda:")
                .and_then(|number| number.parse().ok())
                .map(Self::Cuda)
                .ok_or_else(|| UnknownDevice {
                    seen: text.to_owned(),
                }),
        }
    }
}

/// A device that was opened.
#[derive(Debug, Clone)]
pub(super) enum OpenDevice {
    Cpu(CpuOps),
    #[cfg(feature = "cuda")]
    Cuda(Cuda),
}

impl OpenDevice {
    pub(super) fn open(options: &SessionOptions) -> Result<Self, SessionError> {
        let number = match options.device {
            DeviceChoice::Cpu if options.device_memory.is_some() => {
                return Err(SessionError::DeviceMemoryOnCpu);
            }
            DeviceChoice::Cpu => None,
            DeviceChoice::Cuda(number) => Some(number),
            DeviceChoice::Auto => automatic()?,
        };
        match number {
            Some(number) => Self::open_gpu(number, options),
            None => Ok(Self::Cpu(CpuOps::from_environment(options.compute)?)),
        }
    }

    #[cfg(feature = "cuda")]
    fn open_gpu(number: u32, options: &SessionOptions) -> Result<Self, SessionError> {
        let cuda = Cuda::open(number, options.compute, options.device_memory);
        Ok(Self::Cuda(cuda.map_err(RunError::from)?))
    }

    #[cfg(not(feature = "cuda"))]
    fn open_gpu(number: u32, _: &SessionOptions) -> Result<Self, SessionError> {
        Err(SessionError::WithoutCuda { number })
    }

    pub(super) fn is_cpu(&self) -> bool {
        matches!(self, Self::Cpu(_))
    }

    pub(super) fn name(&self) -> String {
        match self {
            Self::Cpu(_) => "cpu".to_owned(),
            #[cfg(feature = "cuda")]
            Self::Cuda(cuda) => format!("cuda:{} {}", cuda.info().number, cuda.info().name),
        }
    }
}

/// The GPU that `Auto` takes, if there is one.
#[cfg(feature = "cuda")]
fn automatic() -> Result<Option<u32>, SessionError> {
    match devices() {
        Ok(devices) => Ok(DeviceInfo::first_supported(&devices).map(|d| d.number)),
        Err(CudaError::NoDriver | CudaError::NoDevice { .. }) => Ok(None),
        Err(e) => Err(RunError::from(e).into()),
    }
}

#[cfg(not(feature = "cuda"))]
fn automatic() -> Result<Option<u32>, SessionError> {
    Ok(None)
}
