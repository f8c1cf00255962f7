//! Audio, images and videos of a prompt: what of the checkpoint's files they are processed by.

mod settings;
#[cfg(test)]
pub(crate) mod testing;

pub use settings::{AudioSettings, SettingsError, VideoSettings, VisualSettings};
