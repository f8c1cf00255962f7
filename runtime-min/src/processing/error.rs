//! Why a prompt cannot be made token ids.

use super::text::TokenizerError;
#[cfg(feature = "text")]
use super::text::chat_template::ChatTemplateError;

/// Why a prompt cannot be made token ids.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PromptError {
    /// Tokenizer files are missing or damaged, or the text cannot be tokenized.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The chat template is missing or damaged, or does not take the chat.
    #[cfg(feature = "text")]
    #[error(transparent)]
    ChatTemplate(#[from] ChatTemplateError),
    /// A chat has more than text in it, which would not be seen.
    #[error("part {part} of message {message} (both from 0) is {kind}: only text is supported yet")]
    Media {
        /// Which message, from 0.
        message: usize,
        /// Which part of its content, from 0.
        part: usize,
        /// What the part is.
        kind: String,
    },
    /// There is nothing to rank.
    #[error("the continuation to rank has no tokens")]
    EmptyContinuation,
}
