//! Many prompts through one model: their tokens go through it together, so that each weight is read
//! once per step for all of them.
//!
//! A prompt begins as soon as there is room for it, and gives its room back when its text is over.
//! Its tokens are the same whatever else is in the batch, and however much room there is.

mod plan;
mod running;

use std::collections::{BTreeMap, VecDeque};
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use self::plan::rooms;
use self::running::Running;
use super::generation::SessionProgress;
use super::tokens::{GenerationSettings, Note, Token, TokenSink};
use super::{ContextLength, Model, Phase, Reservation, Session, SessionError};
use crate::error::RunError;
use crate::generate::{GenerateError, StopReason, check_prompt};
use crate::models::decoder::{
    DecoderSpec, Logits, RunSettings, RunStats, SequenceTokens, Unobserved, text_decoder,
};
use crate::processing::{PromptError, TextFrontend};
use crate::weights::Budget;

pub use self::plan::{BatchRoom, SequenceNeed};

/// One prompt of a batch.
#[derive(Debug, Clone)]
pub struct BatchPrompt {
    /// Its token ids, those of text alone.
    pub ids: Vec<u32>,
    /// How it is continued. `preload` is taken from the first prompt.
    pub settings: GenerationSettings,
}

/// The text that continues a prompt of a batch.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct BatchText {
    /// The new tokens, with the one that ended the text.
    pub ids: Vec<u32>,
    /// Their text, special tokens left out, and what comes with a stop string and after it; empty
    /// without a tokenizer.
    pub text: String,
    /// Why there are no more.
    pub stop_reason: StopReason,
    /// The stop string that ended it.
    pub stop_string: Option<String>,
    /// From the beginning of the batch to its first token; zero where there was none.
    pub time_to_first_token: Duration,
    /// From the beginning of the batch to its last token.
    pub time_to_last_token: Duration,
}

/// What running a batch took.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct BatchOutcome {
    /// What the user should know.
    pub notes: Vec<Note>,
    /// Forward passes.
    pub passes: u64,
    /// Most sequences in one of them.
    pub most_sequences: u64,
    /// Tokens of all prompts that were run.
    pub prompt_tokens: u64,
    /// Tokens that were generated.
    pub generated_tokens: u64,
    /// From the first forward pass to the last token; loading what was asked for before is not in it.
    pub time: Duration,
    /// What the model did.
    pub stats: RunStats,
    /// How memory was shared out.
    pub budget: Budget,
    /// Of each layer whose router was restricted the experts that it could choose.
    pub restricted_experts: BTreeMap<u32, Vec<u32>>,
}

/// Hears of a batch.
pub trait BatchSink: Send {
    /// A token of the prompt of this number, counted from 0. Those of other prompts come in between.
    fn token(&mut self, _number: usize, _token: &Token<'_>) {}

    /// The text of a prompt is over. Texts come in the order of their prompts. `Break` ends the
    /// batch.
    fn text(&mut self, number: usize, text: BatchText) -> ControlFlow<()>;
}

impl Session<'_> {
    /// Continues prompts: as many at a time as the memory budget has room for, on a GPU one after
    /// another. Every text has the same tokens as if it were made alone.
    ///
    /// # Errors
    /// `InBatch` names a prompt that cannot be continued, before anything is computed; a pack that
    /// cannot be run or is damaged; too little memory for the longest prompt alone.
    pub fn generate_batch(
        &self,
        text: &TextFrontend<'_>,
        prompts: &[BatchPrompt],
        progress: &dyn SessionProgress,
        sink: &mut dyn BatchSink,
    ) -> Result<BatchOutcome, SessionError> {
        let spec = DecoderSpec::from_decoder(&text_decoder(self.pack())?);
        let context = self.context_length()?;
        for (number, prompt) in prompts.iter().enumerate() {
            check(text, &spec, prompt).map_err(|source| SessionError::InBatch {
                number,
                source: Box::new(source),
            })?;
        }
        let need = |prompt: &BatchPrompt| need(prompt, context);
        let needs: Vec<SequenceNeed> = prompts.iter().map(need).collect();
        let longest = needs.iter().map(|need| need.tokens).max().unwrap_or(0);
        self.install(|| {
            let (mut model, room, is_alone) = match self.batch_model(&needs, Logits::Last)? {
                Some((model, room)) => (model, room, false),
                None => {
                    let room = BatchRoom::alone(&needs);
                    let reservation = Reservation {
                        positions: room.positions,
                        longest_pass: room.tokens,
                    };
                    (self.model(reservation)?, room, true)
                }
            };
            text.check(model.facts().vocab).map_err(PromptError::from)?;
            if prompts.first().is_some_and(|first| first.settings.preload) {
                model.preload_with_progress(progress)?;
            }
            progress.begin(Phase::Batch {
                prompts: prompts.len() as u64,
            });
            let mut batch = Batch {
                text,
                room,
                is_alone,
                began: Instant::now(),
                waiting: prompts.iter().zip(needs).enumerate().collect(),
                running: Vec::new(),
                done: BTreeMap::new(),
                reported: 0,
                outcome: BatchOutcome {
                    notes: super::generation::notes(text, context, longest),
                    passes: 0,
                    most_sequences: 0,
                    prompt_tokens: 0,
                    generated_tokens: 0,
                    time: Duration::ZERO,
                    stats: RunStats::default(),
                    budget: model.budget(),
                    restricted_experts: model.restricted_experts(),
                },
            };
            let ran = batch.run(&mut model, progress, sink);
            progress.end();
            ran?;
            batch.outcome.time = batch.began.elapsed();
            batch.outcome.stats = model.stats();
            Ok(batch.outcome)
        })
    }

    /// A model for several of these sequences at a time, with as much room as is of use and as the
    /// memory budget has. `None` where it has no room for two of them, there are no two, or the device
    /// runs one alone.
    ///
    /// # Errors
    /// As [`model`](Self::model).
    pub fn batch_model(
        &self,
        needs: &[SequenceNeed],
        want: Logits,
    ) -> Result<Option<(Model<'_>, BatchRoom)>, SessionError> {
        if !self.device.is_cpu() {
            return Ok(None);
        }
        let spec = DecoderSpec::from_decoder(&text_decoder(self.pack())?);
        for room in rooms(needs, want, self.memory, &spec) {
            let settings = RunSettings {
                positions: room.positions,
                longest_pass: room.tokens,
                sequences: room.sequences,
                logit_rows: room.logit_rows(want),
                ..self.settings(0)
            };
            match self.open_model(settings) {
                Ok(model) => return Ok(Some((model, room))),
                Err(SessionError::Run(RunError::Memory { .. })) => {} // less room may do
                Err(e) => return Err(e),
            }
        }
        Ok(None)
    }
}

/// What a prompt and its continuation need; one beyond the model's context is run all the same.
fn need(prompt: &BatchPrompt, context: ContextLength) -> SequenceNeed {
    let tokens = prompt.ids.len();
    let wanted = tokens.saturating_add(prompt.settings.max_new_tokens);
    let positions = wanted.min(context.positions().max(tokens));
    SequenceNeed { tokens, positions }
}

/// Whether a prompt can be continued at all.
fn check(
    text: &TextFrontend<'_>,
    spec: &DecoderSpec,
    prompt: &BatchPrompt,
) -> Result<(), SessionError> {
    // a prompt beyond the context is run all the same, with a note
    let length = prompt.ids.len();
    check_prompt(&prompt.ids, spec.vocab, [length; 2])
        .map_err(|e: GenerateError<RunError>| SessionError::from(e))?;
    Running::check(text, prompt)
}

/// A batch on its way.
struct Batch<'p> {
    text: &'p TextFrontend<'p>,
    room: BatchRoom,
    /// Whether the model runs one sequence alone.
    is_alone: bool,
    began: Instant,
    waiting: VecDeque<(usize, (&'p BatchPrompt, SequenceNeed))>,
    running: Vec<Running<'p>>,
    /// Texts that wait for those of prompts before them.
    done: BTreeMap<usize, BatchText>,
    /// Texts that the sink got.
    reported: usize,
    outcome: BatchOutcome,
}

impl Batch<'_> {
    fn run(
        &mut self,
        model: &mut Model<'_>,
        progress: &dyn SessionProgress,
        sink: &mut dyn BatchSink,
    ) -> Result<(), SessionError> {
        loop {
            self.admit(model)?;
            if !self.running.is_empty() {
                self.step(model, sink)?;
            }
            while let Some(text) = self.done.remove(&self.reported) {
                progress.advance(1);
                let flow = sink.text(self.reported, text);
                self.reported += 1;
                if flow.is_break() {
                    return Ok(());
                }
            }
            if self.running.is_empty() && self.waiting.is_empty() {
                return Ok(());
            }
        }
    }

    /// Begins prompts, in their order, until there is no room for the next.
    fn admit(&mut self, model: &mut Model<'_>) -> Result<(), SessionError> {
        while let Some((number, (prompt, need))) = self.waiting.front().copied() {
            let running: Vec<SequenceNeed> = self.running.iter().map(Running::need).collect();
            if !self.room.has_room(&running, need) {
                return Ok(());
            }
            self.waiting.pop_front();
            let running = Running::new(self.text, (number, prompt), need.positions, self.began)?;
            if prompt.settings.max_new_tokens == 0 {
                self.end(running, StopReason::MaxNewTokens)?;
                continue;
            }
            self.outcome.prompt_tokens += need.tokens as u64;
            self.running.push(self.opened(model, running)?);
        }
        Ok(())
    }

    /// Gives a prompt its sequence: of a device that runs one alone the only one.
    fn opened<'r>(
        &self,
        model: &mut Model<'_>,
        mut running: Running<'r>,
    ) -> Result<Running<'r>, SessionError> {
        if self.is_alone {
            model.reset();
        } else {
            running.sequence = Some(model.open_sequence(running.reserved)?);
        }
        Ok(running)
    }

    /// One forward pass, and a token of every sequence.
    fn step(
        &mut self,
        model: &mut Model<'_>,
        sink: &mut dyn BatchSink,
    ) -> Result<(), SessionError> {
        let all = self.forward(model)?;
        self.outcome.passes += 1;
        let sequences = self.running.len() as u64;
        self.outcome.most_sequences = self.outcome.most_sequences.max(sequences);
        self.outcome.generated_tokens += sequences;
        let mut going_on = Vec::new();
        for (mut running, logits) in std::mem::take(&mut self.running).into_iter().zip(&all) {
            let mut tokens = OfPrompt {
                number: running.number,
                sink: &mut *sink,
            };
            match running.choose(logits, &mut tokens)? {
                None => going_on.push(running),
                Some(reason) => {
                    if let Some(sequence) = running.sequence {
                        model.close_sequence(sequence);
                    }
                    self.end(running, reason)?;
                }
            }
        }
        self.running = going_on;
        Ok(())
    }

    /// The logits of every sequence's last token.
    fn forward(&self, model: &mut Model<'_>) -> Result<Vec<Vec<f32>>, SessionError> {
        let mut parts = Vec::new();
        for running in &self.running {
            let ids = &running.next[..];
            let Some(sequence) = running.sequence else {
                return Ok(vec![model.forward(ids, Logits::Last, &mut Unobserved)?]);
            };
            parts.push(SequenceTokens {
                sequence,
                ids,
                want: Logits::Last,
            });
        }
        Ok(model.forward_batch(&parts, &mut [])?)
    }

    fn end(&mut self, running: Running<'_>, reason: StopReason) -> Result<(), SessionError> {
        let number = running.number;
        self.done.insert(number, running.finish(reason)?);
        Ok(())
    }
}

/// Tells a batch's sink of the tokens of one prompt.
struct OfPrompt<'s> {
    number: usize,
    sink: &'s mut dyn BatchSink,
}

impl TokenSink for OfPrompt<'_> {
    fn token(&mut self, token: &Token<'_>) -> ControlFlow<()> {
        self.sink.token(self.number, token);
        ControlFlow::Continue(())
    }
}
