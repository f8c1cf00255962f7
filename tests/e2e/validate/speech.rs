//! `segpack validate` with spoken answers: the official traces, and what changes to traces and
//! checkpoints do, each at its stage.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::stages::{self, validate, wrong_stages};
use crate::support::checkpoint::fixtures;
use crate::support::cli::{packed, segpack};
use crate::support::folders::temp;
#[cfg(target_os = "linux")]
use crate::support::gpu::with_gpu;
use crate::support::tiny::{Tensor, Tiny, tiny_full};

fn tiny_speech() -> PathBuf {
    fixtures().join("tiny-speech")
}

fn trace_of(name: &str) -> PathBuf {
    let name = format!("{name}.float32.safetensors");
    fixtures().join("traces").join(name)
}

#[test]
fn the_official_spoken_answers_are_inside_their_gates() {
    let folder = temp();
    let (full, speech) = (folder.path().join("full"), folder.path().join("speech"));
    for name in [&full, &speech] {
        fs::create_dir(name).unwrap();
    }
    let (full, speech) = (packed(&tiny_full(), &full), packed(&tiny_speech(), &speech));
    for (pack, name) in [
        (&full, "tiny-full.speech"),
        (&full, "tiny-full.long"),
        (&speech, "tiny-speech.speech"),
    ] {
        let report = validate(pack, &trace_of(name), &[], 0);
        assert_eq!(wrong_stages(&report), [""; 0], "{name}");
        assert_eq!(report["verdict"], "inside", "{name}");
        let stages = report["stages"].to_string();
        for stage in [
            "speech_text",
            "talker_ids",
            "talker_embeds",
            "talker_experts",
            "talker_shared_gates",
            "talker_logits",
            "talker_scores",
            "talker_suppressed",
            "talker_hidden",
            "talker_next",
            "predictor_logits",
            "speech_codes",
            "wave",
            "wave_noise",
            "speech_wave",
        ] {
            assert!(stages.contains(stage), "{name}: {stage}");
        }
    }
}

/// Recorded by this project's `record_speech.py` from talker and code2wav alone.
#[test]
fn a_given_text_is_spoken_as_the_official_classes_speak_it() {
    let folder = temp();
    let pack = packed(&tiny_full(), folder.path());
    let report = validate(&pack, &trace_of("tiny-full.given"), &[], 0);
    assert_eq!(report["verdict"], "inside");
    let stages = report["stages"].to_string();
    assert!(stages.contains("speech_codes") && stages.contains("speech_wave"));
    // it is not what the thinker would say
    assert!(!stages.contains("speech_text"));

    let rounded = fixtures().join("traces/tiny-full.given.bfloat16.safetensors");
    let report = validate(&pack, &rounded, &[], 0);
    assert_eq!(report["verdict"], "not_judged");
    let rows = report["stages"].as_array().unwrap();
    for stage in [
        "talker_ids",
        "talker_experts",
        "talker_logits",
        "predictor_logits",
    ] {
        let row = rows.iter().find(|row| row["stage"] == stage).unwrap();
        // a bf16 has 8 bits: these logits are below 64
        assert!(row["max_abs"].as_f64().unwrap() <= 0.25, "{row}");
    }
}

#[test]
fn coded_packs_threads_and_one_expert_speak_the_same_bits() {
    let folder = temp();
    let raw = packed(&tiny_speech(), folder.path());
    let coded = folder.path().join("coded");
    segpack!["pack", tiny_speech(), "-o", &coded, "--codec", "bf16-rans"].ok();
    let trace = trace_of("tiny-speech.speech");
    let wanted = validate(&raw, &trace, &["--threads", "1"], 0);
    for (pack, more) in [
        (&raw, ["--threads", "3"]),
        (&raw, ["--expert-cache", "1"]),
        (&coded, ["--threads", "2"]),
        (&coded, ["--expert-cache", "1"]),
    ] {
        let seen = validate(pack, &trace, &more, 0);
        assert_eq!(seen["stages"], wanted["stages"], "{more:?}");
    }
}

/// Talker and predictor on the host shim, with all of their experts there and with one.
#[cfg(target_os = "linux")]
#[test]
fn a_given_text_is_spoken_on_a_gpu_as_the_official_classes_speak_it() {
    let folder = temp();
    let pack = packed(&tiny_full(), folder.path());
    for more in ["", "--expert-cache 1"] {
        assert_inside_on_a_gpu(&pack, "tiny-full.given", more);
    }
    let rounded = fixtures().join("traces/tiny-full.given.bfloat16.safetensors");
    let report = validated_on_a_gpu(&pack, &rounded, "");
    assert_eq!(report["verdict"], "not_judged");
    for row in report["stages"].as_array().unwrap() {
        if ["talker_logits", "predictor_logits"].contains(&row["stage"].as_str().unwrap()) {
            assert!(row["max_abs"].as_f64().unwrap() <= 0.25, "{row}");
        }
    }
}

#[cfg(target_os = "linux")]
#[test]
#[ignore = "takes minutes"]
fn the_official_spoken_answers_are_inside_their_gates_on_a_gpu() {
    for (checkpoint, name) in [
        (tiny_full(), "tiny-full.speech"),
        (tiny_speech(), "tiny-speech.speech"),
    ] {
        let folder = temp();
        let pack = packed(&checkpoint, folder.path());
        assert_inside_on_a_gpu(&pack, name, "");
    }
}

#[cfg(target_os = "linux")]
fn assert_inside_on_a_gpu(pack: &Path, name: &str, more: &str) {
    let report = validated_on_a_gpu(pack, &trace_of(name), more);
    assert_eq!(wrong_stages(&report), [""; 0], "{name} {more}");
    assert_eq!(report["verdict"], "inside", "{name} {more}");
    let stages = report["stages"].to_string();
    for stage in [
        "talker_shared_gates",
        "talker_logits",
        "predictor_logits",
        "speech_codes",
    ] {
        assert!(stages.contains(stage), "{name}: {stage}");
    }
}

#[cfg(target_os = "linux")]
fn validated_on_a_gpu(pack: &Path, trace: &Path, more: &str) -> Value {
    let arguments = format!(
        "validate {} --reference {} --device cuda -q --json {more}",
        pack.display(),
        trace.display()
    );
    with_gpu(&arguments, &[]).ok().json()
}

#[test]
fn the_official_sound_of_given_codes_is_inside_its_gate() {
    let folder = temp();
    let (full, speech) = (folder.path().join("full"), folder.path().join("speech"));
    for name in [&full, &speech] {
        fs::create_dir(name).unwrap();
    }
    let (full, speech) = (packed(&tiny_full(), &full), packed(&tiny_speech(), &speech));
    // whole and in chunks
    for (pack, name, sounds) in [
        (&full, "tiny-full.wav", 10),
        (&speech, "tiny-speech.wav", 5),
    ] {
        let report = validate(pack, &trace_of(name), &[], 0);
        assert_eq!(report["verdict"], "inside", "{name}");
        let stages = report["stages"].as_array().unwrap();
        let of = |stage: &str| stages.iter().filter(|row| row["stage"] == stage).count();
        assert_eq!((of("wave"), of("wave_noise")), (sounds, sounds), "{name}");
        assert!(of("vocoder_stages") >= 14, "{name}");
    }
    // the sound of another model
    validate(&speech, &trace_of("tiny-full.wav"), &[], 3);
}

#[test]
fn changed_sound_is_caught_at_its_stage() {
    let folder = temp();
    let pack = packed(&tiny_full(), folder.path());
    let sound: &[&str] = &["wave", "wave_noise"];
    for (name, by, stages) in [
        ("w01.wav.layer.1", 0.1_f32, &["vocoder_stages"][..]),
        ("w01.wav.dec.1.tconv", 0.1, &["vocoder_stages"]),
        ("w01.wave", 1e-3, sound),
        ("w03.chunked.300_25", 0.1, sound),
        // too little for a sample, too much for all of them
        ("w01.wave", 2e-4, &["wave_noise"]),
    ] {
        let trace = bent("tiny-full.wav", folder.path(), |tensors| {
            let tensor = tensors.iter_mut().find(|t| t.name == name).unwrap();
            let value = &mut tensor.bytes.as_chunks_mut::<4>().0[3];
            *value = (f32::from_le_bytes(*value) + by).to_le_bytes();
        });
        assert_eq!(
            wrong_stages(&validate(&pack, &trace, &[], 3)),
            stages,
            "{name}"
        );
    }
    // a sample is missing
    let trace = bent("tiny-full.wav", folder.path(), |tensors| {
        let tensor = tensors.iter_mut().find(|t| t.name == "w02.wave").unwrap();
        tensor.bytes.truncate(tensor.bytes.len() - 4);
        tensor.shape[0] -= 1;
    });
    assert_eq!(wrong_stages(&validate(&pack, &trace, &[], 3)), ["wave"]);
}

/// A trace with other tensors.
fn bent(name: &str, folder: &Path, bend: impl FnOnce(&mut Vec<Tensor>)) -> PathBuf {
    stages::bent(&trace_of(name), folder, |tensors, _| bend(tensors))
}

#[test]
fn a_changed_trace_of_speech_is_caught_at_its_stage() {
    let folder = temp();
    let pack = packed(&tiny_full(), folder.path());
    let changes: [(&str, f32, &str); 9] = [
        ("talker.trailing", 1e-4, "talker_trailing"),
        ("talker.position_ids", 1.0, "talker_positions"),
        ("talker.layer.1.hidden", 1e-3, "talker_layers"),
        ("talker.layer.0.router_probs", 2e-4, "talker_routers"),
        ("talker.layer.1.shared_gate", 2e-4, "talker_shared_gates"),
        ("talker.logits", 4e-4, "talker_logits"),
        ("talker.scores", 4e-4, "talker_scores"),
        ("talker.scores", f32::NEG_INFINITY, "talker_suppressed"),
        ("pred.logits", 6e-4, "predictor_logits"),
    ];
    for (name, by, stage) in changes {
        let trace = bent("tiny-full.speech", folder.path(), |tensors| {
            let wanted = format!("s00.{name}");
            let tensor = tensors.iter_mut().find(|t| t.name == wanted).unwrap();
            let value = &mut tensor.bytes.as_chunks_mut::<4>().0[3];
            *value = (f32::from_le_bytes(*value) + by).to_le_bytes();
        });
        let report = validate(&pack, &trace, &[], 3);
        assert_eq!(wrong_stages(&report), [stage], "{name}");
    }
    // ids that are others
    for (name, stage) in [
        ("talker.ids", "talker_ids"),
        ("talker.layer.0.topk_ids", "talker_experts"),
        ("talker.tokens", "speech_tokens"),
    ] {
        let trace = bent("tiny-full.speech", folder.path(), |tensors| {
            let wanted = format!("s00.{name}");
            let tensor = tensors.iter_mut().find(|t| t.name == wanted).unwrap();
            let id = &mut tensor.bytes.as_chunks_mut::<8>().0[0];
            *id = (i64::from_le_bytes(*id) ^ 1).to_le_bytes();
        });
        let report = validate(&pack, &trace, &[], 3);
        assert_eq!(wrong_stages(&report), [stage], "{name}");
    }
}

/// Bugs of an implementation, made in the checkpoint, which is packed without a complaint: a tensor
/// that is doubled or emptied, or a number of the configuration.
#[test]
fn bugs_made_in_a_talker_are_caught_at_their_stage() {
    let doubled = |tiny: &mut Tiny, name: &str| {
        for value in tiny.tensor(name).bytes.as_chunks_mut::<2>().0 {
            // twice a bf16: one more in the exponent
            *value = (u16::from_le_bytes(*value) + 0x80).to_le_bytes();
        }
    };
    let weights = [
        ("talker.text_projection.linear_fc1.bias", "talker_embeds"),
        ("talker.model.codec_embedding.weight", "talker_embeds"),
        (
            "talker.model.layers.0.self_attn.q_norm.weight",
            "talker_layers",
        ),
        (
            "talker.model.layers.0.mlp.shared_expert_gate.weight",
            "talker_layers",
        ),
        (
            "talker.model.layers.1.mlp.shared_expert.down_proj.weight",
            "talker_layers",
        ),
        ("talker.model.layers.1.mlp.gate.weight", "talker_layers"),
        ("talker.model.norm.weight", "talker_logits"),
        ("talker.codec_head.weight", "talker_logits"),
        (
            "talker.code_predictor.model.norm.weight",
            "predictor_logits",
        ),
        ("talker.code_predictor.lm_head.1.weight", "predictor_logits"),
        (
            "talker.code_predictor.model.codec_embedding.0.weight",
            "talker_next",
        ),
    ];
    for (name, stage) in weights {
        caught(|tiny| doubled(tiny, name), stage, name);
    }
    let number = |keys: &'static [&str], value: Value| {
        move |tiny: &mut Tiny| {
            let talker = &mut tiny.config["talker_config"];
            let last = keys.iter().fold(talker, |at, key| &mut at[*key]);
            *last = value;
        }
    };
    // recorded states are of the right layer: it shows from the prompt on
    caught(
        number(&["accept_hidden_layer"], 2.into()),
        "speech_codes",
        "accept layer",
    );
    caught(
        number(&["text_config", "norm_topk_prob"], false.into()),
        "talker_layers",
        "norm",
    );
    caught(
        number(&["text_config", "num_experts_per_tok"], 3.into()),
        "talker_layers",
        "top k",
    );
    caught(
        number(&["codec_eos_token_id"], 167.into()),
        "talker_suppressed",
        "end marker",
    );
    caught(
        number(&["codec_pad_id"], 165.into()),
        "talker_embeds",
        "pad",
    );
    caught(
        number(&["code_predictor_config", "rope_theta"], 100.into()),
        "predictor_logits",
        "theta",
    );
}

/// The first stage that is out of its gate.
fn caught(bend: impl FnOnce(&mut Tiny), stage: &str, what: &str) {
    let folder = temp();
    let mut checkpoint = Tiny::read(&tiny_full());
    bend(&mut checkpoint);
    let source = folder.path().join("checkpoint");
    fs::create_dir(&source).unwrap();
    let pack = packed(&checkpoint.write(&source), folder.path());
    let report = validate(&pack, &trace_of("tiny-full.speech"), &["--no-digests"], 3);
    let wrong = wrong_stages(&report);
    // codes that are chosen from the prompt on are others, too; they are the last stages
    assert!(wrong.iter().any(|w| w == stage), "{what}: {wrong:?}");
}
