//! One prompt of a batch, while its text grows.

use std::time::Instant;

use super::{BatchPrompt, BatchText, SequenceNeed};
use crate::error::RunError;
use crate::generate::{DraftCounts, GenerateError, Generated, Sampler, StopReason, Text};
use crate::models::decoder::SequenceId;
use crate::processing::TextFrontend;
use crate::session::SessionError;
use crate::session::narrator::Narrator;
use crate::session::tokens::TokenSink;

/// A prompt, and the text so far.
pub(super) struct Running<'p> {
    pub(super) number: usize,
    /// `None` where it is the only one of a device that runs one alone.
    pub(super) sequence: Option<SequenceId>,
    /// Positions that it has room for.
    pub(super) reserved: usize,
    /// Positions that it has after the next forward pass.
    positions: usize,
    /// What the next forward pass runs of it.
    pub(super) next: Vec<u32>,
    max_new_tokens: usize,
    sampler: Sampler,
    text: Text<'p>,
    narrator: Narrator<'p>,
    began: Instant,
}

impl<'p> Running<'p> {
    /// Whether the settings of a prompt can be used.
    ///
    /// # Errors
    /// Sampling settings out of range; stop strings that are empty, or without a tokenizer.
    pub(super) fn check(text: &TextFrontend<'_>, prompt: &BatchPrompt) -> Result<(), SessionError> {
        prompt.settings.sampler()?;
        Narrator::new(text, &prompt.settings, 0, Instant::now())?;
        Ok(())
    }

    /// Nothing is run yet.
    pub(super) fn new(
        text: &'p TextFrontend<'p>,
        (number, prompt): (usize, &'p BatchPrompt),
        reserved: usize,
        began: Instant,
    ) -> Result<Self, SessionError> {
        let settings = &prompt.settings;
        // the last token is not run through the model, so it needs no position
        let free = reserved.saturating_sub(prompt.ids.len());
        let max_new_tokens = settings.max_new_tokens.min(free + 1);
        let stop_ids = settings.stop_ids.as_ref();
        Ok(Self {
            number,
            sequence: None,
            reserved,
            positions: prompt.ids.len(),
            next: prompt.ids.clone(),
            max_new_tokens: settings.max_new_tokens,
            sampler: settings.sampler()?,
            text: Text::new(stop_ids.unwrap_or(&text.stop_ids().ids)),
            narrator: Narrator::new(text, settings, max_new_tokens, began)?,
            began,
        })
    }

    /// What it takes of the room of a batch.
    pub(super) fn need(&self) -> SequenceNeed {
        SequenceNeed {
            tokens: self.next.len(),
            positions: self.reserved,
        }
    }

    /// The next token, from the logits of the last; why it is the last, where it is.
    pub(super) fn choose(
        &mut self,
        logits: &[f32],
        sink: &mut dyn TokenSink,
    ) -> Result<Option<StopReason>, SessionError> {
        let narrator = &mut self.narrator;
        let chosen: Result<_, GenerateError<RunError>> =
            self.text.choose(logits, &mut self.sampler, &mut |step| {
                narrator.token(&step, sink)
            });
        let reason = chosen?.or(self.is_full());
        self.next = self.text.ids.last().copied().into_iter().collect();
        self.positions += 1;
        Ok(reason)
    }

    /// Whether there is no room for another token.
    fn is_full(&self) -> Option<StopReason> {
        match self.text.ids.len() {
            n if n >= self.max_new_tokens => Some(StopReason::MaxNewTokens),
            _ if self.positions >= self.reserved => Some(StopReason::ContextFull),
            _ => None,
        }
    }

    /// The text is over.
    pub(super) fn finish(self, reason: StopReason) -> Result<BatchText, SessionError> {
        let first = self.narrator.first.unwrap_or_default();
        let generated = Generated {
            ids: self.text.ids,
            reason,
            drafts: DraftCounts::default(),
        };
        let reported = self.narrator.finish(&generated)?;
        Ok(BatchText {
            ids: generated.ids,
            text: reported.text,
            stop_reason: reported.reason,
            stop_string: reported.stop_string,
            time_to_first_token: first,
            time_to_last_token: self.began.elapsed(),
        })
    }
}
