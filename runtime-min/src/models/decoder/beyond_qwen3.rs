//! What a decoder computes beyond Qwen3-MoE's, for devices that have no other operations.

use segpack_manifests::families::{
    DecoderOptions, ExpertActivation, Multipliers, NormRounding, QkNorm, RotaryPairs,
    RotaryScaling, RouterScore, WeightDivisor,
};

use super::spec::DecoderSpec;

impl DecoderSpec {
    /// Whether the weights of a token's experts are divided by their sum.
    pub(crate) fn normalizes_top_k(&self) -> bool {
        self.options.router.divisor != WeightDivisor::One
    }

    /// The first operation beyond Qwen3-MoE's.
    pub(crate) fn beyond_qwen3(&self) -> Option<&'static str> {
        let of_attention = attention_beyond_qwen3(&self.options, self.heads.width as u64);
        of_attention.or_else(|| experts_beyond_qwen3(&self.options))
    }
}

/// The first operation of attention, norms and residual stream that Qwen3-MoE does not have.
fn attention_beyond_qwen3(options: &DecoderOptions, head_dim: u64) -> Option<&'static str> {
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

/// The first operation of routers and experts that Qwen3-MoE does not have.
fn experts_beyond_qwen3(options: &DecoderOptions) -> Option<&'static str> {
    let (router, experts) = (&options.router, &options.experts);
    let is_plain_divisor = matches!(router.divisor, WeightDivisor::One | WeightDivisor::Sum);
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
    ];
    first_of(&missing)
}

fn first_of(missing: &[(bool, &'static str)]) -> Option<&'static str> {
    missing
        .iter()
        .find(|(is_wanted, _)| *is_wanted)
        .map(|(_, what)| *what)
}
