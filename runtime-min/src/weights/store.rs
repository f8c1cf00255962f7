//! All weights of a network in host memory: dense groups and experts, loaded when they are needed.

use segpack_formats::io::CancelToken;
use segpack_formats::io::to_usize;
use segpack_manifests::PackReader;

use super::arena::{Arena, Block};
use super::budget::{Budget, Residency};
use super::checksum::ChecksumPolicy;
use super::dense::DenseGroups;
use super::expert_cache::{CacheStats, ExpertCache, ExpertKey};
use super::loader::{Load, LoadStats, Loader};
use super::placement::{SegmentGroup, SegmentLoad};
use crate::error::RunError;

/// Experts that are loaded together: enough reads in flight, and more than most models send one
/// token to.
pub const MAX_LOADS: usize = 16;

/// An expert and the segment that holds it.
pub type ExpertSegment<'a> = (ExpertKey, SegmentLoad<'a>);

/// The weights of one network, within its budget.
pub struct WeightStore<'a> {
    loader: Loader<'a>,
    dense: DenseGroups,
    residency: Residency,
    experts: ExpertCache<Block>,
    stop: &'a CancelToken,
}

/// What loading experts takes, apart from each other: while the loader reads, the cache can be
/// asked.
pub(crate) struct ExpertStore<'s, 'a> {
    pub(crate) cache: &'s mut ExpertCache<Block>,
    pub(crate) loader: &'s Loader<'a>,
    pub(crate) stop: &'s CancelToken,
}

impl<'a> WeightStore<'a> {
    /// Memory for these groups and for `slot_bytes` for each of the budget's experts. Nothing is
    /// loaded yet.
    ///
    /// # Errors
    /// `OutOfMemory`, `Threads`.
    pub fn new(
        source: &'a PackReader<'a>,
        groups: &[SegmentGroup<'_>],
        budget: &Budget,
        slot_bytes: u64,
        checksums: ChecksumPolicy,
        stop: &'a CancelToken,
    ) -> Result<Self, RunError> {
        let slots = expert_slots(to_usize(slot_bytes), budget.slots)?;
        Ok(Self {
            loader: Loader::new(source, checksums)?,
            dense: DenseGroups::new(groups, budget.residency)?,
            residency: budget.residency,
            experts: ExpertCache::new(slots),
            stop,
        })
    }

    /// Loads a group of dense weights if it is not in memory.
    ///
    /// # Errors
    /// As [`Loader::load`].
    pub fn load_group(
        &mut self,
        number: usize,
        groups: &[SegmentGroup<'_>],
    ) -> Result<(), RunError> {
        self.dense.load(number, groups, &self.loader, self.stop)
    }

    /// The memory of a group that was loaded last, or is kept; else nothing.
    pub fn group(&self, number: usize) -> &[u8] {
        self.dense.memory(number)
    }

    /// Loads all that the budget keeps: the groups, if they are resident, and as many experts as
    /// have a slot, in this order. Calls `report` with the raw bytes that came since the last call.
    ///
    /// # Errors
    /// As [`Loader::load`].
    pub fn preload(
        &mut self,
        groups: &[SegmentGroup<'_>],
        experts: impl Iterator<Item = ExpertSegment<'a>>,
        report: &mut dyn FnMut(u64),
    ) -> Result<(), RunError> {
        if self.residency == Residency::Resident {
            for (number, group) in groups.iter().enumerate() {
                self.load_group(number, groups)?;
                report(group.raw_bytes());
            }
        }
        let absent: Vec<ExpertSegment<'_>> = experts
            .filter(|(key, _)| self.experts.get(*key).is_none())
            .collect();
        absent
            .chunks(MAX_LOADS)
            .try_for_each(|some| self.preload_experts(some, report))
    }

    /// Loads some experts, as far as slots are free.
    fn preload_experts(
        &mut self,
        experts: &[ExpertSegment<'_>],
        report: &mut dyn FnMut(u64),
    ) -> Result<(), RunError> {
        let mut slots: Vec<Block> = experts
            .iter()
            .map_while(|_| self.experts.take(|_| true))
            .collect();
        let mut loads: Vec<Load<'_, '_>> = experts
            .iter()
            .zip(&mut slots)
            .map(|((_, load), slot)| Load::new(load, &mut slot[..]))
            .collect();
        let loaded = self.loader.load(&mut loads, self.stop);
        for ((key, load), slot) in experts.iter().zip(slots) {
            match loaded {
                Ok(()) => self.experts.put(*key, slot),
                Err(_) => self.experts.put_empty(slot),
            }
            report(load.segment.raw_length);
        }
        Ok(loaded?)
    }

    /// The experts' part.
    pub(crate) fn experts(&mut self) -> ExpertStore<'_, 'a> {
        ExpertStore {
            cache: &mut self.experts,
            loader: &self.loader,
            stop: self.stop,
        }
    }

    /// The weights that are in memory now, as stored bytes in no order.
    pub fn blocks(&self) -> impl Iterator<Item = &Block> {
        self.dense.blocks().chain(self.experts.held())
    }

    /// What loading took so far.
    pub fn load_stats(&self) -> LoadStats {
        self.loader.stats()
    }

    /// What the expert cache did so far.
    pub fn cache_stats(&self) -> CacheStats {
        self.experts.stats()
    }
}

/// Slots of one arena.
fn expert_slots(bytes: usize, count: u64) -> Result<Vec<Block>, RunError> {
    let mut arena = Arena::new(bytes.saturating_mul(to_usize(count)))?;
    (0..count).map(|_| arena.take(bytes)).collect()
}
