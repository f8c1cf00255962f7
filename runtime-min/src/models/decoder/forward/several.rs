//! Forward passes of several sequences.

use std::time::Instant;

use super::Decoder;
use crate::error::RunError;
use crate::models::decoder::batch::{SequenceTokens, Span, SplitObserver, logit_rows, spans};
use crate::models::decoder::executor::{Backend, DecoderExecutor};
use crate::models::decoder::media::Places;
use crate::models::decoder::observer::{Observer, Unobserved};
use crate::models::decoder::{Rotary, SequenceId};

impl<B: Backend> Decoder<'_, B> {
    /// Opens a sequence with room for so many positions, of a decoder whose settings have room for
    /// several. Closing it gives them back.
    ///
    /// # Errors
    /// `TooLong` where fewer positions are free; `OutOfMemory`; `Internal` on a device that runs one
    /// sequence alone.
    pub fn open_sequence(&mut self, positions: usize) -> Result<SequenceId, RunError> {
        self.executor.open_sequence(positions)
    }

    /// Forgets a sequence.
    pub fn close_sequence(&mut self, sequence: SequenceId) {
        self.executor.close_sequence(sequence);
    }

    /// Runs tokens of several sequences, each after those that it has: each weight is read once for
    /// all of them. Returns the logits of each, `[vocab]` or `[tokens, vocab]`: the same bits as if
    /// it were run alone. `observers` has one for each of the parts, or is empty.
    ///
    /// # Errors
    /// `TokenId`, `TooLong`; damage of the pack; `Internal` where a sequence is not open, comes twice
    /// or has no tokens.
    pub fn forward_batch(
        &mut self,
        parts: &[SequenceTokens<'_>],
        observers: &mut [&mut dyn Observer],
    ) -> Result<Vec<Vec<f32>>, RunError> {
        let began = Instant::now();
        let logits = self.run_batch(parts, observers);
        self.stats.forward += began.elapsed();
        logits
    }

    fn run_batch(
        &mut self,
        parts: &[SequenceTokens<'_>],
        observers: &mut [&mut dyn Observer],
    ) -> Result<Vec<Vec<f32>>, RunError> {
        self.stop.check()?;
        self.check_parts(parts, observers.len())?;
        let spans = spans(parts);
        let rotary = self.rotary_of(&spans)?;
        self.executor.begin_batch(spans.clone(), rotary)?;
        // each token's embedding, and all layers
        let ids: Vec<u32> = parts.iter().flat_map(|part| part.ids).copied().collect();
        let embedded = self.embed(&ids)?;
        self.executor.set_residual(embedded)?;
        if observers.is_empty() {
            self.layers(ids.len(), None, &mut Unobserved)?;
        } else {
            let spans = &spans;
            let mut split = SplitObserver { spans, observers };
            self.layers(ids.len(), None, &mut split)?;
        }
        // logits of the wanted tokens
        let rows = logit_rows(parts, &spans);
        let logits = self.executor.logits_of_rows(&self.weights, &rows)?;
        let (mut rest, mut of_parts) = (&logits[..], Vec::new());
        for part in parts {
            let (own, others) = rest.split_at(part.logit_rows() * self.spec.vocab);
            of_parts.push(own.to_vec());
            rest = others;
        }
        Ok(of_parts)
    }

    fn check_parts(&self, parts: &[SequenceTokens<'_>], observers: usize) -> Result<(), RunError> {
        if observers > 0 && observers != parts.len() {
            return Err(RunError::Internal("one observer for each sequence"));
        }
        for (number, part) in parts.iter().enumerate() {
            let before = &parts[..number];
            if before.iter().any(|other| other.sequence == part.sequence) {
                return Err(RunError::Internal("a sequence comes twice in a pass"));
            }
            if part.ids.is_empty() {
                return Err(RunError::Internal("a sequence without tokens"));
            }
            let [positions, reserved] = self.positions_of(part.sequence)?;
            let wanted = positions + part.ids.len();
            if wanted > reserved {
                return Err(RunError::TooLong { wanted, reserved });
            }
            self.check_ids(part.ids)?;
        }
        Ok(())
    }

    fn positions_of(&self, sequence: SequenceId) -> Result<[usize; 2], RunError> {
        let positions = self.executor.sequence_positions(sequence);
        positions.ok_or(RunError::Internal("no such sequence"))
    }

    /// The rotary embedding of each sequence's next positions, those of text.
    fn rotary_of(&self, spans: &[Span]) -> Result<Rotary, RunError> {
        let text = Places::default();
        let mut places = Vec::new();
        for span in spans {
            let [first, _] = self.positions_of(span.sequence)?;
            places.extend(text.of_tokens(first..first + span.tokens.len()));
        }
        Ok(self.spec.rotary(self.compute, places.into_iter()))
    }
}
