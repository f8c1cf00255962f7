//! The numbers of a decoder, apart from any weights.

use segpack_formats::io::to_usize;

use segpack_manifests::families::{
    DecoderOptions, ExpertActivation, Multipliers, NormRounding, QkNorm, RotaryPairs,
    RotaryScaling, RouterScore, TextFacts, WeightDivisor,
};
use segpack_manifests::folder::TextDecoder;
use segpack_manifests::names::Role;
use segpack_manifests::{Pack, PackModel};

use crate::error::{RunError, Unsuitable};
use crate::tensor::{Compute, Heads};

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
    /// What its embeddings and heads are of.
    pub(crate) ends: Ends,
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

/// Cosines and sines of the rotary embedding of some positions, `[positions, head width / 2]` each.
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
    ///
    /// # Errors
    /// `Unsuitable` where it wants an operation that is not implemented.
    pub fn from_decoder(decoder: &TextDecoder) -> Result<Self, RunError> {
        let (facts, options) = (&decoder.facts, &decoder.settings.options);
        match missing_operation(options, facts.head_dim) {
            Some(what) => Err(Unsuitable::Operation {
                family: decoder.family.name(),
                what,
            }
            .into()),
            None => Ok(Self::of(facts, options.clone())),
        }
    }

    #[expect(
        clippy::cast_possible_truncation,
        reason = "the epsilon is applied in f32, as torch does"
    )]
    fn of(facts: &TextFacts, options: DecoderOptions) -> Self {
        Self {
            layers: facts.layers as usize,
            hidden: to_usize(facts.hidden_size),
            heads: Heads {
                query: to_usize(facts.heads),
                key_value: to_usize(facts.kv_heads),
                width: to_usize(facts.head_dim),
            },
            intermediate: to_usize(facts.intermediate),
            moe_intermediate: to_usize(facts.moe_intermediate),
            experts: facts.experts as usize,
            experts_per_token: options.router.experts_per_token as usize,
            rms_norm_eps: options.rms_norm_eps as f32,
            mrope_section: None,
            vocab: to_usize(facts.vocab),
            has_tied_head: facts.tie_word_embeddings,
            options,
            ends: Ends::Tokens,
        }
    }

    /// Whether the weights of a token's experts are divided by their sum.
    pub(crate) fn normalizes_top_k(&self) -> bool {
        self.options.router.divisor != WeightDivisor::One
    }

    /// Width of the expert that every token visits beside those that a router chooses; `None`: there
    /// is none.
    pub(crate) fn shared_intermediate(&self) -> Option<usize> {
        let shared = self.options.shared_expert;
        shared.map(|shared| to_usize(shared.intermediate))
    }

    /// Width of all query heads.
    pub fn query_width(&self) -> usize {
        self.heads.query * self.heads.width
    }

    /// Width of all key heads, and of all value heads.
    pub fn key_width(&self) -> usize {
        self.heads.key_value * self.heads.width
    }

    /// Which of time, height and width frequency j goes by.
    fn axis(&self, j: usize) -> usize {
        match self.mrope_section {
            Some([_, height, _]) if j % 3 == 1 && j < 3 * height => 1,
            Some([_, _, width]) if j % 3 == 2 && j < 3 * width => 2,
            _ => 0,
        }
    }

    /// The rotary embedding of some positions: `angle = position · theta^(-2j / width)` in f32, its
    /// cosine and sine in the precision of the activations.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        reason = "f32, as torch does"
    )]
    pub fn rotary(&self, compute: Compute, positions: impl Iterator<Item = [f32; 3]>) -> Rotary {
        let width = self.heads.width;
        let mut frequencies = Vec::with_capacity(width / 2);
        for j in 0..width / 2 {
            let exponent = (2 * j) as f32 / width as f32;
            frequencies.push(1.0 / (self.options.rotary.theta.powf(f64::from(exponent)) as f32));
        }
        let mut rotary = Rotary::default();
        for position in positions {
            for (j, frequency) in frequencies.iter().enumerate() {
                let angle = f64::from(position[self.axis(j)] * frequency);
                rotary.cos.push(compute.round(angle.cos() as f32));
                rotary.sin.push(compute.round(angle.sin() as f32));
            }
        }
        rotary
    }
}

/// The first operation that a decoder wants and that is not implemented.
fn missing_operation(options: &DecoderOptions, head_dim: u64) -> Option<&'static str> {
    of_attention(options, head_dim).or_else(|| of_experts(options))
}

fn of_attention(options: &DecoderOptions, head_dim: u64) -> Option<&'static str> {
    let rotary = &options.rotary;
    let missing = [
        (
            options.norm_rounding != NormRounding::Twice,
            "norms that are rounded once",
        ),
        (
            options.qk_norm != QkNorm::PerHead,
            "its kind of norms of queries and keys",
        ),
        (
            options.has_qkv_bias != options.has_output_bias,
            "biases of some projections",
        ),
        (
            rotary.pairs != RotaryPairs::Halves,
            "rotary embeddings of neighbours",
        ),
        (
            rotary.width != head_dim,
            "rotary embeddings of a part of each head",
        ),
        (rotary.is_in_f32, "rotary embeddings in f32"),
        (
            rotary.scaling != RotaryScaling::Unscaled,
            "scaled rotary embeddings",
        ),
        (
            options.windows.iter().any(Option::is_some),
            "sliding windows",
        ),
        (options.has_sinks, "sinks of attention"),
        (options.multipliers != Multipliers::default(), "multipliers"),
    ];
    first_of(&missing)
}

fn of_experts(options: &DecoderOptions) -> Option<&'static str> {
    let (router, experts) = (&options.router, &options.experts);
    let is_plain_divisor = matches!(router.divisor, WeightDivisor::One | WeightDivisor::Sum);
    let is_ungated = options.shared_expert.is_some_and(|shared| !shared.is_gated);
    let missing = [
        (router.score != RouterScore::Softmax, "its kind of router"),
        (router.is_in_f32 || router.has_f32_weights, "routers in f32"),
        (
            router.has_bias || router.has_choice_bias,
            "biases of routers",
        ),
        (router.groups.is_some(), "groups of experts"),
        (
            !is_plain_divisor || router.scale != 1.0,
            "its kind of weights of experts",
        ),
        (
            experts.activation != ExpertActivation::SiluMul,
            "its kind of experts",
        ),
        (experts.has_bias, "biases of experts"),
        (is_ungated, "shared experts without a gate"),
    ];
    first_of(&missing)
}

fn first_of(missing: &[(bool, &'static str)]) -> Option<&'static str> {
    missing
        .iter()
        .find(|(is_wanted, _)| *is_wanted)
        .map(|(_, what)| *what)
}
