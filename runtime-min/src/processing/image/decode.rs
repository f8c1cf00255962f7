//! From the bytes of a file to red, green and blue, 8 bits each.
//!
//! As torchcodec's `decode_image` (transformers) or Pillow (model card). Where Pillow and torchcodec
//! decode a file to other colours, the recipe says which of them is followed; formats that
//! torchcodec does not know (BMP, TIFF) become what Pillow makes of them.

use std::fs::File;
use std::io::{Cursor, Read};
use std::path::Path;

use ::image::metadata::Orientation;
use ::image::{ColorType, ImageDecoder, ImageFormat, ImageReader, Limits};

use super::orientation::oriented;
use super::size::check_size;
use super::{ImageError, Picture, RgbPicture, gif, jpeg};
use crate::processing::media::MediaRecipe;

/// Most pixels of an image: Pillow refuses more, too.
pub const MAX_PIXELS: u64 = 178_956_970;
/// Longest file of an image.
pub const MAX_FILE_BYTES: u64 = 1 << 30;

/// Bytes of a pixel of the largest kind: four channels of 16 bits.
const MAX_PIXEL_BYTES: u64 = 8;
/// Where a PNG file has its colour type, and the type of red, green, blue and alpha.
const PNG_COLOR_TYPE: (usize, u8) = (25, 6);

/// The bytes of an image file. A file that is no image is refused from its first bytes, however
/// long it is.
///
/// # Errors
/// Where it cannot be read, is no image, or is longer than [`MAX_FILE_BYTES`].
pub fn read_file(path: &Path) -> Result<Vec<u8>, ImageError> {
    let mut file = File::open(path).map_err(ImageError::Read)?;
    let mut bytes = Vec::new();
    let mut head = (&mut file).take(64);
    head.read_to_end(&mut bytes).map_err(ImageError::Read)?;
    format_of(&bytes)?;
    let mut rest = file.take(MAX_FILE_BYTES - bytes.len() as u64 + 1);
    rest.read_to_end(&mut bytes).map_err(ImageError::Read)?;
    match bytes.len() as u64 > MAX_FILE_BYTES {
        true => Err(ImageError::TooLong),
        false => Ok(bytes),
    }
}

/// Decodes a file: the first frame, if it has several.
///
/// # Errors
/// Where it is no image, of a format or kind that is not supported, damaged, or has more than
/// [`MAX_PIXELS`].
pub fn decode(bytes: &[u8], recipe: MediaRecipe) -> Result<RgbPicture, ImageError> {
    match format_of(bytes)? {
        ImageFormat::Jpeg => jpeg::decode(bytes, recipe),
        ImageFormat::Gif => gif::first_frame(bytes, recipe),
        format => decode_raster(bytes, format, recipe),
    }
}

/// The format that the first bytes are of.
pub(super) fn format_of(bytes: &[u8]) -> Result<ImageFormat, ImageError> {
    use ImageFormat::{Bmp, Gif, Jpeg, Png, Tiff, WebP};
    let brand = bytes.get(4..12).unwrap_or_default();
    if brand.starts_with(b"ftyphe") || brand.starts_with(b"ftypmif1") {
        return Err(ImageError::Format { format: "HEIC" });
    }
    match ::image::guess_format(bytes) {
        Ok(format @ (Bmp | Gif | Jpeg | Png | Tiff | WebP)) => Ok(format),
        Ok(ImageFormat::Avif) => Err(ImageError::Format { format: "AVIF" }),
        _ => Err(ImageError::NotImage {
            seen: match bytes.get(..8.min(bytes.len())) {
                None | Some([]) => "nothing: it is empty".to_owned(),
                Some(head) => head.escape_ascii().to_string(),
            },
        }),
    }
}

/// Limits for the decoders of the crate `image`.
pub(crate) fn decoder_limits() -> Limits {
    let mut limits = Limits::default();
    limits.max_alloc = Some(MAX_PIXELS * MAX_PIXEL_BYTES * 2);
    limits
}

pub(super) fn name_of(format: ImageFormat) -> &'static str {
    match format {
        ImageFormat::Png => "PNG",
        ImageFormat::WebP => "WebP",
        ImageFormat::Bmp => "BMP",
        ImageFormat::Tiff => "TIFF",
        ImageFormat::Gif => "GIF",
        ImageFormat::Jpeg => "JPEG",
        _ => "image",
    }
}

/// The error for what a decoder of the crate `image` says.
pub(crate) fn damaged(format: ImageFormat, bytes: usize, error: ::image::ImageError) -> ImageError {
    let format = name_of(format);
    let ends = |e: &std::io::Error| e.kind() == std::io::ErrorKind::UnexpectedEof;
    match error {
        ::image::ImageError::IoError(e) if ends(&e) => ImageError::Truncated { format, bytes },
        error => ImageError::Damaged {
            format,
            source: Box::new(error),
        },
    }
}

fn decode_raster(
    bytes: &[u8],
    format: ImageFormat,
    recipe: MediaRecipe,
) -> Result<RgbPicture, ImageError> {
    let fail = |error| damaged(format, bytes.len(), error);
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    reader.limits(decoder_limits());
    let mut decoder = reader.into_decoder().map_err(fail)?;
    let (width, height) = decoder.dimensions();
    check_size(width.into(), height.into())?;

    // torchcodec does not look at the EXIF data of WebP files
    let orientation = match recipe {
        MediaRecipe::Transformers if format != ImageFormat::WebP => {
            decoder.orientation().map_err(fail)?
        }
        _ => Orientation::NoTransforms,
    };
    let color = decoder.color_type();
    let mut buffer = zeros(decoder.total_bytes());
    decoder.read_image(&mut buffer).map_err(fail)?;

    // a palette or a colour that is transparent is no alpha channel for Pillow
    let has_alpha_channel = match format {
        ImageFormat::Png => bytes.get(PNG_COLOR_TYPE.0) == Some(&PNG_COLOR_TYPE.1),
        _ => true,
    };
    let values = to_rgb(&buffer, color, recipe, has_alpha_channel)?;
    drop(buffer);
    let picture = Picture {
        width: width as usize,
        height: height as usize,
        values,
    };
    Ok(oriented(picture, orientation))
}

/// Memory that is touched only where it is written to.
fn zeros(bytes: u64) -> Vec<u8> {
    vec![0; usize::try_from(bytes).unwrap_or_default()]
}

/// Three channels of 8 bits.
fn to_rgb(
    bytes: &[u8],
    color: ColorType,
    recipe: MediaRecipe,
    has_alpha_channel: bool,
) -> Result<Vec<u8>, ImageError> {
    let model_card = recipe == MediaRecipe::ModelCard;
    Ok(match color {
        ColorType::Rgb8 => bytes.to_vec(),
        ColorType::L8 => triple(bytes.iter().copied()),
        ColorType::La8 => triple(bytes.chunks_exact(2).map(|p| p[0])),
        ColorType::Rgba8 if model_card && has_alpha_channel => on_white(bytes),
        ColorType::Rgba8 => bytes
            .chunks_exact(4)
            .flat_map(|p| [p[0], p[1], p[2]])
            .collect(),
        // Pillow keeps grey of 16 bits as it is, then clips it; of the others it drops the low byte
        ColorType::L16 if model_card => triple(wide(bytes).map(clipped)),
        ColorType::L16 => triple(wide(bytes).map(rounded)),
        ColorType::La16 if model_card => triple(wide(bytes).step_by(2).map(high_byte)),
        ColorType::La16 => triple(wide(bytes).step_by(2).map(rounded)),
        ColorType::Rgb16 if model_card => wide(bytes).map(high_byte).collect(),
        ColorType::Rgb16 => wide(bytes).map(rounded).collect(),
        ColorType::Rgba16 if model_card => {
            on_white(&wide(bytes).map(high_byte).collect::<Vec<_>>())
        }
        ColorType::Rgba16 => without_fourth(wide(bytes).map(rounded)),
        other => {
            return Err(ImageError::Pixels {
                pixels: format!("of kind {other:?}"),
            });
        }
    })
}

fn triple(values: impl Iterator<Item = u8>) -> Vec<u8> {
    values.flat_map(|v| [v; 3]).collect()
}

fn without_fourth(values: impl Iterator<Item = u8>) -> Vec<u8> {
    let kept = values.enumerate().filter(|(place, _)| place % 4 < 3);
    kept.map(|(_, value)| value).collect()
}

fn wide(bytes: &[u8]) -> impl Iterator<Item = u16> {
    bytes
        .chunks_exact(2)
        .map(|b| u16::from_ne_bytes([b[0], b[1]]))
}

#[expect(clippy::cast_possible_truncation, reason = "65,535 / 257 is 255")]
fn rounded(value: u16) -> u8 {
    ((u32::from(value) * 255 + 32_767) / 65_535) as u8
}

fn clipped(value: u16) -> u8 {
    u8::try_from(value).unwrap_or(u8::MAX)
}

fn high_byte(value: u16) -> u8 {
    value.to_be_bytes()[0]
}

/// Red, green and blue over white, as Pillow's `paste` with a mask computes it.
fn on_white(rgba: &[u8]) -> Vec<u8> {
    let over = |p: &[u8]| [0, 1, 2].map(|channel| blend(p[channel], p[3]));
    rgba.chunks_exact(4).flat_map(over).collect()
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "a mean of two 8-bit values"
)]
fn blend(value: u8, alpha: u8) -> u8 {
    let alpha = u32::from(alpha);
    let sum = 255 * (255 - alpha) + u32::from(value) * alpha + 128;
    (((sum >> 8) + sum) >> 8) as u8
}
