//! How much memory requests take together.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes that the bodies of all requests may take together.
#[derive(Debug)]
pub(super) struct Room {
    limit: u64,
    held: AtomicU64,
}

impl Room {
    pub(super) fn new(limit: u64) -> Self {
        Self {
            limit,
            held: AtomicU64::new(0),
        }
    }

    /// So many bytes, until they are dropped; `None` where others hold too many.
    pub(super) fn hold(self: &Arc<Self>, bytes: u64) -> Option<Held> {
        let mut held = Held {
            room: Arc::clone(self),
            bytes: 0,
        };
        held.grow(bytes).then_some(held)
    }

    /// Bytes that are held now.
    pub(super) fn held(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }
}

/// A part of the room.
#[derive(Debug)]
pub(super) struct Held {
    room: Arc<Room>,
    bytes: u64,
}

impl Held {
    /// So many bytes more; false, and nothing is taken, where others hold too many.
    pub(super) fn grow(&mut self, more: u64) -> bool {
        let limit = self.room.limit;
        let grown = |held: u64| held.checked_add(more).filter(|held| *held <= limit);
        let taken = self
            .room
            .held
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, grown);
        if taken.is_ok() {
            self.bytes += more;
        }
        taken.is_ok()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.room.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_dropped_is_free_again() {
        let room = Arc::new(Room::new(10));
        let mut first = room.hold(4).unwrap();
        assert!(room.hold(7).is_none());
        assert!(first.grow(6) && !first.grow(1));
        assert_eq!(room.held(), 10);
        drop(first);
        assert!(room.hold(10).is_some());
        assert_eq!(room.held(), 0);
    }
}
