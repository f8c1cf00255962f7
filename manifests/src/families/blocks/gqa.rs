//! Grouped-query attention with a norm on each query and key head. Every Linear is `[out, in]`.

use std::ops::Range;

use crate::families::config::{ConfigError, Section};
use crate::families::rules::{Dims, Placeholder, Row, bias, row};
use crate::names::Role;

/// What the configuration class takes for keys that `config.json` leaves out.
pub(crate) struct GqaDefaults {
    pub(crate) heads: u64,
    pub(crate) kv_heads: u64,
    /// Where the class has none, the model takes hidden_size / num_attention_heads.
    pub(crate) head_dim: Option<u64>,
}

/// Sizes of the attention of all layers.
pub(crate) struct Gqa {
    layers: u32,
    hidden: u64,
    pub(crate) heads: u64,
    pub(crate) kv_heads: u64,
    pub(crate) head_dim: u64,
    /// num_attention_heads x head_dim, which need not be the hidden size.
    pub(crate) q_width: u64,
    pub(crate) kv_width: u64,
    pub(crate) has_bias: bool,
}

impl Gqa {
    pub(crate) fn read(
        section: &Section<'_>,
        defaults: &GqaDefaults,
        layers: u32,
        hidden: u64,
    ) -> Result<Self, ConfigError> {
        let heads = section.size("num_attention_heads", Some(defaults.heads))?;
        // an explicit null is multi-head attention in the classes that allow it
        let kv_default = match section.is_null("num_key_value_heads") {
            true => heads,
            false => defaults.kv_heads,
        };
        let kv_heads = section.size("num_key_value_heads", Some(kv_default))?;
        let head_dim = read_head_dim(section, defaults.head_dim, hidden, heads)?;
        Ok(Self {
            layers,
            hidden,
            heads,
            kv_heads,
            head_dim,
            q_width: section.product("num_attention_heads", heads, head_dim)?,
            kv_width: section.product("num_key_value_heads", kv_heads, head_dim)?,
            // all classes default to no bias
            has_bias: section.flag("attention_bias", false)?,
        })
    }
}

impl Dims for Gqa {
    fn range(&self, placeholder: Placeholder) -> Range<u32> {
        match placeholder {
            Placeholder::Layer => 0..self.layers,
            _ => 0..0,
        }
    }
}

/// head_dim is not hidden_size / heads in the real model; that is only the fallback of classes
/// without a default.
fn read_head_dim(
    section: &Section<'_>,
    default: Option<u64>,
    hidden: u64,
    heads: u64,
) -> Result<u64, ConfigError> {
    if section.has("head_dim") || default.is_some() {
        return section.size("head_dim", default);
    }
    if hidden < heads {
        let wanted = "a size, as hidden_size / num_attention_heads is 0";
        return Err(section.missing("head_dim", wanted));
    }
    Ok(hidden / heads)
}

fn hidden_vector(dims: &Gqa, _: &[u32]) -> Vec<u64> {
    vec![dims.hidden]
}

fn head_vector(dims: &Gqa, _: &[u32]) -> Vec<u64> {
    vec![dims.head_dim]
}

fn q_vector(dims: &Gqa, _: &[u32]) -> Vec<u64> {
    vec![dims.q_width]
}

fn kv_matrix(dims: &Gqa, _: &[u32]) -> Vec<u64> {
    vec![dims.kv_width, dims.hidden]
}

fn kv_vector(dims: &Gqa, _: &[u32]) -> Vec<u64> {
    vec![dims.kv_width]
}

fn biased(dims: &Gqa, _: u32) -> bool {
    dims.has_bias
}

/// Source: Qwen3OmniMoeThinkerTextAttention, modeling_qwen3_omni_moe.py:1429; Qwen3MoeAttention is
/// the same.
pub(crate) static GQA: &[Row<Gqa>] = &[
    row(
        "model.layers.{layer}.self_attn.q_proj.weight",
        Role::AttentionQ,
        |d, _| vec![d.q_width, d.hidden],
    ),
    bias(
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
    bias(
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
    bias(
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
    bias(
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
];
