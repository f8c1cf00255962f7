//! A prompt with audio and pictures: which rows take the place of which tokens, and where in time,
//! height and width each token is.
//!
//! The rules are those of transformers 5.23, `Qwen3OmniMoePreTrainedModelForConditionalGeneration.
//! get_rope_index` and `Qwen3OmniMoeThinkerForConditionalGeneration.forward`
//! (modeling_qwen3_omni_moe.py:220-460 and 1984-2023). Of images alone they are those of
//! `Qwen3VLMoeModel`, too (modeling_qwen3_vl_moe.py:1010-1336).

mod positions;

use segpack_manifests::families::{MediaFacts, MediaTokens};

use super::decoder::MediaInputs;
use super::vision_encoder::{VisualRows, visual_tokens};
use crate::error::RunError;
use crate::processing::{MediaFeatures, audio_tokens};

pub use self::positions::Layout;
pub use crate::error::MediaError;

/// What the encoders give for a prompt.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct EncodedMedia {
    /// `[tokens, hidden]` of all clips.
    pub audio: Vec<f32>,
    /// Of all images.
    pub images: VisualRows,
    /// Of all videos.
    pub videos: VisualRows,
}

impl EncodedMedia {
    /// Bytes that it holds.
    pub fn bytes(&self) -> u64 {
        let visual =
            |v: &VisualRows| v.rows.len() + v.deepstack.iter().map(Vec::len).sum::<usize>();
        4 * (self.audio.len() + visual(&self.images) + visual(&self.videos)) as u64
    }
}

/// Rows that some features give, by medium.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Rows {
    /// Of each clip.
    pub(crate) audio: Vec<usize>,
    /// Of each image.
    pub(crate) images: Vec<usize>,
    /// Of each video.
    pub(crate) videos: Vec<usize>,
}

impl Rows {
    /// Of these features.
    pub(crate) fn of(features: &MediaFeatures, merge: usize) -> Result<Self, MediaError> {
        let audio = features.audio.lengths.iter();
        Ok(Self {
            audio: audio.map(|frames| audio_tokens(*frames)).collect(),
            images: rows_of(&features.images.grids, merge)?,
            videos: rows_of(&features.videos.grids, merge)?,
        })
    }

    /// The prompt has a placeholder for each row.
    fn check(&self, ids: &[u32], tokens: &MediaTokens) -> Result<(), MediaError> {
        let [audio, image, video] = tokens.placeholders();
        for (medium, id, rows) in [
            ("audio", audio, &self.audio),
            ("images", image, &self.images),
            ("videos", video, &self.videos),
        ] {
            let seen = ids.iter().filter(|token| Some(**token) == id).count();
            let wanted = rows.iter().fold(0, |sum: usize, n| sum.saturating_add(*n));
            if seen != wanted {
                return Err(MediaError::Placeholders {
                    medium,
                    seen,
                    wanted,
                });
            }
        }
        Ok(())
    }
}

/// Rows of each grid.
fn rows_of(grids: &[[usize; 3]], merge: usize) -> Result<Vec<usize>, MediaError> {
    let numbered = grids.iter().enumerate();
    let rows = numbered.map(|(number, grid)| match visual_tokens(*grid, merge) {
        Some(rows) => Ok(rows),
        None => Err(MediaError::Grid {
            number,
            seen: *grid,
            merge,
        }),
    });
    rows.collect()
}

/// Where the tokens of a prompt are in time, height and width.
///
/// # Errors
/// `Media` where placeholders and features do not fit together.
pub fn layout(
    facts: &MediaFacts,
    ids: &[u32],
    features: &MediaFeatures,
) -> Result<Layout, RunError> {
    Ok(Layout::of(facts, ids, features)?)
}

/// What the decoder takes for a prompt: rows in the placeholders' place, positions, and what is
/// added after its first layers.
///
/// # Errors
/// `Media` where placeholders, features and rows do not fit together.
pub fn merge(
    facts: &MediaFacts,
    ids: &[u32],
    layout: Layout,
    encoded: EncodedMedia,
) -> Result<MediaInputs, RunError> {
    let hidden = facts.vision.output;
    let hidden = usize::try_from(hidden).map_err(|_| RunError::Internal("hidden size"))?;
    let placeholders = facts.tokens.placeholders();
    let EncodedMedia {
        audio,
        images,
        videos,
    } = encoded;
    let mut inputs = MediaInputs {
        positions: layout.positions,
        ..MediaInputs::default()
    };
    let layers = images.deepstack.len().max(videos.deepstack.len());
    inputs.deepstack = vec![Vec::new(); layers];
    let mut sources = [
        Source::new(&audio, &[]),
        Source::new(&images.rows, &images.deepstack),
        Source::new(&videos.rows, &videos.deepstack),
    ];
    for (at, id) in ids.iter().enumerate() {
        let Some(medium) = placeholders.iter().position(|token| *token == Some(*id)) else {
            continue;
        };
        let source = &mut sources[medium];
        let row = source.row(hidden)?;
        inputs.replaced.push(at);
        inputs.rows.extend_from_slice(row);
        if !source.deepstack.is_empty() {
            inputs.visual.push(at);
        }
        source.deepstack_rows(hidden, &mut inputs.deepstack)?;
        source.next += 1;
    }
    Ok(inputs)
}

/// Rows that are taken one by one.
struct Source<'r> {
    rows: &'r [f32],
    deepstack: &'r [Vec<f32>],
    next: usize,
}

/// Encoder and placeholders were compared before.
const SHORT: RunError = RunError::Internal("an encoder gave fewer rows than placeholders");

impl<'r> Source<'r> {
    fn new(rows: &'r [f32], deepstack: &'r [Vec<f32>]) -> Self {
        Self {
            rows,
            deepstack,
            next: 0,
        }
    }

    fn row(&self, hidden: usize) -> Result<&'r [f32], RunError> {
        let at = self.next * hidden;
        self.rows.get(at..at + hidden).ok_or(SHORT)
    }

    fn deepstack_rows(&self, hidden: usize, to: &mut [Vec<f32>]) -> Result<(), RunError> {
        let at = self.next * hidden;
        for (rows, to) in self.deepstack.iter().zip(to) {
            to.extend_from_slice(rows.get(at..at + hidden).ok_or(SHORT)?);
        }
        Ok(())
    }
}
