//! The memory that the values of a template may take, all that one rendering ever makes.
//!
//! minijinja bounds the steps of a template, not what a step makes: `{% set a = a ~ a %}` fills any
//! memory in forty of them. So a template is compiled here, and its instructions are exchanged:
//! what makes a value asks a [`Budget`] first, or tells it afterwards where the value cannot be
//! much larger than what it was made of. This takes the crate's unstable interface, which is why
//! its version is an exact one.

use std::borrow::Cow;
use std::fmt::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use minijinja::machinery::{CompiledTemplate, Instruction, Instructions};
use minijinja::value::{Kwargs, Rest, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, ErrorKind, Output, State, Value, context};

use super::limits::{LONGEST_TEXT, check_format, check_width};

/// Bytes of all values of a rendering, beside those that the messages allow.
const BYTES: u64 = 128 << 20;
/// What each byte of the messages adds: templates copy contents a few times.
const BYTES_PER_BYTE: u64 = 16;
/// Bytes of a text that a template makes; filters take it apart into values of its characters.
const LONGEST_VALUE: u64 = 8 << 20;
/// Bytes that a list, a dictionary or any other value that is no text takes as text.
const LONGEST_LIST_TEXT: usize = 1 << 20;
/// Entries of a list.
const MAX_ENTRIES: u64 = 1 << 20;
/// Bytes of an entry of a list or a dictionary, about.
const ENTRY: u64 = 32;
/// Values within values that are counted where one is put into another.
const MAX_NESTED: u64 = 1 << 18;

// Names that no template can define: identifiers have no spaces.
const CONCAT: &str = "segpack ~";
const ADD: &str = "segpack +";
const MULTIPLY: &str = "segpack *";
const INCLUDE: &str = "segpack include";
/// Filters' names lose their spaces.
const CHARGE: &str = "segpack::charge";
const STORE: &str = "segpack::store";

/// Not a local: looked up each time.
const NO_LOCAL: u8 = u8::MAX;

/// What is left of the bytes that a rendering may take.
#[derive(Debug, Clone)]
pub(super) struct Budget(Arc<Left>);

#[derive(Debug)]
struct Left {
    values: AtomicU64,
    all: u64,
    /// Of the text that comes out, captured or not.
    text: AtomicU64,
}

impl Budget {
    /// For these messages.
    pub(super) fn new(messages: &Value) -> Self {
        let bytes = nested_size(messages, u64::MAX).unwrap_or(0);
        let all = BYTES.saturating_add(bytes.saturating_mul(BYTES_PER_BYTE));
        Self(Arc::new(Left {
            values: AtomicU64::new(all),
            all,
            text: AtomicU64::new(LONGEST_TEXT as u64),
        }))
    }

    /// Takes so many bytes, for one value.
    fn charge(&self, bytes: u64) -> Result<(), Error> {
        check_length(bytes)?;
        let take = |left: u64| left.checked_sub(bytes);
        let taken = self
            .0
            .values
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
        taken.map(drop).map_err(|_| {
            let what = format!("its values take more than {} bytes", self.0.all);
            Error::new(ErrorKind::InvalidOperation, what)
        })
    }

    fn charge_text(&self, bytes: usize) -> Result<(), Error> {
        let take = |left: u64| left.checked_sub(bytes as u64);
        let taken = self
            .0
            .text
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
        taken.map(drop).map_err(|_| {
            let what = format!("the text is longer than {LONGEST_TEXT} bytes");
            Error::new(ErrorKind::InvalidOperation, what)
        })
    }

    /// Makes an environment ask this budget.
    pub(super) fn install(&self, environment: &mut Environment<'_>) {
        let budget = self.clone();
        environment.set_formatter(move |out: &mut Output<'_>, _: &mut State<'_, '_>, value| {
            budget.emit(out, value)
        });
        let budget = self.clone();
        environment.add_function(CONCAT, move |a: Value, b: Value| budget.concat(&[a, b]));
        let budget = self.clone();
        environment.add_function(ADD, move |state: &mut State<'_, '_>, a: Value, b: Value| {
            budget.add(state, a, b)
        });
        let budget = self.clone();
        environment.add_function(
            MULTIPLY,
            move |state: &mut State<'_, '_>, a: Value, b: Value| budget.multiply(state, a, b),
        );
        let budget = self.clone();
        environment.add_filter(STORE, |value: Value| {
            refuse_namespace(&value).map(|()| value)
        });
        environment.add_filter(CHARGE, move |value: Value| {
            check_holds_no_namespace(&value)?;
            check_nested(&value)?;
            budget.charge(size(&value)?).map(|()| value)
        });
        environment.add_function(INCLUDE, |name: Value| {
            let what = format!("could not render include: there is no template {name:?} beside it");
            Err::<Value, _>(Error::new(ErrorKind::TemplateNotFound, what))
        });
        let budget = self.clone();
        environment.add_filter("join", move |value: Value, joiner: Option<Value>| {
            budget.join(&value, joiner.as_ref())
        });
        let budget = self.clone();
        environment.add_filter("replace", move |text: Value, from: Value, to: Value| {
            budget.replace(&text_of(&text)?, &text_of(&from)?, &text_of(&to)?)
        });
        let (budget, format) = (
            self.clone(),
            Value::from_function(minijinja::filters::format),
        );
        environment.add_filter(
            "format",
            move |state: &mut State<'_, '_>, args: Rest<ValueOrKwargs>| {
                let args = args.into_values();
                budget.check_format(args.first().and_then(Value::as_str), &args)?;
                format.call(state, &args)
            },
        );
        let (budget, indent) = (
            self.clone(),
            Value::from_function(minijinja::filters::indent),
        );
        environment.add_filter(
            "indent",
            move |state: &mut State<'_, '_>, args: Rest<ValueOrKwargs>| {
                let args = args.into_values();
                budget.check_indent(&args)?;
                indent.call(state, &args)
            },
        );
        let budget = self.clone();
        environment.set_unknown_method_callback(
            move |state: &mut State<'_, '_>, value: &Value, name: &str, args: &[Value]| {
                budget.method(state, value, name, args)
            },
        );
    }

    /// Writes a value to the output.
    fn emit(&self, out: &mut Output<'_>, value: &Value) -> Result<(), Error> {
        if value.is_undefined() {
            return Ok(());
        }
        let text = text_of(value)?;
        self.charge_text(text.len())?;
        Ok(out.write_str(&text)?)
    }

    /// Their texts, one behind the other.
    fn concat(&self, values: &[Value]) -> Result<Value, Error> {
        let texts = values.iter().map(text_of);
        let texts: Vec<Cow<'_, str>> = texts.collect::<Result<_, _>>()?;
        self.charge(texts.iter().map(|t| t.len() as u64).sum())?;
        Ok(Value::from(texts.concat()))
    }

    fn add(&self, state: &State<'_, '_>, a: Value, b: Value) -> Result<Value, Error> {
        if a.kind() == ValueKind::String && b.kind() == ValueKind::String {
            return self.concat(&[a, b]);
        }
        let entries = a.len().unwrap_or(0).saturating_add(b.len().unwrap_or(0)) as u64;
        check_entries(entries)?;
        self.charge(ENTRY)?;
        let sum = calculated(state, "a + b", a, b)?;
        check_nested(&sum)?;
        Ok(sum)
    }

    fn multiply(&self, state: &State<'_, '_>, a: Value, b: Value) -> Result<Value, Error> {
        let (of, times) = match a.kind() {
            ValueKind::Number => (&b, &a),
            _ => (&a, &b),
        };
        let times = u64::try_from(times.clone()).unwrap_or(0);
        match (of.as_str(), of.kind()) {
            (Some(text), _) => self.charge(times.saturating_mul(text.len() as u64))?,
            (None, ValueKind::Number) => {}
            (None, _) => {
                let entries = times.saturating_mul(of.len().unwrap_or(0) as u64);
                check_entries(entries)?;
                self.charge(entries.saturating_mul(ENTRY))?;
            }
        }
        let product = calculated(state, "a * b", a, b)?;
        check_nested(&product)?;
        Ok(product)
    }

    /// The `join` filter and `str.join`.
    fn join(&self, values: &Value, joiner: Option<&Value>) -> Result<Value, Error> {
        let joiner = joiner.map(text_of).transpose()?.unwrap_or_default();
        let mut joined = String::new();
        if values.is_undefined() {
            return Ok(Value::from(joined));
        }
        for (i, value) in values.try_iter()?.enumerate() {
            let text = text_of(&value)?;
            if i > 0 {
                joined.push_str(&joiner);
            }
            joined.push_str(&text);
            check_length(joined.len() as u64)?;
        }
        self.charge(joined.len() as u64)?;
        Ok(Value::from(joined))
    }

    /// The `replace` filter and `str.replace`.
    fn replace(&self, text: &str, from: &str, to: &str) -> Result<Value, Error> {
        let found = text.matches(from).count() as u64;
        let length = found.saturating_mul(to.len() as u64);
        self.charge(length.saturating_add(text.len() as u64))?;
        Ok(Value::from(text.replace(from, to)))
    }

    /// Whether what a format makes of its arguments is not too large: each may stand in it as often
    /// as it has signs for them.
    fn check_format(&self, format: Option<&str>, args: &[Value]) -> Result<(), Error> {
        let format = format.unwrap_or_default();
        check_format(format)?;
        let signs = format.matches(['%', '{']).count() as u64;
        let mut longest = 0;
        for arg in args {
            longest = longest.max(text_of(arg)?.len() as u64);
        }
        check_length(signs.saturating_mul(longest))
    }

    /// Whether a text with indented lines is not too large.
    fn check_indent(&self, args: &[Value]) -> Result<(), Error> {
        let Some((text, others)) = args.split_first() else {
            return Ok(());
        };
        let lines = text_of(text)?.lines().count() as u64;
        let mut width = 4; // the filter's default
        for other in others {
            check_width(other)?;
            width = width.max(widest(other)?);
        }
        check_length(lines.saturating_mul(width))
    }

    fn method(
        &self,
        state: &mut State<'_, '_>,
        value: &Value,
        name: &str,
        args: &[Value],
    ) -> Result<Value, Error> {
        match (value.as_str(), name, args) {
            (Some(text), "replace", [from, to]) if from.as_str().is_some() => {
                self.replace(text, &text_of(from)?, &text_of(to)?)
            }
            (Some(_), "join", [values]) => self.join(values, Some(value)),
            (Some(text), "format", args) => {
                self.check_format(Some(text), args)?;
                super::python::method(state, value, name, args)
            }
            _ => super::python::method(state, value, name, args),
        }
    }
}

/// The largest number among an argument and those that have names.
fn widest(argument: &Value) -> Result<u64, Error> {
    let Ok(named) = Kwargs::try_from(argument.clone()) else {
        return Ok(u64::try_from(argument.clone()).unwrap_or(0));
    };
    let mut widest = 0;
    for name in named.args() {
        widest = widest.max(u64::try_from(named.peek::<Value>(name)?).unwrap_or(0));
    }
    Ok(widest)
}

/// The result of an operator that makes nothing large.
fn calculated(state: &State<'_, '_>, what: &str, a: Value, b: Value) -> Result<Value, Error> {
    let result = state
        .env()
        .compile_expression(what)?
        .eval(context! { a, b });
    // without the line, which is that of the expression
    result.map_err(|e| {
        Error::new(
            e.kind(),
            e.detail().unwrap_or("impossible operation").to_owned(),
        )
    })
}

/// Whether one value may be of so many bytes.
pub(super) fn check_length(bytes: u64) -> Result<(), Error> {
    if bytes <= LONGEST_VALUE {
        return Ok(());
    }
    let what = format!("a value of it has more than {LONGEST_VALUE} bytes");
    Err(Error::new(ErrorKind::InvalidOperation, what))
}

fn check_entries(entries: u64) -> Result<(), Error> {
    if entries <= MAX_ENTRIES {
        return Ok(());
    }
    let what = format!("lists end at {MAX_ENTRIES} entries");
    Err(Error::new(ErrorKind::InvalidOperation, what))
}

/// Bytes of a value, and of the texts in a list. What is in it further down was there before.
fn size(value: &Value) -> Result<u64, Error> {
    if let Some(text) = value.as_str() {
        return Ok(text.len() as u64);
    }
    if !matches!(value.kind(), ValueKind::Seq | ValueKind::Map) {
        return Ok(0);
    }
    let entries = value.len().unwrap_or(0) as u64;
    check_entries(entries)?;
    let mut bytes = entries * ENTRY;
    for entry in value.try_iter()? {
        bytes += entry.as_str().map_or(0, str::len) as u64;
    }
    Ok(bytes)
}

/// Whether a value is some value of another kind, in which others are.
fn is_container(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Seq | ValueKind::Map)
        || (value.kind() == ValueKind::Iterable && value.len().is_some())
}

/// A namespace is the only value that can be changed, and so the only one that could come to hold
/// itself: printing, comparing or hashing it would never end.
fn refuse_namespace(value: &Value) -> Result<(), Error> {
    let object = value.as_object();
    if !object.is_some_and(|o| o.type_name().ends_with("::Namespace")) {
        return Ok(());
    }
    let what = "a namespace is put into another value";
    Err(Error::new(ErrorKind::InvalidOperation, what))
}

fn check_holds_no_namespace(value: &Value) -> Result<(), Error> {
    if !is_container(value) {
        return Ok(());
    }
    for entry in value.try_iter()? {
        if value.kind() == ValueKind::Map {
            refuse_namespace(&value.get_item(&entry)?)?;
        }
        refuse_namespace(&entry)?;
    }
    Ok(())
}

/// What holds two others, which hold two others …, is as text far more than it is in memory. What
/// holds one is not.
fn check_nested(value: &Value) -> Result<(), Error> {
    if !is_container(value) {
        return Ok(());
    }
    let mut inner = 0;
    for entry in value.try_iter()? {
        let entry = match value.kind() {
            ValueKind::Map => value.get_item(&entry)?,
            _ => entry,
        };
        inner += usize::from(is_container(&entry));
        if inner > 1 {
            return nested_size(value, MAX_NESTED).map(drop);
        }
    }
    Ok(())
}

/// Bytes of a value and of everything in it, each as often as it is there: what it would be as
/// text.
fn nested_size(value: &Value, max: u64) -> Result<u64, Error> {
    let (mut bytes, mut seen) = (0, 0);
    let mut values = vec![value.clone()];
    while let Some(value) = values.pop() {
        seen += 1;
        if seen > max {
            let what = format!("values are in values more than {max} times");
            return Err(Error::new(ErrorKind::InvalidOperation, what));
        }
        bytes += ENTRY + value.as_str().map_or(0, str::len) as u64;
        match value.kind() {
            ValueKind::Map => {
                for key in value.try_iter()? {
                    values.push(value.get_item(&key)?);
                    values.push(key);
                }
            }
            _ if is_container(&value) => values.extend(value.try_iter()?),
            _ => {}
        }
    }
    Ok(bytes)
}

/// A value as text.
fn text_of(value: &Value) -> Result<Cow<'_, str>, Error> {
    if let Some(text) = value.as_str() {
        return Ok(Cow::Borrowed(text));
    }
    let mut text = Bounded(String::new());
    write!(text, "{value}").map_err(|_| {
        let what = format!("a list or dictionary has more than {LONGEST_LIST_TEXT} bytes as text");
        Error::new(ErrorKind::InvalidOperation, what)
    })?;
    Ok(Cow::Owned(text.0))
}

struct Bounded(String);

impl Write for Bounded {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.0.len() + text.len() > LONGEST_LIST_TEXT {
            return Err(fmt::Error);
        }
        self.0.push_str(text);
        Ok(())
    }
}

/// Exchanges what makes values for what asks a budget.
pub(super) fn budgeted(compiled: CompiledTemplate<'_>) -> CompiledTemplate<'_> {
    let blocks = compiled.blocks.into_iter();
    CompiledTemplate {
        instructions: exchanged(&compiled.instructions),
        blocks: blocks
            .map(|(name, block)| (name, exchanged(&block)))
            .collect(),
        ..compiled
    }
}

fn exchanged<'s>(before: &Instructions<'s>) -> Instructions<'s> {
    let all = || (0..).map_while(|at| before.get(at).map(|instruction| (at, instruction)));
    // where each instruction comes to lie; the last place is behind all of them
    let mut places = vec![0_u32];
    for (at, instruction) in all() {
        let new = u32::try_from(replacement(instruction).len()).unwrap_or(u32::MAX);
        places.push(places[at as usize].saturating_add(new));
    }
    let mut after = Instructions::new(before.name(), before.source());
    for (at, instruction) in all() {
        for mut new in replacement(instruction) {
            if let Some(target) = target(&mut new) {
                *target = places.get(*target as usize).copied().unwrap_or(*target);
            }
            match (before.get_span(at), before.get_line(at)) {
                (Some(span), _) => after.add_with_span(new, span),
                (None, Some(line)) => {
                    after.add_with_line(new, u16::try_from(line).unwrap_or(u16::MAX))
                }
                (None, None) => after.add(new),
            };
        }
    }
    after
}

/// What stands in the place of an instruction.
fn replacement<'s>(instruction: &Instruction<'s>) -> Vec<Instruction<'s>> {
    let charge = Instruction::ApplyFilter(CHARGE, Some(1), NO_LOCAL);
    match instruction {
        Instruction::StringConcat => vec![Instruction::CallFunction(CONCAT, Some(2))],
        Instruction::Add => vec![Instruction::CallFunction(ADD, Some(2))],
        Instruction::Mul => vec![Instruction::CallFunction(MULTIPLY, Some(2))],
        // so that the formatter sees it
        Instruction::EmitRaw(text) => {
            vec![
                Instruction::LoadConst(Value::from(*text)),
                Instruction::Emit,
            ]
        }
        // nothing is beside it, and what is not counted would be
        Instruction::Include(_) => vec![Instruction::CallFunction(INCLUDE, Some(1))],
        // what is stored lies below the namespace on the stack
        Instruction::SetAttr(_) => vec![
            Instruction::Swap,
            Instruction::ApplyFilter(STORE, Some(1), NO_LOCAL),
            Instruction::Swap,
            instruction.clone(),
        ],
        Instruction::BuildList(_)
        | Instruction::BuildTuple(_)
        | Instruction::BuildMap(_)
        | Instruction::ApplyFilter(..)
        | Instruction::CallFunction(..)
        | Instruction::CallMethod(..)
        | Instruction::CallObject(..)
        | Instruction::Slice => vec![instruction.clone(), charge],
        _ => vec![instruction.clone()],
    }
}

/// Where an instruction may jump.
fn target<'i>(instruction: &'i mut Instruction<'_>) -> Option<&'i mut u32> {
    match instruction {
        Instruction::Iterate(target)
        | Instruction::Jump(target)
        | Instruction::JumpIfFalse(target)
        | Instruction::JumpIfFalseOrPop(target)
        | Instruction::JumpIfTrueOrPop(target)
        | Instruction::BuildMacro(_, target, _) => Some(target),
        _ => None,
    }
}
