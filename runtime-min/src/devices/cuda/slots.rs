//! Slots for experts: on the GPU, and in host memory that its copy engines reach.

use segpack_formats::io::to_usize;
use std::sync::Arc;

use super::driver::{CudaError, DeviceMemory, DevicePtr, Event, Gpu, HostMemory};
use crate::models::decoder::bind::ExpertWeights;
use crate::weights::{Budget, ExpertCache, NetworkDemand};

/// Slots for experts, on the device and in host memory.
pub(super) struct Slots {
    /// One after the other.
    pub(super) _memory: Option<DeviceMemory>,
    pub(super) cache: ExpertCache<Slot>,
    pub(super) host: ExpertCache<HostSlot>,
    pub(super) copied: Event,
    /// Whether all experts of the model have slots.
    pub(super) has_all: bool,
}

/// A slot on the device, and the last work that reads it.
pub(super) struct Slot {
    pub(super) ptr: DevicePtr,
    pub(super) used: Event,
}

/// A slot in host memory, and the last copy from it.
pub(super) struct HostSlot {
    pub(super) memory: HostMemory,
    pub(super) copied: Event,
}
impl Slots {
    pub(super) fn new(
        gpu: &Arc<Gpu>,
        demand: &NetworkDemand,
        budget: &Budget,
        host: u64,
        has_all: bool,
    ) -> Result<Self, CudaError> {
        let (bytes, slots) = (to_usize(demand.expert), to_usize(budget.slots));
        let memory = if slots > 0 {
            Some(gpu.alloc(bytes * slots, "experts")?)
        } else {
            None
        };
        let start = memory.as_ref().map_or(DevicePtr::NULL, DeviceMemory::start);
        let device = (0..slots)
            .map(|i| Slot::new(gpu, start.offset(i * bytes)))
            .collect::<Result<_, CudaError>>()?;
        let host = (0..host)
            .map(|_| HostSlot::new(gpu, bytes))
            .collect::<Result<_, CudaError>>()?;
        Ok(Self {
            cache: ExpertCache::new(device),
            host: ExpertCache::new(host),
            copied: gpu.event()?,
            _memory: memory,
            has_all,
        })
    }
}

impl Slot {
    fn new(gpu: &Arc<Gpu>, ptr: DevicePtr) -> Result<Self, CudaError> {
        Ok(Self {
            ptr,
            used: gpu.event()?,
        })
    }
}

impl HostSlot {
    fn new(gpu: &Arc<Gpu>, bytes: usize) -> Result<Self, CudaError> {
        Ok(Self {
            memory: gpu.alloc_host(bytes)?,
            copied: gpu.event()?,
        })
    }
}

/// Bytes of an expert in the kernels' table: three addresses.
pub(super) const ENTRY_BYTES: usize = 24;

/// Where an expert's matrices are, as the kernels' table has it.
pub(super) fn entry(slot: DevicePtr, expert: &ExpertWeights<'_>) -> [u8; ENTRY_BYTES] {
    let mut bytes = [0; ENTRY_BYTES];
    for (to, weight) in bytes
        .as_chunks_mut::<8>()
        .0
        .iter_mut()
        .zip([&expert.gate, &expert.up, &expert.down].map(|l| l.weight))
    {
        *to = slot.offset(weight.offset).0.to_le_bytes();
    }
    bytes
}
