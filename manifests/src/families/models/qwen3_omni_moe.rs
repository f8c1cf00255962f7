//! Qwen3-Omni-MoE (Instruct, Thinking, Captioner), names as on disk: transformers 5.23,
//! modeling_qwen3_omni_moe.py and configuration_qwen3_omni_moe.py.

use crate::families::Expected;
use crate::families::blocks::audio_tower::{AUDIO_TOWER, AudioDims};
use crate::families::blocks::decoder::{
    ATTENTION, CODEC_HEAD, DENSE_MLP, DecoderDims, Defaults, EMBEDDING, EXPERTS, FINAL_NORM,
    GROUP_EMBEDDINGS, GROUP_HEADS, LM_HEAD, SHARED_EXPERT, Sparsity, TALKER_INPUT, TextFacts,
};
use crate::families::blocks::vision_tower::{VISION_TOWER, VisionDims};
use crate::families::blocks::vocoder::{CODE2WAV, Code2wavDims};
use crate::families::config::{ConfigError, MAX_SIZE, Section};
use crate::families::rules::{Mount, Rules};
use crate::names::Component;

static THINKER_TEXT: Mount<DecoderDims> = Mount {
    prefix: "thinker.",
    component: Component::ThinkerText,
    tables: &[
        EMBEDDING, ATTENTION, DENSE_MLP, EXPERTS, FINAL_NORM, LM_HEAD,
    ],
};

static THINKER_AUDIO: Mount<AudioDims> = Mount {
    prefix: "thinker.audio_tower.",
    component: Component::ThinkerAudio,
    tables: &[AUDIO_TOWER],
};

static THINKER_VISION: Mount<VisionDims> = Mount {
    prefix: "thinker.visual.",
    component: Component::ThinkerVision,
    tables: &[VISION_TOWER],
};

static TALKER_TEXT: Mount<DecoderDims> = Mount {
    prefix: "talker.",
    component: Component::TalkerText,
    tables: &[
        TALKER_INPUT,
        ATTENTION,
        EXPERTS,
        SHARED_EXPERT,
        FINAL_NORM,
        CODEC_HEAD,
    ],
};

static CODE_PREDICTOR: Mount<DecoderDims> = Mount {
    prefix: "talker.code_predictor.",
    component: Component::TalkerCodePredictor,
    tables: &[
        GROUP_EMBEDDINGS,
        ATTENTION,
        DENSE_MLP,
        FINAL_NORM,
        GROUP_HEADS,
    ],
};

static VOCODER: Mount<Code2wavDims> = Mount {
    prefix: "code2wav.",
    component: Component::Code2wav,
    tables: &[CODE2WAV],
};

/// Class defaults of Qwen3OmniMoeTextConfig.
const THINKER_DEFAULTS: Defaults = Defaults {
    vocab_size: 3584,
    hidden_size: 2048,
    intermediate_size: 18_944,
    num_hidden_layers: 28,
    num_attention_heads: 28,
    num_key_value_heads: 4,
    head_dim: None,
    num_experts: 128,
    moe_intermediate_size: 768,
    num_experts_per_tok: 8,
    norm_topk_prob: true,
    rope_theta: 1_000_000.0,
};

/// Class defaults of Qwen3OmniMoeTalkerTextConfig.
const TALKER_DEFAULTS: Defaults = Defaults {
    vocab_size: 3072,
    hidden_size: 1024,
    intermediate_size: 2048,
    num_hidden_layers: 20,
    num_attention_heads: 16,
    num_key_value_heads: 2,
    head_dim: None,
    num_experts: 128,
    moe_intermediate_size: 384,
    num_experts_per_tok: 8,
    norm_topk_prob: false,
    rope_theta: 10_000.0,
};

/// Class defaults of Qwen3OmniMoeTalkerCodePredictorConfig, which has no experts.
const CODE_PREDICTOR_DEFAULTS: Defaults = Defaults {
    vocab_size: 2048,
    hidden_size: 1024,
    intermediate_size: 3072,
    num_hidden_layers: 5,
    num_attention_heads: 16,
    num_key_value_heads: 8,
    head_dim: Some(128),
    num_experts: 0,
    moe_intermediate_size: 0,
    num_experts_per_tok: 0,
    norm_topk_prob: false,
    rope_theta: 10_000.0,
};

pub(crate) fn rules() -> Rules {
    Rules::new()
        .with(&THINKER_TEXT)
        .with(&THINKER_AUDIO)
        .with(&THINKER_VISION)
        .with(&TALKER_TEXT)
        .with(&CODE_PREDICTOR)
        .with(&VOCODER)
}

pub(crate) fn expected(
    root: &Section<'_>,
    is_present: &dyn Fn(&str) -> bool,
    out: &mut Vec<Expected>,
) -> Result<(), ConfigError> {
    expect_thinker(root, is_present, out)?;
    if has_talker(root)? {
        let talker = root.section("talker_config")?;
        expect_talker(&talker, is_present, out)?;
        expect_code_predictor(&talker.section("code_predictor_config")?, is_present, out)?;
        let vocoder = root.section("code2wav_config")?;
        VOCODER.expect(&Code2wavDims::read(&vocoder)?, &vocoder.name(), out)?;
    }
    Ok(())
}

pub(crate) fn text_facts(root: &Section<'_>) -> Result<TextFacts, ConfigError> {
    let thinker = thinker_section(root)?;
    let text = thinker.section("text_config")?;
    TextFacts::read(&text, &THINKER_DEFAULTS, is_tied(&text, &thinker, root)?)
}

fn expect_thinker(
    root: &Section<'_>,
    is_present: &dyn Fn(&str) -> bool,
    out: &mut Vec<Expected>,
) -> Result<(), ConfigError> {
    let thinker = thinker_section(root)?;
    let text = thinker.section("text_config")?;
    let mut dims = DecoderDims::read(&text, &THINKER_DEFAULTS, Sparsity::ByLayer)?;
    dims.tied_head = is_tied(&text, &thinker, root)?;
    dims.expect(&THINKER_TEXT, &text, is_present, out)?;
    let audio = thinker.section("audio_config")?;
    THINKER_AUDIO.expect(&AudioDims::read(&audio)?, &audio.name(), out)?;
    let vision = thinker.section("vision_config")?;
    THINKER_VISION.expect(&VisionDims::read(&vision)?, &vision.name(), out)
}

fn expect_talker(
    talker: &Section<'_>,
    is_present: &dyn Fn(&str) -> bool,
    out: &mut Vec<Expected>,
) -> Result<(), ConfigError> {
    let text = talker.section("text_config")?;
    // Qwen3OmniMoeTalkerDecoderLayer (modeling_qwen3_omni_moe.py:2905) builds a dense MLP where the
    // keys ask for one and then replaces it by experts: all layers have them.
    let mut dims = DecoderDims::read(&text, &TALKER_DEFAULTS, Sparsity::Everywhere)?;
    // The configuration class does not declare it, so there is no default.
    dims.shared_intermediate =
        text.integer("shared_expert_intermediate_size", None, 0..=MAX_SIZE)?;
    // Default of Qwen3OmniMoeTalkerConfig.
    dims.thinker_hidden = talker.size("thinker_hidden_size", Some(2048))?;
    dims.tied_head =
        text.flag("tie_word_embeddings", false)? || talker.flag("tie_word_embeddings", false)?;
    dims.expect(&TALKER_TEXT, &text, is_present, out)
}

fn expect_code_predictor(
    predictor: &Section<'_>,
    is_present: &dyn Fn(&str) -> bool,
    out: &mut Vec<Expected>,
) -> Result<(), ConfigError> {
    let mut dims = DecoderDims::read(predictor, &CODE_PREDICTOR_DEFAULTS, Sparsity::Nowhere)?;
    // The talker itself predicts the first code group. Class default: 32.
    dims.groups = predictor.count("num_code_groups", Some(32), 1)? - 1;
    dims.expect(&CODE_PREDICTOR, predictor, is_present, out)
}

/// A thinker saved on its own has its configuration at the top.
fn thinker_section<'a>(root: &Section<'a>) -> Result<Section<'a>, ConfigError> {
    if !root.has("thinker_config") && root.has("text_config") {
        return Ok(root.clone());
    }
    root.section("thinker_config")
}

/// transformers 4 reads the flag in text_config, 5.23 in thinker_config.
fn is_tied(
    text: &Section<'_>,
    thinker: &Section<'_>,
    root: &Section<'_>,
) -> Result<bool, ConfigError> {
    let stated = [
        text.optional_flag("tie_word_embeddings")?,
        thinker.optional_flag("tie_word_embeddings")?,
    ];
    if stated.iter().any(Option::is_some) {
        return Ok(stated.contains(&Some(true)));
    }
    root.flag("tie_word_embeddings", false)
}

/// Thinking and Captioner say false; the class default is true, but a configuration without either
/// part has none.
fn has_talker(root: &Section<'_>) -> Result<bool, ConfigError> {
    let described = root.has("talker_config") || root.has("code2wav_config");
    root.flag("enable_audio_output", described)
}
