//! The checkpoint's chat template, rendered as `transformers` renders it.
//!
//! transformers uses Jinja's immutable sandbox with `trim_blocks`, `lstrip_blocks`, loop controls,
//! a `{% generation %}` tag, and its own `tojson`, `raise_exception` and `strftime_now`
//! (`utils/chat_template_utils.py`). Here minijinja runs the templates; what differs from Python is
//! replaced below, and the tests compare with transformers' output.

mod budget;
mod json;
mod limits;
mod python;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use minijinja::machinery::{self, CompiledTemplate, TemplateConfig};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, Error, ErrorKind, UndefinedBehavior, Value};
use serde::{Deserialize, Serialize};

use budget::Budget;

use crate::processing::text::files::{read_file, read_json};
use crate::processing::text::tokenizer::config::{TOKENIZER_CONFIG, TokenizerConfig};
use crate::processing::text::{BoxError, FileReader, TokenizerError};

const TEMPLATE_JSON: &str = "chat_template.json";
const TEMPLATE_JINJA: &str = "chat_template.jinja";
const DEFAULT: &str = "default";
const TOOL_USE: &str = "tool_use";

/// Why a chat could not be rendered.
#[derive(Debug, thiserror::Error)]
pub enum ChatTemplateError {
    /// A file could not be read, or is not what its name promises.
    #[error(transparent)]
    File(#[from] TokenizerError),
    /// The checkpoint has no chat template.
    #[error(
        "the checkpoint has no chat template: neither chat_template.json, nor chat_template.jinja, nor chat_template in \
         tokenizer_config.json; prompt it without a template"
    )]
    Missing,
    /// Several templates, none of them the default.
    #[error("{file}: none of the chat templates is named \"default\" (there are: {names})")]
    NoDefault {
        /// The file that holds them.
        file: String,
        /// Their names.
        names: String,
    },
    /// The template is not Jinja.
    #[error("{file}: the chat template is not valid: {problem}")]
    Syntax {
        /// The file that holds it.
        file: String,
        /// The problem and its line.
        problem: String,
    },
    /// The messages are not a list of objects with at least one entry.
    #[error("the messages of a chat are a list of objects, at least one; this is {seen}")]
    Messages {
        /// What was given.
        seen: String,
    },
    /// The template is larger than any that was meant well.
    #[error(
        "{file}: the chat template has {length} bytes; at most {} are taken",
        limits::LONGEST_SOURCE
    )]
    TooLong {
        /// The file that holds it.
        file: String,
        /// Bytes.
        length: usize,
    },
    /// The template does not come to an end.
    #[error(
        "{file}: the chat template is not done after {steps} steps: it loops for ever, or nearly; prompt the model \
         without it"
    )]
    Endless {
        /// The file that holds it.
        file: String,
        /// Instructions of the template engine.
        steps: u64,
    },
    /// The system did not give a thread with a stack deep enough for any template.
    #[error("cannot start a thread for the chat template")]
    Thread(#[source] io::Error),
    /// The template failed on these messages, or refused them.
    #[error("{file}: the chat template does not take these messages: {problem}")]
    Render {
        /// The file that holds it.
        file: String,
        /// The template's own words, or the problem and its line.
        problem: String,
    },
}

/// A value for the template. Unlike `serde_json::Value` it always keeps the order of keys, which
/// `tojson` shows.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TemplateValue(Value);

impl TemplateValue {
    /// Any serializable value.
    pub fn of<T: Serialize + ?Sized>(value: &T) -> Self {
        Self(Value::from(Serde(value)))
    }

    /// A JSON text.
    ///
    /// # Errors
    /// Where it is not JSON.
    pub fn from_json(text: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(text)
    }
}

/// What a template gets besides the messages.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct RenderOptions {
    /// Ends with the start of the assistant's turn.
    pub add_generation_prompt: bool,
    /// `enable_thinking`; not defined where `None`.
    pub enable_thinking: Option<bool>,
    /// Schemas of tools; `none` in the template where `None`, as in transformers.
    pub tools: Option<TemplateValue>,
    /// Anything else that the template knows, by name.
    pub variables: Vec<(String, TemplateValue)>,
    /// What `strftime_now` shows: these seconds since 1970 in UTC, or the present local time.
    pub unix_time: Option<i64>,
}

/// The chat template of a checkpoint.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    /// By name. Each rendering compiles its own, into instructions that count.
    sources: BTreeMap<String, String>,
    file: String,
    special_tokens: BTreeMap<String, String>,
}

/// One template, or several with names.
#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "chat_template is neither a text, nor a list of {name, template}, nor an object of texts"
)]
enum Sources {
    One(String),
    List(Vec<Named>),
    Object(BTreeMap<String, String>),
}

#[derive(Deserialize)]
struct Named {
    name: String,
    template: String,
}

#[derive(Deserialize)]
struct Document {
    chat_template: Option<Sources>,
}

impl ChatTemplate {
    /// Loads the template from where transformers' processors and tokenizers look, in their order:
    /// `chat_template.json`, `chat_template.jinja`, `tokenizer_config.json`. `files` reads one of
    /// the checkpoint's files by its name, with `None` where there is no such file.
    ///
    /// # Errors
    /// `Missing` where no file has one, `Syntax` and `NoDefault` where it cannot be used, `File`
    /// where a file is damaged.
    pub fn load<E: Into<BoxError>>(files: &FileReader<'_, E>) -> Result<Self, ChatTemplateError> {
        let (file, sources) = find(files)?.ok_or(ChatTemplateError::Missing)?;
        let config = TokenizerConfig::load(files)?;
        Self::new(file, sources.by_name(), config.named)
    }

    fn new(
        file: &str,
        sources: BTreeMap<String, String>,
        special_tokens: BTreeMap<String, String>,
    ) -> Result<Self, ChatTemplateError> {
        if !sources.contains_key(DEFAULT) {
            let names = sources.into_keys().collect::<Vec<_>>().join(", ");
            return Err(ChatTemplateError::NoDefault {
                file: file.to_owned(),
                names,
            });
        }
        if let Some(source) = sources
            .values()
            .find(|source| source.len() > limits::LONGEST_SOURCE)
        {
            return Err(ChatTemplateError::TooLong {
                file: file.to_owned(),
                length: source.len(),
            });
        }
        let compiled = limits::on_deep_stack(|| {
            let config = config()?;
            let mut plain = BTreeMap::new();
            for (name, source) in sources {
                let source = without_generation_tags(&with_plain_newlines(&source));
                CompiledTemplate::new(&name, &source, &config)?;
                plain.insert(name, source);
            }
            Ok((environment()?, plain))
        });
        let (environment, sources) =
            compiled
                .map_err(ChatTemplateError::Thread)?
                .map_err(|error| ChatTemplateError::Syntax {
                    file: file.to_owned(),
                    problem: in_full(&error),
                })?;
        Ok(Self {
            environment,
            sources,
            file: file.to_owned(),
            special_tokens,
        })
    }

    /// The file that holds the template.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// Renders a list of messages: objects with a `role` and a `content` (a text, or a list of
    /// parts such as `{"type": "text", "text": …}`). Tokenize the result with
    /// [`encode_bare`](crate::processing::text::tokenizer::Tokenizer::encode_bare).
    ///
    /// # Errors
    /// `Messages` where they are something else, `Render` with the template's own refusal or with
    /// its failure and line, `Endless` where it takes far more steps than a template does.
    pub fn render<M: Serialize + ?Sized>(
        &self,
        messages: &M,
        options: &RenderOptions,
    ) -> Result<String, ChatTemplateError> {
        let messages = checked_messages(Value::from(Serde(messages)))?;
        let steps = limits::steps(messages.len().unwrap_or(0));
        let mut environment = self.environment.clone();
        environment.set_fuel(Some(steps));
        Budget::new(&messages).install(&mut environment);
        // an error can hold values of the template: it is put into words where the stack is deep
        limits::on_deep_stack(|| {
            self.render_in(&environment, messages, options)
                .map_err(|error| self.failed(&error, steps))
        })
        .map_err(ChatTemplateError::Thread)?
    }

    fn render_in(
        &self,
        environment: &Environment<'_>,
        messages: Value,
        options: &RenderOptions,
    ) -> Result<String, Error> {
        let tools = options.tools.as_ref();
        let tool_use = tools.and_then(|_| self.sources.get(TOOL_USE));
        let source = tool_use.or_else(|| self.sources.get(DEFAULT));
        let source = source.map_or("", String::as_str);
        let compiled = CompiledTemplate::new(DEFAULT, source, &config()?)?;
        let compiled = budget::budgeted(compiled);
        let mut text = String::new();
        machinery::eval(
            environment,
            &compiled.instructions,
            self.context(messages, options),
            &compiled.blocks,
            &mut machinery::make_string_output(&mut text),
            AutoEscape::None,
        )?;
        Ok(text)
    }

    fn failed(&self, error: &Error, steps: u64) -> ChatTemplateError {
        let file = self.file.clone();
        match error.kind() {
            ErrorKind::OutOfFuel => ChatTemplateError::Endless { file, steps },
            _ => ChatTemplateError::Render {
                file,
                problem: in_full(error),
            },
        }
    }

    fn context(&self, messages: Value, options: &RenderOptions) -> Value {
        let mut context: BTreeMap<String, Value> = self
            .special_tokens
            .iter()
            .map(|(name, token)| (name.clone(), Value::from(token.as_str())))
            .collect();
        let mut set = |name: &str, value: Value| context.insert(name.to_owned(), value);
        set("messages", messages);
        set(
            "tools",
            options
                .tools
                .as_ref()
                .map_or(Value::from(()), |tools| tools.0.clone()),
        );
        set("documents", Value::from(()));
        set(
            "add_generation_prompt",
            Value::from(options.add_generation_prompt),
        );
        if let Some(thinking) = options.enable_thinking {
            set("enable_thinking", Value::from(thinking));
        }
        for (name, value) in &options.variables {
            set(name, value.0.clone());
        }
        let time = options.unix_time;
        set(
            "strftime_now",
            Value::from_function(move |format: &str| python::strftime(format, time)),
        );
        Value::from(context)
    }
}

impl Sources {
    fn by_name(self) -> BTreeMap<String, String> {
        match self {
            Self::One(template) => BTreeMap::from([(DEFAULT.to_owned(), template)]),
            Self::List(list) => list
                .into_iter()
                .map(|entry| (entry.name, entry.template))
                .collect(),
            Self::Object(object) => object,
        }
    }
}

/// The one template of `chat_template.json`, which processors read and tokenizers do not; `None`
/// where there is no such file, or it holds several.
///
/// # Errors
/// `Read` with what `files` returned, `Malformed` where the file holds no template.
pub fn processor_template<E: Into<BoxError>>(
    files: &FileReader<'_, E>,
) -> Result<Option<String>, ChatTemplateError> {
    match find(files)? {
        Some((TEMPLATE_JSON, Sources::One(template))) => Ok(Some(template)),
        _ => Ok(None),
    }
}

fn find<E: Into<BoxError>>(
    files: &FileReader<'_, E>,
) -> Result<Option<(&'static str, Sources)>, ChatTemplateError> {
    if let Some(document) = read_json::<Document, E>(files, TEMPLATE_JSON)? {
        let without = || TokenizerError::malformed(TEMPLATE_JSON, "holds no chat_template");
        return Ok(Some((
            TEMPLATE_JSON,
            document.chat_template.ok_or_else(without)?,
        )));
    }
    if let Some(bytes) = read_file(files, TEMPLATE_JINJA)? {
        let text = String::from_utf8(bytes)
            .map_err(|error| TokenizerError::malformed(TEMPLATE_JINJA, error.to_string()))?;
        return Ok(Some((TEMPLATE_JINJA, Sources::One(text))));
    }
    let document = read_json::<Document, E>(files, TOKENIZER_CONFIG)?;
    Ok(document
        .and_then(|document| document.chat_template)
        .map(|sources| (TOKENIZER_CONFIG, sources)))
}

/// How templates are read.
fn config() -> Result<TemplateConfig, Error> {
    let mut syntax = SyntaxConfig::builder();
    Ok(TemplateConfig {
        syntax_config: syntax.trim_blocks(true).lstrip_blocks(true).build()?,
        default_auto_escape: Arc::new(|_: &str| AutoEscape::None),
    })
}

fn environment() -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Lenient);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.remove_global("debug"); // no function of Jinja, and its text has no limit
    environment.add_function("raise_exception", raise_exception);
    environment.add_filter("tojson", json::tojson);
    environment.add_filter("trim", python::trim);
    environment.add_filter("length", python::length);
    environment.add_filter("count", python::length);
    limits::bound_filters(&mut environment);
    environment.add_test("sequence", python::is_sequence);
    environment.add_test("iterable", python::is_iterable);
    environment.add_test("number", python::is_number);
    Ok(environment)
}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

fn checked_messages(messages: Value) -> Result<Value, ChatTemplateError> {
    let wrong = |seen: String| Err(ChatTemplateError::Messages { seen });
    if messages.kind() != minijinja::value::ValueKind::Seq {
        return wrong(format!("a {}", messages.kind()));
    }
    let Ok(entries) = messages.try_iter() else {
        return wrong("not a list".to_owned());
    };
    let kinds: Vec<_> = entries.map(|entry| entry.kind()).collect();
    if kinds.is_empty() {
        return wrong("an empty list".to_owned());
    }
    match kinds
        .iter()
        .position(|kind| *kind != minijinja::value::ValueKind::Map)
    {
        Some(place) => wrong(format!("a list whose entry {place} is a {}", kinds[place])),
        None => Ok(messages),
    }
}

/// Jinja's `newline_sequence`, which applies to templates, not to messages.
fn with_plain_newlines(source: &str) -> String {
    source.replace("\r\n", "\n").replace('\r', "\n")
}

/// `{% generation %}` marks the assistant's words for training. Rendering only needs its scope.
fn without_generation_tags(source: &str) -> String {
    let mut text = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start + 2);
        text.push_str(before);
        let end = tag.find("%}").unwrap_or(tag.len());
        let (inside, after) = tag.split_at(end);
        let keyword = inside
            .trim_matches(|character: char| character.is_whitespace() || "-+".contains(character));
        match keyword {
            "generation" => text.push_str(&inside.replace(keyword, "with")),
            "endgeneration" => text.push_str(&inside.replace(keyword, "endwith")),
            _ => text.push_str(inside),
        }
        rest = after;
    }
    text + rest
}

/// The error with its cause and its line.
fn in_full(error: &Error) -> String {
    let detail = error
        .detail()
        .map_or_else(|| error.kind().to_string(), str::to_owned);
    let cause = std::error::Error::source(error)
        .map(|cause| format!(": {cause}"))
        .unwrap_or_default();
    let line = error
        .line()
        .map(|line| format!(" (line {line} of the template)"))
        .unwrap_or_default();
    format!("{detail}{cause}{line}")
}

#[cfg(test)]
mod tests;
