//! The numbers of a decoder, apart from any weights.

use std::collections::BTreeMap;
use std::ops::Range;

use segpack_formats::io::to_usize;

use segpack_manifests::families::{
    DecoderOptions, RotaryOptions, RotaryPairs, RotaryScaling, TextFacts, Yarn,
};
use segpack_manifests::folder::TextDecoder;
use segpack_manifests::names::Role;
use segpack_manifests::{Pack, PackModel};

use crate::error::{RunError, Unsuitable};
use crate::tensor::{Attending, Compute, Heads, RotaryLayout};

/// The shape of a decoder and the constants of its operations.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderSpec {
    /// Layers.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Attention heads.
    pub heads: Heads,
    /// Width of a dense MLP.
    pub intermediate: usize,
    /// Width of an expert.
    pub moe_intermediate: usize,
    /// Experts of a layer.
    pub experts: usize,
    /// Experts that each token goes to.
    pub experts_per_token: usize,
    /// What RMS norms add to the mean of squares.
    pub rms_norm_eps: f32,
    /// Frequencies that go by time, height and width, interleaved. `None`: all go by time.
    pub mrope_section: Option<[usize; 3]>,
    /// Rows of the embedding, and of the head.
    pub vocab: usize,
    /// Whether the head is the embedding where the pack has no head of its own.
    pub has_tied_head: bool,
    /// What it computes: the switches in which families differ.
    pub options: DecoderOptions,
    /// Factors of activations, as they are applied.
    pub multipliers: Factors,
    /// What its embeddings and heads are of.
    pub(crate) ends: Ends,
    /// Which experts its routers may choose; empty where all of every layer.
    pub(crate) allowed: Allowed,
}

/// Of each layer whether each of its experts may be chosen; `None` where all may, as in layers
/// without experts.
pub(crate) type Allowed = Vec<Option<Vec<bool>>>;

/// The numbers of the experts that may be chosen.
fn numbers_of(allowed: &[bool]) -> Vec<u32> {
    let all = (0..).zip(allowed);
    all.filter_map(|(number, may)| may.then_some(number))
        .collect()
}

/// What a decoder's embeddings and heads are of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ends {
    /// One embedding and one head, of the tokens of a text.
    Tokens,
    /// One embedding and one head, of codes of sound.
    Codes,
    /// So many embeddings and heads, each of the codes of a residual group.
    Groups(usize),
}

impl Ends {
    /// Roles of the embeddings and of the heads.
    pub(crate) fn roles(self) -> [Role; 2] {
        match self {
            Self::Tokens => [Role::Embedding, Role::LmHead],
            Self::Codes => [Role::CodecEmbedding, Role::CodecHead],
            Self::Groups(_) => [Role::CodecEmbedding, Role::LmHead],
        }
    }

    /// Embeddings, and heads.
    pub(crate) fn count(self) -> usize {
        match self {
            Self::Tokens | Self::Codes => 1,
            Self::Groups(groups) => groups,
        }
    }
}

/// The numbers of a pack's text decoder.
///
/// # Errors
/// `Unsuitable` where its family is not known, or it has none; `Model` where its manifest and its
/// `config.json` disagree, or a number is out of bounds.
pub fn text_decoder(pack: &Pack) -> Result<TextDecoder, RunError> {
    Ok(PackModel::read(pack)?.text_decoder()?)
}

/// Factors of activations, in f32, as torch applies python's numbers to tensors.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Factors {
    /// Of embeddings.
    pub embedding: f32,
    /// Of what attention and MLP add to the residual stream.
    pub residual: f32,
    /// Of the scores of attention.
    pub attention: f32,
    /// Logits are divided by it.
    pub logits_divisor: f32,
}

impl Factors {
    #[expect(clippy::cast_possible_truncation, reason = "applied in f32")]
    fn of(options: &DecoderOptions, heads: Heads) -> Self {
        let multipliers = &options.multipliers;
        let attention = multipliers.attention.map(|factor| factor as f32);
        Self {
            embedding: multipliers.embedding as f32,
            residual: multipliers.residual as f32,
            attention: attention.unwrap_or(Attending::to_all(heads).scale),
            logits_divisor: multipliers.logits_divisor as f32,
        }
    }
}

/// Cosines and sines of the rotary embedding of some positions, `[positions, turned values of a head
/// / 2]` each.
#[derive(Debug, Clone, Default)]
pub struct Rotary {
    /// Cosines.
    pub cos: Vec<f32>,
    /// Sines.
    pub sin: Vec<f32>,
}

impl DecoderSpec {
    /// Of a decoder that computes as Qwen3-MoE's does.
    ///
    /// # Errors
    /// `Unsuitable` where it wants an operation that is not implemented.
    pub fn from_facts(facts: &TextFacts) -> Result<Self, RunError> {
        if facts.rope_type != "default" {
            return Err(Unsuitable::RopeType {
                seen: facts.rope_type.clone(),
            }
            .into());
        }
        Ok(Self::of(facts, DecoderOptions::of_qwen3(facts)))
    }

    /// Of a pack's text decoder, whatever its family.
    pub fn from_decoder(decoder: &TextDecoder) -> Self {
        Self::of(&decoder.facts, decoder.settings.options.clone())
    }

    #[expect(
        clippy::cast_possible_truncation,
        reason = "the epsilon is applied in f32, as torch does"
    )]
    fn of(facts: &TextFacts, options: DecoderOptions) -> Self {
        let heads = Heads {
            query: to_usize(facts.heads),
            key_value: to_usize(facts.kv_heads),
            width: to_usize(facts.head_dim),
        };
        Self {
            layers: facts.layers as usize,
            hidden: to_usize(facts.hidden_size),
            heads,
            intermediate: to_usize(facts.intermediate),
            moe_intermediate: to_usize(facts.moe_intermediate),
            experts: facts.experts as usize,
            experts_per_token: options.router.experts_per_token as usize,
            rms_norm_eps: options.rms_norm_eps as f32,
            mrope_section: None,
            vocab: to_usize(facts.vocab),
            has_tied_head: facts.tie_word_embeddings,
            multipliers: Factors::of(&options, heads),
            options,
            ends: Ends::Tokens,
            allowed: Allowed::new(),
        }
    }

    /// Width of the expert that every token visits beside those that a router chooses; `None`: there
    /// is none.
    pub(crate) fn shared_intermediate(&self) -> Option<usize> {
        let shared = self.options.shared_expert;
        shared.map(|shared| to_usize(shared.intermediate))
    }

    /// Layers behind the model's own, which are not run.
    pub(crate) fn extra_layers(&self) -> Range<u32> {
        let first = u32::try_from(self.layers).unwrap_or(u32::MAX);
        first..first.saturating_add(self.options.extra_layers)
    }

    /// Of each layer whose router is restricted the experts that it may choose.
    pub fn restricted_experts(&self) -> BTreeMap<u32, Vec<u32>> {
        let layers = (0..).zip(&self.allowed);
        layers
            .filter_map(|(layer, allowed)| Some((layer, numbers_of(allowed.as_ref()?))))
            .collect()
    }

    /// Whether each expert of a layer may be chosen; `None` where all may.
    pub(crate) fn allowed(&self, layer: usize) -> Option<&[bool]> {
        self.allowed.get(layer)?.as_deref()
    }

    /// Width of all query heads.
    pub fn query_width(&self) -> usize {
        self.heads.query * self.heads.width
    }

    /// Width of all key heads, and of all value heads.
    pub fn key_width(&self) -> usize {
        self.heads.key_value * self.heads.width
    }

    /// Bytes of the keys and values of a position, of all layers, in f32.
    pub(crate) fn position_bytes(&self) -> u64 {
        (self.layers as u64)
            .saturating_mul(2 * 4)
            .saturating_mul(self.key_width() as u64)
    }

    /// Bytes of the activations that each token of a forward pass has, in f32: residual, normed,
    /// added; router logits, probabilities and a copy; gate, up, out and router of the shared expert.
    pub(crate) fn token_bytes(&self) -> u64 {
        let shared = self.shared_intermediate();
        let shared = shared.map_or(0, |inner| 2 * inner + self.hidden + 1);
        4 * (3 * self.hidden + 3 * self.experts + shared) as u64
    }

    /// Bytes of a row of logits, of which there are two copies.
    pub(crate) fn logit_bytes(&self) -> u64 {
        self.vocab as u64 * 8
    }

    /// Which of time, height and width frequency j goes by.
    fn axis(&self, j: usize) -> usize {
        match self.mrope_section {
            Some([_, height, _]) if j % 3 == 1 && j < 3 * height => 1,
            Some([_, _, width]) if j % 3 == 2 && j < 3 * width => 2,
            _ => 0,
        }
    }

    /// Which values of heads positions turn.
    pub(crate) fn rotary_layout(&self) -> RotaryLayout {
        let rotary = &self.options.rotary;
        RotaryLayout {
            width: self.heads.width,
            turned: to_usize(rotary.width),
            is_of_neighbours: rotary.pairs == RotaryPairs::Neighbours,
            is_in_f32: rotary.is_in_f32,
        }
    }

    /// How the tokens of a layer attend to those before them.
    pub(crate) fn attending<'s>(&self, layer: usize, sinks: Option<&'s [f32]>) -> Attending<'s> {
        let window = self.options.windows.get(layer).copied().flatten();
        Attending {
            scale: self.multipliers.attention,
            window: window.map_or(usize::MAX, to_usize),
            sinks,
        }
    }

    /// The rotary embedding of some positions: `angle = position · frequency` in f32, its cosine and
    /// sine in the precision of the activations, unless all of it is in f32.
    #[expect(clippy::cast_possible_truncation, reason = "f32, as torch does")]
    pub fn rotary(&self, compute: Compute, positions: impl Iterator<Item = [f32; 3]>) -> Rotary {
        let frequencies = frequencies(&self.options.rotary);
        let factor = attention_factor(&self.options.rotary);
        let compute = match self.options.rotary.is_in_f32 {
            true => Compute::F32,
            false => compute,
        };
        let mut rotary = Rotary::default();
        for position in positions {
            for (j, frequency) in frequencies.iter().enumerate() {
                let angle = f64::from(position[self.axis(j)] * frequency);
                rotary.cos.push(compute.round(angle.cos() as f32 * factor));
                rotary.sin.push(compute.round(angle.sin() as f32 * factor));
            }
        }
        rotary
    }
}

/// Frequencies of the values that are turned, in f32: `theta^(-2j / turned)`, scaled.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "f32, as torch does"
)]
fn frequencies(rotary: &RotaryOptions) -> Vec<f32> {
    let turned = to_usize(rotary.width);
    let plain = (0..turned / 2).map(|j| {
        let exponent = (2 * j) as f32 / turned as f32;
        1.0 / (rotary.theta.powf(f64::from(exponent)) as f32)
    });
    match &rotary.scaling {
        RotaryScaling::Yarn(yarn) => stretched(rotary, yarn, plain),
        RotaryScaling::Unscaled => plain.collect(),
    }
}

/// YaRN's frequencies: low ones divided by the factor, high ones as they are, a ramp between them.
///
/// Source: `_compute_yarn_parameters`, transformers 5.23, modeling_rope_utils.py.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "f32, as torch does"
)]
fn stretched(rotary: &RotaryOptions, yarn: &Yarn, plain: impl Iterator<Item = f32>) -> Vec<f32> {
    let width = rotary.width as f64;
    let original = yarn.original_positions as f64;
    let dimension = |rotations: f64| {
        width * (original / (rotations * std::f64::consts::TAU)).ln() / (2.0 * rotary.theta.ln())
    };
    let (mut low, mut high) = (dimension(yarn.beta_fast), dimension(yarn.beta_slow));
    if yarn.truncates {
        (low, high) = (low.floor(), high.ceil());
    }
    (low, high) = (low.max(0.0), high.min(width - 1.0));
    if low == high {
        high += 0.001; // as torch's code does, against a division by 0
    }
    let frequency = |(j, plain): (usize, f32)| {
        let ramp = ((j as f32 - low as f32) / (high - low) as f32).clamp(0.0, 1.0);
        let kept = 1.0 - ramp;
        let divided = 1.0 / (yarn.factor as f32 * (1.0 / plain));
        divided * (1.0 - kept) + plain * kept
    };
    plain.enumerate().map(frequency).collect()
}

/// What cosines and sines are multiplied by.
#[expect(clippy::cast_possible_truncation, reason = "applied in f32")]
fn attention_factor(rotary: &RotaryOptions) -> f32 {
    match &rotary.scaling {
        RotaryScaling::Yarn(yarn) => yarn.attention_factor as f32,
        RotaryScaling::Unscaled => 1.0,
    }
}
