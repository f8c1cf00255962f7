//! Memory of the device, memory of the host that its copy engines reach, and copies.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::null_mut;
use std::sync::Arc;

use super::error::{CudaError, driver};
use super::gpu::{Gpu, Stream};
use super::pointer::DevicePtr;

/// Memory of the device, given back when it is dropped.
#[derive(Debug)]
pub(in crate::devices::cuda) struct DeviceMemory {
    gpu: Arc<Gpu>,
    start: u64,
    bytes: usize,
}

impl DeviceMemory {
    pub(in crate::devices::cuda) fn start(&self) -> DevicePtr {
        DevicePtr(self.start)
    }

    pub(in crate::devices::cuda) fn len(&self) -> usize {
        self.bytes
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        let _ = self.gpu.wait(Stream::Work);
        let _ = driver!(cuMemFree_v2(self.start));
    }
}

/// Memory of the host that the device's copy engines reach, aligned to a page.
pub(in crate::devices::cuda) struct HostMemory {
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

impl Gpu {
    /// Bytes that are free now.
    pub(in crate::devices::cuda) fn free_memory(&self) -> Result<u64, CudaError> {
        self.bind()?;
        let (mut free, mut total) = (0, 0);
        driver!(cuMemGetInfo_v2(&raw mut free, &raw mut total))?;
        Ok(free as u64)
    }

    /// Memory of the device, not initialised.
    pub(in crate::devices::cuda) fn alloc(
        self: &Arc<Self>,
        bytes: usize,
        what: &'static str,
    ) -> Result<DeviceMemory, CudaError> {
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
            Ok(()) => Ok(DeviceMemory {
                gpu: Arc::clone(self),
                start,
                bytes,
            }),
        }
    }

    /// Memory of the host that copies can be made from directly.
    pub(in crate::devices::cuda) fn alloc_host(
        self: &Arc<Self>,
        bytes: usize,
    ) -> Result<HostMemory, CudaError> {
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
    pub(in crate::devices::cuda) unsafe fn upload(
        &self,
        to: DevicePtr,
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
    pub(in crate::devices::cuda) fn upload_now(
        &self,
        to: DevicePtr,
        from: &[u8],
    ) -> Result<(), CudaError> {
        // SAFETY: the wait is in the next line
        unsafe { self.upload(to, from, Stream::Work)? };
        self.wait(Stream::Work)
    }

    /// Copies from the device and waits for it, and for all work before.
    pub(in crate::devices::cuda) fn download(
        &self,
        to: &mut [u8],
        from: DevicePtr,
    ) -> Result<(), CudaError> {
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
    pub(in crate::devices::cuda) unsafe fn download_later(
        &self,
        to: &mut [u8],
        from: DevicePtr,
    ) -> Result<(), CudaError> {
        self.bind()?;
        driver!(cuMemcpyDtoHAsync_v2(
            to.as_mut_ptr().cast(),
            from.0,
            to.len(),
            self.work
        ))
    }
}
