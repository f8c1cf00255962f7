//! Videos that are decoded here: animated GIF, WebP and PNG, and folders of frames.

use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};

use ::image::codecs::png::PngDecoder;
use ::image::codecs::webp::WebPDecoder;
use ::image::{AnimationDecoder, Frames, ImageDecoder, ImageFormat};
use segpack_formats::io::CancelToken;

use super::sampling::MAX_SAMPLED;
use super::{MAX_FRAMES, Timing, VideoError};
use crate::processing::image::{
    GifFrames, ImageError, Picture, RgbPicture, check_size, damaged, decode, decoder_limits,
    read_file,
};
use crate::processing::media::MediaRecipe;

/// An animation in memory.
#[derive(Debug)]
pub(super) struct Animation {
    bytes: Vec<u8>,
    format: ImageFormat,
}

impl Animation {
    /// `None` where the first bytes are of no such format.
    pub(super) fn open(path: &Path, head: &[u8]) -> Result<Option<Self>, VideoError> {
        match ::image::guess_format(head) {
            Ok(format @ (ImageFormat::Gif | ImageFormat::WebP | ImageFormat::Png)) => {
                let bytes = read_file(path)?;
                Ok(Some(Self { bytes, format }))
            }
            _ => Ok(None),
        }
    }

    /// How many frames there are and how fast they follow.
    #[expect(
        clippy::cast_precision_loss,
        reason = "numbers of frames and microseconds"
    )]
    pub(super) fn timing(&self, cancel: &CancelToken) -> Result<Timing, VideoError> {
        let (mut frames, mut micros) = (0, 0);
        match self.format {
            ImageFormat::Gif => {
                let delays = GifFrames::delays(&self.bytes, MAX_FRAMES)?;
                frames = delays.len();
                micros = delays.iter().map(|delay| u64::from(*delay) * 10_000).sum();
            }
            _ => self.each(cancel, &mut |_, duration| {
                frames += 1;
                micros += duration;
                Ok(frames <= MAX_FRAMES)
            })?,
        }
        let seconds = micros as f64 / 1e6;
        match frames {
            0 => Err(VideoError::TooFew {
                total: 0,
                wanted: 1,
            }),
            frames if frames > MAX_FRAMES => Err(VideoError::TooManyFrames),
            frames if seconds > 0.0 => Ok(Timing {
                frames,
                fps: frames as f64 / seconds,
            }),
            frames => Err(VideoError::NoRate { frames, seconds }),
        }
    }

    /// Gives the frames of these numbers, ascending, to `sink`.
    pub(super) fn frames(
        &self,
        indices: &[usize],
        cancel: &CancelToken,
        sink: &mut dyn FnMut(RgbPicture) -> Result<(), VideoError>,
    ) -> Result<(), VideoError> {
        let mut number = 0;
        let mut wanted = indices.iter().peekable();
        self.each(cancel, &mut |picture, _| {
            if wanted.next_if_eq(&&number).is_some() {
                sink(picture.clone())?;
            }
            number += 1;
            Ok(wanted.peek().is_some())
        })?;
        let missing = wanted.count();
        if missing > 0 {
            return Err(VideoError::Truncated {
                seen: indices.len() - missing,
                wanted: indices.len(),
                message: String::new(),
            });
        }
        Ok(())
    }

    /// Gives each frame and its microseconds to `take`, until that says `false`.
    fn each(
        &self,
        cancel: &CancelToken,
        take: &mut dyn FnMut(&RgbPicture, u64) -> Result<bool, VideoError>,
    ) -> Result<(), VideoError> {
        if self.format == ImageFormat::Gif {
            let mut frames = GifFrames::open(&self.bytes)?;
            while let Some(picture) = frames.next()? {
                check_stop(cancel)?;
                if !take(picture, 0)? {
                    break;
                }
            }
            return Ok(());
        }
        let Some(frames) = self.animated()? else {
            // a still picture is a video of one frame
            let still = decode(&self.bytes, MediaRecipe::Transformers)?;
            return take(&still, 1_000_000).map(|_| ());
        };
        for frame in frames {
            check_stop(cancel)?;
            let frame = frame.map_err(|e| damaged(self.format, self.bytes.len(), e))?;
            let (numerator, denominator) = frame.delay().numer_denom_ms();
            let micros = u64::from(numerator) * 1000 / u64::from(denominator.max(1));
            let buffer = frame.into_buffer();
            let picture = Picture {
                width: buffer.width() as usize,
                height: buffer.height() as usize,
                values: buffer.pixels().flat_map(|p| [p[0], p[1], p[2]]).collect(),
            };
            if !take(&picture, micros)? {
                break;
            }
        }
        Ok(())
    }

    /// The frames of an animated WebP or PNG file; `None` where it is not animated.
    fn animated(&self) -> Result<Option<Frames<'_>>, ImageError> {
        let fail = |error| damaged(self.format, self.bytes.len(), error);
        let bytes = Cursor::new(self.bytes.as_slice());
        if self.format == ImageFormat::WebP {
            let decoder = WebPDecoder::new(bytes).map_err(fail)?;
            let (width, height) = decoder.dimensions();
            check_size(width.into(), height.into())?;
            return Ok(decoder.has_animation().then(|| decoder.into_frames()));
        }
        let decoder = PngDecoder::with_limits(bytes, decoder_limits()).map_err(fail)?;
        let (width, height) = decoder.dimensions();
        check_size(width.into(), height.into())?;
        match decoder.is_apng().map_err(fail)? {
            true => Ok(Some(decoder.apng().map_err(fail)?.into_frames())),
            false => Ok(None),
        }
    }
}

fn check_stop(cancel: &CancelToken) -> Result<(), VideoError> {
    match cancel.is_cancelled() {
        true => Err(VideoError::Stopped),
        false => Ok(()),
    }
}

/// The files of a folder, in the order of their names, numbers in them by value; hidden ones are
/// left out.
pub(super) fn frames_of_folder(path: &Path) -> Result<Vec<PathBuf>, VideoError> {
    let mut files = Vec::new();
    for entry in fs::read_dir(path).map_err(VideoError::Read)? {
        let entry = entry.map_err(VideoError::Read)?;
        let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
        if !hidden && entry.path().is_file() {
            files.push(entry.path());
        }
        if files.len() > MAX_SAMPLED {
            return Err(VideoError::TooManyFrames);
        }
    }
    files.sort_by_cached_key(|file| natural_key(&file.to_string_lossy()));
    match files.is_empty() {
        true => Err(VideoError::TooFew {
            total: 0,
            wanted: 1,
        }),
        false => Ok(files),
    }
}

/// Parts of a name: text, then a number's length without zeros and its digits.
fn natural_key(name: &str) -> Vec<(String, usize, String)> {
    let mut key = Vec::new();
    let mut rest = name;
    while !rest.is_empty() {
        let text = rest
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(rest.len());
        let (before, after) = rest.split_at(text);
        let digits = after
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(after.len());
        let (number, after) = after.split_at(digits);
        let value = number.trim_start_matches('0');
        key.push((before.to_owned(), value.len(), value.to_owned()));
        rest = after;
    }
    key
}

#[cfg(test)]
mod tests {
    use super::natural_key;

    #[test]
    fn numbers_in_names_are_ordered_by_value() {
        let mut names = ["f10.png", "f9.png", "f009b.png", "e11.png", "f1.png"];
        names.sort_by_cached_key(|name| natural_key(name));
        assert_eq!(
            names,
            ["e11.png", "f1.png", "f9.png", "f009b.png", "f10.png"]
        );
    }
}
