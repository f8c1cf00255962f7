//! The checkpoint's text files as a caller hands them over, and what can be wrong with them.

use std::error::Error as StdError;

/// An error of whoever reads the checkpoint's files.
pub type BoxError = Box<dyn StdError + Send + Sync>;

/// Reads one of the checkpoint's files by its name; `None` where there is no such file.
pub type FileReader<'a, E> = dyn Fn(&str) -> Result<Option<Vec<u8>>, E> + 'a;

/// Beyond this the split pattern's look-ahead takes more steps than the regular-expression engine
/// allows itself (a million), and the `tokenizers` crate would go on with wrong tokens and without
/// a word.
pub(super) const LONGEST_SPACE: usize = 200_000;

/// Why there is no tokenizer, or why it did not take its input.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// A file could not be read.
    #[error("{file}: cannot be read")]
    Read {
        /// The file's name.
        file: String,
        /// The reader's error.
        #[source]
        source: BoxError,
    },
    /// A file is not what its name promises.
    #[error("{file}: {problem}")]
    Malformed {
        /// The file's name.
        file: String,
        /// What was found and what was wanted.
        problem: String,
    },
    /// No file of the checkpoint holds a vocabulary.
    #[error(
        "the checkpoint has no tokenizer: neither tokenizer.json nor vocab.json with merges.txt ({missing} is missing); \
         copy them from the model's repository, or give token ids instead of text"
    )]
    Missing {
        /// The file that was looked for last.
        missing: String,
    },
    /// A tokenizer of a kind that this crate does not run.
    #[error(
        "{file}: {what} is not supported (byte-level BPE is, as in Qwen2, Qwen3 and Qwen3-Omni)"
    )]
    Unsupported {
        /// The file's name.
        file: String,
        /// The setting and its value.
        what: String,
    },
    /// The tokenizer names more tokens than the model has embedding rows.
    #[error(
        "the tokenizer has ids up to {highest} (token {token:?}) but the embedding has {rows} rows: \
         they belong to different models"
    )]
    LargerThanEmbedding {
        /// The highest id.
        highest: u32,
        /// Its token.
        token: String,
        /// Rows of the embedding.
        rows: u64,
    },
    /// An id has no embedding row.
    #[error(
        "token id {id} (number {position} of {origin}) is outside the embedding of {rows} rows"
    )]
    OutsideEmbedding {
        /// The id.
        id: u32,
        /// Its place, counted from 0.
        position: usize,
        /// What the ids are, such as "the prompt".
        origin: String,
        /// Rows of the embedding.
        rows: u64,
    },
    /// The regular-expression engine cannot split such a text.
    #[error(
        "the text has {length} white-space characters in a row (from character {position}); at most {LONGEST_SPACE} can \
         be tokenized: shorten them"
    )]
    LongSpace {
        /// White-space characters in a row.
        length: usize,
        /// The first of them, counted in characters from 0.
        position: usize,
    },
    /// The `tokenizers` crate refused.
    #[error("the text cannot be tokenized")]
    Encode(#[source] BoxError),
}

impl TokenizerError {
    pub(super) fn malformed(file: &str, problem: impl Into<String>) -> Self {
        Self::Malformed {
            file: file.to_owned(),
            problem: problem.into(),
        }
    }
}

/// Reads one of the checkpoint's files through the caller's function.
pub(super) fn read_file<E: Into<BoxError>>(
    files: &FileReader<'_, E>,
    name: &str,
) -> Result<Option<Vec<u8>>, TokenizerError> {
    files(name).map_err(|error| TokenizerError::Read {
        file: name.to_owned(),
        source: error.into(),
    })
}

/// A JSON file of the checkpoint, `None` where there is none.
pub(crate) fn read_json<T: serde::de::DeserializeOwned, E: Into<BoxError>>(
    files: &FileReader<'_, E>,
    name: &str,
) -> Result<Option<T>, TokenizerError> {
    let Some(bytes) = read_file(files, name)? else {
        return Ok(None);
    };
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|error| TokenizerError::malformed(name, error.to_string()))
}
