//! The Qwen3 decoder block, dense or with experts, as thinker, talker, code predictor and plain
//! Qwen3-MoE share it. Every Linear is stored `[out, in]`.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::families::Expected;
use crate::families::config::{ConfigError, MAX_COUNT, Section};
use crate::families::rules::{At, Dims, Mount, Placeholder, Row, row};
use crate::names::Role;

/// What the configuration class of transformers takes for keys that `config.json` leaves out.
pub(crate) struct Defaults {
    pub(crate) vocab_size: u64,
    pub(crate) hidden_size: u64,
    pub(crate) intermediate_size: u64,
    pub(crate) num_hidden_layers: u64,
    pub(crate) num_attention_heads: u64,
    pub(crate) num_key_value_heads: u64,
    /// Where the class has none, the model takes hidden_size / num_attention_heads.
    pub(crate) head_dim: Option<u64>,
    pub(crate) num_experts: u64,
    pub(crate) moe_intermediate_size: u64,
    pub(crate) num_experts_per_tok: u64,
    pub(crate) norm_topk_prob: bool,
    pub(crate) rope_theta: f64,
}

/// Which layers have experts.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sparsity {
    /// As `mlp_only_layers` and `decoder_sparse_step` say.
    ByLayer,
    /// All of them, whatever those keys say.
    Everywhere,
    /// None.
    Nowhere,
}

/// Sizes of a stack of decoder layers and of what surrounds it.
pub(crate) struct DecoderDims {
    pub(crate) hidden: u64,
    pub(crate) vocabulary: u64,
    pub(crate) intermediate: u64,
    /// num_attention_heads x head_dim, which need not be the hidden size.
    q_width: u64,
    kv_width: u64,
    heads: u64,
    kv_heads: u64,
    head_dim: u64,
    layers: u32,
    attention_bias: bool,
    experts: u32,
    moe_intermediate: u64,
    /// For each layer whether it has experts.
    moe: Vec<bool>,
    /// For each layer whether its experts are stored stacked.
    stacked: Vec<bool>,
    pub(crate) shared_intermediate: u64,
    /// Residual codebooks of the code predictor.
    pub(crate) groups: u32,
    /// Width of what the talker's projections take in.
    pub(crate) thinker_hidden: u64,
    pub(crate) tied_head: bool,
}

impl DecoderDims {
    pub(crate) fn read(
        section: &Section<'_>,
        defaults: &Defaults,
        sparsity: Sparsity,
    ) -> Result<Self, ConfigError> {
        let hidden = section.size("hidden_size", Some(defaults.hidden_size))?;
        let heads = section.size("num_attention_heads", Some(defaults.num_attention_heads))?;
        // An explicit null is multi-head attention in the classes that allow it.
        let kv_default = if section.is_null("num_key_value_heads") {
            heads
        } else {
            defaults.num_key_value_heads
        };
        let kv_heads = section.size("num_key_value_heads", Some(kv_default))?;
        let head_dim = read_head_dim(section, defaults.head_dim, hidden, heads)?;
        let layers = section.count("num_hidden_layers", Some(defaults.num_hidden_layers), 1)?;
        let (experts, moe_intermediate) = match sparsity {
            Sparsity::Nowhere => (0, 0),
            _ => read_experts(section, defaults)?,
        };
        Ok(Self {
            hidden,
            vocabulary: section.size("vocab_size", Some(defaults.vocab_size))?,
            intermediate: section.size("intermediate_size", Some(defaults.intermediate_size))?,
            q_width: section.product("num_attention_heads", heads, head_dim)?,
            kv_width: section.product("num_key_value_heads", kv_heads, head_dim)?,
            heads,
            kv_heads,
            head_dim,
            layers,
            // All classes default to no bias.
            attention_bias: section.flag("attention_bias", false)?,
            experts,
            moe_intermediate,
            moe: moe_layers(section, sparsity, layers, experts)?,
            stacked: Vec::new(),
            shared_intermediate: 0,
            groups: 0,
            thinker_hidden: 0,
            tied_head: false,
        })
    }

    /// The tensors of `mount`, its experts stacked in the layers where `is_present` knows a stacked
    /// name.
    pub(crate) fn expect(
        &mut self,
        mount: &Mount<Self>,
        section: &Section<'_>,
        is_present: &dyn Fn(&str) -> bool,
        out: &mut Vec<Expected>,
    ) -> Result<(), ConfigError> {
        let stacked = |layer| mount.stacked_names(layer).any(|name| is_present(&name));
        self.stacked = (0..self.layers).map(stacked).collect();
        mount.expect(self, &section.name(), out)
    }

    fn is_moe(&self, layer: u32) -> bool {
        self.moe.get(layer as usize).copied().unwrap_or(false)
    }

    fn is_stacked(&self, layer: u32) -> bool {
        self.is_moe(layer) && self.stacked.get(layer as usize).copied().unwrap_or(false)
    }
}

impl Dims for DecoderDims {
    fn range(&self, placeholder: Placeholder) -> Range<u32> {
        match placeholder {
            Placeholder::Layer => 0..self.layers,
            Placeholder::Expert => 0..self.experts,
            Placeholder::Group => 0..self.groups,
            _ => 0..0,
        }
    }
}

/// head_dim is not hidden_size / heads in the real model; that is only the fallback of classes
/// without a default.
pub(crate) fn read_head_dim(
    section: &Section<'_>,
    default: Option<u64>,
    hidden: u64,
    heads: u64,
) -> Result<u64, ConfigError> {
    if section.has("head_dim") || default.is_some() {
        return section.size("head_dim", default);
    }
    if hidden < heads {
        return Err(section.missing(
            "head_dim",
            "a size, as hidden_size / num_attention_heads is 0",
        ));
    }
    Ok(hidden / heads)
}

/// transformers 5 writes `num_local_experts` where 4 wrote `num_experts`.
fn read_experts(section: &Section<'_>, defaults: &Defaults) -> Result<(u32, u64), ConfigError> {
    let key = section.either("num_experts", "num_local_experts");
    let experts = section.count(key, Some(defaults.num_experts), 0)?;
    let moe_intermediate = section.size(
        "moe_intermediate_size",
        Some(defaults.moe_intermediate_size),
    )?;
    Ok((experts, moe_intermediate))
}

/// Source: Qwen3OmniMoeThinkerTextDecoderLayer, transformers 5.23, modeling_qwen3_omni_moe.py:1524.
fn moe_layers(
    section: &Section<'_>,
    sparsity: Sparsity,
    layers: u32,
    experts: u32,
) -> Result<Vec<bool>, ConfigError> {
    let mut moe = vec![sparsity != Sparsity::Nowhere && experts > 0; layers as usize];
    if sparsity == Sparsity::ByLayer {
        // Class defaults: every layer, no exceptions.
        let step = section.integer("decoder_sparse_step", Some(1), 1..=MAX_COUNT)?;
        let dense = section.integers("mlp_only_layers", &[], 0..=MAX_COUNT)?;
        for (layer, moe) in (1u64..).zip(&mut moe) {
            *moe &= layer % step == 0;
        }
        for layer in dense {
            if let Some(moe) = usize::try_from(layer)
                .ok()
                .and_then(|layer| moe.get_mut(layer))
            {
                *moe = false;
            }
        }
    }
    Ok(moe)
}

/// Facts about a text decoder that a runtime or a reader of the manifest wants to know.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct TextFacts {
    /// Width of the residual stream.
    pub hidden_size: u64,
    /// Decoder layers.
    pub layers: u32,
    /// Layers with routed experts.
    pub moe_layers: u32,
    /// Routed experts of such a layer.
    pub experts: u32,
    /// Experts that each token visits.
    pub experts_per_token: u32,
    /// Inner width of a routed expert.
    pub moe_intermediate: u64,
    /// Inner width of a dense layer's MLP.
    pub intermediate: u64,
    /// Query heads.
    pub heads: u64,
    /// Key and value heads.
    pub kv_heads: u64,
    /// Width of one head.
    pub head_dim: u64,
    /// Rows of the embedding; more than the tokenizer has tokens.
    pub vocab: u64,
    /// Added to the mean square in every RMS norm.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Kind of rotary scaling; "default" is none.
    pub rope_type: String,
    /// Whether q, k, v and o projections have biases.
    pub attention_bias: bool,
    /// Whether the chosen experts' probabilities are scaled to sum to 1.
    pub norm_topk_prob: bool,
    /// Whether the output head is the embedding.
    pub tie_word_embeddings: bool,
}

impl TextFacts {
    pub(crate) fn read(
        section: &Section<'_>,
        defaults: &Defaults,
        tied: bool,
    ) -> Result<Self, ConfigError> {
        let dims = DecoderDims::read(section, defaults, Sparsity::ByLayer)?;
        let moe_layers = dims.moe.iter().filter(|moe| **moe).count();
        let experts_per_token =
            section.count("num_experts_per_tok", Some(defaults.num_experts_per_tok), 0)?;
        if moe_layers > 0 && !(1..=dims.experts).contains(&experts_per_token) {
            let wanted = format!("from 1 to the {} experts", dims.experts);
            return Err(section.invalid("num_experts_per_tok", &wanted));
        }
        let (rope_theta, rope_type) = read_rope(section, defaults)?;
        Ok(Self {
            hidden_size: dims.hidden,
            layers: dims.layers,
            moe_layers: u32::try_from(moe_layers).unwrap_or(dims.layers),
            experts: dims.experts,
            experts_per_token,
            moe_intermediate: dims.moe_intermediate,
            intermediate: dims.intermediate,
            heads: dims.heads,
            kv_heads: dims.kv_heads,
            head_dim: dims.head_dim,
            vocab: dims.vocabulary,
            // Class default.
            rms_norm_eps: section.positive_number("rms_norm_eps", 1e-6)?,
            rope_theta,
            rope_type,
            attention_bias: dims.attention_bias,
            norm_topk_prob: section.flag("norm_topk_prob", defaults.norm_topk_prob)?,
            tie_word_embeddings: tied,
        })
    }
}

/// transformers 4: `rope_theta` beside `rope_scaling`; transformers 5: all of it in
/// `rope_parameters`.
fn read_rope(section: &Section<'_>, defaults: &Defaults) -> Result<(f64, String), ConfigError> {
    let beside = section.positive_number("rope_theta", defaults.rope_theta)?;
    let key = section.either("rope_parameters", "rope_scaling");
    if !section.has(key) {
        return Ok((beside, "default".to_owned()));
    }
    let rope = section.section(key)?;
    let kind = rope
        .text(rope.either("rope_type", "type"))?
        .unwrap_or("default");
    Ok((rope.positive_number("rope_theta", beside)?, kind.to_owned()))
}

fn hidden_vector(dims: &DecoderDims, _: At) -> Vec<u64> {
    vec![dims.hidden]
}

fn head_vector(dims: &DecoderDims, _: At) -> Vec<u64> {
    vec![dims.head_dim]
}

fn q_vector(dims: &DecoderDims, _: At) -> Vec<u64> {
    vec![dims.q_width]
}

fn kv_matrix(dims: &DecoderDims, _: At) -> Vec<u64> {
    vec![dims.kv_width, dims.hidden]
}

fn kv_vector(dims: &DecoderDims, _: At) -> Vec<u64> {
    vec![dims.kv_width]
}

fn vocabulary_matrix(dims: &DecoderDims, _: At) -> Vec<u64> {
    vec![dims.vocabulary, dims.hidden]
}

fn expert_in(dims: &DecoderDims, _: At) -> Vec<u64> {
    vec![dims.moe_intermediate, dims.hidden]
}

fn expert_out(dims: &DecoderDims, _: At) -> Vec<u64> {
    vec![dims.hidden, dims.moe_intermediate]
}

fn router(dims: &DecoderDims, _: At) -> Vec<u64> {
    vec![dims.experts.into(), dims.hidden]
}

fn stacked_in(dims: &DecoderDims, _: At) -> Vec<u64> {
    vec![dims.experts.into(), 2 * dims.moe_intermediate, dims.hidden]
}

fn stacked_out(dims: &DecoderDims, _: At) -> Vec<u64> {
    vec![dims.experts.into(), dims.hidden, dims.moe_intermediate]
}

fn shared_in(dims: &DecoderDims, _: At) -> Vec<u64> {
    vec![dims.shared_intermediate, dims.hidden]
}

fn mlp_in(dims: &DecoderDims, _: At) -> Vec<u64> {
    vec![dims.intermediate, dims.hidden]
}

fn mlp_out(dims: &DecoderDims, _: At) -> Vec<u64> {
    vec![dims.hidden, dims.intermediate]
}

fn biased(dims: &DecoderDims, _: u32) -> bool {
    dims.attention_bias
}

fn dense(dims: &DecoderDims, layer: u32) -> bool {
    !dims.is_moe(layer)
}

fn per_expert(dims: &DecoderDims, layer: u32) -> bool {
    dims.is_moe(layer) && !dims.is_stacked(layer)
}

/// Source: Qwen3OmniMoeThinkerTextAttention, modeling_qwen3_omni_moe.py:1429; Qwen3MoeAttention is
/// the same.
pub(crate) static ATTENTION: &[Row<DecoderDims>] = &[
    row(
        "model.layers.{layer}.input_layernorm.weight",
        Role::InputNorm,
        hidden_vector,
    ),
    row(
        "model.layers.{layer}.self_attn.q_proj.weight",
        Role::AttentionQ,
        |d, _| vec![d.q_width, d.hidden],
    ),
    row(
        "model.layers.{layer}.self_attn.q_proj.bias",
        Role::AttentionQ,
        q_vector,
    )
    .when(biased),
    row(
        "model.layers.{layer}.self_attn.k_proj.weight",
        Role::AttentionK,
        kv_matrix,
    ),
    row(
        "model.layers.{layer}.self_attn.k_proj.bias",
        Role::AttentionK,
        kv_vector,
    )
    .when(biased),
    row(
        "model.layers.{layer}.self_attn.v_proj.weight",
        Role::AttentionV,
        kv_matrix,
    ),
    row(
        "model.layers.{layer}.self_attn.v_proj.bias",
        Role::AttentionV,
        kv_vector,
    )
    .when(biased),
    row(
        "model.layers.{layer}.self_attn.o_proj.weight",
        Role::AttentionO,
        |d, _| vec![d.hidden, d.q_width],
    ),
    row(
        "model.layers.{layer}.self_attn.o_proj.bias",
        Role::AttentionO,
        hidden_vector,
    )
    .when(biased),
    row(
        "model.layers.{layer}.self_attn.q_norm.weight",
        Role::QNorm,
        head_vector,
    ),
    row(
        "model.layers.{layer}.self_attn.k_norm.weight",
        Role::KNorm,
        head_vector,
    ),
    row(
        "model.layers.{layer}.post_attention_layernorm.weight",
        Role::PostAttentionNorm,
        hidden_vector,
    ),
];

/// Source: Qwen3OmniMoeThinkerTextMLP, modeling_qwen3_omni_moe.py:1504.
pub(crate) static DENSE_MLP: &[Row<DecoderDims>] = &[
    row(
        "model.layers.{layer}.mlp.gate_proj.weight",
        Role::MlpGate,
        mlp_in,
    )
    .when(dense),
    row(
        "model.layers.{layer}.mlp.up_proj.weight",
        Role::MlpUp,
        mlp_in,
    )
    .when(dense),
    row(
        "model.layers.{layer}.mlp.down_proj.weight",
        Role::MlpDown,
        mlp_out,
    )
    .when(dense),
];

/// Source: Qwen3OmniMoeThinkerTextTopKRouter and …Experts, modeling_qwen3_omni_moe.py:1305-1353;
/// per expert as conversion_mapping.py:1297 takes them apart: gate rows before up rows.
pub(crate) static EXPERTS: &[Row<DecoderDims>] = &[
    row("model.layers.{layer}.mlp.gate.weight", Role::Router, router).when(DecoderDims::is_moe),
    row(
        "model.layers.{layer}.mlp.experts.{expert}.gate_proj.weight",
        Role::ExpertGate,
        expert_in,
    )
    .when(per_expert),
    row(
        "model.layers.{layer}.mlp.experts.{expert}.up_proj.weight",
        Role::ExpertUp,
        expert_in,
    )
    .when(per_expert),
    row(
        "model.layers.{layer}.mlp.experts.{expert}.down_proj.weight",
        Role::ExpertDown,
        expert_out,
    )
    .when(per_expert),
    row(
        "model.layers.{layer}.mlp.experts.gate_up_proj",
        Role::ExpertGateUpStacked,
        stacked_in,
    )
    .when(DecoderDims::is_stacked)
    .stack_of(&[Role::ExpertGate, Role::ExpertUp]),
    row(
        "model.layers.{layer}.mlp.experts.down_proj",
        Role::ExpertDownStacked,
        stacked_out,
    )
    .when(DecoderDims::is_stacked)
    .stack_of(&[Role::ExpertDown]),
];

/// Source: Qwen3OmniMoeTalkerTextSparseMoeBlock, modeling_qwen3_omni_moe.py:2881.
pub(crate) static SHARED_EXPERT: &[Row<DecoderDims>] = &[
    row(
        "model.layers.{layer}.mlp.shared_expert.gate_proj.weight",
        Role::SharedExpertGate,
        shared_in,
    ),
    row(
        "model.layers.{layer}.mlp.shared_expert.up_proj.weight",
        Role::SharedExpertUp,
        shared_in,
    ),
    row(
        "model.layers.{layer}.mlp.shared_expert.down_proj.weight",
        Role::SharedExpertDown,
        |d, _| vec![d.hidden, d.shared_intermediate],
    ),
    row(
        "model.layers.{layer}.mlp.shared_expert_gate.weight",
        Role::SharedExpertRouter,
        |d, _| vec![1, d.hidden],
    ),
];

/// Token embedding, before the layers.
pub(crate) static EMBEDDING: &[Row<DecoderDims>] = &[row(
    "model.embed_tokens.weight",
    Role::Embedding,
    vocabulary_matrix,
)];

/// Norm after the layers.
pub(crate) static FINAL_NORM: &[Row<DecoderDims>] =
    &[row("model.norm.weight", Role::FinalNorm, hidden_vector)];

/// Output head over tokens; a tied one is left out when saving.
pub(crate) static LM_HEAD: &[Row<DecoderDims>] =
    &[row("lm_head.weight", Role::LmHead, vocabulary_matrix).optional(|d| d.tied_head)];

/// Source: Qwen3OmniMoeTalkerResizeMLP and …TalkerModel, modeling_qwen3_omni_moe.py:2391, 2978.
pub(crate) static TALKER_INPUT: &[Row<DecoderDims>] = &[
    row(
        "model.codec_embedding.weight",
        Role::CodecEmbedding,
        vocabulary_matrix,
    ),
    row(
        "text_projection.linear_fc1.weight",
        Role::Projection,
        |d, _| vec![d.intermediate, d.thinker_hidden],
    ),
    row(
        "text_projection.linear_fc1.bias",
        Role::Projection,
        |d, _| vec![d.intermediate],
    ),
    row(
        "text_projection.linear_fc2.weight",
        Role::Projection,
        |d, _| vec![d.hidden, d.intermediate],
    ),
    row(
        "text_projection.linear_fc2.bias",
        Role::Projection,
        hidden_vector,
    ),
    row(
        "hidden_projection.linear_fc1.weight",
        Role::Projection,
        |d, _| vec![d.intermediate, d.thinker_hidden],
    ),
    row(
        "hidden_projection.linear_fc1.bias",
        Role::Projection,
        |d, _| vec![d.intermediate],
    ),
    row(
        "hidden_projection.linear_fc2.weight",
        Role::Projection,
        |d, _| vec![d.hidden, d.intermediate],
    ),
    row(
        "hidden_projection.linear_fc2.bias",
        Role::Projection,
        hidden_vector,
    ),
];

/// Source: Qwen3OmniMoeTalkerForConditionalGeneration, modeling_qwen3_omni_moe.py:3087, 3108.
pub(crate) static CODEC_HEAD: &[Row<DecoderDims>] =
    &[row("codec_head.weight", Role::CodecHead, vocabulary_matrix).optional(|d| d.tied_head)];

/// Source: Qwen3OmniMoeTalkerCodePredictorModel, modeling_qwen3_omni_moe.py:2636: one per residual
/// codebook.
pub(crate) static GROUP_EMBEDDINGS: &[Row<DecoderDims>] = &[row(
    "model.codec_embedding.{group}.weight",
    Role::CodecEmbedding,
    vocabulary_matrix,
)];

/// Source: modeling_qwen3_omni_moe.py:2719.
pub(crate) static GROUP_HEADS: &[Row<DecoderDims>] = &[row(
    "lm_head.{group}.weight",
    Role::LmHead,
    vocabulary_matrix,
)];
