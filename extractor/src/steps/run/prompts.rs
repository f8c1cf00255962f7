//! Prompts from a file of JSON lines.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;

use segpack_manifests::documents::{OneOrMany, PromptId};
use segpack_runtime_min::generate::SamplingOptions;
use segpack_runtime_min::processing::media::FetchMedia;
use segpack_runtime_min::processing::text::chat_template::TemplateValue;
use segpack_runtime_min::processing::{Chat, Prompt, TextFrontend};
use segpack_runtime_min::session::{BatchPrompt, GenerationSettings, SessionError};
use serde::Deserialize;

/// Why the prompts of a file cannot be continued; nothing was computed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PromptsError {
    /// A line is not what it has to be.
    #[error("{file}, line {line}: not a JSON object of a prompt")]
    Line {
        /// The file.
        file: String,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A line says nothing to start from, or several things.
    #[error(
        "{file}, line {line}: has {seen} of `prompt`, `messages` and `prompt_ids`; wanted one of them"
    )]
    NotOne {
        /// The file.
        file: String,
        /// The line, from 1.
        line: usize,
        /// How many it has.
        seen: usize,
    },
    /// A prompt has audio, images or videos.
    #[error(
        "{file}, line {line}: has audio, images or videos, which are run one prompt at a time alone"
    )]
    Media {
        /// The file.
        file: String,
        /// The line, from 1.
        line: usize,
    },
    /// The model does not take a prompt.
    #[error("{file}, line {line}: this prompt cannot be continued")]
    Prompt {
        /// The file.
        file: String,
        /// The line, from 1.
        line: usize,
        /// Why.
        source: Box<SessionError>,
    },
    /// There is nothing to do.
    #[error("{file}: has no prompts; wanted a JSON object in each line")]
    Empty {
        /// The file.
        file: String,
    },
}

/// How the lines of a file become prompts.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct PromptsOptions {
    /// The file, as messages name it.
    pub file: String,
    /// What it holds: a JSON object in each line.
    pub text: String,
    /// What paths in messages are relative to.
    pub folder: PathBuf,
    /// Who fetches media in messages; `None`: nothing is fetched.
    pub fetch: Option<Arc<dyn FetchMedia>>,
    /// Whether each `prompt` is a message of the user, to be rendered with the chat template.
    pub chat: bool,
    /// The system message before it.
    pub system: Option<String>,
    /// `enable_thinking` of the template. `None`: not defined.
    pub enable_thinking: Option<bool>,
}

impl PromptsOptions {
    /// Of a file of this name, which holds this; each prompt is continued as it is.
    pub fn new(file: impl Into<String>, text: impl Into<String>) -> Self {
        Self {
            file: file.into(),
            text: text.into(),
            folder: PathBuf::new(),
            fetch: None,
            chat: false,
            system: None,
            enable_thinking: None,
        }
    }
}

/// A line.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    id: Option<PromptId>,
    prompt: Option<String>,
    prompt_ids: Option<Vec<u32>>,
    messages: Option<TemplateValue>,
    tools: Option<TemplateValue>,
    max_tokens: Option<NonZeroUsize>,
    seed: Option<u64>,
    #[serde(default)]
    stop: OneOrMany,
}

/// A prompt, and where it came from.
pub(super) struct FilePrompt {
    pub(super) line: usize,
    pub(super) id: Option<PromptId>,
    pub(super) prompt: BatchPrompt,
}

/// The prompts of a file, tokenized. Lines without anything are left out.
///
/// # Errors
/// The first line that is no prompt, or none that the model takes.
pub(super) fn read(
    options: &PromptsOptions,
    text: &TextFrontend<'_>,
    settings: &GenerationSettings,
) -> Result<Vec<FilePrompt>, PromptsError> {
    // what is no prompt is found before long ones are tokenized
    let mut lines = Vec::new();
    for (number, line) in (1..).zip(options.text.lines()) {
        if !line.trim().is_empty() {
            lines.push((number, options.parse(number, line)?));
        }
    }
    if lines.is_empty() {
        let file = options.file.clone();
        return Err(PromptsError::Empty { file });
    }
    let tokenized = lines
        .into_iter()
        .map(|(number, line)| options.tokenized(number, line, text, settings));
    tokenized.collect()
}

impl PromptsOptions {
    fn parse(&self, number: usize, line: &str) -> Result<Line, PromptsError> {
        let parsed: Line = serde_json::from_str(line).map_err(|source| PromptsError::Line {
            file: self.file.clone(),
            line: number,
            source,
        })?;
        let starts = [
            parsed.prompt.is_some(),
            parsed.prompt_ids.is_some(),
            parsed.messages.is_some(),
        ];
        match starts.into_iter().filter(|is_there| *is_there).count() {
            1 => Ok(parsed),
            seen => Err(PromptsError::NotOne {
                file: self.file.clone(),
                line: number,
                seen,
            }),
        }
    }

    fn tokenized(
        &self,
        number: usize,
        line: Line,
        text: &TextFrontend<'_>,
        settings: &GenerationSettings,
    ) -> Result<FilePrompt, PromptsError> {
        let settings = line.settings(settings);
        let id = line.id.clone();
        let tokenized = text
            .tokenize(&self.prompt(line))
            .map_err(|e| self.refused(number, e.into()))?;
        if !tokenized.media.is_empty() {
            return Err(PromptsError::Media {
                file: self.file.clone(),
                line: number,
            });
        }
        let ids = tokenized.ids;
        Ok(FilePrompt {
            line: number,
            id,
            prompt: BatchPrompt { ids, settings },
        })
    }

    /// The prompt of a line cannot be continued.
    pub(super) fn refused(&self, line: usize, source: SessionError) -> PromptsError {
        let file = self.file.clone();
        PromptsError::Prompt {
            file,
            line,
            source: Box::new(source),
        }
    }

    fn prompt(&self, line: Line) -> Prompt {
        let enable_thinking = self.enable_thinking;
        if let Some(messages) = line.messages {
            let mut chat = Chat::of_messages(messages);
            (chat.tools, chat.folder) = (line.tools, self.folder.clone());
            chat.fetch.clone_from(&self.fetch);
            return Prompt::Chat {
                chat,
                enable_thinking,
            };
        }
        let prompt = match (line.prompt_ids, line.prompt) {
            (Some(ids), _) => return Prompt::Ids(ids),
            (None, prompt) => prompt.unwrap_or_default(), // checked before
        };
        match self.chat {
            false => Prompt::Text(prompt),
            true => Prompt::Chat {
                chat: Chat::turn(self.system.as_deref(), &prompt),
                enable_thinking,
            },
        }
    }
}

impl Line {
    /// The settings of all prompts, but for what this one says.
    fn settings(&self, of_all: &GenerationSettings) -> GenerationSettings {
        let mut settings = of_all.clone();
        if let Some(n) = self.max_tokens {
            settings.max_new_tokens = n.get();
        }
        if let Some(seed) = self.seed {
            // a seed alone asks for sampling, as it does on the command line
            let sampling = settings.sampling;
            let mut sampling = sampling.unwrap_or(SamplingOptions::new(1.0, seed));
            sampling.seed = seed;
            settings.sampling = Some(sampling);
        }
        settings.stop_strings.extend_from_slice(self.stop.all());
        settings
    }
}
