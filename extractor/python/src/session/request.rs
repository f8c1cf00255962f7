//! What is asked of a session, as Python says it, and what comes back.

use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};
use segpack::steps::StepError;
use segpack_manifests::documents::{RunSummary, RunToken, ShownCandidate};
use segpack_runtime_min::generate::SamplingOptions;
use segpack_runtime_min::processing::{Chat, Prompt};
use segpack_runtime_min::session::{
    ExpertCacheSize, GenerationSettings, MemoryLimit, Token, TokenSink,
};
use segpack_runtime_min::tensor::Compute;
use segpack_runtime_min::weights::ChecksumPolicy;

use crate::error::usage;

/// A prompt to continue, and where its tokens go.
pub(super) struct Request {
    pub(super) prompt: Prompt,
    pub(super) settings: GenerationSettings,
    pub(super) events: Sender<Event>,
    /// The text is to end.
    pub(super) stop: Arc<AtomicBool>,
}

/// What comes of a request: tokens, then one of the others.
pub(super) enum Event {
    Token(RunToken),
    Done(Box<RunSummary>),
    Failed(Box<StepError>),
}

impl Request {
    /// The request is over. Nobody may listen any more.
    pub(super) fn end(&self, event: Event) {
        let _ = self.events.send(event);
    }

    pub(super) fn fail(&self, error: impl Into<StepError>) {
        self.end(Event::Failed(Box::new(error.into())));
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Who hears of its tokens.
    pub(super) fn sink(&self) -> Sink<'_> {
        Sink(self)
    }
}

/// Sends tokens on, until nobody wants them.
pub(super) struct Sink<'r>(&'r Request);

impl TokenSink for Sink<'_> {
    fn token(&mut self, token: &Token<'_>) -> std::ops::ControlFlow<()> {
        use std::ops::ControlFlow::{Break, Continue};
        let shown = token.top.iter().map(|named| ShownCandidate {
            id: named.candidate.id,
            text: named.text.clone(),
            logit: named.candidate.logit,
            probability: named.candidate.probability,
        });
        let token = RunToken {
            index: token.index as u64,
            id: token.id,
            text: token.text.to_owned(),
            stop: token.is_stop,
            top: shown.collect(),
            // a session of Python has all experts
            restricted: false,
        };
        let is_heard = self.0.events.send(Event::Token(token)).is_ok();
        if is_heard && !self.0.is_stopped() {
            Continue(())
        } else {
            Break(())
        }
    }
}

/// The keywords of a Python function, whose names and defaults are written there. `None` is the same as
/// nothing.
pub(super) struct Keywords<'d, 'py>(pub(super) &'d Bound<'py, PyDict>);

impl<'py> Keywords<'_, 'py> {
    /// # Errors
    /// `TypeError` where it is of another type.
    pub(super) fn get<T: FromPyObjectOwned<'py>>(&self, name: &str) -> PyResult<Option<T>> {
        match self.0.get_item(name)? {
            Some(value) if !value.is_none() => value.extract().map(Some).map_err(Into::into),
            _ => Ok(None),
        }
    }

    /// One of several words.
    ///
    /// # Errors
    /// Where it is none of them.
    pub(super) fn choice<T: Default, E: Display>(
        &self,
        py: Python<'py>,
        name: &str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> PyResult<T> {
        let Some(word) = self.get::<String>(name)? else {
            return Ok(T::default());
        };
        parse(&word).map_err(|e| usage(py, &format!("{name}: {e}"), None))
    }
}

/// The prompt: a text, token ids, or the messages of a chat as JSON.
pub(super) fn prompt(
    py: Python<'_>,
    given: &Bound<'_, PyAny>,
    settings: &Bound<'_, PyDict>,
) -> PyResult<Prompt> {
    let keywords = Keywords(settings);
    if let Some(messages) = keywords.get::<String>("messages")? {
        let chat = Chat::from_json(&messages)
            .map_err(|e| usage(py, &format!("the messages are no chat: {e}"), None))?;
        return Ok(Prompt::Chat {
            chat,
            enable_thinking: keywords.get("enable_thinking")?,
        });
    }
    if given.is_instance_of::<PyString>() {
        return Ok(Prompt::Text(given.extract()?));
    }
    Ok(Prompt::Ids(given.extract()?))
}

/// How to continue it.
pub(super) fn settings(given: &Bound<'_, PyDict>) -> PyResult<GenerationSettings> {
    let keywords = Keywords(given);
    let mut settings = GenerationSettings::default();
    if let Some(most) = keywords.get("max_new_tokens")? {
        settings.max_new_tokens = most;
    }
    settings.sampling = sampling(&keywords)?;
    settings.top_k_logits = keywords.get("top_logits")?.unwrap_or(0);
    settings.stop_ids = keywords.get("stop_ids")?;
    settings.preload = keywords.get("preload")?.unwrap_or(false);
    Ok(settings)
}

/// Greedy, unless something of random sampling is given.
fn sampling(keywords: &Keywords<'_, '_>) -> PyResult<Option<SamplingOptions>> {
    let temperature: Option<f64> = keywords.get("temperature")?;
    let (top_k, top_p) = (keywords.get("top_k")?, keywords.get("top_p")?);
    let seed: Option<u64> = keywords.get("seed")?;
    if temperature.is_none() && top_k.is_none() && top_p.is_none() && seed.is_none() {
        return Ok(None);
    }
    let mut sampling = SamplingOptions::new(temperature.unwrap_or(1.0), seed.unwrap_or(0));
    sampling.top_k = top_k;
    sampling.top_p = top_p;
    Ok(Some(sampling))
}

/// A number of bytes, or `"unlimited"`.
pub(super) fn memory(py: Python<'_>, keywords: &Keywords<'_, '_>) -> PyResult<MemoryLimit> {
    let Some(given) = keywords.get::<Bound<'_, PyAny>>("memory")? else {
        return Ok(MemoryLimit::Available);
    };
    if !given.is_instance_of::<PyString>() {
        return Ok(MemoryLimit::Bytes(given.extract()?));
    }
    let word: String = given.extract()?;
    match word.as_str() {
        "unlimited" => Ok(MemoryLimit::Unlimited),
        _ => {
            let message =
                format!("memory: {word:?} is neither a number of bytes nor \"unlimited\"");
            Err(usage(py, &message, None))
        }
    }
}

pub(super) fn expert_cache(keywords: &Keywords<'_, '_>) -> PyResult<Option<ExpertCacheSize>> {
    let experts: Option<u64> = keywords.get("expert_cache")?;
    Ok(experts.map(ExpertCacheSize::Experts))
}

pub(super) fn compute(word: &str) -> Result<Compute, String> {
    match word {
        "f32" => Ok(Compute::F32),
        "bf16" => Ok(Compute::Bf16),
        _ => Err(format!("{word:?} is neither f32 nor bf16")),
    }
}

pub(super) fn checksums(word: &str) -> Result<ChecksumPolicy, String> {
    match word {
        "always" => Ok(ChecksumPolicy::Always),
        "first" => Ok(ChecksumPolicy::First),
        "never" => Ok(ChecksumPolicy::Never),
        _ => Err(format!("{word:?} is none of always, first and never")),
    }
}
