//! What the checkpoint says of its processor.
//!
//! transformers 5 writes `processor_config.json` with an object for each processor; before, the
//! feature extractor and the image processor shared `preprocessor_config.json`, and the video
//! processor had it too, or a file of its own. The order in which they are looked for is that of
//! transformers 5.23 (`get_image_processor_dict` and its siblings). Whatever is not in these files
//! is an error: the defaults of the classes are of other models.

use serde_json::{Map, Value};

use crate::processing::text::{BoxError, FileReader};

const NESTED: &str = "processor_config.json";
const SHARED: &str = "preprocessor_config.json";
const VIDEO: &str = "video_preprocessor_config.json";

/// Pixels of a frame of a video: the processor's class overrides what the files say
/// (`Qwen3OmniMoeProcessor.videos_kwargs`).
const FRAME_PIXELS: [u64; 2] = [128 * 32 * 32, 768 * 32 * 32];
/// Frames of a video where the files do not say (`Qwen2VLVideoProcessor`).
const FRAMES: [usize; 2] = [4, 768];
/// Beyond this a size in the files is an error and no allocation.
const MAX_SIZE: u64 = 1 << 16;

/// Why the settings of a processor cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SettingsError {
    /// A file could not be read.
    #[error("{file}: cannot be read")]
    Read {
        /// The file's name.
        file: &'static str,
        /// The reader's error.
        #[source]
        source: BoxError,
    },
    /// A file is no JSON object.
    #[error("{file}: not a JSON object")]
    Json {
        /// The file's name.
        file: &'static str,
        /// Where it is damaged.
        #[source]
        source: serde_json::Error,
    },
    /// The checkpoint has no settings for such media.
    #[error("the checkpoint has no settings for {media}: {file} is missing, or has none")]
    NoFile {
        /// Such as `audio`.
        media: &'static str,
        /// The file that was looked for last.
        file: &'static str,
    },
    /// A setting is missing, or is no such value.
    #[error("{file}: {key} is {seen}, expected {wanted}")]
    Value {
        /// The file's name.
        file: &'static str,
        /// The setting, with the names of the objects that it is in.
        key: String,
        /// What it is, or `missing`.
        seen: String,
        /// What it has to be.
        wanted: &'static str,
    },
}

/// How samples become log-mel spectrograms (`WhisperFeatureExtractor`).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct AudioSettings {
    /// Samples per second.
    pub sampling_rate: u32,
    /// Bins of the mel scale.
    pub mel_bins: usize,
    /// Samples of a frame, and of its Fourier transform.
    pub fft_length: usize,
    /// Samples between two frames.
    pub hop_length: usize,
}

/// How images, or frames of videos, become patches (`Qwen2VLImageProcessor`).
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct VisualSettings {
    /// Pixels of a patch, along each side.
    pub patch_size: usize,
    /// Patches that become one token, along each side.
    pub merge_size: usize,
    /// Frames of a patch.
    pub temporal_patch_size: usize,
    /// Mean of each channel, of values from 0 to 1.
    pub mean: [f32; 3],
    /// Standard deviation of each channel, of values from 0 to 1.
    pub std: [f32; 3],
    /// Fewest pixels of an image or frame.
    pub min_pixels: u64,
    /// Most pixels of an image or frame.
    pub max_pixels: u64,
}

/// How videos become patches (`Qwen2VLVideoProcessor`).
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct VideoSettings {
    /// How frames become patches.
    pub frames: VisualSettings,
    /// Fewest frames that are sampled.
    pub min_frames: usize,
    /// Most frames that are sampled.
    pub max_frames: usize,
}

impl AudioSettings {
    /// # Errors
    /// Where a file cannot be read, or has no such settings, or they are of another processor.
    pub fn load<E: Into<BoxError>>(files: &FileReader<'_, E>) -> Result<Self, SettingsError> {
        let settings = Settings::find(files, "audio", "feature_extractor", &[SHARED])?;
        settings.only("feature_extractor_type", &["WhisperFeatureExtractor"])?;
        settings.only_where_given("padding_side", &Value::from("right"), "\"right\"")?;
        settings.only_where_given("padding_value", &Value::from(0.0), "0.0")?;
        settings.only_where_given("dither", &Value::from(0.0), "0.0")?;
        settings.only_where_given("do_normalize", &Value::from(false), "false")?;
        let read = Self {
            sampling_rate: u32::try_from(settings.number("sampling_rate", 1 << 20)?).unwrap_or(0),
            mel_bins: settings.size("feature_size")?,
            fft_length: settings.size("n_fft")?,
            hop_length: settings.size("hop_length")?,
        };
        if read.fft_length % 2 == 1 {
            return Err(settings.wrong("n_fft", "an even number"));
        }
        Ok(read)
    }
}

impl VisualSettings {
    /// Those of images.
    ///
    /// # Errors
    /// Where a file cannot be read, or has no such settings, or they are of another processor.
    pub fn load<E: Into<BoxError>>(files: &FileReader<'_, E>) -> Result<Self, SettingsError> {
        let settings = Settings::find(files, "images", "image_processor", &[SHARED])?;
        settings.only("image_processor_type", &IMAGE_PROCESSORS)?;
        let limits = [
            settings.pixels("min_pixels", "shortest_edge")?,
            settings.pixels("max_pixels", "longest_edge")?,
        ];
        Self::read(&settings, limits)
    }

    fn read(
        settings: &Settings,
        [min_pixels, max_pixels]: [u64; 2],
    ) -> Result<Self, SettingsError> {
        for key in ["do_resize", "do_rescale", "do_normalize", "do_convert_rgb"] {
            settings.only_where_given(key, &Value::from(true), "true")?;
        }
        settings.only_where_given("resample", &Value::from(3), "3, which is bicubic")?;
        settings.only_where_given("rescale_factor", &Value::from(1.0 / 255.0), "1/255")?;
        Ok(Self {
            patch_size: settings.size("patch_size")?,
            merge_size: settings.size("merge_size")?,
            temporal_patch_size: settings.size("temporal_patch_size")?,
            mean: settings.channels("image_mean")?,
            std: settings.channels("image_std")?,
            min_pixels,
            max_pixels,
        })
    }
}

impl VideoSettings {
    /// # Errors
    /// Where a file cannot be read, or has no such settings, or they are of another processor.
    pub fn load<E: Into<BoxError>>(files: &FileReader<'_, E>) -> Result<Self, SettingsError> {
        let settings = Settings::find(files, "videos", "video_processor", &[VIDEO, SHARED])?;
        let frames = |key, default| match settings.given(key) {
            Some(_) => settings.size(key),
            None => Ok(default),
        };
        Ok(Self {
            frames: VisualSettings::read(&settings, FRAME_PIXELS)?,
            min_frames: frames("min_frames", FRAMES[0])?,
            max_frames: frames("max_frames", FRAMES[1])?,
        })
    }
}

/// The names of one class in different versions of transformers.
const IMAGE_PROCESSORS: [&str; 3] = [
    "Qwen2VLImageProcessor",
    "Qwen2VLImageProcessorFast",
    "Qwen2VLImageProcessorPil",
];

/// One processor's object, and where it was.
struct Settings {
    file: &'static str,
    /// Name of the object in the file, with a point after it; empty where the file is the object.
    prefix: String,
    values: Map<String, Value>,
}

impl Settings {
    /// The object `nested` of the one file, or one of the files that are such an object.
    fn find<E: Into<BoxError>>(
        files: &FileReader<'_, E>,
        media: &'static str,
        nested: &str,
        flat: &[&'static str],
    ) -> Result<Self, SettingsError> {
        if let Some(mut values) = read_object(files, NESTED)?
            && let Some(Value::Object(values)) = values.remove(nested)
        {
            let prefix = format!("{nested}.");
            return Ok(Self {
                file: NESTED,
                prefix,
                values,
            });
        }
        for &file in flat {
            if let Some(values) = read_object(files, file)? {
                let prefix = String::new();
                return Ok(Self {
                    file,
                    prefix,
                    values,
                });
            }
        }
        let file = flat.last().copied().unwrap_or(NESTED);
        Err(SettingsError::NoFile { media, file })
    }

    /// A value that is there and is not null.
    fn given(&self, key: &str) -> Option<&Value> {
        self.values.get(key).filter(|value| !value.is_null())
    }

    fn wrong(&self, key: &str, wanted: &'static str) -> SettingsError {
        let (outer, inner) = key.split_once('.').unwrap_or((key, ""));
        let value = self.values.get(outer);
        let value = match inner {
            "" => value,
            inner => value.and_then(|object| object.get(inner)),
        };
        SettingsError::Value {
            file: self.file,
            key: format!("{}{key}", self.prefix),
            seen: value.map_or_else(|| "missing".to_owned(), shortened),
            wanted,
        }
    }

    fn only(&self, key: &str, known: &[&'static str]) -> Result<(), SettingsError> {
        let seen = self.given(key).and_then(Value::as_str);
        match seen.is_some_and(|seen| known.contains(&seen)) {
            true => Ok(()),
            false => Err(self.wrong(key, known.first().copied().unwrap_or_default())),
        }
    }

    fn only_where_given(
        &self,
        key: &str,
        value: &Value,
        wanted: &'static str,
    ) -> Result<(), SettingsError> {
        let same = |seen: &Value| match (seen.as_f64(), value.as_f64()) {
            (Some(seen), Some(value)) => (seen - value).abs() < 1e-9,
            _ => seen == value,
        };
        match self.given(key).is_none_or(same) {
            true => Ok(()),
            false => Err(self.wrong(key, wanted)),
        }
    }

    /// A whole number from 1 to `max`.
    fn number(&self, key: &str, max: u64) -> Result<u64, SettingsError> {
        let number = self.given(key).and_then(Value::as_u64);
        let number = number.filter(|n| (1..=max).contains(n));
        number.ok_or_else(|| self.wrong(key, "a whole number greater than 0"))
    }

    fn size(&self, key: &str) -> Result<usize, SettingsError> {
        let number = usize::try_from(self.number(key, MAX_SIZE)?);
        number.map_err(|_| self.wrong(key, "a smaller number"))
    }

    /// A number of pixels, under its own name or in `size`. Names of edges are historic.
    fn pixels(&self, key: &str, edge: &str) -> Result<u64, SettingsError> {
        if self.given(key).is_some() {
            return self.number(key, u64::MAX);
        }
        let size = self.given("size").and_then(|size| size.get(edge));
        let pixels = size.and_then(Value::as_u64).filter(|n| *n > 0);
        match (pixels, self.given("size")) {
            (Some(pixels), _) => Ok(pixels),
            (None, Some(_)) => Err(self.wrong(&format!("size.{edge}"), "a number of pixels")),
            (None, None) => Err(self.wrong(key, "a number of pixels")),
        }
    }

    fn channels(&self, key: &str) -> Result<[f32; 3], SettingsError> {
        let channels = self.given(key).and_then(three_numbers);
        channels.ok_or_else(|| self.wrong(key, "three numbers"))
    }
}

fn read_object<E: Into<BoxError>>(
    files: &FileReader<'_, E>,
    file: &'static str,
) -> Result<Option<Map<String, Value>>, SettingsError> {
    let read = files(file).map_err(|error| SettingsError::Read {
        file,
        source: error.into(),
    })?;
    let parsed = read.map(|bytes| serde_json::from_slice(&bytes)).transpose();
    parsed.map_err(|source| SettingsError::Json { file, source })
}

fn three_numbers(value: &Value) -> Option<[f32; 3]> {
    let numbers: Option<Vec<f32>> = value.as_array()?.iter().map(finite).collect();
    numbers?.try_into().ok()
}

fn finite(value: &Value) -> Option<f32> {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the official processor computes in float32"
    )]
    let number = value.as_f64()? as f32;
    number.is_finite().then_some(number)
}

/// A value for a message: what a hostile file has can be long.
fn shortened(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// The file of Qwen3-Omni-30B-A3B, as far as it is known.
    fn published() -> Value {
        json!({
            "dither": 0.0, "feature_extractor_type": "WhisperFeatureExtractor",
            "feature_size": 128, "hop_length": 160, "n_fft": 400, "padding_side": "right",
            "padding_value": 0.0, "sampling_rate": 16000,
            "image_processor_type": "Qwen2VLImageProcessor", "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5], "min_pixels": 3136, "max_pixels": 12_845_056,
            "merge_size": 2, "patch_size": 16, "temporal_patch_size": 2
        })
    }

    type Read = Result<Option<Vec<u8>>, std::io::Error>;

    fn one<'a>(name: &'a str, value: &'a Value) -> impl Fn(&str) -> Read + 'a {
        move |file| Ok((file == name).then(|| value.to_string().into_bytes()))
    }

    #[test]
    fn the_file_of_earlier_versions_is_read() {
        let value = published();
        let files = one(SHARED, &value);
        let audio = AudioSettings::load(&files).unwrap();
        assert_eq!((audio.mel_bins, audio.fft_length), (128, 400));
        assert_eq!((audio.hop_length, audio.sampling_rate), (160, 16_000));
        let images = VisualSettings::load(&files).unwrap();
        assert_eq!((images.patch_size, images.merge_size), (16, 2));
        assert_eq!((images.min_pixels, images.max_pixels), (3136, 12_845_056));
        assert_eq!((images.mean, images.std), ([0.5; 3], [0.5; 3]));
        let videos = VideoSettings::load(&files).unwrap();
        let frames = &videos.frames;
        assert_eq!((frames.min_pixels, frames.max_pixels), (131_072, 786_432));
        assert_eq!((videos.min_frames, videos.max_frames), (4, 768));
    }

    #[test]
    fn the_file_of_version_5_is_read() {
        let mut image = published();
        let object = image.as_object_mut().unwrap();
        object.remove("min_pixels");
        object.remove("max_pixels");
        object.insert(
            "size".to_owned(),
            json!({"shortest_edge": 7, "longest_edge": 9}),
        );
        object.insert(
            "image_processor_type".to_owned(),
            json!(IMAGE_PROCESSORS[1]),
        );
        let mut video = image.clone();
        video["max_frames"] = json!(8);
        let nested = json!({"feature_extractor": published(), "image_processor": image,
                            "video_processor": video});
        let files = one(NESTED, &nested);
        assert_eq!(AudioSettings::load(&files).unwrap().mel_bins, 128);
        let images = VisualSettings::load(&files).unwrap();
        assert_eq!((images.min_pixels, images.max_pixels), (7, 9));
        assert_eq!(VideoSettings::load(&files).unwrap().max_frames, 8);
    }

    #[test]
    fn what_is_missing_or_odd_is_named() {
        let none = |_: &str| -> Read { Ok(None) };
        let error = AudioSettings::load(&none).unwrap_err().to_string();
        assert_eq!(
            error,
            "the checkpoint has no settings for audio: preprocessor_config.json is missing, or has none"
        );
        let cases = [
            (
                "n_fft",
                json!(null),
                "n_fft is null, expected a whole number greater than 0",
            ),
            ("n_fft", json!(401), "n_fft is 401, expected an even number"),
            (
                "n_fft",
                json!(1e9),
                "n_fft is 1000000000.0, expected a whole number greater than 0",
            ),
            (
                "feature_size",
                json!(0),
                "feature_size is 0, expected a whole number greater than 0",
            ),
            ("dither", json!(0.1), "dither is 0.1, expected 0.0"),
            (
                "feature_extractor_type",
                json!("Other"),
                "feature_extractor_type is \"Other\", expected WhisperFeatureExtractor",
            ),
        ];
        for (key, wrong, wanted) in cases {
            let mut value = published();
            value[key] = wrong;
            let error = AudioSettings::load(&one(SHARED, &value)).unwrap_err();
            assert_eq!(error.to_string(), format!("{SHARED}: {wanted}"));
        }
        let cases = [
            ("patch_size", "a whole number greater than 0"),
            ("image_mean", "three numbers"),
            ("min_pixels", "a number of pixels"),
        ];
        for (key, wanted) in cases {
            let mut value = published();
            value.as_object_mut().unwrap().remove(key);
            let error = VisualSettings::load(&one(SHARED, &value)).unwrap_err();
            let wanted = format!("{SHARED}: {key} is missing, expected {wanted}");
            assert_eq!(error.to_string(), wanted);
        }
    }
}
