//! From a prompt to token ids, and back to text.

use segpack_manifests::Pack;
use segpack_manifests::folder::source_file;

use super::PromptError;
#[cfg(feature = "text")]
use super::text::chat_template::{ChatTemplate, RenderOptions, TemplateValue};
#[cfg(feature = "text")]
use super::text::tokenizer::{SpecialTokens, StreamDecoder, Tokenizer};
use super::text::{EosIds, TokenizerError};

/// What to start from.
#[derive(Debug, Clone)]
pub enum Prompt {
    /// Token ids.
    Ids(Vec<u32>),
    /// A text, tokenized as it is.
    #[cfg(feature = "text")]
    Text(String),
    /// A chat, through the checkpoint's own template.
    #[cfg(feature = "text")]
    Chat {
        /// Messages and tools.
        chat: Chat,
        /// `enable_thinking` of the template. `None`: not defined.
        enable_thinking: Option<bool>,
    },
}

#[cfg(feature = "text")]
impl From<&str> for Prompt {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

#[cfg(feature = "text")]
impl From<Chat> for Prompt {
    fn from(chat: Chat) -> Self {
        Self::Chat {
            chat,
            enable_thinking: None,
        }
    }
}

impl From<Vec<u32>> for Prompt {
    fn from(ids: Vec<u32>) -> Self {
        Self::Ids(ids)
    }
}

/// Messages and tools, as transformers' `apply_chat_template` takes them.
#[cfg(feature = "text")]
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Chat {
    /// A list of objects with a `role` and a `content`.
    pub messages: TemplateValue,
    /// A list of JSON schemas of functions.
    #[serde(default)]
    pub tools: Option<TemplateValue>,
}

#[cfg(feature = "text")]
impl Chat {
    /// One message of the user, after one of the system if there is any.
    pub fn turn(system: Option<&str>, user: &str) -> Self {
        let system = system.map(|content| message("system", content));
        let messages: Vec<_> = system.into_iter().chain([message("user", user)]).collect();
        Self {
            messages: TemplateValue::of(&messages),
            tools: None,
        }
    }

    /// A JSON list of messages, or an object with `messages` and, where there are any, `tools`.
    ///
    /// # Errors
    /// Where it is neither.
    pub fn from_json(text: &str) -> Result<Self, serde_json::Error> {
        if text.trim_start().starts_with('{') {
            return serde_json::from_str(text);
        }
        Ok(Self {
            messages: TemplateValue::from_json(text)?,
            tools: None,
        })
    }
}

#[cfg(feature = "text")]
impl Chat {
    /// Templates leave a mark for an image, a sound or a video, or nothing: either way the model
    /// would not see it.
    fn check_media(&self) -> Result<(), PromptError> {
        // what is no JSON is refused by the template
        let messages = serde_json::to_value(&self.messages).unwrap_or_default();
        let messages = messages.as_array().map(Vec::as_slice).unwrap_or_default();
        for (message, content) in messages.iter().enumerate() {
            let parts = content.get("content").and_then(serde_json::Value::as_array);
            let parts = parts.map(Vec::as_slice).unwrap_or_default();
            for (part, value) in parts.iter().enumerate() {
                if let Some(kind) = media_kind(value) {
                    return Err(PromptError::Media {
                        message,
                        part,
                        kind,
                    });
                }
            }
        }
        Ok(())
    }
}

/// What a part of a message's content is, if it is not text.
#[cfg(feature = "text")]
fn media_kind(part: &serde_json::Value) -> Option<String> {
    let object = part.as_object()?;
    match object.get("type").and_then(serde_json::Value::as_str) {
        Some("text") => {}
        Some(other) => return Some(format!("of type {other:?}")),
        None => {}
    }
    let is_media = |key: &&String| {
        let kinds = ["image", "audio", "video", "input_audio", "file"];
        kinds
            .iter()
            .any(|kind| *key == kind || key.as_str() == format!("{kind}_url"))
    };
    if let Some(key) = object.keys().find(is_media) {
        return Some(format!("an object with {key:?}"));
    }
    (!object.contains_key("text")).then(|| "an object without \"text\"".to_owned())
}

#[cfg(feature = "text")]
fn message(role: &str, content: &str) -> std::collections::BTreeMap<String, String> {
    [("role", role), ("content", content)]
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .into()
}

/// A prompt as the model gets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenizedPrompt {
    /// Its text, a chat rendered. `None`: ids without a tokenizer.
    pub text: Option<String>,
    /// Its token ids.
    pub ids: Vec<u32>,
}

/// A continuation whose first token is ranked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Continuation {
    /// The text.
    pub text: String,
    /// Its first token.
    pub first: u32,
    /// Its number of tokens.
    pub tokens: usize,
}

/// What stands between text and token ids: the tokenizer, the chat template and the end-of-text ids
/// of a checkpoint, from the files that its pack keeps.
#[derive(Debug)]
pub struct TextFrontend<'p> {
    #[cfg_attr(
        not(feature = "text"),
        expect(dead_code, reason = "no template to read")
    )]
    pack: &'p Pack,
    #[cfg(feature = "text")]
    tokenizer: Vocabulary,
    stop_ids: EosIds,
}

#[cfg(feature = "text")]
#[derive(Debug)]
enum Vocabulary {
    Loaded(Box<Tokenizer>),
    /// The checkpoint has none: the file that was looked for last.
    Missing(String),
}

impl<'p> TextFrontend<'p> {
    /// Loads the tokenizer, if the pack has one. Without any, prompts are token ids, and the
    /// end-of-text ids are those of `generation_config.json`.
    ///
    /// # Errors
    /// `Tokenizer` where a file is damaged, or the tokenizer is of a kind that is not supported.
    #[cfg(feature = "text")]
    pub fn load(pack: &'p Pack) -> Result<Self, PromptError> {
        let files = |name: &str| source_file(pack, name);
        let (tokenizer, stop_ids) = match Tokenizer::load(&files) {
            Ok(tokenizer) => {
                let stop_ids = tokenizer.eos_ids().clone();
                (Vocabulary::Loaded(Box::new(tokenizer)), stop_ids)
            }
            Err(TokenizerError::Missing { missing }) => (
                Vocabulary::Missing(missing),
                EosIds::without_tokenizer(&files)?,
            ),
            Err(e) => return Err(e.into()),
        };
        Ok(Self {
            pack,
            tokenizer,
            stop_ids,
        })
    }

    /// Loads the end-of-text ids of `generation_config.json`.
    ///
    /// # Errors
    /// `Tokenizer` where the file is damaged.
    #[cfg(not(feature = "text"))]
    pub fn load(pack: &'p Pack) -> Result<Self, PromptError> {
        let files = |name: &str| source_file(pack, name);
        Ok(Self {
            pack,
            stop_ids: EosIds::without_tokenizer(&files)?,
        })
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// `Missing` where the checkpoint has none.
    #[cfg(feature = "text")]
    pub fn tokenizer(&self) -> Result<&Tokenizer, TokenizerError> {
        match &self.tokenizer {
            Vocabulary::Loaded(tokenizer) => Ok(tokenizer),
            Vocabulary::Missing(missing) => Err(TokenizerError::Missing {
                missing: missing.clone(),
            }),
        }
    }

    /// The ids that end a text.
    pub fn stop_ids(&self) -> &EosIds {
        &self.stop_ids
    }

    /// The prompt's ids, and its text where it has one.
    ///
    /// # Errors
    /// `Tokenizer` where there is none, or it does not take the text; `ChatTemplate` where there is
    /// none, or it does not take the chat.
    pub fn tokenize(&self, prompt: &Prompt) -> Result<TokenizedPrompt, PromptError> {
        match prompt {
            Prompt::Ids(ids) => Ok(TokenizedPrompt {
                text: self.full_text(ids),
                ids: ids.clone(),
            }),
            #[cfg(feature = "text")]
            Prompt::Text(text) => {
                let ids = self.tokenizer()?.encode(text)?;
                Ok(TokenizedPrompt {
                    text: Some(text.clone()),
                    ids,
                })
            }
            #[cfg(feature = "text")]
            Prompt::Chat {
                chat,
                enable_thinking,
            } => {
                let text = self.render(chat, *enable_thinking)?;
                let ids = self.tokenizer()?.encode_bare(&text)?;
                Ok(TokenizedPrompt {
                    text: Some(text),
                    ids,
                })
            }
        }
    }

    #[cfg(feature = "text")]
    fn render(&self, chat: &Chat, enable_thinking: Option<bool>) -> Result<String, PromptError> {
        chat.check_media()?;
        let template = ChatTemplate::load(&|name: &str| source_file(self.pack, name))?;
        let options = RenderOptions {
            add_generation_prompt: true,
            enable_thinking,
            tools: chat.tools.clone(),
            ..RenderOptions::default()
        };
        Ok(template.render(&chat.messages, &options)?)
    }

    /// A continuation, to be ranked by its first token.
    ///
    /// # Errors
    /// `EmptyContinuation`; `Tokenizer` where there is none, or it does not take the text.
    #[cfg(feature = "text")]
    pub fn continuation(&self, text: &str) -> Result<Continuation, PromptError> {
        let ids = self.tokenizer()?.encode_bare(text)?;
        let first = *ids.first().ok_or(PromptError::EmptyContinuation)?;
        Ok(Continuation {
            text: text.to_owned(),
            first,
            tokens: ids.len(),
        })
    }

    /// Whether a model with this many rows of its embedding can take all ids of the tokenizer.
    pub(crate) fn check(&self, rows: u64) -> Result<(), TokenizerError> {
        #[cfg(feature = "text")]
        if let Vocabulary::Loaded(tokenizer) = &self.tokenizer {
            return tokenizer.check_against_embedding(rows);
        }
        let _ = rows;
        Ok(())
    }

    /// The text of these ids, special tokens left out; empty without a tokenizer.
    #[cfg(feature = "text")]
    pub fn decode(&self, ids: &[u32]) -> String {
        let tokenizer = self.tokenizer().ok();
        tokenizer.map_or_else(String::new, |t| t.decode(ids, SpecialTokens::Skip))
    }

    /// The text of these ids: built without a tokenizer, always empty.
    #[cfg(not(feature = "text"))]
    pub fn decode(&self, _ids: &[u32]) -> String {
        String::new()
    }

    /// The text of one token, special ones too; empty without a tokenizer.
    pub fn spell(&self, id: u32) -> String {
        self.full_text(&[id]).unwrap_or_default()
    }

    /// The text of these ids, special tokens too.
    #[cfg(feature = "text")]
    fn full_text(&self, ids: &[u32]) -> Option<String> {
        Some(self.tokenizer().ok()?.decode(ids, SpecialTokens::Keep))
    }

    #[cfg(not(feature = "text"))]
    fn full_text(&self, _ids: &[u32]) -> Option<String> {
        None
    }

    /// A decoder for ids that come one at a time.
    #[cfg(feature = "text")]
    pub(crate) fn stream(&self) -> Option<TextStream<'_>> {
        Some(self.tokenizer().ok()?.stream(SpecialTokens::Skip))
    }

    #[cfg(not(feature = "text"))]
    pub(crate) fn stream(&self) -> Option<TextStream<'_>> {
        None
    }
}

/// Text from ids that come one at a time.
#[cfg(feature = "text")]
pub(crate) type TextStream<'a> = StreamDecoder<'a>;

/// Without a tokenizer there is none.
#[cfg(not(feature = "text"))]
pub(crate) enum TextStream<'a> {
    #[expect(dead_code, reason = "never made")]
    Never(std::convert::Infallible, std::marker::PhantomData<&'a ()>),
}

#[cfg(not(feature = "text"))]
impl TextStream<'_> {
    pub(crate) fn push(&mut self, _id: u32) -> String {
        String::new()
    }

    pub(crate) fn finish(self) -> String {
        String::new()
    }
}
