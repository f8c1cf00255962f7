//! A generated text in words: what each token completes, where stop strings end it, its candidates.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use super::SessionError;
use super::tokens::{GenerationSettings, NamedCandidate, RankedContinuation, Token, TokenSink};
use crate::generate::{Candidate, Generated, Step, StopReason, rank_of, top_k_logits};
use crate::processing::text::{ReleasedText, StopStrings};
use crate::processing::{Continuation, PromptError, TextFrontend, TextStream};

/// Puts every step of one text into words for a sink.
pub(super) struct Narrator<'n> {
    text: &'n TextFrontend<'n>,
    settings: &'n GenerationSettings,
    stream: Option<TextStream<'n>>,
    stops: StopStrings,
    /// All text that a sink got.
    shown: String,
    stopped_by: Option<String>,
    /// Tokens that there can be.
    max_tokens: usize,
    began: Instant,
    /// From the beginning to the first token.
    pub(super) first: Option<Duration>,
    rank: Option<RankedContinuation>,
    failure: Option<SessionError>,
}

/// What is known of a text when it is over.
pub(super) struct Told {
    pub(super) text: String,
    pub(super) reason: StopReason,
    pub(super) stop_string: Option<String>,
    pub(super) rank: Option<RankedContinuation>,
}

impl<'n> Narrator<'n> {
    /// Of a text of at most so many tokens; times count from `began`.
    ///
    /// # Errors
    /// Stop strings that are empty, or without a tokenizer.
    pub(super) fn new(
        text: &'n TextFrontend<'n>,
        settings: &'n GenerationSettings,
        max_tokens: usize,
        began: Instant,
    ) -> Result<Self, SessionError> {
        let stops =
            StopStrings::new(settings.stop_strings.iter().cloned()).map_err(PromptError::from)?;
        let stream = text.stream();
        if stream.is_none() && !settings.stop_strings.is_empty() {
            return Err(PromptError::StopStringsWithoutText.into());
        }
        Ok(Self {
            text,
            settings,
            stream,
            stops,
            shown: String::new(),
            stopped_by: None,
            max_tokens,
            began,
            first: None,
            rank: None,
            failure: None,
        })
    }

    /// Tells the sink of a step. `Break` ends the text.
    pub(super) fn token(&mut self, step: &Step<'_>, sink: &mut dyn TokenSink) -> ControlFlow<()> {
        self.try_token(step, sink).unwrap_or_else(|e| {
            self.failure = Some(e);
            ControlFlow::Break(())
        })
    }

    /// The text is over.
    ///
    /// # Errors
    /// What ended it, where that was an error.
    pub(super) fn finish(self, generated: &Generated) -> Result<Told, SessionError> {
        if let Some(failure) = self.failure {
            return Err(failure);
        }
        let text = match self.settings.stop_strings.is_empty() {
            true => self.text.decode(&generated.ids),
            false => self.shown,
        };
        let reason = match &self.stopped_by {
            Some(_) => StopReason::StopString,
            None => generated.reason,
        };
        Ok(Told {
            text,
            reason,
            stop_string: self.stopped_by,
            rank: self.rank,
        })
    }

    fn try_token(
        &mut self,
        step: &Step<'_>,
        sink: &mut dyn TokenSink,
    ) -> Result<ControlFlow<()>, SessionError> {
        if step.index == 0 {
            self.first = Some(self.began.elapsed());
            let wanted = self.settings.rank.as_ref();
            self.rank = wanted.map(|c| self.rank(step.logits, c)).transpose()?;
        }
        let text = self.completed_text(step);
        let top = match self.settings.top_k_logits {
            0 => Vec::new(),
            k => self.named(top_k_logits(step.logits, k)?),
        };
        let chosen = match self.settings.chosen_logit {
            true => rank_of(step.logits, step.id)?.map(|rank| self.name(rank.candidate)),
            false => None,
        };
        let is_stopped = self.stopped_by.is_some();
        let token = Token {
            index: step.index,
            id: step.id,
            text: &text,
            is_stop: step.is_stop || is_stopped,
            top,
            chosen,
        };
        let flow = sink.token(&token);
        self.shown.push_str(&text);
        Ok(match is_stopped {
            true => ControlFlow::Break(()),
            false => flow,
        })
    }

    /// What this token completes; the last one also brings what waited in vain for its rest.
    fn completed_text(&mut self, step: &Step<'_>) -> String {
        let mut piece = self
            .stream
            .as_mut()
            .map_or_else(String::new, |s| s.push(step.id));
        let is_last = step.is_stop || step.index + 1 == self.max_tokens;
        if is_last {
            piece.extend(self.stream.take().map(TextStream::finish));
        }
        let ReleasedText {
            mut text,
            stopped_by,
        } = self.stops.push(&piece);
        if is_last && stopped_by.is_none() {
            text += &self.stops.finish();
        }
        self.stopped_by = stopped_by.and_then(|n| self.stops.strings().get(n).cloned());
        text
    }

    fn named(&self, candidates: Vec<Candidate>) -> Vec<NamedCandidate> {
        candidates
            .into_iter()
            .map(|candidate| self.name(candidate))
            .collect()
    }

    fn name(&self, candidate: Candidate) -> NamedCandidate {
        NamedCandidate {
            text: self.text.spell(candidate.id),
            candidate,
        }
    }

    fn rank(
        &self,
        logits: &[f32],
        continuation: &Continuation,
    ) -> Result<RankedContinuation, SessionError> {
        let Some(rank) = rank_of(logits, continuation.first)? else {
            let (text, id) = (continuation.text.clone(), continuation.first);
            return Err(SessionError::ContinuationOutside { text, id });
        };
        Ok(RankedContinuation {
            continuation: continuation.clone(),
            first: self.name(rank.candidate),
            rank: rank.rank,
        })
    }
}
