//! Text to token ids and back, from the checkpoint's own files, as `transformers` does it.
//!
//! `tokenizer.json` is used where there is one. Otherwise the tokenizer is built as
//! `Qwen2Tokenizer` builds its own: `vocab.json` and `merges.txt`, NFC, Qwen2's split pattern,
//! bytes as characters, and the added tokens of `tokenizer_config.json` (or, in older checkpoints,
//! `added_tokens.json`). Token ids are what the files say; a file whose ids contradict another's is
//! refused.

mod bytes;
pub(crate) mod config;
mod model;
mod stream;

use tokenizers::{AddedToken, DecoderWrapper};

pub use model::QWEN2_SPLIT;
pub use stream::{SpecialTokens, StreamDecoder};

use super::files::{LONGEST_SPACE, read_file};
pub use super::{BoxError, EosIds, EosSource, FileReader, TokenizerError};
use config::{AddedEntry, TokenizerConfig};
use model::Parts;

/// The tokenizer of a checkpoint.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    size: u32,
    eos: EosIds,
}

impl Tokenizer {
    /// Loads the tokenizer. `files` reads one of the checkpoint's files by its name, with `None`
    /// where there is no such file; `tokenizer.json`, `vocab.json`, `merges.txt`,
    /// `tokenizer_config.json`, `special_tokens_map.json`, `added_tokens.json` and
    /// `generation_config.json` are requested.
    ///
    /// # Errors
    /// `Missing` without a vocabulary, `Unsupported` for anything but byte-level BPE, `Malformed`
    /// where a file is damaged or contradicts another, `Read` with what `files` returned.
    pub fn load<E: Into<BoxError>>(files: &FileReader<'_, E>) -> Result<Self, TokenizerError> {
        let config = TokenizerConfig::load(files)?;
        let parts = match read_file(files, model::TOKENIZER_JSON)? {
            Some(bytes) => Parts::from_tokenizer_json(&bytes)?,
            None => Parts::from_vocab_and_merges(files, &config)?,
        };
        let inner = assemble(parts, &config)?;
        let size = inner
            .get_vocab(true)
            .into_values()
            .max()
            .map_or(0, |highest| highest.saturating_add(1));
        let eos = EosIds::load(files, |token| inner.token_to_id(token))?;
        Ok(Self { inner, size, eos })
    }

    /// The text of a `tokenizer.json` that makes the same tokens.
    ///
    /// # Errors
    /// `Encode` where the `tokenizers` crate cannot write it.
    pub fn to_json(&self) -> Result<Vec<u8>, TokenizerError> {
        let mut json =
            serde_json::to_value(&self.inner).map_err(|e| TokenizerError::Encode(e.into()))?;
        leave_added_out(&mut json);
        serde_json::to_vec_pretty(&json).map_err(|e| TokenizerError::Encode(e.into()))
    }

    /// Token ids of a text. Special tokens written out in the text become their ids, and the tokens
    /// that the tokenizer's post-processor adds are added (none, for Qwen): `tokenizer(text)` in
    /// transformers.
    ///
    /// # Errors
    /// `LongSpace`, or `Encode` where the `tokenizers` crate refuses the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        self.ids(text, true)
    }

    /// As [`encode`](Self::encode), with nothing added: for a rendered chat template, which writes
    /// its special tokens itself, and for continuations.
    ///
    /// # Errors
    /// `LongSpace`, or `Encode` where the `tokenizers` crate refuses the text.
    pub fn encode_bare(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        self.ids(text, false)
    }

    fn ids(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, TokenizerError> {
        check_spaces(text)?;
        let encoding = self
            .inner
            .encode_fast(text, add_special_tokens)
            .map_err(TokenizerError::Encode)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of these ids. Bytes that are not UTF-8 become U+FFFD; ids without a token (a
    /// model's embedding has more rows than its tokenizer has tokens) add nothing, as in
    /// transformers.
    pub fn decode(&self, ids: &[u32], special: SpecialTokens) -> String {
        let bytes: Vec<u8> = ids
            .iter()
            .flat_map(|&id| self.shown_bytes(id, special))
            .collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// A decoder for ids that come one at a time.
    pub fn stream(&self, special: SpecialTokens) -> StreamDecoder<'_> {
        StreamDecoder::new(self, special)
    }

    /// The token as the vocabulary spells it ("Ġthe"), `None` for an id without a token.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The id of a token as the vocabulary spells it.
    pub fn id_of(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The bytes that a token stands for, which may be a part of a character.
    pub fn token_bytes(&self, id: u32) -> Option<Vec<u8>> {
        self.token(id).map(bytes::of_token)
    }

    /// Whether transformers leaves this token out when it skips special tokens.
    pub fn is_special(&self, id: u32) -> bool {
        self.token(id)
            .is_some_and(|token| self.inner.get_added_vocabulary().is_special_token(&token))
    }

    fn shown_bytes(&self, id: u32, special: SpecialTokens) -> Vec<u8> {
        if special == SpecialTokens::Skip && self.is_special(id) {
            return Vec::new();
        }
        self.token_bytes(id).unwrap_or_default()
    }

    /// The highest id plus one.
    pub fn vocab_size(&self) -> u32 {
        self.size
    }

    /// The ids that end a text, and where they were found.
    pub fn eos_ids(&self) -> &EosIds {
        &self.eos
    }

    /// Whether a model with this many embedding rows can take every id of this tokenizer.
    ///
    /// # Errors
    /// `LargerThanEmbedding`, or `OutsideEmbedding` for the ids of `generation_config.json`.
    pub fn check_against_embedding(&self, rows: u64) -> Result<(), TokenizerError> {
        if u64::from(self.size) > rows {
            let highest = self.size - 1;
            let token = self.token(highest).unwrap_or_default();
            return Err(TokenizerError::LargerThanEmbedding {
                highest,
                token,
                rows,
            });
        }
        check_ids(
            &self.eos.ids,
            rows,
            "eos_token_id in generation_config.json",
        )
    }
}

/// Whether every id has an embedding row. `origin` says in the error what the ids are, such as "the
/// prompt".
///
/// # Errors
/// `OutsideEmbedding` names the first that has none.
pub fn check_ids(ids: &[u32], rows: u64, origin: &str) -> Result<(), TokenizerError> {
    match ids.iter().position(|&id| u64::from(id) >= rows) {
        None => Ok(()),
        Some(position) => Err(TokenizerError::OutsideEmbedding {
            id: ids[position],
            position,
            origin: origin.to_owned(),
            rows,
        }),
    }
}

/// Added tokens stand in the vocabulary so that they get the ids that their files say. Readers
/// number them on from the vocabulary's end: where that gives the same ids they are left out of it,
/// as in the files that transformers writes.
fn leave_added_out(json: &mut serde_json::Value) {
    let id = |token: &serde_json::Value| token.get("id").and_then(serde_json::Value::as_u64);
    let added: Vec<(u64, String)> = json["added_tokens"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|token| Some((id(token)?, token.get("content")?.as_str()?.to_owned())))
        .collect();
    let Some(vocab) = json
        .pointer_mut("/model/vocab")
        .and_then(serde_json::Value::as_object_mut)
    else {
        return;
    };
    let mut ids: Vec<u64> = added.iter().map(|(id, _)| *id).collect();
    ids.sort_unstable();
    let first = (vocab.len() as u64).saturating_sub(ids.len() as u64);
    if ids.iter().copied().eq(first..vocab.len() as u64) {
        vocab.retain(|token, _| !added.iter().any(|(_, content)| content == token));
    }
}

fn check_spaces(text: &str) -> Result<(), TokenizerError> {
    let mut length = 0;
    for (place, character) in text.chars().chain(['.']).enumerate() {
        if character.is_whitespace() {
            length += 1;
        } else if length > LONGEST_SPACE {
            return Err(TokenizerError::LongSpace {
                length,
                position: place - length,
            });
        } else {
            length = 0;
        }
    }
    Ok(())
}

fn assemble(
    mut parts: Parts,
    config: &TokenizerConfig,
) -> Result<tokenizers::Tokenizer, TokenizerError> {
    let refuse = |error: BoxError| TokenizerError::malformed(parts.file, error.to_string());
    if !matches!(parts.decoder, DecoderWrapper::ByteLevel(_)) {
        let what = "a decoder other than ByteLevel".to_owned();
        return Err(TokenizerError::Unsupported {
            file: parts.file.to_owned(),
            what,
        });
    }
    // The configuration comes last, because its flags win in transformers.
    parts.added.extend(config.added.iter().cloned());
    parts.add_to_vocabulary()?;
    let named = config
        .named_special_tokens()
        .filter(|token| parts.vocab.contains_key(*token));
    let special: Vec<AddedToken> = named
        .filter(|token| !parts.added.iter().any(|entry| entry.content == **token))
        .map(|token| AddedToken::from(token, true))
        .collect();
    let mut inner = tokenizers::Tokenizer::new(model::bpe(
        parts.file,
        parts.vocab,
        parts.merges,
        &parts.options,
    )?);
    inner.with_normalizer(parts.normalizer).map_err(refuse)?;
    inner.with_pre_tokenizer(parts.pre_tokenizer);
    inner.with_post_processor(parts.post_processor);
    inner.with_decoder(Some(parts.decoder));
    inner
        .add_tokens(parts.added.iter().map(AddedEntry::token))
        .map_err(refuse)?;
    inner.add_special_tokens(special).map_err(refuse)?;
    inner.set_encode_special_tokens(config.split_special_tokens);
    Ok(inner)
}

#[cfg(test)]
mod tests;
