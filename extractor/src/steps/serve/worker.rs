//! The model, answering one request after the other.

use std::ops::ControlFlow;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::time::Instant;

use segpack_formats::io::CancelToken;
use segpack_runtime_min::RunError;
use segpack_runtime_min::generate::StopReason;
use segpack_runtime_min::models::decoder::text_decoder;
use segpack_runtime_min::processing::media::MediaOptions;
use segpack_runtime_min::processing::text::StopStrings;
use segpack_runtime_min::processing::{TextFrontend, TokenizedPrompt};
use segpack_runtime_min::session::{
    GenerationSettings, Hooks, Model, Reservation, Session, SessionError, Token, TokenSink,
};
use tokio::sync::mpsc::UnboundedSender;

use super::api::{ApiError, Question};
use super::event::{Echo, Event, Finish, ScoredToken};
use super::facts::Shared;
use super::metrics::ModelWork;
use super::naming::Naming;
use super::queue::Job;
use super::refusal::Trouble;
use crate::causes::chain;
use crate::work::Progress;

/// Bytes of logits that are in memory at a time while prompts are scored.
const SCORE_BYTES: usize = 16 << 20;

/// Why a worker ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// No more requests come.
    Closed,
    /// It was stopped in the middle of a request; another one with a session of its own can go on.
    Cut,
}

/// A session's model, which stays loaded from request to request.
pub(super) struct Worker<'w, 's> {
    pub(super) session: &'w Session<'s>,
    pub(super) text: &'w TextFrontend<'s>,
    pub(super) shared: &'w Shared,
    /// Hears of failures that are no fault of a request.
    pub(super) log: &'w dyn Progress,
    /// Stops the session.
    pub(super) cut: &'w Arc<CancelToken>,
    /// None until it is needed, after media and after failures.
    model: Option<Model<'w>>,
    /// What the model did before the request that is answered.
    before: ModelWork,
    /// Rows of the embedding.
    vocab: u64,
}

impl<'w, 's> Worker<'w, 's> {
    /// # Errors
    /// Where the numbers of the model cannot be used.
    pub(super) fn new(
        session: &'w Session<'s>,
        text: &'w TextFrontend<'s>,
        shared: &'w Shared,
        log: &'w dyn Progress,
        cut: &'w Arc<CancelToken>,
    ) -> Result<Self, RunError> {
        Ok(Self {
            session,
            text,
            shared,
            log,
            cut,
            model: None,
            before: ModelWork::default(),
            vocab: text_decoder(session.pack())?.facts.vocab,
        })
    }

    /// Opens the model, with all weights that fit where `preload`.
    ///
    /// # Errors
    /// A pack that cannot be run, too little memory, damage.
    pub(super) fn open(&mut self, preload: bool) -> Result<(), SessionError> {
        self.model()?;
        if let (true, Some(model)) = (preload, &mut self.model) {
            model.preload()?;
        }
        Ok(())
    }

    /// Answers requests until there are no more, or one was cut.
    pub(super) fn work(&mut self) -> End {
        while let Some(job) = self.shared.queue.take(self.cut) {
            let began = Instant::now();
            self.answer(&job);
            self.count();
            self.shared.metrics.answered(began.elapsed());
            drop(job);
            self.shared.queue.done();
            if self.cut.is_cancelled() {
                return End::Cut;
            }
        }
        End::Closed
    }

    fn answer(&mut self, job: &Job) {
        // what a panic left half-done is dropped
        let answered = panic::catch_unwind(AssertUnwindSafe(|| self.try_answer(job)));
        let trouble = match answered {
            Ok(Ok(())) => return,
            Ok(Err(trouble)) => Some(trouble),
            Err(_) => None,
        };
        let error = match trouble {
            Some(Trouble::Gone) => return,
            Some(Trouble::Request(error)) => error,
            Some(trouble) if trouble.is_stop() => {
                self.forget_model();
                ApiError::stopping()
            }
            Some(Trouble::Model(error)) => {
                self.forget_model();
                self.log
                    .note(&format!("error: request {}: {}", job.id, chain(&error)));
                ApiError::failed()
            }
            None => {
                self.forget_model();
                self.log
                    .note(&format!("error: request {}: the model panicked", job.id));
                ApiError::failed()
            }
        };
        // whoever asked may have left
        let _ = job.events.send(Event::Failed(error));
    }

    fn try_answer(&mut self, job: &Job) -> Result<(), Trouble> {
        let question = &job.question;
        let prompts = self.prepare(question)?;
        send(&job.events, Event::Begun)?;
        for (choice, prompt) in prompts.iter().enumerate() {
            self.shared.queue.set_long(true);
            self.shared.metrics.prompted(prompt.ids.len());
            let ask = Continue {
                choice,
                prompt,
                question,
                events: &job.events,
            };
            match prompt.media.is_empty() {
                true => self.continue_text(&ask)?,
                false => self.continue_media(&ask)?,
            }
        }
        send(&job.events, Event::Done)
    }

    /// All prompts of a request as token ids, before any of them is run.
    fn prepare(&self, question: &Question) -> Result<Vec<TokenizedPrompt>, Trouble> {
        let options = MediaOptions::default();
        let mut prompts = Vec::with_capacity(question.prompts.len());
        for prompt in &question.prompts {
            let prompt = self.text.tokenize_with(prompt, &options, self.cut)?;
            self.check(&prompt, question.max_tokens)?;
            prompts.push(prompt);
        }
        Ok(prompts)
    }

    /// Whether the model knows a prompt's tokens, and they and what is to follow fit the context. The last token is not run and
    /// needs no position.
    fn check(&self, prompt: &TokenizedPrompt, max_tokens: Option<usize>) -> Result<(), Trouble> {
        let (context, tokens) = (self.shared.context, prompt.ids.len());
        if tokens == 0 {
            let message = "the prompt has no tokens";
            return Err(Trouble::Request(ApiError::request(message)));
        }
        let wanted = max_tokens.unwrap_or(1);
        let needed = tokens.saturating_add(wanted.saturating_sub(1));
        let outside = prompt.ids.iter().find(|id| u64::from(**id) >= self.vocab);
        if let Some(id) = outside {
            let message = format!("token id {id} is outside the vocabulary of {}", self.vocab);
            return Err(Trouble::Request(ApiError::param("prompt", message)));
        }
        if needed > context {
            let message = format!(
                "the prompt has {tokens} tokens, and {wanted} more are to follow: they need {needed} \
                 positions; this server's context has {context}"
            );
            let error = ApiError::coded(400, "context_length_exceeded", message);
            return Err(Trouble::Request(error));
        }
        Ok(())
    }

    /// The model, opened if it is not, without any token.
    fn model(&mut self) -> Result<&mut Model<'w>, SessionError> {
        let model = match self.model.take() {
            Some(model) => model,
            None => self.session.model(Reservation {
                positions: self.shared.context,
                longest_pass: self.shared.context,
            })?,
        };
        let model = self.model.insert(model);
        model.reset();
        Ok(model)
    }

    fn continue_text(&mut self, ask: &Continue<'_>) -> Result<(), Trouble> {
        let echo = match ask.question.echo {
            true => Some(self.echo(ask)?),
            false => None,
        };
        ask.send_prompt(echo)?;
        let scored = match (ask.question.echo, ask.question.logprobs) {
            // the last token of the prompt is run with what follows
            (true, Some(_)) => ask.prompt.ids.len() - 1,
            _ => 0,
        };
        let (text, shared) = (self.text, self.shared);
        let settings = ask.settings(text, shared.context);
        if settings.max_new_tokens == 0 {
            return ask.end(String::new(), Finish::Length);
        }
        if scored == 0 {
            self.model()?;
        }
        let Some(model) = &mut self.model else {
            return Ok(()); // opened above
        };
        let mut stream = Stream::new(ask, text, shared);
        let rest = &ask.prompt.ids[scored..];
        let generated = model.generate(text, rest, &settings, Hooks::new(&mut stream))?;
        stream.end(generated.stop_reason)
    }

    /// The prompt as a part of the answer; its tokens but the last are run where they are scored.
    fn echo(&mut self, ask: &Continue<'_>) -> Result<Echo, Trouble> {
        let text = ask.prompt.text.clone().unwrap_or_default();
        let Some(top) = ask.question.logprobs else {
            return Ok(Echo { text, tokens: None });
        };
        let naming = Naming { text: self.text };
        let ids = &ask.prompt.ids;
        let mut tokens: Vec<ScoredToken> = ids.iter().take(1).map(|id| naming.first(*id)).collect();
        let block = SCORE_BYTES as u64 / self.vocab.saturating_mul(4).max(1);
        let block = usize::try_from(block).unwrap_or(usize::MAX);
        let model = self.model()?;
        let before = &ids[..ids.len() - 1];
        if before.is_empty() {
            let tokens = Some(tokens);
            return Ok(Echo { text, tokens });
        }
        model.forward_each(before, block, &mut |number, logits| {
            let id = ids[number + 1];
            let scored = naming.prompted(id, logits, top);
            tokens.extend(scored.map_err(SessionError::from)?);
            ask.check_listener()
        })?;
        Ok(Echo {
            text,
            tokens: Some(tokens),
        })
    }

    /// Encoders run in the memory that the decoder's weights had, which are loaded again after it.
    fn continue_media(&mut self, ask: &Continue<'_>) -> Result<(), Trouble> {
        self.count();
        self.forget_model();
        ask.send_prompt(None)?;
        let settings = ask.settings(self.text, self.shared.context);
        let mut stream = Stream::new(ask, self.text, self.shared);
        let hooks = Hooks::new(&mut stream);
        let (ids, media) = (&ask.prompt.ids, &ask.prompt.media);
        let generated = self
            .session
            .generate_media(self.text, ids, media, &settings, hooks)?;
        let work = ModelWork::of(&generated.stats);
        self.shared.metrics.worked(ModelWork::default(), work);
        stream.end(generated.stop_reason)
    }

    /// Counts what the model did.
    fn count(&mut self) {
        if let Some(model) = &self.model {
            let now = ModelWork::of(&model.stats());
            self.shared.metrics.worked(self.before, now);
            self.before = now;
        }
    }

    fn forget_model(&mut self) {
        self.model = None;
        self.before = ModelWork::default();
    }
}

/// A prompt that is to be continued.
struct Continue<'c> {
    choice: usize,
    prompt: &'c TokenizedPrompt,
    question: &'c Question,
    events: &'c UnboundedSender<Event>,
}

impl Continue<'_> {
    /// How, in a context of so many positions.
    fn settings(&self, text: &TextFrontend<'_>, context: usize) -> GenerationSettings {
        // the last token needs no position
        let free = context + 1 - self.prompt.ids.len();
        let mut settings = GenerationSettings::default();
        settings.max_new_tokens = self.question.max_tokens.unwrap_or(free).min(free);
        settings.sampling = self.question.sampling;
        settings.top_k_logits = self.question.logprobs.unwrap_or(0);
        settings.chosen_logit = self.question.logprobs.is_some();
        let mut stop_ids = match self.question.ignore_eos {
            true => Vec::new(),
            false => text.stop_ids().ids.clone(),
        };
        stop_ids.extend_from_slice(&self.question.stop_ids);
        settings.stop_ids = Some(stop_ids);
        settings
    }

    fn send_prompt(&self, echo: Option<Echo>) -> Result<(), Trouble> {
        let prompt = Event::Prompt {
            choice: self.choice,
            ids: self.prompt.ids.clone(),
            echo,
        };
        send(self.events, prompt)
    }

    fn end(&self, text: String, finish: Finish) -> Result<(), Trouble> {
        let end = Event::End {
            choice: self.choice,
            text,
            finish,
        };
        send(self.events, end)
    }

    fn check_listener(&self) -> Result<(), Trouble> {
        match self.events.is_closed() {
            true => Err(Trouble::Gone),
            false => Ok(()),
        }
    }
}

/// Nobody listens any more where the client left.
fn send(events: &UnboundedSender<Event>, event: Event) -> Result<(), Trouble> {
    events.send(event).map_err(|_| Trouble::Gone)
}

/// Tokens on their way to whoever asked.
struct Stream<'s> {
    ask: &'s Continue<'s>,
    naming: Naming<'s>,
    text: &'s TextFrontend<'s>,
    shared: &'s Shared,
    stop: StopStrings,
    /// Why there are no more.
    ended: Option<Ended>,
}

enum Ended {
    Gone,
    StopString(String),
}

impl<'s> Stream<'s> {
    fn new(ask: &'s Continue<'s>, text: &'s TextFrontend<'s>, shared: &'s Shared) -> Self {
        Self {
            ask,
            naming: Naming { text },
            text,
            shared,
            stop: ask.question.stop.clone(),
            ended: None,
        }
    }

    fn end(mut self, reason: StopReason) -> Result<(), Trouble> {
        let own = &self.text.stop_ids().ids;
        let finish = match (self.ended.take(), reason) {
            (Some(Ended::Gone), _) => return Err(Trouble::Gone),
            (Some(Ended::StopString(by)), _) => Finish::StopString(by),
            (None, StopReason::StopId(id)) if own.contains(&id) => Finish::EndOfText,
            (None, StopReason::StopId(id)) => Finish::StopId(id),
            // stop strings are looked for here, so none was asked for
            (
                None,
                StopReason::MaxNewTokens
                | StopReason::ContextFull
                | StopReason::Caller
                | StopReason::StopString,
            ) => Finish::Length,
        };
        let held = match finish {
            Finish::StopString(_) => String::new(),
            Finish::EndOfText | Finish::StopId(_) | Finish::Length => self.stop.finish(),
        };
        self.ask.end(held, finish)
    }
}

impl TokenSink for Stream<'_> {
    fn token(&mut self, token: &Token<'_>) -> ControlFlow<()> {
        // from here on the model looks between tokens whether somebody listens
        self.shared.queue.set_long(false);
        self.shared.metrics.generated();
        let released = self.stop.push(token.text);
        let event = Event::Token {
            choice: self.ask.choice,
            id: token.id,
            text: released.text,
            scored: self.naming.generated(token),
        };
        if send(self.ask.events, event).is_err() {
            self.ended = Some(Ended::Gone);
            return ControlFlow::Break(());
        }
        let Some(number) = released.stopped_by else {
            return ControlFlow::Continue(());
        };
        let by = self.stop.strings().get(number).cloned().unwrap_or_default();
        self.ended = Some(Ended::StopString(by));
        ControlFlow::Break(())
    }
}
