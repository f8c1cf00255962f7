//! Audio, images and videos of a prompt: what of the checkpoint's files they are processed by.

mod settings;
#[cfg(test)]
pub(crate) mod testing;

pub use settings::{AudioSettings, SettingsError, VideoSettings, VisualSettings};

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
