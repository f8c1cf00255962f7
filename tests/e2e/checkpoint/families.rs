//! The rules of the families against the tensor lists of real and tiny checkpoints.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use flate2::read::GzDecoder;
use segpack_manifests::families::{Family, Presence, expected_dtype, logical_parameter_count};
use segpack_manifests::names::{Classification, Component, Role};
use serde_json::{Value, json};

type Shapes = BTreeMap<String, Vec<u64>>;

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/fixtures/qwen3-omni")
        .join(name)
}

fn json_fixture(name: &str) -> Value {
    serde_json::from_slice(&fs::read(fixture(name)).unwrap()).unwrap()
}

fn shape(value: &Value) -> Vec<u64> {
    serde_json::from_value(value.clone()).unwrap()
}

/// The 28,010 tensors of Qwen3-Omni-30B-A3B-Instruct.
fn real_shapes() -> Shapes {
    let file = fs::File::open(fixture("tensors.json.gz")).unwrap();
    let tensors: Vec<Value> = serde_json::from_reader(GzDecoder::new(file)).unwrap();
    let entry = |tensor: &Value| {
        (
            tensor["name"].as_str().unwrap().to_owned(),
            shape(&tensor["shape"]),
        )
    };
    tensors.iter().map(entry).collect()
}

fn expected(family: Family, config: &Value) -> Shapes {
    let list = family.expected(config, &|_| false).unwrap();
    assert!(
        list.iter()
            .all(|tensor| tensor.presence == Presence::Required)
    );
    let count = list.len();
    let shapes: Shapes = list
        .into_iter()
        .map(|tensor| (tensor.name, tensor.shape))
        .collect();
    assert_eq!(shapes.len(), count, "a name was expected twice");
    shapes
}

fn assert_same(found: &Shapes, wanted: &Shapes) {
    let different: Vec<_> = found
        .iter()
        .filter(|(name, shape)| wanted.get(*name) != Some(shape))
        .collect();
    assert!(different.is_empty(), "{different:?}");
    let missing: Vec<_> = wanted
        .keys()
        .filter(|name| !found.contains_key(*name))
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
}

fn elements(shapes: &Shapes) -> u64 {
    shapes
        .values()
        .map(|shape| shape.iter().product::<u64>())
        .sum()
}

fn qwen3_omni_moe() -> Family {
    Family::named("qwen3_omni_moe").unwrap()
}

fn classify(name: &str) -> Classification {
    qwen3_omni_moe()
        .classify(name)
        .unwrap_or_else(|| panic!("{name} is not classified"))
}

#[test]
fn the_real_checkpoint_is_derived_from_its_config() {
    let (config, real) = (json_fixture("config.json"), real_shapes());
    assert_eq!(Family::of_config(&config), Some(qwen3_omni_moe()));
    assert_eq!(
        Family::guess(real.keys().map(String::as_str)),
        Some(qwen3_omni_moe())
    );
    assert_same(&expected(qwen3_omni_moe(), &config), &real);
    assert_eq!((real.len(), elements(&real)), (28_010, 35_259_818_545));
    assert_eq!(
        expected_dtype(&config)
            .unwrap()
            .map(|dtype| dtype.to_string())
            .as_deref(),
        Some("BF16")
    );
    let classified: Vec<_> = real.keys().map(|name| classify(name)).collect();
    assert_eq!(logical_parameter_count(&classified), 2_034);
}

#[test]
fn thinking_is_the_thinker_alone() {
    let mut config = json_fixture("config.json");
    for key in ["talker_config", "code2wav_config"] {
        config.as_object_mut().unwrap().remove(key);
    }
    config["enable_audio_output"] = json!(false);
    let shapes = expected(qwen3_omni_moe(), &config);
    assert_eq!((shapes.len(), elements(&shapes)), (19_743, 31_719_205_488));
}

#[test]
fn tiny_checkpoints_are_derived_from_their_configs() {
    for name in ["tiny-text.json", "tiny-full.json"] {
        let fixture = json_fixture(name);
        let found: Shapes = fixture["tensors"]
            .as_object()
            .unwrap()
            .iter()
            .map(|(name, value)| (name.clone(), shape(value)))
            .collect();
        let derived = expected(qwen3_omni_moe(), &fixture["config"]);
        assert_same(&found, &derived);
        for tensor in found.keys() {
            classify(tensor);
        }
    }
}

#[test]
fn both_spellings_derive_the_same() {
    let mut config = json_fixture("config.json");
    let facts = qwen3_omni_moe().text_facts(&config).unwrap();
    let before = expected(qwen3_omni_moe(), &config);
    for pointer in ["/thinker_config/text_config", "/talker_config/text_config"] {
        let text = config
            .pointer_mut(pointer)
            .unwrap()
            .as_object_mut()
            .unwrap();
        let (experts, theta) = (
            text.remove("num_experts").unwrap(),
            text.remove("rope_theta").unwrap(),
        );
        let mut rope = text.remove("rope_scaling").unwrap();
        rope["rope_theta"] = theta;
        text.insert("num_local_experts".to_owned(), experts);
        text.insert("rope_parameters".to_owned(), rope);
    }
    assert_eq!(expected(qwen3_omni_moe(), &config), before);
    assert_eq!(qwen3_omni_moe().text_facts(&config).unwrap(), facts);
    assert_eq!(
        (
            facts.layers,
            facts.moe_layers,
            facts.experts,
            facts.experts_per_token
        ),
        (48, 48, 128, 8)
    );
    assert_eq!(
        (facts.hidden_size, facts.head_dim, facts.vocab),
        (2048, 128, 152_064)
    );
    assert_eq!((facts.rope_theta, facts.rms_norm_eps), (1e6, 1e-6));
}

#[test]
fn slices_of_stacked_experts_are_the_real_ones() {
    let real = real_shapes();
    let mut unstacked = BTreeSet::new();
    for (prefix, layers, width, hidden) in [("thinker", 48, 768, 2048), ("talker", 20, 384, 1024)] {
        for layer in 0..layers {
            for (stack, shape) in [
                ("gate_up_proj", [128, 2 * width, hidden]),
                ("down_proj", [128, hidden, width]),
            ] {
                let name = format!("{prefix}.model.layers.{layer}.mlp.experts.{stack}");
                let mut end = 0;
                for slice in qwen3_omni_moe()
                    .unstack(&name, &shape, 16, &|| None)
                    .unwrap()
                    .unwrap()
                {
                    assert_eq!(slice.offset, end);
                    assert_eq!(real[&slice.name], slice.shape);
                    assert_eq!(slice.classification, classify(&slice.name));
                    end += slice.length;
                    assert!(unstacked.insert(slice.name));
                }
                assert_eq!(end, shape.iter().product::<u64>() * 2);
            }
        }
    }
    assert_eq!(unstacked.len(), 26_112);
}

/// How the classes of `classes.json` are called here: the component, and the roles, or none for all
/// of them.
fn counterpart(class: &str) -> (Component, &'static [Role]) {
    let (component, rest) = [
        ("thinker.audio_tower", Component::ThinkerAudio),
        ("thinker.visual", Component::ThinkerVision),
        ("thinker.", Component::ThinkerText),
        ("talker.code_predictor.", Component::TalkerCodePredictor),
        ("talker.", Component::TalkerText),
        ("code2wav.", Component::Code2wav),
    ]
    .into_iter()
    .find_map(|(prefix, component)| Some((component, class.strip_prefix(prefix)?)))
    .unwrap();
    let roles: &[Role] = match rest.strip_prefix("model.").unwrap_or(rest) {
        "" => &[],
        "embed_tokens" => &[Role::Embedding],
        "attn.q_proj" => &[Role::AttentionQ],
        "attn.k_proj" => &[Role::AttentionK],
        "attn.v_proj" => &[Role::AttentionV],
        "attn.o_proj" => &[Role::AttentionO],
        "attn.q_norm" => &[Role::QNorm],
        "attn.k_norm" => &[Role::KNorm],
        "input_layernorm" => &[Role::InputNorm],
        "post_attention_layernorm" => &[Role::PostAttentionNorm],
        "router" => &[Role::Router],
        "experts.gate_proj" => &[Role::ExpertGate],
        "experts.up_proj" => &[Role::ExpertUp],
        "experts.down_proj" => &[Role::ExpertDown],
        "shared_expert" => &[
            Role::SharedExpertGate,
            Role::SharedExpertUp,
            Role::SharedExpertDown,
        ],
        "shared_expert_gate" => &[Role::SharedExpertRouter],
        "norm" => &[Role::FinalNorm],
        "lm_head" => &[Role::LmHead],
        "codec_embedding" | "code_embedding" => &[Role::CodecEmbedding],
        "text_projection" | "hidden_projection" => &[Role::Projection],
        "codec_head" => &[Role::CodecHead],
        "layers" => &[
            Role::AttentionQ,
            Role::AttentionK,
            Role::AttentionV,
            Role::AttentionO,
            Role::QNorm,
            Role::KNorm,
            Role::InputNorm,
            Role::PostAttentionNorm,
            Role::MlpGate,
            Role::MlpUp,
            Role::MlpDown,
        ],
        "pre_transformer" => &[Role::CodecBlock, Role::FinalNorm],
        "upsample" => &[Role::CodecUpsample],
        "decoder" => &[Role::CodecDecoder],
        other => panic!("no counterpart of {other}"),
    };
    (component, roles)
}

#[test]
fn classes_tie_out() {
    let classes = json_fixture("classes.json");
    let mut published: BTreeMap<(Component, &[Role]), (u64, u64)> = BTreeMap::new();
    for class in classes["classes"].as_array().unwrap() {
        let sums = published
            .entry(counterpart(class["class"].as_str().unwrap()))
            .or_default();
        sums.0 += class["tensors"].as_u64().unwrap();
        sums.1 += class["bytes"].as_u64().unwrap();
    }
    let real = real_shapes();
    let mut covered = 0;
    for ((component, roles), sums) in published {
        let inside = |name: &String| {
            let found = classify(name);
            found.component == component && (roles.is_empty() || roles.contains(&found.role))
        };
        let found: Vec<_> = real.iter().filter(|(name, _)| inside(name)).collect();
        let bytes: u64 = found
            .iter()
            .map(|(_, shape)| 2 * shape.iter().product::<u64>())
            .sum();
        assert_eq!((found.len() as u64, bytes), sums, "{component} {roles:?}");
        covered += found.len();
    }
    assert_eq!(covered, 28_010);
}
