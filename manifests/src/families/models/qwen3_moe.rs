//! Plain Qwen3-MoE (`Qwen3MoeForCausalLM`): transformers 5.23, modeling_qwen3_moe.py.

use std::sync::LazyLock;

use crate::families::blocks::decoder::{CAUSAL_LM, Decoder, DecoderDefaults, Sparsity};
use crate::families::blocks::gqa::GqaDefaults;
use crate::families::blocks::moe::MoeDefaults;
use crate::families::causal_lm;
use crate::families::config::{ConfigError, Section};
use crate::families::expected::ExpectedSink;
use crate::families::rules::{Mount, Rules};
use crate::families::{FamilyRow, PartialConfig, TextFacts, TextSettings};
use crate::names::Component;

/// The family's row.
pub(crate) static FAMILY: FamilyRow = FamilyRow {
    name: "qwen3_moe",
    model_types: &["qwen3_moe"],
    architectures: &["Qwen3MoeForCausalLM"],
    rules: LazyLock::new(|| Rules::new().with(&TEXT)),
    expected,
    text_facts,
    text_settings: Some(TextSettings::read),
    media_facts: |_| Ok(None),
    vocoder_facts: |_| Ok(None),
    speech_facts: |_| Ok(None),
    as_causal_lm: Some(|config, _| {
        causal_lm::completed(config, &text_facts(&Section::root(config)?)?)
    }),
    partial_config: |_, _| PartialConfig::Unchanged,
};

static TEXT: Mount<Decoder> = Mount {
    prefix: "",
    component: Component::Text,
    blocks: CAUSAL_LM,
};

/// Class defaults of Qwen3MoeConfig.
const DEFAULTS: DecoderDefaults = DecoderDefaults {
    vocabulary: 151_936,
    hidden: 2048,
    intermediate: 6144,
    layers: 24,
    attention: GqaDefaults {
        heads: 32,
        kv_heads: 4,
        head_dim: None,
    },
    moe: MoeDefaults {
        experts: 128,
        intermediate: 768,
    },
    experts_per_token: 8,
    norm_topk_prob: false,
    rope_theta: 10_000.0,
};

fn expected(
    root: &Section<'_>,
    is_present: &dyn Fn(&str) -> bool,
    out: &mut ExpectedSink<'_>,
) -> Result<(), ConfigError> {
    let mut decoder = Decoder::read(root, &DEFAULTS, Sparsity::ByLayer)?;
    decoder.vocabulary.tied = is_tied(root)?;
    decoder.find_stacked(TEXT.prefix, is_present);
    TEXT.expect(&decoder, root.name(), out)
}

fn text_facts(root: &Section<'_>) -> Result<TextFacts, ConfigError> {
    TextFacts::read(root, &DEFAULTS, is_tied(root)?)
}

fn is_tied(root: &Section<'_>) -> Result<bool, ConfigError> {
    root.flag("tie_word_embeddings", false)
}
