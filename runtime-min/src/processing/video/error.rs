//! Why a video cannot be processed.

use std::io;

use super::sampling::MAX_SAMPLED;
use super::{MAX_FRAMES, MAX_VALUES};
use crate::processing::image::ImageError;

/// Why a file cannot be made frames, or frames no patches. Which file it is, is for whoever opened
/// it to say.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VideoError {
    /// It cannot be read.
    #[error("cannot be read")]
    Read(#[source] io::Error),
    /// A device, a pipe: what has no end, or cannot be read twice.
    #[error("neither a file nor a folder of frames")]
    NotAFile,
    /// The program that decodes videos is not there.
    #[error(
        "videos are decoded by the program {program}, which cannot be started: install the package ffmpeg (GIF, WebP, APNG and folders of frames work without it)"
    )]
    NoProgram {
        /// The program's name.
        program: &'static str,
        /// Why it cannot be started.
        #[source]
        source: io::Error,
    },
    /// A program cannot make sense of the file.
    #[error("{program} cannot read it: {message}")]
    Program {
        /// The program's name.
        program: &'static str,
        /// What it says.
        message: String,
    },
    /// A file of a known format that is no video, or that names other files.
    #[error(
        "a file of the format {format}, which is not one of those that videos are read from (MP4, MOV, Matroska, WebM, AVI, MPEG-TS and others are)"
    )]
    Format {
        /// The format's name in FFmpeg.
        format: String,
    },
    /// What a program writes cannot be understood.
    #[error("{program} wrote what was not expected: {seen}")]
    Output {
        /// The program's name.
        program: &'static str,
        /// The beginning of it.
        seen: String,
    },
    /// A container without moving pictures.
    #[error("there is no video in it")]
    NoTrack,
    /// No frame at all, or no duration.
    #[error("{frames} frames in {seconds} seconds: there is no frame rate")]
    NoRate {
        /// Its frames.
        frames: usize,
        /// Its duration.
        seconds: f64,
    },
    /// The chat wants a part of it that has fewer than two frames.
    #[error(
        "no two frames are between second {start} and second {end}: it has {duration:.2} seconds"
    )]
    Excerpt {
        /// `video_start`, or 0.
        start: f64,
        /// `video_end`, or its end.
        end: f64,
        /// Seconds that it has.
        duration: f64,
    },
    /// More frames than are looked at.
    #[error("more than {MAX_FRAMES} frames, which is the limit: cut it")]
    TooManyFrames,
    /// More frames than a prompt can have, and no rate is asked for.
    #[error(
        "each of its {total} frames would be taken, {MAX_SAMPLED} is the limit: ask for a number of frames or a rate"
    )]
    TooManySampled {
        /// Its frames.
        total: usize,
    },
    /// A rate or a number of frames that cannot be taken.
    #[error(
        "{requested} cannot be taken of a video, expected is more than 0 and no more than {MAX_SAMPLED} frames"
    )]
    Nothing {
        /// What was asked for.
        requested: String,
    },
    /// More values than are made of one video.
    #[error(
        "{frames} frames of {width} x {height} pixels are more than {MAX_VALUES} values, which is the limit: ask for fewer frames or pixels"
    )]
    TooMuch {
        /// Frames that were chosen.
        frames: usize,
        /// Pixels of a row, as the model takes them.
        width: usize,
        /// Rows, as the model takes them.
        height: usize,
    },
    /// Fewer frames than are needed.
    #[error("it has {total} frames, {wanted} are needed")]
    TooFew {
        /// Its frames.
        total: usize,
        /// How many are needed.
        wanted: usize,
    },
    /// The file ends before its last frame.
    #[error("truncated: it ends after {frames} frames: {message}")]
    EndsEarly {
        /// Frames before the end.
        frames: usize,
        /// What the program says.
        message: String,
    },
    /// Fewer frames can be decoded than the container has.
    #[error("truncated or damaged: {seen} of {wanted} frames can be decoded{message}")]
    Truncated {
        /// Frames that were decoded.
        seen: usize,
        /// Frames that were chosen.
        wanted: usize,
        /// What the program says, after a colon.
        message: String,
    },
    /// A sound track that is longer than any model takes.
    #[error("its sound is longer than {} hours, which is the limit", super::sound::MAX_SECONDS / 3600)]
    TooLong,
    /// A frame cannot be decoded or resized.
    #[error("frame {frame} cannot be used")]
    Frame {
        /// Which frame of those chosen, from 0.
        frame: usize,
        /// Why.
        #[source]
        source: ImageError,
    },
    /// A picture of the kind that is decoded here is damaged.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// Whoever waited asked to stop.
    #[error("stopped")]
    Stopped,
}
