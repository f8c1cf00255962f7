//! A GPU in use: its context, the kernels and the streams.

use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::fmt;
use std::ptr::null_mut;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use cudarc::driver::sys;

use super::arguments::Argument;
use super::error::{CudaError, driver};
use super::info::{DeviceInfo, MIN_DRIVER, count, info, load};
use super::ptx::{entries, ptx};

/// A GPU in use: its context, the kernels, and two streams, one for work and one for copies.
pub(in crate::devices::cuda) struct Gpu {
    info: DeviceInfo,
    device: sys::CUdevice,
    context: sys::CUcontext,
    module: sys::CUmodule,
    kernels: HashMap<&'static str, Kernel>,
    pub(super) work: sys::CUstream,
    copies: sys::CUstream,
}

/// A kernel, and the sizes of its parameters.
struct Kernel {
    function: sys::CUfunction,
    parameters: Vec<usize>,
    /// Bytes of dynamic shared memory that a launch may ask for so far.
    shared: AtomicU32,
}

/// Dynamic shared memory that a kernel gets without asking: 48 KiB (CUDA C++ Programming Guide,
/// compute capabilities), less what it declares itself, which is below 1 KiB everywhere.
const SHARED_BYTES: u32 = 47 << 10;

// SAFETY: the driver's handles may be used by any thread that has set the context, which every
// method does first
unsafe impl Send for Gpu {}
// SAFETY: as above; the driver's functions are thread-safe
unsafe impl Sync for Gpu {}

impl fmt::Debug for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gpu")
            .field("info", &self.info)
            .finish_non_exhaustive()
    }
}

/// Which of a GPU's streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::devices::cuda) enum Stream {
    /// Kernels, and what they need at once.
    Work,
    /// Copies beside them.
    Copies,
}

impl Gpu {
    /// Opens a device and loads the kernels.
    pub(in crate::devices::cuda) fn open(number: u32) -> Result<Arc<Self>, CudaError> {
        load()?;
        let count = count()?;
        if number >= count {
            return Err(CudaError::NoDevice {
                wanted: number,
                count,
            });
        }
        let info = info(number)?;
        if info.driver < MIN_DRIVER {
            return Err(CudaError::OldDriver {
                driver: info.driver,
            });
        }
        if !info.is_supported() {
            let (major, minor) = info.capability;
            return Err(CudaError::TooOld {
                name: info.name,
                major,
                minor,
            });
        }
        let mut gpu = Self {
            info,
            device: 0,
            context: null_mut(),
            module: null_mut(),
            kernels: HashMap::new(),
            work: null_mut(),
            copies: null_mut(),
        };
        driver!(cuDeviceGet(&raw mut gpu.device, number.cast_signed()))?;
        driver!(cuDevicePrimaryCtxRetain(&raw mut gpu.context, gpu.device))?;
        gpu.bind()?; // from here on `drop` gives back what there is
        gpu.load_module()?;
        gpu.find_kernels()?;
        let not_default = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        driver!(cuStreamCreate(&raw mut gpu.work, not_default))?;
        driver!(cuStreamCreate(&raw mut gpu.copies, not_default))?;
        Ok(Arc::new(gpu))
    }

    /// Compiles the kernels for this device. What the driver's compiler says is reported where it
    /// fails.
    fn load_module(&mut self) -> Result<(), CudaError> {
        use sys::CUjit_option_enum as JitOption;
        let ptx = CString::new(ptx()?).unwrap_or_default();
        let mut log = [0_u8; 4096];
        let mut names = [
            JitOption::CU_JIT_ERROR_LOG_BUFFER,
            JitOption::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES,
        ];
        // an option's value is a pointer, or a number in the place of one
        let mut values = [
            log.as_mut_ptr().cast(),
            std::ptr::without_provenance_mut::<c_void>(log.len() - 1),
        ];
        let (names, values) = (names.as_mut_ptr(), values.as_mut_ptr());
        driver!(cuModuleLoadDataEx(
            &raw mut self.module,
            ptx.as_ptr().cast(),
            2,
            names,
            values
        ))
        .map_err(|e| with_log(e, &log))
    }

    /// Looks up every kernel of the module.
    fn find_kernels(&mut self) -> Result<(), CudaError> {
        for (name, parameters) in entries(ptx()?) {
            let mut function = null_mut();
            let c_name = CString::new(name).unwrap_or_default();
            driver!(cuModuleGetFunction(
                &raw mut function,
                self.module,
                c_name.as_ptr()
            ))?;
            let shared = AtomicU32::new(SHARED_BYTES);
            let kernel = Kernel {
                function,
                parameters,
                shared,
            };
            self.kernels.insert(name, kernel);
        }
        Ok(())
    }

    /// What it is.
    pub(in crate::devices::cuda) fn info(&self) -> &DeviceInfo {
        &self.info
    }

    /// Makes it the calling thread's device.
    pub(super) fn bind(&self) -> Result<(), CudaError> {
        driver!(cuCtxSetCurrent(self.context))
    }

    pub(super) fn stream(&self, stream: Stream) -> sys::CUstream {
        match stream {
            Stream::Work => self.work,
            Stream::Copies => self.copies,
        }
    }

    /// Waits until a stream has nothing to do. What went wrong in it is reported here.
    pub(in crate::devices::cuda) fn wait(&self, stream: Stream) -> Result<(), CudaError> {
        self.bind()?;
        driver!(cuStreamSynchronize(self.stream(stream)))
    }

    /// Queues a kernel.
    ///
    /// # Safety
    /// The arguments must be what the kernel expects (their sizes are checked), and the memory that
    /// they point to must be large enough and live until a later wait.
    pub(in crate::devices::cuda) unsafe fn launch(
        &self,
        name: &'static str,
        grid: [u32; 3],
        block: u32,
        shared: u32,
        arguments: &[Argument],
    ) -> Result<(), CudaError> {
        self.bind()?;
        let kernel = self
            .kernels
            .get(name)
            .ok_or_else(|| launch_error(name, "no such kernel".to_owned()))?;
        kernel.check_parameters(name, arguments)?;
        kernel.allow_shared(shared)?;
        let mut pointers: Vec<*mut c_void> = arguments.iter().map(Argument::pointer).collect();
        let [x, y, z] = grid;
        if x == 0 || y == 0 || z == 0 {
            return Ok(()); // nothing to do
        }
        let nothing = null_mut();
        driver!(cuLaunchKernel(
            kernel.function,
            x,
            y,
            z,
            block,
            1,
            1,
            shared,
            self.work,
            pointers.as_mut_ptr(),
            nothing
        ))
    }
}

impl Kernel {
    /// Whether the arguments have the sizes that the kernel expects.
    fn check_parameters(
        &self,
        name: &'static str,
        arguments: &[Argument],
    ) -> Result<(), CudaError> {
        let sizes = arguments.iter().map(Argument::size);
        if sizes.clone().eq(self.parameters.iter().copied()) {
            return Ok(());
        }
        let sizes: Vec<usize> = sizes.collect();
        let wanted = &self.parameters;
        Err(launch_error(
            name,
            format!("parameters of {sizes:?} bytes, wanted {wanted:?}"),
        ))
    }

    /// Asks the driver for so many bytes of dynamic shared memory, if the kernel may not have them
    /// yet.
    fn allow_shared(&self, bytes: u32) -> Result<(), CudaError> {
        if bytes <= self.shared.load(Ordering::Relaxed) {
            return Ok(());
        }
        let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        driver!(cuFuncSetAttribute(
            self.function,
            attribute,
            bytes.cast_signed()
        ))?;
        self.shared.store(bytes, Ordering::Relaxed);
        Ok(())
    }
}

/// A launch that does not get as far as the driver.
fn launch_error(kernel: &str, description: String) -> CudaError {
    CudaError::Call {
        call: "cuLaunchKernel",
        name: kernel.to_owned(),
        description,
        out_of_memory: false,
    }
}

/// A call's error with what the driver's compiler wrote, which ends with 0.
fn with_log(error: CudaError, log: &[u8]) -> CudaError {
    let end = log.iter().position(|b| *b == 0).unwrap_or(log.len());
    let log = String::from_utf8_lossy(&log[..end]);
    match error {
        CudaError::Call {
            call,
            name,
            description,
            out_of_memory,
        } => CudaError::Call {
            call,
            name,
            description: format!("{description}; {}", log.trim()),
            out_of_memory,
        },
        other => other,
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        // what fails here has nobody to be told
        let _ = self.bind();
        for stream in [self.work, self.copies] {
            if !stream.is_null() {
                let _ = driver!(cuStreamDestroy_v2(stream));
            }
        }
        if !self.module.is_null() {
            let _ = driver!(cuModuleUnload(self.module));
        }
        if !self.context.is_null() {
            let _ = driver!(cuDevicePrimaryCtxRelease_v2(self.device));
        }
    }
}
