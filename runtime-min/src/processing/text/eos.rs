//! The ids that end a text.

use serde::Deserialize;

use super::files::read_json;
use super::{BoxError, FileReader, TokenizerError};

const GENERATION_CONFIG: &str = "generation_config.json";
/// Qwen's end of a turn and end of a document.
const CUSTOMARY: [&str; 2] = ["<|im_end|>", "<|endoftext|>"];

/// The ids that end a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EosIds {
    /// The ids.
    pub ids: Vec<u32>,
    /// Where they come from.
    pub source: EosSource,
}

/// Where the end-of-text ids come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EosSource {
    /// `eos_token_id` in `generation_config.json`.
    GenerationConfig,
    /// No such setting: Qwen's customary tokens, as far as the vocabulary has them.
    Customary,
}

#[derive(Default, Deserialize)]
struct Document {
    eos_token_id: Option<OneOrMany>,
}

#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "eos_token_id is neither a token id nor a list of them"
)]
enum OneOrMany {
    One(u32),
    Many(Vec<u32>),
}

impl EosIds {
    /// The ids of `generation_config.json` alone, for a checkpoint that is used without its
    /// tokenizer.
    ///
    /// # Errors
    /// `Read` and `Malformed`, as `Tokenizer::load`.
    pub fn without_tokenizer<E: Into<BoxError>>(
        files: &FileReader<'_, E>,
    ) -> Result<Self, TokenizerError> {
        Self::load(files, |_| None)
    }

    pub(super) fn load<E: Into<BoxError>>(
        files: &FileReader<'_, E>,
        id_of: impl Fn(&str) -> Option<u32>,
    ) -> Result<Self, TokenizerError> {
        let document: Document = read_json(files, GENERATION_CONFIG)?.unwrap_or_default();
        let source = EosSource::GenerationConfig;
        Ok(match document.eos_token_id {
            Some(OneOrMany::One(id)) => Self {
                ids: vec![id],
                source,
            },
            Some(OneOrMany::Many(ids)) => Self { ids, source },
            None => Self {
                ids: CUSTOMARY.iter().filter_map(|token| id_of(token)).collect(),
                source: EosSource::Customary,
            },
        })
    }

    /// A note for the user where the checkpoint does not say which ids end a text.
    pub fn notice(&self) -> Option<String> {
        match (self.source, self.ids.as_slice()) {
            (EosSource::GenerationConfig, _) => None,
            (EosSource::Customary, []) => Some(
                "generation_config.json names no eos_token_id, and the vocabulary has neither <|im_end|> nor \
                 <|endoftext|>: only the token limit ends the text"
                    .to_owned(),
            ),
            (EosSource::Customary, ids) => Some(format!(
                "generation_config.json names no eos_token_id: stopping at <|im_end|> and <|endoftext|>, as far as \
                 the vocabulary has them (ids {ids:?})"
            )),
        }
    }
}
