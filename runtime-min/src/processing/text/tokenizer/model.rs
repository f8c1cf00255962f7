//! The byte-level BPE model, from `tokenizer.json` or from `vocab.json` and `merges.txt`.

use std::collections::HashMap;

use serde::Deserialize;
use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::normalizers::unicode::NFC;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{
    DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper,
    SplitDelimiterBehavior,
};

use super::config::{AddedEntry, TOKENIZER_CONFIG, TokenizerConfig};
use super::{BoxError, FileReader, TokenizerError, read_file};

pub(super) const TOKENIZER_JSON: &str = "tokenizer.json";
const VOCAB: &str = "vocab.json";
const MERGES: &str = "merges.txt";

/// How Qwen2's tokenizer splits a text: `PRETOKENIZE_REGEX` of transformers'
/// `tokenization_qwen2.py`.
pub const QWEN2_SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Everything a tokenizer is put together from.
pub(super) struct Parts {
    /// Named in errors.
    pub(super) file: &'static str,
    pub(super) vocab: HashMap<String, u32>,
    pub(super) merges: Merges,
    pub(super) options: Options,
    pub(super) added: Vec<AddedEntry>,
    pub(super) normalizer: Option<NormalizerWrapper>,
    pub(super) pre_tokenizer: Option<PreTokenizerWrapper>,
    pub(super) post_processor: Option<PostProcessorWrapper>,
    pub(super) decoder: DecoderWrapper,
}

/// The settings of a BPE model, as `tokenizer.json` names them.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct Options {
    dropout: Option<f32>,
    unk_token: Option<String>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    fuse_unk: bool,
    byte_fallback: bool,
    ignore_merges: bool,
}

#[derive(Deserialize)]
struct TokenizerJson {
    #[serde(default)]
    added_tokens: Vec<AddedEntry>,
    normalizer: Option<NormalizerWrapper>,
    pre_tokenizer: Option<PreTokenizerWrapper>,
    post_processor: Option<PostProcessorWrapper>,
    decoder: Option<DecoderWrapper>,
    model: ModelJson,
}

#[derive(Deserialize)]
struct ModelJson {
    #[serde(rename = "type")]
    kind: Option<String>,
    vocab: HashMap<String, u32>,
    merges: Vec<MergeJson>,
    #[serde(flatten)]
    options: Options,
}

/// Newer files write a pair, older ones a line.
#[derive(Deserialize)]
#[serde(untagged)]
enum MergeJson {
    Pair((String, String)),
    Line(String),
}

#[derive(Deserialize)]
struct KindOnly {
    model: KindField,
}

#[derive(Deserialize)]
struct KindField {
    #[serde(rename = "type")]
    kind: Option<String>,
}

/// A file without which there is no tokenizer.
fn required<E: Into<BoxError>>(
    files: &FileReader<'_, E>,
    name: &str,
) -> Result<Vec<u8>, TokenizerError> {
    read_file(files, name)?.ok_or_else(|| TokenizerError::Missing {
        missing: name.to_owned(),
    })
}

impl Parts {
    /// `truncation` and `padding` are left out on purpose: transformers resets them before every
    /// call.
    pub(super) fn from_tokenizer_json(bytes: &[u8]) -> Result<Self, TokenizerError> {
        let file = TOKENIZER_JSON;
        let json: TokenizerJson =
            serde_json::from_slice(bytes).map_err(|error| tokenizer_json_error(bytes, &error))?;
        check_kind(json.model.kind.as_deref())?;
        let decoder = json
            .decoder
            .ok_or_else(|| unsupported(file, "a tokenizer without a decoder"))?;
        Ok(Self {
            file,
            vocab: json.model.vocab,
            merges: json
                .model
                .merges
                .into_iter()
                .map(merge_of_json)
                .collect::<Result<_, _>>()?,
            options: json.model.options,
            added: json.added_tokens,
            normalizer: json.normalizer,
            pre_tokenizer: json.pre_tokenizer,
            post_processor: json.post_processor,
            decoder,
        })
    }

    /// As transformers' `Qwen2Tokenizer` puts its tokenizer together.
    pub(super) fn from_vocab_and_merges<E: Into<BoxError>>(
        files: &FileReader<'_, E>,
        config: &TokenizerConfig,
    ) -> Result<Self, TokenizerError> {
        let (vocab, merges) = (required(files, VOCAB)?, required(files, MERGES)?);
        check_class(config.class.as_deref())?;
        let vocab = serde_json::from_slice(&vocab)
            .map_err(|error| TokenizerError::malformed(VOCAB, error.to_string()))?;
        Ok(Self {
            file: VOCAB,
            vocab,
            merges: merges_of_text(&merges)?,
            options: Options::default(),
            added: Vec::new(),
            normalizer: Some(NFC.into()),
            pre_tokenizer: Some(qwen2_pre_tokenizer(config.add_prefix_space)?),
            post_processor: None,
            decoder: ByteLevel::default().into(),
        })
    }

    /// Enters the added tokens into the vocabulary, so that each gets the id its file says: the
    /// `tokenizers` crate would number them on, whatever the file says.
    pub(super) fn add_to_vocabulary(&mut self) -> Result<(), TokenizerError> {
        let mut by_id = tokens_by_id(self.file, &self.vocab)?;
        for AddedEntry { id, content, .. } in &self.added {
            let (seen_id, seen_content) = (self.vocab.get(content).copied(), by_id.get(id));
            if seen_id.is_some_and(|seen| seen != *id)
                || seen_content.is_some_and(|seen| seen != content)
            {
                return Err(contradiction(
                    self.file,
                    *id,
                    content,
                    seen_id,
                    seen_content,
                ));
            }
            by_id.insert(*id, content.clone());
            self.vocab.insert(content.clone(), *id);
        }
        Ok(())
    }
}

fn tokens_by_id(
    file: &str,
    vocab: &HashMap<String, u32>,
) -> Result<HashMap<u32, String>, TokenizerError> {
    let mut by_id = HashMap::with_capacity(vocab.len());
    for (token, &id) in vocab {
        if let Some(other) = by_id.insert(id, token.clone()) {
            let mut both = [&other, token];
            both.sort();
            return Err(TokenizerError::malformed(
                file,
                format!("id {id} names two tokens: {:?} and {:?}", both[0], both[1]),
            ));
        }
    }
    Ok(by_id)
}

fn contradiction(
    file: &str,
    id: u32,
    content: &str,
    seen_id: Option<u32>,
    seen_content: Option<&String>,
) -> TokenizerError {
    let seen = match (seen_id, seen_content) {
        (Some(seen_id), _) if seen_id != id => {
            format!("the vocabulary gives that token id {seen_id}")
        }
        (_, Some(seen_content)) => format!("the vocabulary gives that id to {seen_content:?}"),
        _ => "the vocabulary says otherwise".to_owned(),
    };
    TokenizerError::malformed(
        file,
        format!(
            "the added token {content:?} has id {id} in {TOKENIZER_CONFIG} or in added_tokens, but {seen}: \
             the files belong to different models"
        ),
    )
}

/// A BPE model whose merges were checked first: the `tokenizers` crate panics on some bad ones.
pub(super) fn bpe(
    file: &str,
    vocab: HashMap<String, u32>,
    merges: Merges,
    options: &Options,
) -> Result<BPE, TokenizerError> {
    options.check(file)?;
    check_merges(file, &vocab, &merges)?;
    let mut builder = BPE::builder()
        .vocab_and_merges(vocab.into_iter().collect::<Vocab>(), merges)
        .fuse_unk(options.fuse_unk)
        .byte_fallback(options.byte_fallback)
        .ignore_merges(options.ignore_merges);
    if let Some(token) = &options.unk_token {
        builder = builder.unk_token(token.clone());
    }
    builder
        .build()
        .map_err(|error| TokenizerError::malformed(file, error.to_string()))
}

impl Options {
    fn check(&self, file: &str) -> Result<(), TokenizerError> {
        if self.dropout.is_some_and(|dropout| dropout != 0.0) {
            return Err(unsupported(
                file,
                "model.dropout, which makes tokens random,",
            ));
        }
        let marks = [&self.continuing_subword_prefix, &self.end_of_word_suffix];
        if marks.into_iter().flatten().any(|mark| !mark.is_empty()) {
            return Err(unsupported(
                file,
                "a model with continuing_subword_prefix or end_of_word_suffix",
            ));
        }
        Ok(())
    }
}

fn check_merges(
    file: &str,
    vocab: &HashMap<String, u32>,
    merges: &Merges,
) -> Result<(), TokenizerError> {
    let mut whole = String::new();
    for (number, (left, right)) in merges.iter().enumerate() {
        whole.clear();
        whole.push_str(left);
        whole.push_str(right);
        if let Some(missing) = [left, right, &whole]
            .into_iter()
            .find(|token| !vocab.contains_key(*token))
        {
            let place = number + 1;
            let problem = format!(
                "merge {place} ({left:?} {right:?}) needs the token {missing:?}, which has no id"
            );
            return Err(TokenizerError::malformed(file, problem));
        }
    }
    Ok(())
}

fn merge_of_json(merge: MergeJson) -> Result<(String, String), TokenizerError> {
    match merge {
        MergeJson::Pair(pair) => Ok(pair),
        MergeJson::Line(line) => pair_of_line(&line).ok_or_else(|| {
            TokenizerError::malformed(TOKENIZER_JSON, format!("the merge {line:?} is not a pair"))
        }),
    }
}

fn merges_of_text(bytes: &[u8]) -> Result<Merges, TokenizerError> {
    let text = std::str::from_utf8(bytes)
        .map_err(|error| TokenizerError::malformed(MERGES, error.to_string()))?;
    let header = |(number, line): &(usize, &str)| *number == 0 && line.starts_with("#version:");
    text.lines()
        .enumerate()
        .filter(|entry| !header(entry) && !entry.1.trim().is_empty())
        .map(|(number, line)| {
            let place = number + 1;
            pair_of_line(line.trim()).ok_or_else(|| {
                TokenizerError::malformed(
                    MERGES,
                    format!("line {place}: {line:?} is not a pair of tokens"),
                )
            })
        })
        .collect()
}

fn pair_of_line(line: &str) -> Option<(String, String)> {
    let (left, right) = line.split_once(' ')?;
    (!left.is_empty() && !right.is_empty() && !right.contains(' '))
        .then(|| (left.to_owned(), right.to_owned()))
}

fn qwen2_pre_tokenizer(add_prefix_space: bool) -> Result<PreTokenizerWrapper, TokenizerError> {
    let pattern = SplitPattern::Regex(QWEN2_SPLIT.to_owned());
    let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false)
        .map_err(TokenizerError::Encode)?;
    let bytes = ByteLevel::default()
        .add_prefix_space(add_prefix_space)
        .use_regex(false);
    Ok(Sequence::new(vec![split.into(), bytes.into()]).into())
}

fn check_kind(kind: Option<&str>) -> Result<(), TokenizerError> {
    match kind {
        None | Some("BPE") => Ok(()),
        Some(other) => Err(unsupported(
            TOKENIZER_JSON,
            &format!("model type {other:?}"),
        )),
    }
}

/// Another class splits text differently, which nobody would notice.
fn check_class(class: Option<&str>) -> Result<(), TokenizerError> {
    match class {
        None
        | Some("Qwen2Tokenizer" | "Qwen2TokenizerFast" | "Qwen3Tokenizer" | "Qwen3TokenizerFast") => {
            Ok(())
        }
        Some(other) => {
            let what = format!("tokenizer_class {other:?} without a tokenizer.json");
            Err(unsupported(TOKENIZER_CONFIG, &what))
        }
    }
}

/// A model of another type has other fields: name the type, not the first field that differs.
fn tokenizer_json_error(bytes: &[u8], error: &serde_json::Error) -> TokenizerError {
    let kind = serde_json::from_slice::<KindOnly>(bytes)
        .ok()
        .and_then(|document| document.model.kind);
    match check_kind(kind.as_deref()) {
        Err(unsupported) => unsupported,
        Ok(()) => TokenizerError::malformed(TOKENIZER_JSON, error.to_string()),
    }
}

fn unsupported(file: &str, what: &str) -> TokenizerError {
    TokenizerError::Unsupported {
        file: file.to_owned(),
        what: what.to_owned(),
    }
}
