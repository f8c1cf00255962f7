//! Why a text is not spoken.

/// Why a text is not spoken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SpeakError {
    /// The beginning of an answer is three tokens to the talker.
    #[error("the tokenizer makes {seen} tokens of a line end; the talker's prompt takes one")]
    LineEnd {
        /// Tokens.
        seen: usize,
    },
}
