//! What stands at both ends of a decoder: embeddings and output heads, of tokens or codes.

use std::ops::Range;

use crate::families::rules::{Dims, Placeholder, Row, row};
use crate::names::Role;

/// Sizes of embeddings and heads.
pub(crate) struct Vocabulary {
    pub(crate) size: u64,
    pub(crate) hidden: u64,
    /// Whether the output head is the embedding, and left out when saving.
    pub(crate) tied: bool,
    /// Residual codebooks of a code predictor.
    pub(crate) groups: u32,
}

impl Dims for Vocabulary {
    fn range(&self, placeholder: Placeholder) -> Range<u32> {
        match placeholder {
            Placeholder::Named("group") => 0..self.groups,
            _ => 0..0,
        }
    }
}

fn vocabulary_matrix(dims: &Vocabulary, _: &[u32]) -> Vec<u64> {
    vec![dims.size, dims.hidden]
}

/// Token embedding, before the layers.
pub(crate) static EMBEDDING: &[Row<Vocabulary>] = &[row(
    "model.embed_tokens.weight",
    Role::Embedding,
    vocabulary_matrix,
)];

/// Output head over tokens; a tied one is left out when saving.
pub(crate) static LM_HEAD: &[Row<Vocabulary>] =
    &[row("lm_head.weight", Role::LmHead, vocabulary_matrix).optional(|d| d.tied)];

/// Embedding of audio codes. Source: Qwen3OmniMoeTalkerModel, transformers 5.23,
/// modeling_qwen3_omni_moe.py:2978.
pub(crate) static CODEC_EMBEDDING: &[Row<Vocabulary>] = &[row(
    "model.codec_embedding.weight",
    Role::CodecEmbedding,
    vocabulary_matrix,
)];

/// Source: Qwen3OmniMoeTalkerForConditionalGeneration, modeling_qwen3_omni_moe.py:3087, 3108.
pub(crate) static CODEC_HEAD: &[Row<Vocabulary>] =
    &[row("codec_head.weight", Role::CodecHead, vocabulary_matrix).optional(|d| d.tied)];

/// Source: Qwen3OmniMoeTalkerCodePredictorModel, modeling_qwen3_omni_moe.py:2636: one per residual
/// codebook.
pub(crate) static GROUP_EMBEDDINGS: &[Row<Vocabulary>] = &[row(
    "model.codec_embedding.{group}.weight",
    Role::CodecEmbedding,
    vocabulary_matrix,
)];

/// Source: modeling_qwen3_omni_moe.py:2719.
pub(crate) static GROUP_HEADS: &[Row<Vocabulary>] = &[row(
    "lm_head.{group}.weight",
    Role::LmHead,
    vocabulary_matrix,
)];
