//! Why an image cannot be processed.

use std::io;

use super::{MAX_FILE_BYTES, MAX_PIXELS, MAX_RATIO};

/// What a decoder says.
pub type DecoderError = Box<dyn std::error::Error + Send + Sync>;

/// Why a file cannot be made pixels, or pixels no patches. Which file it is, is for whoever opened
/// it to say.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// It cannot be read.
    #[error("cannot be read")]
    Read(#[source] io::Error),
    /// Longer than any image.
    #[error("longer than {MAX_FILE_BYTES} bytes, which is the limit for images")]
    TooLong,
    /// No format that is known.
    #[error(
        "not an image of a known format (PNG, JPEG, WebP, GIF, BMP, TIFF are); it begins with {seen}"
    )]
    NotImage {
        /// Its first bytes.
        seen: String,
    },
    /// A known format that cannot be decoded.
    #[error("{format} images cannot be decoded: convert it to PNG")]
    Format {
        /// The format's name.
        format: &'static str,
    },
    /// A known format, with pixels of a kind that is not supported.
    #[error("its pixels are {pixels}, supported are 8 and 16 bits: convert it to PNG")]
    Pixels {
        /// Their kind.
        pixels: String,
    },
    /// More pixels than are decoded.
    #[error("{width} x {height} pixels are more than {MAX_PIXELS}, which is the limit")]
    TooLarge {
        /// Pixels of a row, as its header has it.
        width: u64,
        /// Rows, as its header has it.
        height: u64,
    },
    /// No pixels at all.
    #[error("{width} x {height} pixels: there is nothing to see")]
    Empty {
        /// Pixels of a row.
        width: u64,
        /// Rows.
        height: u64,
    },
    /// The file ends too early.
    #[error("the {format} file is truncated: {bytes} bytes do not hold all pixels")]
    Truncated {
        /// The format's name.
        format: &'static str,
        /// Its length.
        bytes: usize,
    },
    /// A known format, damaged.
    #[error("the {format} file is damaged, or of a kind that is not supported")]
    Damaged {
        /// The format's name.
        format: &'static str,
        /// What the decoder says.
        #[source]
        source: DecoderError,
    },
    /// An animation without frames.
    #[error("the {format} file has no frame")]
    NoFrames {
        /// The format's name.
        format: &'static str,
    },
    /// Far longer than wide, or the reverse.
    #[error(
        "{width} x {height} pixels: one side is more than {MAX_RATIO} times the other, which the processor refuses"
    )]
    Ratio {
        /// Pixels of a row.
        width: usize,
        /// Rows.
        height: usize,
    },
    /// Limits that leave no size.
    #[error(
        "{width} x {height} pixels: no multiple of {factor} is between {min_pixels} and {max_pixels} pixels for it"
    )]
    NoSize {
        /// Pixels of a row.
        width: usize,
        /// Rows.
        height: usize,
        /// Both sides have to be a multiple of it.
        factor: usize,
        /// Fewest pixels.
        min_pixels: u64,
        /// Most pixels.
        max_pixels: u64,
    },
    /// Frames of one video that are not of one size.
    #[error("frame {frame} has {seen:?} pixels, the frames before have {wanted:?} (width, height)")]
    FrameSize {
        /// Which frame, from 0.
        frame: usize,
        /// Its width and height.
        seen: (usize, usize),
        /// Those of the frames before.
        wanted: (usize, usize),
    },
}
