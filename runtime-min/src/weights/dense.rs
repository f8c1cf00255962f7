//! Dense weights in host memory: loaded once and kept, or loaded again for every forward pass, a
//! group at a time.

use segpack_formats::io::CancelToken;
use segpack_formats::io::to_usize;

use super::arena::{Arena, Block};
use super::budget::Residency;
use super::loader::{Load, Loader};
use super::placement::SegmentGroup;
use crate::error::RunError;

/// The memory of all groups.
#[derive(Debug)]
pub(super) struct DenseGroups {
    /// Of each group, once it is loaded; with streaming, `shared` is the one that is loaded.
    kept: Vec<Option<Block>>,
    arena: Arena,
    shared: Option<(usize, Block)>,
    residency: Residency,
}

impl DenseGroups {
    /// Memory for what is to be kept: all groups, or the largest of those that are streamed.
    pub(super) fn new(groups: &[SegmentGroup<'_>], residency: Residency) -> Result<Self, RunError> {
        let bytes = match residency {
            Residency::Resident => groups.iter().map(SegmentGroup::buffer_len).sum(),
            Residency::Streamed => streamed_bytes(groups),
        };
        Ok(Self {
            kept: groups.iter().map(|_| None).collect(),
            arena: Arena::new(bytes)?,
            shared: None,
            residency,
        })
    }

    /// Loads a group if it is not in memory.
    pub(super) fn load(
        &mut self,
        number: usize,
        groups: &[SegmentGroup<'_>],
        loader: &Loader<'_>,
        stop: &CancelToken,
    ) -> Result<(), RunError> {
        if self.is_loaded(number) {
            return Ok(());
        }
        let group = &groups[number];
        let mut block = match (self.residency, self.shared.take()) {
            (Residency::Resident, _) => self.arena.take(group.buffer_len())?,
            (Residency::Streamed, Some((_, block))) => block,
            (Residency::Streamed, None) => self.arena.take(streamed_bytes(groups))?,
        };
        // each segment gets its part of the block
        let mut rest = &mut block[..];
        let mut loads = Vec::new();
        for segment in group.segments() {
            let bytes = to_usize(segment.buffer_len()).min(rest.len());
            let (to, after) = rest.split_at_mut(bytes);
            rest = after;
            loads.push(Load::new(segment, to));
        }
        loader.load(&mut loads, stop)?;
        match self.residency {
            Residency::Resident => self.kept[number] = Some(block),
            Residency::Streamed => self.shared = Some((number, block)),
        }
        Ok(())
    }

    fn is_loaded(&self, number: usize) -> bool {
        self.kept[number].is_some() || self.shared.as_ref().is_some_and(|(n, _)| *n == number)
    }

    /// The memory of all groups that are loaded.
    pub(super) fn blocks(&self) -> impl Iterator<Item = &Block> {
        self.kept
            .iter()
            .flatten()
            .chain(self.shared.as_ref().map(|(_, block)| block))
    }

    /// The memory of a group that was loaded last, or is kept.
    pub(super) fn memory(&self, number: usize) -> &[u8] {
        match (&self.kept[number], &self.shared) {
            (Some(block), _) => block,
            (None, Some((n, block))) if *n == number => block,
            _ => &[],
        }
    }
}

/// Bytes of the largest group that is streamed: of all but the last one, which is the head's and is
/// streamed in blocks of its own.
pub fn streamed_bytes(groups: &[SegmentGroup<'_>]) -> usize {
    let all_but_head = groups.len().saturating_sub(1);
    groups[..all_but_head]
        .iter()
        .map(SegmentGroup::buffer_len)
        .max()
        .unwrap_or(0)
}
