//! Videos in containers: what is in them through `ffprobe`, their frames through `ffmpeg`.
//!
//! As torchcodec's `VideoDecoder` with `seek_mode="exact"`: the frames are those that the container
//! has, in the order in which they are shown; the conversion to red, green and blue is FFmpeg's.

use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::ChildStdout;

use segpack_formats::io::CancelToken;
use serde_json::Value;

use super::programs::{FFMPEG, FFPROBE, Pieces, Running, input_arguments, passthrough, read_line};
use super::{MAX_FRAMES, Timing, VideoError};
use crate::processing::image::{MAX_PIXELS, Picture, RgbPicture};

/// Longest description of the streams of a file.
const MAX_DESCRIPTION: u64 = 4 << 20;

/// What `ffprobe` says of MP4 and Matroska files that are shorter than their headers say.
const ENDS_EARLY: [&str; 2] = ["partial file", "ended prematurely"];

/// A stream of a container.
#[derive(Debug, Clone)]
pub(super) struct Stream {
    pub(super) index: u64,
    /// Seconds of a unit of time: numerator, denominator.
    time_base: (f64, f64),
    /// What the container says its frame rate is.
    average: Option<f64>,
    /// All that was asked about it.
    pub(super) description: Value,
}

/// The best stream of a kind, as FFmpeg's `av_find_best_stream` weighs them: not a cover picture;
/// marked as the default; of the highest bit rate; the first.
pub(super) fn best_stream(
    path: &Path,
    kind: &str,
    cancel: &CancelToken,
) -> Result<Option<Stream>, VideoError> {
    let description = describe(path, cancel)?;
    let streams = description["streams"].as_array().map(Vec::as_slice);
    let of_kind = streams.unwrap_or_default().iter().filter(|stream| {
        stream["codec_type"] == kind && stream["disposition"]["attached_pic"] != 1
    });
    // of those that weigh the same `max_by_key` takes the last
    let best = of_kind.rev().max_by_key(|stream| weight(stream));
    let Some(best) = best else { return Ok(None) };
    let index = best["index"].as_u64();
    Ok(index.map(|index| Stream {
        index,
        time_base: quotient(&best["time_base"]).unwrap_or((0.0, 1.0)),
        average: quotient(&best["avg_frame_rate"]).map(|(n, d)| n / d),
        description: best.clone(),
    }))
}

fn weight(stream: &Value) -> (u8, u64) {
    let disposition = &stream["disposition"];
    let is_for_all = disposition["hearing_impaired"] != 1 && disposition["visual_impaired"] != 1;
    let is_default = disposition["default"] == 1;
    let bit_rate = stream["bit_rate"]
        .as_str()
        .and_then(|rate| rate.parse().ok());
    (
        u8::from(is_for_all) + u8::from(is_default),
        bit_rate.unwrap_or(0),
    )
}

/// `"30000/1001"`.
fn quotient(value: &Value) -> Option<(f64, f64)> {
    let (numerator, denominator) = value.as_str()?.split_once('/')?;
    let (numerator, denominator) = (numerator.parse().ok()?, denominator.parse().ok()?);
    (numerator > 0.0 && denominator > 0.0).then_some((numerator, denominator))
}

fn describe(path: &Path, cancel: &CancelToken) -> Result<Value, VideoError> {
    let mut arguments = input_arguments(FFPROBE, path);
    let entries = "stream=index,codec_type,codec_name,bit_rate,time_base,avg_frame_rate,sample_rate,channels:stream_disposition=default,attached_pic,hearing_impaired,visual_impaired";
    arguments.extend(["-show_entries", entries, "-of", "json"].map(Into::into));
    let (running, stdout) = Running::start(FFPROBE, &arguments)?;
    let mut text = Vec::new();
    let pieces = Pieces::of(stdout, read_piece);
    while let Some(piece) = pieces.next(cancel)? {
        text.extend(piece);
        if text.len() as u64 > MAX_DESCRIPTION {
            return Err(unexpected(FFPROBE, "a description without end"));
        }
    }
    running.finish()?;
    let seen = |_| {
        unexpected(
            FFPROBE,
            &String::from_utf8_lossy(&text[..text.len().min(80)]),
        )
    };
    serde_json::from_slice(&text).map_err(seen)
}

fn unexpected(program: &'static str, seen: &str) -> VideoError {
    VideoError::Output {
        program,
        seen: format!("{seen:?}"),
    }
}

pub(super) fn read_piece(stdout: &mut BufReader<ChildStdout>) -> Option<Vec<u8>> {
    let mut piece = vec![0; 1 << 16];
    let read = stdout.read(&mut piece).ok().filter(|read| *read > 0)?;
    piece.truncate(read);
    Some(piece)
}

/// How many frames a stream has and how fast they follow, from its packets: none is decoded.
pub(super) fn timing(
    path: &Path,
    stream: &Stream,
    cancel: &CancelToken,
) -> Result<Timing, VideoError> {
    let mut arguments = input_arguments(FFPROBE, path);
    let which = stream.index.to_string();
    let packets = "packet=pts,dts,duration,flags";
    let words = [
        "-select_streams",
        &which,
        "-show_entries",
        packets,
        "-of",
        "compact=p=0",
    ];
    arguments.extend(words.map(Into::into));
    let (running, stdout) = Running::start(FFPROBE, &arguments)?;
    let lines = Pieces::of(stdout, |stdout| read_line(stdout, 4096));
    let mut seen = Packets::default();
    while let Some(line) = lines.next(cancel)? {
        seen.add(&line);
        if seen.frames > MAX_FRAMES {
            return Err(VideoError::TooManyFrames);
        }
    }
    // a file that ends early is no error for the program: it says so and goes on
    let message = running.finish()?;
    let message = match ENDS_EARLY.iter().any(|words| message.contains(words)) {
        true => Some(message),
        false => super::cut::found(path).map_err(VideoError::Read)?,
    };
    if let Some(message) = message {
        let frames = seen.frames;
        return Err(VideoError::EndsEarly { frames, message });
    }
    seen.timing(stream)
}

/// What the packets of a stream say together.
#[derive(Default)]
struct Packets {
    frames: usize,
    begin: Option<i64>,
    end: Option<i64>,
}

impl Packets {
    /// `pts=0|dts=0|duration=12|flags=K_`. A packet that is marked to be discarded is no frame.
    fn add(&mut self, line: &str) {
        let field = |name: &str| {
            let mut fields = line.split('|').filter_map(|field| field.split_once('='));
            fields.find_map(|(key, value)| (key == name).then_some(value))
        };
        let number = |name| field(name).and_then(|value| value.parse::<i64>().ok());
        if field("flags").is_none_or(|flags| flags.contains('D')) {
            return;
        }
        self.frames += 1;
        let Some(begin) = number("pts").or_else(|| number("dts")) else {
            return;
        };
        let end = begin.saturating_add(number("duration").unwrap_or(0));
        self.begin = Some(self.begin.map_or(begin, |before| before.min(begin)));
        self.end = Some(self.end.map_or(end, |before| before.max(end)));
    }

    #[expect(clippy::cast_precision_loss, reason = "as torchcodec computes it")]
    fn timing(&self, stream: &Stream) -> Result<Timing, VideoError> {
        let (numerator, denominator) = stream.time_base;
        let seconds = |time: Option<i64>| time.unwrap_or(0) as f64 * numerator / denominator;
        let seconds = seconds(self.end) - seconds(self.begin);
        let frames = self.frames;
        if frames == 0 {
            return Err(VideoError::TooFew {
                total: 0,
                wanted: 1,
            });
        }
        let fps = match seconds > 0.0 {
            true => Some(frames as f64 / seconds),
            false => stream.average,
        };
        match fps {
            Some(fps) if fps.is_finite() && fps > 0.0 => Ok(Timing { frames, fps }),
            _ => Err(VideoError::NoRate { frames, seconds }),
        }
    }
}

/// Gives the frames of these numbers, ascending, one after the other to `sink`.
pub(super) fn frames(
    path: &Path,
    stream: &Stream,
    indices: &[usize],
    cancel: &CancelToken,
    sink: &mut dyn FnMut(RgbPicture) -> Result<(), VideoError>,
) -> Result<(), VideoError> {
    let mut arguments = input_arguments(FFMPEG, path);
    let number = |index: &usize| format!("eq(n,{index})");
    let numbers: Vec<String> = indices.iter().map(number).collect();
    // torchcodec scales to the same size with these flags
    let filters = format!(
        "select='{}',scale=sws_flags=bilinear,format=rgb24",
        numbers.join("+")
    );
    let (which, count) = (format!("0:{}", stream.index), indices.len().to_string());
    let words = ["-map", &which, "-vf", &filters, "-frames:v", &count];
    arguments.extend(words.map(Into::into));
    arguments.extend(passthrough().map(Into::into));
    // each frame in a file of its own says how large it is
    arguments.extend(["-c:v", "ppm", "-f", "image2pipe", "pipe:1"].map(Into::into));
    let (running, stdout) = Running::start(FFMPEG, &arguments)?;
    let pictures = Pieces::of(stdout, read_ppm);
    let mut seen = 0;
    while let Some(picture) = pictures.next(cancel)? {
        sink(picture)?;
        seen += 1;
        if cancel.is_cancelled() {
            return Err(VideoError::Stopped);
        }
    }
    let message = running.finish()?;
    if seen != indices.len() {
        let separator = if message.is_empty() { "" } else { ": " };
        return Err(VideoError::Truncated {
            seen,
            wanted: indices.len(),
            message: format!("{separator}{message}"),
        });
    }
    Ok(())
}

/// A picture in the format PPM; `None` at the end, or where it is none.
fn read_ppm(stdout: &mut BufReader<ChildStdout>) -> Option<RgbPicture> {
    let mut line = || read_line(stdout, 64);
    let (magic, size, most) = (line()?, line()?, line()?);
    let (width, height) = size.split_once(' ')?;
    let (width, height) = (width.parse().ok()?, height.parse().ok()?);
    let pixels = usize::checked_mul(width, height)?;
    if (magic.as_str(), most.as_str()) != ("P6", "255") || pixels as u64 > MAX_PIXELS {
        return None;
    }
    let mut values = vec![0; pixels * 3];
    stdout.read_exact(&mut values).ok()?;
    Some(Picture {
        width,
        height,
        values,
    })
}

/// A path that does not depend on the folder that the program is started in.
pub(super) fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}
