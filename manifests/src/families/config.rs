//! Reading a `config.json` that nobody vouches for: every value is bounded, every refusal names its
//! key.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

/// Largest count of layers, experts, stages or list entries that is believed.
pub const MAX_COUNT: u64 = 65_536;
/// Largest single dimension that is believed; products of two then fit 64 bits.
pub const MAX_SIZE: u64 = u32::MAX as u64;

/// Why a configuration cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A key without a default is absent or null.
    #[error("config.json: {key} is missing, wanted {wanted}")]
    Missing {
        /// Path of the key, dot separated.
        key: String,
        /// What should be there.
        wanted: String,
    },
    /// A key holds something else than wanted.
    #[error("config.json: {key} is {found}, wanted {wanted}")]
    Invalid {
        /// Path of the key, dot separated.
        key: String,
        /// The value, as JSON, cut short.
        found: String,
        /// What should be there.
        wanted: String,
    },
    /// The counts multiply to more tensors than any checkpoint has.
    #[error(
        "config.json: the counts in {section} give more than {limit} tensors, wanted at most {limit} in all"
    )]
    TooManyTensors {
        /// Path of the object whose counts did it.
        section: String,
        /// The limit.
        limit: usize,
    },
}

/// One object of the configuration, with the path that leads to it.
#[derive(Debug, Clone)]
pub(crate) struct Section<'a> {
    path: String,
    keys: &'a Map<String, Value>,
}

impl<'a> Section<'a> {
    pub(crate) fn root(config: &'a Value) -> Result<Self, ConfigError> {
        Self::object(String::new(), config)
    }

    fn object(path: String, value: &'a Value) -> Result<Self, ConfigError> {
        match value {
            Value::Object(keys) => Ok(Self { path, keys }),
            other => {
                let key = if path.is_empty() {
                    "the document".to_owned()
                } else {
                    path
                };
                Err(ConfigError::Invalid {
                    key,
                    found: excerpt(other),
                    wanted: "an object".to_owned(),
                })
            }
        }
    }

    /// The path for messages: "the document" for the root.
    pub(crate) fn name(&self) -> String {
        if self.path.is_empty() {
            "the document".to_owned()
        } else {
            self.path.clone()
        }
    }

    pub(crate) fn section(&self, key: &str) -> Result<Section<'a>, ConfigError> {
        match self.get(key) {
            Some(value) => Self::object(self.key_path(key), value),
            None => Err(self.missing(key, "an object")),
        }
    }

    pub(crate) fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// Whether `key` is there and null: for some keys the classes give that a meaning of its own.
    pub(crate) fn is_null(&self, key: &str) -> bool {
        matches!(self.keys.get(key), Some(Value::Null))
    }

    /// The keys of the object, in its order.
    pub(crate) fn keys(&self) -> Vec<&'a str> {
        self.keys.keys().map(String::as_str).collect()
    }

    /// The first of two spellings of a key, unless only the second is there.
    pub(crate) fn either<'k>(&self, first: &'k str, second: &'k str) -> &'k str {
        if !self.has(first) && self.has(second) {
            second
        } else {
            first
        }
    }

    /// A dimension, at least 1.
    pub(crate) fn size(&self, key: &str, default: Option<u64>) -> Result<u64, ConfigError> {
        self.integer(key, default, 1..=MAX_SIZE)
    }

    /// A count that may be zero only if `least` says so.
    pub(crate) fn count(
        &self,
        key: &str,
        default: Option<u64>,
        least: u64,
    ) -> Result<u32, ConfigError> {
        let count = self.integer(key, default, least..=MAX_COUNT)?;
        u32::try_from(count).map_err(|_| self.invalid(key, "a 32-bit count"))
    }

    pub(crate) fn integer(
        &self,
        key: &str,
        default: Option<u64>,
        range: RangeInclusive<u64>,
    ) -> Result<u64, ConfigError> {
        let wanted = || format!("an integer from {} to {}", range.start(), range.end());
        match self.get(key) {
            None => default.ok_or_else(|| self.missing(key, &wanted())),
            Some(value) => value
                .as_u64()
                .filter(|number| range.contains(number))
                .ok_or_else(|| self.invalid(key, &wanted())),
        }
    }

    /// A list of integers; `limit` bounds each of them.
    pub(crate) fn integers(
        &self,
        key: &str,
        default: &[u64],
        limit: RangeInclusive<u64>,
    ) -> Result<Vec<u64>, ConfigError> {
        let Some(value) = self.get(key) else {
            return Ok(default.to_vec());
        };
        let wanted = || {
            let (least, most) = (limit.start(), limit.end());
            format!("a list of at most {MAX_COUNT} integers from {least} to {most}")
        };
        let inside = |entry: &Value| entry.as_u64().filter(|number| limit.contains(number));
        value
            .as_array()
            .filter(|entries| entries.len() as u64 <= MAX_COUNT)
            .and_then(|entries| entries.iter().map(inside).collect())
            .ok_or_else(|| self.invalid(key, &wanted()))
    }

    pub(crate) fn flag(&self, key: &str, default: bool) -> Result<bool, ConfigError> {
        Ok(self.optional_flag(key)?.unwrap_or(default))
    }

    pub(crate) fn optional_flag(&self, key: &str) -> Result<Option<bool>, ConfigError> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => value
                .as_bool()
                .map(Some)
                .ok_or_else(|| self.invalid(key, "true or false")),
        }
    }

    /// A positive number within these bounds, both included.
    pub(crate) fn number(
        &self,
        key: &str,
        default: f64,
        range: RangeInclusive<f64>,
    ) -> Result<f64, ConfigError> {
        let Some(value) = self.get(key) else {
            return Ok(default);
        };
        match value.as_f64() {
            Some(number) if range.contains(&number) => Ok(number),
            Some(number) if number > 0.0 => {
                let wanted = format!("a number from {:e} to {:e}", range.start(), range.end());
                Err(self.invalid(key, &wanted))
            }
            _ => Err(self.invalid(key, "a positive number")),
        }
    }

    pub(crate) fn text(&self, key: &str) -> Result<Option<&'a str>, ConfigError> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => value
                .as_str()
                .map(Some)
                .ok_or_else(|| self.invalid(key, "a text")),
        }
    }

    /// `left x right`, blamed on `key` when it does not fit 64 bits.
    pub(crate) fn product(&self, key: &str, left: u64, right: u64) -> Result<u64, ConfigError> {
        left.checked_mul(right)
            .ok_or_else(|| self.invalid(key, "a value whose product fits 64 bits"))
    }

    /// A list of texts; empty where the key is absent.
    pub(crate) fn texts(&self, key: &str) -> Result<Vec<String>, ConfigError> {
        let Some(value) = self.get(key) else {
            return Ok(Vec::new());
        };
        let text = |entry: &Value| entry.as_str().map(str::to_owned);
        let entries = value
            .as_array()
            .filter(|list| list.len() as u64 <= MAX_COUNT);
        let texts = entries.and_then(|list| list.iter().map(text).collect());
        texts.ok_or_else(|| self.invalid(key, &format!("a list of at most {MAX_COUNT} texts")))
    }

    /// What is wrong with a key that is absent, or holds something else than wanted.
    pub(crate) fn invalid_or_missing(&self, key: &str, wanted: &str) -> ConfigError {
        match self.has(key) {
            true => self.invalid(key, wanted),
            false => self.missing(key, wanted),
        }
    }

    pub(crate) fn missing(&self, key: &str, wanted: &str) -> ConfigError {
        ConfigError::Missing {
            key: self.key_path(key),
            wanted: wanted.to_owned(),
        }
    }

    pub(crate) fn invalid(&self, key: &str, wanted: &str) -> ConfigError {
        let found = self
            .keys
            .get(key)
            .map_or_else(|| "its default".to_owned(), excerpt);
        ConfigError::Invalid {
            key: self.key_path(key),
            found,
            wanted: wanted.to_owned(),
        }
    }

    /// The first of its keys.
    pub(crate) fn first_key(&self) -> Option<&'a str> {
        self.keys.keys().next().map(String::as_str)
    }

    /// What is there under a key, if it is not null.
    pub(crate) fn value(&self, key: &str) -> Option<&'a Value> {
        self.get(key)
    }

    fn get(&self, key: &str) -> Option<&'a Value> {
        self.keys.get(key).filter(|value| !value.is_null())
    }

    fn key_path(&self, key: &str) -> String {
        if self.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.path)
        }
    }
}

/// The value as JSON, cut so that a hostile document cannot flood a message.
fn excerpt(value: &Value) -> String {
    const LONGEST: usize = 60;
    match value {
        Value::Array(entries) => format!("a list of {}", entries.len()),
        Value::Object(keys) => format!("an object of {} keys", keys.len()),
        Value::String(text) if text.chars().count() > LONGEST => {
            format!("{:?}…", text.chars().take(LONGEST).collect::<String>())
        }
        other => other.to_string(),
    }
}
/// The objects of a configuration that may describe the weights: the top, `thinker_config`, and the
/// `text_config` of either.
pub(crate) fn sections_of_models(config: &Value) -> Result<Vec<Section<'_>>, ConfigError> {
    let root = Section::root(config)?;
    let mut sections = vec![root.clone()];
    if root.has("thinker_config") {
        sections.push(root.section("thinker_config")?);
    }
    for outer in sections.clone() {
        if outer.has("text_config") {
            sections.push(outer.section("text_config")?);
        }
    }
    Ok(sections)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// What is said of `key` of this object by a reader.
    fn refused<T: std::fmt::Debug>(
        value: &Value,
        read: impl Fn(&Section<'_>) -> Result<T, ConfigError>,
    ) -> String {
        let config = json!({"key": value});
        let read = read(&Section::root(&config).unwrap());
        read.expect_err(&value.to_string()).to_string()
    }

    #[test]
    fn integers_end_where_they_are_bounded() {
        for (number, least) in [(1, 1), (0, 0), (MAX_COUNT, 1)] {
            let config = json!({"key": number});
            let read = Section::root(&config).unwrap().count("key", None, least);
            assert_eq!(read.map(u64::from), Ok(number));
        }
        for bad in [json!(0), json!(MAX_COUNT + 1), json!(-1), json!(1.0)] {
            let error = refused(&bad, |s| s.count("key", None, 1));
            let wanted = format!("key is {bad}, wanted an integer from 1 to 65536");
            assert_eq!(error, format!("config.json: {wanted}"));
        }
        let error = refused(&json!(MAX_SIZE + 1), |s| s.size("key", None));
        assert!(
            error.ends_with("an integer from 1 to 4294967295"),
            "{error}"
        );
    }

    #[test]
    fn lists_are_bounded_in_their_length_and_in_each_entry() {
        let long = |entry: Value| Value::from(vec![entry; 65_536]);
        let longer = |entry: Value| Value::from(vec![entry; 65_537]);
        let integers = |s: &Section<'_>| s.integers("key", &[], 1..=9);
        let texts = |s: &Section<'_>| s.texts("key");
        for bad in [longer(json!(1)), json!([1, 10]), json!([0]), json!(1)] {
            let error = refused(&bad, integers);
            let wanted = "wanted a list of at most 65536 integers from 1 to 9";
            assert!(error.ends_with(wanted), "{error}");
        }
        for bad in [longer(json!("a")), json!([1]), json!("a")] {
            let error = refused(&bad, texts);
            assert!(error.ends_with("a list of at most 65536 texts"), "{error}");
        }
        let (numbers, words) = (
            json!({"key": long(json!(9))}),
            json!({"key": long(json!("a"))}),
        );
        assert!(integers(&Section::root(&numbers).unwrap()).is_ok());
        assert!(texts(&Section::root(&words).unwrap()).is_ok());
    }

    #[test]
    fn numbers_and_products_stay_inside_their_bounds() {
        for bad in [json!(0.5), json!(2.5), json!(1e308), json!(0), json!("1")] {
            refused(&bad, |s| s.number("key", 1.0, 1.0..=2.0));
        }
        let error = refused(&json!(3), |s| s.product("key", u64::MAX, 2));
        let wanted = "key is 3, wanted a value whose product fits 64 bits";
        assert_eq!(error, format!("config.json: {wanted}"));
    }

    #[test]
    fn a_long_text_is_cut_in_a_message() {
        let error = refused(&json!("x".repeat(1000)), |s| s.flag("key", true));
        assert!(error.len() < 200 && error.contains('…'), "{error}");
    }
}
