//! Plain Qwen3-MoE (`Qwen3MoeForCausalLM`): transformers 5.23, modeling_qwen3_moe.py.

use crate::families::Expected;
use crate::families::blocks::decoder::{
    ATTENTION, DENSE_MLP, DecoderDims, Defaults, EMBEDDING, EXPERTS, FINAL_NORM, LM_HEAD, Sparsity,
    TextFacts,
};
use crate::families::config::{ConfigError, Section};
use crate::families::rules::{Mount, Rules};
use crate::names::Component;

static TEXT: Mount<DecoderDims> = Mount {
    prefix: "",
    component: Component::Text,
    tables: &[
        EMBEDDING, ATTENTION, DENSE_MLP, EXPERTS, FINAL_NORM, LM_HEAD,
    ],
};

/// Class defaults of Qwen3MoeConfig.
const DEFAULTS: Defaults = Defaults {
    vocab_size: 151_936,
    hidden_size: 2048,
    intermediate_size: 6144,
    num_hidden_layers: 24,
    num_attention_heads: 32,
    num_key_value_heads: 4,
    head_dim: None,
    num_experts: 128,
    moe_intermediate_size: 768,
    num_experts_per_tok: 8,
    norm_topk_prob: false,
    rope_theta: 10_000.0,
};

pub(crate) fn rules() -> Rules {
    Rules::new().with(&TEXT)
}

pub(crate) fn expected(
    root: &Section<'_>,
    is_present: &dyn Fn(&str) -> bool,
    out: &mut Vec<Expected>,
) -> Result<(), ConfigError> {
    let mut dims = DecoderDims::read(root, &DEFAULTS, Sparsity::ByLayer)?;
    dims.tied_head = is_tied(root)?;
    dims.expect(&TEXT, root, is_present, out)
}

pub(crate) fn text_facts(root: &Section<'_>) -> Result<TextFacts, ConfigError> {
    TextFacts::read(root, &DEFAULTS, is_tied(root)?)
}

fn is_tied(root: &Section<'_>) -> Result<bool, ConfigError> {
    root.flag("tie_word_embeddings", false)
}
