//! Tokens as answers write them.

use segpack_runtime_min::generate::{Candidate, LogitsError, rank_of, top_k_logits};
use segpack_runtime_min::processing::TextFrontend;
use segpack_runtime_min::session::{NamedCandidate, Token};

use super::event::{NamedToken, ScoredToken};

/// Spells tokens.
#[derive(Clone, Copy)]
pub(super) struct Naming<'t> {
    pub(super) text: &'t TextFrontend<'t>,
}

impl Naming<'_> {
    fn token(self, id: u32) -> NamedToken {
        let tokenizer = self.text.tokenizer().ok();
        NamedToken {
            id,
            text: self.text.spell(id),
            bytes: tokenizer.and_then(|tokenizer| tokenizer.token_bytes(id)),
        }
    }

    /// The first token of a prompt.
    pub(super) fn first(self, id: u32) -> ScoredToken {
        ScoredToken {
            token: self.token(id),
            logprob: None,
            top: Vec::new(),
        }
    }

    /// A token that was generated.
    pub(super) fn generated(self, token: &Token<'_>) -> Option<ScoredToken> {
        let chosen = token.chosen.as_ref()?;
        let candidate = |named: &NamedCandidate| self.candidate(named.candidate);
        Some(ScoredToken {
            token: self.token(token.id),
            logprob: Some(chosen.candidate.log_probability),
            top: token.top.iter().map(candidate).collect(),
        })
    }

    /// A token of a prompt, by the logits before it; `None` where it has none.
    ///
    /// # Errors
    /// Where the logits are no numbers.
    pub(super) fn prompted(
        self,
        id: u32,
        logits: &[f32],
        top: usize,
    ) -> Result<Option<ScoredToken>, LogitsError> {
        let Some(rank) = rank_of(logits, id)? else {
            return Ok(None);
        };
        let top = match top {
            0 => Vec::new(),
            top => top_k_logits(logits, top)?,
        };
        Ok(Some(ScoredToken {
            token: self.token(id),
            logprob: Some(rank.candidate.log_probability),
            top: top.into_iter().map(|c| self.candidate(c)).collect(),
        }))
    }

    fn candidate(self, candidate: Candidate) -> (NamedToken, f64) {
        (self.token(candidate.id), candidate.log_probability)
    }
}
