//! The sound track of a video.

use std::ffi::OsString;
use std::path::Path;

use segpack_formats::io::CancelToken;
use serde_json::Value;

use super::VideoError;
use super::container::{absolute, best_stream, read_piece};
#[cfg(feature = "audio")]
use super::programs::has_decoder;
use super::programs::{FFMPEG, Pieces, Running, input_arguments};
use crate::processing::media::MediaRecipe;

/// Longest sound track, in seconds.
pub(super) const MAX_SECONDS: u32 = 2 * 60 * 60;
/// Samples of a second of a track that is not resampled here.
const MAX_RATE: u32 = 384_000;

/// One channel of sound.
#[derive(Debug, Clone, PartialEq)]
pub struct SoundTrack {
    /// Samples of a second: by [`MediaRecipe::Transformers`] those that were asked for, by
    /// [`MediaRecipe::ModelCard`] those of the file, which are left to be resampled as those of an
    /// audio file are.
    pub rate: u32,
    /// From −1 to 1.
    pub samples: Vec<f32>,
}

impl SoundTrack {
    /// Keeps what is from second `start` to second `end`, as librosa cuts what `audioread` gives it.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a conversion of floats saturates"
    )]
    pub fn cut(&mut self, start: f64, end: Option<f64>) {
        let samples = |seconds: f64| (f64::from(self.rate) * seconds).round_ties_even() as usize;
        let first = samples(start).min(self.samples.len());
        if let Some(end) = end {
            let last = first.saturating_add(samples(end - start));
            self.samples.truncate(last);
        }
        self.samples.drain(..first);
    }
}

/// The best sound track of a video, `None` where it has none.
///
/// [`MediaRecipe::Transformers`]: FFmpeg mixes the channels (0.7071 × (left + right) for two, which
/// is 3 dB more than their mean) and resamples them, as torchcodec has it do.
/// [`MediaRecipe::ModelCard`]: 16-bit samples from FFmpeg, then the mean of the channels, as librosa
/// reads a video.
///
/// # Errors
/// Where the programs are not there or cannot read the file, the track is longer than two hours, or
/// `cancel` is set.
pub fn sound_track(
    path: &Path,
    rate: u32,
    recipe: MediaRecipe,
    cancel: &CancelToken,
) -> Result<Option<SoundTrack>, VideoError> {
    let path = &absolute(path);
    super::check_file(path)?;
    let Some(stream) = best_stream(path, "audio", cancel)? else {
        return Ok(None);
    };
    let mut arguments = input_arguments(FFMPEG, path);
    let which = format!("0:{}", stream.index);
    arguments.extend(["-map", &which, "-vn"].map(Into::into));
    let rate_word = rate.to_string();
    let (rate, layout) = match recipe {
        MediaRecipe::Transformers => {
            let words = ["-ac", "1", "-ar", &rate_word, "-f", "f32le", "pipe:1"];
            arguments.extend(words.map(Into::into));
            (rate, Layout::Floats { channels: 1 })
        }
        MediaRecipe::ModelCard => {
            arguments.extend(["-f", "s16le", "pipe:1"].map(Into::into));
            let (rate, channels) = shape(&stream.description)?;
            (rate, Layout::Integers { channels })
        }
    };
    read(&arguments, rate, layout, cancel).map(Some)
}

/// The sound of an audio file in a format that is not decoded here, `None` where it has none: the
/// mean of its channels, at its own rate. Opus is decoded by libopus, as everywhere, where FFmpeg has
/// it.
///
/// # Errors
/// As [`sound_track`].
#[cfg(feature = "audio")]
pub(crate) fn audio_file(
    path: &Path,
    cancel: &CancelToken,
) -> Result<Option<SoundTrack>, VideoError> {
    let path = &absolute(path);
    super::check_file(path)?;
    let Some(stream) = best_stream(path, "audio", cancel)? else {
        return Ok(None);
    };
    let (rate, channels) = shape(&stream.description)?;
    let mut arguments: Vec<OsString> = Vec::new();
    if stream.description["codec_name"] == "opus" && has_decoder("libopus") {
        arguments.extend(["-c:a", "libopus"].map(Into::into));
    }
    arguments.extend(input_arguments(FFMPEG, path));
    let which = format!("0:{}", stream.index);
    arguments.extend(["-map", &which, "-vn", "-f", "f32le", "pipe:1"].map(Into::into));
    read(&arguments, rate, Layout::Floats { channels }, cancel).map(Some)
}

/// Runs the program that writes samples.
fn read(
    arguments: &[OsString],
    rate: u32,
    layout: Layout,
    cancel: &CancelToken,
) -> Result<SoundTrack, VideoError> {
    let most = u64::from(MAX_SECONDS) * u64::from(rate);
    let (running, stdout) = Running::start(FFMPEG, arguments)?;
    let pieces = Pieces::of(stdout, read_piece);
    let mut samples = Samples::new(layout);
    while let Some(piece) = pieces.next(cancel)? {
        samples.add(&piece);
        if samples.mono.len() as u64 > most {
            return Err(VideoError::TooLong);
        }
        if cancel.is_cancelled() {
            return Err(VideoError::Stopped);
        }
    }
    running.finish()?;
    Ok(SoundTrack {
        rate,
        samples: samples.mono,
    })
}

/// Samples of a second and channels.
fn shape(stream: &Value) -> Result<(u32, usize), VideoError> {
    let rate = stream["sample_rate"]
        .as_str()
        .and_then(|rate| rate.parse().ok());
    let channels = stream["channels"].as_u64();
    match (rate, channels) {
        (Some(rate @ 1..=MAX_RATE), Some(channels @ 1..=64)) => {
            Ok((rate, usize::try_from(channels).unwrap_or(1)))
        }
        _ => Err(VideoError::Output {
            program: super::programs::FFPROBE,
            seen: format!(
                "sound of {} samples per second and {} channels",
                stream["sample_rate"], stream["channels"]
            ),
        }),
    }
}

/// How samples lie in bytes, channel by channel.
#[derive(Clone, Copy)]
enum Layout {
    /// 32-bit floats.
    Floats { channels: usize },
    /// 16-bit integers.
    Integers { channels: usize },
}

/// Samples that come in pieces of any length.
struct Samples {
    layout: Layout,
    /// Bytes that are no whole frame yet.
    rest: Vec<u8>,
    mono: Vec<f32>,
}

impl Samples {
    fn new(layout: Layout) -> Self {
        Self {
            layout,
            rest: Vec::new(),
            mono: Vec::new(),
        }
    }

    fn add(&mut self, piece: &[u8]) {
        self.rest.extend_from_slice(piece);
        let width = match self.layout {
            Layout::Floats { channels } => 4 * channels,
            Layout::Integers { channels } => 2 * channels,
        };
        let frames = self.rest.chunks_exact(width);
        let whole = self.rest.len() - frames.remainder().len();
        match self.layout {
            Layout::Floats { channels: 1 } => self.mono.extend(frames.map(float)),
            Layout::Floats { .. } => self.mono.extend(frames.map(mean_of_floats)),
            Layout::Integers { .. } => self.mono.extend(frames.map(mean)),
        }
        self.rest.drain(..whole);
    }
}

fn float(bytes: &[u8]) -> f32 {
    f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

/// The mean of the channels of a frame of floats, in float32.
#[expect(clippy::cast_precision_loss, reason = "a number of channels")]
fn mean_of_floats(frame: &[u8]) -> f32 {
    let values = frame.chunks_exact(4).map(float);
    values.sum::<f32>() / (frame.len() / 4) as f32
}

/// The mean of the channels of a frame, in float32.
#[expect(clippy::cast_precision_loss, reason = "a number of channels")]
fn mean(frame: &[u8]) -> f32 {
    let samples = frame
        .chunks_exact(2)
        .map(|b| i16::from_le_bytes([b[0], b[1]]));
    let values = samples.map(|sample| f32::from(sample) / 32_768.0);
    values.sum::<f32>() / (frame.len() / 2) as f32
}
