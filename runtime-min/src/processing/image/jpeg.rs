//! JPEG files through libjpeg-turbo's arithmetic: the accurate integer transform and triangular
//! upsampling of colour, which every official decoder has. Decoders with other arithmetic differ by
//! up to 16 levels.

use std::cell::Cell;
use std::io::{self, BufRead, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};

use ::image::metadata::Orientation;
use mozjpeg::{ColorSpace, Decompress, Marker};

use super::orientation::oriented;
use super::size::check_size;
use super::{ImageError, Picture, RgbPicture};
use crate::processing::media::MediaRecipe;

const EXIF: &[u8] = b"Exif\0\0";

/// Decodes a file.
pub(super) fn decode(bytes: &[u8], recipe: MediaRecipe) -> Result<RgbPicture, ImageError> {
    let ended = Cell::new(false);
    // the library's errors unwind, without a message of a panic
    let decoded = catch_unwind(AssertUnwindSafe(|| decompress(bytes, recipe, &ended)));
    match decoded {
        Ok(Ok(picture)) => Ok(picture),
        _ if ended.get() => Err(ImageError::Truncated {
            format: "JPEG",
            bytes: bytes.len(),
        }),
        Ok(Err(error)) => Err(error),
        Err(payload) => {
            let message = payload.downcast::<String>().map(|message| *message);
            let message = message.unwrap_or_else(|_| "libjpeg fatal error".to_owned());
            Err(damaged(message))
        }
    }
}

fn damaged(source: impl Into<super::DecoderError>) -> ImageError {
    ImageError::Damaged {
        format: "JPEG",
        source: source.into(),
    }
}

fn decompress(
    bytes: &[u8],
    recipe: MediaRecipe,
    ended: &Cell<bool>,
) -> Result<RgbPicture, ImageError> {
    let reader = Whole { bytes, ended };
    let decoder = Decompress::with_markers(&[Marker::APP(1), Marker::APP(14)])
        .from_reader(reader)
        .map_err(damaged)?;
    let (width, height) = decoder.size();
    check_size(width as u64, height as u64)?;

    // what the markers say has to be read before the pixels are
    let orientation = match recipe {
        MediaRecipe::Transformers => orientation(&decoder),
        MediaRecipe::ModelCard => Orientation::NoTransforms,
    };
    let is_ink = matches!(
        decoder.color_space(),
        ColorSpace::JCS_CMYK | ColorSpace::JCS_YCCK
    );
    // torchcodec takes inks for inverted, as Adobe's programs write them; Pillow where they say so
    let inverted = recipe == MediaRecipe::Transformers
        || decoder.markers().any(|m| m.marker == Marker::APP(14));

    let values = match is_ink {
        false => {
            let mut rows = decoder.rgb().map_err(damaged)?;
            let values = rows.read_scanlines::<u8>().map_err(damaged)?;
            rows.finish().map_err(damaged)?;
            values
        }
        true => {
            let started = decoder.to_colorspace(ColorSpace::JCS_CMYK);
            let mut rows = started.map_err(damaged)?;
            let inks = rows.read_scanlines::<u8>().map_err(damaged)?;
            rows.finish().map_err(damaged)?;
            to_rgb(&inks, inverted)
        }
    };
    let picture = Picture {
        width,
        height,
        values,
    };
    Ok(oriented(picture, orientation))
}

fn orientation<R>(decoder: &Decompress<R>) -> Orientation {
    let mut markers = decoder.markers().filter(|m| m.marker == Marker::APP(1));
    let exif = markers.find_map(|m| m.data.strip_prefix(EXIF));
    exif.and_then(Orientation::from_exif_chunk)
        .unwrap_or(Orientation::NoTransforms)
}

/// Pixels of four inks to red, green and blue, as Pillow and torchcodec do.
fn to_rgb(inks: &[u8], inverted: bool) -> Vec<u8> {
    let invert = if inverted { 0 } else { 255 };
    let pixels = inks.chunks_exact(4).flat_map(|p| {
        let light = p[3] ^ invert;
        [0, 1, 2].map(|channel| shaded(light, 255 - (p[channel] ^ invert)))
    });
    pixels.collect()
}

/// What is left of light after so much of an ink.
#[expect(clippy::cast_possible_truncation, reason = "at most the light")]
fn shaded(light: u8, ink: u8) -> u8 {
    let product = u32::from(light) * u32::from(ink) + 128;
    light.saturating_sub((((product >> 8) + product) >> 8) as u8)
}

/// A file in memory. libjpeg makes up an end where a file has none: here reading beyond its end is
/// an error.
struct Whole<'a> {
    bytes: &'a [u8],
    ended: &'a Cell<bool>,
}

impl Read for Whole<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.fill_buf()?.read(buffer)?;
        self.consume(read);
        Ok(read)
    }
}

impl BufRead for Whole<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.bytes.is_empty() {
            self.ended.set(true);
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(self.bytes)
    }

    fn consume(&mut self, amount: usize) {
        self.bytes = self.bytes.get(amount..).unwrap_or_default();
    }
}
