//! Audio, images and videos of a prompt: where they are, what of the checkpoint's files they are
//! processed by, and what stands for them in the text.
//!
//! [`MediaOptions`] has the official processor's keywords; [`PlacedMedia`] says what became of each.

#[cfg(feature = "text")]
mod error;
#[cfg(feature = "text")]
mod parts;
#[cfg(feature = "text")]
mod placeholders;
#[cfg(feature = "text")]
mod process;
mod settings;
#[cfg(feature = "text")]
mod source;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

#[cfg(feature = "text")]
pub use error::MediaError;
#[cfg(feature = "text")]
pub use parts::{MediaKind, MediaPart};
#[cfg(feature = "text")]
pub(crate) use parts::{Parts, find_parts};
#[cfg(feature = "text")]
pub use placeholders::{AudioMarks, Placeholders, Replacement};
#[cfg(feature = "text")]
pub use process::{MediaOptions, PlacedMedia};
#[cfg(feature = "text")]
pub(crate) use process::{ProcessedMedia, process};
pub use settings::{AudioSettings, SettingsError, VideoSettings, VisualSettings};
#[cfg(feature = "text")]
pub(crate) use source::References;
#[cfg(feature = "text")]
pub use source::{FetchMedia, MediaSource};

/// Which of the two official ways from files to what encoders take. They differ in how pictures and
/// videos are decoded, sampled and resized.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum MediaRecipe {
    /// transformers loads files itself: `processor.apply_chat_template(..., tokenize=True)`.
    #[default]
    Transformers,
    /// As the model card shows it: `qwen_omni_utils.process_mm_info`, then the processor.
    ModelCard,
}
