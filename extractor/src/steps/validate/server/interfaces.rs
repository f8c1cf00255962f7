//! The interfaces that servers have: what to ask, and how to read the answer.
//!
//! Sources: `tools/server/README.md` of llama.cpp (`/completion`); vLLM's "OpenAI-Compatible
//! Server" (`return_token_ids`, `return_tokens_as_token_ids`); `OpenAI`'s API reference (completions
//! and chat completions: `logprobs`, `top_logprobs`).

use std::collections::{BTreeMap, BTreeSet};

use segpack_runtime_min::trace::Ranked;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::answer::Answer;
use super::error::ServerError;
use super::vocabulary::{Known, Vocabulary};

/// What kind of server it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ServerKind {
    /// llama.cpp's own server, which tells token ids.
    LlamaCpp,
    /// vLLM, which tells token ids.
    Vllm,
    /// Any other with `OpenAI`'s interface, which tells words.
    OpenAi,
}

/// How a prompt is sent.
#[derive(Debug, Clone)]
pub(super) enum Sent {
    /// As token ids.
    Ids(Vec<u32>),
    /// As a text, which the server tokenizes.
    Text(String),
    /// As messages, which the server renders.
    Messages(Value),
}

/// What every request says.
#[derive(Debug, Clone)]
pub(super) struct Fields {
    /// Name of the model, where it has to be said.
    pub model: Option<String>,
    /// Maximum number of tokens to generate.
    pub max_new_tokens: usize,
    /// Tokens of each step that are listed.
    pub top: usize,
    /// What the user adds or replaces.
    pub more: Map<String, Value>,
}

/// Where an answer comes from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Origin<'a> {
    pub url: &'a str,
    pub prompt: usize,
}

impl Origin<'_> {
    fn parse<T: DeserializeOwned>(self, body: Value) -> Result<T, ServerError> {
        serde_json::from_value(body).map_err(|source| ServerError::NotAsDocumented {
            url: self.url.to_owned(),
            prompt: self.prompt,
            source,
        })
    }

    /// An answer that does not fit.
    pub(super) fn answer(self, what: impl Into<String>) -> ServerError {
        ServerError::Answer {
            url: self.url.to_owned(),
            prompt: self.prompt,
            what: what.into(),
        }
    }

    fn without_log_probabilities(self) -> ServerError {
        ServerError::NoLogProbabilities {
            url: self.url.to_owned(),
            prompt: self.prompt,
        }
    }

    /// The token that was chosen.
    fn chosen(self, step: usize, known: Known, text: &str) -> Result<u32, ServerError> {
        let why = match known {
            Known::Token(id) => return Ok(id),
            Known::None => "is no token of the pack's tokenizer",
            Known::Several => "could be any of several tokens: the comparison would be a guess",
        };
        Err(ServerError::Unidentified {
            url: self.url.to_owned(),
            prompt: self.prompt,
            step,
            text: text.to_owned(),
            why,
        })
    }
}

impl ServerKind {
    /// Where prompts of this sort go. `base` has no slash at its end.
    pub(super) fn url(self, base: &str, sent: &Sent) -> String {
        match (self, sent) {
            (Self::LlamaCpp, _) => {
                let root = base.strip_suffix("/v1").unwrap_or(base);
                format!("{root}/completion")
            }
            (_, Sent::Messages(_)) => format!("{}/chat/completions", versioned(base)),
            (_, Sent::Ids(_) | Sent::Text(_)) => format!("{}/completions", versioned(base)),
        }
    }

    /// Where the server lists its models; `None`: it serves one, which needs no name.
    pub(super) fn models_url(self, base: &str) -> Option<String> {
        match self {
            Self::LlamaCpp => None,
            Self::Vllm | Self::OpenAi => Some(format!("{}/models", versioned(base))),
        }
    }

    /// The document that asks for a greedy continuation.
    pub(super) fn request(self, sent: &Sent, fields: &Fields) -> Value {
        let (count, top) = (fields.max_new_tokens, fields.top);
        let mut body = match self {
            // a temperature below 0 is greedy, with probabilities straight from the logits
            Self::LlamaCpp => json!({
                "n_predict": count, "temperature": -1, "n_probs": top, "post_sampling_probs": false,
                "samplers": ["temperature"], "repeat_penalty": 1.0, "cache_prompt": false,
                "return_tokens": true, "stream": false,
            }),
            // the model's generation_config.json would be applied otherwise
            Self::Vllm => json!({
                "max_tokens": count, "temperature": 0, "logprobs": top, "repetition_penalty": 1.0,
                "skip_special_tokens": false, "return_token_ids": true,
                "return_tokens_as_token_ids": true,
            }),
            Self::OpenAi => json!({"max_tokens": count, "temperature": 0, "logprobs": top}),
        };
        match sent {
            Sent::Ids(ids) => body["prompt"] = json!(ids),
            Sent::Text(text) => body["prompt"] = json!(text),
            Sent::Messages(messages) => {
                body["messages"] = messages.clone();
                (body["logprobs"], body["top_logprobs"]) = (json!(true), json!(top));
            }
        }
        if let Some(model) = &fields.model {
            body["model"] = json!(model);
        }
        for (name, value) in &fields.more {
            body[name] = value.clone();
        }
        body
    }

    /// The answer to such a request.
    ///
    /// # Errors
    /// Where it is not what the documentation says, tells no log-probabilities, or chose a token
    /// that its words do not identify.
    pub(super) fn read(
        self,
        body: Value,
        sent: &Sent,
        vocabulary: &Vocabulary,
        origin: Origin<'_>,
    ) -> Result<Answer, ServerError> {
        match (self, sent) {
            (Self::LlamaCpp, _) => read_llama_cpp(origin.parse(body)?, origin),
            (_, Sent::Messages(_)) => read_chat(origin.parse(body)?, vocabulary, origin),
            (_, Sent::Ids(_) | Sent::Text(_)) => {
                read_completions(origin.parse(body)?, vocabulary, origin)
            }
        }
    }
}

/// With the version of the interface, where the address is that of a host alone.
fn versioned(base: &str) -> String {
    let after_scheme = base.split_once("://").map_or(base, |(_, rest)| rest);
    match after_scheme.contains('/') {
        true => base.to_owned(),
        false => format!("{base}/v1"),
    }
}

/// llama.cpp's answer.
#[derive(Debug, Deserialize)]
struct LlamaCppBody {
    /// All that were generated.
    tokens: Option<Vec<u32>>,
    completion_probabilities: Option<Vec<LlamaCppStep>>,
    tokens_evaluated: Option<u64>,
    stop_type: Option<String>,
}

#[derive(Debug, Deserialize)]
struct LlamaCppStep {
    #[serde(flatten)]
    chosen: NumberedToken,
    #[serde(default)]
    top_logprobs: Vec<NumberedToken>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
struct NumberedToken {
    id: u32,
    /// `null`: minus infinity.
    logprob: Option<f32>,
}

/// llama.cpp lists no log-probabilities of a token whose text ends within a character of UTF-8, so
/// there may be fewer lists than tokens.
fn read_llama_cpp(body: LlamaCppBody, origin: Origin<'_>) -> Result<Answer, ServerError> {
    let listed = body
        .completion_probabilities
        .ok_or_else(|| origin.without_log_probabilities())?;
    let chosen: Vec<u32> = listed.iter().map(|step| step.chosen.id).collect();
    let ids = match body.tokens {
        Some(ids) if !ids.is_empty() => ids,
        Some(_) | None => chosen.clone(),
    };
    let steps_of_lists = only_slots(&chosen, &ids).ok_or_else(|| {
        origin.answer(format!(
            "the log-probabilities are of tokens {chosen:?}, which do not follow each other in the \
             {} generated ones",
            ids.len()
        ))
    })?;
    let mut steps = vec![Vec::new(); ids.len()];
    let mut unlisted: BTreeSet<usize> = (0..ids.len()).collect();
    for (list, step) in listed.iter().zip(steps_of_lists) {
        if let Some(step) = step {
            steps[step] = list.row();
            unlisted.remove(&step);
        }
    }
    Ok(Answer {
        ids,
        steps,
        unlisted,
        prompt_count: body.tokens_evaluated,
        has_ended: body.stop_type.as_deref() == Some("eos"),
        ..Answer::default()
    })
}

/// Where each of `some` stands in `all`, in order: `None` for one that could stand in several
/// slots, since several of `all` are the same. Nothing where they are not in `all` in this order.
fn only_slots(some: &[u32], all: &[u32]) -> Option<Vec<Option<usize>>> {
    let mut numbered = all.iter().enumerate();
    let first: Option<Vec<usize>> = some
        .iter()
        .map(|id| Some(numbered.find(|(_, other)| *other == id)?.0))
        .collect();
    let mut numbered = all.iter().enumerate().rev();
    let last: Option<Vec<usize>> = some
        .iter()
        .rev()
        .map(|id| Some(numbered.find(|(_, other)| *other == id)?.0))
        .collect();
    let both = first?.into_iter().zip(last?.into_iter().rev());
    Some(
        both.map(|(first, last)| (first == last).then_some(first))
            .collect(),
    )
}

impl LlamaCppStep {
    /// Every token once.
    fn row(&self) -> Vec<Ranked> {
        let others = self.top_logprobs.iter().filter(|t| t.id != self.chosen.id);
        let all = std::iter::once(&self.chosen).chain(others);
        all.map(|t| ranked(Some(t.id), t.logprob)).collect()
    }
}

fn ranked(id: Option<u32>, logprob: Option<f32>) -> Ranked {
    Ranked {
        id,
        log_probability: logprob.unwrap_or(f32::NEG_INFINITY),
    }
}

#[derive(Debug, Deserialize)]
struct Body<C> {
    choices: Vec<C>,
    usage: Option<Usage>,
}

#[derive(Debug, Default, Deserialize)]
struct Usage {
    prompt_tokens: Option<u64>,
    completion_tokens: Option<u64>,
}

impl<C> Body<C> {
    fn only(self, origin: Origin<'_>) -> Result<(C, Usage), ServerError> {
        let count = self.choices.len();
        let mut choices = self.choices.into_iter();
        match (choices.next(), count) {
            (Some(choice), 1) => Ok((choice, self.usage.unwrap_or_default())),
            _ => Err(origin.answer(format!("the answer has {count} choices; wanted one"))),
        }
    }
}

#[derive(Debug, Deserialize)]
struct Completion {
    finish_reason: Option<String>,
    logprobs: Option<CompletionLogprobs>,
    /// vLLM's.
    token_ids: Option<Vec<u32>>,
    /// vLLM's.
    prompt_token_ids: Option<Vec<u32>>,
}

/// Log-probabilities by the texts of tokens.
type TextLogprobs = BTreeMap<String, Option<f32>>;

/// One entry for each step.
#[derive(Debug, Deserialize)]
struct CompletionLogprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<Option<f32>>,
    top_logprobs: Option<Vec<Option<TextLogprobs>>>,
}

fn read_completions(
    body: Body<Completion>,
    vocabulary: &Vocabulary,
    origin: Origin<'_>,
) -> Result<Answer, ServerError> {
    let (choice, usage) = body.only(origin)?;
    let reported = choice
        .logprobs
        .ok_or_else(|| origin.without_log_probabilities())?;
    let top = reported.top_logprobs.unwrap_or_default();
    if reported.tokens.len() != reported.token_logprobs.len() || reported.tokens.len() != top.len()
    {
        return Err(origin.without_log_probabilities());
    }
    let ids = match choice.token_ids {
        Some(ids) => ids,
        None => (0..)
            .zip(&reported.tokens)
            .map(|(step, text)| origin.chosen(step, vocabulary.find(text, None), text))
            .collect::<Result<_, _>>()?,
    };
    let columns = reported
        .tokens
        .iter()
        .zip(&reported.token_logprobs)
        .zip(&top);
    let row = |(id, ((text, logprob), top)): (&u32, ((&String, &Option<f32>), _))| {
        completion_row((*id, text, *logprob), top, vocabulary)
    };
    Ok(Answer {
        steps: ids.iter().zip(columns).map(row).collect(),
        ids,
        prompt_ids: choice.prompt_token_ids,
        prompt_count: usage.prompt_tokens,
        counted: usage.completion_tokens,
        has_ended: choice.finish_reason.as_deref() == Some("stop"),
        // it lists all of them, or the answer is refused above
        ..Answer::default()
    })
}

fn completion_row(
    (id, text, logprob): (u32, &str, Option<f32>),
    top: &Option<BTreeMap<String, Option<f32>>>,
    vocabulary: &Vocabulary,
) -> Vec<Ranked> {
    let others = top.iter().flatten().filter(|(other, _)| *other != text);
    let others = others.map(|(text, x)| ranked(vocabulary.find(text, None).id(), *x));
    std::iter::once(ranked(Some(id), logprob))
        .chain(others)
        .collect()
}

#[derive(Debug, Deserialize)]
struct ChatCompletion {
    finish_reason: Option<String>,
    logprobs: Option<ChatLogprobs>,
}

#[derive(Debug, Deserialize)]
struct ChatLogprobs {
    content: Option<Vec<ChatStep>>,
}

#[derive(Debug, Deserialize)]
struct ChatStep {
    #[serde(flatten)]
    chosen: WrittenToken,
    #[serde(default)]
    top_logprobs: Vec<WrittenToken>,
}

#[derive(Debug, Deserialize)]
struct WrittenToken {
    token: String,
    bytes: Option<Vec<u8>>,
    logprob: Option<f32>,
}

impl WrittenToken {
    fn known(&self, vocabulary: &Vocabulary) -> Known {
        vocabulary.find(&self.token, self.bytes.as_deref())
    }
}

fn read_chat(
    body: Body<ChatCompletion>,
    vocabulary: &Vocabulary,
    origin: Origin<'_>,
) -> Result<Answer, ServerError> {
    let (choice, usage) = body.only(origin)?;
    let reported = choice.logprobs.and_then(|reported| reported.content);
    let reported = reported.ok_or_else(|| origin.without_log_probabilities())?;
    let mut answer = Answer {
        prompt_count: usage.prompt_tokens,
        counted: usage.completion_tokens,
        has_ended: choice.finish_reason.as_deref() == Some("stop"),
        ..Answer::default()
    };
    for (number, step) in reported.iter().enumerate() {
        let known = step.chosen.known(vocabulary);
        let id = origin.chosen(number, known, &step.chosen.token)?;
        answer.ids.push(id);
        answer.steps.push(step.row(id, vocabulary));
    }
    Ok(answer)
}

impl ChatStep {
    fn row(&self, id: u32, vocabulary: &Vocabulary) -> Vec<Ranked> {
        let mut row = vec![ranked(Some(id), self.chosen.logprob)];
        for other in &self.top_logprobs {
            let found = other.known(vocabulary).id();
            if found != Some(id) && other.token != self.chosen.token {
                row.push(ranked(found, other.logprob));
            }
        }
        row
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_may_end_in_the_version_or_not() {
        let ids = Sent::Ids(vec![1]);
        let messages = Sent::Messages(json!([]));
        let all = [
            (
                ServerKind::LlamaCpp,
                "http://h:1/v1",
                &ids,
                "http://h:1/completion",
            ),
            (
                ServerKind::LlamaCpp,
                "http://h:1/a",
                &ids,
                "http://h:1/a/completion",
            ),
            (
                ServerKind::Vllm,
                "http://h:1",
                &ids,
                "http://h:1/v1/completions",
            ),
            (
                ServerKind::OpenAi,
                "http://h/v1",
                &ids,
                "http://h/v1/completions",
            ),
            (
                ServerKind::OpenAi,
                "http://h",
                &messages,
                "http://h/v1/chat/completions",
            ),
            (
                ServerKind::OpenAi,
                "http://h/x/v1",
                &messages,
                "http://h/x/v1/chat/completions",
            ),
        ];
        for (kind, base, sent, wanted) in all {
            assert_eq!(kind.url(base, sent), wanted);
        }
    }

    #[test]
    fn lists_stand_where_they_can_stand_alone() {
        assert_eq!(only_slots(&[1, 2], &[1, 2]), Some(vec![Some(0), Some(1)]));
        assert_eq!(
            only_slots(&[1, 4], &[1, 2, 3, 4]),
            Some(vec![Some(0), Some(3)])
        );
        // the list of token 7 could be of either
        assert_eq!(
            only_slots(&[7, 4], &[7, 7, 4, 5]),
            Some(vec![None, Some(2)])
        );
        assert_eq!(only_slots(&[4, 1], &[1, 2, 3, 4]), None);
        assert_eq!(only_slots(&[1, 1], &[1, 2]), None);
        assert_eq!(only_slots(&[], &[1]), Some(Vec::new()));
    }

    #[test]
    fn what_the_user_adds_replaces_what_is_asked_by_default() {
        let more = json!({"repeat_penalty": 1.0, "max_tokens": 3});
        let fields = Fields {
            model: Some("m".to_owned()),
            max_new_tokens: 8,
            top: 5,
            more: more.as_object().cloned().unwrap_or_default(),
        };
        let body = ServerKind::OpenAi.request(&Sent::Text("a".to_owned()), &fields);
        let wanted = json!({
            "model": "m", "prompt": "a", "max_tokens": 3, "temperature": 0, "logprobs": 5,
            "repeat_penalty": 1.0,
        });
        assert_eq!(body, wanted);
    }
}
