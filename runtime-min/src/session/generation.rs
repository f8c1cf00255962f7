//! One prompt, continued: what a caller may ask for, hears meanwhile, and gets.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::narrator::Narrator;
use super::tokens::{GenerationSettings, Note, RankedContinuation, TokenSink};
use super::{ContextLength, Logits, MediaInputs, Model, SessionError, StateCapture};
use crate::error::RunError;
use crate::generate::{ArgMax, DraftCounts, GenerateOptions, LanguageModel, StopReason, generate};
use crate::models::decoder::RunStats;
use crate::models::decoder::{LinearInput, Observer, Routing, Unobserved};
use crate::processing::TextFrontend;
use crate::trace::TraceRecorder;
use crate::weights::Budget;

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
    /// Continuing the prompts of a batch.
    Batch {
        /// Prompts to continue.
        prompts: u64,
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
    /// Their text, special tokens left out, and what comes with a stop string and after it; empty
    /// without a tokenizer.
    pub text: String,
    /// Why there are no more.
    pub stop_reason: StopReason,
    /// The stop string that ended it.
    pub stop_string: Option<String>,
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
    /// What came of drafts; zeros where there were none.
    pub drafts: DraftCounts,
    /// What the model did.
    pub stats: RunStats,
    /// How memory was shared out.
    pub budget: Budget,
    /// Of each layer whose router was restricted the experts that it could choose.
    pub restricted_experts: BTreeMap<u32, Vec<u32>>,
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
        let mut sampler = settings.sampler()?;
        let wants_logits = settings.top_k_logits > 0
            || settings.chosen_logit
            || settings.rank.is_some()
            || hooks.recorder.is_some();
        let options = GenerateOptions {
            max_new_tokens: settings.max_new_tokens,
            stop_ids: settings.stop_ids.as_ref().unwrap_or(&text.stop_ids().ids),
            wants_logits,
            drafts: match hooks.recorder {
                None => settings.draft_lookup.as_ref(),
                // a trace has a forward pass for each token
                Some(_) => None,
            },
        };
        if options.drafts.is_some() && !self.is_on_cpu() {
            return Err(SessionError::DraftsOnGpu);
        }
        // the last token is not run through the model, so it needs no position
        let free = self
            .reservation
            .positions
            .saturating_sub(self.positions() + prompt.len());
        let max_tokens = settings.max_new_tokens.min(free + 1);
        let mut narrator = Narrator::new(text, settings, max_tokens, began)?;
        let sink = hooks.sink;
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
            narrator.token(&step, &mut *sink)
        })?;
        let first = narrator.first;
        let reported = narrator.finish(&generated)?;
        runner.end_recording(&generated.ids);
        let bytes_read_before_first = runner.bytes_read_before_first;
        Ok(Generation {
            text: reported.text,
            ids: generated.ids,
            stop_reason: reported.reason,
            stop_string: reported.stop_string,
            notes: Vec::new(),
            rank: reported.rank,
            time_to_first_token: first.unwrap_or_default(),
            time_after_first: first.map_or(Duration::ZERO, |f| began.elapsed().saturating_sub(f)),
            bytes_read_before_first,
            drafts: generated.drafts,
            stats: self.stats(),
            budget: self.budget(),
            restricted_experts: self.restricted_experts(),
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

    fn forward_all(&mut self, ids: &[u32]) -> Result<&[f32], RunError> {
        self.logits = self.model.forward(ids, Logits::All, &mut Unobserved)?;
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

    fn linear_input(&mut self, layer: usize, of: LinearInput, columns: usize, x: &[f32]) {
        self.inner.linear_input(layer, of, columns, x);
    }
}
