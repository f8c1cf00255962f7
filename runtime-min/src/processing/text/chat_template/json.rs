//! Python's `json.dumps`, with the defaults that transformers gives its `tojson` filter.

use std::fmt::Write;

use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{Error, ErrorKind, Value};

use super::budget::check_length;
use super::limits::DEEPEST;
use super::python;

/// The parameters of transformers' `tojson`, in order.
const PARAMETERS: [&str; 4] = ["ensure_ascii", "indent", "separators", "sort_keys"];

struct Style {
    ensure_ascii: bool,
    /// One level of indentation; one line where `None`.
    indent: Option<String>,
    item_separator: String,
    key_separator: String,
    sort_keys: bool,
}

/// `tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False)`: no HTML escapes.
#[expect(
    clippy::needless_pass_by_value,
    reason = "minijinja's filters take them so"
)]
pub(super) fn tojson(
    value: &Value,
    positional: Rest<Value>,
    named: Kwargs,
) -> Result<String, Error> {
    let style = Style::from_arguments(&positional, &named)?;
    let mut text = String::new();
    style.write(&mut text, value, 0)?;
    Ok(text)
}

/// An argument by its number, or by its name; undefined where it is not given.
fn argument(positional: &[Value], named: &Kwargs, number: usize) -> Result<Value, Error> {
    let given = positional.get(number).cloned();
    let named: Option<Value> = named.get(PARAMETERS[number])?;
    Ok(given.or(named).unwrap_or_default())
}

impl Style {
    fn from_arguments(positional: &[Value], named: &Kwargs) -> Result<Self, Error> {
        if positional.len() > PARAMETERS.len() {
            return Err(Error::new(
                ErrorKind::TooManyArguments,
                "tojson takes four arguments",
            ));
        }
        let argument = |number| argument(positional, named, number);
        let indent = indent_of(&argument(1)?)?;
        let (item_separator, key_separator) = separators_of(&argument(2)?, indent.is_some())?;
        let style = Self {
            ensure_ascii: argument(0)?.is_true(),
            indent,
            item_separator,
            key_separator,
            sort_keys: argument(3)?.is_true(),
        };
        named.assert_all_used()?;
        Ok(style)
    }

    fn write(&self, text: &mut String, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > DEEPEST {
            let problem = format!("tojson: lists and maps are nested more than {DEEPEST} deep");
            return Err(Error::new(ErrorKind::BadSerialization, problem));
        }
        check_length(text.len() as u64)?;
        match value.kind() {
            ValueKind::None => text.push_str("null"),
            ValueKind::Bool => text.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => text.push_str(&number(value)?),
            ValueKind::String => self.write_string(text, value.as_str().unwrap_or_default()),
            ValueKind::Map => self.write_map(text, value, depth)?,
            ValueKind::Seq | ValueKind::Iterable => {
                let items = value.try_iter()?.checked().collect::<Result<Vec<_>, _>>()?;
                self.write_all(text, ['[', ']'], &items, depth, |text, item| {
                    self.write(text, item, depth + 1)
                })?;
            }
            other => {
                let problem = format!("tojson: a value of type {other} is not JSON serializable");
                return Err(Error::new(ErrorKind::BadSerialization, problem));
            }
        }
        Ok(())
    }

    fn write_map(&self, text: &mut String, map: &Value, depth: usize) -> Result<(), Error> {
        let keys = map.try_iter()?.checked().collect::<Result<Vec<_>, _>>()?;
        let mut entries = Vec::with_capacity(keys.len());
        for key in keys {
            entries.push((key_text(&key)?, map.get_item(&key)?));
        }
        if self.sort_keys {
            entries.sort_by(|left, right| left.0.cmp(&right.0));
        }
        self.write_all(text, ['{', '}'], &entries, depth, |text, (key, item)| {
            self.write_string(text, key);
            text.push_str(&self.key_separator);
            self.write(text, item, depth + 1)
        })
    }

    fn write_all<T>(
        &self,
        text: &mut String,
        brackets: [char; 2],
        items: &[T],
        depth: usize,
        write: impl Fn(&mut String, &T) -> Result<(), Error>,
    ) -> Result<(), Error> {
        text.push(brackets[0]);
        for (place, item) in items.iter().enumerate() {
            if place > 0 {
                text.push_str(&self.item_separator);
            }
            self.new_line(text, depth + 1);
            write(text, item)?;
        }
        if !items.is_empty() {
            self.new_line(text, depth);
        }
        text.push(brackets[1]);
        Ok(())
    }

    fn new_line(&self, text: &mut String, depth: usize) {
        if let Some(indent) = &self.indent {
            text.push('\n');
            text.push_str(&indent.repeat(depth));
        }
    }

    fn write_string(&self, text: &mut String, string: &str) {
        text.push('"');
        for character in string.chars() {
            match character {
                '"' => text.push_str("\\\""),
                '\\' => text.push_str("\\\\"),
                '\n' => text.push_str("\\n"),
                '\r' => text.push_str("\\r"),
                '\t' => text.push_str("\\t"),
                '\u{8}' => text.push_str("\\b"),
                '\u{c}' => text.push_str("\\f"),
                control if control < ' ' => push_escape(text, control),
                // Python's printable ASCII ends before DEL.
                other if self.ensure_ascii && other > '~' => push_escape(text, other),
                other => text.push(other),
            }
        }
        text.push('"');
    }
}

/// As UTF-16, which is what JSON's escapes are.
fn push_escape(text: &mut String, character: char) {
    for unit in character.encode_utf16(&mut [0; 2]) {
        // Writing to a String cannot fail.
        let _ = write!(text, "\\u{unit:04x}");
    }
}

fn indent_of(value: &Value) -> Result<Option<String>, Error> {
    if value.is_undefined() || value.is_none() {
        return Ok(None);
    }
    if let Some(text) = value.as_str() {
        return Ok(Some(text.to_owned()));
    }
    let width = i64::try_from(value.clone())?;
    Ok(Some(
        " ".repeat(usize::try_from(width).unwrap_or(0).min(64)),
    ))
}

fn separators_of(value: &Value, indented: bool) -> Result<(String, String), Error> {
    if value.is_undefined() || value.is_none() {
        let item = if indented { "," } else { ", " };
        return Ok((item.to_owned(), ": ".to_owned()));
    }
    let parts = value.try_iter()?.checked().collect::<Result<Vec<_>, _>>()?;
    match parts.as_slice() {
        [item, key] => Ok((item.to_string(), key.to_string())),
        _ => Err(Error::new(
            ErrorKind::InvalidOperation,
            "tojson: separators is a pair of texts",
        )),
    }
}

fn key_text(key: &Value) -> Result<String, Error> {
    match key.kind() {
        ValueKind::String => Ok(key.as_str().unwrap_or_default().to_owned()),
        ValueKind::None => Ok("null".to_owned()),
        ValueKind::Bool => Ok(if key.is_true() { "true" } else { "false" }.to_owned()),
        ValueKind::Number => number(key),
        other => Err(Error::new(
            ErrorKind::BadSerialization,
            format!("tojson: a key of type {other}"),
        )),
    }
}

fn number(value: &Value) -> Result<String, Error> {
    if value.is_integer() {
        return Ok(value.to_string());
    }
    let float = f64::try_from(value.clone())?;
    Ok(match float {
        _ if float.is_nan() => "NaN".to_owned(),
        _ if float.is_infinite() => if float > 0.0 { "Infinity" } else { "-Infinity" }.to_owned(),
        _ => python::float(float),
    })
}
