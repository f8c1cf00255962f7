//! Why audio, images or videos cannot be given to a model.

/// Why features, placeholders and model do not fit together.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum MediaError {
    /// Other media than images, for a model of which only those are computed.
    #[error("{medium} cannot be given to this model: images alone are taken")]
    ImagesAlone {
        /// "audio" or "videos".
        medium: &'static str,
    },
    /// A spectrogram of another height.
    #[error("the spectrogram has {seen} mel bins, wanted {wanted} from config.json")]
    MelBins {
        /// Its bins.
        seen: usize,
        /// The model's.
        wanted: usize,
    },
    /// Patches of another size.
    #[error("a patch has {seen} values, wanted {wanted} from config.json")]
    PatchWidth {
        /// Its values.
        seen: usize,
        /// The model's.
        wanted: usize,
    },
    /// A grid that squares of patches do not fill.
    #[error(
        "grid {number} is {seen:?} patches (time, height, width); height and width must be multiples of {merge}, and none 0"
    )]
    Grid {
        /// Which of the images or videos.
        number: usize,
        /// Patches along time, height and width.
        seen: [usize; 3],
        /// Patches along a side of a square.
        merge: usize,
    },
    /// Lengths or grids that are not those of the values.
    #[error(
        "the features of {medium} have {seen} values, which their lengths or grids do not add up to"
    )]
    FeatureValues {
        /// "audio" or "pictures".
        medium: &'static str,
        /// Values.
        seen: usize,
    },
    /// Each video has a number of seconds between its patches.
    #[error("{seen} numbers of seconds per patch for {wanted} videos")]
    Seconds {
        /// Numbers.
        seen: usize,
        /// Videos.
        wanted: usize,
    },
    /// A number of seconds that is none.
    #[error("{seen} seconds between the patches of a video; wanted a positive number")]
    SecondsOutOfRange {
        /// The number.
        seen: f32,
    },
    /// The prompt has another number of placeholders than there are rows.
    #[error("the prompt has {seen} placeholder tokens of {medium}, the features give {wanted}")]
    Placeholders {
        /// "audio", "images" or "videos".
        medium: &'static str,
        /// Placeholders in the prompt.
        seen: usize,
        /// Rows of the features.
        wanted: usize,
    },
    /// The placeholders of one clip, image or video are not together.
    #[error(
        "token {at} of the prompt is {seen}; wanted {wanted}, as the placeholders of {medium} {number} are not complete"
    )]
    Apart {
        /// Where.
        at: usize,
        /// The id there.
        seen: u32,
        /// The placeholder.
        wanted: u32,
        /// "audio", "image" or "video".
        medium: &'static str,
        /// Its number.
        number: usize,
    },
    /// Media can only begin a text.
    #[error("a prompt with media has to be the first of its text; {seen} tokens are before it")]
    NotFirst {
        /// Tokens before it.
        seen: usize,
    },
}
