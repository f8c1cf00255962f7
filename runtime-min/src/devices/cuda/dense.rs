//! Dense weights on the GPU: every group in memory of its own, or one at a time where they are
//! streamed.

use std::sync::Arc;

use super::driver::{CudaError, DeviceMemory, DevicePtr, Gpu};
use crate::weights::{Residency, SegmentGroup};

/// Every buffer begins at a multiple of this.
pub(super) const ALIGNMENT: usize = 512;

/// Memory for the groups of a model.
pub(super) struct DeviceGroups {
    memory: DeviceMemory,
    groups: Vec<GroupMemory>,
    residency: Residency,
}

/// Where a group lies, and whether its weights are there.
struct GroupMemory {
    offset: usize,
    bytes: usize,
    is_loaded: bool,
}

/// Bytes that a group takes.
pub(super) fn group_bytes(group: &SegmentGroup<'_>) -> usize {
    group.buffer_len().next_multiple_of(ALIGNMENT)
}

impl DeviceGroups {
    pub(super) fn new(
        gpu: &Arc<Gpu>,
        groups: &[SegmentGroup<'_>],
        residency: Residency,
    ) -> Result<Self, CudaError> {
        let (mut end, mut memories) = (0, Vec::new());
        for bytes in groups.iter().map(group_bytes) {
            let offset = match residency {
                Residency::Resident => end,
                Residency::Streamed => 0,
            };
            memories.push(GroupMemory {
                offset,
                bytes,
                is_loaded: false,
            });
            end = end.max(offset + bytes);
        }
        Ok(Self {
            memory: gpu.alloc(end, "dense weights")?,
            groups: memories,
            residency,
        })
    }

    /// Where a group is and how long, if it is there.
    pub(super) fn find(&self, group: usize) -> Option<(DevicePtr, usize)> {
        let group = &self.groups[group];
        group
            .is_loaded
            .then(|| (self.memory.start().offset(group.offset), group.bytes))
    }

    /// Where a group has to be loaded to. What was there is gone.
    pub(super) fn begin(&mut self, group: usize) -> DevicePtr {
        match self.residency {
            Residency::Resident => self.groups[group].is_loaded = false,
            Residency::Streamed => self.groups.iter_mut().for_each(|g| g.is_loaded = false),
        }
        self.memory.start().offset(self.groups[group].offset)
    }

    /// The group that was begun is there.
    pub(super) fn end(&mut self, group: usize) {
        self.groups[group].is_loaded = true;
    }

    /// Whether all groups are there, which then stay.
    pub(super) fn is_complete(&self) -> bool {
        self.groups.iter().all(|group| group.is_loaded)
    }
}
