//! The size that a picture gets before it is cut into patches.

use super::{ImageError, MAX_PIXELS};
use crate::processing::media::VisualSettings;

/// How many times longer than the other one side may be.
pub const MAX_RATIO: u32 = 200;

/// Compares the number of pixels with the limit, before anything is allocated.
pub(crate) fn check_size(width: u64, height: u64) -> Result<(), ImageError> {
    match width.saturating_mul(height) {
        0 => Err(ImageError::Empty { width, height }),
        n if n > MAX_PIXELS => Err(ImageError::TooLarge { width, height }),
        _ => Ok(()),
    }
}

/// Sides of a picture that `qwen_omni_utils` has resized are multiples of it.
const MODEL_CARD_FACTOR: usize = 28;
/// The same of a picture in a list of frames: the package doubles the factor on the way there.
#[cfg(feature = "video")]
const MODEL_CARD_FRAME_FACTOR: usize = 56;
/// Pixels of an image there, in squares of the factor, where its part of the conversation says
/// nothing.
const MODEL_CARD_SQUARES: [u64; 2] = [4, 16_384];

/// What a part of a conversation says about the size of its image or video. Only
/// [`MediaRecipe::ModelCard`](crate::processing::media::MediaRecipe::ModelCard) looks at it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PartLimits {
    /// Fewest pixels (`min_pixels`).
    pub min_pixels: Option<u64>,
    /// Most pixels (`max_pixels`).
    pub max_pixels: Option<u64>,
    /// Width and height to come close to (`resized_width`, `resized_height`).
    pub resized: Option<(usize, usize)>,
}

/// Width and height after the processor's resize (`smart_resize` of transformers).
///
/// # Errors
/// `Ratio` where one side is more than [`MAX_RATIO`] times the other, `Empty` where one is 0.
#[expect(clippy::cast_precision_loss, reason = "as Python computes it")]
pub fn processor_size(
    width: usize,
    height: usize,
    settings: &VisualSettings,
) -> Result<(usize, usize), ImageError> {
    let factor = settings.patch_size * settings.merge_size;
    check_ratio(width, height)?;
    let rounded = [width, height].map(|side| round(side, factor));
    let [min, max] = [settings.min_pixels, settings.max_pixels];
    // a side of 0 stays until here: 0 pixels are fewer than the minimum
    let [width, height] = match pixels(rounded) {
        n if n > max => shrunk(width, height, factor, max as f64).map(|side| side.max(factor)),
        n if n < min => grown(width, height, factor, min),
        _ => rounded,
    };
    check_size(width as u64, height as u64)?;
    Ok((width, height))
}

/// Width and height of an image after the package's resize (`smart_resize` of `qwen_omni_utils`).
///
/// # Errors
/// `Ratio` where one side is more than [`MAX_RATIO`] times the other, `Empty` where one is 0,
/// `NoSize` where the limits leave none.
pub fn model_card_size(
    width: usize,
    height: usize,
    limits: &PartLimits,
) -> Result<(usize, usize), ImageError> {
    model_card_size_of(MODEL_CARD_FACTOR, (width, height), limits)
}

/// As [`model_card_size`], of a picture in a list that is a video.
///
/// # Errors
/// As [`model_card_size`].
#[cfg(feature = "video")]
pub(crate) fn model_card_frame_size(
    width: usize,
    height: usize,
    limits: &PartLimits,
) -> Result<(usize, usize), ImageError> {
    model_card_size_of(MODEL_CARD_FRAME_FACTOR, (width, height), limits)
}

#[expect(clippy::cast_precision_loss, reason = "as Python computes it")]
fn model_card_size_of(
    factor: usize,
    size: (usize, usize),
    limits: &PartLimits,
) -> Result<(usize, usize), ImageError> {
    let size = limits.resized.unwrap_or(size);
    // a size that is asked for is not compared with the limits of the part
    let requested = limits.resized.map_or(*limits, |_| PartLimits::default());
    let square = (factor * factor) as u64;
    let [min, max] = MODEL_CARD_SQUARES.map(|squares| squares * square);
    let min = requested.min_pixels.unwrap_or(min);
    let max = requested.max_pixels.unwrap_or(max);
    package_size_of(factor, size, min, max as f64)
}

/// The package's `smart_resize`, with both limits given; for videos the upper one is a quotient.
#[cfg(feature = "video")]
pub(crate) fn package_size(
    width: usize,
    height: usize,
    min_pixels: u64,
    max_pixels: f64,
) -> Result<(usize, usize), ImageError> {
    package_size_of(MODEL_CARD_FACTOR, (width, height), min_pixels, max_pixels)
}

#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "numbers of pixels"
)]
fn package_size_of(
    factor: usize,
    (width, height): (usize, usize),
    min_pixels: u64,
    max_pixels: f64,
) -> Result<(usize, usize), ImageError> {
    check_ratio(width, height)?;
    let rounded = [width, height].map(|side| round(side, factor).max(factor));
    let size = match pixels(rounded) {
        n if n as f64 > max_pixels => shrunk(width, height, factor, max_pixels),
        n if n < min_pixels => grown(width, height, factor, min_pixels),
        _ => rounded,
    };
    if min_pixels as f64 > max_pixels || size.contains(&0) {
        return Err(ImageError::NoSize {
            width,
            height,
            factor,
            min_pixels,
            max_pixels: max_pixels as u64,
        });
    }
    check_size(size[0] as u64, size[1] as u64)?;
    Ok((size[0], size[1]))
}

fn check_ratio(width: usize, height: usize) -> Result<(), ImageError> {
    if width == 0 || height == 0 {
        return Err(ImageError::Empty {
            width: width as u64,
            height: height as u64,
        });
    }
    if width.max(height) > width.min(height).saturating_mul(MAX_RATIO as usize) {
        return Err(ImageError::Ratio { width, height });
    }
    Ok(())
}

fn pixels([width, height]: [usize; 2]) -> u64 {
    (width as u64).saturating_mul(height as u64)
}

/// The nearest multiple; of two that are as near, that of the even number.
fn round(side: usize, factor: usize) -> usize {
    let double = side % factor * 2;
    let below = side / factor;
    let up = double > factor || (double == factor && below % 2 == 1);
    (below + usize::from(up)) * factor
}

/// As many pixels as are allowed, rounded down.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "as Python computes it; sides are far below 2^53"
)]
fn shrunk(width: usize, height: usize, factor: usize, max: f64) -> [usize; 2] {
    let beta = (pixels([width, height]) as f64 / max).sqrt();
    [width, height].map(|side| (side as f64 / beta / factor as f64).floor() as usize * factor)
}

/// As many pixels as are needed, rounded up.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "as Python computes it; sides are far below 2^53"
)]
fn grown(width: usize, height: usize, factor: usize, min: u64) -> [usize; 2] {
    let beta = (min as f64 / pixels([width, height]) as f64).sqrt();
    [width, height].map(|side| (side as f64 * beta / factor as f64).ceil() as usize * factor)
}

#[cfg(all(test, feature = "video"))]
mod tests {
    use super::*;

    /// Sizes that `fetch_image(…, image_patch_size=28)` of `qwen_omni_utils` 0.0.9 gives: what a list
    /// of frames is resized to before it is a video.
    #[test]
    fn pictures_of_a_list_become_multiples_of_56() {
        let size = |width, height, limits| model_card_frame_size(width, height, &limits).unwrap();
        assert_eq!(size(150, 100, PartLimits::default()), (168, 112));
        let small = PartLimits {
            min_pixels: Some(3136),
            max_pixels: Some(12_544),
            resized: None,
        };
        assert_eq!(size(150, 100, small), (112, 56));
        assert_eq!(
            model_card_size(150, 100, &PartLimits::default()).unwrap(),
            (140, 112)
        );
    }
}
