//! Dense weights on the GPU: every group at a place of its own, or one at a time where they are
//! streamed.

use std::sync::Arc;

use super::driver::{CudaError, Gpu, Memory, Place};
use super::layout::ALIGNMENT;
use crate::models::decoder::bind::Group;
use crate::weights::Residency;

/// Memory for the groups of a model.
pub(super) struct Dense {
    memory: Memory,
    rooms: Vec<Room>,
    residency: Residency,
}

/// Where a group lies, and whether its weights are there.
struct Room {
    at: usize,
    bytes: usize,
    is_loaded: bool,
}

/// Bytes that a group takes.
pub(super) fn room_of(group: &Group<'_>) -> usize {
    group.room.next_multiple_of(ALIGNMENT)
}

impl Dense {
    pub(super) fn new(
        gpu: &Arc<Gpu>,
        groups: &[Group<'_>],
        residency: Residency,
    ) -> Result<Self, CudaError> {
        let (mut bytes, mut rooms) = (0, Vec::new());
        for room in groups.iter().map(room_of) {
            let at = if residency == Residency::Resident {
                bytes
            } else {
                0
            };
            rooms.push(Room {
                at,
                bytes: room,
                is_loaded: false,
            });
            bytes = bytes.max(at + room);
        }
        Ok(Self {
            memory: gpu.alloc(bytes, "dense weights")?,
            rooms,
            residency,
        })
    }

    /// Where a group is and how long, if it is there.
    pub(super) fn find(&self, group: usize) -> Option<(Place, usize)> {
        let room = &self.rooms[group];
        room.is_loaded
            .then(|| (self.memory.place().byte(room.at), room.bytes))
    }

    /// Where a group has to be loaded to. What was there is gone.
    pub(super) fn begin(&mut self, group: usize) -> Place {
        match self.residency {
            Residency::Resident => self.rooms[group].is_loaded = false,
            Residency::Streamed => self
                .rooms
                .iter_mut()
                .for_each(|room| room.is_loaded = false),
        }
        self.memory.place().byte(self.rooms[group].at)
    }

    /// The group that was begun is there.
    pub(super) fn end(&mut self, group: usize) {
        self.rooms[group].is_loaded = true;
    }

    /// Whether all groups are there, which then stay.
    pub(super) fn is_complete(&self) -> bool {
        self.rooms.iter().all(|room| room.is_loaded)
    }
}
