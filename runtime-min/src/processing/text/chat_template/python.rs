//! Python's strings, where minijinja or its `pycompat` differ.

use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};
use minijinja::value::{Kwargs, Tuple, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State, Value};

use super::limits::check_format;

/// A method of a string, list or dictionary.
pub(super) fn method(
    state: &mut State<'_, '_>,
    value: &Value,
    name: &str,
    args: &[Value],
) -> Result<Value, Error> {
    if let Some(text) = value.as_str()
        && let Some(result) = string_method(text, name, args).transpose()
    {
        return result;
    }
    if value.kind() == ValueKind::Map
        && args.is_empty()
        && matches!(name, "items" | "keys" | "values")
    {
        return entries(value, name);
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args)
}

/// As lists: a loop over minijinja's iterators does not know which round is its last.
fn entries(map: &Value, name: &str) -> Result<Value, Error> {
    let entries = map.try_iter()?.map(|key| entry(map, name, key));
    entries.collect::<Result<Vec<_>, _>>().map(Value::from)
}

/// What the method of this name lists for a key.
fn entry(map: &Value, name: &str, key: Value) -> Result<Value, Error> {
    Ok(match name {
        "keys" => key,
        "values" => map.get_item(&key)?,
        _ => Value::from(Tuple::from([key.clone(), map.get_item(&key)?])),
    })
}

fn string_method(text: &str, name: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    Ok(Some(match name {
        "strip" | "lstrip" | "rstrip" => {
            let (chars,): (Option<&str>,) = from_args(args)?;
            Value::from(strip(text, chars, name != "rstrip", name != "lstrip"))
        }
        "split" | "rsplit" => split_method(text, name == "rsplit", args)?,
        "splitlines" => {
            let (keep_ends, named): (Option<bool>, Kwargs) = from_args(args)?;
            let keep_ends = keep_ends.or(named.get("keepends")?).unwrap_or(false);
            named.assert_all_used()?;
            lines(text, keep_ends)
                .into_iter()
                .map(Value::from)
                .collect()
        }
        "partition" | "rpartition" => {
            let (separator,): (&str,) = from_args(args)?;
            partition(text, separator, name == "rpartition")?
        }
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            Value::from(text.strip_prefix(prefix).unwrap_or(text))
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            Value::from(text.strip_suffix(suffix).unwrap_or(text))
        }
        "index" | "rindex" => {
            let (part,): (&str,) = from_args(args)?;
            let found = if name == "index" {
                text.find(part)
            } else {
                text.rfind(part)
            };
            let offset = found.ok_or_else(|| value_error("substring not found"))?;
            Value::from(text[..offset].chars().count())
        }
        "format" => {
            check_format(text)?;
            return Ok(None);
        }
        "zfill" => {
            let (width,): (usize,) = from_args(args)?;
            Value::from(zfill(text, width))
        }
        _ => return Ok(None),
    }))
}

/// The `trim` filter, which is `str.strip`.
pub(super) fn trim(value: &Value, chars: Option<&str>) -> String {
    match value.as_str() {
        Some(text) => strip(text, chars, true, true).to_owned(),
        None => strip(&value.to_string(), chars, true, true).to_owned(),
    }
}

/// The `length` filter; an undefined value has none.
pub(super) fn length(value: &Value) -> Result<usize, Error> {
    if value.is_undefined() {
        Ok(0)
    } else {
        minijinja::filters::length(value)
    }
}

fn strip<'a>(text: &'a str, chars: Option<&str>, start: bool, end: bool) -> &'a str {
    let unwanted = |c: char| chars.map_or_else(|| is_space(c), |chars| chars.contains(c));
    let text = if start {
        text.trim_start_matches(unwanted)
    } else {
        text
    };
    if end {
        text.trim_end_matches(unwanted)
    } else {
        text
    }
}

/// `str.isspace` of one character: Unicode's white space and four separators of ASCII.
fn is_space(character: char) -> bool {
    character.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&character)
}

fn split_method(text: &str, from_end: bool, args: &[Value]) -> Result<Value, Error> {
    let (separator, max_splits, named): (Option<&str>, Option<i64>, Kwargs) = from_args(args)?;
    let separator: Option<String> = separator.map(str::to_owned).or(named.get("sep")?);
    let max_splits = max_splits.or(named.get("maxsplit")?).unwrap_or(-1);
    named.assert_all_used()?;
    let max_splits = usize::try_from(max_splits).unwrap_or(usize::MAX);
    let parts: Vec<&str> = match separator.as_deref() {
        Some("") => return Err(value_error("empty separator")),
        Some(separator) if from_end => text
            .rsplitn(max_splits.saturating_add(1), separator)
            .collect(),
        Some(separator) => text
            .splitn(max_splits.saturating_add(1), separator)
            .collect(),
        None => split_at_spaces(text, max_splits, from_end),
    };
    let in_order: Vec<Value> = match from_end {
        true => parts.into_iter().rev().map(Value::from).collect(),
        false => parts.into_iter().map(Value::from).collect(),
    };
    Ok(Value::from(in_order))
}

/// Runs of white space count as one; the last part keeps its own at the far end.
fn split_at_spaces(text: &str, max_splits: usize, from_end: bool) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = strip(text, None, !from_end, from_end);
    while !rest.is_empty() {
        let space = if from_end {
            rest.rfind(is_space)
        } else {
            rest.find(is_space)
        };
        let Some(space) = space.filter(|_| parts.len() < max_splits) else {
            break;
        };
        let after = space + rest[space..].chars().next().map_or(0, char::len_utf8);
        let (part, remaining) = if from_end {
            (&rest[after..], &rest[..space])
        } else {
            (&rest[..space], &rest[after..])
        };
        parts.push(part);
        rest = strip(remaining, None, !from_end, from_end);
    }
    if !rest.is_empty() {
        parts.push(rest);
    }
    parts
}

fn lines(text: &str, keep_ends: bool) -> Vec<&str> {
    let mut lines = Vec::new();
    let mut rest = text;
    while let Some(end) = rest.find(ends_line) {
        let after = if rest[end..].starts_with("\r\n") {
            end + 2
        } else {
            end + rest[end..].chars().next().map_or(0, char::len_utf8)
        };
        lines.push(&rest[..if keep_ends { after } else { end }]);
        rest = &rest[after..];
    }
    if !rest.is_empty() {
        lines.push(rest);
    }
    lines
}

fn ends_line(character: char) -> bool {
    matches!(character, '\n'..='\r' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}')
}

fn partition(text: &str, separator: &str, from_end: bool) -> Result<Value, Error> {
    if separator.is_empty() {
        return Err(value_error("empty separator"));
    }
    let found = if from_end {
        text.rsplit_once(separator)
    } else {
        text.split_once(separator)
    };
    let parts = match found {
        Some((before, after)) => [before, separator, after],
        None if from_end => ["", "", text],
        None => [text, "", ""],
    };
    Ok(Value::from(Tuple::from(parts.map(Value::from))))
}

fn zfill(text: &str, width: usize) -> String {
    let (sign, digits) = match text.strip_prefix(['+', '-']) {
        Some(digits) => text.split_at(text.len() - digits.len()),
        None => ("", text),
    };
    let missing = width.min(1 << 16).saturating_sub(text.chars().count());
    format!("{sign}{}{digits}", "0".repeat(missing))
}

fn value_error(problem: &str) -> Error {
    Error::new(ErrorKind::InvalidOperation, problem.to_owned())
}

/// Jinja asks for a length and items: texts and dictionaries have both.
pub(super) fn is_sequence(value: &Value) -> bool {
    matches!(
        value.kind(),
        ValueKind::Seq | ValueKind::String | ValueKind::Map | ValueKind::Undefined
    )
}

pub(super) fn is_iterable(value: &Value) -> bool {
    is_sequence(value) || matches!(value.kind(), ValueKind::Iterable)
}

/// A bool is a number in Python.
pub(super) fn is_number(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Number | ValueKind::Bool)
}

/// `repr` of a finite float: the shortest digits, with an exponent below 1e-4 and from 1e16 on.
pub(super) fn float(value: f64) -> String {
    let scientific = format!("{value:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if value == 0.0 || (-4..16).contains(&exponent) {
        return format!("{value:?}");
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.unsigned_abs())
}

/// `datetime.now().strftime(format)`.
pub(super) fn strftime(format: &str, unix_time: Option<i64>) -> Result<String, Error> {
    let failed = |error: jiff::Error| value_error(&format!("strftime_now({format:?}): {error}"));
    let now = match unix_time {
        Some(seconds) => Timestamp::from_second(seconds)
            .map_err(failed)?
            .to_zoned(TimeZone::UTC),
        None => Zoned::now(),
    };
    jiff::fmt::strtime::format(format, &now).map_err(failed)
}
