//! Videos to patches, as the official processor makes them (cargo feature `video`).
//!
//! Containers are decoded by the programs `ffmpeg` and `ffprobe`, animated GIF, WebP and PNG files
//! and folders of frames here. [`process`] does all of it for one video, [`stages`] keeps what a
//! trace records on the way, [`sound_track`] is the sound of a video.

mod animation;
mod container;
mod cut;
mod error;
mod programs;
mod sampling;
mod sound;

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use segpack_formats::io::CancelToken;

pub use error::VideoError;
pub use programs::version;
pub use sampling::{MAX_SAMPLED, Sampling, sample_by_model_card, sample_by_processor};
#[cfg(feature = "audio")]
pub(crate) use sound::audio_file;
pub use sound::{SoundTrack, sound_track};

use self::animation::{Animation, frames_of_folder};
use self::container::{Stream, absolute, best_stream};
use super::VisualFeatures;
use super::image::{
    self, ImageError, PartLimits, Picture, RgbPicture, append_patches, package_size,
    processor_size, resize_float, resize_official, resize_pillow,
};
use super::media::{MediaRecipe, MediaSource, VideoSettings};

/// Most frames of a video: two hours of 60 a second, and some.
pub const MAX_FRAMES: usize = 500_000;

/// Most values that one video becomes; the official limits come to 1.8 thousand millions.
pub const MAX_VALUES: u64 = 1 << 31;

/// Pixels of a frame after the package's resize, where nothing is asked for: fewest, most.
const MODEL_CARD_FRAME: [u64; 2] = [128 * 28 * 28, 768 * 28 * 28];
/// Pixels of all frames of a video there.
const MODEL_CARD_TOTAL: f64 = 128_000.0 * 28.0 * 28.0 * 0.9;
/// Frames of a video there are taken in pairs.
const MODEL_CARD_GROUP: f64 = 2.0;

/// What is asked of a video.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct VideoRequest {
    /// Which way frames are sampled and resized.
    pub recipe: MediaRecipe,
    /// How many frames are taken. Of a folder each one is.
    pub sampling: Sampling,
    /// What the part of the conversation says; [`MediaRecipe::Transformers`] does not look at it.
    pub limits: PartLimits,
}

impl VideoRequest {
    /// So many frames of a second, and otherwise what the settings say.
    pub fn new(recipe: MediaRecipe, fps: Option<f64>, settings: &VideoSettings) -> Self {
        Self {
            recipe,
            sampling: Sampling {
                fps,
                frames: None,
                min_frames: settings.min_frames,
                max_frames: settings.max_frames,
                seconds: [None; 2],
            },
            limits: PartLimits::default(),
        }
    }

    /// Seconds between two temporal patches, as the model is told them: that of the rate asked for,
    /// not that of the file. By the model card the processor is not told the rate and takes 1 for
    /// it.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        reason = "as Python and torch compute it"
    )]
    pub fn second_per_grid(&self, settings: &VideoSettings) -> f32 {
        let fps = match self.recipe {
            MediaRecipe::Transformers => self.sampling.fps.unwrap_or(1.0),
            MediaRecipe::ModelCard => 1.0,
        };
        (settings.frames.temporal_patch_size as f64 / fps) as f32
    }
}

/// How many frames a video has and how fast they follow.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Timing {
    /// Frames, in the order in which they are shown.
    pub frames: usize,
    /// Frames of a second, on average.
    pub fps: f64,
}

/// A video that can be decoded.
#[derive(Debug)]
pub struct Video {
    source: Source,
}

#[derive(Debug)]
enum Source {
    Container { path: PathBuf, stream: Stream },
    Animation(Animation),
    Pictures(Vec<MediaSource>),
}

impl Video {
    /// Opens a file or a folder of frames.
    ///
    /// # Errors
    /// Where it cannot be read, is no video, or the programs are not there.
    pub fn open(path: &Path, cancel: &CancelToken) -> Result<Self, VideoError> {
        let path = absolute(path);
        let source = if fs::metadata(&path).map_err(VideoError::Read)?.is_dir() {
            let files = frames_of_folder(&path)?.into_iter();
            Source::Pictures(files.map(MediaSource::Path).collect())
        } else {
            let head = check_file(&path)?;
            match Animation::open(&path, &head)? {
                Some(animation) => Source::Animation(animation),
                None => {
                    let stream = best_stream(&path, "video", cancel)?;
                    let stream = stream.ok_or(VideoError::NoTrack)?;
                    Source::Container { path, stream }
                }
            }
        };
        Ok(Self { source })
    }

    /// A video whose frames are pictures.
    pub fn of_pictures(frames: Vec<MediaSource>) -> Self {
        let source = Source::Pictures(frames);
        Self { source }
    }

    /// Frames and their rate; `None` for pictures, which have no rate.
    ///
    /// # Errors
    /// Where there are none, or too many, or the file is damaged.
    pub fn timing(&self, cancel: &CancelToken) -> Result<Option<Timing>, VideoError> {
        match &self.source {
            Source::Container { path, stream } => container::timing(path, stream, cancel).map(Some),
            Source::Animation(animation) => animation.timing(cancel).map(Some),
            Source::Pictures(_) => Ok(None),
        }
    }

    /// Numbers of the frames that are taken, ascending.
    fn sample(
        &self,
        timing: Option<Timing>,
        settings: &VideoSettings,
        request: &VideoRequest,
    ) -> Result<Vec<usize>, VideoError> {
        let (Timing { frames, fps }, sampling) = match (timing, &self.source) {
            (Some(timing), _) => (timing, &request.sampling),
            (None, Source::Pictures(files)) => return Ok((0..files.len()).collect()),
            (None, _) => return Ok(Vec::new()),
        };
        match request.recipe {
            MediaRecipe::Transformers => {
                let group = settings.frames.temporal_patch_size;
                sample_by_processor(frames, fps, sampling, group)
            }
            MediaRecipe::ModelCard => sample_by_model_card(frames, fps, sampling),
        }
    }

    /// Gives the frames of these numbers, ascending, one after the other to `sink`.
    ///
    /// # Errors
    /// Where one of them cannot be decoded, `sink` fails, or `cancel` is set.
    pub fn frames(
        &self,
        indices: &[usize],
        recipe: MediaRecipe,
        cancel: &CancelToken,
        sink: &mut dyn FnMut(RgbPicture) -> Result<(), VideoError>,
    ) -> Result<(), VideoError> {
        match &self.source {
            Source::Container { path, stream } => {
                container::frames(path, stream, indices, cancel, sink)
            }
            Source::Animation(animation) => animation.frames(indices, cancel, sink),
            Source::Pictures(files) => {
                for &index in indices {
                    if cancel.is_cancelled() {
                        return Err(VideoError::Stopped);
                    }
                    let fail = |source| VideoError::Frame {
                        frame: index,
                        source,
                    };
                    let bytes = files[index].read_picture().map_err(fail)?;
                    sink(image::decode(&bytes, recipe).map_err(fail)?)?;
                }
                Ok(())
            }
        }
    }
}

/// The first bytes of a regular file.
fn check_file(path: &Path) -> Result<Vec<u8>, VideoError> {
    if !fs::metadata(path).map_err(VideoError::Read)?.is_file() {
        return Err(VideoError::NotAFile);
    }
    let file = File::open(path).map_err(VideoError::Read)?;
    let mut head = Vec::new();
    let mut beginning = file.take(64);
    beginning.read_to_end(&mut head).map_err(VideoError::Read)?;
    Ok(head)
}

/// Frames that are cut into patches.
#[derive(Debug, Clone, PartialEq)]
pub enum ResizedFrames {
    /// Of 8 bits.
    Bytes(Vec<RgbPicture>),
    /// Neither rounded nor clipped: [`MediaRecipe::ModelCard`] resizes twice, then in float32.
    Floats(Vec<Picture<f32>>),
}

/// A video on its way to patches, at each stage that a trace records.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct VideoStages {
    /// Frames of the video and their rate; `None` for a folder.
    pub timing: Option<Timing>,
    /// Numbers of the frames that were taken (`mm.video.indices`).
    pub indices: Vec<usize>,
    /// These frames after decoding (`mm.video.decoded`).
    pub decoded: Vec<RgbPicture>,
    /// [`MediaRecipe::ModelCard`] only: after the package's own resize (`mm.video.pre`).
    pub pre: Vec<RgbPicture>,
    /// After the processor's resize (`mm.video.resized`).
    pub resized: ResizedFrames,
}

/// What was taken of a video.
#[derive(Debug, Clone, PartialEq)]
pub struct VideoSummary {
    /// Frames of the video and their rate; `None` for a folder.
    pub timing: Option<Timing>,
    /// Numbers of the frames that were taken.
    pub indices: Vec<usize>,
}

/// Decodes the frames that are asked for and resizes them, keeping what is on the way.
///
/// # Errors
/// Where the file is no video that can be decoded, or too large, or damaged, or `cancel` is set.
pub fn stages(
    path: &Path,
    settings: &VideoSettings,
    request: &VideoRequest,
    cancel: &CancelToken,
) -> Result<VideoStages, VideoError> {
    Processing::run(&Video::open(path, cancel)?, settings, request, cancel, true)
}

/// Decodes the frames that are asked for, resizes them, and appends their patches and their grid.
/// Frames are resized while they are decoded: they are in memory as the model takes them.
///
/// # Errors
/// As [`stages`].
pub fn process(
    path: &Path,
    settings: &VideoSettings,
    request: &VideoRequest,
    features: &mut VisualFeatures,
    cancel: &CancelToken,
) -> Result<VideoSummary, VideoError> {
    let video = Video::open(path, cancel)?;
    let stages = Processing::run(&video, settings, request, cancel, false)?;
    append(&stages.resized, settings, features)?;
    Ok(VideoSummary {
        timing: stages.timing,
        indices: stages.indices,
    })
}

/// Decodes the frames that are asked for and resizes them.
///
/// # Errors
/// As [`stages`].
pub fn resized(
    video: &Video,
    settings: &VideoSettings,
    request: &VideoRequest,
    cancel: &CancelToken,
) -> Result<ResizedFrames, VideoError> {
    Ok(Processing::run(video, settings, request, cancel, false)?.resized)
}

/// Appends the patches and the grid of the frames of one video.
///
/// # Errors
/// Where there are none.
pub fn append(
    frames: &ResizedFrames,
    settings: &VideoSettings,
    features: &mut VisualFeatures,
) -> Result<(), VideoError> {
    match frames {
        ResizedFrames::Bytes(frames) => append_patches(frames, &settings.frames, features)?,
        ResizedFrames::Floats(frames) => append_patches(frames, &settings.frames, features)?,
    }
    Ok(())
}

/// Why a frame cannot be used.
enum Unusable {
    Image(ImageError),
    TooMuch { width: usize, height: usize },
}

impl From<ImageError> for Unusable {
    fn from(error: ImageError) -> Self {
        Self::Image(error)
    }
}

impl Unusable {
    fn of(self, frame: usize, frames: usize) -> VideoError {
        match self {
            Self::Image(source) => VideoError::Frame { frame, source },
            Self::TooMuch { width, height } => VideoError::TooMuch {
                frames,
                width,
                height,
            },
        }
    }
}

/// Takes the frames of one video.
struct Processing<'a> {
    settings: &'a VideoSettings,
    request: &'a VideoRequest,
    /// Whether frames are kept before they are resized.
    keep: bool,
    /// Width and height of the first frame.
    size: Option<(usize, usize)>,
    stages: VideoStages,
}

impl Processing<'_> {
    fn run(
        video: &Video,
        settings: &VideoSettings,
        request: &VideoRequest,
        cancel: &CancelToken,
        keep: bool,
    ) -> Result<VideoStages, VideoError> {
        let timing = video.timing(cancel)?;
        let indices = video.sample(timing, settings, request)?;
        let in_floats = request.recipe == MediaRecipe::ModelCard;
        let mut processing = Processing {
            settings,
            request,
            keep,
            size: None,
            stages: VideoStages {
                timing,
                indices: indices.clone(),
                decoded: Vec::new(),
                pre: Vec::new(),
                resized: match in_floats {
                    true => ResizedFrames::Floats(Vec::new()),
                    false => ResizedFrames::Bytes(Vec::new()),
                },
            },
        };
        let mut frame = 0;
        video.frames(&indices, request.recipe, cancel, &mut |picture| {
            let taken = processing.take(picture, frame, indices.len());
            taken.map_err(|unusable| unusable.of(frame, indices.len()))?;
            frame += 1;
            Ok(())
        })?;
        Ok(processing.stages)
    }

    fn take(&mut self, picture: RgbPicture, frame: usize, frames: usize) -> Result<(), Unusable> {
        let seen = (picture.width, picture.height);
        let wanted = *self.size.get_or_insert(seen);
        if seen != wanted {
            return Err(ImageError::FrameSize {
                frame,
                seen,
                wanted,
            }
            .into());
        }

        let pre = self.pre(&picture, frames)?;
        let input = pre.as_ref().unwrap_or(&picture);
        let settings = &self.settings.frames;
        let (width, height) = processor_size(input.width, input.height, settings)?;
        let values = (width as u64 * height as u64 * 3).saturating_mul(frames as u64);
        if values > MAX_VALUES {
            return Err(Unusable::TooMuch { width, height });
        }
        match &mut self.stages.resized {
            ResizedFrames::Bytes(resized) => {
                resized.push(resize_official(input, width, height)?);
            }
            ResizedFrames::Floats(resized) => {
                resized.push(resize_float(&to_floats(input), width, height));
            }
        }
        if self.keep {
            self.stages.decoded.push(picture);
            self.stages.pre.extend(pre);
        }
        Ok(())
    }

    /// What the package does before the processor sees a frame.
    fn pre(&self, picture: &RgbPicture, frames: usize) -> Result<Option<RgbPicture>, ImageError> {
        let limits = &self.request.limits;
        if self.request.recipe == MediaRecipe::Transformers {
            return Ok(None);
        }
        if self.stages.timing.is_some() {
            return resize_frame(picture, limits, frames).map(Some);
        }
        // pictures are resized as pictures before; the last is taken twice where their number is odd
        let (width, height) = image::model_card_frame_size(picture.width, picture.height, limits)?;
        let picture = resize_pillow(picture, width, height);
        resize_frame(&picture, limits, frames.next_multiple_of(2)).map(Some)
    }
}

/// The package's resize of a frame of a video of so many.
fn resize_frame(
    picture: &RgbPicture,
    limits: &PartLimits,
    frames: usize,
) -> Result<RgbPicture, ImageError> {
    let (width, height) = package_frame_size(picture, limits, frames)?;
    if (width, height) == (picture.width, picture.height) {
        return Ok(picture.clone());
    }
    let resized = resize_float(&to_floats(picture), width, height);
    Ok(rounded(&resized))
}

/// Width and height of a frame after the package's resize.
#[expect(clippy::cast_precision_loss, reason = "as Python computes it")]
fn package_frame_size(
    picture: &RgbPicture,
    limits: &PartLimits,
    frames: usize,
) -> Result<(usize, usize), ImageError> {
    if limits.resized.is_some() {
        return image::model_card_size(picture.width, picture.height, limits);
    }
    let [min, max] = MODEL_CARD_FRAME;
    let min = limits.min_pixels.unwrap_or(min);
    let share = MODEL_CARD_TOTAL / frames as f64 * MODEL_CARD_GROUP;
    let max = (max as f64).min(share).max((min as f64 * 1.05).floor());
    let max = limits
        .max_pixels
        .map_or(max, |requested| max.min(requested as f64));
    package_size(picture.width, picture.height, min, max)
}

fn to_floats(picture: &RgbPicture) -> Picture<f32> {
    Picture {
        width: picture.width,
        height: picture.height,
        values: picture.values.iter().map(|v| f32::from(*v)).collect(),
    }
}

/// To whole numbers, half to even, from 0 to 255.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "clipped before"
)]
fn rounded(picture: &Picture<f32>) -> RgbPicture {
    let round = |v: &f32| v.round_ties_even().clamp(0.0, 255.0) as u8;
    Picture {
        width: picture.width,
        height: picture.height,
        values: picture.values.iter().map(round).collect(),
    }
}

#[cfg(test)]
mod tests;
