//! From what a person gives to what a model takes, and back.
//!
//! * [`Prompt`] and [`TextFrontend`]: prompts to token ids, token ids to text.
//! * [`text`]: tokenizer and chat template.
//! * [`MediaFeatures`]: what audio, images and videos become before an encoder takes them.

#[cfg(feature = "audio")]
pub mod audio;
mod error;
mod features;
#[cfg(feature = "image")]
pub mod image;
pub mod media;
mod prompt;
pub mod text;
#[cfg(feature = "video")]
pub mod video;

pub use error::PromptError;
pub use features::{AudioFeatures, MediaFeatures, VisualFeatures, audio_tokens};
#[cfg(feature = "text")]
pub use prompt::Chat;
pub(crate) use prompt::TextStream;
pub use prompt::{Continuation, Prompt, TextFrontend, TokenizedPrompt};
