use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use super::*;

fn qwen3_omni_moe() -> Family {
    Family::named("qwen3_omni_moe").unwrap()
}

fn qwen3_moe() -> Family {
    Family::named("qwen3_moe").unwrap()
}

/// A plain Qwen3-MoE of three layers, four experts.
fn plain() -> Value {
    json!({
        "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "torch_dtype": "bfloat16",
        "vocab_size": 320, "hidden_size": 64, "intermediate_size": 40, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "num_experts": 4,
        "moe_intermediate_size": 24, "num_experts_per_tok": 2, "norm_topk_prob": true, "rope_theta": 1e6,
        "tie_word_embeddings": false, "attention_bias": false, "mlp_only_layers": [], "decoder_sparse_step": 1
    })
}

/// A small omni model with every part.
fn omni() -> Value {
    json!({
        "architectures": ["Qwen3OmniMoeForConditionalGeneration"], "model_type": "qwen3_omni_moe",
        "enable_audio_output": true,
        "thinker_config": {
            "dtype": "bfloat16",
            "text_config": plain(),
            "audio_config": {"encoder_layers": 1, "d_model": 8, "encoder_ffn_dim": 12, "num_mel_bins": 17,
                "downsample_hidden_size": 2, "output_dim": 64},
            "vision_config": {"depth": 1, "hidden_size": 8, "intermediate_size": 12, "patch_size": 4,
                "deepstack_visual_indexes": [0], "out_hidden_size": 64, "num_position_embeddings": 4}
        },
        "talker_config": {
            "thinker_hidden_size": 64,
            "text_config": {"vocab_size": 100, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
                "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "num_experts": 3,
                "moe_intermediate_size": 8, "shared_expert_intermediate_size": 12},
            "code_predictor_config": {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 24,
                "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
                "num_code_groups": 4}
        },
        "code2wav_config": {"codebook_size": 64, "num_quantizers": 4, "hidden_size": 16, "intermediate_size": 24,
            "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "decoder_dim": 16,
            "upsample_rates": [3, 2], "upsampling_ratios": [2]}
    })
}

fn with(mut config: Value, pointer: &str, value: Value) -> Value {
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    config.pointer_mut(parent).unwrap()[key] = value;
    config
}

fn without(mut config: Value, pointer: &str) -> Value {
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    config
        .pointer_mut(parent)
        .unwrap()
        .as_object_mut()
        .unwrap()
        .remove(key)
        .unwrap();
    config
}

fn expected_of(family: Family, config: &Value) -> BTreeMap<String, (Vec<u64>, Presence)> {
    let list = family.expected(config, &|_| false).unwrap();
    let count = list.len();
    let map: BTreeMap<_, _> = list
        .into_iter()
        .map(|e| (e.name, (e.shape, e.presence)))
        .collect();
    assert_eq!(map.len(), count, "a name twice");
    map
}

fn refusal(family: Family, config: &Value) -> String {
    family
        .expected(config, &|_| false)
        .map(|list| list.len())
        .unwrap_err()
        .to_string()
}

fn names(map: &BTreeMap<String, (Vec<u64>, Presence)>, part: &str) -> Vec<String> {
    map.keys()
        .filter(|name| name.contains(part))
        .cloned()
        .collect()
}

#[test]
fn every_expected_name_classifies() {
    for (family, config) in [(qwen3_moe(), plain()), (qwen3_omni_moe(), omni())] {
        let everything = with(config, "/attention_bias", json!(true));
        for stacked in [false, true] {
            for expected in family.expected(&everything, &|_| stacked).unwrap() {
                assert!(
                    family.classify(&expected.name).is_some(),
                    "{}",
                    expected.name
                );
                assert!(!expected.name.contains('{'), "{}", expected.name);
            }
        }
    }
}

#[test]
fn components_roles_layers_and_experts() {
    let reported = |name: &str| {
        let c = qwen3_omni_moe().classify(name).unwrap();
        (
            c.component.as_str(),
            c.role.as_str(),
            c.segment_group(),
            c.layer,
            c.expert,
        )
    };
    assert_eq!(
        reported("thinker.model.layers.5.mlp.experts.17.gate_proj.weight"),
        ("thinker.text", "expert_gate", "experts", Some(5), Some(17))
    );
    assert_eq!(
        reported("thinker.model.layers.5.mlp.gate.weight"),
        ("thinker.text", "router", "router", Some(5), None)
    );
    assert_eq!(
        reported("talker.model.layers.0.mlp.shared_expert_gate.weight"),
        (
            "talker.text",
            "shared_expert_router",
            "shared_expert",
            Some(0),
            None
        )
    );
    assert_eq!(
        reported("talker.code_predictor.lm_head.14.weight"),
        ("talker.code_predictor", "lm_head", "lm_head", None, None)
    );
    assert_eq!(
        reported("talker.code_predictor.model.layers.2.mlp.gate_proj.weight"),
        ("talker.code_predictor", "mlp_gate", "mlp", Some(2), None)
    );
    assert_eq!(
        reported("thinker.audio_tower.layers.31.fc1.bias"),
        ("thinker.audio", "audio_block", "block", Some(31), None)
    );
    assert_eq!(
        reported("code2wav.decoder.4.block.2.act1.alpha"),
        ("code2wav", "codec_decoder", "decoder", None, None)
    );
    assert_eq!(
        reported("thinker.model.layers.7.mlp.experts.gate_up_proj"),
        (
            "thinker.text",
            "expert_gate_up_stacked",
            "experts",
            Some(7),
            None
        )
    );
    assert_eq!(
        reported("thinker.model.layers.0.self_attn.q_norm.weight").2,
        "attention"
    );
    assert_eq!(
        reported("thinker.model.layers.0.input_layernorm.weight").2,
        "norms"
    );
    assert_eq!(
        reported("talker.hidden_projection.linear_fc2.bias").2,
        "projections"
    );
}

#[test]
fn names_that_no_rule_has() {
    for name in [
        "",
        ".",
        "thinker",
        "thinker.model",
        "thinker.model.layers.0",
        "thinker.model.layers.00.mlp.gate.weight",
        "thinker.model.layers.+1.mlp.gate.weight",
        "thinker.model.layers.4294967296.mlp.gate.weight",
        "thinker.model.layers.0.mlp.gate.weight ",
        "thinker.model.layers.0.mlp.gate.weight.",
        "thinker.model.layers..mlp.gate.weight",
        "thinker.model.layers.0.mlp.experts.01.up_proj.weight",
        "thinker.model.layers.0.mlp.experts.gate_up_proj.weight",
        "thinker.model.layers.0.mlp.shared_expert.up_proj.weight",
        "thinker.model.language_model.layers.0.mlp.gate.weight",
        "thinker.model.codec_embedding.weight",
        "talker.model.embed_tokens.weight",
        "talker.model.layers.0.mlp.gate_proj.weight",
        "talker.code_predictor.model.layers.0.mlp.gate.weight",
        "thinker.model.layers.{layer}.mlp.gate.weight",
    ] {
        assert_eq!(qwen3_omni_moe().classify(name), None, "{name:?}");
    }
    assert!(
        qwen3_moe()
            .classify("model.layers.4294967295.mlp.gate.weight")
            .is_some()
    );
    assert_eq!(qwen3_moe().classify("thinker.model.norm.weight"), None);
}

#[test]
fn families_of_configurations_and_names() {
    assert_eq!(Family::of_config(&plain()), Some(qwen3_moe()));
    assert_eq!(Family::of_config(&omni()), Some(qwen3_omni_moe()));
    let of = |architecture: &str| {
        Family::of_config(&json!({"architectures": [architecture], "model_type": ""}))
    };
    assert_eq!(
        of("Qwen3OmniMoeThinkerForConditionalGeneration"),
        Some(qwen3_omni_moe())
    );
    assert_eq!(of("LlamaForCausalLM"), None);
    for strange in [
        json!(null),
        json!([]),
        json!({"model_type": 5, "architectures": "Qwen3MoeForCausalLM"}),
    ] {
        assert_eq!(Family::of_config(&strange), None);
    }
    assert_eq!(
        Family::guess(["model.norm.weight", "lm_head.weight", "extra"]),
        Some(qwen3_moe())
    );
    assert_eq!(
        Family::guess(["thinker.lm_head.weight"]),
        Some(qwen3_omni_moe())
    );
    assert_eq!(Family::guess(["a", "b", "lm_head.weight"]), None);
    assert_eq!(Family::guess([]), None);
}

#[test]
fn dense_layers() {
    let config = with(plain(), "/decoder_sparse_step", json!(2));
    let step = expected_of(qwen3_moe(), &config);
    assert_eq!(
        names(&step, "mlp.gate.weight"),
        ["model.layers.1.mlp.gate.weight"]
    );
    assert_eq!(step["model.layers.0.mlp.down_proj.weight"].0, [64, 40]);
    assert_eq!(names(&step, "experts.").len(), 12);
    let config = with(plain(), "/mlp_only_layers", json!([1, 40_000]));
    let only = expected_of(qwen3_moe(), &config);
    assert_eq!(
        names(&only, "mlp.up_proj"),
        ["model.layers.1.mlp.up_proj.weight"]
    );
    let none = expected_of(qwen3_moe(), &with(plain(), "/num_experts", json!(0)));
    assert!(names(&none, "experts").is_empty());
    assert_eq!(names(&none, "mlp.up_proj").len(), 3);
    assert_eq!(qwen3_moe().text_facts(&config).unwrap().moe_layers, 2);
}

#[test]
fn the_talker_has_experts_everywhere() {
    let config = with(
        omni(),
        "/talker_config/text_config/mlp_only_layers",
        json!([0]),
    );
    let config = with(
        config,
        "/talker_config/text_config/decoder_sparse_step",
        json!(7),
    );
    assert_eq!(
        expected_of(qwen3_omni_moe(), &config),
        expected_of(qwen3_omni_moe(), &omni())
    );
}

#[test]
fn biases_and_tied_heads() {
    let map = expected_of(qwen3_moe(), &plain());
    assert!(names(&map, "bias").is_empty());
    assert_eq!(map["lm_head.weight"], (vec![320, 64], Presence::Required));
    let config = with(plain(), "/attention_bias", json!(true));
    let map = expected_of(
        qwen3_moe(),
        &with(config, "/tie_word_embeddings", json!(true)),
    );
    assert_eq!(names(&map, "bias").len(), 12);
    assert_eq!(map["model.layers.2.self_attn.q_proj.bias"].0, [128]);
    assert_eq!(map["model.layers.2.self_attn.k_proj.bias"].0, [64]);
    assert_eq!(map["model.layers.2.self_attn.o_proj.bias"].0, [64]);
    assert_eq!(map["lm_head.weight"].1, Presence::Optional);
    for place in ["/thinker_config/text_config", "/thinker_config"] {
        let config = with(omni(), &format!("{place}/tie_word_embeddings"), json!(true));
        let map = expected_of(qwen3_omni_moe(), &config);
        assert_eq!(
            map["thinker.lm_head.weight"].1,
            Presence::Optional,
            "{place}"
        );
        assert_eq!(
            map["talker.codec_head.weight"].1,
            Presence::Required,
            "{place}"
        );
    }
    let config = without(omni(), "/thinker_config/text_config/tie_word_embeddings");
    let config = with(config, "/tie_word_embeddings", json!(true));
    assert!(
        qwen3_omni_moe()
            .text_facts(&config)
            .unwrap()
            .tie_word_embeddings
    );
}

#[test]
fn both_spellings_of_transformers() {
    let mut newer = without(without(plain(), "/rope_theta"), "/num_experts");
    newer["num_local_experts"] = json!(4);
    newer["rope_parameters"] = json!({"rope_theta": 1e6, "rope_type": "default"});
    assert_eq!(
        expected_of(qwen3_moe(), &newer),
        expected_of(qwen3_moe(), &plain())
    );
    assert_eq!(
        qwen3_moe().text_facts(&newer),
        qwen3_moe().text_facts(&plain())
    );
    let scaled = with(
        plain(),
        "/rope_scaling",
        json!({"type": "yarn", "factor": 4.0}),
    );
    let facts = text_facts(&scaled).unwrap().unwrap();
    assert_eq!((facts.rope_theta, facts.rope_type.as_str()), (1e6, "yarn"));
    let facts = text_facts(&without(plain(), "/rope_theta"))
        .unwrap()
        .unwrap();
    assert_eq!(facts.rope_theta, 10_000.0);
}

#[test]
fn facts_of_the_text_decoder() {
    let facts = text_facts(&omni()).unwrap().unwrap();
    assert_eq!(
        (
            facts.hidden_size,
            facts.heads,
            facts.kv_heads,
            facts.head_dim
        ),
        (64, 4, 2, 32)
    );
    assert_eq!(
        (
            facts.layers,
            facts.moe_layers,
            facts.experts,
            facts.experts_per_token
        ),
        (3, 3, 4, 2)
    );
    assert_eq!(
        (facts.moe_intermediate, facts.intermediate, facts.vocab),
        (24, 40, 320)
    );
    assert!(facts.norm_topk_prob && !facts.attention_bias && !facts.tie_word_embeddings);
    let json = serde_json::to_string(&facts).unwrap();
    assert_eq!(serde_json::from_str::<TextFacts>(&json).unwrap(), facts);
    assert_eq!(text_facts(&json!({})), None);
    let headless = text_facts(&without(plain(), "/head_dim")).unwrap().unwrap();
    assert_eq!(headless.head_dim, 16);
}

#[test]
fn audio_output_may_be_off() {
    let all = expected_of(qwen3_omni_moe(), &omni());
    let thinker: BTreeMap<_, _> = all
        .clone()
        .into_iter()
        .filter(|(name, _)| name.starts_with("thinker."))
        .collect();
    assert!(thinker.len() < all.len());
    let off = with(omni(), "/enable_audio_output", json!(false));
    assert_eq!(expected_of(qwen3_omni_moe(), &off), thinker);
    let absent = without(omni(), "/enable_audio_output");
    assert_eq!(expected_of(qwen3_omni_moe(), &absent), all);
    let neither = without(without(absent, "/talker_config"), "/code2wav_config");
    assert_eq!(expected_of(qwen3_omni_moe(), &neither), thinker);
    let claimed = with(neither, "/enable_audio_output", json!(true));
    assert_eq!(
        refusal(qwen3_omni_moe(), &claimed),
        "config.json: talker_config is missing, wanted an object"
    );
    let alone = omni()["thinker_config"].clone();
    assert_eq!(expected_of(qwen3_omni_moe(), &alone), thinker);
}

#[test]
fn class_defaults_fill_in() {
    let vision = without(
        omni(),
        "/thinker_config/vision_config/num_position_embeddings",
    );
    let map = expected_of(qwen3_omni_moe(), &vision);
    assert_eq!(map["thinker.visual.pos_embed.weight"].0, [2304, 8]);
    // 17 mel bins: 9, 5, 3.
    assert_eq!(map["thinker.audio_tower.conv_out.weight"].0, [8, 6]);
    let talker = without(
        omni(),
        "/talker_config/text_config/shared_expert_intermediate_size",
    );
    assert_eq!(
        refusal(qwen3_omni_moe(), &talker),
        "config.json: talker_config.text_config.shared_expert_intermediate_size is missing, \
         wanted an integer from 0 to 4294967295"
    );
}

#[test]
fn hostile_values_are_refused_by_name() {
    for (key, value, reported) in [
        (
            "hidden_size",
            json!(-1),
            "hidden_size is -1, wanted an integer from 1 to 4294967295",
        ),
        (
            "hidden_size",
            json!(0),
            "hidden_size is 0, wanted an integer from 1 to 4294967295",
        ),
        (
            "hidden_size",
            json!(2048.5),
            "hidden_size is 2048.5, wanted an integer from 1 to 4294967295",
        ),
        (
            "vocab_size",
            json!("320"),
            "vocab_size is \"320\", wanted an integer from 1 to 4294967295",
        ),
        (
            "num_hidden_layers",
            json!(65_537),
            "num_hidden_layers is 65537, wanted an integer from 1 to 65536",
        ),
        (
            "num_hidden_layers",
            json!(u64::MAX),
            "num_hidden_layers is 18446744073709551615, wanted an integer from 1 to 65536",
        ),
        (
            "num_experts",
            json!(1e30),
            "num_experts is 1e+30, wanted an integer from 0 to 65536",
        ),
        (
            "num_experts",
            json!([4]),
            "num_experts is a list of 1, wanted an integer from 0 to 65536",
        ),
        (
            "decoder_sparse_step",
            json!(0),
            "decoder_sparse_step is 0, wanted an integer from 1 to 65536",
        ),
        (
            "mlp_only_layers",
            json!([0, -1]),
            "mlp_only_layers is a list of 2, wanted a list of at most 65536 integers from 0 to 65536",
        ),
        (
            "attention_bias",
            json!(1),
            "attention_bias is 1, wanted true or false",
        ),
        (
            "num_attention_heads",
            json!({}),
            "num_attention_heads is an object of 0 keys, wanted an integer from 1 to 4294967295",
        ),
    ] {
        let config = with(plain(), &format!("/{key}"), value);
        assert_eq!(
            refusal(qwen3_moe(), &config),
            format!("config.json: {reported}")
        );
        let config = with(omni(), "/thinker_config/text_config", config);
        let path = format!("config.json: thinker_config.text_config.{reported}");
        assert_eq!(refusal(qwen3_omni_moe(), &config), path);
    }
    assert_eq!(
        refusal(qwen3_moe(), &json!([])),
        "config.json: the document is a list of 0, wanted an object"
    );
    let long = with(plain(), "/vocab_size", json!("ä".repeat(1000)));
    assert!(refusal(qwen3_moe(), &long).len() < 250);
}

#[test]
fn hostile_products_are_refused() {
    let omni_with =
        |pointer: &str, value: Value| refusal(qwen3_omni_moe(), &with(omni(), pointer, value));
    let vision = with(
        omni(),
        "/thinker_config/vision_config/hidden_size",
        json!(u32::MAX),
    );
    assert_eq!(
        refusal(
            qwen3_omni_moe(),
            &with(
                vision,
                "/thinker_config/vision_config/spatial_merge_size",
                json!(u32::MAX)
            )
        ),
        "config.json: thinker_config.vision_config.spatial_merge_size is 4294967295, \
         wanted a value whose product fits 64 bits"
    );
    assert_eq!(
        omni_with("/code2wav_config/upsample_rates", json!(vec![2; 64])),
        "config.json: code2wav_config.decoder_dim is 16, wanted at least 2 to the number of upsample_rates"
    );
    assert_eq!(
        omni_with("/code2wav_config/num_attention_heads", json!(17))
            .split(',')
            .next(),
        Some("config.json: code2wav_config.head_dim is missing")
    );
    assert_eq!(
        refusal(
            qwen3_moe(),
            &without(with(plain(), "/hidden_size", json!(3)), "/head_dim")
        ),
        "config.json: head_dim is missing, wanted a size, as hidden_size / num_attention_heads is 0"
    );
    let many = with(
        with(plain(), "/num_experts", json!(65_536)),
        "/num_hidden_layers",
        json!(65_536),
    );
    assert_eq!(
        refusal(qwen3_moe(), &many),
        "config.json: the counts in the document give more than 1000000 tensors, wanted at most 1000000 in all"
    );
    // One layer in 65,536 has experts: the others must not be walked expert by expert.
    let sparse = with(many, "/decoder_sparse_step", json!(65_536));
    let count = qwen3_moe()
        .expected(&sparse, &|_| false)
        .map(|list| list.len());
    assert_eq!(count, Ok(65_535 * (8 + 3) + (8 + 1 + 3 * 65_536) + 3));
}

#[test]
fn facts_are_checked_too() {
    let refused = |key: &str, value: Value| {
        let config = with(plain(), &format!("/{key}"), value);
        qwen3_moe().text_facts(&config).unwrap_err().to_string()
    };
    assert_eq!(
        refused("num_experts_per_tok", json!(5)),
        "config.json: num_experts_per_tok is 5, wanted from 1 to the 4 experts"
    );
    assert_eq!(
        refused("rms_norm_eps", json!(-1)),
        "config.json: rms_norm_eps is -1, wanted a positive number"
    );
    assert_eq!(
        refused("rope_parameters", json!({"rope_theta": "x"})),
        "config.json: rope_parameters.rope_theta is \"x\", wanted a positive number"
    );
    assert_eq!(
        refused("rope_scaling", json!(4)),
        "config.json: rope_scaling is 4, wanted an object"
    );
}

#[test]
fn dtypes() {
    assert_eq!(expected_dtype(&plain()), Ok(Some(Dtype::BF16)));
    assert_eq!(expected_dtype(&omni()), Ok(Some(Dtype::BF16)));
    assert_eq!(
        expected_dtype(&json!({"dtype": "torch.float16"})),
        Ok(Some(Dtype::F16))
    );
    assert_eq!(
        expected_dtype(&json!({"dtype": null, "torch_dtype": "float8_e4m3fn"})),
        Ok(Some(Dtype::F8_E4M3))
    );
    let nested = json!({"thinker_config": {"text_config": {"dtype": "float32"}}});
    assert_eq!(expected_dtype(&nested), Ok(Some(Dtype::F32)));
    assert_eq!(
        expected_dtype(&json!({"text_config": {"dtype": "float64"}})),
        Ok(Some(Dtype::F64))
    );
    assert_eq!(expected_dtype(&json!({})), Ok(None));
    assert_eq!(
        expected_dtype(&json!({"thinker_config": {"dtype": "int3"}}))
            .unwrap_err()
            .to_string(),
        "config.json: thinker_config.dtype is \"int3\", wanted a torch dtype that safetensors has, \
         such as \"bfloat16\""
    );
}

#[test]
fn stacked_layers_are_expected_stacked() {
    let present = BTreeSet::from(["model.layers.1.mlp.experts.down_proj"]);
    let list = qwen3_moe()
        .expected(&plain(), &|name| present.contains(name))
        .unwrap();
    let shapes: BTreeMap<_, _> = list.into_iter().map(|e| (e.name, e.shape)).collect();
    assert_eq!(
        shapes["model.layers.1.mlp.experts.gate_up_proj"],
        [4, 48, 64]
    );
    assert_eq!(shapes["model.layers.1.mlp.experts.down_proj"], [4, 64, 24]);
    assert!(!shapes.contains_key("model.layers.0.mlp.experts.down_proj"));
    assert!(!shapes.contains_key("model.layers.1.mlp.experts.0.up_proj.weight"));
    assert!(shapes.contains_key("model.layers.0.mlp.experts.3.up_proj.weight"));
}

#[test]
fn slices_tile_the_stacked_tensor() {
    for (family, prefix) in [
        (qwen3_moe(), ""),
        (qwen3_omni_moe(), "thinker."),
        (qwen3_omni_moe(), "talker."),
    ] {
        let stacked = format!("{prefix}model.layers.7.mlp.experts.gate_up_proj");
        let slices = family
            .unstack(&stacked, &[4, 48, 64], 16, &|| None)
            .unwrap()
            .unwrap();
        assert_eq!(slices.len(), 8);
        let mut end = 0;
        for slice in &slices {
            assert_eq!(
                (slice.offset, slice.length, slice.shape.as_slice()),
                (end, 24 * 64 * 2, &[24, 64][..])
            );
            assert_eq!(family.classify(&slice.name), Some(slice.classification));
            end += slice.length;
        }
        assert_eq!(end, 4 * 48 * 64 * 2);
        assert_eq!(
            slices[4].name,
            format!("{prefix}model.layers.7.mlp.experts.2.gate_proj.weight")
        );
        assert_eq!(
            slices[5].name,
            format!("{prefix}model.layers.7.mlp.experts.2.up_proj.weight")
        );
        let stacked = format!("{prefix}model.layers.7.mlp.experts.down_proj");
        let slices = family
            .unstack(&stacked, &[4, 64, 24], 32, &|| None)
            .unwrap()
            .unwrap();
        assert_eq!(
            (slices.len(), slices[3].offset, slices[3].length),
            (4, 3 * 64 * 24 * 4, 64 * 24 * 4)
        );
        assert_eq!(
            slices[3].name,
            format!("{prefix}model.layers.7.mlp.experts.3.down_proj.weight")
        );
    }
}

#[test]
fn unstacking_refuses_what_cannot_be_cut() {
    let name = "model.layers.0.mlp.experts.gate_up_proj";
    let unstack = |shape: &[u64], bits| qwen3_moe().unstack(name, shape, bits, &|| None).unwrap();
    assert_eq!(
        unstack(&[4, 47, 64], 16).unwrap_err().to_string(),
        "stacked tensor model.layers.0.mlp.experts.gate_up_proj of shape [4, 47, 64] with 16 bits each: \
         wanted a second dimension that 2 matrices share equally"
    );
    assert_eq!(
        unstack(&[4, 48], 16).unwrap_err().wanted,
        "three dimensions"
    );
    assert_eq!(
        unstack(&[65_537, 2, 2], 16).unwrap_err().wanted,
        "at most 65536 experts"
    );
    for (shape, bits) in [
        ([2, 2, 1], 4),
        ([1, u64::MAX - 1, 4], 16),
        ([2, 2, u64::MAX], 1),
        ([65_536, 2, 1 << 60], 8),
    ] {
        let wanted = unstack(&shape, bits).unwrap_err().wanted;
        assert_eq!(
            wanted, "matrices of whole bytes, fewer than 2^64 in all",
            "{shape:?}"
        );
    }
    assert_eq!(unstack(&[0, 48, 64], 16), Ok(Vec::new()));
    assert_eq!(
        qwen3_moe().unstack("model.norm.weight", &[64], 16, &|| None),
        None
    );
    assert_eq!(qwen3_moe().unstack("what", &[64], 16, &|| None), None);
}

#[test]
fn loaders_count_stacks() {
    let count = |stacked: bool| {
        let list = qwen3_omni_moe().expected(&omni(), &|_| stacked).unwrap();
        let classified: Vec<_> = list
            .iter()
            .map(|e| qwen3_omni_moe().classify(&e.name).unwrap())
            .collect();
        (list.len(), logical_parameter_count(&classified))
    };
    let ((apart, logical), (together, same)) = (count(false), count(true));
    assert_eq!((together, same), (logical, logical));
    // Three thinker layers of four experts, two talker layers of three.
    assert_eq!(apart - logical, 3 * (12 - 2) + 2 * (9 - 2));
}

/// What a decoder computes by its configuration, or why it is refused.
fn options_of(config: &Value) -> Result<DecoderOptions, String> {
    let family = Family::of_config(config).unwrap();
    let facts = family.text_facts(config).map_err(|e| e.to_string())?;
    let settings = family.text_settings(config, &facts);
    settings.map(|s| s.options).map_err(|e| e.to_string())
}

/// A configuration of a small model with the keys that any of these families wants.
fn small(model_type: &str, keys: &Value) -> Value {
    let mut config = json!({
        "model_type": model_type, "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 24,
        "moe_intermediate_size": 16, "num_local_experts": 6, "n_routed_experts": 6, "num_experts": 6,
        "moe_num_experts": 6, "n_shared_experts": 1, "shared_expert_intermediate_size": 12,
        "max_position_embeddings": 128,
    });
    let all = config.as_object_mut().unwrap();
    all.extend(keys.as_object().unwrap().clone());
    config
}

/// The values are those of the configuration classes of transformers 5.23.
#[test]
fn absent_keys_have_the_defaults_of_the_familys_class() {
    for (family, theta, eps, per_token) in [
        ("mixtral", 1e6, 1e-5, 2),
        ("olmoe", 1e4, 1e-5, 8),
        ("qwen2_moe", 1e4, 1e-6, 4),
        ("glm4_moe", 1e4, 1e-5, 8),
        ("ernie4_5_moe", 5e5, 1e-5, 6),
        ("granitemoe", 1e4, 1e-6, 2),
        ("gpt_oss", 1.5e5, 1e-5, 4),
        ("qwen3_vl_moe", 5e5, 1e-6, 4),
    ] {
        let many = json!({"num_local_experts": 8, "n_routed_experts": 8, "num_experts": 8, "moe_num_experts": 8});
        let options = options_of(&small(family, &many)).unwrap();
        let seen = (
            options.rotary.theta,
            options.rms_norm_eps,
            options.router.experts_per_token,
        );
        assert_eq!(seen, (theta, eps, per_token), "{family}");
    }
    let glm = options_of(&small("glm4_moe", &json!({"num_experts_per_tok": 2}))).unwrap();
    assert_eq!((glm.rotary.width, glm.qk_norm), (4, QkNorm::Absent));
    let oss = options_of(&small("gpt_oss", &json!({}))).unwrap();
    assert_eq!(oss.windows, [Some(128), None, Some(128), None]);
    let RotaryScaling::Yarn(yarn) = oss.rotary.scaling else {
        panic!("gpt-oss stretches its positions");
    };
    // 0.1 · ln(32) + 1
    assert!((yarn.attention_factor - 1.346_573_590_279_972_7).abs() < 1e-12);
    assert_eq!(
        (yarn.factor, yarn.original_positions, yarn.truncates),
        (32.0, 4096, false)
    );
}

/// The base is that of `compute_ntk_alpha_rope_parameters`, modeling_hunyuan_v1_moe.py.
#[test]
fn hunyuans_alpha_is_a_greater_base() {
    let rope = json!({"type": "dynamic", "alpha": 1000.0, "factor": 1.0});
    let keys = json!({"rope_scaling": rope, "moe_topk": [2, 2, 2, 2], "num_shared_expert": 1});
    let options = options_of(&small("hunyuan_v1_moe", &keys)).unwrap();
    assert!((options.rotary.theta / 1e8 - 1.0).abs() < 1e-9); // 1e4 · 1000^(8/6)
    assert_eq!(options.qk_norm, QkNorm::PerHeadAfterRotary);
    let shared = options.shared_expert.unwrap();
    assert_eq!((shared.intermediate, shared.is_gated), (16, false));
}

#[test]
fn what_a_decoder_does_not_compute_is_refused_by_its_key() {
    for (family, keys, reported) in [
        (
            "olmoe",
            json!({"clip_qkv": 8.0}),
            "clip_qkv is 8.0, wanted null",
        ),
        (
            "mixtral",
            json!({"hidden_act": "gelu"}),
            "hidden_act is \"gelu\", wanted \"silu\"",
        ),
        (
            "mixtral",
            json!({"num_experts_per_tok": 7}),
            "num_experts_per_tok is 7, wanted from 1 to the 6",
        ),
        (
            "mixtral",
            json!({"num_key_value_heads": 3}),
            "num_key_value_heads is 3, wanted a divisor of the 4",
        ),
        (
            "mixtral",
            json!({"rope_scaling": {"type": "linear", "factor": 2.0}}),
            "rope_scaling.type is \"linear\"",
        ),
        (
            "gpt_oss",
            json!({"rope_scaling": {"rope_type": "yarn"}}),
            "rope_scaling.factor is missing",
        ),
        (
            "gpt_oss",
            json!({"layer_types": ["sliding_attention"]}),
            "layer_types is a list of 1",
        ),
        (
            "dots1",
            json!({"num_experts_per_tok": 2, "layer_types": ["x", "x", "x", "x"]}),
            "layer_types is a list of 4",
        ),
        (
            "glm4_moe",
            json!({"num_experts_per_tok": 2, "n_group": 4}),
            "n_group is 4, wanted a divisor of the 6",
        ),
        (
            "glm4_moe",
            json!({"num_experts_per_tok": 4, "n_group": 3, "topk_group": 1}),
            "topk_group is 1",
        ),
        (
            "glm4_moe",
            json!({"num_experts_per_tok": 2, "partial_rotary_factor": 0.4}),
            "partial_rotary_factor is 0.4",
        ),
        (
            "ernie4_5_moe",
            json!({"use_bias": true}),
            "use_bias is true, wanted false",
        ),
        (
            "hunyuan_v1_moe",
            json!({"use_cla": true}),
            "use_cla is true, wanted false",
        ),
        (
            "qwen2_moe",
            json!({"use_sliding_window": true}),
            "use_sliding_window is true, wanted false",
        ),
        (
            "granitemoe",
            json!({"logits_scaling": 0}),
            "logits_scaling is 0, wanted a positive number",
        ),
    ] {
        let error = options_of(&small(family, &keys)).unwrap_err();
        assert!(error.contains(reported), "{family}: {error}");
    }
}
