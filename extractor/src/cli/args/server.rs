use std::env;
use std::path::PathBuf;
use std::time::Duration;

use segpack_formats::io::read_limited;
use serde_json::{Map, Value};

use super::SERVER;
use super::values::{count, json_object, seconds, served_dtype, server_url, token_id};
use crate::cli::error::CliError;
use crate::steps::validate::{BearerKey, ServerKind, ServerPrompt, ServerSettings};

/// Bytes that are read of a file that holds a key.
const MAX_KEY_BYTES: u64 = 16 << 10;

/// A kind of server, as the command line names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum KindName {
    /// llama.cpp's own server (`/completion`), which reports token ids
    #[value(name = "llama.cpp")]
    LlamaCpp,
    /// vLLM, which reports token ids
    Vllm,
    /// any other server with OpenAI's interface, which reports text
    Openai,
}

/// Token ids of one prompt.
#[derive(Debug, Clone)]
struct Ids(Vec<u32>);

fn ids(text: &str) -> Result<Ids, String> {
    text.split(',')
        .map(token_id)
        .collect::<Result<_, _>>()
        .map(Ids)
}

/// A server to compare with, and what to ask it.
#[derive(Debug, clap::Args)]
pub(crate) struct ServerArgs {
    /// Server to compare with: it is asked to continue prompts, and its answers are judged at once
    #[arg(
        long,
        value_name = "URL",
        value_parser = server_url,
        group = "with",
        requires_all = ["server_kind", "served_dtype"],
        help_heading = SERVER
    )]
    server: Option<String>,
    /// What kind of server it is
    #[arg(long, value_name = "KIND", requires = "server", help_heading = SERVER)]
    server_kind: Option<KindName>,
    /// What the server computes in: float32 (weights, keys and values) has a tolerance of its own;
    /// any other, such as bfloat16 or q8_0, is judged with --tolerance
    #[arg(
        long,
        value_name = "TYPE",
        value_parser = served_dtype,
        requires = "server",
        help_heading = SERVER
    )]
    served_dtype: Option<String>,
    /// Name of the model there [default: the only one that is served]
    #[arg(long, value_name = "NAME", requires = "server", help_heading = SERVER)]
    server_model: Option<String>,
    /// Environment variable with the API key, which is sent to this server alone and never printed
    #[arg(
        long,
        value_name = "NAME",
        requires = "server",
        conflicts_with = "api_key_file",
        help_heading = SERVER
    )]
    api_key_env: Option<String>,
    /// File with the API key
    #[arg(long, value_name = "FILE", requires = "server", help_heading = SERVER)]
    api_key_file: Option<PathBuf>,
    /// Text to continue; may be repeated [default: three fixed sequences of token ids]
    #[arg(long, value_name = "TEXT", requires = "server", help_heading = SERVER)]
    prompt: Vec<String>,
    /// Token ids to continue, separated by commas; may be repeated
    #[arg(
        long,
        value_name = "IDS",
        value_parser = ids,
        requires = "server",
        help_heading = SERVER
    )]
    prompt_ids: Vec<Ids>,
    /// Treat the prompts as user messages: rendered with the checkpoint's chat template, or sent to
    /// the chat interface of --server-kind openai
    #[arg(long, requires = "prompt", help_heading = SERVER)]
    chat: bool,
    /// System message of --chat
    #[arg(long, value_name = "TEXT", requires = "chat", help_heading = SERVER)]
    system: Option<String>,
    /// Maximum number of tokens to generate after each prompt
    #[arg(
        long,
        value_name = "N",
        value_parser = count,
        default_value = "32",
        requires = "server",
        help_heading = SERVER
    )]
    max_new_tokens: usize,
    /// Number of the most likely tokens of each step to compare
    #[arg(
        long,
        value_name = "N",
        value_parser = count,
        default_value = "5",
        requires = "server",
        help_heading = SERVER
    )]
    top_logprobs: usize,
    /// Members to add to every request, such as {"repeat_penalty": 1.0}
    #[arg(
        long,
        value_name = "JSON",
        value_parser = json_object,
        requires = "server",
        help_heading = SERVER
    )]
    request_fields: Option<Map<String, Value>>,
    /// How long an answer may take
    #[arg(
        long,
        value_name = "SECONDS",
        value_parser = seconds,
        default_value = "600",
        requires = "server",
        help_heading = SERVER
    )]
    server_timeout: Duration,
}

impl ServerArgs {
    /// The server to ask, where one is given.
    ///
    /// # Errors
    /// Where the key cannot be read.
    pub(crate) fn settings(&self) -> Result<Option<ServerSettings>, CliError> {
        // with the address the parser wants the two others
        let (Some(url), Some(kind), Some(dtype)) =
            (&self.server, self.server_kind, &self.served_dtype)
        else {
            return Ok(None);
        };
        let kind = match kind {
            KindName::LlamaCpp => ServerKind::LlamaCpp,
            KindName::Vllm => ServerKind::Vllm,
            KindName::Openai => ServerKind::OpenAi,
        };
        let mut settings = ServerSettings::new(url.clone(), kind, dtype.clone());
        settings.model.clone_from(&self.server_model);
        settings.prompts = self.prompts();
        settings.max_new_tokens = self.max_new_tokens;
        settings.top = self.top_logprobs;
        settings.more = self.request_fields.clone().unwrap_or_default();
        settings.patience = self.server_timeout;
        settings.key = self.key()?;
        Ok(Some(settings))
    }

    fn prompts(&self) -> Vec<ServerPrompt> {
        let written = self.prompt.iter().map(|text| match self.chat {
            true => ServerPrompt::Chat {
                system: self.system.clone(),
                user: text.clone(),
            },
            false => ServerPrompt::Text(text.clone()),
        });
        let numbered = self
            .prompt_ids
            .iter()
            .map(|ids| ServerPrompt::Ids(ids.0.clone()));
        written.chain(numbered).collect()
    }

    fn key(&self) -> Result<Option<BearerKey>, CliError> {
        let (place, text) = match (&self.api_key_env, &self.api_key_file) {
            (Some(variable), _) => match env::var(variable) {
                Ok(text) if !text.is_empty() => (variable.clone(), text),
                _ => return Err(CliError::NoKey(variable.clone())),
            },
            (None, Some(file)) => {
                let bytes = read_limited(file, MAX_KEY_BYTES)?;
                let text = String::from_utf8(bytes).unwrap_or_default();
                (file.display().to_string(), text)
            }
            (None, None) => return Ok(None),
        };
        let key = text.trim();
        if key.is_empty() || !key.chars().all(|c| c.is_ascii_graphic()) {
            return Err(CliError::NotAKey(place));
        }
        Ok(Some(BearerKey(key.to_owned())))
    }
}
