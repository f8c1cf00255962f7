//! `tokenizer_config.json`, and the older files that it replaces.

use std::collections::BTreeMap;

use serde::Deserialize;
use tokenizers::AddedToken;

use super::{BoxError, FileReader, TokenizerError};
use crate::processing::text::files::read_json;

pub(crate) const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const SPECIAL_TOKENS_MAP: &str = "special_tokens_map.json";
const ADDED_TOKENS: &str = "added_tokens.json";

/// transformers' SPECIAL_TOKENS_ATTRIBUTES without the list of additional ones.
const NAMES: [&str; 7] = [
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
];

/// What the tokenizer and the chat template want to know of `tokenizer_config.json`.
#[derive(Debug, Default)]
pub(crate) struct TokenizerConfig {
    pub(crate) class: Option<String>,
    pub(crate) added: Vec<AddedEntry>,
    pub(crate) add_prefix_space: bool,
    pub(crate) split_special_tokens: bool,
    /// `bos_token` and the like, by name, where they are set.
    pub(crate) named: BTreeMap<String, String>,
    additional: Vec<String>,
}

/// An added token with its id.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct AddedEntry {
    /// The key in `tokenizer_config.json`, a field in `tokenizer.json`.
    #[serde(default)]
    pub(crate) id: u32,
    pub(crate) content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    normalized: Option<bool>,
    #[serde(default)]
    special: bool,
}

impl AddedEntry {
    /// The token for the `tokenizers` crate.
    pub(crate) fn token(&self) -> AddedToken {
        AddedToken::from(self.content.as_str(), self.special)
            .single_word(self.single_word)
            .lstrip(self.lstrip)
            .rstrip(self.rstrip)
            .normalized(self.normalized.unwrap_or(!self.special))
    }

    fn plain(id: u32, content: String, special: bool) -> Self {
        Self {
            id,
            content,
            single_word: false,
            lstrip: false,
            rstrip: false,
            normalized: None,
            special,
        }
    }
}

#[derive(Default, Deserialize)]
struct Document {
    tokenizer_class: Option<String>,
    added_tokens_decoder: Option<BTreeMap<String, AddedEntry>>,
    add_prefix_space: Option<bool>,
    split_special_tokens: Option<bool>,
    additional_special_tokens: Option<Vec<Spelling>>,
    extra_special_tokens: Option<Extra>,
    #[serde(flatten)]
    rest: BTreeMap<String, serde_json::Value>,
}

/// A token as text or as a written-out AddedToken.
#[derive(Deserialize)]
#[serde(untagged)]
enum Spelling {
    Text(String),
    Token { content: String },
}

/// transformers 4 writes a map from names, transformers 5 a list.
#[derive(Deserialize)]
#[serde(untagged)]
enum Extra {
    Named(BTreeMap<String, Spelling>),
    List(Vec<Spelling>),
}

impl Spelling {
    fn into_text(self) -> String {
        match self {
            Self::Text(content) | Self::Token { content } => content,
        }
    }
}

impl TokenizerConfig {
    pub(crate) fn load<E: Into<BoxError>>(
        files: &FileReader<'_, E>,
    ) -> Result<Self, TokenizerError> {
        let document: Document = read_json(files, TOKENIZER_CONFIG)?.unwrap_or_default();
        let has_added_tokens = document.added_tokens_decoder.is_some();
        let mut config = Self::from_document(document)?;
        let map: Document = read_json(files, SPECIAL_TOKENS_MAP)?.unwrap_or_default();
        let map = Self::from_document(map)?;
        for (name, token) in map.named {
            config.named.entry(name).or_insert(token);
        }
        config.additional.extend(map.additional);
        if !has_added_tokens {
            config.add_legacy_tokens(read_json(files, ADDED_TOKENS)?.unwrap_or_default());
        }
        Ok(config)
    }

    fn from_document(document: Document) -> Result<Self, TokenizerError> {
        let mut config = Self {
            class: document.tokenizer_class,
            added: added_tokens(document.added_tokens_decoder.unwrap_or_default())?,
            add_prefix_space: document.add_prefix_space.unwrap_or(false),
            split_special_tokens: document.split_special_tokens.unwrap_or(false),
            named: BTreeMap::new(),
            additional: Vec::new(),
        };
        for (name, value) in document.rest {
            if let (true, Ok(token)) = (
                NAMES.contains(&name.as_str()),
                serde_json::from_value::<Spelling>(value),
            ) {
                config.named.insert(name, token.into_text());
            }
        }
        config.additional.extend(
            document
                .additional_special_tokens
                .into_iter()
                .flatten()
                .map(Spelling::into_text),
        );
        config.add_extra(document.extra_special_tokens);
        Ok(config)
    }

    fn add_extra(&mut self, extra: Option<Extra>) {
        match extra {
            Some(Extra::Named(tokens)) => {
                self.named.extend(
                    tokens
                        .into_iter()
                        .map(|(name, token)| (name, token.into_text())),
                );
            }
            Some(Extra::List(tokens)) => self
                .additional
                .extend(tokens.into_iter().map(Spelling::into_text)),
            None => {}
        }
    }

    fn add_legacy_tokens(&mut self, tokens: BTreeMap<String, u32>) {
        for (content, id) in tokens {
            let special = self.named_special_tokens().any(|named| named == content);
            self.added.push(AddedEntry::plain(id, content, special));
        }
    }

    /// Every token that a name makes special.
    pub(crate) fn named_special_tokens(&self) -> impl Iterator<Item = &str> {
        self.named
            .values()
            .chain(&self.additional)
            .map(String::as_str)
    }
}

fn added_tokens(by_id: BTreeMap<String, AddedEntry>) -> Result<Vec<AddedEntry>, TokenizerError> {
    by_id
        .into_iter()
        .map(|(key, entry)| match key.parse() {
            Ok(id) => Ok(AddedEntry { id, ..entry }),
            Err(_) => Err(TokenizerError::malformed(
                TOKENIZER_CONFIG,
                format!(
                    "added_tokens_decoder: the key {key:?} of {:?} is not a token id",
                    entry.content
                ),
            )),
        })
        .collect()
}
