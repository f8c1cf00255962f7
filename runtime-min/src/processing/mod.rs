//! From what a person gives to what a model takes, and back.
//!
//! * [`Prompt`] and [`TextFrontend`]: prompts to token ids, token ids to text.
//! * [`text`]: tokenizer and chat template.

mod error;
mod prompt;
pub mod text;

pub use error::PromptError;
#[cfg(feature = "text")]
pub use prompt::Chat;
pub(crate) use prompt::TextStream;
pub use prompt::{Continuation, Prompt, TextFrontend, TokenizedPrompt};
