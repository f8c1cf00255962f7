//! Dense weights: loaded once and kept, or loaded again for every pass, a group at a time.

use segpack_formats::io::CancelToken;

use crate::error::RunError;
use crate::models::decoder::bind::Group;
use crate::weights::{Arena, Block, Residency};
use crate::weights::{Load, Loader, room_for};

/// The memory of all groups.
#[derive(Debug)]
pub(super) struct Dense {
    /// Of each group, once it is loaded; with streaming, `shared` is the one that is loaded.
    kept: Vec<Option<Block>>,
    arena: Arena,
    shared: Option<(usize, Block)>,
    residency: Residency,
}

impl Dense {
    /// Room for what is to be kept: all groups, or the largest of those that are streamed.
    pub(super) fn new(groups: &[Group<'_>], residency: Residency) -> Result<Self, RunError> {
        let room = match residency {
            Residency::Resident => groups.iter().map(|g| g.room).sum(),
            Residency::Streamed => streamed_room(groups),
        };
        let kept = groups.iter().map(|_| None).collect();
        Ok(Self {
            kept,
            arena: Arena::new(room)?,
            shared: None,
            residency,
        })
    }

    /// Loads a group if it is not there.
    pub(super) fn load(
        &mut self,
        number: usize,
        groups: &[Group<'_>],
        loader: &Loader<'_>,
        stop: &CancelToken,
    ) -> Result<(), RunError> {
        if self.is_there(number) {
            return Ok(());
        }
        let group = &groups[number];
        let mut block = match (self.residency, self.shared.take()) {
            (Residency::Resident, _) => self.arena.take(group.room)?,
            (Residency::Streamed, Some((_, block))) => block,
            (Residency::Streamed, None) => self.arena.take(streamed_room(groups))?,
        };
        let mut rest = &mut block[..];
        let mut loads = Vec::new();
        for segment in &group.segments {
            let room = usize::try_from(room_for(segment)).unwrap_or(usize::MAX);
            let (to, after) = rest.split_at_mut(room.min(rest.len()));
            rest = after;
            loads.push(Load { segment, to });
        }
        loader.load(&mut loads, stop)?;
        match self.residency {
            Residency::Resident => self.kept[number] = Some(block),
            Residency::Streamed => self.shared = Some((number, block)),
        }
        Ok(())
    }

    fn is_there(&self, number: usize) -> bool {
        self.kept[number].is_some() || self.shared.as_ref().is_some_and(|(n, _)| *n == number)
    }

    /// The memory of all groups that are there.
    pub(super) fn held(&self) -> impl Iterator<Item = &Block> {
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

/// The head, the last group, is streamed in blocks of its own.
pub(super) fn streamed_room(groups: &[Group<'_>]) -> usize {
    let all_but_head = groups.len().saturating_sub(1);
    groups[..all_but_head]
        .iter()
        .map(|g| g.room)
        .max()
        .unwrap_or(0)
}
