//! Why a text cannot be spoken.

/// Why a text cannot be spoken.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SpeechError {
    /// The model does not speak.
    #[error("its model does not speak: it has no talker")]
    NoTalker,
    /// No speaker has this name.
    #[error("there is no speaker {seen:?}; the checkpoint has {known}")]
    Speaker {
        /// The name.
        seen: String,
        /// All names, with commas between them.
        known: String,
    },
    /// Nothing was asked.
    #[error("the prompt has no turn of the user, which the talker's prompt is made of")]
    NoUserTurn,
    /// The prompt does not end in the model's own turn.
    #[error("the prompt has no turn of the assistant, whose text is what is spoken")]
    NoAssistantTurn,
    /// The answer ended at once.
    #[error("the answer has no text to speak: it ended with its first token")]
    NoText,
    /// The first code was the end marker, or the limit was one code.
    #[error("the talker ended before its first frame")]
    NoFrame,
    /// A medium of the prompt is not in a turn of the user, so that the talker's positions would go
    /// by the wrong one.
    #[error(
        "there are {seen} tokens of media in turns of the user, {wanted} in the prompt: media of \
         other turns cannot be spoken about"
    )]
    DroppedMedia {
        /// Tokens of media in turns of the user.
        seen: usize,
        /// In the whole prompt.
        wanted: usize,
    },
    /// The states of media are not of this prompt.
    #[error("{seen} states of media were given, the prompt has {wanted} tokens of media")]
    States {
        /// States given.
        seen: usize,
        /// Tokens of media in turns of the user.
        wanted: usize,
    },
}
