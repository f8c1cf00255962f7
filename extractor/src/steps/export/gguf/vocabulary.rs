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
use super::architecture::Architecture;
use super::sentencepiece::{self, looks_special};
use crate::steps::StepError;
use crate::steps::export::error::Cause;
use crate::steps::export::source::source_json;
use crate::steps::export::{ExportError, ExportSettings, GgufExportError};

/// The file of a SentencePiece vocabulary.
const SENTENCEPIECE: &str = "tokenizer.model";

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

/// The pattern of GPT-2, which the step for bytes has built in.
const GPT2_SPLIT: &str =
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// That of GLM-4.5, and of Llama 3: digits in threes.
const GLM4_SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// That of gpt-oss, and of GPT-4o: words by case.
const O200K_SPLIT: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// GLM's special tokens by what llama.cpp takes them for.
const GLM_SPECIAL: [(&str, &str); 4] = [
    ("bos_token_id", "[gMASK]"),
    ("eot_token_id", "<|user|>"),
    ("unknown_token_id", "<|endoftext|>"),
    ("eom_token_id", "<|observation|>"),
];

/// What ends a turn of Qwen's; the converter takes it for both ends of Qwen3-Omni's texts.
const END_OF_TURN: &str = "<|im_end|>";

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
        (architecture, facts): (Architecture, &TextFacts),
        settings: &ExportSettings,
        notes: &mut Vec<String>,
    ) -> Result<Self, StepError> {
        if settings.tokenizer_pre.as_deref() == Some(NONE) {
            notes
                .push("the tokenizer was left out: llama.cpp takes and gives token ids".to_owned());
            return Ok(Self::default());
        }
        if architecture == Architecture::Llama
            && let Some(model) = source_file(pack, SENTENCEPIECE)?
        {
            return Self::of_pieces((pack, &model), config, facts, settings);
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
        let pre = document.pre_tokenizer(architecture, settings.tokenizer_pre.as_deref())?;
        let tokenizer_config = source_json(pack, "tokenizer_config.json")?.unwrap_or_default();
        let merges = document.merges()?;
        let around = document.added_around(architecture, &tokenizer_config)?;
        let mut metadata = Metadata::new();
        let mut add = |key: &str, value: Value| metadata.push((format!("tokenizer.{key}"), value));
        add("ggml.model", "gpt2".into());
        add("ggml.pre", Value::Text(pre));
        let (tokens, types) = document.tokens(facts.vocab);
        add("ggml.tokens", Value::Array(Array::Text(tokens)));
        add("ggml.token_type", Value::Array(Array::I32(types)));
        add("ggml.merges", Value::Array(Array::Text(merges)));
        let ids = document.special_ids(&tokenizer_config, config);
        for (name, id) in document.own_special_ids(architecture, ids)? {
            add(&format!("ggml.{name}"), id.into());
        }
        metadata.extend(last_keys(pack, around, &tokenizer_config)?);
        Ok(Self { metadata })
    }

    /// The pieces of a SentencePiece vocabulary. Its special tokens are those of `tokenizer.json`, if
    /// there is one.
    ///
    /// Source: `LlamaModel.set_vocab` in llama.cpp's `conversion/llama.py`.
    fn of_pieces(
        (pack, model): (&Pack, &[u8]),
        config: &Json,
        facts: &TextFacts,
        settings: &ExportSettings,
    ) -> Result<Self, StepError> {
        let json = source_file(pack, "tokenizer.json")?;
        let mut document = Document::of(json.as_deref().unwrap_or(b"{}"))?;
        let tokenizer_config = source_json(pack, "tokenizer_config.json")?.unwrap_or_default();
        let added = source_json(pack, "added_tokens.json")?.unwrap_or_default();
        let mut pieces = sentencepiece::pieces(model, facts.vocab)?;
        sentencepiece::add_tokens(&mut pieces, &added, &tokenizer_config);
        for (id, piece) in (0..).zip(&pieces) {
            document.tokens.insert(id, piece.text.clone());
        }
        let around = document.added_around(Architecture::Llama, &tokenizer_config)?;
        let mut metadata = Metadata::new();
        let mut add = |key: &str, value: Value| metadata.push((format!("tokenizer.{key}"), value));
        if let Some(flag) = tokenizer_config["add_prefix_space"].as_bool() {
            add("ggml.add_space_prefix", flag.into());
        }
        let pre = settings.tokenizer_pre.as_deref().unwrap_or("default");
        add("ggml.model", "llama".into());
        add("ggml.pre", pre.into());
        let texts = pieces.iter().map(|piece| piece.text.clone()).collect();
        add("ggml.tokens", Value::Array(Array::Text(texts)));
        let scores = pieces.iter().map(|piece| piece.score).collect();
        add("ggml.scores", Value::Array(Array::F32(scores)));
        let kinds = pieces.iter().map(|piece| piece.kind).collect();
        add("ggml.token_type", Value::Array(Array::I32(kinds)));
        for (name, id) in document.special_ids(&tokenizer_config, config) {
            add(&format!("ggml.{name}"), id.into());
        }
        metadata.extend(last_keys(pack, around, &tokenizer_config)?);
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

/// What every vocabulary ends with: whether special tokens are put around a text, and the templates.
fn last_keys(
    pack: &Pack,
    around: BTreeMap<&'static str, bool>,
    tokenizer_config: &Json,
) -> Result<Metadata, StepError> {
    let around = around
        .into_iter()
        .map(|(name, flag)| (format!("ggml.add_{name}_token"), flag.into()));
    let templates = chat_templates(pack, tokenizer_config)?;
    Ok(around
        .chain(templates)
        .map(|(key, value)| (format!("tokenizer.{key}"), value))
        .collect())
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
    fn pre_tokenizer(
        &self,
        architecture: Architecture,
        given: Option<&str>,
    ) -> Result<String, GgufExportError> {
        let rules = &self.json["pre_tokenizer"];
        if !is_byte_level(rules) {
            return Err(GgufExportError::NotByteLevel {
                seen: self.seen_rules(),
            });
        }
        if let Some(name) = given {
            return Ok(name.to_owned());
        }
        let split = split_pattern(rules).filter(|_| self.is_normalized_nfc_at_most());
        let has_whole_words = self.json["model"]["ignore_merges"].as_bool() == Some(true);
        let name = match (split, architecture) {
            (Some(QWEN2_SPLIT), _) => Some("qwen2"),
            (Some(GPT2_SPLIT), Architecture::Olmoe) => Some("olmo"),
            // llama.cpp looks for whole words first in vocabularies of this name
            (Some(GLM4_SPLIT), Architecture::Glm4Moe) if has_whole_words => Some("glm4"),
            (Some(O200K_SPLIT), Architecture::GptOss) => Some("gpt-4o"),
            _ => None,
        };
        name.map(str::to_owned)
            .ok_or_else(|| GgufExportError::PreTokenizer {
                seen: self.seen_rules(),
            })
    }

    /// The rules, cut short.
    fn seen_rules(&self) -> String {
        let seen = serde_json::json!({"normalizer": self.json["normalizer"], "pre_tokenizer": self.json["pre_tokenizer"]});
        seen.to_string().chars().take(300).collect()
    }

    /// NFC or nothing.
    fn is_normalized_nfc_at_most(&self) -> bool {
        let normalizer = &self.json["normalizer"];
        normalizer.is_null() || normalizer["type"].as_str() == Some("NFC")
    }

    /// The ids of special tokens, and those that are known by their names.
    ///
    /// Source: `TextModel._set_vocab_glm` in llama.cpp's `conversion/base.py`,
    /// `Qwen3OmniMoeTextModel.set_vocab` in `conversion/qwen3vl.py`.
    fn own_special_ids(
        &self,
        architecture: Architecture,
        mut ids: Vec<(&'static str, u32)>,
    ) -> Result<Vec<(&'static str, u32)>, GgufExportError> {
        if architecture == Architecture::Qwen3VlMoe
            && let Some(end) = self.added_token(END_OF_TURN)
        {
            ids.retain(|(key, _)| !["bos_token_id", "eos_token_id"].contains(key));
            ids.extend([("bos_token_id", end), ("eos_token_id", end)]);
        }
        if architecture != Architecture::Glm4Moe {
            return Ok(ids);
        }
        for (key, token) in GLM_SPECIAL {
            // what the configuration says itself stays
            if ids.iter().all(|(known, _)| *known != key) {
                let id = self.added_token(token);
                ids.push((key, id.ok_or(GgufExportError::SpecialToken { token })?));
            }
        }
        Ok(ids)
    }

    /// The id of an added token.
    fn added_token(&self, token: &str) -> Option<u32> {
        let mut added = self.added.keys();
        let id = added.find(|id| self.tokens.get(id).is_some_and(|t| t == token));
        id.copied()
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
        architecture: Architecture,
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
                Some("TemplateProcessing")
                    if architecture == Architecture::Llama
                        && is_bos_first(&step, &tokenizer_config["bos_token"]) =>
                {
                    flags.insert("bos", true);
                    // another one may stand between two texts, which is no separator then
                    if step["pair"].as_array().is_some_and(|pair| pair.len() > 3) {
                        flags.insert("sep", false);
                    }
                }
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

/// Whether a template puts the token that begins a text before each one, and nothing else.
fn is_bos_first(step: &Json, bos: &Json) -> bool {
    let bos = bos.as_str().or_else(|| bos["content"].as_str());
    let is_bos = |part: &Json| bos.is_some() && part["SpecialToken"]["id"].as_str() == bos;
    let is_text = |part: &Json, name: &str| part["Sequence"]["id"].as_str() == Some(name);
    let parts = |key: &str| step[key].as_array().map(Vec::as_slice).unwrap_or_default();
    let is_single = match parts("single") {
        [first, text] => is_bos(first) && is_text(text, "A"),
        _ => false,
    };
    let is_pair = match parts("pair") {
        [] => true,
        [first, one, other] => is_bos(first) && is_text(one, "A") && is_text(other, "B"),
        [first, one, second, other] => {
            is_bos(first) && is_text(one, "A") && is_bos(second) && is_text(other, "B")
        }
        _ => false,
    };
    is_single && is_pair
}

/// Whether the last step makes characters of bytes, as all vocabularies of llama.cpp's `gpt2` have
/// them.
fn is_byte_level(rules: &Json) -> bool {
    let last = match rules["pretokenizers"].as_array() {
        Some(steps) => steps.last(),
        None => Some(rules),
    };
    last.is_some_and(|step| step["type"].as_str() == Some("ByteLevel"))
}

/// The pattern by which a text is split before its bytes become characters; `None` where it is split
/// in another way.
fn split_pattern(rules: &Json) -> Option<&str> {
    let steps = match rules["pretokenizers"].as_array() {
        Some(steps) => &steps[..],
        None => std::slice::from_ref(rules),
    };
    let (bytes, splits) = steps.split_last()?;
    if bytes["add_prefix_space"].as_bool() != Some(false) {
        return None;
    }
    match (splits, bytes["use_regex"].as_bool()) {
        // the step's own pattern, which is the default
        ([], Some(true) | None) => Some(GPT2_SPLIT),
        ([split], Some(false)) => {
            let is_plain = split["type"].as_str() == Some("Split")
                && split["behavior"].as_str() == Some("Isolated")
                && split["invert"].as_bool() == Some(false);
            split["pattern"]["Regex"].as_str().filter(|_| is_plain)
        }
        _ => None,
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
