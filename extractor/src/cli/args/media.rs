use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};
use segpack_runtime_min::processing::media::{MediaKind, MediaOptions, MediaRecipe};

use super::MEDIA;
use super::values::{count, frames_per_second};

/// Audio, images and videos in the order of the command line, which derived arguments do not keep.
#[derive(Debug, Clone, Default)]
pub(crate) struct MediaFiles {
    pub files: Vec<(MediaKind, String)>,
}

/// Options, their kinds, what they take.
const OPTIONS: [(&str, MediaKind, &str); 3] = [
    (
        "audio",
        MediaKind::Audio,
        "Audio file before the prompt's text (WAV, FLAC, MP3, Ogg Vorbis, M4A, AAC, AIFF, CAF); \
         repeatable",
    ),
    (
        "image",
        MediaKind::Image,
        "Image file before the prompt's text; repeatable",
    ),
    (
        "video",
        MediaKind::Video,
        "Video file before the prompt's text; repeatable",
    ),
];

impl clap::Args for MediaFiles {
    fn augment_args(command: Command) -> Command {
        OPTIONS.iter().fold(command, |command, (name, _, help)| {
            command.arg(
                Arg::new(*name)
                    .long(*name)
                    .value_name("FILE")
                    .action(ArgAction::Append)
                    .requires("chat")
                    .help_heading(MEDIA)
                    .help(*help),
            )
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl clap::FromArgMatches for MediaFiles {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut files = Vec::new();
        for (name, kind, _) in OPTIONS {
            if matches.value_source(name) != Some(ValueSource::CommandLine) {
                continue;
            }
            let indices = matches.indices_of(name).into_iter().flatten();
            let values = matches.get_many::<String>(name).into_iter().flatten();
            files.extend(
                indices
                    .zip(values)
                    .map(|(at, value)| (at, kind, value.clone())),
            );
        }
        files.sort_by_key(|(at, ..)| *at);
        let files = files.into_iter().map(|(_, kind, value)| (kind, value));
        Ok(Self {
            files: files.collect(),
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// How media are processed.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct MediaArgs {
    #[command(flatten)]
    pub files: MediaFiles,
    /// Fetch media of http:// and https:// addresses, 256 MiB in all at most; without it no server is
    /// asked for any
    #[arg(long, requires = "templated", help_heading = MEDIA)]
    pub allow_network: bool,
    /// Make the sound of videos a part of the prompt, interleaved with their frames
    #[arg(long, requires = "conversation", help_heading = MEDIA)]
    pub use_audio_in_video: bool,
    /// Frames of a second to take of videos
    #[arg(
        long,
        value_name = "N",
        default_value = "2",
        value_parser = frames_per_second,
        help_heading = MEDIA
    )]
    pub fps: f64,
    /// Maximum number of frames to take of a video [default: the checkpoint's setting]
    #[arg(long, value_name = "N", value_parser = count, requires = "conversation", help_heading = MEDIA)]
    pub max_frames: Option<usize>,
    /// Minimum number of pixels of an image or of a frame, to which smaller ones are enlarged
    /// [default: the checkpoint's setting]
    #[arg(long, value_name = "N", value_parser = count, requires = "conversation", help_heading = MEDIA)]
    pub min_pixels: Option<usize>,
    /// Maximum number of pixels of an image or of a frame, to which larger ones are reduced
    /// [default: the checkpoint's setting]
    #[arg(long, value_name = "N", value_parser = count, requires = "conversation", help_heading = MEDIA)]
    pub max_pixels: Option<usize>,
    /// Which official way of loading media to follow
    #[arg(long, value_name = "NAME", default_value = "transformers", help_heading = MEDIA)]
    pub media_recipe: RecipeName,
}

/// Official ways of loading media.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(crate) enum RecipeName {
    /// transformers: one resize, EXIF orientation applied, alpha dropped
    Transformers,
    /// qwen-omni-utils as on the model card: resized twice, EXIF orientation ignored, alpha on white
    ModelCard,
}

impl MediaArgs {
    pub(crate) fn options(&self) -> MediaOptions {
        let mut options = MediaOptions::default();
        options.recipe = match self.media_recipe {
            RecipeName::Transformers => MediaRecipe::Transformers,
            RecipeName::ModelCard => MediaRecipe::ModelCard,
        };
        options.use_audio_in_video = self.use_audio_in_video;
        options.fps = self.fps;
        options.max_frames = self.max_frames;
        // the processor's keywords are for images and for videos
        let pixels = [self.min_pixels, self.max_pixels].map(|n| n.map(|n| n as u64));
        options.image_pixels = pixels;
        options.frame_pixels = pixels;
        options
    }
}
