//! What audio clips, images and videos become before an encoder takes them. Whoever processes files
//! makes these, encoders take them, traces hold them under the names given here.

/// Log-mel spectrograms of the clips of a prompt, in their order (`mm.audio.features`,
/// `mm.audio.lengths`).
#[derive(Debug, Clone, Default, PartialEq)]
pub struct AudioFeatures {
    /// Bins of the mel scale: rows of `values`.
    pub mel_bins: usize,
    /// `[mel_bins, frames]`, row-major: the valid frames of all clips, one clip after the other.
    pub values: Vec<f32>,
    /// Valid frames of each clip; a frame is 10 ms.
    pub lengths: Vec<usize>,
}

/// Tokens of a whole chunk of 100 frames (modeling_qwen3_omni_moe.py:156).
const CHUNK_TOKENS: usize = 13;
/// Frames of such a chunk.
const CHUNK_FRAMES: usize = 100;

/// Tokens of a clip of so many frames, which are rows of its encoder and placeholders in a prompt:
/// 13 for each 100, and for the rest its length halved three times, rounded up.
#[must_use]
pub fn audio_tokens(frames: usize) -> usize {
    let halved = (0..3).fold(frames % CHUNK_FRAMES, |frames, _| frames.div_ceil(2));
    halved + frames / CHUNK_FRAMES * CHUNK_TOKENS
}

/// Patches of the images or of the videos of a prompt, in their order (`mm.image.pixels`,
/// `mm.image.grid`, or `video`).
#[derive(Debug, Clone, Default, PartialEq)]
pub struct VisualFeatures {
    /// Values of a patch: channels × temporal patch size × patch size².
    pub patch_width: usize,
    /// `[patches, patch_width]`, row-major, normalised. Patches are in merge-block order: block
    /// row, block column, row in the block, column in the block. Values of a patch are ordered by
    /// channel, time, y, x.
    pub values: Vec<f32>,
    /// Patches along time, height and width of each image or video.
    pub grids: Vec<[usize; 3]>,
}

/// Everything of a prompt that is not text.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct MediaFeatures {
    /// Audio clips, sound tracks of videos among them where they stand.
    pub audio: AudioFeatures,
    /// Still images.
    pub images: VisualFeatures,
    /// Videos.
    pub videos: VisualFeatures,
    /// Seconds between two temporal patches of each video (`mm.video.second_per_grid`). The same
    /// number for all videos of a prompt: temporal patch size / frames per second asked for.
    pub second_per_grid: Vec<f32>,
    /// Whether the sound track of a video is interleaved with its frames.
    pub use_audio_in_video: bool,
}

impl MediaFeatures {
    /// Whether there is nothing but text.
    pub fn is_empty(&self) -> bool {
        self.audio.lengths.is_empty()
            && self.images.grids.is_empty()
            && self.videos.grids.is_empty()
    }

    /// Gives back the memory of the values, which encoders alone take; lengths and grids stay.
    pub fn drop_values(&mut self) {
        self.audio.values = Vec::new();
        self.images.values = Vec::new();
        self.videos.values = Vec::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_of_audio_follow_the_official_floor_division() {
        // (0 - 1) // 2 + 1 is 0 in Python, and 1 in languages that round to zero
        let known = [
            (0, 0),
            (1, 1),
            (8, 1),
            (9, 2),
            (17, 3),
            (99, 13),
            (100, 13),
            (101, 14),
            (3000, 390),
            (3100, 403),
            (30_100, 3913),
        ];
        for (frames, tokens) in known {
            assert_eq!(audio_tokens(frames), tokens, "{frames} frames");
        }
    }
}
