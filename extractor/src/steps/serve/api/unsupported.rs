//! Keys that are not followed: harmless ones are ignored, others are taken only with the value that
//! changes nothing. `docs/serve.md` has both lists.

use serde_json::Value;

use super::error::ApiError;
use super::fields::{Fields, shown};

/// Keys that change nothing of an answer.
pub(super) const IGNORED: [&str; 10] = [
    "metadata",
    "parallel_tool_calls",
    "priority",
    "prompt_cache_key",
    "prompt_cache_retention",
    "request_id",
    "safety_identifier",
    "service_tier",
    "store",
    "user",
];

/// A value that changes nothing.
#[derive(Debug, Clone, Copy)]
pub(super) enum Neutral {
    Number(f64),
    Flag(bool),
    Text(&'static str),
    EmptyList,
    EmptyObject,
    /// `{"type": "text"}`.
    TextFormat,
    /// `["text"]`.
    TextAlone,
    /// None but `null`.
    Nothing,
}

/// Keys that would change an answer, each with the value that does not.
pub(super) const REFUSED: [(&str, Neutral); 40] = [
    ("add_generation_prompt", Neutral::Flag(true)),
    ("add_special_tokens", Neutral::Nothing),
    ("allowed_token_ids", Neutral::Nothing),
    ("audio", Neutral::Nothing),
    ("bad_words", Neutral::EmptyList),
    ("best_of", Neutral::Number(1.0)),
    ("chat_template", Neutral::Nothing),
    ("continue_final_message", Neutral::Flag(false)),
    ("documents", Neutral::EmptyList),
    ("echo", Neutral::Flag(false)),
    ("frequency_penalty", Neutral::Number(0.0)),
    ("function_call", Neutral::Text("none")),
    ("functions", Neutral::EmptyList),
    ("guided_choice", Neutral::Nothing),
    ("guided_grammar", Neutral::Nothing),
    ("guided_json", Neutral::Nothing),
    ("guided_regex", Neutral::Nothing),
    ("include_stop_str_in_output", Neutral::Flag(false)),
    ("length_penalty", Neutral::Number(1.0)),
    ("logit_bias", Neutral::EmptyObject),
    ("min_p", Neutral::Number(0.0)),
    ("min_tokens", Neutral::Number(0.0)),
    ("modalities", Neutral::TextAlone),
    ("n", Neutral::Number(1.0)),
    ("prediction", Neutral::Nothing),
    ("presence_penalty", Neutral::Number(0.0)),
    ("prompt_logprobs", Neutral::Nothing),
    ("reasoning_effort", Neutral::Nothing),
    ("repetition_penalty", Neutral::Number(1.0)),
    ("response_format", Neutral::TextFormat),
    ("skip_special_tokens", Neutral::Flag(true)),
    ("spaces_between_special_tokens", Neutral::Flag(true)),
    ("structured_outputs", Neutral::Nothing),
    ("suffix", Neutral::Text("")),
    ("tool_choice", Neutral::Text("none")),
    ("tools", Neutral::EmptyList),
    ("truncate_prompt_tokens", Neutral::Nothing),
    ("use_beam_search", Neutral::Flag(false)),
    ("verbosity", Neutral::Nothing),
    ("web_search_options", Neutral::Nothing),
];

impl Neutral {
    fn is(self, value: &Value) -> bool {
        match self {
            Self::Number(number) => value.as_f64() == Some(number),
            Self::Flag(flag) => value.as_bool() == Some(flag),
            Self::Text(text) => value.as_str() == Some(text),
            Self::EmptyList => value.as_array().is_some_and(Vec::is_empty),
            Self::EmptyObject => value.as_object().is_some_and(serde_json::Map::is_empty),
            Self::TextFormat => *value == serde_json::json!({"type": "text"}),
            Self::TextAlone => *value == serde_json::json!(["text"]),
            Self::Nothing => false,
        }
    }

    fn shown(self) -> String {
        match self {
            Self::Number(number) => format!("{number}, which changes nothing, or nothing"),
            Self::Flag(flag) => format!("{flag}, which changes nothing, or nothing"),
            Self::Text(text) => format!("{text:?}, which changes nothing, or nothing"),
            Self::EmptyList => "an empty list, or nothing".to_owned(),
            Self::EmptyObject => "an empty object, or nothing".to_owned(),
            Self::TextFormat => "{\"type\": \"text\"}, or nothing".to_owned(),
            Self::TextAlone => "[\"text\"], or nothing".to_owned(),
            Self::Nothing => "nothing".to_owned(),
        }
    }
}

/// Whether the keys that are left may be there.
///
/// # Errors
/// Where one of them would change the answer, or is not known.
pub(super) fn check(rest: &Fields) -> Result<(), ApiError> {
    rest.rest()
        .filter(|(key, _)| !IGNORED.contains(key))
        .try_for_each(|(key, value)| check_one(key, value))
}

fn check_one(key: &str, value: &Value) -> Result<(), ApiError> {
    const CODE: &str = "unsupported_parameter";
    let known = REFUSED.iter().find(|(name, _)| *name == key);
    let message = match known {
        Some((_, neutral)) if neutral.is(value) => return Ok(()),
        Some((_, neutral)) => format!(
            "{key} is not supported here: it is {}; wanted {}",
            shown(value),
            neutral.shown()
        ),
        None => format!("{key:?} is not known here, and could change the answer; leave it out"),
    };
    Err(ApiError::coded(400, CODE, message).of_param(key))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn checked(body: &Value) -> Result<(), ApiError> {
        check(&Fields::of(body.to_string().as_bytes())?)
    }

    #[test]
    fn lists_are_sorted_and_a_key_is_in_one_of_them() {
        let refused: Vec<&str> = REFUSED.iter().map(|(key, _)| *key).collect();
        assert!(refused.is_sorted() && IGNORED.is_sorted());
        assert!(!IGNORED.iter().any(|key| refused.contains(key)));
    }

    #[test]
    fn values_that_change_nothing_pass() {
        let harmless = json!({
            "n": 1.0, "tools": [], "response_format": {"type": "text"}, "logit_bias": {},
            "modalities": ["text"], "suffix": "", "user": {"anything": [1]}, "tool_choice": "none",
            "guided_json": null, "unheard_of": null, "min_p": 0,
        });
        assert_eq!(checked(&harmless), Ok(()));
    }

    #[test]
    fn whatever_would_change_the_answer_is_refused_by_name() {
        for (key, value) in [
            ("n", json!(2)),
            ("tools", json!([{"type": "function"}])),
            ("response_format", json!({"type": "json_object"})),
            ("guided_json", json!({})),
            ("logit_bias", json!({"5": 1})),
            ("unheard_of", json!(0)),
        ] {
            let error = checked(&json!({ key: value })).unwrap_err().body();
            assert_eq!(error["error"]["param"], key);
            assert_eq!(error["error"]["code"], "unsupported_parameter");
        }
    }
}
