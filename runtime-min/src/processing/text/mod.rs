//! Text: the checkpoint's own tokenizer and chat template (cargo feature `text`), and the ids that
//! end a text, and the strings that do.

#[cfg(feature = "text")]
pub mod chat_template;
mod eos;
mod files;
mod stop_strings;
#[cfg(feature = "text")]
pub mod tokenizer;

pub use eos::{EosIds, EosSource};
#[cfg(feature = "text")]
pub(crate) use files::read_json;
pub use files::{BoxError, FileReader, TokenizerError};
pub use stop_strings::{EmptyStopString, ReleasedText, StopStrings};
