//! What a server generates as a reference: asked now, judged at once.

mod answer;
mod error;
mod interfaces;
mod vocabulary;

use std::ops::Range;
use std::time::Duration;

use segpack_formats::io::CancelToken;
use segpack_manifests::Pack;
use segpack_manifests::documents::{Quantity, ReferenceKind, ValidateReport};
use segpack_manifests::families::TextFacts;
use segpack_runtime_min::models::decoder::text_decoder;
use segpack_runtime_min::processing::text::TokenizerError;
use segpack_runtime_min::processing::{Chat, Prompt, TextFrontend};
use segpack_runtime_min::session::SessionError;
use segpack_runtime_min::tensor::Compute;
use segpack_runtime_min::trace::Ranked;
use serde_json::{Map, Value, json};

use super::compare::{Reference, ReferenceStep};
use super::{
    FIXED_PROMPTS, Job, Sequence, ValidateError, ValidateSettings, empty_report, fixed_id, judge,
    log_probability_tolerance, tolerance,
};
use crate::source::{JsonServer, RemoteError};
use crate::steps::StepError;
use crate::work::{self, Progress};
use answer::{Answer, Asked};
pub(crate) use error::ServerError;
pub(crate) use interfaces::ServerKind;
use interfaces::{Fields, Origin, Sent};
use vocabulary::Vocabulary;

/// A server, and what to ask it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub(crate) struct ServerSettings {
    /// Its address, without a slash at the end.
    pub url: String,
    /// What kind of server it is.
    pub kind: ServerKind,
    /// What it computes in, in its own words.
    pub dtype: String,
    /// The model's name there. `None`: the only one.
    pub model: Option<String>,
    /// What to ask; fixed token ids where there is none.
    pub prompts: Vec<ServerPrompt>,
    /// Maximum number of tokens to generate after each.
    pub max_new_tokens: usize,
    /// Tokens of each step whose log-probabilities are asked for.
    pub top: usize,
    /// Members that are added to every request.
    pub more: Map<String, Value>,
    /// How long the first byte of an answer may take.
    pub patience: Duration,
    /// What is sent as a bearer token. It is shown nowhere.
    pub key: Option<BearerKey>,
}

impl ServerSettings {
    /// The fixed prompts.
    pub(crate) fn new(url: String, kind: ServerKind, dtype: String) -> Self {
        Self {
            url,
            kind,
            dtype,
            model: None,
            prompts: Vec::new(),
            max_new_tokens: 32,
            top: 5,
            more: Map::new(),
            patience: Duration::from_secs(600),
            key: None,
        }
    }
}

/// A key, which is not shown.
#[derive(Clone)]
pub(crate) struct BearerKey(pub String);

impl std::fmt::Debug for BearerKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ServerPrompt {
    /// Token ids.
    Ids(Vec<u32>),
    /// A text, tokenized as it is.
    Text(String),
    /// A user's message, with a system message before it or not.
    Chat {
        /// The system message.
        system: Option<String>,
        /// The user's.
        user: String,
    },
}

/// A prompt as it is sent, and the tokens that it stands for.
struct Prepared {
    ids: Vec<u32>,
    sent: Sent,
}

/// Asks the server, then compares what it answered with the model in the pack.
///
/// # Errors
/// `Validate` with what is wrong with the server or its answers; where the model cannot be run.
pub(super) fn against_server(
    pack: &Pack,
    server: &ServerSettings,
    settings: &ValidateSettings,
    stop: &CancelToken,
    progress: &dyn Progress,
) -> Result<ValidateReport, StepError> {
    let facts = text_decoder(pack)?.facts.clone();
    let mut report = empty_report(
        pack,
        ReferenceKind::Server,
        server.url.as_ref(),
        Compute::F32,
    )?;
    report.reference_name.clone_from(&server.url);
    report.reference_dtype = Some(server.dtype.clone());
    report.tolerance = settings
        .tolerance
        .or_else(|| log_probability_tolerance(&server.dtype, report.layers));
    let frontend = TextFrontend::load(pack).map_err(SessionError::from)?;
    let prompts = prepare(server, &frontend, &facts)?;
    let vocabulary = vocabulary(server.kind, &frontend)?;
    let job = work::Job {
        threads: 1,
        stop,
        progress,
    };
    let asker = Asker {
        server,
        facts: &facts,
        vocabulary,
        job,
    };
    let served = asker.ask_all(prompts).map_err(ValidateError::from)?;
    let sequences: Vec<Sequence> = served.iter().map(Served::sequence).collect();
    let job = Job {
        pack,
        settings,
        compute: Compute::F32,
        excused: report.tolerance.unwrap_or_else(|| tolerance(report.layers)),
        sequences: &sequences,
        stop,
        progress,
    };
    let tally = job.run(|number| Ok(Box::new(&served[number])))?;
    let mut report = judge(report, &tally, &sequences);
    report.not_compared.extend(unlisted(&served));
    Ok(report)
}

/// Says of how many tokens the server lists no log-probabilities, if there are any.
fn unlisted(served: &[Served]) -> Option<String> {
    let unlisted: usize = served.iter().map(|s| s.answer.unlisted.len()).sum();
    let all: usize = served.iter().map(|s| s.answer.ids.len()).sum();
    (unlisted > 0).then(|| format!("log-probabilities of {unlisted} of {all} tokens"))
}

/// Words are identified with the help of all tokens; numbers need no help.
fn vocabulary(kind: ServerKind, frontend: &TextFrontend<'_>) -> Result<Vocabulary, StepError> {
    match (kind, frontend.tokenizer()) {
        (ServerKind::LlamaCpp | ServerKind::Vllm, _) => Ok(Vocabulary::default()),
        (ServerKind::OpenAi, Ok(tokenizer)) => Ok(Vocabulary::of(tokenizer)),
        // a server that tells ids after all needs none
        (ServerKind::OpenAi, Err(TokenizerError::Missing { .. })) => Ok(Vocabulary::default()),
        (ServerKind::OpenAi, Err(e)) => Err(frontend_error(e)),
    }
}

fn frontend_error(error: TokenizerError) -> StepError {
    SessionError::Prompt(error.into()).into()
}

fn prepare(
    server: &ServerSettings,
    frontend: &TextFrontend<'_>,
    facts: &TextFacts,
) -> Result<Vec<Prepared>, StepError> {
    let fixed;
    let prompts = match server.prompts.is_empty() {
        true => {
            fixed = fixed_prompts(frontend, facts.vocab);
            &fixed
        }
        false => &server.prompts,
    };
    let mut prepared = Vec::with_capacity(prompts.len());
    for (number, prompt) in prompts.iter().enumerate() {
        let one = prepare_one(server.kind, prompt, frontend)?;
        check_ids(&one.ids, facts.vocab)
            .map_err(|what| ServerError::Prompt {
                prompt: number,
                what,
            })
            .map_err(ValidateError::from)?;
        prepared.push(one);
    }
    Ok(prepared)
}

/// Servers that tell ids are sent ids, so that nothing depends on their tokenizer; others read
/// texts and chats themselves, and tell how many tokens they made of it.
fn prepare_one(
    kind: ServerKind,
    prompt: &ServerPrompt,
    frontend: &TextFrontend<'_>,
) -> Result<Prepared, StepError> {
    let (prompt, written) = match prompt {
        ServerPrompt::Ids(ids) => {
            let (ids, sent) = (ids.clone(), Sent::Ids(ids.clone()));
            return Ok(Prepared { ids, sent });
        }
        ServerPrompt::Text(text) => (Prompt::Text(text.clone()), Sent::Text(text.clone())),
        ServerPrompt::Chat { system, user } => (
            Prompt::from(Chat::turn(system.as_deref(), user)),
            Sent::Messages(messages(system.as_deref(), user)),
        ),
    };
    let ids = frontend.tokenize(&prompt).map_err(SessionError::from)?.ids;
    let sent = match kind {
        ServerKind::LlamaCpp | ServerKind::Vllm => Sent::Ids(ids.clone()),
        ServerKind::OpenAi => written,
    };
    Ok(Prepared { ids, sent })
}

fn messages(system: Option<&str>, user: &str) -> Value {
    let system = system.map(|text| json!({"role": "system", "content": text}));
    let user = json!({"role": "user", "content": user});
    system.into_iter().chain([user]).collect()
}

fn check_ids(ids: &[u32], vocab: u64) -> Result<(), String> {
    if ids.is_empty() {
        return Err("it has no tokens".to_owned());
    }
    match ids.iter().find(|id| u64::from(**id) >= vocab) {
        Some(id) => Err(format!("there is no token {id}: the model has {vocab}")),
        None => Ok(()),
    }
}

/// As many tokens as a comparison with a checkpoint has; none that a tokenizer does not know, or
/// that stands for something else than text.
fn fixed_prompts(frontend: &TextFrontend<'_>, vocab: u64) -> Vec<ServerPrompt> {
    let tokenizer = frontend.tokenizer().ok();
    let is_text = |id: &u32| tokenizer.is_none_or(|t| t.token(*id).is_some() && !t.is_special(*id));
    let of = |(number, (tokens, _)): (u64, (usize, usize))| {
        let ids = (0..vocab).map(|i| fixed_id(number, i, vocab));
        ServerPrompt::Ids(ids.filter(is_text).take(tokens).collect())
    };
    (0..).zip(FIXED_PROMPTS).map(of).collect()
}

/// What asks the prompts one after the other.
struct Asker<'a> {
    server: &'a ServerSettings,
    facts: &'a TextFacts,
    vocabulary: Vocabulary,
    job: work::Job<'a>,
}

impl Asker<'_> {
    fn ask_all(&self, prompts: Vec<Prepared>) -> Result<Vec<Served>, ServerError> {
        let key = self.server.key.as_ref().map(|key| key.0.clone());
        let client = JsonServer::new(key, self.server.patience)?;
        let fields = Fields {
            model: self.model(&client)?,
            max_new_tokens: self.server.max_new_tokens,
            top: self.server.top,
            more: self.server.more.clone(),
        };
        let count = prompts.len() as u64;
        self.job
            .progress
            .start_counting("asking the server", count, "prompt");
        let mut served = Vec::with_capacity(prompts.len());
        for (number, prompt) in prompts.into_iter().enumerate() {
            let answer = self.ask(number, &prompt, &fields, &client)?;
            served.push(Served {
                prompt: prompt.ids,
                answer,
            });
            self.job.progress.advance(1);
        }
        self.job.progress.finish();
        Ok(served)
    }

    /// The name of the model, where requests have to say it.
    fn model(&self, client: &JsonServer) -> Result<Option<String>, ServerError> {
        let Some(url) = self.server.kind.models_url(&self.server.url) else {
            return Ok(self.server.model.clone());
        };
        if self.server.model.is_some() {
            return Ok(self.server.model.clone());
        }
        let listed = client.get(&url, self.job)?;
        let listed = listed["data"].as_array().into_iter().flatten();
        let names: Vec<String> = listed
            .filter_map(|model| Some(model["id"].as_str()?.to_owned()))
            .collect();
        match &names[..] {
            [name] => Ok(Some(name.clone())),
            _ => Err(ServerError::WhichModel { url, names }),
        }
    }

    fn ask(
        &self,
        number: usize,
        prompt: &Prepared,
        fields: &Fields,
        client: &JsonServer,
    ) -> Result<Answer, ServerError> {
        let kind = self.server.kind;
        let url = kind.url(&self.server.url, &prompt.sent);
        let body = kind.request(&prompt.sent, fields);
        let body = client.post(&url, &body, self.job)?;
        let origin = Origin {
            url: &url,
            prompt: number,
        };
        let requested = Asked {
            ids: &prompt.ids,
            max_new_tokens: fields.max_new_tokens,
            top: fields.top,
            vocab: self.facts.vocab,
        };
        let answer = kind.read(body, &prompt.sent, &self.vocabulary, origin)?;
        answer
            .checked(requested)
            .map_err(|what| origin.answer(what))
    }
}

/// A prompt and what the server answered.
struct Served {
    prompt: Vec<u32>,
    answer: Answer,
}

impl Served {
    /// The tokens but the last, which nothing follows, are fed whatever the model would choose.
    fn sequence(&self) -> Sequence {
        let fed = self.answer.ids.len().saturating_sub(1);
        Sequence {
            prompt: self.prompt.clone(),
            forced: self.answer.ids[..fed].to_vec(),
            generated: self.answer.ids.len(),
            bf16_stable: false,
        }
    }

    /// The step that follows a position, if there is one.
    fn step_after(&self, position: usize) -> Option<usize> {
        (position + 1)
            .checked_sub(self.prompt.len())
            .filter(|step| *step < self.answer.ids.len())
    }
}

impl Reference for &Served {
    fn floats(
        &self,
        _: Quantity,
        _: usize,
        _: Range<usize>,
        _: usize,
    ) -> Result<Option<Vec<f32>>, StepError> {
        Ok(None)
    }

    fn experts(&self, _: usize, _: Range<usize>) -> Result<Option<Vec<Vec<u32>>>, StepError> {
        Ok(None)
    }

    fn step(&self, position: usize) -> Result<Option<ReferenceStep>, StepError> {
        Ok(self.step_after(position).map(|step| ReferenceStep {
            token: self.answer.ids[step],
            top: Vec::new(),
        }))
    }

    fn ranked(&self, position: usize) -> Result<Option<Vec<Ranked>>, StepError> {
        let row = self.step_after(position);
        Ok(Some(row.map_or_else(Vec::new, |step| {
            self.answer.steps[step].clone()
        })))
    }

    fn router_margin(&self) -> Option<f64> {
        None
    }
}

impl From<RemoteError> for ValidateError {
    fn from(error: RemoteError) -> Self {
        Self::Server(error.into())
    }
}
