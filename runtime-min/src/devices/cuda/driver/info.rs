//! Which GPUs there are.

use std::ffi::c_int;

use cudarc::driver::sys;

use super::error::{CudaError, driver};

/// The first driver that takes PTX of the version that build_ptx.py writes.
pub(super) const MIN_DRIVER: u32 = 11_080;

/// A GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Its number, from 0.
    pub number: u32,
    /// What it is called.
    pub name: String,
    /// Compute capability, both digits.
    pub capability: (u32, u32),
    /// Multiprocessors.
    pub multiprocessors: u32,
    /// Bytes of memory.
    pub memory: u64,
    /// Version of CUDA that the driver has, as the driver counts: 1000 · major + 10 · minor.
    pub driver: u32,
}

impl DeviceInfo {
    /// Whether the kernels run on it: Ampere or later, and a driver that knows their language.
    pub fn is_supported(&self) -> bool {
        self.capability.0 >= 8 && self.driver >= MIN_DRIVER
    }

    /// The first GPU that the kernels run on: what the device `auto` is, where there is one.
    pub fn first_supported(devices: &[Self]) -> Option<&Self> {
        devices.iter().find(|d| d.is_supported())
    }
}

/// Loads and initialises the driver.
pub(super) fn load() -> Result<(), CudaError> {
    // SAFETY: looks for the library, which is safe to load
    if !unsafe { sys::is_culib_present() } {
        return Err(CudaError::NoDriver);
    }
    match driver!(cuInit(0)) {
        Err(CudaError::Call { name, .. }) if name == "CUDA_ERROR_NO_DEVICE" => {
            Err(CudaError::NoDevice {
                wanted: 0,
                count: 0,
            })
        }
        done => done,
    }
}

/// How many GPUs the driver knows.
pub(super) fn count() -> Result<u32, CudaError> {
    let mut count: c_int = 0;
    driver!(cuDeviceGetCount(&raw mut count))?;
    Ok(u32::try_from(count).unwrap_or(0))
}

/// An attribute of a device; 0 where the driver gives a negative one.
fn attribute(device: sys::CUdevice, which: sys::CUdevice_attribute) -> Result<u32, CudaError> {
    let mut value: c_int = 0;
    driver!(cuDeviceGetAttribute(&raw mut value, which, device))?;
    Ok(u32::try_from(value).unwrap_or(0))
}

/// What the driver says about one of them.
pub(super) fn info(number: u32) -> Result<DeviceInfo, CudaError> {
    use sys::CUdevice_attribute as Attribute;
    let mut device: sys::CUdevice = 0;
    driver!(cuDeviceGet(&raw mut device, number.cast_signed()))?;
    let mut name = [0_u8; 128];
    driver!(cuDeviceGetName(name.as_mut_ptr().cast(), 127, device))?;
    let name: Vec<u8> = name.into_iter().take_while(|b| *b != 0).collect();
    let mut memory = 0;
    driver!(cuDeviceTotalMem_v2(&raw mut memory, device))?;
    let mut driver: c_int = 0;
    driver!(cuDriverGetVersion(&raw mut driver))?;
    Ok(DeviceInfo {
        number,
        name: String::from_utf8_lossy(&name).into_owned(),
        capability: (
            attribute(
                device,
                Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
            )?,
            attribute(
                device,
                Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
            )?,
        ),
        multiprocessors: attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        memory: memory as u64,
        driver: u32::try_from(driver).unwrap_or(0),
    })
}

/// All GPUs that the driver knows.
///
/// # Errors
/// `NoDriver`, `NoDevice` where there is none, `Call`.
pub fn devices() -> Result<Vec<DeviceInfo>, CudaError> {
    load()?;
    (0..count()?).map(info).collect()
}
