//! Image files to patches, as the official processor makes them (cargo feature `image`).
//!
//! [`decode`] gives the pixels of a file, [`resize`] those that the processor cuts into patches,
//! [`append_patches`] the patches. [`process`] does all of it for one image.

mod decode;
mod error;
mod gif;
mod jpeg;
mod orientation;
mod patches;
mod resize;
mod size;

pub use decode::{MAX_FILE_BYTES, MAX_PIXELS, decode, read_file};
#[cfg(feature = "video")]
pub(crate) use decode::{damaged, decoder_limits};
pub use error::{DecoderError, ImageError};
#[cfg(feature = "video")]
pub(crate) use gif::GifFrames;
pub use patches::{Level, append_patches};
pub use resize::{resize_float, resize_official, resize_pillow};
pub use size::{MAX_RATIO, PartLimits, model_card_size, processor_size};
#[cfg(feature = "video")]
pub(crate) use size::{check_size, model_card_frame_size, package_size};

use super::VisualFeatures;
use super::media::{MediaRecipe, VisualSettings};

/// A picture of three channels: red, green, blue.
#[derive(Debug, Clone, PartialEq)]
pub struct Picture<T> {
    /// Pixels of a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `[height, width, 3]`, row-major; from 0 to 255.
    pub values: Vec<T>,
}

/// A picture of 8 bits for each channel.
pub type RgbPicture = Picture<u8>;

/// An image on its way to patches, at each stage that a trace records.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ImageStages {
    /// After decoding (`mm.image.decoded`).
    pub decoded: RgbPicture,
    /// [`MediaRecipe::ModelCard`] only: after the package's own resize (`mm.image.pre`).
    pub pre: Option<RgbPicture>,
    /// After the processor's resize (`mm.image.resized`).
    pub resized: RgbPicture,
}

/// Decodes a file and resizes it.
///
/// `limits` are those of the part of the conversation; [`MediaRecipe::Transformers`] has none.
///
/// # Errors
/// Where the file is no image that can be decoded, or is too large, too thin or damaged.
pub fn stages(
    bytes: &[u8],
    settings: &VisualSettings,
    recipe: MediaRecipe,
    limits: &PartLimits,
) -> Result<ImageStages, ImageError> {
    let decoded = decode(bytes, recipe)?;
    let pre = match recipe {
        MediaRecipe::Transformers => None,
        MediaRecipe::ModelCard => Some(resize_by_model_card(&decoded, limits)?),
    };
    let resized = resize(pre.as_ref().unwrap_or(&decoded), settings)?;
    Ok(ImageStages {
        decoded,
        pre,
        resized,
    })
}

/// Decodes a file, resizes it, and appends its patches and its grid.
///
/// # Errors
/// As [`stages`].
pub fn process(
    bytes: &[u8],
    settings: &VisualSettings,
    recipe: MediaRecipe,
    limits: &PartLimits,
    features: &mut VisualFeatures,
) -> Result<(), ImageError> {
    append_patches(
        &[resized(bytes, settings, recipe, limits)?],
        settings,
        features,
    )
}

/// Decodes a file and resizes it, as [`stages`] does, and keeps nothing of what is on the way.
///
/// # Errors
/// As [`stages`].
pub fn resized(
    bytes: &[u8],
    settings: &VisualSettings,
    recipe: MediaRecipe,
    limits: &PartLimits,
) -> Result<RgbPicture, ImageError> {
    let decoded = decode(bytes, recipe)?;
    let pictured = match recipe {
        MediaRecipe::Transformers => decoded,
        MediaRecipe::ModelCard => resize_by_model_card(&decoded, limits)?,
    };
    resize(&pictured, settings)
}

/// The processor's own resize: to multiples of patch size × merge size, within the limits of the
/// settings.
///
/// # Errors
/// `Ratio` where one side is far longer than the other.
pub fn resize(picture: &RgbPicture, settings: &VisualSettings) -> Result<RgbPicture, ImageError> {
    let (width, height) = processor_size(picture.width, picture.height, settings)?;
    resize_official(picture, width, height)
}

/// What `qwen_omni_utils.fetch_image` does before the processor sees an image.
///
/// # Errors
/// `Ratio`, or `NoSize` where the limits of the part leave none.
pub fn resize_by_model_card(
    picture: &RgbPicture,
    limits: &PartLimits,
) -> Result<RgbPicture, ImageError> {
    let (width, height) = model_card_size(picture.width, picture.height, limits)?;
    Ok(resize_pillow(picture, width, height))
}

#[cfg(test)]
mod hostile;
#[cfg(test)]
mod tests;
