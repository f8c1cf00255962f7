//! What a request asks for.

use segpack_runtime_min::generate::SamplingOptions;
use segpack_runtime_min::processing::Prompt;
use segpack_runtime_min::processing::text::StopStrings;
use serde_json::Value;

use super::error::ApiError;
use super::fields::{Fields, shown, whole};
use super::{MAX_LOGPROBS, messages, unsupported};

/// Prompts of one request.
const MAX_PROMPTS: usize = 256;
/// Stop strings, and bytes of each.
const MAX_STOPS: usize = 16;
const MAX_STOP_BYTES: usize = 1024;
/// Values of a body: each takes far more memory than its text. A million are 256 prompts of 4,096
/// token ids.
const MAX_VALUES: usize = 1 << 20;
/// What OpenAI's interface generates where a completion does not say.
const DEFAULT_COMPLETION: usize = 16;

/// Which of the two interfaces a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Endpoint {
    /// `/v1/completions`.
    Completions,
    /// `/v1/chat/completions`.
    Chat,
}

/// What a request asks for: of the model, and how the answer is written.
#[derive(Debug)]
pub(crate) struct Ask {
    pub(crate) endpoint: Endpoint,
    /// The model's name; none where the request has none.
    pub(crate) model: Option<String>,
    pub(crate) question: Question,
    /// As events, one for each piece of text.
    pub(crate) stream: bool,
    /// The last event tells how many tokens there were.
    pub(crate) include_usage: bool,
    pub(crate) return_token_ids: bool,
    /// Tokens are spelled `token_id:N`.
    pub(crate) tokens_as_ids: bool,
}

/// What a request asks of the model.
#[derive(Debug)]
pub(crate) struct Question {
    /// At least one.
    pub(crate) prompts: Vec<Prompt>,
    /// The prompt is a part of the answer.
    pub(crate) echo: bool,
    /// `None`: until the text ends or the context is full.
    pub(crate) max_tokens: Option<usize>,
    /// `None`: always the most likely token.
    pub(crate) sampling: Option<SamplingOptions>,
    /// Log probabilities are wanted, of so many candidates beside the token itself.
    pub(crate) logprobs: Option<usize>,
    pub(crate) stop: StopStrings,
    /// Token ids that end the text beside the checkpoint's own.
    pub(crate) stop_ids: Vec<u32>,
    /// The checkpoint's own end-of-text ids do not.
    pub(crate) ignore_eos: bool,
}

/// Reads the body of a request.
///
/// # Errors
/// Where a key is missing, has a value that is not taken, or would change the answer in a way that
/// is not supported.
pub(crate) fn parse(endpoint: Endpoint, body: &[u8]) -> Result<Ask, ApiError> {
    check_size(body)?;
    let mut fields = Fields::of(body)?;
    let model = fields.text("model")?;
    let stream = fields.flag("stream")?.unwrap_or(false);
    let include_usage = include_usage(&mut fields, stream)?;
    let return_token_ids = fields.flag("return_token_ids")?.unwrap_or(false);
    let tokens_as_ids = fields.flag("return_tokens_as_token_ids")?.unwrap_or(false);
    let question = match endpoint {
        Endpoint::Completions => completion(&mut fields)?,
        Endpoint::Chat => chat(&mut fields, body)?,
    };
    unsupported::check(&fields)?;
    Ok(Ask {
        endpoint,
        model,
        question,
        stream,
        include_usage,
        return_token_ids,
        tokens_as_ids,
    })
}

/// Before anything is made of it.
fn check_size(body: &[u8]) -> Result<(), ApiError> {
    let values = body.iter().filter(|byte| **byte == b',').count();
    if values <= MAX_VALUES {
        return Ok(());
    }
    let message = format!("the body has {values} commas; at most {MAX_VALUES} are taken");
    Err(ApiError::coded(413, "request_too_large", message))
}

fn include_usage(fields: &mut Fields, stream: bool) -> Result<bool, ApiError> {
    let Some(mut options) = fields.object("stream_options")? else {
        return Ok(false);
    };
    if !stream {
        let message = "stream_options are given, but stream is not true";
        return Err(ApiError::param("stream_options", message));
    }
    let include = options.flag("include_usage")?.unwrap_or(false);
    // padding against listeners, which this does not do
    options.flag("include_obfuscation")?;
    unsupported::check(&options)?;
    Ok(include)
}

fn completion(fields: &mut Fields) -> Result<Question, ApiError> {
    let prompts = prompts(fields.take("prompt"))?;
    let echo = fields.flag("echo")?.unwrap_or(false);
    let max_tokens = fields.count("max_tokens")?;
    let max_tokens = max_tokens.map_or(DEFAULT_COMPLETION, to_usize);
    if max_tokens == 0 && !echo {
        let message = "max_tokens is 0: without echo nothing would be left to answer";
        return Err(ApiError::param("max_tokens", message));
    }
    let logprobs = fields.count("logprobs")?;
    let logprobs = candidates("logprobs", logprobs)?;
    let question = Question {
        prompts,
        echo,
        max_tokens: Some(max_tokens),
        logprobs,
        ..common(fields)?
    };
    Ok(question)
}

fn chat(fields: &mut Fields, body: &[u8]) -> Result<Question, ApiError> {
    let chat = messages::chat(body, fields.take("messages"))?;
    let enable_thinking = enable_thinking(fields)?;
    let [old, new] = ["max_tokens", "max_completion_tokens"].map(|key| fields.count(key));
    let max_tokens = new?.or(old?).map(to_usize);
    if max_tokens == Some(0) {
        let message = "max_completion_tokens is 0: nothing would be left to answer";
        return Err(ApiError::param("max_completion_tokens", message));
    }
    let wanted = fields.flag("logprobs")?.unwrap_or(false);
    let top = fields.count("top_logprobs")?;
    if top.is_some_and(|top| top > 0) && !wanted {
        let message = "top_logprobs are given, but logprobs is not true";
        return Err(ApiError::param("top_logprobs", message));
    }
    let logprobs = wanted.then_some(top.unwrap_or(0));
    let question = Question {
        prompts: vec![Prompt::Chat {
            chat,
            enable_thinking,
        }],
        max_tokens,
        logprobs: candidates("top_logprobs", logprobs)?,
        ..common(fields)?
    };
    Ok(question)
}

/// What both interfaces have.
fn common(fields: &mut Fields) -> Result<Question, ApiError> {
    Ok(Question {
        prompts: Vec::new(),
        echo: false,
        max_tokens: None,
        sampling: sampling(fields)?,
        logprobs: None,
        stop: stop(fields.take("stop"))?,
        stop_ids: match fields.take("stop_token_ids") {
            Some(ids) => token_ids("stop_token_ids", &ids)?,
            None => Vec::new(),
        },
        ignore_eos: fields.flag("ignore_eos")?.unwrap_or(false),
    })
}

/// The one setting of templates that there is.
fn enable_thinking(fields: &mut Fields) -> Result<Option<bool>, ApiError> {
    let Some(mut settings) = fields.object("chat_template_kwargs")? else {
        return Ok(None);
    };
    let enable_thinking = settings.flag("enable_thinking")?;
    unsupported::check(&settings)?;
    Ok(enable_thinking)
}

/// A temperature of 0 is the most likely token; without any it is 1, as OpenAI has it. Without a
/// seed it is 0, so that the same request has the same answer.
fn sampling(fields: &mut Fields) -> Result<Option<SamplingOptions>, ApiError> {
    let temperature = fields.number("temperature")?.unwrap_or(1.0);
    let seed = seed(fields.take("seed"))?;
    let top_p = fields.number("top_p")?;
    let top_k = top_k(fields.take("top_k"))?;
    if !(0.0..=100.0).contains(&temperature) {
        let message = format!("temperature is {temperature}; wanted 0 to 100");
        return Err(ApiError::param("temperature", message));
    }
    if let Some(p) = top_p.filter(|p| !(*p > 0.0 && *p <= 1.0)) {
        let message = format!("top_p is {p}; wanted more than 0, at most 1");
        return Err(ApiError::param("top_p", message));
    }
    if temperature == 0.0 {
        return Ok(None);
    }
    let mut options = SamplingOptions::new(temperature, seed);
    options.top_p = top_p.filter(|p| *p < 1.0);
    options.top_k = top_k;
    Ok(Some(options))
}

/// Negative seeds are seeds, too.
fn seed(value: Option<Value>) -> Result<u64, ApiError> {
    let Some(value) = value else {
        return Ok(0);
    };
    let negative = value.as_i64().map(i64::cast_unsigned);
    negative.or_else(|| whole(&value)).ok_or_else(|| {
        let message = format!(
            "seed is {}; wanted a whole number of 64 bits",
            shown(&value)
        );
        ApiError::param("seed", message)
    })
}

/// 0 and -1 keep every token, as in vLLM.
fn top_k(value: Option<Value>) -> Result<Option<usize>, ApiError> {
    let Some(value) = value else {
        return Ok(None);
    };
    match (value.as_i64(), whole(&value)) {
        (Some(-1), _) | (_, Some(0)) => Ok(None),
        (_, Some(k)) => Ok(Some(to_usize(k))),
        (_, None) => {
            let message = format!("top_k is {}; wanted -1 or a whole number", shown(&value));
            Err(ApiError::param("top_k", message))
        }
    }
}

fn stop(value: Option<Value>) -> Result<StopStrings, ApiError> {
    let wrong = |message: String| ApiError::param("stop", message);
    let strings = match value {
        None => Vec::new(),
        Some(Value::String(text)) => vec![text],
        Some(Value::Array(list)) => {
            let texts = list.iter().map(|text| text.as_str().map(str::to_owned));
            let texts = texts.collect::<Option<Vec<_>>>();
            texts.ok_or_else(|| wrong("stop has something that is no text".to_owned()))?
        }
        Some(other) => {
            let seen = shown(&other);
            return Err(wrong(format!(
                "stop is {seen}; wanted a text or a list of texts"
            )));
        }
    };
    if strings.len() > MAX_STOPS || strings.iter().any(|s| s.len() > MAX_STOP_BYTES) {
        let message = format!(
            "stop has too much: at most {MAX_STOPS} texts of at most {MAX_STOP_BYTES} bytes"
        );
        return Err(wrong(message));
    }
    StopStrings::new(strings).map_err(|e| wrong(e.to_string()))
}

/// A text, a list of texts, a list of token ids, or a list of such lists.
fn prompts(value: Option<Value>) -> Result<Vec<Prompt>, ApiError> {
    let wrong = |message: String| ApiError::param("prompt", message);
    let list = match value {
        None => return Err(wrong("the prompt is missing".to_owned())),
        Some(Value::String(text)) => return Ok(vec![Prompt::Text(text)]),
        Some(Value::Array(list)) => list,
        Some(other) => {
            let seen = shown(&other);
            return Err(wrong(format!(
                "the prompt is {seen}; wanted a text, a list of token ids, or a list of these"
            )));
        }
    };
    match list.first() {
        None => return Err(wrong("the prompt is an empty list".to_owned())),
        Some(Value::Number(_)) => {
            let ids = token_ids("prompt", &Value::Array(list))?;
            return Ok(vec![Prompt::Ids(ids)]);
        }
        Some(_) if list.len() > MAX_PROMPTS => {
            let message = format!("{} prompts; at most {MAX_PROMPTS} are taken", list.len());
            return Err(wrong(message));
        }
        Some(_) => {}
    }
    list.into_iter().map(prompt).collect()
}

fn prompt(value: Value) -> Result<Prompt, ApiError> {
    match value {
        Value::String(text) => Ok(Prompt::Text(text)),
        ids => Ok(Prompt::Ids(token_ids("prompt", &ids)?)),
    }
}

fn token_ids(param: &str, value: &Value) -> Result<Vec<u32>, ApiError> {
    let id = |value: &Value| whole(value).and_then(|id| u32::try_from(id).ok());
    let ids = value.as_array().map(|list| list.iter().map(id));
    let ids = ids.and_then(|ids| ids.collect::<Option<Vec<u32>>>());
    ids.ok_or_else(|| ApiError::param(param, format!("{param} is no list of token ids")))
}

/// How many candidates are listed.
fn candidates(param: &str, wanted: Option<u64>) -> Result<Option<usize>, ApiError> {
    match wanted {
        Some(many) if many > MAX_LOGPROBS => {
            let message = format!("{param} is {many}; at most {MAX_LOGPROBS} candidates are told");
            Err(ApiError::param(param, message))
        }
        wanted => Ok(wanted.map(to_usize)),
    }
}

/// More than can be counted is more than any context has.
fn to_usize(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(endpoint: Endpoint, body: &Value) -> Result<Ask, Value> {
        parse(endpoint, body.to_string().as_bytes()).map_err(|e| e.body()["error"].clone())
    }

    #[test]
    fn prompts_come_in_four_shapes() {
        let shapes = [
            (json!("Hi"), "[Text(\"Hi\")]"),
            (json!(["Hi", "Ho"]), "[Text(\"Hi\"), Text(\"Ho\")]"),
            (json!([1, 2]), "[Ids([1, 2])]"),
            (json!([[1], [2, 3.0]]), "[Ids([1]), Ids([2, 3])]"),
        ];
        for (prompt, wanted) in shapes {
            let ask = of(Endpoint::Completions, &json!({ "prompt": prompt })).unwrap();
            assert_eq!(format!("{:?}", ask.question.prompts), wanted);
            assert_eq!(ask.question.max_tokens, Some(16));
        }
        for prompt in [
            json!(null),
            json!([]),
            json!(5),
            json!([1, "a"]),
            json!([-1]),
            json!([1.5]),
            json!([4_294_967_296_u64]),
            json!([{}]),
        ] {
            let error = of(Endpoint::Completions, &json!({ "prompt": prompt })).unwrap_err();
            assert_eq!(error["param"], "prompt", "{prompt}");
        }
    }

    #[test]
    fn sampling_is_openais_but_for_a_seed_that_is_always_there() {
        let sampling = |more: Value| {
            let mut body = json!({"prompt": "Hi"});
            let fields = more.as_object().unwrap().clone();
            body.as_object_mut().unwrap().extend(fields);
            of(Endpoint::Completions, &body).map(|ask| ask.question.sampling)
        };
        assert_eq!(sampling(json!({})), Ok(Some(SamplingOptions::new(1.0, 0))));
        assert_eq!(sampling(json!({"temperature": 0, "top_p": 0.5})), Ok(None));
        let mut wanted = SamplingOptions::new(0.5, u64::MAX);
        (wanted.top_k, wanted.top_p) = (Some(3), Some(0.25));
        let given = json!({"temperature": 0.5, "seed": -1, "top_k": 3, "top_p": 0.25});
        assert_eq!(sampling(given), Ok(Some(wanted)));
        let everything = json!({"top_k": -1, "top_p": 1});
        assert_eq!(sampling(everything), Ok(Some(SamplingOptions::new(1.0, 0))));
        for (key, value) in [
            ("temperature", json!(-1)),
            ("temperature", json!("hot")),
            ("top_p", json!(0)),
            ("top_k", json!(-2)),
            ("seed", json!(0.5)),
            ("stop", json!([1])),
            ("stop", json!("")),
            ("stop", json!(vec!["a"; 17])),
            ("logprobs", json!(21)),
            ("max_tokens", json!(0)),
            ("stream_options", json!({"include_usage": true})),
        ] {
            assert_eq!(sampling(json!({ key: value })).unwrap_err()["param"], key);
        }
    }

    #[test]
    fn a_body_of_very_many_values_is_refused_before_it_is_read() {
        let body = format!("[{}1]", "1,".repeat(MAX_VALUES + 1));
        let error = parse(Endpoint::Completions, body.as_bytes()).unwrap_err();
        assert_eq!(error.status, 413);
    }

    #[test]
    fn chats_ask_for_candidates_in_two_keys() {
        let chat = |more: Value| {
            let mut body = json!({"messages": [{"role": "user", "content": "Hi"}]});
            let fields = more.as_object().unwrap().clone();
            body.as_object_mut().unwrap().extend(fields);
            of(Endpoint::Chat, &body)
        };
        let logprobs = |more| chat(more).map(|ask| ask.question.logprobs);
        assert_eq!(logprobs(json!({})).unwrap(), None);
        assert_eq!(logprobs(json!({"logprobs": true})).unwrap(), Some(0));
        assert_eq!(
            logprobs(json!({"logprobs": true, "top_logprobs": 5})).unwrap(),
            Some(5)
        );
        assert_eq!(
            chat(json!({"top_logprobs": 5})).unwrap_err()["param"],
            "top_logprobs"
        );
        assert_eq!(chat(json!({"echo": true})).unwrap_err()["param"], "echo");
        let thinking = json!({"chat_template_kwargs": {"enable_thinking": false}});
        assert!(chat(thinking).is_ok());
        let other = json!({"chat_template_kwargs": {"thinking_budget": 5}});
        assert_eq!(chat(other).unwrap_err()["param"], "thinking_budget");
        assert_eq!(
            chat(json!({"messages": []})).unwrap_err()["param"],
            "messages"
        );
    }
}
