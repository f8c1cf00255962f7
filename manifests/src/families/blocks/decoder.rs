//! A whole decoder, put together from its blocks: what thinker, talker, code predictor and plain
//! Qwen3-MoE have in common.

use super::gqa::{GQA, Gqa, GqaDefaults};
use super::mlp::{MLP, Mlp};
use super::moe::{MOE, Moe, MoeDefaults};
use super::norms::{NORMS, Norms};
use super::vocabulary::{EMBEDDING, LM_HEAD, Vocabulary};
use crate::families::config::{ConfigError, Section};
use crate::families::rules::{Block, BlockOf};

pub(crate) use super::moe::Sparsity;

/// What the configuration class of transformers takes for keys that `config.json` leaves out.
pub(crate) struct DecoderDefaults {
    pub(crate) vocabulary: u64,
    pub(crate) hidden: u64,
    pub(crate) intermediate: u64,
    pub(crate) layers: u64,
    pub(crate) attention: GqaDefaults,
    pub(crate) moe: MoeDefaults,
    pub(crate) experts_per_token: u64,
    pub(crate) norm_topk_prob: bool,
    pub(crate) rope_theta: f64,
}

/// Sizes of a decoder, block by block.
pub(crate) struct Decoder {
    pub(crate) vocabulary: Vocabulary,
    pub(crate) norms: Norms,
    pub(crate) attention: Gqa,
    pub(crate) mlp: Mlp,
    pub(crate) moe: Moe,
}

impl Decoder {
    pub(crate) fn read(
        section: &Section<'_>,
        defaults: &DecoderDefaults,
        sparsity: Sparsity,
    ) -> Result<Self, ConfigError> {
        let hidden = section.size("hidden_size", Some(defaults.hidden))?;
        let layers = section.count("num_hidden_layers", Some(defaults.layers), 1)?;
        let attention = Gqa::read(section, &defaults.attention, layers, hidden)?;
        let moe = Moe::read(section, &defaults.moe, sparsity, layers, hidden)?;
        Ok(Self {
            vocabulary: Vocabulary {
                size: section.size("vocab_size", Some(defaults.vocabulary))?,
                hidden,
                tied: false,
                groups: 0,
            },
            norms: Norms { layers, hidden },
            attention,
            mlp: Mlp {
                hidden,
                intermediate: section.size("intermediate_size", Some(defaults.intermediate))?,
                dense: moe.dense_layers(),
            },
            moe,
        })
    }

    /// Finds the layers whose experts are stored stacked: `is_present` knows a stacked name.
    pub(crate) fn find_stacked(&mut self, prefix: &'static str, is_present: &dyn Fn(&str) -> bool) {
        self.moe.find_stacked(prefix, is_present);
    }
}

/// The blocks of a decoder that is a language model of its own.
pub(crate) static CAUSAL_LM: &[&dyn BlockOf<Decoder>] = &[
    &Block {
        rows: EMBEDDING,
        dims: |d: &Decoder| &d.vocabulary,
    },
    &Block {
        rows: NORMS,
        dims: |d: &Decoder| &d.norms,
    },
    &Block {
        rows: GQA,
        dims: |d: &Decoder| &d.attention,
    },
    &Block {
        rows: MLP,
        dims: |d: &Decoder| &d.mlp,
    },
    &Block {
        rows: MOE,
        dims: |d: &Decoder| &d.moe,
    },
    &Block {
        rows: LM_HEAD,
        dims: |d: &Decoder| &d.vocabulary,
    },
];
