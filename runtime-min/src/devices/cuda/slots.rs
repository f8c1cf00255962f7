//! Slots for experts: on the GPU, and in host memory that its copy engines reach.

use std::sync::Arc;

use super::driver::{CudaError, Event, Gpu, HostMemory, Memory, Place};
use crate::models::decoder::bind::Expert;
use crate::models::decoder::index;
use crate::weights::{Budget, Demand, Eviction, ExpertCache};

/// Slots for experts, on the device and in host memory.
pub(super) struct Slots {
    /// One after the other.
    pub(super) _memory: Option<Memory>,
    pub(super) cache: ExpertCache<Slot>,
    pub(super) host: ExpertCache<HostSlot>,
    pub(super) copied: Event,
    /// Whether all experts of the model have slots.
    pub(super) all: bool,
}

/// A slot on the device, and the last work that reads it.
pub(super) struct Slot {
    pub(super) place: Place,
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
        demand: &Demand,
        budget: &Budget,
        host: u64,
        all: bool,
    ) -> Result<Self, CudaError> {
        let (room, slots) = (index(demand.expert), index(budget.slots));
        let memory = if slots > 0 {
            Some(gpu.alloc(room * slots, "experts")?)
        } else {
            None
        };
        let start = memory.as_ref().map_or(Place::NULL, Memory::place);
        let slot = |i| {
            Ok(Slot {
                place: start.byte(i * room),
                used: gpu.event()?,
            })
        };
        let host_slot = |_| {
            Ok(HostSlot {
                memory: gpu.alloc_host(room)?,
                copied: gpu.event()?,
            })
        };
        Ok(Self {
            cache: ExpertCache::new(
                (0..slots).map(slot).collect::<Result<_, CudaError>>()?,
                Eviction::default(),
            ),
            host: ExpertCache::new(
                (0..host).map(host_slot).collect::<Result<_, CudaError>>()?,
                Eviction::default(),
            ),
            copied: gpu.event()?,
            _memory: memory,
            all,
        })
    }
}

/// Where an expert's matrices are, as the kernels' table has it.
pub(super) fn entry(slot: Place, expert: &Expert<'_>) -> [u8; 24] {
    let mut bytes = [0; 24];
    for (to, weight) in
        bytes
            .as_chunks_mut::<8>()
            .0
            .iter_mut()
            .zip([expert.gate, expert.up, expert.down])
    {
        *to = slot.byte(weight.at).0.to_le_bytes();
    }
    bytes
}
