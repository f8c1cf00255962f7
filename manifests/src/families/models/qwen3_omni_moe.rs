//! Qwen3-Omni-MoE (Instruct, Thinking, Captioner), names as on disk: transformers 5.23,
//! modeling_qwen3_omni_moe.py and configuration_qwen3_omni_moe.py.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use serde_json::{Map, Value, json};

use crate::families::blocks::audio_tower::{AUDIO_TOWER, AudioTower};
use crate::families::blocks::decoder::{CAUSAL_LM, Decoder, DecoderDefaults, Sparsity};
use crate::families::blocks::gqa::{GQA, GqaDefaults};
use crate::families::blocks::mlp::MLP;
use crate::families::blocks::moe::{MOE, MoeDefaults};
use crate::families::blocks::norms::NORMS;
use crate::families::blocks::shared_expert::{SHARED_EXPERT, SharedExpert};
use crate::families::blocks::talker_input::{TALKER_INPUT, TalkerInput};
use crate::families::blocks::vision_tower::{VISION_TOWER, VisionTower};
use crate::families::blocks::vocabulary::{
    CODEC_EMBEDDING, CODEC_HEAD, GROUP_EMBEDDINGS, GROUP_HEADS,
};
use crate::families::blocks::vocoder::{CODE2WAV, Vocoder};
use crate::families::causal_lm;
use crate::families::config::{ConfigError, MAX_SIZE, Section};
use crate::families::expected::ExpectedSink;
use crate::families::rules::{Block, BlockOf, Mount, Rules};
use crate::families::{
    FamilyRow, MediaFacts, PartialConfig, SpeechFacts, TextFacts, TextSettings, VocoderFacts,
};
use crate::names::Component;

/// The family's row. A thinker saved on its own has its own model type.
pub(crate) static FAMILY: FamilyRow = FamilyRow {
    name: "qwen3_omni_moe",
    model_types: &["qwen3_omni_moe", "qwen3_omni_moe_thinker", TEXT_ALONE],
    architectures: &[
        "Qwen3OmniMoeForConditionalGeneration",
        "Qwen3OmniMoeThinkerForConditionalGeneration",
        "Qwen3OmniMoeThinkerTextModel",
    ],
    rules: LazyLock::new(rules),
    expected,
    text_facts,
    text_settings: Some(text_settings),
    media_facts,
    vocoder_facts,
    speech_facts,
    as_causal_lm: Some(as_causal_lm),
    partial_config,
};

/// Where the parts of the thinker stand.
struct Thinker {
    text: Mount<Decoder>,
    audio: Mount<AudioTower>,
    vision: Mount<VisionTower>,
}

/// In the model that speaks.
static THINKER: Thinker = Thinker::named("thinker.", "thinker.audio_tower.", "thinker.visual.");

/// Saved on its own. Source: `save_pretrained` undoes what conversion_mapping.py of transformers
/// 5.23 has for `Qwen3OmniMoeThinkerForConditionalGeneration`, which leaves the names of 4.57.
static THINKER_ALONE: Thinker = Thinker::named("", "audio_tower.", "visual.");

static AUDIO_BLOCKS: &[&dyn BlockOf<AudioTower>] = &[&Block {
    rows: AUDIO_TOWER,
    dims: |d: &AudioTower| d,
}];

static VISION_BLOCKS: &[&dyn BlockOf<VisionTower>] = &[&Block {
    rows: VISION_TOWER,
    dims: |d: &VisionTower| d,
}];

impl Thinker {
    const fn named(text: &'static str, audio: &'static str, vision: &'static str) -> Self {
        Self {
            text: Mount {
                prefix: text,
                component: Component::ThinkerText,
                blocks: CAUSAL_LM,
            },
            audio: Mount {
                prefix: audio,
                component: Component::ThinkerAudio,
                blocks: AUDIO_BLOCKS,
            },
            vision: Mount {
                prefix: vision,
                component: Component::ThinkerVision,
                blocks: VISION_BLOCKS,
            },
        }
    }

    /// The names that a checkpoint has: those of a thinker on its own where it has the first or the
    /// last weight of the decoder under them, and not under the others.
    fn of_names(is_present: &dyn Fn(&str) -> bool) -> &'static Self {
        const ENDS: [&str; 2] = ["model.embed_tokens.weight", "model.norm.weight"];
        let has = |prefix: &str| ENDS.iter().any(|end| is_present(&format!("{prefix}{end}")));
        match has(THINKER_ALONE.text.prefix) && !has(THINKER.text.prefix) {
            true => &THINKER_ALONE,
            false => &THINKER,
        }
    }

    fn add_to(&'static self, rules: Rules) -> Rules {
        let rules = rules.with(&self.text).with(&self.audio);
        rules.with(&self.vision)
    }
}

/// Sizes of the talker: a decoder with shared experts, and the way into it.
struct Talker {
    decoder: Decoder,
    shared_expert: SharedExpert,
    input: TalkerInput,
}

static TALKER_TEXT: Mount<Talker> = Mount {
    prefix: "talker.",
    component: Component::TalkerText,
    blocks: &[
        &Block {
            rows: CODEC_EMBEDDING,
            dims: |d: &Talker| &d.decoder.vocabulary,
        },
        &Block {
            rows: TALKER_INPUT,
            dims: |d: &Talker| &d.input,
        },
        &Block {
            rows: NORMS,
            dims: |d: &Talker| &d.decoder.norms,
        },
        &Block {
            rows: GQA,
            dims: |d: &Talker| &d.decoder.attention,
        },
        &Block {
            rows: MOE,
            dims: |d: &Talker| &d.decoder.moe,
        },
        &Block {
            rows: SHARED_EXPERT,
            dims: |d: &Talker| &d.shared_expert,
        },
        &Block {
            rows: CODEC_HEAD,
            dims: |d: &Talker| &d.decoder.vocabulary,
        },
    ],
};

static CODE_PREDICTOR: Mount<Decoder> = Mount {
    prefix: "talker.code_predictor.",
    component: Component::TalkerCodePredictor,
    blocks: &[
        &Block {
            rows: GROUP_EMBEDDINGS,
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
            rows: GROUP_HEADS,
            dims: |d: &Decoder| &d.vocabulary,
        },
    ],
};

static VOCODER: Mount<Vocoder> = Mount {
    prefix: "code2wav.",
    component: Component::Code2wav,
    blocks: &[&Block {
        rows: CODE2WAV,
        dims: |d: &Vocoder| d,
    }],
};

/// Class defaults of Qwen3OmniMoeTextConfig.
const THINKER_DEFAULTS: DecoderDefaults = DecoderDefaults {
    vocabulary: 3584,
    hidden: 2048,
    intermediate: 18_944,
    layers: 28,
    attention: GqaDefaults {
        heads: 28,
        kv_heads: 4,
        head_dim: None,
    },
    moe: MoeDefaults {
        experts: 128,
        intermediate: 768,
    },
    experts_per_token: 8,
    norm_topk_prob: true,
    rope_theta: 1_000_000.0,
};

/// Class defaults of Qwen3OmniMoeTalkerTextConfig.
const TALKER_DEFAULTS: DecoderDefaults = DecoderDefaults {
    vocabulary: 3072,
    hidden: 1024,
    intermediate: 2048,
    layers: 20,
    attention: GqaDefaults {
        heads: 16,
        kv_heads: 2,
        head_dim: None,
    },
    moe: MoeDefaults {
        experts: 128,
        intermediate: 384,
    },
    experts_per_token: 8,
    norm_topk_prob: false,
    rope_theta: 10_000.0,
};

/// Class defaults of Qwen3OmniMoeTalkerCodePredictorConfig, which has no experts.
const CODE_PREDICTOR_DEFAULTS: DecoderDefaults = DecoderDefaults {
    vocabulary: 2048,
    hidden: 1024,
    intermediate: 3072,
    layers: 5,
    attention: GqaDefaults {
        heads: 16,
        kv_heads: 8,
        head_dim: Some(128),
    },
    moe: MoeDefaults {
        experts: 0,
        intermediate: 0,
    },
    experts_per_token: 0,
    norm_topk_prob: false,
    rope_theta: 10_000.0,
};

fn rules() -> Rules {
    THINKER_ALONE
        .add_to(THINKER.add_to(Rules::new()))
        .with(&TALKER_TEXT)
        .with(&CODE_PREDICTOR)
        .with(&VOCODER)
}

fn expected(
    root: &Section<'_>,
    is_present: &dyn Fn(&str) -> bool,
    out: &mut ExpectedSink<'_>,
) -> Result<(), ConfigError> {
    expect_thinker(root, is_present, out)?;
    if has_talker(root)? {
        let talker = root.section("talker_config")?;
        expect_talker(&talker, is_present, out)?;
        expect_code_predictor(&talker.section("code_predictor_config")?, out)?;
        let vocoder = root.section("code2wav_config")?;
        VOCODER.expect(&Vocoder::read(&vocoder)?, vocoder.name(), out)?;
    }
    Ok(())
}

fn text_facts(root: &Section<'_>) -> Result<TextFacts, ConfigError> {
    let (thinker, text) = (thinker_section(root)?, text_section(root)?);
    TextFacts::read(&text, &THINKER_DEFAULTS, is_tied(&text, &thinker, root)?)
}

fn text_settings(root: &Section<'_>, facts: &TextFacts) -> Result<TextSettings, ConfigError> {
    TextSettings::read(&text_section(root)?, facts)
}

fn text_section<'a>(root: &Section<'a>) -> Result<Section<'a>, ConfigError> {
    match is_text_alone(root)? {
        true => Ok(root.clone()),
        false => thinker_section(root)?.section("text_config"),
    }
}

/// A checkpoint whose configuration describes no encoders takes text alone.
fn media_facts(root: &Section<'_>) -> Result<Option<MediaFacts>, ConfigError> {
    let thinker = thinker_section(root)?;
    if is_text_alone(root)? || !thinker.has("audio_config") || !thinker.has("vision_config") {
        return Ok(None);
    }
    let text = text_facts(root)?;
    let sizes = [text.hidden_size, text.vocab];
    MediaFacts::of_omni(&thinker, &thinker.section("text_config")?, sizes).map(Some)
}

fn vocoder_facts(root: &Section<'_>) -> Result<Option<VocoderFacts>, ConfigError> {
    if !root.has("code2wav_config") {
        return Ok(None);
    }
    VocoderFacts::read(&root.section("code2wav_config")?).map(Some)
}

/// Thinking and Captioner have no talker.
fn speech_facts(root: &Section<'_>) -> Result<Option<SpeechFacts>, ConfigError> {
    if !has_talker(root)? {
        return Ok(None);
    }
    let defaults = [&TALKER_DEFAULTS, &CODE_PREDICTOR_DEFAULTS];
    SpeechFacts::read(root, &text_facts(root)?, defaults).map(Some)
}

fn expect_thinker(
    root: &Section<'_>,
    is_present: &dyn Fn(&str) -> bool,
    out: &mut ExpectedSink<'_>,
) -> Result<(), ConfigError> {
    let mounts = Thinker::of_names(is_present);
    let (thinker, text) = (thinker_section(root)?, text_section(root)?);
    let mut decoder = Decoder::read(&text, &THINKER_DEFAULTS, Sparsity::ByLayer)?;
    decoder.vocabulary.tied = is_tied(&text, &thinker, root)?;
    decoder.find_stacked(mounts.text.prefix, is_present);
    mounts.text.expect(&decoder, text.name(), out)?;
    if is_text_alone(root)? {
        return Ok(());
    }
    let audio = thinker.section("audio_config")?;
    mounts
        .audio
        .expect(&AudioTower::read(&audio)?, audio.name(), out)?;
    let vision = thinker.section("vision_config")?;
    let tower = VisionTower::read(&vision)?;
    mounts.vision.expect(&tower, vision.name(), out)
}

fn expect_talker(
    talker: &Section<'_>,
    is_present: &dyn Fn(&str) -> bool,
    out: &mut ExpectedSink<'_>,
) -> Result<(), ConfigError> {
    let text = talker.section("text_config")?;
    // Qwen3OmniMoeTalkerDecoderLayer (modeling_qwen3_omni_moe.py:2905) builds a dense MLP where the
    // keys ask for one and then replaces it by experts: all layers have them.
    let mut decoder = Decoder::read(&text, &TALKER_DEFAULTS, Sparsity::Everywhere)?;
    decoder.vocabulary.tied =
        text.flag("tie_word_embeddings", false)? || talker.flag("tie_word_embeddings", false)?;
    decoder.find_stacked(TALKER_TEXT.prefix, is_present);
    let hidden = decoder.vocabulary.hidden;
    // the configuration class does not declare it, so there is no default
    let shared = text.integer("shared_expert_intermediate_size", None, 0..=MAX_SIZE)?;
    let sizes = Talker {
        shared_expert: SharedExpert {
            layers: decoder.norms.layers,
            hidden,
            intermediate: shared,
        },
        input: TalkerInput {
            hidden,
            intermediate: decoder.mlp.intermediate,
            // default of Qwen3OmniMoeTalkerConfig
            thinker_hidden: talker.size("thinker_hidden_size", Some(2048))?,
        },
        decoder,
    };
    TALKER_TEXT.expect(&sizes, text.name(), out)
}

fn expect_code_predictor(
    predictor: &Section<'_>,
    out: &mut ExpectedSink<'_>,
) -> Result<(), ConfigError> {
    let mut decoder = Decoder::read(predictor, &CODE_PREDICTOR_DEFAULTS, Sparsity::Nowhere)?;
    // The talker itself predicts the first code group. Class default: 32.
    decoder.vocabulary.groups = predictor.count("num_code_groups", Some(32), 1)? - 1;
    CODE_PREDICTOR.expect(&decoder, predictor.name(), out)
}

/// `model_type` of the thinker's decoder, saved without its towers.
const TEXT_ALONE: &str = "qwen3_omni_moe_text";

/// Whether the configuration describes the thinker's decoder and nothing else.
fn is_text_alone(root: &Section<'_>) -> Result<bool, ConfigError> {
    Ok(root.text("model_type")? == Some(TEXT_ALONE))
}

/// A thinker saved on its own has its configuration at the top.
fn thinker_section<'a>(root: &Section<'a>) -> Result<Section<'a>, ConfigError> {
    let at_top = !root.has("thinker_config") && root.has("text_config");
    if at_top || is_text_alone(root)? {
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

/// The components of the thinker.
const THINKER_COMPONENTS: [Component; 3] = [
    Component::ThinkerText,
    Component::ThinkerAudio,
    Component::ThinkerVision,
];

/// The components that speak.
const SPEECH: [Component; 3] = [
    Component::TalkerText,
    Component::TalkerCodePredictor,
    Component::Code2wav,
];

/// The configuration of some components. The thinker alone is a model; other parts are none.
fn partial_config(config: &Value, components: &BTreeSet<Component>) -> PartialConfig {
    let has = |all: &[Component]| all.iter().all(|c| components.contains(c));
    let thinker = has(&THINKER_COMPONENTS);
    let promised = has_audio_output(config);
    if thinker && promised && !SPEECH.iter().any(|c| components.contains(c)) {
        PartialConfig::ThinkerOnly(without_audio_output(config))
    } else if !thinker || (promised && !has(&SPEECH)) {
        PartialConfig::NoModel
    } else {
        PartialConfig::Unchanged
    }
}

/// Keys of [`without_audio_output`] that describe what is gone.
const AUDIO_OUTPUT: [&str; 2] = ["talker_config", "code2wav_config"];

/// Keys of multimodal rotary scaling: for text all three positions are the same, and it is the
/// ordinary rotation. Source: Qwen3OmniMoeThinkerTextRotaryEmbedding, transformers 5.23,
/// modeling_qwen3_omni_moe.py.
const MROPE: [&str; 3] = ["mrope_section", "mrope_interleaved", "interleaved"];

/// The configuration of an omni model of which only the thinker is there: `enable_audio_output` is
/// false, and the parts that are gone are not described. `Qwen3OmniMoeForConditionalGeneration`
/// builds neither talker nor vocoder then.
fn without_audio_output(config: &Value) -> Value {
    let mut config = config.clone();
    if let Some(keys) = config.as_object_mut() {
        keys.retain(|key, _| !AUDIO_OUTPUT.contains(&key.as_str()));
        keys.insert("enable_audio_output".to_owned(), json!(false));
    }
    config
}

/// Whether a configuration promises a talker or a vocoder.
fn has_audio_output(config: &Value) -> bool {
    let described = AUDIO_OUTPUT
        .iter()
        .any(|key| config.get(key).is_some_and(|v| !v.is_null()));
    config
        .get("enable_audio_output")
        .and_then(Value::as_bool)
        .unwrap_or(described)
}

/// The same text decoder as a `Qwen3MoeForCausalLM`: the thinker's `text_config` in the keys of
/// `Qwen3MoeConfig`, so that transformers 4 and 5 and everybody who reads their configurations find
/// what they look for. `generation` is
/// `generation_config.json`, whose special ids are taken where the thinker has none.
///
/// # Errors
/// As [`text_facts`].
fn as_causal_lm(config: &Value, generation: Option<&Value>) -> Result<Value, ConfigError> {
    let facts = text_facts(&Section::root(config)?)?;
    let thinker = config.get("thinker_config").unwrap_or(config);
    let text = thinker.get("text_config").unwrap_or(thinker);
    let mut new = Map::new();
    let mut set = |key: &str, value: Value| new.insert(key.to_owned(), value);
    set("architectures", json!(["Qwen3MoeForCausalLM"]));
    set("model_type", json!("qwen3_moe"));
    for (key, default) in causal_lm::defaults() {
        set(
            key,
            text.get(key)
                .filter(|v| !v.is_null())
                .cloned()
                .unwrap_or(default),
        );
    }
    set(
        "mlp_only_layers",
        text.get("mlp_only_layers")
            .filter(|v| v.is_array())
            .cloned()
            .unwrap_or(json!([])),
    );
    for (key, value) in causal_lm::numbers(&facts) {
        set(key, value);
    }
    // the thinker's attention ignores both (modeling_qwen3_omni_moe.py,
    // Qwen3OmniMoeThinkerTextAttention)
    set("use_sliding_window", json!(false));
    set("sliding_window", Value::Null);
    set("rope_scaling", rope_scaling(text));
    for key in ["bos_token_id", "eos_token_id", "pad_token_id"] {
        let places = [Some(text), Some(thinker), Some(config), generation];
        let stated = places
            .into_iter()
            .flatten()
            .find_map(|place| place.get(key).filter(|v| !v.is_null()));
        set(key, stated.cloned().unwrap_or(Value::Null));
    }
    let stated = [text, thinker, config].into_iter().find_map(|place| {
        ["dtype", "torch_dtype"]
            .iter()
            .find_map(|key| place.get(key).filter(|v| v.is_string()))
    });
    if let Some(dtype) = stated {
        set("torch_dtype", dtype.clone());
    }
    if let Some(version) = config.get("transformers_version") {
        set("transformers_version", version.clone());
    }
    Ok(Value::Object(new))
}

/// What is left of the thinker's rotary scaling for text: nothing where it is only multimodal.
fn rope_scaling(text: &Value) -> Value {
    let scaling = text
        .get("rope_scaling")
        .or_else(|| text.get("rope_parameters"))
        .and_then(Value::as_object);
    let Some(mut scaling) = scaling.cloned() else {
        return Value::Null;
    };
    scaling.retain(|key, _| !MROPE.contains(&key.as_str()) && key != "rope_theta");
    let kind = |key: &str| scaling.get(key).and_then(Value::as_str);
    match kind("rope_type").or(kind("type")) {
        None | Some("default" | "mrope" | "axial") => Value::Null,
        Some(_) => Value::Object(scaling),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::families::Family;

    fn omni() -> Value {
        json!({
            "model_type": "qwen3_omni_moe", "enable_audio_output": true, "dtype": "bfloat16",
            "talker_config": {"text_config": {"dtype": "bfloat16"}}, "code2wav_config": {},
            "thinker_config": {"text_config": {
                "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
                "head_dim": 32, "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
                "rope_theta": 500000.0, "sliding_window": 4096, "use_sliding_window": true,
                "rope_scaling": {"mrope_section": [6, 5, 5], "rope_type": "default", "interleaved": true},
            }, "audio_config": {}, "vision_config": {}},
        })
    }

    #[test]
    fn the_thinker_becomes_a_causal_model() {
        let generation = json!({"eos_token_id": [1, 2], "pad_token_id": 3});
        let new = as_causal_lm(&omni(), Some(&generation)).unwrap();
        let family = Family::of_config(&new).unwrap();
        assert_eq!(family.as_str(), "qwen3_moe");
        assert_eq!(
            family.text_facts(&new).unwrap(),
            text_facts(&Section::root(&omni()).unwrap()).unwrap()
        );
        assert_eq!(
            (&new["rope_scaling"], &new["sliding_window"]),
            (&Value::Null, &Value::Null)
        );
        assert_eq!(
            (&new["eos_token_id"], &new["torch_dtype"]),
            (&json!([1, 2]), &json!("bfloat16"))
        );
        // what is one already stays
        assert_eq!(family.as_causal_lm(&new, None).unwrap(), Some(new));
    }

    #[test]
    fn real_scaling_stays_without_its_multimodal_part() {
        let mut config = omni();
        config["thinker_config"]["text_config"]["rope_scaling"] =
            json!({"rope_type": "yarn", "factor": 4.0, "mrope_section": [6, 5, 5]});
        let new = as_causal_lm(&config, None).unwrap();
        assert_eq!(
            new["rope_scaling"],
            json!({"rope_type": "yarn", "factor": 4.0})
        );
    }

    #[test]
    fn a_thinker_alone_promises_no_audio() {
        assert!(has_audio_output(&omni()));
        let new = without_audio_output(&omni());
        assert!(!has_audio_output(&new) && new.get("talker_config").is_none());
        assert_eq!(new["thinker_config"], omni()["thinker_config"]);
    }
}
