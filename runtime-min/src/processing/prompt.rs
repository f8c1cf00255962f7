//! From a prompt to token ids, and back to text.

#[cfg(feature = "text")]
use std::collections::BTreeMap;
#[cfg(feature = "text")]
use std::path::PathBuf;
#[cfg(feature = "text")]
use std::sync::Arc;

#[cfg(feature = "text")]
use segpack_formats::io::CancelToken;
use segpack_manifests::Pack;
#[cfg(feature = "text")]
use segpack_manifests::families::MediaFacts;
#[cfg(feature = "text")]
use segpack_manifests::folder::PackModel;
use segpack_manifests::folder::source_file;
#[cfg(feature = "text")]
use segpack_manifests::names::Component;
#[cfg(feature = "text")]
use serde_json::{Value, json};

#[cfg(feature = "text")]
use super::media::{
    FetchMedia, MediaError, MediaKind, MediaOptions, MediaPart, MediaRecipe, Parts, PlacedMedia,
    Placeholders, ProcessedMedia, References, find_parts, process,
};
#[cfg(feature = "text")]
use super::text::chat_template::{ChatTemplate, RenderOptions, TemplateValue};
#[cfg(feature = "text")]
use super::text::read_json;
#[cfg(feature = "text")]
use super::text::tokenizer::config::TOKENIZER_CONFIG;
#[cfg(feature = "text")]
use super::text::tokenizer::{SpecialTokens, StreamDecoder, Tokenizer};
use super::text::{EosIds, TokenizerError};
use super::{MediaFeatures, PromptError};

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
    /// What paths of media are relative to; empty: the process's own folder.
    #[serde(skip)]
    pub folder: PathBuf,
    /// Who fetches media of `http:` and `https:` addresses; `None`: such are refused.
    #[serde(skip)]
    pub fetch: Option<Arc<dyn FetchMedia>>,
}

#[cfg(feature = "text")]
impl Chat {
    /// One message of the user, after one of the system if there is any.
    pub fn turn(system: Option<&str>, user: &str) -> Self {
        Self::turn_with_media(system, &[], user)
    }

    /// One message of the user with these media before the text, after one of the system if there is
    /// any. Media are paths, or `file:` or `data:` addresses; others are fetched where [`fetch`](Self::fetch)
    /// can.
    pub fn turn_with_media(
        system: Option<&str>,
        media: &[(MediaKind, String)],
        user: &str,
    ) -> Self {
        let content = match media {
            [] => Value::from(user),
            media => {
                let part = |(kind, reference): &(MediaKind, String)| json!({"type": kind.as_str(), kind.as_str(): reference});
                let text = json!({"type": "text", "text": user});
                media.iter().map(part).chain([text]).collect()
            }
        };
        let system = system.map(|content| message("system", content.into()));
        let messages: Vec<_> = system
            .into_iter()
            .chain([message("user", content)])
            .collect();
        Self::of_messages(TemplateValue::of(&messages))
    }

    /// These messages, without tools.
    pub fn of_messages(messages: TemplateValue) -> Self {
        Self {
            messages,
            tools: None,
            folder: PathBuf::new(),
            fetch: None,
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
        Ok(Self::of_messages(TemplateValue::from_json(text)?))
    }
}

#[cfg(feature = "text")]
fn message(role: &str, content: Value) -> BTreeMap<&'static str, Value> {
    [("role", role.into()), ("content", content)].into()
}

/// A prompt as the model gets it.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct TokenizedPrompt {
    /// Its text, a chat rendered, placeholders of media as often as the model gets them. `None`: ids
    /// without a tokenizer.
    pub text: Option<String>,
    /// Its token ids.
    pub ids: Vec<u32>,
    /// What of it is not text.
    pub media: MediaFeatures,
    /// The media that it has, in its order.
    #[cfg(feature = "text")]
    pub placed: Vec<PlacedMedia>,
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

    /// The prompt's ids, and its text where it has one. Media are processed with the options that
    /// the official processor has by itself.
    ///
    /// # Errors
    /// `Tokenizer` where there is none, or it does not take the text; `ChatTemplate` where there is
    /// none, or it does not take the chat; `Media` where audio, images or videos of a chat cannot be
    /// read, or the model does not take them.
    #[cfg(feature = "text")]
    pub fn tokenize(&self, prompt: &Prompt) -> Result<TokenizedPrompt, PromptError> {
        let never = CancelToken::default();
        self.tokenize_with(prompt, &MediaOptions::default(), &never)
    }

    /// As [`tokenize`](Self::tokenize), with media processed as these options say, until `cancel` is
    /// requested.
    ///
    /// # Errors
    /// As [`tokenize`](Self::tokenize).
    #[cfg(feature = "text")]
    pub fn tokenize_with(
        &self,
        prompt: &Prompt,
        options: &MediaOptions,
        cancel: &CancelToken,
    ) -> Result<TokenizedPrompt, PromptError> {
        let tokenizer = match prompt {
            Prompt::Ids(ids) => return Ok(self.of_ids(ids)),
            Prompt::Text(_) | Prompt::Chat { .. } => self.tokenizer()?,
        };
        let mut parts = Parts::default();
        let text = match prompt {
            Prompt::Ids(_) => String::new(), // above
            Prompt::Text(text) => text.clone(),
            Prompt::Chat {
                chat,
                enable_thinking,
            } => self.render(chat, *enable_thinking, &mut parts)?,
        };
        let placeholders = self.placeholders_for(&parts.media, options)?;
        let (text, processed) = match &placeholders {
            Some(placeholders) => {
                self.with_media(&text, &parts, placeholders, (options, cancel))?
            }
            None => (text, ProcessedMedia::default()),
        };
        let ids = match prompt {
            Prompt::Text(_) => tokenizer.encode(&text)?,
            _ => tokenizer.encode_bare(&text)?,
        };
        if let Some(placeholders) = &placeholders {
            self.check_placeholders(placeholders, &text, &ids)?;
        }
        Ok(TokenizedPrompt {
            text: Some(text),
            ids,
            media: processed.features,
            placed: processed.placed,
        })
    }

    /// The prompt's ids: built without a tokenizer, as they are given.
    ///
    /// # Errors
    /// None.
    #[cfg(not(feature = "text"))]
    pub fn tokenize(&self, prompt: &Prompt) -> Result<TokenizedPrompt, PromptError> {
        let Prompt::Ids(ids) = prompt;
        Ok(self.of_ids(ids))
    }

    fn of_ids(&self, ids: &[u32]) -> TokenizedPrompt {
        TokenizedPrompt {
            text: self.full_text(ids),
            ids: ids.to_vec(),
            ..TokenizedPrompt::default()
        }
    }

    /// The chat as its template renders it; its media are added to `parts`.
    #[cfg(feature = "text")]
    fn render(
        &self,
        chat: &Chat,
        enable_thinking: Option<bool>,
        parts: &mut Parts,
    ) -> Result<String, PromptError> {
        // what is no JSON is refused by the template
        let mut messages = serde_json::to_value(&chat.messages).unwrap_or_default();
        let references = References {
            folder: &chat.folder,
            fetch: chat.fetch.as_deref(),
        };
        *parts = find_parts(&mut messages, references)?;
        let rewritten = parts.is_rewritten.then(|| TemplateValue::of(&messages));
        let template = ChatTemplate::load(&|name: &str| source_file(self.pack, name))?;
        let options = RenderOptions {
            add_generation_prompt: true,
            enable_thinking,
            tools: chat.tools.clone(),
            ..RenderOptions::default()
        };
        let messages = rewritten.as_ref().unwrap_or(&chat.messages);
        Ok(template.render(messages, &options)?)
    }

    /// Processes media, and puts as many placeholders as they need into the text.
    #[cfg(feature = "text")]
    fn with_media(
        &self,
        text: &str,
        parts: &Parts,
        placeholders: &Placeholders,
        (options, cancel): (&MediaOptions, &CancelToken),
    ) -> Result<(String, ProcessedMedia), PromptError> {
        let files = |name: &str| source_file(self.pack, name);
        let processed = process(&parts.media, options, &files, cancel)?;
        let text = placeholders.expand(text, &processed.replacements)?;
        Ok((text, processed))
    }

    /// How media are marked in a text, after it was made sure that the model takes these; `None` where
    /// it takes text alone.
    #[cfg(feature = "text")]
    fn placeholders_for(
        &self,
        parts: &[MediaPart],
        options: &MediaOptions,
    ) -> Result<Option<Placeholders>, PromptError> {
        let facts = match PackModel::read(self.pack).and_then(|model| model.media()) {
            Ok(facts) => facts,
            // text alone is taken whatever its encoders are
            Err(_) if parts.is_empty() => None,
            Err(error) => return Err(MediaError::from(error).into()),
        };
        self.check_encoders(parts, facts.as_ref())?;
        let encodes = |kind| self.encodes(facts.as_ref(), kind);
        let Some(facts) = facts
            .as_ref()
            .filter(|_| MediaKind::ALL.into_iter().any(encodes))
        else {
            return Ok(None);
        };
        if !parts.is_empty()
            && facts.takes_images_alone()
            && options.recipe == MediaRecipe::ModelCard
        {
            return Err(MediaError::Recipe.into());
        }
        let files = |name: &str| source_file(self.pack, name);
        let config: Option<Value> = read_json(&files, TOKENIZER_CONFIG)?;
        let config = config.unwrap_or_default();
        let placeholders = match facts.default_marks {
            Some(marks) => Some(Placeholders::of_pictures(&config, marks)),
            None => Placeholders::of(&config)?,
        };
        match (placeholders, parts) {
            (None, [_, ..]) => Err(MediaError::Token { key: "audio_token" }.into()),
            (placeholders, _) => Ok(placeholders),
        }
    }

    /// Whether the model takes these media, and the pack has encoders for them.
    #[cfg(feature = "text")]
    fn check_encoders(
        &self,
        parts: &[MediaPart],
        facts: Option<&MediaFacts>,
    ) -> Result<(), MediaError> {
        for part in parts {
            let (kind, name) = (part.kind, part.source.name());
            let takes_images_alone = facts.is_some_and(MediaFacts::takes_images_alone);
            if takes_images_alone && kind != MediaKind::Image {
                return Err(MediaError::ImagesAlone { kind, name });
            }
            if !self.encodes(facts, kind) {
                return Err(MediaError::NoEncoder { kind, name });
            }
        }
        Ok(())
    }

    #[cfg(feature = "text")]
    fn encodes(&self, facts: Option<&MediaFacts>, kind: MediaKind) -> bool {
        let Some(facts) = facts else {
            return false;
        };
        let tower = match kind {
            MediaKind::Audio => Component::ThinkerAudio,
            MediaKind::Image | MediaKind::Video => facts.vision.names.component,
        };
        let segments = &self.pack.manifest().tensors;
        segments.iter().any(|tensor| tensor.component == tower)
    }

    /// Whether each placeholder of the text is one token.
    #[cfg(feature = "text")]
    fn check_placeholders(
        &self,
        placeholders: &Placeholders,
        text: &str,
        ids: &[u32],
    ) -> Result<(), PromptError> {
        for (_, placeholder) in placeholders.all() {
            let in_text = text.matches(placeholder).count();
            let id = self.tokenizer()?.id_of(placeholder);
            let of_it = ids.iter().filter(|seen| Some(**seen) == id).count();
            if of_it != in_text {
                return Err(MediaError::Tokens {
                    placeholder: placeholder.to_owned(),
                    in_text,
                    ids: of_it,
                }
                .into());
            }
        }
        Ok(())
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
