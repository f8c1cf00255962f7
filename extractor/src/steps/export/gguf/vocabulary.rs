//! `tokenizer.*` of the file: tokens, merges, special tokens and the chat template.
//!
//! Source: `TextModel.get_vocab_base` and `get_vocab_base_pre` in llama.cpp's `conversion/base.py`,
//! `SpecialVocab` in `gguf-py/gguf/vocab.py`. The converter knows a pre-tokenizer by a hash of what
//! it makes of a test text, which holds for one vocabulary; here it is known by its rules, which
//! hold for all.

use std::collections::{BTreeMap, HashMap};

use segpack_formats::gguf::{Array, Value};
use segpack_manifests::Pack;
use segpack_manifests::families::TextFacts;
use segpack_manifests::folder::source_file;
use segpack_runtime_min::processing::text::tokenizer::{QWEN2_SPLIT, Tokenizer, TokenizerError};
use serde_json::Value as Json;

use super::Metadata;
use crate::steps::StepError;
use crate::steps::export::error::Cause;
use crate::steps::export::source::source_json;
use crate::steps::export::{ExportError, ExportSettings, GgufExportError};

/// The name of a pre-tokenizer that leaves the tokenizer out.
const NONE: &str = "none";

/// `gguf.TokenType`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TokenType {
    Normal = 1,
    Control = 3,
    UserDefined = 4,
    Unused = 5,
}

/// `tokenizer.ggml.…` ids and the setting that they come from; `seperator` is how ggml spells it.
const SPECIAL: [(&str, &str); 6] = [
    ("bos", "bos_token_id"),
    ("eos", "eos_token_id"),
    ("unk", "unknown_token_id"),
    ("sep", "seperator_token_id"),
    ("pad", "padding_token_id"),
    ("mask", "mask_token_id"),
];

/// A tokenizer as the file describes it.
#[derive(Debug, Default)]
pub(super) struct Vocabulary {
    metadata: Metadata,
}

/// What of `tokenizer.json` counts.
struct Document {
    tokens: HashMap<u32, String>,
    added: HashMap<u32, bool>,
    json: Json,
}

impl Vocabulary {
    /// The pack's tokenizer, with as many tokens as the embedding has rows; none where the pack has
    /// none.
    ///
    /// # Errors
    /// Where the tokenizer is damaged, has more tokens than the embedding has rows, or
    /// splits text by rules that llama.cpp's name is not known of.
    pub(super) fn of(
        pack: &Pack,
        config: &Json,
        facts: &TextFacts,
        settings: &ExportSettings,
        notes: &mut Vec<String>,
    ) -> Result<Self, StepError> {
        if settings.tokenizer_pre.as_deref() == Some(NONE) {
            notes
                .push("the tokenizer was left out: llama.cpp takes and gives token ids".to_owned());
            return Ok(Self::default());
        }
        let tokenizer = match Tokenizer::load(&|name: &str| source_file(pack, name)) {
            // vocab.json is asked for last: there is no file of a tokenizer at all
            Err(TokenizerError::Missing { missing }) if missing == "vocab.json" => {
                notes.push(
                    "the pack has no tokenizer: llama.cpp takes and gives token ids".to_owned(),
                );
                return Ok(Self::default());
            }
            loaded => loaded.map_err(ExportError::Tokenizer)?,
        };
        tokenizer
            .check_against_embedding(facts.vocab)
            .map_err(ExportError::Tokenizer)?;
        let json = tokenizer.to_json().map_err(ExportError::Tokenizer)?;
        let document = Document::of(&json)?;
        let pre = document.pre_tokenizer(settings.tokenizer_pre.as_deref())?;
        let tokenizer_config = source_json(pack, "tokenizer_config.json")?.unwrap_or_default();
        let merges = document.merges()?;
        let around = document.added_around(&tokenizer_config)?;
        let mut metadata = Metadata::new();
        let mut add = |key: &str, value: Value| metadata.push((format!("tokenizer.{key}"), value));
        add("ggml.model", "gpt2".into());
        add("ggml.pre", Value::Text(pre));
        let (tokens, types) = document.tokens(facts.vocab);
        add("ggml.tokens", Value::Array(Array::Text(tokens)));
        add("ggml.token_type", Value::Array(Array::I32(types)));
        add("ggml.merges", Value::Array(Array::Text(merges)));
        for (name, id) in document.special_ids(&tokenizer_config, config) {
            add(&format!("ggml.{name}"), id.into());
        }
        for (name, flag) in around {
            add(&format!("ggml.add_{name}_token"), flag.into());
        }
        for (key, template) in chat_templates(pack, &tokenizer_config)? {
            add(&key, template);
        }
        Ok(Self { metadata })
    }

    /// Whether there is none.
    pub(super) fn is_none(&self) -> bool {
        self.metadata.is_empty()
    }

    /// Its keys and values.
    pub(super) fn metadata(&self) -> Metadata {
        if self.is_none() {
            return vec![("tokenizer.ggml.model".to_owned(), NONE.into())];
        }
        self.metadata.clone()
    }
}

impl Document {
    fn of(bytes: &[u8]) -> Result<Self, ExportError> {
        let json: Json =
            serde_json::from_slice(bytes).map_err(|e| unreadable("tokenizer.json", e))?;
        let id = |value: &Json| value.as_u64().and_then(|id| u32::try_from(id).ok());
        let (mut tokens, mut added) = (HashMap::new(), HashMap::new());
        for (token, number) in json
            .pointer("/model/vocab")
            .and_then(Json::as_object)
            .into_iter()
            .flatten()
        {
            tokens.extend(id(number).map(|id| (id, token.clone())));
        }
        for token in json["added_tokens"].as_array().into_iter().flatten() {
            if let (Some(id), Some(content)) = (id(&token["id"]), token["content"].as_str()) {
                tokens.insert(id, content.to_owned());
                added.insert(id, token["special"].as_bool().unwrap_or(false));
            }
        }
        Ok(Self {
            tokens,
            added,
            json,
        })
    }

    /// llama.cpp's name of the rules that split a text before it is encoded.
    fn pre_tokenizer(&self, given: Option<&str>) -> Result<String, GgufExportError> {
        if let Some(name) = given {
            return Ok(name.to_owned());
        }
        if self.splits_as_qwen2() {
            return Ok("qwen2".to_owned());
        }
        let seen = serde_json::json!({"normalizer": self.json["normalizer"], "pre_tokenizer": self.json["pre_tokenizer"]});
        let seen: String = seen.to_string().chars().take(300).collect();
        Err(GgufExportError::PreTokenizer { seen })
    }

    /// NFC or nothing, Qwen2's pattern, then bytes as characters.
    fn splits_as_qwen2(&self) -> bool {
        let normalizer = &self.json["normalizer"];
        let steps = &self.json["pre_tokenizer"]["pretokenizers"];
        let (split, bytes) = (&steps[0], &steps[1]);
        let is = |value: &Json, wanted: &str| value.as_str() == Some(wanted);
        (normalizer.is_null() || is(&normalizer["type"], "NFC"))
            && steps.as_array().is_some_and(|all| all.len() == 2)
            && is(&split["type"], "Split")
            && is(&split["pattern"]["Regex"], QWEN2_SPLIT)
            && is(&split["behavior"], "Isolated")
            && split["invert"].as_bool() == Some(false)
            && is(&bytes["type"], "ByteLevel")
            && bytes["add_prefix_space"].as_bool() == Some(false)
            && bytes["use_regex"].as_bool() == Some(false)
    }

    /// One token for each row of the embedding, and its type.
    fn tokens(&self, rows: u64) -> (Vec<String>, Vec<i32>) {
        let rows = u32::try_from(rows).unwrap_or(u32::MAX);
        (0..rows).map(|id| self.row(id)).unzip()
    }

    /// The token of a row of the embedding, and its type.
    fn row(&self, id: u32) -> (String, i32) {
        match (self.tokens.get(&id), self.added.get(&id)) {
            (None, _) => (format!("[PAD{id}]"), TokenType::Unused as i32),
            (Some(token), None) => (token.clone(), TokenType::Normal as i32),
            (Some(token), Some(special)) if *special || looks_special(token) => {
                (token.clone(), TokenType::Control as i32)
            }
            // llama.cpp wants tokens of users with plain spaces
            (Some(token), Some(_)) => (
                token.replace('\u{2581}', " "),
                TokenType::UserDefined as i32,
            ),
        }
    }

    /// Pairs as lines.
    fn merges(&self) -> Result<Vec<String>, GgufExportError> {
        let merges = self.json.pointer("/model/merges").and_then(Json::as_array);
        let lines: Option<Vec<_>> = merges
            .map(Vec::as_slice)
            .unwrap_or_default()
            .iter()
            .map(merge_line)
            .collect();
        lines.ok_or(GgufExportError::Merge)
    }

    /// Ids of named tokens: those of `tokenizer_config.json` first, then the ids of the model's
    /// configuration.
    fn special_ids(&self, tokenizer_config: &Json, config: &Json) -> Vec<(&'static str, u32)> {
        let ids = SPECIAL.into_iter().map(|(name, key)| {
            let named = self.named_id(name, tokenizer_config);
            Some((key, named.or_else(|| self.stated_id(name, config))?))
        });
        ids.flatten().collect()
    }

    /// The id of the token that `tokenizer_config.json` gives this name.
    fn named_id(&self, name: &str, tokenizer_config: &Json) -> Option<u32> {
        let entry = &tokenizer_config[format!("{name}_token")];
        let content = entry.as_str().or_else(|| entry["content"].as_str())?;
        let found = self
            .added
            .keys()
            .filter(|id| self.tokens.get(id).is_some_and(|t| t == content));
        found.min().copied()
    }

    /// The id that the model's configuration gives this name.
    fn stated_id(&self, name: &str, config: &Json) -> Option<u32> {
        let id = config[format!("{name}_token_id")].as_u64()?;
        let id = u32::try_from(id).ok();
        id.filter(|id| self.tokens.contains_key(id))
    }

    /// Whether the tokenizer puts tokens around a text: a byte-level post-processor adds none,
    /// otherwise the configuration says.
    fn added_around(
        &self,
        tokenizer_config: &Json,
    ) -> Result<BTreeMap<&'static str, bool>, GgufExportError> {
        let mut flags = BTreeMap::new();
        let processor = &self.json["post_processor"];
        let steps = processor["processors"]
            .as_array()
            .cloned()
            .unwrap_or_else(|| vec![processor.clone()]);
        for step in steps {
            match step["type"].as_str() {
                None => {}
                Some("ByteLevel") => flags.extend([("bos", false), ("eos", false)]),
                Some(other) => {
                    return Err(GgufExportError::PostProcessor {
                        kind: other.to_owned(),
                    });
                }
            }
        }
        for name in ["bos", "eos", "sep"] {
            if let Some(flag) = tokenizer_config[format!("add_{name}_token")].as_bool() {
                flags.entry(name).or_insert(flag);
            }
        }
        Ok(flags)
    }
}

fn unreadable(file: &str, source: impl Into<Cause>) -> ExportError {
    ExportError::SourceFile {
        file: file.to_owned(),
        source: source.into(),
    }
}

/// A pair as a line. A space inside a part is written as a byte-level vocabulary writes it.
fn merge_line(merge: &Json) -> Option<String> {
    let part = |part: &Json| part.as_str().map(|text| text.replace(' ', "\u{120}"));
    match merge {
        Json::String(line) => Some(line.clone()),
        Json::Array(pair) if pair.len() == 2 => {
            Some(format!("{} {}", part(&pair[0])?, part(&pair[1])?))
        }
        _ => None,
    }
}

/// `TextModel.does_token_look_special`: added tokens that some models do not mark.
fn looks_special(token: &str) -> bool {
    let between = |start: &str, end: &str| token.starts_with(start) && token.ends_with(end);
    ["<pad>", "<mask>", "<2mass>", "[@BOS@]"].contains(&token)
        || between("<|", "|>")
        || between("<\u{ff5c}", "\u{ff5c}>")
        || between("<unused", ">")
}

/// The template of `tokenizer_config.json`, else that of `chat_template.jinja`, else that of
/// `chat_template.json`; several by name.
fn chat_templates(pack: &Pack, tokenizer_config: &Json) -> Result<Metadata, StepError> {
    let template = match tokenizer_config.get("chat_template") {
        Some(template) if !template.is_null() => template.clone(),
        _ => template_of_file(pack)?,
    };
    Ok(match template {
        Json::String(text) => vec![("chat_template".to_owned(), Value::Text(text))],
        Json::Array(choices) => named_templates(&choices),
        _ => Metadata::new(),
    })
}

/// The template of a file of its own; null where there is none.
fn template_of_file(pack: &Pack) -> Result<Json, StepError> {
    if let Some(bytes) = source_file(pack, "chat_template.jinja")? {
        let text = String::from_utf8(bytes).map_err(|e| unreadable("chat_template.jinja", e))?;
        return Ok(Json::from(text));
    }
    Ok(source_json(pack, "chat_template.json")?
        .map_or(Json::Null, |json| json["chat_template"].clone()))
}

fn named_templates(choices: &[Json]) -> Metadata {
    let (mut all, mut names) = (Metadata::new(), Vec::new());
    for choice in choices {
        let (Some(name), Some(template)) = (choice["name"].as_str(), choice["template"].as_str())
        else {
            continue;
        };
        let name: String = name
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c } else { '_' })
            .collect();
        if name == "default" {
            all.push(("chat_template".to_owned(), template.into()));
        } else if !name.is_empty() && !names.contains(&name) {
            all.push((format!("chat_template.{name}"), template.into()));
            names.push(name);
        }
    }
    if !names.is_empty() {
        all.push((
            "chat_templates".to_owned(),
            Value::Array(Array::Text(names)),
        ));
    }
    all
}
