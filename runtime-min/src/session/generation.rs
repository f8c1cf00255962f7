//! One prompt, continued: what a caller may ask for, hears meanwhile, and gets.

use std::fmt;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use super::{
    ASSUMED_CONTEXT, ContextLength, Logits, MediaInputs, Model, SessionError, StateCapture,
};
use crate::error::RunError;
use crate::generate::{
    ArgMax, Candidate, GenerateOptions, LanguageModel, Sampler, SamplingOptions, Step, StopReason,
    generate, rank_of, top_k_logits,
};
use crate::models::decoder::RunStats;
use crate::models::decoder::{Observer, Routing, Unobserved};
use crate::processing::{Continuation, TextFrontend, TextStream};
use crate::trace::TraceRecorder;
use crate::weights::Budget;

/// How to continue a prompt.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct GenerationSettings {
    /// Maximum number of tokens to generate (also limited by the model's context length).
    pub max_new_tokens: usize,
    /// Random sampling. `None`: greedy, always the most likely token.
    pub sampling: Option<SamplingOptions>,
    /// Candidates to tell for each token.
    pub top_k_logits: usize,
    /// Tell each token's own logit and probability, which may not be among those candidates.
    pub chosen_logit: bool,
    /// A continuation whose rank at the first step is wanted.
    pub rank: Option<Continuation>,
    /// Token ids that end the text. `None`: those of the checkpoint.
    pub stop_ids: Option<Vec<u32>>,
    /// Load as many weights as fit before the prompt instead of on first use.
    pub preload: bool,
}

impl Default for GenerationSettings {
    /// 128 tokens at most, greedy.
    fn default() -> Self {
        Self {
            max_new_tokens: 128,
            sampling: None,
            top_k_logits: 0,
            chosen_logit: false,
            rank: None,
            stop_ids: None,
            preload: false,
        }
    }
}

/// A token that was generated.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Token<'t> {
    /// Its number, from 0.
    pub index: usize,
    /// Its id.
    pub id: u32,
    /// Text that is complete now: half a character waits for its rest, special tokens are left out.
    pub text: &'t str,
    /// Whether it ends the text.
    pub is_stop: bool,
    /// The most likely candidates, best first, as many as were requested.
    pub top: Vec<NamedCandidate>,
    /// The token itself among all tokens, where that was requested.
    pub chosen: Option<NamedCandidate>,
}

/// A candidate for the next token, and the text that it stands for.
#[derive(Debug, Clone, PartialEq)]
pub struct NamedCandidate {
    /// Id, logit, probability.
    pub candidate: Candidate,
    /// Its text, special tokens too; half a character is U+FFFD.
    pub text: String,
}

/// Where a continuation ranks at the first step.
#[derive(Debug, Clone, PartialEq)]
pub struct RankedContinuation {
    /// The continuation.
    pub continuation: Continuation,
    /// Its first token, which is ranked.
    pub first: NamedCandidate,
    /// 1 is the most likely.
    pub rank: usize,
}

/// Something that the user should know about a generation.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Note {
    /// The checkpoint does not say which tokens end a text.
    StopIds(String),
    /// `config.json` does not give the context length.
    AssumedContext,
    /// The prompt is longer than the context that the model was made for.
    LongPrompt {
        /// Tokens of the prompt.
        tokens: usize,
        /// Positions of the context.
        context: usize,
    },
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::StopIds(what) => f.write_str(what),
            Self::AssumedContext => write!(
                f,
                "config.json gives no max_position_embeddings: assuming a context length of \
                 {ASSUMED_CONTEXT} tokens"
            ),
            Self::LongPrompt { tokens, context } => write!(
                f,
                "the prompt has {tokens} tokens, more than the model's context length of {context} \
                 (max_position_embeddings in config.json)"
            ),
        }
    }
}

/// The notes that come before a generation.
pub(super) fn notes(text: &TextFrontend<'_>, context: ContextLength, prompt: usize) -> Vec<Note> {
    let mut notes: Vec<Note> = text
        .stop_ids()
        .notice()
        .map(Note::StopIds)
        .into_iter()
        .collect();
    match context {
        ContextLength::Assumed => notes.push(Note::AssumedContext),
        ContextLength::Given(context) if prompt > context => {
            notes.push(Note::LongPrompt {
                tokens: prompt,
                context,
            });
        }
        ContextLength::Given(_) => {}
    }
    notes
}

/// Hears of every token. A closure that takes a [`Token`] is one.
pub trait TokenSink: Send {
    /// Something that the user should know; comes before the first token.
    fn note(&mut self, _note: &Note) {}

    /// A token. `Break` ends the text.
    fn token(&mut self, token: &Token<'_>) -> ControlFlow<()>;
}

impl<F: FnMut(&Token<'_>) -> ControlFlow<()> + Send> TokenSink for F {
    fn token(&mut self, token: &Token<'_>) -> ControlFlow<()> {
        self(token)
    }
}

/// What a session is busy with before the first token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Loading weights.
    Preload {
        /// Bytes to load.
        bytes: u64,
    },
    /// The prompt's forward pass, which also loads the weights that are not there yet.
    Prefill {
        /// Layers to run.
        layers: u64,
    },
}

/// Hears how far a session is with what comes before the first token. Every method does nothing by
/// default; `()` ignores it all.
pub trait SessionProgress: Sync {
    /// A phase begins.
    fn begin(&self, _phase: Phase) {}
    /// So many more bytes, or layers, are done.
    fn advance(&self, _more: u64) {}
    /// The phase is over, or failed.
    fn end(&self) {}
}

impl SessionProgress for () {}

/// A generated text.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Generation {
    /// The new tokens, with the one that ended the text.
    pub ids: Vec<u32>,
    /// Their text, special tokens left out; empty without a tokenizer.
    pub text: String,
    /// Why there are no more.
    pub stop_reason: StopReason,
    /// What the user should know.
    pub notes: Vec<Note>,
    /// The rank that was requested.
    pub rank: Option<RankedContinuation>,
    /// From the opening of the model to the first token; zero where there was none.
    pub time_to_first_token: Duration,
    /// From the first token to the last.
    pub time_after_first: Duration,
    /// Bytes of weights read until the first token.
    pub bytes_read_before_first: u64,
    /// What the model did.
    pub stats: RunStats,
    /// How memory was shared out.
    pub budget: Budget,
}

/// Who hears of a generation.
pub struct Hooks<'h> {
    /// Hears of tokens.
    pub sink: &'h mut dyn TokenSink,
    /// Hears of loading and of the prompt's forward pass.
    pub progress: &'h dyn SessionProgress,
    /// Records every intermediate result.
    pub recorder: Option<&'h mut TraceRecorder>,
    /// Keeps what the talker takes of the prompt's media, where the answer is to be spoken and there
    /// is no recorder.
    pub states: Option<&'h mut StateCapture>,
}

impl<'h> Hooks<'h> {
    /// Tokens alone.
    pub fn new(sink: &'h mut dyn TokenSink) -> Self {
        Self {
            sink,
            progress: &(),
            recorder: None,
            states: None,
        }
    }
}

impl Model<'_> {
    /// Continues a prompt after the tokens that the model has seen.
    ///
    /// # Errors
    /// A prompt that is empty, too long for the reservation, or outside the vocabulary; sampling
    /// settings out of range; damage of the pack.
    pub fn generate(
        &mut self,
        text: &TextFrontend<'_>,
        prompt: &[u32],
        settings: &GenerationSettings,
        hooks: Hooks<'_>,
    ) -> Result<Generation, SessionError> {
        self.generate_since(Instant::now(), text, (prompt, None), settings, hooks)
    }

    /// As [`generate`](Self::generate); times count from `began`.
    pub(super) fn generate_since(
        &mut self,
        began: Instant,
        text: &TextFrontend<'_>,
        (prompt, media): (&[u32], Option<&MediaInputs>),
        settings: &GenerationSettings,
        hooks: Hooks<'_>,
    ) -> Result<Generation, SessionError> {
        let mut sampler = match settings.sampling {
            Some(sampling) => Sampler::random(sampling)?,
            None => Sampler::greedy(),
        };
        let wants_logits = settings.top_k_logits > 0
            || settings.chosen_logit
            || settings.rank.is_some()
            || hooks.recorder.is_some();
        let options = GenerateOptions {
            max_new_tokens: settings.max_new_tokens,
            stop_ids: settings.stop_ids.as_ref().unwrap_or(&text.stop_ids().ids),
            wants_logits,
        };
        // the last token is not run through the model, so it needs no position
        let free = self
            .reservation
            .positions
            .saturating_sub(self.positions() + prompt.len());
        let mut narrator = Narrator {
            text,
            settings,
            sink: hooks.sink,
            stream: text.stream(),
            max_tokens: settings.max_new_tokens.min(free + 1),
            began,
            first: None,
            rank: None,
            failure: None,
        };
        let mut runner = Runner {
            model: self,
            media,
            logits: Vec::new(),
            is_prefilled: false,
            recorder: hooks.recorder,
            states: hooks.states,
            progress: hooks.progress,
            bytes_read_before_first: 0,
        };
        let generated = generate(&mut runner, prompt, &mut sampler, &options, |step| {
            narrator.token(&step)
        })?;
        if let Some(failure) = narrator.failure {
            return Err(failure);
        }
        runner.end_recording(&generated.ids);
        let bytes_read_before_first = runner.bytes_read_before_first;
        let (first, rank) = (narrator.first, narrator.rank);
        Ok(Generation {
            text: text.decode(&generated.ids),
            ids: generated.ids,
            stop_reason: generated.reason,
            notes: Vec::new(),
            rank,
            time_to_first_token: first.unwrap_or_default(),
            time_after_first: first.map_or(Duration::ZERO, |f| began.elapsed().saturating_sub(f)),
            bytes_read_before_first,
            stats: self.stats(),
            budget: self.budget(),
        })
    }
}

/// The model as the generation loop sees it.
struct Runner<'r, 's> {
    model: &'r mut Model<'s>,
    /// Of the prompt.
    media: Option<&'r MediaInputs>,
    /// Of the last position.
    logits: Vec<f32>,
    is_prefilled: bool,
    recorder: Option<&'r mut TraceRecorder>,
    states: Option<&'r mut StateCapture>,
    progress: &'r dyn SessionProgress,
    bytes_read_before_first: u64,
}

impl Runner<'_, '_> {
    /// The whole prompt, with all its logits where it is recorded.
    fn prefill(&mut self, ids: &[u32]) -> Result<Vec<f32>, RunError> {
        let Some(recorder) = &mut self.recorder else {
            let mut nobody = Unobserved;
            let inner: &mut dyn Observer = match &mut self.states {
                Some(states) => *states,
                None => &mut nobody,
            };
            let mut observer = ProgressObserver {
                inner,
                progress: self.progress,
            };
            return match self.media {
                None => self.model.forward(ids, Logits::Last, &mut observer),
                Some(media) => self
                    .model
                    .forward_media(ids, media, Logits::Last, &mut observer),
            };
        };
        match self.media {
            None => recorder.begin(ids),
            Some(media) => recorder.begin_media(ids, &media.positions),
        }
        let mut observer = ProgressObserver {
            inner: *recorder,
            progress: self.progress,
        };
        let mut all = match self.media {
            None => self.model.forward(ids, Logits::All, &mut observer)?,
            Some(media) => self
                .model
                .forward_media(ids, media, Logits::All, &mut observer)?,
        };
        recorder.logits(&all);
        Ok(all.split_off(all.len() - all.len() / ids.len()))
    }

    /// Tokens after it, recorded with the logits that they came from.
    fn decode(&mut self, ids: &[u32]) -> Result<Vec<f32>, RunError> {
        let Some(recorder) = &mut self.recorder else {
            return self.model.forward(ids, Logits::Last, &mut Unobserved);
        };
        recorder.token(ids[0], &self.logits);
        self.model.forward(ids, Logits::Last, *recorder)
    }

    /// The last token is not run through the model, but recorded.
    fn end_recording(&mut self, ids: &[u32]) {
        let Some(recorder) = &mut self.recorder else {
            return;
        };
        if let Some(last) = ids.last() {
            recorder.token(*last, &self.logits);
        }
        recorder.end(serde_json::Map::new());
    }
}

impl LanguageModel for Runner<'_, '_> {
    type Error = RunError;

    fn vocab_size(&self) -> usize {
        usize::try_from(self.model.facts().vocab).unwrap_or(usize::MAX)
    }

    fn context_length(&self) -> usize {
        self.model.reservation.positions
    }

    fn position(&self) -> usize {
        self.model.positions()
    }

    fn forward(&mut self, ids: &[u32]) -> Result<&[f32], RunError> {
        self.logits = if self.is_prefilled {
            self.decode(ids)?
        } else {
            self.is_prefilled = true;
            self.progress.begin(Phase::Prefill {
                layers: self.model.facts().layers.into(),
            });
            let logits = self.prefill(ids);
            self.progress.end();
            self.bytes_read_before_first = self.model.stats().bytes_read;
            logits?
        };
        Ok(&self.logits)
    }

    fn greedy(&mut self, last: u32, next: &mut [ArgMax]) -> Result<bool, RunError> {
        self.model.greedy(last, next)
    }

    fn truncate(&mut self, position: usize) {
        self.model.truncate(position);
    }
}

/// Reports every layer that a forward pass is through, beside what another observer does.
struct ProgressObserver<'a> {
    inner: &'a mut dyn Observer,
    progress: &'a dyn SessionProgress,
}

impl Observer for ProgressObserver<'_> {
    fn observes(&self) -> bool {
        self.inner.observes()
    }

    fn embed(&mut self, x: &[f32]) {
        self.inner.embed(x);
    }

    fn attention(&mut self, layer: usize, x: &[f32]) {
        self.inner.attention(layer, x);
    }

    fn mlp(&mut self, layer: usize, x: &[f32]) {
        self.inner.mlp(layer, x);
    }

    fn hidden(&mut self, layer: usize, x: &[f32]) {
        self.inner.hidden(layer, x);
        self.progress.advance(1);
    }

    fn router(&mut self, layer: usize, routing: &Routing) {
        self.inner.router(layer, routing);
    }

    fn shared_expert(&mut self, layer: usize, gate: &[f32], out: &[f32]) {
        self.inner.shared_expert(layer, gate, out);
    }

    fn norm(&mut self, x: &[f32]) {
        self.inner.norm(x);
    }
}

/// Puts every step into words for the sink.
struct Narrator<'n> {
    text: &'n TextFrontend<'n>,
    settings: &'n GenerationSettings,
    sink: &'n mut dyn TokenSink,
    stream: Option<TextStream<'n>>,
    /// Tokens that there can be.
    max_tokens: usize,
    began: Instant,
    first: Option<Duration>,
    rank: Option<RankedContinuation>,
    failure: Option<SessionError>,
}

impl Narrator<'_> {
    fn token(&mut self, step: &Step<'_>) -> ControlFlow<()> {
        self.try_token(step).unwrap_or_else(|e| {
            self.failure = Some(e);
            ControlFlow::Break(())
        })
    }

    fn try_token(&mut self, step: &Step<'_>) -> Result<ControlFlow<()>, SessionError> {
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
        let token = Token {
            index: step.index,
            id: step.id,
            text: &text,
            is_stop: step.is_stop,
            top,
            chosen,
        };
        Ok(self.sink.token(&token))
    }

    /// What this token completes; the last one also brings what waited in vain for its rest.
    fn completed_text(&mut self, step: &Step<'_>) -> String {
        let mut text = self
            .stream
            .as_mut()
            .map_or_else(String::new, |s| s.push(step.id));
        if step.is_stop || step.index + 1 == self.max_tokens {
            text.extend(self.stream.take().map(TextStream::finish));
        }
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
