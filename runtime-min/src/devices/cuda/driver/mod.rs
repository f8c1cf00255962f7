//! The CUDA driver: devices, memory, streams, kernels. Every call's result is checked; an error
//! names the call.

use std::collections::HashMap;
use std::ffi::{CString, c_char, c_int, c_void};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::{null, null_mut};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use cudarc::driver::sys;

/// The kernels for every architecture from Ampere on, compiled by `build_ptx.py`.
pub(super) const PTX: &str = include_str!("../ptx/kernels.ptx");

/// The first driver that takes PTX of the version that build_ptx.py writes.
const LEAST_DRIVER: u32 = 11_080;

/// Why a GPU cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CudaError {
    /// There is no driver on this machine.
    #[error("there is no NVIDIA driver here: libcuda is not found")]
    NoDriver,
    /// There is a driver, but not this device.
    #[error("there is no CUDA device {wanted}: the driver knows {count}")]
    NoDevice {
        /// Its number.
        wanted: u32,
        /// Devices that there are.
        count: u32,
    },
    /// The device is too old for the kernels.
    #[error(
        "{name} has compute capability {major}.{minor}; the kernels need 8.0 (Ampere) or later"
    )]
    TooOld {
        /// The device.
        name: String,
        /// Its compute capability.
        major: u32,
        /// And its second digit.
        minor: u32,
    },
    /// The driver is too old for the kernels.
    #[error("the NVIDIA driver has CUDA {}.{}; the kernels need 11.8 or later: install a newer driver", .driver / 1000, .driver % 1000 / 10)]
    OldDriver {
        /// Its version, as it counts.
        driver: u32,
    },
    /// A call of the driver failed.
    #[error("{call} failed: {name} ({description})")]
    Call {
        /// The driver's function.
        call: &'static str,
        /// The driver's name of the error.
        name: String,
        /// What the driver says about it.
        description: String,
        /// Whether the device has no memory left.
        out_of_memory: bool,
    },
    /// The device has no memory left.
    #[error("the GPU has no room for {bytes} bytes ({what}); a smaller --device-memory takes less")]
    OutOfMemory {
        /// What was asked for.
        bytes: u64,
        /// What for.
        what: &'static str,
    },
}

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
        self.capability.0 >= 8 && self.driver >= LEAST_DRIVER
    }
}

/// The result of a call as an error that names it.
fn checked(call: &'static str, status: sys::CUresult) -> Result<(), CudaError> {
    if status == sys::CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    type Text = unsafe fn(sys::CUresult, *mut *const c_char) -> sys::CUresult;
    let text = |function: Text| {
        let mut text = null();
        // SAFETY: the driver sets the pointer to a text that stays, or fails
        let found = unsafe { function(status, &raw mut text) } == sys::CUresult::CUDA_SUCCESS;
        if !found || text.is_null() {
            return format!("error {status:?}");
        }
        // SAFETY: a text of the driver that ends with 0
        unsafe { std::ffi::CStr::from_ptr(text) }
            .to_string_lossy()
            .into_owned()
    };
    Err(CudaError::Call {
        call,
        name: text(sys::cuGetErrorName),
        description: text(sys::cuGetErrorString),
        out_of_memory: status == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY,
    })
}

/// Calls a function of the driver: `driver!(cuInit(0))`.
macro_rules! driver {
    ($function:ident($($argument:expr),* $(,)?)) => {
        // SAFETY: the driver is loaded (see `load`); the arguments are as the function's
        // documentation wants them
        checked(stringify!($function), unsafe { sys::$function($($argument),*) })
    };
}

/// Loads and initialises the driver.
fn load() -> Result<(), CudaError> {
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

fn count() -> Result<u32, CudaError> {
    let mut count: c_int = 0;
    driver!(cuDeviceGetCount(&raw mut count))?;
    Ok(u32::try_from(count).unwrap_or(0))
}

fn info(number: u32) -> Result<DeviceInfo, CudaError> {
    use sys::CUdevice_attribute as Attribute;
    let mut device: sys::CUdevice = 0;
    driver!(cuDeviceGet(&raw mut device, number.cast_signed()))?;
    let mut name = [0_u8; 128];
    driver!(cuDeviceGetName(name.as_mut_ptr().cast(), 127, device))?;
    let name: Vec<u8> = name.into_iter().take_while(|b| *b != 0).collect();
    let attribute = |attribute| {
        let mut value: c_int = 0;
        driver!(cuDeviceGetAttribute(&raw mut value, attribute, device))?;
        Ok(u32::try_from(value).unwrap_or(0))
    };
    let mut memory = 0;
    driver!(cuDeviceTotalMem_v2(&raw mut memory, device))?;
    let mut driver: c_int = 0;
    driver!(cuDriverGetVersion(&raw mut driver))?;
    Ok(DeviceInfo {
        number,
        name: String::from_utf8_lossy(&name).into_owned(),
        capability: (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
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

/// A GPU in use: its context, the kernels, and two streams, one for work and one for copies.
pub(super) struct Gpu {
    info: DeviceInfo,
    device: sys::CUdevice,
    context: sys::CUcontext,
    module: sys::CUmodule,
    kernels: HashMap<&'static str, Kernel>,
    work: sys::CUstream,
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
pub(super) enum Stream {
    /// Kernels, and what they need at once.
    Work,
    /// Copies beside them.
    Copies,
}

impl Gpu {
    /// Opens a device and loads the kernels.
    pub(super) fn open(number: u32) -> Result<Arc<Self>, CudaError> {
        load()?;
        let count = count()?;
        if number >= count {
            return Err(CudaError::NoDevice {
                wanted: number,
                count,
            });
        }
        let info = info(number)?;
        if info.driver < LEAST_DRIVER {
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
        gpu.load_kernels()?;
        for (name, parameters) in entries(PTX) {
            let mut function = null_mut();
            let c_name = CString::new(name).unwrap_or_default();
            driver!(cuModuleGetFunction(
                &raw mut function,
                gpu.module,
                c_name.as_ptr()
            ))?;
            gpu.kernels.insert(
                name,
                Kernel {
                    function,
                    parameters,
                    shared: AtomicU32::new(SHARED_BYTES),
                },
            );
        }
        let not_default = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        driver!(cuStreamCreate(&raw mut gpu.work, not_default))?;
        driver!(cuStreamCreate(&raw mut gpu.copies, not_default))?;
        Ok(Arc::new(gpu))
    }

    /// Compiles the kernels for this device. What the driver's compiler says is told where it
    /// fails.
    fn load_kernels(&mut self) -> Result<(), CudaError> {
        use sys::CUjit_option_enum as Option;
        let ptx = CString::new(PTX).unwrap_or_default();
        let mut log = [0_u8; 4096];
        let mut names = [
            Option::CU_JIT_ERROR_LOG_BUFFER,
            Option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES,
        ];
        // an option's value is a pointer, or a number in the place of one
        let mut values = [
            log.as_mut_ptr().cast(),
            std::ptr::without_provenance_mut::<c_void>(log.len() - 1),
        ];
        let (names, values) = (names.as_mut_ptr(), values.as_mut_ptr());
        let loaded = driver!(cuModuleLoadDataEx(
            &raw mut self.module,
            ptx.as_ptr().cast(),
            2,
            names,
            values
        ));
        loaded.map_err(|e| match e {
            CudaError::Call {
                call,
                name,
                description,
                out_of_memory,
            } => {
                let log: Vec<u8> = log.into_iter().take_while(|b| *b != 0).collect();
                let description =
                    format!("{description}; {}", String::from_utf8_lossy(&log).trim());
                CudaError::Call {
                    call,
                    name,
                    description,
                    out_of_memory,
                }
            }
            e => e,
        })
    }

    /// What it is.
    pub(super) fn info(&self) -> &DeviceInfo {
        &self.info
    }

    /// Makes it the calling thread's device.
    fn bind(&self) -> Result<(), CudaError> {
        driver!(cuCtxSetCurrent(self.context))
    }

    fn stream(&self, stream: Stream) -> sys::CUstream {
        match stream {
            Stream::Work => self.work,
            Stream::Copies => self.copies,
        }
    }

    /// Bytes that are free now.
    pub(super) fn free_memory(&self) -> Result<u64, CudaError> {
        self.bind()?;
        let (mut free, mut total) = (0, 0);
        driver!(cuMemGetInfo_v2(&raw mut free, &raw mut total))?;
        Ok(free as u64)
    }

    /// Memory of the device, not initialised.
    pub(super) fn alloc(
        self: &Arc<Self>,
        bytes: usize,
        what: &'static str,
    ) -> Result<Memory, CudaError> {
        self.bind()?;
        let mut start = 0;
        match driver!(cuMemAlloc_v2(&raw mut start, bytes.max(1))) {
            Err(CudaError::Call {
                out_of_memory: true,
                ..
            }) => Err(CudaError::OutOfMemory {
                bytes: bytes as u64,
                what,
            }),
            Err(e) => Err(e),
            Ok(()) => Ok(Memory {
                gpu: Arc::clone(self),
                start,
                bytes,
            }),
        }
    }

    /// Memory of the host that copies can be made from directly.
    pub(super) fn alloc_host(self: &Arc<Self>, bytes: usize) -> Result<HostMemory, CudaError> {
        self.bind()?;
        let mut start = null_mut();
        driver!(cuMemHostAlloc(&raw mut start, bytes.max(1), 0))?;
        // SAFETY: the driver gave so many bytes; they are initialised here
        unsafe { start.cast::<u8>().write_bytes(0, bytes.max(1)) };
        Ok(HostMemory {
            gpu: Arc::clone(self),
            start: start.cast(),
            bytes,
        })
    }

    /// Queues a copy to the device. The source has to stay as it is until the stream has come this
    /// far.
    ///
    /// # Safety
    /// `from` must live, unchanged, until a later wait for this stream has returned.
    pub(super) unsafe fn upload(
        &self,
        to: Place,
        from: &[u8],
        stream: Stream,
    ) -> Result<(), CudaError> {
        self.bind()?;
        if from.is_empty() {
            return Ok(());
        }
        driver!(cuMemcpyHtoDAsync_v2(
            to.0,
            from.as_ptr().cast(),
            from.len(),
            self.stream(stream)
        ))
    }

    /// Copies to the device and waits.
    pub(super) fn upload_now(&self, to: Place, from: &[u8]) -> Result<(), CudaError> {
        // SAFETY: the wait is in the next line
        unsafe { self.upload(to, from, Stream::Work)? };
        self.wait(Stream::Work)
    }

    /// Copies from the device and waits for it, and for all work before.
    pub(super) fn download(&self, to: &mut [u8], from: Place) -> Result<(), CudaError> {
        self.bind()?;
        if !to.is_empty() {
            driver!(cuMemcpyDtoHAsync_v2(
                to.as_mut_ptr().cast(),
                from.0,
                to.len(),
                self.work
            ))?;
        }
        self.wait(Stream::Work)
    }

    /// Queues a copy from the device.
    ///
    /// # Safety
    /// `to` must live, and not be read or written, until a later wait for the work has returned.
    pub(super) unsafe fn download_later(
        &self,
        to: &mut [u8],
        from: Place,
    ) -> Result<(), CudaError> {
        self.bind()?;
        driver!(cuMemcpyDtoHAsync_v2(
            to.as_mut_ptr().cast(),
            from.0,
            to.len(),
            self.work
        ))
    }

    /// Waits until a stream has nothing to do. What went wrong in it is reported here.
    pub(super) fn wait(&self, stream: Stream) -> Result<(), CudaError> {
        self.bind()?;
        driver!(cuStreamSynchronize(self.stream(stream)))
    }

    /// Queues a kernel.
    ///
    /// # Safety
    /// The arguments must be what the kernel expects (their sizes are checked), and the memory that
    /// they point to must be large enough and live until a later wait.
    pub(super) unsafe fn launch(
        &self,
        name: &'static str,
        grid: [u32; 3],
        block: u32,
        shared: u32,
        arguments: &[Argument],
    ) -> Result<(), CudaError> {
        self.bind()?;
        let unknown = |description: String| CudaError::Call {
            call: "cuLaunchKernel",
            name: name.to_owned(),
            description,
            out_of_memory: false,
        };
        let kernel = self
            .kernels
            .get(name)
            .ok_or_else(|| unknown("no such kernel".to_owned()))?;
        let sizes = arguments.iter().map(Argument::size);
        if !sizes.clone().eq(kernel.parameters.iter().copied()) {
            let sizes: Vec<usize> = sizes.collect();
            return Err(unknown(format!(
                "parameters of {sizes:?} bytes, wanted {:?}",
                kernel.parameters
            )));
        }
        if shared > kernel.shared.load(Ordering::Relaxed) {
            let most = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            driver!(cuFuncSetAttribute(
                kernel.function,
                most,
                shared.cast_signed()
            ))?;
            kernel.shared.store(shared, Ordering::Relaxed);
        }
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

    /// A mark that streams can wait for.
    pub(super) fn event(self: &Arc<Self>) -> Result<Event, CudaError> {
        self.bind()?;
        let mut event = null_mut();
        let no_time = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32;
        driver!(cuEventCreate(&raw mut event, no_time))?;
        Ok(Event {
            gpu: Arc::clone(self),
            event,
        })
    }

    /// From here on work is recorded instead of queued.
    pub(super) fn begin_recording(&self) -> Result<(), CudaError> {
        self.bind()?;
        let mode = sys::CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        driver!(cuStreamBeginCapture_v2(self.work, mode))
    }

    /// What was recorded, as one graph that can be launched again and again. Nothing of it has run.
    pub(super) fn end_recording(self: &Arc<Self>) -> Result<Graph, CudaError> {
        self.bind()?;
        let (mut graph, mut executable) = (null_mut(), null_mut());
        driver!(cuStreamEndCapture(self.work, &raw mut graph))?;
        let made = driver!(cuGraphInstantiateWithFlags(&raw mut executable, graph, 0));
        let destroyed = driver!(cuGraphDestroy(graph));
        made.and(destroyed)?;
        Ok(Graph {
            gpu: Arc::clone(self),
            executable,
        })
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

/// An address on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place(pub(super) u64);

impl Place {
    /// No address.
    pub(super) const NULL: Self = Self(0);

    /// So many bytes on.
    pub(super) fn byte(self, bytes: usize) -> Self {
        Self(self.0 + bytes as u64)
    }
}

/// Memory of the device, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Memory {
    gpu: Arc<Gpu>,
    start: u64,
    bytes: usize,
}

impl Memory {
    pub(super) fn place(&self) -> Place {
        Place(self.start)
    }

    pub(super) fn len(&self) -> usize {
        self.bytes
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let _ = self.gpu.wait(Stream::Work);
        let _ = driver!(cuMemFree_v2(self.start));
    }
}

/// Memory of the host that the device's copy engines reach, aligned to a page.
pub(super) struct HostMemory {
    gpu: Arc<Gpu>,
    start: *mut u8,
    bytes: usize,
}

// SAFETY: it owns its bytes alone, as a `Box<[u8]>` does
unsafe impl Send for HostMemory {}
// SAFETY: as above; shared references only read
unsafe impl Sync for HostMemory {}

impl fmt::Debug for HostMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HostMemory of {} bytes", self.bytes)
    }
}

impl Deref for HostMemory {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the driver gave these bytes, `alloc_host` initialised them, and they are this
        // value's alone
        unsafe { std::slice::from_raw_parts(self.start, self.bytes) }
    }
}

impl DerefMut for HostMemory {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`
        unsafe { std::slice::from_raw_parts_mut(self.start, self.bytes) }
    }
}

impl Drop for HostMemory {
    fn drop(&mut self) {
        for stream in [Stream::Work, Stream::Copies] {
            let _ = self.gpu.wait(stream);
        }
        let _ = driver!(cuMemFreeHost(self.start.cast()));
    }
}

/// A mark in a stream.
#[derive(Debug)]
pub(super) struct Event {
    gpu: Arc<Gpu>,
    event: sys::CUevent,
}

// SAFETY: as for `Gpu`
unsafe impl Send for Event {}
// SAFETY: as for `Gpu`
unsafe impl Sync for Event {}

impl Event {
    /// Marks what a stream was given so far.
    pub(super) fn record(&self, stream: Stream) -> Result<(), CudaError> {
        self.gpu.bind()?;
        driver!(cuEventRecord(self.event, self.gpu.stream(stream)))
    }

    /// Lets a stream wait for the mark.
    pub(super) fn hold(&self, stream: Stream) -> Result<(), CudaError> {
        self.gpu.bind()?;
        driver!(cuStreamWaitEvent(self.gpu.stream(stream), self.event, 0))
    }

    /// Waits for the mark.
    pub(super) fn wait(&self) -> Result<(), CudaError> {
        self.gpu.bind()?;
        driver!(cuEventSynchronize(self.event))
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        let _ = self.gpu.bind();
        let _ = driver!(cuEventDestroy_v2(self.event));
    }
}

/// Work that is launched as one.
#[derive(Debug)]
pub(super) struct Graph {
    gpu: Arc<Gpu>,
    executable: sys::CUgraphExec,
}

// SAFETY: as for `Gpu`
unsafe impl Send for Graph {}
// SAFETY: as for `Gpu`
unsafe impl Sync for Graph {}

impl Graph {
    /// Queues it.
    pub(super) fn launch(&self) -> Result<(), CudaError> {
        self.gpu.bind()?;
        driver!(cuGraphLaunch(self.executable, self.gpu.work))
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        let _ = self.gpu.wait(Stream::Work);
        let _ = driver!(cuGraphExecDestroy(self.executable));
    }
}

/// An argument of a kernel.
#[derive(Debug, Clone, Copy)]
pub(super) enum Argument {
    Place(Place),
    Long(u64),
    Int(i32),
    Float(f32),
    Product(Product),
    Products(Products),
    Norm(Norm),
    Choice(Choice),
    Experts(Experts),
}

impl Argument {
    fn size(&self) -> usize {
        match self {
            Self::Place(_) | Self::Long(_) => 8,
            Self::Int(_) | Self::Float(_) => 4,
            Self::Product(_) => size_of::<Product>(),
            Self::Products(_) => size_of::<Products>(),
            Self::Norm(_) => size_of::<Norm>(),
            Self::Choice(_) => size_of::<Choice>(),
            Self::Experts(_) => size_of::<Experts>(),
        }
    }

    fn pointer(&self) -> *mut c_void {
        let pointer: *const c_void = match self {
            Self::Place(Place(x)) | Self::Long(x) => (&raw const *x).cast(),
            Self::Int(x) => (&raw const *x).cast(),
            Self::Float(x) => (&raw const *x).cast(),
            Self::Product(x) => (&raw const *x).cast(),
            Self::Products(x) => (&raw const *x).cast(),
            Self::Norm(x) => (&raw const *x).cast(),
            Self::Choice(x) => (&raw const *x).cast(),
            Self::Experts(x) => (&raw const *x).cast(),
        };
        pointer.cast_mut()
    }
}

/// `Product` of device.cuh.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub(super) struct Product {
    pub(super) weight: u64,
    pub(super) bias: u64,
    pub(super) out: u64,
    pub(super) rows: i32,
    pub(super) bias_type: i32,
}

/// `Products` of device.cuh.
pub(super) type Products = [Product; 3];

/// `Norm` of dot.cuh.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub(super) struct Norm {
    pub(super) added: u64,
    pub(super) weight: u64,
    pub(super) sum: u64,
    pub(super) normed: u64,
    pub(super) kind: i32,
    pub(super) eps: f32,
}

/// `Choice` of router.cu.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct Choice {
    pub(super) probabilities: u64,
    pub(super) ids: u64,
    pub(super) weights: u64,
    pub(super) order: u64,
    pub(super) uses: u64,
}

/// `Experts` of gemm.cu.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct Experts {
    pub(super) table: u64,
    pub(super) sorted: u64,
    pub(super) tiles: u64,
    pub(super) x: u64,
    pub(super) out: u64,
    pub(super) rows: i32,
    pub(super) columns: i32,
    pub(super) divide: i32,
    pub(super) padding: i32,
}

/// The kernels of a PTX text, and the sizes of their parameters in bytes.
pub(super) fn entries(ptx: &str) -> impl Iterator<Item = (&str, Vec<usize>)> {
    ptx.split(".entry ").skip(1).filter_map(|entry| {
        let (name, rest) = entry.split_once('(')?;
        let (parameters, _) = rest.split_once(')')?;
        let sizes = parameters.lines().filter_map(|line| {
            let words = line.trim().trim_end_matches(',').strip_prefix(".param ")?;
            match words.split(' ').next()? {
                ".u64" => Some(8),
                ".u32" | ".f32" => Some(4),
                // .align 8 .b8 name[96]
                _ => words.rsplit_once('[')?.1.trim_end_matches(']').parse().ok(),
            }
        });
        Some((name.trim(), sizes.collect()))
    })
}
