//! The prompts of a reference in the same forward passes, each expert read once for all of them.

use std::collections::VecDeque;
use std::time::Instant;

use segpack_runtime_min::Observer;
use segpack_runtime_min::session::{
    BatchRoom, Logits, Model, SequenceId, SequenceNeed, SequenceTokens,
};

use super::compare::{Comparer, Reference, Tally};
use super::{Compared, Job};
use crate::steps::StepError;

/// A prompt on its way, and where it is.
struct Lane<'r> {
    compared: Compared<'r>,
    sequence: SequenceId,
    /// Forward passes that were run of it.
    passes: usize,
}

impl Lane<'_> {
    /// What the next forward pass runs of it; none where it is over.
    fn next<'s>(&self, job: &Job<'s>) -> Option<&'s [u32]> {
        job.sequences[self.compared.number]
            .passes()
            .nth(self.passes)
    }

    /// The same, with all logits.
    fn part<'s>(&self, job: &Job<'s>) -> SequenceTokens<'s> {
        SequenceTokens {
            sequence: self.sequence,
            ids: self.next(job).unwrap_or_default(),
            want: Logits::All,
        }
    }
}

impl Job<'_> {
    /// As many prompts at a time as there is room for. What is found is added in their order, so that
    /// a report does not depend on that.
    pub(super) fn run_together<'r>(
        &self,
        model: &mut Model<'_>,
        room: BatchRoom,
        reference: &mut dyn FnMut(usize) -> Result<Box<dyn Reference + 'r>, StepError>,
    ) -> Result<Tally, StepError> {
        let began = Instant::now();
        let mut waiting: VecDeque<usize> = (0..self.sequences.len()).collect();
        let mut lanes: Vec<Lane<'r>> = Vec::new();
        let mut found: Vec<Option<Tally>> = Vec::new();
        found.resize_with(self.sequences.len(), || None);
        let mut passes = 0;
        while !(waiting.is_empty() && lanes.is_empty()) {
            // prompts for which there is room begin
            while let Some(&number) = waiting.front() {
                let running: Vec<SequenceNeed> = lanes.iter().map(|l| self.taken(l)).collect();
                let need = self.sequences[number].need();
                if !room.has_room(&running, need) {
                    break;
                }
                waiting.pop_front();
                lanes.push(Lane {
                    compared: Compared::new(number, reference(number)?),
                    sequence: model.open_sequence(need.positions)?,
                    passes: 0,
                });
            }
            self.pass(model, &mut lanes)?;
            passes += 1;
            // those that are over give their room back
            for lane in lanes.extract_if(.., |lane| lane.next(self).is_none()) {
                model.close_sequence(lane.sequence);
                found[lane.compared.number] = Some(lane.compared.tally);
            }
        }
        let seconds = began.elapsed().as_secs_f64();
        let all = self.sequences.len();
        self.progress.note(&format!(
            "{all} prompts together in {passes} forward passes: {seconds:.2} s"
        ));
        let mut tally = Tally::default();
        found.into_iter().flatten().for_each(|one| tally.merge(one));
        Ok(tally)
    }

    /// What a prompt takes of the room.
    fn taken(&self, lane: &Lane<'_>) -> SequenceNeed {
        SequenceNeed {
            tokens: lane.next(self).map_or(0, <[u32]>::len),
            positions: self.sequences[lane.compared.number].need().positions,
        }
    }

    /// One forward pass of all that are on their way, compared.
    fn pass(&self, model: &mut Model<'_>, lanes: &mut [Lane<'_>]) -> Result<(), StepError> {
        let facts = model.facts().clone();
        let parts: Vec<SequenceTokens<'_>> = lanes.iter().map(|lane| lane.part(self)).collect();
        let mut comparers: Vec<Comparer<'_>> = lanes
            .iter_mut()
            .map(|lane| lane.compared.comparer(self, &facts))
            .collect();
        let mut observers: Vec<&mut dyn Observer> = comparers
            .iter_mut()
            .map(|comparer| comparer as &mut dyn Observer)
            .collect();
        let logits = model.forward_batch(&parts, &mut observers)?;
        for ((comparer, logits), part) in comparers.iter_mut().zip(&logits).zip(&parts) {
            comparer.compare_logits(logits, part.ids.len())?;
        }
        let positions: Vec<usize> = comparers.iter().map(|comparer| comparer.position).collect();
        for (lane, position) in lanes.iter_mut().zip(positions) {
            lane.compared.position = position;
            lane.passes += 1;
        }
        Ok(())
    }
}
