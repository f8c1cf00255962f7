//! GIF files: the first frame as an image, all frames as a video.

use std::num::NonZeroU64;

use ::gif::{ColorOutput, DecodeOptions, Decoder, DecodingError, Frame, MemoryLimit};

use super::size::check_size;
use super::{ImageError, MAX_PIXELS, Picture, RgbPicture};
use crate::processing::media::MediaRecipe;

/// What FFmpeg has where nothing is drawn in a file with a transparent colour.
#[cfg(feature = "video")]
const UNDRAWN: [u8; 3] = [255; 3];

/// The first frame, as torchvision decodes it (transformers) or Pillow (model card).
pub(super) fn first_frame(bytes: &[u8], recipe: MediaRecipe) -> Result<RgbPicture, ImageError> {
    let mut decoder = open(bytes)?;
    let global = decoder.global_palette().map(<[u8]>::to_vec);
    let background = decoder.bg_color();
    let screen = (decoder.width(), decoder.height());
    let frame = decoder.read_next_frame().map_err(|e| damaged(e, bytes))?;
    let frame = frame.ok_or(ImageError::NoFrames { format: "GIF" })?;
    let palette = frame.palette.as_deref().or(global.as_deref());
    let palette = palette.unwrap_or_default();

    let (width, height, fill, transparent) = match recipe {
        // a screen of at least the frame; transparent pixels keep the background
        MediaRecipe::Transformers => (
            screen.0.max(frame.width),
            screen.1.max(frame.height),
            background.map_or([0; 3], |index| {
                color(global.as_deref().unwrap_or_default(), index)
            }),
            frame.transparent,
        ),
        // transparent pixels have the colour under them
        MediaRecipe::ModelCard => (
            screen.0,
            screen.1,
            color(palette, frame.transparent.map_or(0, usize::from)),
            None,
        ),
    };
    check_size(width.into(), height.into())?;
    let mut canvas = Canvas::new(width.into(), height.into(), fill);
    canvas.draw(frame, palette, transparent);
    Ok(canvas.picture)
}

/// The frames of a file, drawn over each other as FFmpeg does.
#[cfg(feature = "video")]
pub(crate) struct GifFrames<'a> {
    bytes: &'a [u8],
    decoder: Decoder<&'a [u8]>,
    global: Option<Vec<u8>>,
    canvas: Option<Canvas>,
    /// What has to be done before the next frame is drawn.
    disposal: Disposal,
}

#[cfg(feature = "video")]
enum Disposal {
    Nothing,
    Fill(Area, [u8; 3]),
    Restore(RgbPicture),
}

#[cfg(feature = "video")]
impl<'a> GifFrames<'a> {
    /// # Errors
    /// Where the file is damaged, or too large.
    pub(crate) fn open(bytes: &'a [u8]) -> Result<Self, ImageError> {
        let decoder = open(bytes)?;
        check_size(decoder.width().into(), decoder.height().into())?;
        Ok(Self {
            bytes,
            global: decoder.global_palette().map(<[u8]>::to_vec),
            decoder,
            canvas: None,
            disposal: Disposal::Nothing,
        })
    }

    /// How long each frame is shown, in hundredths of a second; no frame is decoded.
    ///
    /// # Errors
    /// Where the file is damaged.
    pub(crate) fn delays(bytes: &[u8], limit: usize) -> Result<Vec<u16>, ImageError> {
        let mut options = options();
        options.skip_frame_decoding(true);
        let mut decoder = options.read_info(bytes).map_err(|e| damaged(e, bytes))?;
        let mut delays = Vec::new();
        while let Some(frame) = decoder.next_frame_info().map_err(|e| damaged(e, bytes))? {
            // FFmpeg's demuxer: shorter is a tenth of a second
            delays.push(if frame.delay < 2 { 10 } else { frame.delay });
            if delays.len() > limit {
                break;
            }
        }
        Ok(delays)
    }

    /// Draws the next frame; `None` after the last.
    ///
    /// # Errors
    /// Where the file is damaged.
    pub(crate) fn next(&mut self) -> Result<Option<&RgbPicture>, ImageError> {
        let size = (self.decoder.width(), self.decoder.height());
        let background = self.decoder.bg_color();
        let bytes = self.bytes;
        let frame = self.decoder.read_next_frame();
        let Some(frame) = frame.map_err(|e| damaged(e, bytes))? else {
            return Ok(None);
        };
        let global = self.global.as_deref();
        let background = background.and_then(|index| Some(color(global?, index)));
        let undrawn = match (frame.transparent, background) {
            (None, Some(background)) => background,
            _ => UNDRAWN,
        };
        let new = || Canvas::new(size.0.into(), size.1.into(), undrawn);
        let canvas = self.canvas.get_or_insert_with(new);
        match std::mem::replace(&mut self.disposal, Disposal::Nothing) {
            Disposal::Nothing => {}
            Disposal::Fill(area, color) => canvas.fill(&area, color),
            Disposal::Restore(picture) => canvas.picture = picture,
        }
        self.disposal = match frame.dispose {
            ::gif::DisposalMethod::Any | ::gif::DisposalMethod::Keep => Disposal::Nothing,
            ::gif::DisposalMethod::Background => Disposal::Fill(canvas.area(frame), undrawn),
            ::gif::DisposalMethod::Previous => Disposal::Restore(canvas.picture.clone()),
        };
        let palette = frame.palette.as_deref().or(global);
        canvas.draw(frame, palette.unwrap_or_default(), frame.transparent);
        Ok(Some(&canvas.picture))
    }
}

fn options() -> DecodeOptions {
    let mut options = DecodeOptions::new();
    options.set_color_output(ColorOutput::Indexed);
    if let Some(limit) = NonZeroU64::new(MAX_PIXELS) {
        options.set_memory_limit(MemoryLimit::Bytes(limit));
    }
    options
}

fn open(bytes: &[u8]) -> Result<Decoder<&[u8]>, ImageError> {
    options().read_info(bytes).map_err(|e| damaged(e, bytes))
}

fn damaged(error: DecodingError, bytes: &[u8]) -> ImageError {
    let truncated = ImageError::Truncated {
        format: "GIF",
        bytes: bytes.len(),
    };
    match error {
        DecodingError::UnexpectedEof => truncated,
        DecodingError::Io(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => truncated,
        error => ImageError::Damaged {
            format: "GIF",
            source: Box::new(error),
        },
    }
}

/// Black where a palette has no such colour.
fn color(palette: &[u8], index: usize) -> [u8; 3] {
    let color = palette.get(index * 3..index * 3 + 3);
    color.map_or([0; 3], |c| [c[0], c[1], c[2]])
}

/// What is drawn to.
struct Canvas {
    picture: RgbPicture,
}

/// A rectangle of a canvas.
struct Area {
    left: usize,
    top: usize,
    right: usize,
    bottom: usize,
}

impl Canvas {
    fn new(width: usize, height: usize, fill: [u8; 3]) -> Self {
        let picture = Picture {
            width,
            height,
            values: fill.repeat(width * height),
        };
        Self { picture }
    }

    /// Where a frame is, as far as it is on the canvas.
    fn area(&self, frame: &Frame<'_>) -> Area {
        let (left, top) = (usize::from(frame.left), usize::from(frame.top));
        let right = (left + usize::from(frame.width)).min(self.picture.width);
        let bottom = (top + usize::from(frame.height)).min(self.picture.height);
        Area {
            left: left.min(right),
            top: top.min(bottom),
            right,
            bottom,
        }
    }

    fn draw(&mut self, frame: &Frame<'_>, palette: &[u8], transparent: Option<u8>) {
        let area = self.area(frame);
        let rows = frame.buffer.chunks_exact(usize::from(frame.width).max(1));
        for (y, row) in (area.top..area.bottom).zip(rows) {
            let start = y * self.picture.width;
            let pixels =
                &mut self.picture.values[(start + area.left) * 3..(start + area.right) * 3];
            for (pixel, index) in pixels.chunks_exact_mut(3).zip(row) {
                if Some(*index) != transparent {
                    pixel.copy_from_slice(&color(palette, usize::from(*index)));
                }
            }
        }
    }

    #[cfg(feature = "video")]
    fn fill(&mut self, area: &Area, color: [u8; 3]) {
        for y in area.top..area.bottom {
            let start = y * self.picture.width;
            let pixels =
                &mut self.picture.values[(start + area.left) * 3..(start + area.right) * 3];
            for pixel in pixels.chunks_exact_mut(3) {
                pixel.copy_from_slice(&color);
            }
        }
    }
}
