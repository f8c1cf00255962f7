//! Which errors of the model are the request's own fault.

use segpack_formats::FormatError;
use segpack_runtime_min::RunError;
use segpack_runtime_min::generate::GenerateError;
use segpack_runtime_min::processing::PromptError;
use segpack_runtime_min::processing::media::MediaError;
use segpack_runtime_min::processing::text::TokenizerError;
use segpack_runtime_min::processing::text::chat_template::ChatTemplateError;
use segpack_runtime_min::session::SessionError;

use super::api::ApiError;
use crate::causes::chain;

/// Why a request is not answered.
#[derive(Debug)]
pub(super) enum Trouble {
    /// Nobody waits for the answer.
    Gone,
    /// The request is at fault.
    Request(ApiError),
    /// The model failed, or was stopped.
    Model(SessionError),
}

impl Trouble {
    /// Whether the model was stopped, rather than failed.
    pub(super) fn is_stop(&self) -> bool {
        let Self::Model(error) = self else {
            return false;
        };
        matches!(
            error,
            SessionError::Run(RunError::Format(FormatError::Interrupted))
                | SessionError::Prompt(PromptError::Media(MediaError::Format(
                    FormatError::Interrupted
                )))
        )
    }
}

impl From<SessionError> for Trouble {
    fn from(error: SessionError) -> Self {
        match refusal(&error) {
            Some(refusal) => Self::Request(refusal),
            None => Self::Model(error),
        }
    }
}

impl From<RunError> for Trouble {
    fn from(error: RunError) -> Self {
        SessionError::from(error).into()
    }
}

impl From<PromptError> for Trouble {
    fn from(error: PromptError) -> Self {
        SessionError::from(error).into()
    }
}

/// What the client is told, where it can do something about it.
fn refusal(error: &SessionError) -> Option<ApiError> {
    let is_its_own = match error {
        SessionError::Prompt(error) => is_of_prompt(error),
        SessionError::Generate(error) => match error {
            GenerateError::EmptyPrompt
            | GenerateError::PromptTooLong { .. }
            | GenerateError::OutsideVocabulary { .. } => true,
            GenerateError::Model(_)
            | GenerateError::LogitCount { .. }
            | GenerateError::Logits { .. } => false,
        },
        SessionError::Sampling(_) => true,
        SessionError::Run(RunError::Media(_)) => true,
        SessionError::Run(RunError::Memory { .. }) => {
            let message = format!("the server's memory does not hold this request: {error}");
            return Some(ApiError::coded(400, "not_enough_memory", message));
        }
        _ => false,
    };
    is_its_own.then(|| ApiError::request(chain(error)))
}

fn is_of_prompt(error: &PromptError) -> bool {
    match error {
        PromptError::Tokenizer(error) => is_of_text(error),
        PromptError::ChatTemplate(error) => match error {
            ChatTemplateError::Messages { .. }
            | ChatTemplateError::Render { .. }
            | ChatTemplateError::Missing
            | ChatTemplateError::Endless { .. } => true,
            ChatTemplateError::File(_)
            | ChatTemplateError::NoDefault { .. }
            | ChatTemplateError::Syntax { .. }
            | ChatTemplateError::TooLong { .. }
            | ChatTemplateError::Thread(_) => false,
        },
        PromptError::Media(error) => !matches!(error, MediaError::Format(_) | MediaError::Model(_)),
        PromptError::EmptyContinuation => false,
        _ => false,
    }
}

/// A missing tokenizer is no fault of the request, but token ids would do.
fn is_of_text(error: &TokenizerError) -> bool {
    matches!(
        error,
        TokenizerError::Missing { .. }
            | TokenizerError::LongSpace { .. }
            | TokenizerError::Encode(_)
    )
}
