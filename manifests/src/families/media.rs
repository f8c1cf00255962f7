//! What a runtime wants to know of a model's encoders of audio and pictures, and of the decoder that
//! takes what they give: sizes, placeholders, positions.

use std::ops::RangeInclusive;

use super::config::{ConfigError, MAX_COUNT, MAX_SIZE, Section};
use super::facts::ROPE_THETA;
use crate::names::Component;

/// Largest width or number of values of a convolution kernel, patch or merged block that is
/// believed; products of three of them fit 64 bits.
const MAX_WIDTH: u64 = 1 << 20;
/// Half of the frames of a chunk of audio. The official code counts tokens as 13 for 100 frames,
/// whatever this number is (modeling_qwen3_omni_moe.py:156), so another one cannot be right.
const N_WINDOW: RangeInclusive<u64> = 50..=50;
/// Base of the rotary frequencies of an encoder of pictures.
const TOWER_THETA: f64 = 10_000.0;

/// The encoder of audio: Qwen3OmniMoeAudioEncoder.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct AudioTowerFacts {
    /// Layers.
    pub layers: u32,
    /// Width of the residual stream.
    pub width: u64,
    /// Attention heads.
    pub heads: u64,
    /// Inner width of the MLPs.
    pub ffn: u64,
    /// Channels of the convolutions.
    pub channels: u64,
    /// Bins of the spectrogram.
    pub mel_bins: u64,
    /// Width of what it gives.
    pub output: u64,
    /// Frames of a chunk, which goes through the convolutions on its own.
    pub chunk_frames: u64,
    /// Chunks of a window, whose tokens attend to each other.
    pub window_chunks: u64,
}

/// The encoder of images and videos: Qwen3OmniMoeVisionEncoder, and Qwen3VLMoeVisionModel, which differs
/// in the names of its tensors.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct VisionTowerFacts {
    /// Blocks.
    pub blocks: u32,
    /// Width of the residual stream.
    pub width: u64,
    /// Attention heads.
    pub heads: u64,
    /// Inner width of the MLPs.
    pub ffn: u64,
    /// Width of what it gives.
    pub output: u64,
    /// Rows and columns of the learned positions.
    pub position_side: u64,
    /// Patches along a side of the square that becomes one token.
    pub merge: u64,
    /// Channels of a picture.
    pub channels: u64,
    /// Frames of a patch.
    pub patch_frames: u64,
    /// Pixels along a side of a patch.
    pub patch_side: u64,
    /// Blocks whose output is added to the hidden states of the decoder's first layers.
    pub deepstack: Vec<u32>,
    /// What its tensors are called.
    pub names: &'static VisionTowerNames,
}

/// What the tensors of an encoder of pictures are called, where families differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct VisionTowerNames {
    /// The component that they are.
    pub component: Component,
    /// What all names begin with, after the model's own prefix.
    pub prefix: &'static str,
    /// The merger behind the last block.
    pub merger: &'static str,
    /// The mergers of `deepstack`, before a point and their number.
    pub deepstack_mergers: &'static str,
    /// Within a merger, its layer norm.
    pub norm: &'static str,
    /// Its first linear layer.
    pub first: &'static str,
    /// Its second one.
    pub second: &'static str,
}

/// Qwen3-Omni's.
pub(crate) static OMNI_VISION: VisionTowerNames = VisionTowerNames {
    component: Component::ThinkerVision,
    prefix: "visual.",
    merger: "merger",
    deepstack_mergers: "merger_list",
    norm: "ln_q",
    first: "mlp.0",
    second: "mlp.2",
};

/// Qwen3-VL's.
pub(crate) static VL_VISION: VisionTowerNames = VisionTowerNames {
    component: Component::Vision,
    prefix: "visual.",
    merger: "merger",
    deepstack_mergers: "deepstack_merger_list",
    norm: "norm",
    first: "linear_fc1",
    second: "linear_fc2",
};

/// Token ids that stand for media, and around them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct MediaTokens {
    /// Those of audio; `None` where the model takes none.
    pub audio: Option<AudioTokens>,
    /// A row of an image.
    pub image: u32,
    /// A row of a video.
    pub video: u32,
    /// Before an image or a video.
    pub vision_start: u32,
    /// After an image or a video.
    pub vision_end: u32,
}

/// Token ids that stand for audio, and around it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct AudioTokens {
    /// A row of the audio encoder.
    pub row: u32,
    /// Before audio.
    pub start: u32,
    /// After audio.
    pub end: u32,
}

impl MediaTokens {
    /// Whether a row of an encoder takes the place of this token.
    #[must_use]
    pub fn is_placeholder(&self, id: u32) -> bool {
        self.placeholders().contains(&Some(id))
    }

    /// What stands for a row of audio, of an image and of a video; `None` where the model takes none.
    #[must_use]
    pub fn placeholders(&self) -> [Option<u32>; 3] {
        let audio = self.audio.map(|audio| audio.row);
        [audio, Some(self.image), Some(self.video)]
    }
}

/// A model that takes pictures, and maybe audio.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct MediaFacts {
    /// The encoder of audio; `None` where the model takes none.
    pub audio: Option<AudioTowerFacts>,
    /// The encoder of images and videos.
    pub vision: VisionTowerFacts,
    /// Token ids.
    pub tokens: MediaTokens,
    /// What stands in a text for an image and for a video where the tokenizer does not say; `None`
    /// where it has to.
    pub default_marks: Option<[&'static str; 2]>,
    /// Positions of a second of a video; `None` where videos are not computed, and images alone are
    /// taken.
    pub positions_per_second: Option<u64>,
    /// Rotary frequencies that go by time, height and width; interleaved.
    pub mrope_section: [u64; 3],
}

impl MediaFacts {
    /// Of Qwen3-Omni's thinker, whose text decoder has `hidden` values per token and `vocab` rows of
    /// its embedding. Missing keys take the defaults of the classes.
    pub(crate) fn of_omni(
        thinker: &Section<'_>,
        text: &Section<'_>,
        [hidden, vocab]: [u64; 2],
    ) -> Result<Self, ConfigError> {
        let audio = AudioTowerFacts::read(&thinker.section("audio_config")?, hidden)?;
        let tower = thinker.section("vision_config")?;
        let tokens = MediaTokens {
            audio: Some(AudioTokens::read(thinker, vocab)?),
            ..MediaTokens::of_pictures(thinker, vocab)?
        };
        tokens.check(thinker)?;
        let per_second = thinker.integer("position_id_per_seconds", Some(25), 1..=MAX_COUNT)?;
        Ok(Self {
            audio: Some(audio),
            vision: VisionTowerFacts::read(&tower, hidden, &OMNI_VISION)?,
            tokens,
            default_marks: None,
            positions_per_second: Some(per_second),
            mrope_section: read_mrope(text)?,
        })
    }

    /// Of Qwen3-VL, as [`of_omni`](Self::of_omni). Its videos have their times between the frames, as
    /// text, which is not computed.
    ///
    /// Source: `Qwen3VLMoeConfig`, `Qwen3VLProcessor.__init__`, transformers 5.23.
    pub(crate) fn of_vl(
        root: &Section<'_>,
        text: &Section<'_>,
        [hidden, vocab]: [u64; 2],
    ) -> Result<Self, ConfigError> {
        let tokens = MediaTokens::of_pictures(root, vocab)?;
        tokens.check(root)?;
        Ok(Self {
            audio: None,
            vision: VisionTowerFacts::read(&root.section("vision_config")?, hidden, &VL_VISION)?,
            tokens,
            default_marks: Some(["<|image_pad|>", "<|video_pad|>"]),
            positions_per_second: None,
            mrope_section: read_mrope(text)?,
        })
    }

    /// Whether images are all that the model takes, as far as it is computed.
    #[must_use]
    pub fn takes_images_alone(&self) -> bool {
        self.audio.is_none() && self.positions_per_second.is_none()
    }
}

impl AudioTowerFacts {
    fn read(section: &Section<'_>, hidden: u64) -> Result<Self, ConfigError> {
        check_activation(section, "activation_function", "gelu")?;
        let width = width(
            section,
            section.either("d_model", "hidden_size"),
            Some(1280),
        )?;
        if width < 4 || width % 2 != 0 {
            let wanted = "an even number, at least 4: half of it are sines, half cosines";
            return Err(section.invalid("d_model", wanted));
        }
        let heads = heads(
            section,
            section.either("encoder_attention_heads", "num_attention_heads"),
            20,
            width,
        )?;
        let chunk_frames = 2 * section.integer("n_window", Some(50), N_WINDOW)?;
        let window_frames =
            section.integer("n_window_infer", Some(400), chunk_frames..=MAX_WIDTH)?;
        Ok(Self {
            layers: section.count(
                section.either("encoder_layers", "num_hidden_layers"),
                Some(32),
                1,
            )?,
            width,
            heads,
            ffn: self::width(
                section,
                section.either("encoder_ffn_dim", "intermediate_size"),
                Some(5120),
            )?,
            channels: self::width(section, "downsample_hidden_size", Some(480))?,
            mel_bins: self::width(section, "num_mel_bins", Some(128))?,
            output: output(section, "output_dim", hidden)?,
            chunk_frames,
            window_chunks: window_frames / chunk_frames,
        })
    }
}

impl VisionTowerFacts {
    fn read(
        section: &Section<'_>,
        hidden: u64,
        names: &'static VisionTowerNames,
    ) -> Result<Self, ConfigError> {
        check_activation(section, "hidden_act", "gelu_pytorch_tanh")?;
        check_tower_rope(section)?;
        let width = width(section, "hidden_size", Some(1152))?;
        let heads = heads(
            section,
            section.either("num_heads", "num_attention_heads"),
            16,
            width,
        )?;
        if (width / heads) % 4 != 0 {
            let wanted =
                "heads whose width is a multiple of 4: rows and columns rotate a half each";
            return Err(section.invalid("hidden_size", wanted));
        }
        let blocks = section.count(section.either("depth", "num_hidden_layers"), Some(27), 1)?;
        let positions = section.integer("num_position_embeddings", Some(2304), 1..=MAX_WIDTH)?;
        let position_side = positions.isqrt();
        if position_side * position_side != positions {
            return Err(section.invalid("num_position_embeddings", "a square"));
        }
        Ok(Self {
            blocks,
            width,
            heads,
            ffn: self::width(section, "intermediate_size", Some(4304))?,
            output: output(section, "out_hidden_size", hidden)?,
            position_side,
            merge: section.integer("spatial_merge_size", Some(2), 1..=64)?,
            channels: section.integer("in_channels", Some(3), 1..=64)?,
            patch_frames: section.integer("temporal_patch_size", Some(2), 1..=64)?,
            patch_side: section.integer("patch_size", Some(16), 1..=1024)?,
            deepstack: deepstack(section, blocks)?,
            names,
        })
    }
}

impl MediaTokens {
    /// The defaults of the published checkpoints; without audio.
    fn of_pictures(section: &Section<'_>, vocab: u64) -> Result<Self, ConfigError> {
        let id = |key, default| token_id(section, key, default, vocab);
        Ok(Self {
            audio: None,
            image: id("image_token_id", 151_655)?,
            video: id("video_token_id", 151_656)?,
            vision_start: id("vision_start_token_id", 151_652)?,
            vision_end: id("vision_end_token_id", 151_653)?,
        })
    }

    /// Each placeholder stands for one medium.
    fn check(&self, section: &Section<'_>) -> Result<(), ConfigError> {
        let [audio, image, video] = self.placeholders();
        if image == video || [image, video].contains(&audio) {
            let wanted = "another id than those of the other media";
            return Err(section.invalid("image_token_id", wanted));
        }
        Ok(())
    }
}

impl AudioTokens {
    /// The defaults of the published checkpoints.
    fn read(section: &Section<'_>, vocab: u64) -> Result<Self, ConfigError> {
        let id = |key, default| token_id(section, key, default, vocab);
        Ok(Self {
            row: id("audio_token_id", 151_646)?,
            start: id("audio_start_token_id", 151_647)?,
            end: id("audio_end_token_id", 151_648)?,
        })
    }
}

fn token_id(
    section: &Section<'_>,
    key: &str,
    default: u64,
    vocab: u64,
) -> Result<u32, ConfigError> {
    let last = vocab.saturating_sub(1).min(MAX_SIZE);
    let id = section.integer(key, Some(default), 0..=last)?;
    u32::try_from(id).map_err(|_| section.invalid(key, "a token id"))
}

fn width(section: &Section<'_>, key: &str, default: Option<u64>) -> Result<u64, ConfigError> {
    section.integer(key, default, 1..=MAX_WIDTH)
}

/// A number of heads that share a width equally.
fn heads(section: &Section<'_>, key: &str, default: u64, width: u64) -> Result<u64, ConfigError> {
    let heads = section.integer(key, Some(default), 1..=MAX_COUNT)?;
    match width % heads {
        0 => Ok(heads),
        _ => Err(section.invalid(key, &format!("a divisor of the width {width}"))),
    }
}

/// Rows of an encoder take the place of embeddings.
fn output(section: &Section<'_>, key: &str, hidden: u64) -> Result<u64, ConfigError> {
    match width(section, key, Some(3584))? {
        output if output == hidden => Ok(output),
        _ => Err(section.invalid(key, &format!("{hidden}, the decoder's hidden_size"))),
    }
}

fn check_activation(section: &Section<'_>, key: &str, known: &str) -> Result<(), ConfigError> {
    match section.text(key)? {
        None => Ok(()),
        Some(seen) if seen == known => Ok(()),
        Some(_) => Err(section.invalid(key, &format!("{known:?}, the only one that is computed"))),
    }
}

/// Patches are turned by row and column, with the base that the classes have by default.
///
/// Source: `Qwen3VLMoeVisionRotaryEmbedding.compute_axial_rope_parameters`, transformers 5.23.
fn check_tower_rope(section: &Section<'_>) -> Result<(), ConfigError> {
    let key = section.either("rope_parameters", "rope_scaling");
    if !section.has(key) {
        return Ok(());
    }
    let rope = section.section(key)?;
    let theta = rope.number("rope_theta", TOWER_THETA, ROPE_THETA)?;
    if (theta - TOWER_THETA).abs() > f64::EPSILON {
        return Err(rope.invalid("rope_theta", "10000, the only base that is computed"));
    }
    match rope.text(rope.either("rope_type", "type"))? {
        None | Some("default" | "axial") => Ok(()),
        Some(_) => Err(rope.invalid("rope_type", "\"axial\", the only kind that is computed")),
    }
}

/// Blocks by number, in ascending order: feature k comes from the k-th.
fn deepstack(section: &Section<'_>, blocks: u32) -> Result<Vec<u32>, ConfigError> {
    let key = "deepstack_visual_indexes";
    let last = u64::from(blocks) - 1;
    let indexes = section.integers(key, &[8, 16, 24], 0..=last)?;
    if !indexes.is_sorted_by(|a, b| a < b) {
        return Err(section.invalid(key, "ascending block numbers"));
    }
    let index = |index: &u64| u32::try_from(*index).map_err(|_| section.invalid(key, "numbers"));
    indexes.iter().map(index).collect()
}

/// Frequencies of a head that go by time, height and width: height takes every third from the
/// second on, width every third from the third on, as far as the sizes and the head go.
pub(super) fn read_mrope(text: &Section<'_>) -> Result<[u64; 3], ConfigError> {
    let key = text.either("rope_parameters", "rope_scaling");
    // class default
    let default = [24, 20, 20];
    if !text.has(key) {
        return Ok(default);
    }
    let rope = text.section(key)?;
    let sections = rope.integers("mrope_section", &default, 0..=MAX_SIZE)?;
    let sizes = sections.try_into();
    sizes.map_err(|_| rope.invalid("mrope_section", "3 sizes: of time, height and width"))
}
