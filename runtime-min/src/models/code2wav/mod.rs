//! The vocoder: codes in, sound out.
//!
//! The equations are those of transformers 5.23, `Qwen3OmniMoeCode2Wav`
//! (modeling_qwen3_omni_moe.py:3427-3947): the mean of the embeddings of a frame's codes, a
//! transformer whose frames see the last few, upsampling with ConvNeXt blocks, and a decoder of
//! transposed and dilated convolutions with SnakeBeta.
//!
//! Long speech is decoded in chunks, each with some frames of context before it. The transposed
//! convolutions need a row after the last one, so a piece of sound ends before its last frame does
//! (555 of 1920 samples of the published model). The official class cuts the context at its full
//! length, and lacks these samples of every chunk; [`Chunks::gapless`] cuts it so that they are there.

mod bind;
mod stages;
mod transformer;

use std::ops::Range;

use segpack_formats::io::to_usize;
use segpack_manifests::families::VocoderFacts;

use self::bind::VocoderWeights;
use self::stages::{Run, Tail};
use super::encoder::{EncoderContext, EncoderLoader};
use crate::error::{RunError, VocoderError};
use crate::ops::Ops;
use crate::tensor::Heads;

/// Rows that what follows the transformer takes at a time, after upsampling.
const PIECE_ROWS: usize = 512;

/// The sizes of the vocoder.
#[derive(Debug, Clone)]
pub(crate) struct VocoderSpec {
    pub(crate) layers: usize,
    pub(crate) hidden: usize,
    pub(crate) attention: Heads,
    pub(crate) intermediate: usize,
    pub(crate) has_bias: bool,
    pub(crate) window: usize,
    pub(crate) rms_norm_eps: f32,
    pub(crate) rope_theta: f64,
    pub(crate) codebook: usize,
    pub(crate) groups: usize,
    pub(crate) stages: Vec<usize>,
    pub(crate) rates: Vec<usize>,
    pub(crate) decoder: usize,
}

impl From<&VocoderFacts> for VocoderSpec {
    fn from(facts: &VocoderFacts) -> Self {
        #[expect(clippy::cast_possible_truncation, reason = "added in f32")]
        let rms_norm_eps = facts.rms_norm_eps as f32;
        Self {
            layers: facts.layers as usize,
            hidden: to_usize(facts.hidden),
            attention: Heads {
                query: to_usize(facts.heads),
                key_value: to_usize(facts.kv_heads),
                width: to_usize(facts.head_dim),
            },
            intermediate: to_usize(facts.intermediate),
            has_bias: facts.has_bias,
            window: to_usize(facts.window),
            rms_norm_eps,
            rope_theta: facts.rope_theta,
            codebook: to_usize(facts.codebook),
            groups: to_usize(facts.groups),
            stages: facts.stages.iter().map(|n| to_usize(*n)).collect(),
            rates: facts.rates.iter().map(|n| to_usize(*n)).collect(),
            decoder: to_usize(facts.decoder),
        }
    }
}

impl VocoderSpec {
    /// Channels after so many blocks.
    pub(crate) fn width_after(&self, blocks: usize) -> usize {
        self.decoder >> blocks
    }

    /// Samples of a frame, before the ends of pieces are cut.
    fn samples_per_frame(&self) -> usize {
        self.stages.iter().chain(&self.rates).product()
    }

    /// Samples of a piece of so many frames.
    fn samples(&self, frames: usize) -> usize {
        let rows = frames.saturating_mul(self.stages.iter().product());
        self.rates.iter().fold(rows, |rows, rate| {
            rows.saturating_sub(1).saturating_mul(*rate)
        })
    }

    /// Frames that what follows the transformer takes at a time.
    pub(crate) fn rows_of_a_piece(&self) -> usize {
        let up: usize = self.stages.iter().product();
        (PIECE_ROWS / up.max(1)).max(1)
    }
}

/// How speech is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunks {
    /// Frames of a chunk, at least 1.
    pub frames: usize,
    /// Frames before a chunk that are decoded with it, and whose sound is left out.
    pub context: usize,
    /// Whether the samples are kept that the official class loses at the end of every chunk but the
    /// last.
    pub gapless: bool,
}

/// As the official class decodes what it generates.
impl Default for Chunks {
    fn default() -> Self {
        Self {
            frames: 300,
            context: 25,
            gapless: false,
        }
    }
}

impl Chunks {
    /// All frames as one piece.
    #[must_use]
    pub fn whole() -> Self {
        Self {
            frames: usize::MAX,
            ..Self::default()
        }
    }

    /// The frames that are decoded together, and how many of them are context.
    fn of(self, frames: usize) -> impl Iterator<Item = (Range<usize>, usize)> {
        let step = self.frames.max(1);
        (0..frames).step_by(step).map(move |start| {
            let context = match start > self.context {
                true => self.context,
                false => start,
            };
            (
                start - context..start.saturating_add(step).min(frames),
                context,
            )
        })
    }
}

/// Intermediate results of the vocoder. Stages up to `Norm` have a row for each frame, the others
/// more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum WaveStage {
    /// `[frames, hidden]`: the mean of the embeddings.
    Embed,
    /// `[frames, hidden]` after this layer.
    Layer(usize),
    /// `[frames, hidden]` after the last norm.
    Norm,
    /// `[rows, hidden]` after the transposed convolution of this upsampling stage.
    UpConv(usize),
    /// `[rows, hidden]` after this upsampling stage.
    Up(usize),
    /// `[rows, channels]` after the first convolution of the waveform decoder.
    First,
    /// `[rows, channels]` after the transposed convolution of this block, counted from 1.
    Transposed(usize),
    /// `[rows, channels]` after this block, counted from 1.
    Block(usize),
    /// `[samples, 1]`, before it is clamped.
    Raw,
}

/// Hears of intermediate results.
pub trait VocoderObserver {
    /// The next rows of a stage, of so many values each.
    fn stage(&mut self, stage: WaveStage, rows: &[f32], width: usize);
}

/// Observes nothing.
impl VocoderObserver for () {
    fn stage(&mut self, _: WaveStage, _: &[f32], _: usize) {}
}

/// The vocoder of a pack. Between two calls of [`decode`](Self::decode) it holds no memory of its own.
pub struct Vocoder<'a> {
    context: EncoderContext<'a>,
    spec: VocoderSpec,
    sample_rate: u32,
    weights: VocoderWeights<'a>,
}

impl<'a> Vocoder<'a> {
    /// Finds the weights. None is read; a missing one is found here.
    ///
    /// # Errors
    /// `Unsuitable` names what the pack lacks, or what cannot be computed with.
    pub fn new(context: EncoderContext<'a>, facts: &VocoderFacts) -> Result<Self, RunError> {
        let spec = VocoderSpec::from(facts);
        let weights = VocoderWeights::find(context.source, &spec)?;
        Ok(Self {
            context,
            spec,
            sample_rate: facts.sample_rate,
            weights,
        })
    }

    /// Codes of a frame.
    #[must_use]
    pub fn groups(&self) -> usize {
        self.spec.groups
    }

    /// Samples of a second.
    #[must_use]
    pub fn sample_rate(&self) -> u32 {
        self.sample_rate
    }

    /// Samples that so many frames become.
    #[must_use]
    pub fn samples(&self, frames: usize, chunks: Chunks) -> usize {
        let samples = chunks.of(frames).map(|(range, context)| {
            let all = self.spec.samples(range.len());
            all.saturating_sub(self.cut(context, range.len(), chunks))
        });
        samples.sum()
    }

    /// Samples that are left out at the start of a piece.
    fn cut(&self, context: usize, frames: usize, chunks: Chunks) -> usize {
        let per_frame = self.spec.samples_per_frame();
        let cut = context.saturating_mul(per_frame);
        match chunks.gapless {
            true => {
                // the chunk before ended so much early
                let lost = frames.saturating_mul(per_frame) - self.spec.samples(frames);
                cut.saturating_sub(lost)
            }
            false => cut,
        }
    }

    /// Sound of codes, `[frames, groups]`: `sink` takes samples in [-1, 1] as they come.
    ///
    /// # Errors
    /// Those of `sink`; `Vocoder` where the codes are not the model's, found before any weight is
    /// read; `Memory`; damage of the pack; `Interrupted`.
    pub fn decode<O: Ops, E: From<RunError>>(
        &self,
        ops: &O,
        codes: &[u32],
        chunks: Chunks,
        observer: &mut dyn VocoderObserver,
        sink: &mut dyn FnMut(&[f32]) -> Result<(), E>,
    ) -> Result<(), E> {
        let frames = self.check(codes, chunks).map_err(RunError::from)?;
        let longest = chunks.of(frames).map(|(range, _)| range.len()).max();
        let loader = self.open(longest.unwrap_or(0))?;
        let memory = loader.load_alone(&self.weights.tail_group)?;
        let mut tail = Tail::new(&self.weights.tail, &self.spec, memory);
        for (range, context) in chunks.of(frames) {
            let cut = self.cut(context, range.len(), chunks);
            let codes = &codes[range.start * self.spec.groups..range.end * self.spec.groups];
            self.piece(ops, &loader, &mut tail, (codes, cut), observer, sink)?;
        }
        Ok(())
    }

    /// One chunk with its context, of whose sound the first `cut` samples are left out.
    fn piece<O: Ops, E: From<RunError>>(
        &self,
        ops: &O,
        loader: &EncoderLoader<'_>,
        tail: &mut Tail,
        (codes, mut cut): (&[u32], usize),
        observer: &mut dyn VocoderObserver,
        sink: &mut dyn FnMut(&[f32]) -> Result<(), E>,
    ) -> Result<(), E> {
        let (spec, weights) = (&self.spec, &self.weights);
        let x = transformer::run(ops, loader, spec, weights, codes, observer)?;
        let mut run = Run {
            ops,
            stop: self.context.stop,
            observer,
        };
        let mut kept = |wave: &[f32]| {
            let skipped = cut.min(wave.len());
            cut -= skipped;
            match &wave[skipped..] {
                [] => Ok(()),
                wave => sink(wave),
            }
        };
        tail.begin();
        for rows in x.chunks(spec.rows_of_a_piece() * spec.hidden) {
            self.context.stop.check().map_err(RunError::from)?;
            tail.push(&mut run, rows, &mut kept)?;
        }
        Ok(())
    }

    /// The number of frames.
    fn check(&self, codes: &[u32], chunks: Chunks) -> Result<usize, VocoderError> {
        let (groups, codebook) = (self.spec.groups, self.spec.codebook);
        if !codes.len().is_multiple_of(groups) {
            let seen = codes.len();
            return Err(VocoderError::Groups { seen, groups });
        }
        let frames = codes.len() / groups;
        if frames == 0 {
            return Err(VocoderError::NoFrames);
        }
        if let Some(at) = codes.iter().position(|code| *code as usize >= codebook) {
            return Err(VocoderError::Code {
                code: codes[at],
                group: at % groups,
                frame: at / groups,
                codebook,
            });
        }
        match self.samples(frames, chunks) {
            0 => Err(VocoderError::NoSamples { frames }),
            _ => Ok(frames),
        }
    }

    /// Starts to load, if the memory allows for it.
    fn open(&self, frames: usize) -> Result<EncoderLoader<'a>, RunError> {
        let layers = self.weights.layers.iter().map(|layer| &layer.group);
        let before = layers.chain([&self.weights.embedding_group]);
        let largest = before.max_by_key(|group| group.buffer_len());
        let tail = &self.weights.tail_group;
        // convolutions are kept in an order of their own beside what was loaded
        let reordered = tail.raw_bytes().div_ceil(4);
        let values = transformer::values(&self.spec, frames)
            .saturating_add(stages::values(&self.spec))
            .saturating_add(reordered);
        let at_once: Vec<_> = largest.into_iter().chain([tail]).collect();
        self.context.open(&at_once, values)
    }
}
