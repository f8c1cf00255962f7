//! The keys of a request, taken one by one.

use serde_json::{Map, Value};

use super::error::ApiError;

/// The keys that nobody has looked at yet. `null` is the same as no key.
#[derive(Debug)]
pub(super) struct Fields(Map<String, Value>);

impl Fields {
    /// # Errors
    /// Where the body is not a JSON object.
    pub(super) fn of(body: &[u8]) -> Result<Self, ApiError> {
        let value: Value = serde_json::from_slice(body)
            .map_err(|e| ApiError::request(format!("the body is not JSON: {e}")))?;
        match value {
            Value::Object(fields) => Ok(Self(fields)),
            other => Err(ApiError::request(format!(
                "the body is {}, not a JSON object",
                kind(&other)
            ))),
        }
    }

    pub(super) fn take(&mut self, key: &str) -> Option<Value> {
        self.0.remove(key).filter(|value| !value.is_null())
    }

    /// # Errors
    /// Where it is neither true nor false.
    pub(super) fn flag(&mut self, key: &str) -> Result<Option<bool>, ApiError> {
        self.typed(key, "true or false", Value::as_bool)
    }

    /// # Errors
    /// Where it is not a number.
    pub(super) fn number(&mut self, key: &str) -> Result<Option<f64>, ApiError> {
        self.typed(key, "a number", Value::as_f64)
    }

    /// # Errors
    /// Where it is no whole number, or a negative one.
    pub(super) fn count(&mut self, key: &str) -> Result<Option<u64>, ApiError> {
        self.typed(key, "a whole number that is not negative", whole)
    }

    /// # Errors
    /// Where it is not a text.
    pub(super) fn text(&mut self, key: &str) -> Result<Option<String>, ApiError> {
        self.typed(key, "a text", |value| value.as_str().map(str::to_owned))
    }

    /// # Errors
    /// Where it is not an object.
    pub(super) fn object(&mut self, key: &str) -> Result<Option<Self>, ApiError> {
        self.typed(key, "an object", |value| value.as_object().cloned())
            .map(|object| object.map(Self))
    }

    fn typed<T>(
        &mut self,
        key: &str,
        wanted: &str,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Result<Option<T>, ApiError> {
        let Some(value) = self.take(key) else {
            return Ok(None);
        };
        match read(&value) {
            Some(read) => Ok(Some(read)),
            None => {
                let message = format!("{key} is {}; wanted {wanted}", shown(&value));
                Err(ApiError::param(key, message))
            }
        }
    }

    /// What is left.
    pub(super) fn rest(&self) -> impl Iterator<Item = (&str, &Value)> {
        let rest = self.0.iter().filter(|(_, value)| !value.is_null());
        rest.map(|(key, value)| (key.as_str(), value))
    }
}

/// Clients of other languages write whole numbers as 5.0, too.
pub(super) fn whole(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| whole_float(value.as_f64()?))
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "whole and in range"
)]
fn whole_float(float: f64) -> Option<u64> {
    /// Beyond it not every whole number is an `f64`.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    let is_whole = (0.0..=EXACT).contains(&float) && float.fract() == 0.0;
    is_whole.then_some(float as u64)
}

/// A value for a message, shortened.
pub(super) fn shown(value: &Value) -> String {
    const LONGEST: usize = 60;
    match value {
        Value::Array(_) | Value::Object(_) => kind(value).to_owned(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            let text = value.to_string();
            match text.char_indices().nth(LONGEST) {
                Some((end, _)) => format!("{}…", &text[..end]),
                None => text,
            }
        }
    }
}

/// What a value is.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
