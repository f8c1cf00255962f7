//! Why a prompt cannot be made token ids.

#[cfg(feature = "text")]
use super::media::MediaError;
#[cfg(feature = "text")]
use super::text::chat_template::ChatTemplateError;
use super::text::{EmptyStopString, TokenizerError};

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
    /// Audio, images or videos cannot become a part of it.
    #[cfg(feature = "text")]
    #[error(transparent)]
    Media(#[from] MediaError),
    /// There is nothing to rank.
    #[error("the continuation to rank has no tokens")]
    EmptyContinuation,
    /// A stop string is empty.
    #[error(transparent)]
    StopString(#[from] EmptyStopString),
    /// Nothing turns tokens into text.
    #[error("stop strings need a tokenizer: without one there is no text to find them in")]
    StopStringsWithoutText,
}
