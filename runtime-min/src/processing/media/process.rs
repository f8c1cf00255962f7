//! From the media of a prompt to what encoders take.

#[cfg(feature = "image")]
use std::sync::Arc;

#[cfg(feature = "image")]
use serde_json::Value;

#[cfg(feature = "image")]
use super::MediaSource;
use super::settings::{AudioSettings, VideoSettings, VisualSettings};
use super::{MediaError, MediaKind, MediaPart, MediaRecipe, Replacement, tokens_of_frames};
#[cfg(feature = "audio")]
use crate::processing::audio::{self, AudioError};
#[cfg(feature = "image")]
use crate::processing::image::{self, ImageError, PartLimits};
use crate::processing::text::{BoxError, FileReader};
use crate::processing::{AudioFeatures, MediaFeatures, VisualFeatures};

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
) -> Result<ProcessedMedia, MediaError> {
    let settings = Settings::load(parts, options, files)?;
    let mut decoder = Decoder::new(&settings, options);
    let mut decoded = Vec::with_capacity(parts.len());
    for part in parts {
        decoded.push(decoder.decode(part)?);
    }
    let mut features = decoder.finish()?;
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

/// Decodes the media of a prompt one after the other.
struct Decoder<'s> {
    settings: &'s Settings,
    options: &'s MediaOptions,
    clips: Vec<Vec<f32>>,
    images: VisualFeatures,
    videos: VisualFeatures,
}

impl<'s> Decoder<'s> {
    fn new(settings: &'s Settings, options: &'s MediaOptions) -> Self {
        Self {
            settings,
            options,
            clips: Vec::new(),
            images: VisualFeatures::default(),
            videos: VisualFeatures::default(),
        }
    }

    fn decode(&mut self, part: &MediaPart) -> Result<Decoded, MediaError> {
        match part.kind {
            MediaKind::Audio => self.decode_audio(part),
            MediaKind::Image => self.decode_image(part),
            MediaKind::Video => self.decode_video(part),
        }
    }

    #[cfg(feature = "audio")]
    fn decode_audio(&mut self, part: &MediaPart) -> Result<Decoded, MediaError> {
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
        let samples = audio::decode(source, settings.sampling_rate).map_err(unusable)?;
        self.clips.push(samples);
        Ok(Decoded::Audio(self.clips.len() - 1))
    }

    #[cfg(not(feature = "audio"))]
    fn decode_audio(&mut self, part: &MediaPart) -> Result<Decoded, MediaError> {
        Err(not_built(part, "audio"))
    }

    #[cfg(feature = "image")]
    fn decode_image(&mut self, part: &MediaPart) -> Result<Decoded, MediaError> {
        let Some(settings) = &self.settings.images else {
            return Err(not_built(part, "image")); // settings are loaded for what there is
        };
        let unusable = |source: ImageError| {
            let unreadable = matches!(source, ImageError::Read(_));
            unusable(part, source, unreadable)
        };
        part.source
            .check()
            .map_err(ImageError::Read)
            .map_err(unusable)?;
        let bytes = match &part.source {
            MediaSource::Path(path) => image::read_file(path).map_err(unusable)?.into(),
            MediaSource::Bytes { bytes, .. } => Arc::clone(bytes),
        };
        let settings = within(settings, self.options.image_pixels);
        let recipe = self.options.recipe;
        image::process(
            &bytes,
            &settings,
            recipe,
            &limits_of(part),
            &mut self.images,
        )
        .map_err(unusable)?;
        let grid = self.images.grids.last().copied().unwrap_or_default();
        Ok(Decoded::Image(grid))
    }

    #[cfg(not(feature = "image"))]
    fn decode_image(&mut self, part: &MediaPart) -> Result<Decoded, MediaError> {
        Err(not_built(part, "image"))
    }

    fn decode_video(&mut self, part: &MediaPart) -> Result<Decoded, MediaError> {
        Err(not_built(part, "video"))
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
        audio::features(&self.clips, settings).map_err(|e| MediaError::Clips(e.into()))
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
                Replacement::Tokens(tokens_of_frames(frames(clip)))
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
                        audio: tokens_of_frames(frames),
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
