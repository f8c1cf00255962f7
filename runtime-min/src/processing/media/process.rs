//! From the media of a prompt to what encoders take.

#[cfg(feature = "video")]
use std::io::{self, Write};
#[cfg(feature = "video")]
use std::path::{Path, PathBuf};

use rayon::prelude::*;
#[cfg(any(feature = "audio", feature = "video"))]
use segpack_formats::FormatError;
use segpack_formats::io::CancelToken;

#[cfg(feature = "image")]
use serde_json::Value;

#[cfg(feature = "image")]
use super::MediaSource;
use super::settings::{AudioSettings, VideoSettings, VisualSettings};
use super::{MediaError, MediaKind, MediaPart, MediaRecipe, Replacement};
#[cfg(feature = "audio")]
use crate::processing::audio::{self, AudioError};
#[cfg(feature = "image")]
use crate::processing::image::{self, ImageError, PartLimits};
use crate::processing::text::{BoxError, FileReader};
#[cfg(feature = "video")]
use crate::processing::video::{self, Video, VideoError, VideoRequest};
use crate::processing::{AudioFeatures, MediaFeatures, VisualFeatures, audio_tokens};

/// How media are processed: keywords of the official processor.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct MediaOptions {
    /// Which official way of loading is followed.
    pub recipe: MediaRecipe,
    /// Whether the sound of videos is a part of the prompt, interleaved with their frames.
    pub use_audio_in_video: bool,
    /// Frames of a second that are taken of videos.
    pub fps: f64,
    /// Most frames of a video. `None`: as the checkpoint says.
    pub max_frames: Option<usize>,
    /// Fewest and most pixels of an image. `None`: as the checkpoint says.
    pub image_pixels: [Option<u64>; 2],
    /// Fewest and most pixels of a frame of a video. `None`: as the official processor's class says.
    pub frame_pixels: [Option<u64>; 2],
}

impl Default for MediaOptions {
    fn default() -> Self {
        Self {
            recipe: MediaRecipe::default(),
            use_audio_in_video: false,
            fps: 2.0,
            max_frames: None,
            image_pixels: [None; 2],
            frame_pixels: [None; 2],
        }
    }
}

/// One of the media of a prompt, as it is in the prompt.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct PlacedMedia {
    /// What it is.
    pub kind: MediaKind,
    /// Its path, or what else it is called.
    pub name: String,
    /// Tokens in the prompt; of a video with sound those of both, without the marks around them.
    pub tokens: usize,
    /// Frames of the spectrogram of its sound, of 10 ms each.
    pub audio_frames: Option<usize>,
    /// Patches along time, height and width.
    pub grid: Option<[usize; 3]>,
    /// Seconds between two patches along time.
    pub second_per_grid: Option<f64>,
}

/// The media of a prompt, processed.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct ProcessedMedia {
    pub(crate) features: MediaFeatures,
    pub(crate) placed: Vec<PlacedMedia>,
    pub(crate) replacements: Vec<(MediaKind, Replacement)>,
}

/// One of the media, decoded: what is needed to say how many tokens it has.
enum Decoded {
    /// The number of its clip.
    Audio(usize),
    /// Its grid.
    Image([usize; 3]),
    /// Its grid, and the number of the clip of its sound where that is a part of the prompt.
    Video([usize; 3], Option<usize>),
}

/// Processes the media of a prompt. `files` reads the checkpoint's settings.
pub(crate) fn process<E: Into<BoxError>>(
    parts: &[MediaPart],
    options: &MediaOptions,
    files: &FileReader<'_, E>,
    cancel: &CancelToken,
) -> Result<ProcessedMedia, MediaError> {
    let settings = Settings::load(parts, options, files)?;
    let decoder = Decoder {
        settings: &settings,
        options,
        cancel,
    };
    let mut collected = Collected::new(&settings, cancel);
    let mut decoded = Vec::with_capacity(parts.len());
    // as many at once as there are threads; each is in memory until the features hold it
    for group in parts.chunks(rayon::current_num_threads().max(1)) {
        let contents: Vec<_> = group.par_iter().map(|part| decoder.decode(part)).collect();
        for one in contents {
            decoded.push(collected.add(&parts[decoded.len()], one?)?);
        }
    }
    let mut features = collected.finish()?;
    let second_per_grid = settings.second_per_grid(options);
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the official processor gives float32"
    )]
    let seconds = vec![second_per_grid as f32; features.videos.grids.len()];
    features.second_per_grid = seconds;
    features.use_audio_in_video = options.use_audio_in_video;

    let places = Places {
        lengths: &features.audio.lengths,
        settings: &settings,
        second_per_grid,
    };
    let mut processed = ProcessedMedia::default();
    for (part, decoded) in parts.iter().zip(&decoded) {
        let (placed, replacement) = places.place(part, decoded);
        processed.placed.push(placed);
        processed.replacements.push((part.kind, replacement));
    }
    processed.features = features;
    Ok(processed)
}

/// The settings of what a prompt has, and of nothing else.
struct Settings {
    audio: Option<AudioSettings>,
    images: Option<VisualSettings>,
    videos: Option<VideoSettings>,
}

impl Settings {
    fn load<E: Into<BoxError>>(
        parts: &[MediaPart],
        options: &MediaOptions,
        files: &FileReader<'_, E>,
    ) -> Result<Self, MediaError> {
        let has = |kind| parts.iter().any(|part| part.kind == kind);
        let (has_image, has_video) = (has(MediaKind::Image), has(MediaKind::Video));
        let has_sound = has(MediaKind::Audio) || has_video && options.use_audio_in_video;
        Ok(Self {
            audio: has_sound.then(|| AudioSettings::load(files)).transpose()?,
            images: has_image.then(|| VisualSettings::load(files)).transpose()?,
            videos: has_video.then(|| VideoSettings::load(files)).transpose()?,
        })
    }

    /// Seconds between two patches of videos along time: of the rate that was asked for, whatever a
    /// file has. The model card's recipe does not tell the processor, which assumes 1.
    fn second_per_grid(&self, options: &MediaOptions) -> f64 {
        let rate = match options.recipe {
            MediaRecipe::Transformers => options.fps,
            MediaRecipe::ModelCard => 1.0,
        };
        let frames = self
            .videos
            .as_ref()
            .map_or(1, |v| v.frames.temporal_patch_size);
        #[expect(clippy::cast_precision_loss, reason = "a small number")]
        let frames = frames as f64;
        frames / rate
    }

    /// Tokens of an image or a video.
    fn tokens(&self, kind: MediaKind, grid: [usize; 3]) -> usize {
        let visual = match kind {
            MediaKind::Video => self.videos.as_ref().map(|videos| &videos.frames),
            MediaKind::Audio | MediaKind::Image => self.images.as_ref(),
        };
        let merge = visual.map_or(1, |settings| settings.merge_size);
        grid.iter().product::<usize>() / (merge * merge)
    }
}

/// One of the media before its features are made.
#[cfg_attr(
    not(feature = "audio"),
    expect(dead_code, reason = "no clip is decoded")
)]
enum Content {
    /// Samples at the model's rate.
    Audio(Vec<f32>),
    #[cfg(feature = "image")]
    Image(image::RgbPicture),
    #[cfg(feature = "video")]
    Video(video::ResizedFrames, Option<Vec<f32>>),
}

/// Decodes media, each on its own.
struct Decoder<'s> {
    settings: &'s Settings,
    options: &'s MediaOptions,
    cancel: &'s CancelToken,
}

impl Decoder<'_> {
    fn decode(&self, part: &MediaPart) -> Result<Content, MediaError> {
        self.cancel.check()?;
        match part.kind {
            MediaKind::Audio => self.decode_audio(part),
            MediaKind::Image => self.decode_image(part),
            MediaKind::Video => self.decode_video(part),
        }
    }

    #[cfg(feature = "audio")]
    fn decode_audio(&self, part: &MediaPart) -> Result<Content, MediaError> {
        let Some(settings) = &self.settings.audio else {
            return Err(not_built(part, "audio")); // settings are loaded for what there is
        };
        let unusable = |source: AudioError| {
            let unreadable = matches!(source, AudioError::Read(_));
            unusable(part, source, unreadable)
        };
        let source = part
            .source
            .open()
            .map_err(AudioError::Read)
            .map_err(unusable)?;
        let rate = settings.sampling_rate;
        #[cfg(feature = "video")]
        if part.source.open().is_ok_and(audio::is_aac) {
            // our decoder would begin with the encoder's delay, which the official loaders cut off
            let decoded = self.decode_by_program(part, rate, AudioError::Decoder);
            return match decoded {
                Err(AudioError::Stopped) => Err(FormatError::Interrupted.into()),
                samples => Ok(Content::Audio(samples.map_err(unusable)?)),
            };
        }
        let samples = match audio::decode_until(source, rate, self.cancel) {
            #[cfg(feature = "video")]
            Err(error @ (AudioError::Codec { .. } | AudioError::NotAudio)) => {
                self.decode_by_program(part, rate, error)
            }
            samples => samples,
        };
        match samples {
            Err(AudioError::Stopped) => Err(FormatError::Interrupted.into()),
            samples => Ok(Content::Audio(samples.map_err(unusable)?)),
        }
    }

    /// What is not decoded here is left to FFmpeg; `error` is why.
    #[cfg(all(feature = "audio", feature = "video"))]
    fn decode_by_program(
        &self,
        part: &MediaPart,
        rate: u32,
        error: AudioError,
    ) -> Result<Vec<f32>, AudioError> {
        let file = VideoFile::of(&part.source).map_err(AudioError::Read)?;
        let Some(path) = file.path() else {
            return Err(error);
        };
        match (video::audio_file(path, self.cancel), error) {
            (Ok(Some(track)), _) => Ok(audio::resample(track.samples, track.rate, rate)),
            (Err(VideoError::Stopped), _) => Err(AudioError::Stopped),
            (Err(VideoError::NoProgram { .. }), AudioError::Codec { codec, .. }) => {
                Err(AudioError::NoProgram { codec })
            }
            (Err(VideoError::NoProgram { .. }), AudioError::Decoder) => {
                let codec = "AAC".to_owned();
                Err(AudioError::NoProgram { codec })
            }
            // what FFmpeg does not know either is what it was before
            (_, error) => Err(error),
        }
    }

    #[cfg(not(feature = "audio"))]
    fn decode_audio(&self, part: &MediaPart) -> Result<Content, MediaError> {
        Err(not_built(part, "audio"))
    }

    #[cfg(feature = "image")]
    fn decode_image(&self, part: &MediaPart) -> Result<Content, MediaError> {
        let Some(settings) = &self.settings.images else {
            return Err(not_built(part, "image")); // settings are loaded for what there is
        };
        let unusable = |source: ImageError| {
            let unreadable = matches!(source, ImageError::Read(_));
            unusable(part, source, unreadable)
        };
        let bytes = part.source.read_picture().map_err(unusable)?;
        let settings = within(settings, self.options.image_pixels);
        let recipe = self.options.recipe;
        let resized = image::resized(&bytes, &settings, recipe, &limits_of(part));
        Ok(Content::Image(resized.map_err(unusable)?))
    }

    #[cfg(not(feature = "image"))]
    fn decode_image(&self, part: &MediaPart) -> Result<Content, MediaError> {
        Err(not_built(part, "image"))
    }

    #[cfg(feature = "video")]
    fn decode_video(&self, part: &MediaPart) -> Result<Content, MediaError> {
        let Some(settings) = &self.settings.videos else {
            return Err(not_built(part, "video")); // settings are loaded for what there is
        };
        let unusable = |source| unusable_video(part, source);
        let file = VideoFile::of(&part.source)
            .map_err(VideoError::Read)
            .map_err(unusable)?;
        let settings = VideoSettings {
            frames: within(&settings.frames, self.options.frame_pixels),
            ..settings.clone()
        };
        let request = video_request(part, &settings, self.options)?;
        let video = match &file {
            VideoFile::Frames(frames) => Ok(Video::of_pictures(frames.clone())),
            VideoFile::Path(path) => Video::open(path, self.cancel),
            VideoFile::Temporary(file) => Video::open(file.path(), self.cancel),
        };
        let video = video.map_err(unusable)?;
        let frames = video::resized(&video, &settings, &request, self.cancel);
        let frames = frames.map_err(unusable)?;
        let sound = match self.options.use_audio_in_video {
            true => self.decode_sound(part, &file)?,
            false => None,
        };
        Ok(Content::Video(frames, sound))
    }

    #[cfg(not(feature = "video"))]
    fn decode_video(&self, part: &MediaPart) -> Result<Content, MediaError> {
        Err(not_built(part, "video"))
    }

    /// The sound of a video as a clip. A video without sound is a video as any other for
    /// transformers, and an error for the model card's package.
    #[cfg(all(feature = "audio", feature = "video"))]
    fn decode_sound(
        &self,
        part: &MediaPart,
        file: &VideoFile,
    ) -> Result<Option<Vec<f32>>, MediaError> {
        let recipe = self.options.recipe;
        let Some(settings) = &self.settings.audio else {
            return Err(not_built(part, "audio")); // settings are loaded for what there is
        };
        let rate = settings.sampling_rate;
        let track = match file.path() {
            Some(path) => video::sound_track(path, rate, recipe, self.cancel),
            None => Ok(None),
        };
        match track.map_err(|source| unusable_video(part, source))? {
            Some(mut track) => {
                if recipe == MediaRecipe::ModelCard {
                    let [start, end] = excerpt(part)?;
                    track.cut(start.unwrap_or(0.0), end);
                }
                Ok(Some(audio::resample(track.samples, track.rate, rate)))
            }
            None if recipe == MediaRecipe::ModelCard => {
                Err(unusable(part, AudioError::NoTrack, false))
            }
            None => Ok(None),
        }
    }

    #[cfg(all(not(feature = "audio"), feature = "video"))]
    fn decode_sound(
        &self,
        part: &MediaPart,
        _: &VideoFile,
    ) -> Result<Option<Vec<f32>>, MediaError> {
        Err(not_built(part, "audio"))
    }
}

/// What media become, in their order.
struct Collected<'s> {
    settings: &'s Settings,
    cancel: &'s CancelToken,
    clips: Vec<Vec<f32>>,
    images: VisualFeatures,
    videos: VisualFeatures,
}

impl<'s> Collected<'s> {
    fn new(settings: &'s Settings, cancel: &'s CancelToken) -> Self {
        Self {
            settings,
            cancel,
            clips: Vec::new(),
            images: VisualFeatures::default(),
            videos: VisualFeatures::default(),
        }
    }

    /// Makes features of one of the media.
    fn add(&mut self, part: &MediaPart, content: Content) -> Result<Decoded, MediaError> {
        match content {
            Content::Audio(samples) => Ok(Decoded::Audio(self.add_clip(samples))),
            #[cfg(feature = "image")]
            Content::Image(picture) => {
                let Some(settings) = &self.settings.images else {
                    return Err(not_built(part, "image")); // settings are loaded for what there is
                };
                image::append_patches(&[picture], settings, &mut self.images)
                    .map_err(|source| unusable(part, source, false))?;
                let grid = self.images.grids.last().copied().unwrap_or_default();
                Ok(Decoded::Image(grid))
            }
            #[cfg(feature = "video")]
            Content::Video(frames, sound) => {
                let Some(settings) = &self.settings.videos else {
                    return Err(not_built(part, "video")); // settings are loaded for what there is
                };
                video::append(&frames, settings, &mut self.videos)
                    .map_err(|source| unusable_video(part, source))?;
                let grid = self.videos.grids.last().copied().unwrap_or_default();
                let sound = sound.map(|samples| self.add_clip(samples));
                Ok(Decoded::Video(grid, sound))
            }
        }
    }

    /// The number of the clip.
    fn add_clip(&mut self, samples: Vec<f32>) -> usize {
        self.clips.push(samples);
        self.clips.len() - 1
    }

    fn finish(self) -> Result<MediaFeatures, MediaError> {
        Ok(MediaFeatures {
            audio: self.audio_features()?,
            images: self.images,
            videos: self.videos,
            ..MediaFeatures::default()
        })
    }

    #[cfg(feature = "audio")]
    fn audio_features(&self) -> Result<AudioFeatures, MediaError> {
        let Some(settings) = self
            .settings
            .audio
            .as_ref()
            .filter(|_| !self.clips.is_empty())
        else {
            return Ok(AudioFeatures::default());
        };
        match audio::features_until(&self.clips, settings, self.cancel) {
            Err(AudioError::Stopped) => Err(FormatError::Interrupted.into()),
            features => features.map_err(|e| MediaError::Clips(e.into())),
        }
    }

    #[cfg(not(feature = "audio"))]
    fn audio_features(&self) -> Result<AudioFeatures, MediaError> {
        Ok(AudioFeatures::default())
    }
}

/// What places the media in a prompt.
struct Places<'f> {
    /// Frames of the spectrograms of all clips.
    lengths: &'f [usize],
    settings: &'f Settings,
    second_per_grid: f64,
}

impl Places<'_> {
    fn place(&self, part: &MediaPart, decoded: &Decoded) -> (PlacedMedia, Replacement) {
        let mut placed = PlacedMedia {
            kind: part.kind,
            name: part.source.name(),
            tokens: 0,
            audio_frames: None,
            grid: None,
            second_per_grid: None,
        };
        let frames = |clip: usize| self.lengths.get(clip).copied().unwrap_or(0);
        let replacement = match *decoded {
            Decoded::Audio(clip) => {
                placed.audio_frames = Some(frames(clip));
                Replacement::Tokens(audio_tokens(frames(clip)))
            }
            Decoded::Image(grid) => {
                placed.grid = Some(grid);
                Replacement::Tokens(self.settings.tokens(part.kind, grid))
            }
            Decoded::Video(grid, sound) => {
                placed.grid = Some(grid);
                placed.second_per_grid = Some(self.second_per_grid);
                placed.audio_frames = sound.map(frames);
                let tokens = self.settings.tokens(part.kind, grid);
                match placed.audio_frames {
                    None => Replacement::Tokens(tokens),
                    Some(frames) => Replacement::Interleaved {
                        tokens_per_patch: tokens / grid[0].max(1),
                        patches: grid[0],
                        seconds: self.second_per_grid,
                        audio: audio_tokens(frames),
                    },
                }
            }
        };
        placed.tokens = replacement.tokens();
        (placed, replacement)
    }
}

fn not_built(part: &MediaPart, feature: &'static str) -> MediaError {
    MediaError::NotBuilt {
        kind: part.kind,
        name: part.source.name(),
        feature,
    }
}

/// The settings with other limits, where there are any.
#[cfg(feature = "image")]
fn within(settings: &VisualSettings, [min, max]: [Option<u64>; 2]) -> VisualSettings {
    VisualSettings {
        min_pixels: min.unwrap_or(settings.min_pixels),
        max_pixels: max.unwrap_or(settings.max_pixels),
        ..settings.clone()
    }
}

#[cfg(feature = "video")]
fn unusable_video(part: &MediaPart, source: VideoError) -> MediaError {
    let unreadable = match source {
        VideoError::Stopped => return FormatError::Interrupted.into(),
        VideoError::Read(_) | VideoError::NotAFile | VideoError::NoProgram { .. } => true,
        _ => false,
    };
    unusable(part, source, unreadable)
}

/// A video for the programs that decode it, which read files.
#[cfg(feature = "video")]
enum VideoFile {
    Path(PathBuf),
    Frames(Vec<MediaSource>),
    /// The bytes of a chat, for as long as they are decoded.
    Temporary(tempfile::NamedTempFile),
}

#[cfg(feature = "video")]
impl VideoFile {
    fn of(source: &MediaSource) -> io::Result<Self> {
        Ok(match source {
            MediaSource::Path(path) => Self::Path(path.clone()),
            MediaSource::Frames(frames) => Self::Frames(frames.clone()),
            MediaSource::Bytes { bytes, .. } => {
                let mut file = tempfile::NamedTempFile::new()?;
                file.write_all(bytes)?;
                Self::Temporary(file)
            }
        })
    }

    /// `None`: pictures, which have no sound.
    #[cfg(feature = "audio")]
    fn path(&self) -> Option<&Path> {
        match self {
            Self::Path(path) => Some(path),
            Self::Frames(_) => None,
            Self::Temporary(file) => Some(file.path()),
        }
    }
}

/// The seconds between which the chat wants a video (`video_start`, `video_end`).
#[cfg(feature = "video")]
fn excerpt(part: &MediaPart) -> Result<[Option<f64>; 2], MediaError> {
    Ok([second(part, "video_start")?, second(part, "video_end")?])
}

/// A number of seconds that the chat gives.
#[cfg(feature = "video")]
fn second(part: &MediaPart, key: &'static str) -> Result<Option<f64>, MediaError> {
    match part.options.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_f64() {
            Some(second) => Ok(Some(second)),
            None => Err(MediaError::Option {
                name: part.source.name(),
                key,
            }),
        },
    }
}

/// Which frames of a video are taken: as the options say and, by the model card's recipe, the chat.
#[cfg(feature = "video")]
fn video_request(
    part: &MediaPart,
    settings: &VideoSettings,
    options: &MediaOptions,
) -> Result<VideoRequest, MediaError> {
    let mut request = VideoRequest::new(options.recipe, Some(options.fps), settings);
    request.limits = limits_of(part);
    let sampling = &mut request.sampling;
    sampling.max_frames = options.max_frames.unwrap_or(sampling.max_frames);
    if options.recipe == MediaRecipe::ModelCard {
        let given = |key| part.options.get(key).filter(|value| !value.is_null());
        sampling.seconds = excerpt(part)?;
        let count = |key| given(key)?.as_u64().and_then(|n| usize::try_from(n).ok());
        sampling.fps = given("fps").and_then(Value::as_f64).or(sampling.fps);
        sampling.frames = count("nframes");
        sampling.min_frames = count("min_frames").unwrap_or(sampling.min_frames);
        sampling.max_frames = count("max_frames").unwrap_or(sampling.max_frames);
    }
    Ok(request)
}

/// What the chat itself says of the size of an image, for the model card's recipe.
#[cfg(feature = "image")]
fn limits_of(part: &MediaPart) -> PartLimits {
    let number = |key| part.options.get(key).and_then(Value::as_u64);
    let side = |key| number(key).and_then(|n| usize::try_from(n).ok());
    PartLimits {
        min_pixels: number("min_pixels"),
        max_pixels: number("max_pixels"),
        resized: side("resized_width").zip(side("resized_height")),
    }
}

#[cfg(any(feature = "audio", feature = "image"))]
fn unusable(part: &MediaPart, source: impl Into<BoxError>, unreadable: bool) -> MediaError {
    MediaError::File {
        kind: part.kind,
        name: part.source.name(),
        source: source.into(),
        unreadable,
    }
}
