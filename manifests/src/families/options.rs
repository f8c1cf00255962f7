//! What a decoder computes: the switches in which the families differ. They are read from
//! `config.json` by each family's file; documents have none of them.

use std::ops::RangeInclusive;

use super::config::{ConfigError, MAX_SIZE, Section};
use super::facts::{RMS_NORM_EPS, TextFacts};
use super::rope::RotaryOptions;
use super::sizes::{Flag, Sizes};

/// Factors of activations and of logits.
const MULTIPLIERS: RangeInclusive<f64> = 1e-6..=1e6;

/// What a decoder computes beside the sizes of [`TextFacts`](super::TextFacts). Defaults of absent
/// keys are those of the family's class of transformers 5.23.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct DecoderOptions {
    /// Added to the mean square in every RMS norm.
    pub rms_norm_eps: f64,
    /// Where a norm's result is rounded.
    pub norm_rounding: NormRounding,
    /// Norms of queries and keys.
    pub qk_norm: QkNorm,
    /// Whether the projections to queries, keys and values have biases.
    pub has_qkv_bias: bool,
    /// Whether the projection of the attention's output has a bias.
    pub has_output_bias: bool,
    /// How positions turn queries and keys.
    pub rotary: RotaryOptions,
    /// Of each layer the number of last positions, the token's own among them, that a token attends
    /// to; `None`: all before it.
    pub windows: Vec<Option<u64>>,
    /// Whether each head of a layer has a learned sink: a further score of the softmax that no value
    /// belongs to.
    pub has_sinks: bool,
    /// Factors of activations.
    pub multipliers: Multipliers,
    /// Layers that may be stored behind the model's own: they predict later tokens, and the model is
    /// complete without them.
    pub extra_layers: u32,
    /// How experts are chosen.
    pub router: RouterOptions,
    /// What an expert computes.
    pub experts: ExpertOptions,
    /// The expert that every token visits; `None`: there is none.
    pub shared_expert: Option<SharedExpertOptions>,
}

/// Where an RMS norm rounds to the precision of the activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormRounding {
    /// Before it is multiplied by its weight, and after: `round(w · round(x · factor))`.
    Twice,
    /// After it only: `round(w · x · factor)`; gpt-oss.
    Once,
}

/// Norms of queries and keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QkNorm {
    /// There are none.
    Absent,
    /// Of each head, `[head_dim]`, before positions turn it.
    PerHead,
    /// Of each head, `[head_dim]`, after positions turned it.
    PerHeadAfterRotary,
    /// Of all query heads together, `[heads · head_dim]`, and of all key heads, `[kv_heads ·
    /// head_dim]`, before positions turn them.
    Whole,
}

/// Factors of activations; 1 where a family has none.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Multipliers {
    /// Embeddings are multiplied by it.
    pub embedding: f64,
    /// What attention and MLP add to the residual stream is multiplied by it.
    pub residual: f64,
    /// Scores of attention are multiplied by it; `None`: by `head_dim^-0.5`.
    pub attention: Option<f64>,
    /// Logits are divided by it.
    pub logits_divisor: f64,
}

impl Default for Multipliers {
    fn default() -> Self {
        Self {
            embedding: 1.0,
            residual: 1.0,
            attention: None,
            logits_divisor: 1.0,
        }
    }
}

impl Multipliers {
    /// Granite's keys.
    pub(crate) fn read(section: &Section<'_>) -> Result<Self, ConfigError> {
        let number = |key| section.number(key, 1.0, MULTIPLIERS);
        Ok(Self {
            embedding: number("embedding_multiplier")?,
            residual: number("residual_multiplier")?,
            attention: Some(number("attention_multiplier")?),
            logits_divisor: number("logits_scaling")?,
        })
    }
}

/// How experts are chosen, and what their outputs are weighted by.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct RouterOptions {
    /// Experts that each token visits, at least 1 where there are any.
    pub experts_per_token: u32,
    /// What makes scores of the router's logits.
    pub score: RouterScore,
    /// Whether logits are computed, and kept, in f32 whatever the precision of the activations is.
    pub is_in_f32: bool,
    /// Whether the weights of the chosen experts stay in f32 too: an expert's output is multiplied
    /// in f32, and then rounded.
    pub has_f32_weights: bool,
    /// Whether the router is a linear layer with a bias, `[experts]`.
    pub has_bias: bool,
    /// Whether a bias, `[experts]` or `[1, experts]`, is added to the scores for the choice alone:
    /// weights are the scores without it.
    pub has_choice_bias: bool,
    /// The choice is among the experts of some groups; `None`: among all.
    pub groups: Option<ExpertGroups>,
    /// What the weights of the chosen experts are divided by.
    pub divisor: WeightDivisor,
    /// Weights are multiplied by it at last.
    pub scale: f64,
}

/// What makes scores of a router's logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RouterScore {
    /// Softmax over all experts.
    Softmax,
    /// The logits themselves are what the choice is by; softmax over the chosen experts makes their
    /// weights.
    SoftmaxOfChosen,
    /// The sigmoid of each.
    Sigmoid,
}

/// Groups of experts: the score of a group is the sum of its two best, and the best groups stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExpertGroups {
    /// Groups; a divisor of the experts, each of two or more.
    pub count: u32,
    /// Groups that stay.
    pub chosen: u32,
}

/// What the weights of the chosen experts are divided by.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum WeightDivisor {
    /// Nothing.
    One,
    /// Their sum.
    Sum,
    /// Their sum and this much: `sum + x`.
    SumPlus(f64),
    /// Their sum, or this if the sum is less: `max(sum, x)`.
    SumAtLeast(f64),
}

impl RouterOptions {
    /// A softmax over all experts, whose weights may be divided by their sum.
    pub(crate) fn softmax(experts_per_token: u32, is_normalized: bool) -> Self {
        Self {
            experts_per_token,
            score: RouterScore::Softmax,
            is_in_f32: false,
            has_f32_weights: false,
            has_bias: false,
            has_choice_bias: false,
            groups: None,
            divisor: match is_normalized {
                true => WeightDivisor::Sum,
                false => WeightDivisor::One,
            },
            scale: 1.0,
        }
    }

    /// DeepSeek-V3's router without its latent attention: GLM-4.5, dots.llm1.
    ///
    /// Source: `Glm4MoeTopkRouter`, modeling_glm4_moe.py.
    pub(crate) fn sigmoid(
        section: &Section<'_>,
        (experts, per_token): (u32, u32),
        is_normalized: bool,
    ) -> Result<Self, ConfigError> {
        let divisor = match section.flag("norm_topk_prob", is_normalized)? {
            true => WeightDivisor::SumPlus(1e-20),
            false => WeightDivisor::One,
        };
        Ok(Self {
            score: RouterScore::Sigmoid,
            is_in_f32: true,
            has_f32_weights: true,
            has_choice_bias: true,
            groups: ExpertGroups::read(section, experts, per_token)?,
            divisor,
            scale: section.number("routed_scaling_factor", 1.0, MULTIPLIERS)?,
            ..Self::softmax(per_token, false)
        })
    }
}

impl ExpertGroups {
    /// So many groups, of which so many stay.
    #[must_use]
    pub fn of(count: u32, chosen: u32) -> Self {
        Self { count, chosen }
    }

    /// `n_group` and `topk_group`; one group is none.
    fn read(
        section: &Section<'_>,
        experts: u32,
        per_token: u32,
    ) -> Result<Option<Self>, ConfigError> {
        let count = section.count("n_group", Some(1), 1)?;
        let chosen = section.count("topk_group", Some(1), 1)?;
        if count == 1 {
            return Ok(None);
        }
        if !experts.is_multiple_of(count) || experts / count < 2 {
            let wanted = format!("a divisor of the {experts} experts, two or more in each group");
            return Err(section.invalid("n_group", &wanted));
        }
        if chosen > count || chosen * (experts / count) < per_token {
            let wanted = format!("groups of the {count} that have {per_token} experts or more");
            return Err(section.invalid("topk_group", &wanted));
        }
        Ok(Some(Self { count, chosen }))
    }
}

/// What an expert computes.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct ExpertOptions {
    /// What is made of gate and up.
    pub activation: ExpertActivation,
    /// Whether gate, up and down have biases.
    pub has_bias: bool,
}

impl Default for ExpertOptions {
    fn default() -> Self {
        Self {
            activation: ExpertActivation::SiluMul,
            has_bias: false,
        }
    }
}

/// What an expert makes of gate and up before its down projection.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ExpertActivation {
    /// `silu(gate) · up`.
    SiluMul,
    /// `g · sigmoid(alpha · g) · (u + 1)`, `g = min(gate, limit)`, `u` = up from `-limit` to `limit`.
    ///
    /// Source: `GptOssExperts._apply_gate`, modeling_gpt_oss.py.
    ClampedSwiglu {
        /// Factor inside the sigmoid.
        alpha: f64,
        /// Bound of gate and up.
        limit: f64,
    },
}

impl ExpertActivation {
    /// gpt-oss's keys.
    pub(crate) fn clamped(section: &Section<'_>) -> Result<Self, ConfigError> {
        Ok(Self::ClampedSwiglu {
            alpha: section.number("swiglu_alpha", 1.702, MULTIPLIERS)?,
            limit: section.number("swiglu_limit", 7.0, MULTIPLIERS)?,
        })
    }
}

/// The expert that every token visits: SwiGLU, `silu(gate) · up`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct SharedExpertOptions {
    /// Its inner width.
    pub intermediate: u64,
    /// Whether a sigmoid of a linear layer, `[1, hidden]`, decides how much of it is added;
    /// otherwise all of it is.
    pub is_gated: bool,
}

impl SharedExpertOptions {
    /// One of this width; none of width 0.
    #[must_use]
    pub fn of(intermediate: u64, is_gated: bool) -> Option<Self> {
        (intermediate > 0).then_some(Self {
            intermediate,
            is_gated,
        })
    }
}

impl DecoderOptions {
    /// Qwen3-MoE's.
    #[must_use]
    pub fn of_qwen3(facts: &TextFacts) -> Self {
        let rotary = RotaryOptions::plain(facts.rope_theta, facts.head_dim);
        let router = RouterOptions::softmax(facts.experts_per_token, facts.norm_topk_prob);
        Self {
            rms_norm_eps: facts.rms_norm_eps,
            has_qkv_bias: facts.attention_bias,
            has_output_bias: facts.attention_bias,
            ..Self::plain(facts.layers as usize, rotary, router)
        }
    }

    /// Reads what norms add.
    pub(crate) fn read_eps(
        &mut self,
        section: &Section<'_>,
        default: f64,
    ) -> Result<(), ConfigError> {
        self.rms_norm_eps = section.number("rms_norm_eps", default, RMS_NORM_EPS)?;
        Ok(())
    }

    /// Biases of attention as the sizes have them.
    pub(crate) fn read_biases(&mut self, sizes: &Sizes) {
        self.has_qkv_bias = sizes.has(Flag::QkvBias);
        self.has_output_bias = sizes.has(Flag::OutBias);
    }

    /// A decoder of so many layers as Qwen3-MoE's, with a norm of each head, no biases and no
    /// window.
    pub(crate) fn plain(layers: usize, rotary: RotaryOptions, router: RouterOptions) -> Self {
        Self {
            rms_norm_eps: 1e-6,
            norm_rounding: NormRounding::Twice,
            qk_norm: QkNorm::PerHead,
            has_qkv_bias: false,
            has_output_bias: false,
            rotary,
            windows: vec![None; layers],
            has_sinks: false,
            multipliers: Multipliers::default(),
            extra_layers: 0,
            router,
            experts: ExpertOptions::default(),
            shared_expert: None,
        }
    }
}

/// A switch that has to be off, as what it asks for is not computed. Absent and null are off.
pub(crate) fn refuse_flag(section: &Section<'_>, key: &str) -> Result<(), ConfigError> {
    match section.flag(key, false)? {
        true => Err(section.invalid(key, "false: what it asks for is not computed")),
        false => Ok(()),
    }
}

/// A key that has to be absent or null.
pub(crate) fn refuse_value(section: &Section<'_>, key: &str) -> Result<(), ConfigError> {
    match section.has(key) {
        true => Err(section.invalid(key, "null: what it asks for is not computed")),
        false => Ok(()),
    }
}

/// The window of a layer that has one: `sliding_window`, or the default of the class.
pub(crate) fn window(section: &Section<'_>, default: Option<u64>) -> Result<u64, ConfigError> {
    section.integer("sliding_window", default, 1..=MAX_SIZE)
}

/// Windows of the layers that `layer_types` calls sliding, or else of those that `is_sliding` picks.
pub(crate) fn windows_by_type(
    section: &Section<'_>,
    layers: usize,
    default: Option<u64>,
    is_sliding: impl Fn(u64) -> bool,
) -> Result<Vec<Option<u64>>, ConfigError> {
    let key = "layer_types";
    let kinds = section.texts(key)?;
    if section.has(key) && kinds.len() < layers {
        return Err(section.invalid(key, &format!("the kinds of {layers} layers")));
    }
    let mut windows = Vec::with_capacity(layers);
    for (number, index) in (0_u64..).zip(0..layers) {
        let slides = match kinds.get(index).map(String::as_str) {
            Some("sliding_attention") => true,
            Some("full_attention") => false,
            Some(_) => {
                let wanted = "\"sliding_attention\" or \"full_attention\" for each layer";
                return Err(section.invalid(key, wanted));
            }
            None => is_sliding(number),
        };
        windows.push(match slides {
            true => Some(window(section, default)?),
            false => None,
        });
    }
    Ok(windows)
}
