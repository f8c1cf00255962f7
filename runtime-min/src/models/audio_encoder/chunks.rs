//! How clips are cut: into chunks that are convolved on their own, into windows of tokens that
//! attend to each other.

use super::AudioSpec;
use crate::error::MediaError;
use crate::error::RunError;
use crate::processing::{AudioFeatures, audio_tokens};

/// One chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Chunk {
    /// Its first frame, of those of all clips.
    pub(super) first: usize,
    pub(super) frames: usize,
}

/// The chunks of all clips.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chunks {
    pub(super) all: Vec<Chunk>,
    /// Tokens of each clip.
    clips: Vec<usize>,
}

impl Chunks {
    /// Cuts clips.
    ///
    /// # Errors
    /// `Media` where the features contradict themselves or the model.
    pub(super) fn of(features: &AudioFeatures, spec: &AudioSpec) -> Result<Self, RunError> {
        if features.mel_bins != spec.mel_bins {
            return Err(MediaError::MelBins {
                seen: features.mel_bins,
                wanted: spec.mel_bins,
            }
            .into());
        }
        let frames = features
            .lengths
            .iter()
            .try_fold(0, |n: usize, more| n.checked_add(*more));
        let values = frames.and_then(|frames| frames.checked_mul(features.mel_bins));
        if values != Some(features.values.len()) {
            return Err(MediaError::FeatureValues {
                medium: "audio",
                seen: features.values.len(),
            }
            .into());
        }
        let (mut all, mut first) = (Vec::new(), 0);
        for length in &features.lengths {
            let end = first + length;
            while first < end {
                let frames = spec.chunk_frames.min(end - first);
                all.push(Chunk { first, frames });
                first += frames;
            }
        }
        let clips = features.lengths.iter().map(|n| audio_tokens(*n)).collect();
        Ok(Self { all, clips })
    }

    /// Tokens of all clips.
    pub(super) fn tokens(&self) -> usize {
        self.clips.iter().sum()
    }

    /// Frames that every chunk is padded to: those of the longest.
    pub(super) fn padded(&self) -> usize {
        self.all.iter().map(|chunk| chunk.frames).max().unwrap_or(0)
    }

    /// Tokens of a whole window: those of the longest chunk, as often as chunks fit a window.
    fn window(&self, spec: &AudioSpec) -> usize {
        let longest = self
            .all
            .iter()
            .map(|chunk| audio_tokens(chunk.frames))
            .max();
        longest
            .unwrap_or(0)
            .saturating_mul(spec.window_chunks)
            .max(1)
    }

    /// Tokens of the longest window.
    pub(super) fn longest_window(&self, spec: &AudioSpec) -> usize {
        let longest = self.clips.iter().copied().max().unwrap_or(0);
        longest.min(self.window(spec))
    }

    /// The first token of each window, and the end of the last. No window is of two clips.
    pub(super) fn windows(&self, spec: &AudioSpec) -> Vec<usize> {
        let window = self.window(spec);
        let mut windows = vec![0];
        let mut first = 0;
        for tokens in &self.clips {
            let end = first + tokens;
            while first < end {
                first = end.min(first + window);
                windows.push(first);
            }
        }
        windows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPEC: AudioSpec = AudioSpec {
        layers: 1,
        width: 4,
        heads: 1,
        ffn: 1,
        channels: 1,
        mel_bins: 1,
        output: 1,
        chunk_frames: 100,
        window_chunks: 8,
    };

    fn chunks(lengths: &[usize]) -> Chunks {
        let features = AudioFeatures {
            mel_bins: 1,
            values: vec![0.0; lengths.iter().sum()],
            lengths: lengths.to_vec(),
        };
        Chunks::of(&features, &SPEC).unwrap()
    }

    #[test]
    fn clips_are_cut_on_their_own_and_padded_to_the_longest_chunk_of_all() {
        let cut = chunks(&[130, 0, 20]);
        let sizes: Vec<_> = cut.all.iter().map(|c| (c.first, c.frames)).collect();
        assert_eq!(sizes, [(0, 100), (100, 30), (130, 20)]);
        assert_eq!((cut.tokens(), cut.padded()), (13 + 4 + 3, 100));
        assert_eq!(chunks(&[30, 20]).padded(), 30);
    }

    #[test]
    fn windows_are_of_eight_seconds_of_one_clip() {
        assert_eq!(chunks(&[900, 100]).windows(&SPEC), [0, 104, 117, 130]);
        assert_eq!(chunks(&[1700]).windows(&SPEC), [0, 104, 208, 221]);
        // where no chunk is whole, neither is a window
        assert_eq!(chunks(&[30, 20]).windows(&SPEC), [0, 4, 7]);
    }

    #[test]
    fn features_that_contradict_themselves_are_refused() {
        for (mel_bins, values, lengths) in [
            (2, 4, vec![2]),
            (1, 4, vec![3]),
            (1, 4, vec![usize::MAX, 5]),
            (1, 0, vec![1 << 60]),
        ] {
            let features = AudioFeatures {
                mel_bins,
                values: vec![0.0; values],
                lengths,
            };
            assert!(Chunks::of(&features, &SPEC).is_err());
        }
    }
}
