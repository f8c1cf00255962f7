//! The tokens of a run, one by one.

use std::ops::ControlFlow;

use segpack_manifests::documents::{RunToken, ShownCandidate};
use segpack_runtime_min::session::{NamedCandidate, Note, Token, TokenSink};

use super::{Listener, RunEvent};
use crate::steps::StepError;

/// Hands tokens and notes to a listener, and ends the text at its first error.
pub(super) struct Stream<'l, 'f> {
    listener: &'l mut Listener<'f>,
    /// Whether routers may choose among some experts only.
    restricted: bool,
    failure: Option<StepError>,
}

impl<'l, 'f> Stream<'l, 'f> {
    pub(super) fn new(listener: &'l mut Listener<'f>, restricted: bool) -> Self {
        Self {
            listener,
            restricted,
            failure: None,
        }
    }

    /// # Errors
    /// What the listener returned.
    pub(super) fn finish(self) -> Result<(), StepError> {
        self.failure.map_or(Ok(()), Err)
    }

    fn tell(&mut self, event: RunEvent<'_>) -> ControlFlow<()> {
        if self.failure.is_none() {
            self.failure = (self.listener)(event).err();
        }
        match self.failure {
            Some(_) => ControlFlow::Break(()),
            None => ControlFlow::Continue(()),
        }
    }
}

impl TokenSink for Stream<'_, '_> {
    fn note(&mut self, note: &Note) {
        // an error is kept, and ends the text at its first token
        let _ = self.tell(RunEvent::Note(&note.to_string()));
    }

    fn token(&mut self, token: &Token<'_>) -> ControlFlow<()> {
        let token = RunToken {
            index: token.index as u64,
            id: token.id,
            text: token.text.to_owned(),
            stop: token.is_stop,
            top: token.top.iter().map(shown).collect(),
            restricted: self.restricted,
        };
        self.tell(RunEvent::Token(&token))
    }
}

/// A candidate as documents have it.
pub(super) fn shown(named: &NamedCandidate) -> ShownCandidate {
    ShownCandidate {
        id: named.candidate.id,
        text: named.text.clone(),
        logit: named.candidate.logit,
        probability: named.candidate.probability,
    }
}
