//! `chat`: a conversation with the model in a pack.
//!
//! Keys and values of a turn stay in memory. What the next prompt has in common with the tokens that
//! were run is not run again: the answer has the same bits as if everything were.

use std::ops::ControlFlow;

use segpack_formats::FormatError;
use segpack_formats::io::CancelToken;
use segpack_manifests::Pack;
use segpack_runtime_min::RunError;
use segpack_runtime_min::Unobserved;
use segpack_runtime_min::processing::text::chat_template::TemplateValue;
use segpack_runtime_min::processing::{Chat, Prompt, PromptError, TextFrontend};
use segpack_runtime_min::session::{
    Generation, GenerationSettings, Hooks, Logits, Model, Reservation, Session, SessionError,
    SessionOptions, Token, TokenSink,
};
use serde_json::{Value, json};

use super::StepError;

/// Tokens of a forward pass of a prompt.
const PASS: usize = 512;

/// Why a turn of a conversation cannot be taken; the conversation is as it was before.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChatError {
    /// There is no room for an answer.
    #[error("the conversation has {tokens} tokens, and there is room for {room}")]
    Full {
        /// Tokens of the conversation.
        tokens: usize,
        /// Positions that were reserved.
        room: usize,
    },
    /// Messages hold more than text.
    #[error("a conversation is of text alone; these messages have audio, images or videos")]
    Media,
    /// A file is no conversation.
    #[error("{what} is neither a JSON list of messages nor an object with `messages`")]
    Messages {
        /// The file.
        what: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
}

/// How to talk.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ChatOptions {
    /// Where the model runs, and what it may use.
    pub session: SessionOptions,
    /// How messages are answered. A seed is that of the first answer, the next has the next.
    pub generation: GenerationSettings,
    /// Maximum number of tokens of the whole conversation (also limited by the model's context
    /// length).
    pub context: usize,
    /// The system message.
    pub system: Option<String>,
    /// `enable_thinking` of the template. `None`: not defined.
    pub enable_thinking: Option<bool>,
}

impl ChatOptions {
    /// On the CPU, greedy, of 4,096 tokens at most.
    pub fn new() -> Self {
        Self {
            session: SessionOptions::default(),
            generation: GenerationSettings::default(),
            context: 4096,
            system: None,
            enable_thinking: None,
        }
    }
}

impl Default for ChatOptions {
    fn default() -> Self {
        Self::new()
    }
}

/// Opens a pack's model and hands a conversation with it to `talk`. An answer ends soon after `stop`
/// is requested; once that is taken back the conversation can go on.
///
/// # Errors
/// A pack that cannot be run, or has no tokenizer; too little memory; what `talk` returns.
pub fn chat<T: Send>(
    pack: &Pack,
    options: &ChatOptions,
    stop: &CancelToken,
    talk: impl FnOnce(&mut Conversation<'_, '_>) -> Result<T, StepError> + Send,
) -> Result<T, StepError> {
    let session = Session::open_cancellable(pack, &options.session, stop)?;
    let text = session.text()?;
    text.tokenizer()
        .map_err(|e| SessionError::from(PromptError::from(e)))?;
    let room = options.context.min(session.context_length()?.positions());
    let reservation = Reservation {
        positions: room,
        longest_pass: PASS.min(room),
    };
    let drafts = session.draft_bytes(&options.generation)?;
    session.with_model_beside(reservation, drafts, |model| {
        if options.generation.preload {
            model.preload()?;
        }
        let mut conversation = Conversation {
            text: &text,
            model,
            options,
            stop,
            room,
            system: options.system.clone(),
            turns: Vec::new(),
            run: Vec::new(),
            answers: 0,
        };
        talk(&mut conversation)
    })
}

/// A conversation: messages, and the tokens that the model has run.
pub struct Conversation<'c, 'm> {
    text: &'c TextFrontend<'c>,
    model: &'c mut Model<'m>,
    options: &'c ChatOptions,
    stop: &'c CancelToken,
    /// Positions that there are.
    room: usize,
    system: Option<String>,
    /// Messages after that of the system.
    turns: Vec<Value>,
    /// The tokens whose keys and values the model has.
    run: Vec<u32>,
    answers: u64,
}

/// An answer.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Answer {
    /// What was generated; of an answer that was stopped what there is of it.
    pub text: String,
    /// Whether it was stopped before its end.
    pub is_stopped: bool,
    /// Tokens of the whole prompt.
    pub prompt_tokens: usize,
    /// Those of them that the model had run before.
    pub kept_tokens: usize,
    /// What it took; `None` where it was stopped.
    pub generation: Option<Generation>,
}

impl Conversation<'_, '_> {
    /// Forgets everything but the system message.
    pub fn reset(&mut self) {
        self.turns.clear();
        self.answers = 0;
    }

    /// Takes another system message, or none. What was said stays.
    pub fn set_system(&mut self, system: Option<String>) {
        self.system = system;
    }

    /// All messages, as a chat template gets them.
    pub fn messages(&self) -> Vec<Value> {
        let system = self.system.iter().map(|text| message("system", text));
        system.chain(self.turns.iter().cloned()).collect()
    }

    /// Takes the messages of a file in the place of those that there are.
    ///
    /// # Errors
    /// `Messages` where it holds none, `Media` where they are of more than text.
    pub fn load(&mut self, what: &str, json: &str) -> Result<(), StepError> {
        let mut messages = messages_of(json).map_err(|source| ChatError::Messages {
            what: what.to_owned(),
            source,
        })?;
        let is_text = |message: &Value| message.get("content").is_some_and(Value::is_string);
        if !messages.iter().all(is_text) {
            return Err(ChatError::Media.into());
        }
        self.system = None;
        if messages
            .first()
            .is_some_and(|first| first["role"] == "system")
        {
            self.system = messages.remove(0)["content"].as_str().map(str::to_owned);
        }
        self.turns = messages;
        Ok(())
    }

    /// Answers a message of the user; `hear` gets the answer's text piece by piece, and ends it with
    /// an error. An answer that was stopped becomes a part of the conversation, as far as it goes.
    ///
    /// # Errors
    /// `Full` where there is no room; what `hear` returned; damage of the pack. The conversation is
    /// then as it was before.
    pub fn answer(
        &mut self,
        user: &str,
        hear: &mut (dyn FnMut(&str) -> Result<(), StepError> + Send),
    ) -> Result<Answer, StepError> {
        self.turns.push(message("user", user));
        let answered = self.answer_last(hear);
        match &answered {
            Ok(answer) => {
                self.turns.push(message("assistant", &answer.text));
                self.answers += 1;
            }
            Err(_) => {
                self.turns.pop();
            }
        }
        answered
    }

    fn answer_last(
        &mut self,
        hear: &mut (dyn FnMut(&str) -> Result<(), StepError> + Send),
    ) -> Result<Answer, StepError> {
        let ids = self.prompt()?;
        if ids.len() >= self.room {
            let (tokens, room) = (ids.len(), self.room);
            return Err(ChatError::Full { tokens, room }.into());
        }
        let kept = self.keep_common(&ids);
        let mut heard = Heard {
            text: String::new(),
            hear,
            failure: None,
        };
        let generated = self.generate(&ids, &mut heard);
        let Heard { text, failure, .. } = heard;
        if generated.is_err() || failure.is_some() {
            // layers may have run it in part
            self.model.truncate(self.run.len());
        }
        if let Some(failure) = failure {
            return Err(failure);
        }
        let mut answer = Answer {
            text,
            is_stopped: false,
            prompt_tokens: ids.len(),
            kept_tokens: kept,
            generation: None,
        };
        match generated {
            Ok(generation) => answer.generation = Some(generation),
            Err(e) if is_stopped(&e) && self.stop.is_cancelled() => answer.is_stopped = true,
            Err(e) => return Err(e.into()),
        }
        Ok(answer)
    }

    /// All messages as token ids.
    fn prompt(&self) -> Result<Vec<u32>, StepError> {
        let prompt = Prompt::Chat {
            chat: Chat::of_messages(TemplateValue::of(&self.messages())),
            enable_thinking: self.options.enable_thinking,
        };
        let tokenized = self.text.tokenize(&prompt).map_err(SessionError::from)?;
        if !tokenized.media.is_empty() {
            return Err(ChatError::Media.into());
        }
        Ok(tokenized.ids)
    }

    /// Forgets the tokens from the first on that differs; returns how many stay. The last of a prompt
    /// is always run, for its logits.
    fn keep_common(&mut self, ids: &[u32]) -> usize {
        let pairs = self.run.iter().zip(ids);
        let common = pairs.take_while(|(run, id)| run == id).count();
        let kept = common.min(ids.len().saturating_sub(1));
        self.run.truncate(kept);
        self.model.truncate(kept);
        kept
    }

    /// Runs what is not run yet of a prompt, and continues it.
    fn generate(
        &mut self,
        ids: &[u32],
        heard: &mut Heard<'_, '_>,
    ) -> Result<Generation, SessionError> {
        while ids.len() - self.run.len() > PASS {
            let part = &ids[self.run.len()..self.run.len() + PASS];
            self.model.forward(part, Logits::Last, &mut Unobserved)?;
            self.run.extend(part);
        }
        let mut settings = self.options.generation.clone();
        if let Some(sampling) = &mut settings.sampling {
            sampling.seed = sampling.seed.wrapping_add(self.answers);
        }
        if let Some(lookup) = &mut settings.draft_lookup {
            lookup.before.clone_from(&self.run);
        }
        let rest = &ids[self.run.len()..];
        let hooks = Hooks::new(heard);
        let generation = self.model.generate(self.text, rest, &settings, hooks)?;
        // the last token is not run
        let positions = self.model.positions();
        self.run.extend(rest);
        self.run.extend(&generation.ids);
        self.run.truncate(positions);
        Ok(generation)
    }
}

/// The messages of a file of a chat.
fn messages_of(json: &str) -> Result<Vec<Value>, serde_json::Error> {
    let chat = Chat::from_json(json)?;
    serde_json::from_value(serde_json::to_value(&chat.messages)?)
}

fn message(role: &str, content: &str) -> Value {
    json!({"role": role, "content": content})
}

/// Whether work ended because that was requested.
fn is_stopped(error: &SessionError) -> bool {
    matches!(
        error,
        SessionError::Run(RunError::Format(FormatError::Interrupted))
    )
}

/// Hands text on, and keeps it.
struct Heard<'h, 'f> {
    text: String,
    hear: &'h mut (dyn FnMut(&str) -> Result<(), StepError> + Send + 'f),
    failure: Option<StepError>,
}

impl TokenSink for Heard<'_, '_> {
    fn token(&mut self, token: &Token<'_>) -> ControlFlow<()> {
        self.text += token.text;
        match (self.hear)(token.text) {
            Ok(()) => ControlFlow::Continue(()),
            Err(e) => {
                self.failure = Some(e);
                ControlFlow::Break(())
            }
        }
    }
}
