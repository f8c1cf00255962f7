//! The order of work: events between streams, and graphs of recorded work.

use std::ptr::null_mut;
use std::sync::Arc;

use cudarc::driver::sys;

use super::error::{CudaError, driver};
use super::gpu::{Gpu, Stream};

/// A mark in a stream.
#[derive(Debug)]
pub(in crate::devices::cuda) struct Event {
    gpu: Arc<Gpu>,
    event: sys::CUevent,
}

// SAFETY: as for `Gpu`
unsafe impl Send for Event {}
// SAFETY: as for `Gpu`
unsafe impl Sync for Event {}

impl Event {
    /// Marks what a stream was given so far.
    pub(in crate::devices::cuda) fn record(&self, stream: Stream) -> Result<(), CudaError> {
        self.gpu.bind()?;
        driver!(cuEventRecord(self.event, self.gpu.stream(stream)))
    }

    /// Lets a stream wait for the mark.
    pub(in crate::devices::cuda) fn hold(&self, stream: Stream) -> Result<(), CudaError> {
        self.gpu.bind()?;
        driver!(cuStreamWaitEvent(self.gpu.stream(stream), self.event, 0))
    }

    /// Waits for the mark.
    pub(in crate::devices::cuda) fn wait(&self) -> Result<(), CudaError> {
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
pub(in crate::devices::cuda) struct Graph {
    gpu: Arc<Gpu>,
    executable: sys::CUgraphExec,
}

// SAFETY: as for `Gpu`
unsafe impl Send for Graph {}
// SAFETY: as for `Gpu`
unsafe impl Sync for Graph {}

impl Graph {
    /// Queues it.
    pub(in crate::devices::cuda) fn launch(&self) -> Result<(), CudaError> {
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

impl Gpu {
    /// A mark that streams can wait for.
    pub(in crate::devices::cuda) fn event(self: &Arc<Self>) -> Result<Event, CudaError> {
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
    pub(in crate::devices::cuda) fn begin_recording(&self) -> Result<(), CudaError> {
        self.bind()?;
        let mode = sys::CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        driver!(cuStreamBeginCapture_v2(self.work, mode))
    }

    /// What was recorded, as one graph that can be launched again and again. Nothing of it has run.
    pub(in crate::devices::cuda) fn end_recording(self: &Arc<Self>) -> Result<Graph, CudaError> {
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
