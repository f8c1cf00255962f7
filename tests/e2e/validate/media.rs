//! `segpack validate` with prompts of audio, images and videos: the official traces, and what changes
//! to traces and checkpoints do, each at its stage.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::stages::{self, validate, wrong_stages};
use crate::support::checkpoint::fixtures;
use crate::support::cli::{packed, segpack};
use crate::support::folders::temp;
use crate::support::tiny::{Tensor, Tiny, tiny_full};

/// Every public trace of media.
const CASES: [&str; 15] = [
    "audio-batch",
    "audio-in-video",
    "audio-in-video-wide",
    "audio-lossy",
    "audio-one",
    "audio-short",
    "audio-window",
    "image-lossless",
    "image-lossy",
    "image-shapes",
    "mixed",
    "readme-image",
    "readme-video",
    "video-gif",
    "video-silent",
];

fn tiny_omni() -> PathBuf {
    fixtures().join("tiny-omni")
}

fn trace_of(case: &str) -> PathBuf {
    let name = match case {
        "mm" => "tiny-full.mm.float32.safetensors".to_owned(),
        "image" | "audio" => format!("tiny-runtimes.media.{case}.float32.safetensors"),
        case => format!("tiny-omni.media.{case}.float32.safetensors"),
    };
    fixtures().join("traces").join(name)
}

/// `tests/peers/run --runtimes` compares other runtimes with the same traces.
#[test]
fn the_checkpoint_for_other_runtimes_computes_what_its_traces_say() {
    let folder = temp();
    let pack = packed(&fixtures().join("tiny-runtimes"), folder.path());
    for case in ["image", "audio"] {
        let report = validate(&pack, &trace_of(case), &[], 0);
        assert_eq!(report["verdict"], "inside", "{case}");
        assert_eq!(wrong_stages(&report), [""; 0], "{case}");
    }
    let text = fixtures().join("traces/tiny-runtimes.float32.safetensors");
    let report = validate(&pack, &text, &[], 0);
    assert_eq!(report["verdict"], "inside");
    assert_eq!(report["prompts"].as_array().unwrap().len(), 5);
}

#[test]
fn the_official_traces_of_media_are_inside_their_gates() {
    let folder = temp();
    let (omni, full) = (folder.path().join("omni"), folder.path().join("full"));
    for name in [&omni, &full] {
        fs::create_dir(name).unwrap();
    }
    let (omni, full) = (packed(&tiny_omni(), &omni), packed(&tiny_full(), &full));
    for case in CASES.into_iter().chain(["mm"]) {
        let pack = if case == "mm" { &full } else { &omni };
        let report = validate(pack, &trace_of(case), &[], 0);
        assert_eq!(report["verdict"], "inside", "{case}");
        assert_eq!(wrong_stages(&report), [""; 0], "{case}");
        let stages: Vec<&str> = report["stages"]
            .as_array()
            .unwrap()
            .iter()
            .map(|row| row["stage"].as_str().unwrap())
            .collect();
        for stage in ["positions", "rope_delta", "embeddings"] {
            assert!(stages.contains(&stage), "{case}: {stages:?}");
        }
    }
}

#[test]
fn coded_packs_threads_and_one_expert_give_the_same_bits() {
    let folder = temp();
    let raw = packed(&tiny_omni(), folder.path());
    let coded = folder.path().join("coded");
    segpack!["pack", tiny_omni(), "-o", &coded, "--codec", "bf16-rans"].ok();
    let trace = trace_of("audio-in-video");
    let wanted = validate(&raw, &trace, &["--threads", "1"], 0);
    for (pack, more) in [
        (&raw, ["--threads", "3"]),
        (&raw, ["--expert-cache", "1"]),
        (&coded, ["--threads", "2"]),
    ] {
        let seen = validate(pack, &trace, &more, 0);
        assert_eq!(seen["stages"], wanted["stages"], "{more:?}");
        assert_eq!(seen["values"], wanted["values"], "{more:?}");
    }
}

/// A trace with other tensors, not said to be of any checkpoint.
fn bent(case: &str, folder: &Path, bend: impl FnOnce(&mut Vec<Tensor>, &mut Value)) -> PathBuf {
    stages::bent(&trace_of(case), folder, bend)
}

fn tensor<'t>(tensors: &'t mut [Tensor], name: &str) -> &'t mut Tensor {
    let wanted = format!("mm.{name}");
    tensors.iter_mut().find(|t| t.name == wanted).unwrap()
}

/// Adds to a value of f32.
fn shift(tensor: &mut Tensor, index: usize, by: f32) {
    let value = &mut tensor.bytes.as_chunks_mut::<4>().0[index];
    *value = (f32::from_le_bytes(*value) + by).to_le_bytes();
}

#[test]
fn a_changed_trace_is_caught_at_its_stage() {
    let folder = temp();
    let pack = packed(&tiny_omni(), folder.path());
    // what is changed, by how much, and where it shows first
    let floats: [(&str, &str, usize, f32, &str); 12] = [
        ("audio-one", "audio.features", 700, 4e-4, "audio_features"),
        ("audio-one", "audio.conv", 33, 2e-4, "audio_input"),
        ("audio-one", "audio.layer.1", 40, 2e-4, "audio_layer"),
        ("audio-one", "audio.out", 5, 1e-4, "audio_rows"),
        ("image-lossless", "image.embed", 9, 2e-4, "image_input"),
        ("image-lossless", "image.layer.2", 77, 2e-4, "image_layer"),
        (
            "image-lossless",
            "image.deepstack.1",
            3,
            1e-4,
            "image_deepstack",
        ),
        ("image-lossless", "image.out", 3, 1e-4, "image_rows"),
        ("video-silent", "video.layer.3", 8, 2e-4, "video_layer"),
        ("video-silent", "position_ids", 30, 0.5, "positions"),
        ("video-silent", "rope_delta", 0, 1.0, "rope_delta"),
        ("video-silent", "embeds", 100, 1e-4, "embeddings"),
    ];
    for (case, name, index, by, stage) in floats {
        let trace = bent(case, folder.path(), |tensors, _| {
            shift(tensor(tensors, name), index, by);
        });
        let report = validate(&pack, &trace, &[], 3);
        let wrong = wrong_stages(&report);
        assert_eq!(
            wrong.first().map(String::as_str),
            Some(stage),
            "{name}: {report:#}"
        );
    }
}

#[test]
fn what_comes_after_the_stages_is_judged_too() {
    let folder = temp();
    let pack = packed(&tiny_omni(), folder.path());
    let other_token = bent("mixed", folder.path(), |tensors, _| {
        let id = &mut tensor(tensors, "gen.ids").bytes.as_chunks_mut::<8>().0[0];
        *id = (i64::from_le_bytes(*id) + 1).to_le_bytes();
    });
    let report = validate(&pack, &other_token, &[], 3);
    assert_eq!(
        (wrong_stages(&report).len(), &report["verdict"]),
        (0, &Value::from("outside"))
    );
    let other_logit = bent("mixed", folder.path(), |tensors, _| {
        shift(tensor(tensors, "logits_tail"), 17, 1e-3);
    });
    let report = validate(&pack, &other_logit, &[], 3);
    assert!(
        report["findings"][0]["seen"]
            .as_str()
            .unwrap()
            .contains("logits differ")
    );
    let nan = bent("audio-one", folder.path(), |tensors, _| {
        shift(tensor(tensors, "audio.out"), 5, f32::NAN);
    });
    let report = validate(&pack, &nan, &[], 3);
    assert_eq!(wrong_stages(&report)[0], "audio_rows");
    let foreign = bent("audio-one", folder.path(), |_, document| {
        document["checkpoint"]["model-00001-of-00003.safetensors"] = "0".repeat(64).into();
    });
    let report = validate(&pack, &foreign, &[], 3);
    assert_eq!(report["verdict"], "foreign");
}

/// The other weights are of a checkpoint that is packed without a complaint.
#[test]
fn a_changed_checkpoint_is_caught_at_its_stage() {
    // a tensor that is halved, a trace, and where that shows first
    let changes = [
        ("audio_tower.conv2d2.weight", "audio-one", "audio_input"),
        ("audio_tower.conv_out.weight", "audio-one", "audio_input"),
        (
            "audio_tower.layers.1.self_attn.k_proj.bias",
            "audio-one",
            "",
        ),
        (
            "audio_tower.layers.1.self_attn.v_proj.bias",
            "audio-one",
            "audio_layer",
        ),
        ("audio_tower.proj2.bias", "audio-one", "audio_rows"),
        (
            "visual.patch_embed.proj.weight",
            "image-lossless",
            "image_input",
        ),
        ("visual.pos_embed.weight", "image-lossless", "image_input"),
        (
            "visual.blocks.2.attn.qkv.weight",
            "image-lossless",
            "image_layer",
        ),
        (
            "visual.blocks.3.mlp.linear_fc2.bias",
            "video-silent",
            "video_layer",
        ),
        (
            "visual.merger_list.1.ln_q.weight",
            "image-lossless",
            "image_deepstack",
        ),
        ("visual.merger.mlp.2.weight", "video-silent", "video_rows"),
        (
            "model.layers.0.self_attn.q_norm.weight",
            "video-silent",
            "decoder",
        ),
    ];
    for (name, case, stage) in changes {
        let folder = temp();
        let mut checkpoint = Tiny::read(&tiny_omni());
        for value in checkpoint
            .tensor(&format!("thinker.{name}"))
            .bytes
            .as_chunks_mut::<2>()
            .0
        {
            // half of a bf16, but for the smallest: one less in the exponent
            let bits = u16::from_le_bytes(*value);
            let half = if bits & 0x7f80 >= 0x0100 {
                bits - 0x80
            } else {
                bits
            };
            *value = half.to_le_bytes();
        }
        let source = folder.path().join("checkpoint");
        fs::create_dir(&source).unwrap();
        let pack = packed(&checkpoint.write(&source), folder.path());
        let status = if stage.is_empty() { 0 } else { 3 };
        let report = validate(&pack, &trace_of(case), &["--no-digests"], status);
        match (stage, wrong_stages(&report).first()) {
            // the same is added to all scores of a row: softmax takes it out again
            ("", first) => assert_eq!(first, None, "{name}"),
            ("decoder", first) => assert_eq!(first, None, "{name}"),
            (stage, first) => assert_eq!(first.map(String::as_str), Some(stage), "{name}"),
        }
    }
}

#[test]
fn the_table_shows_stages_and_their_gates() {
    let folder = temp();
    let pack = packed(&tiny_omni(), folder.path());
    let run = segpack!["validate", &pack, "--reference", trace_of("mixed")].ok();
    for words in [
        "audio rows",
        "image rows",
        "merged embeddings",
        "equal",
        "greedy tokens",
    ] {
        assert!(run.text().contains(words), "{run}");
    }
    // memory is counted before it is taken
    let small = segpack![
        "validate",
        &pack,
        "--reference",
        trace_of("mixed"),
        "--memory",
        "1MB"
    ];
    small.exits(1).says(&["memory budget of", "the minimum is"]);
}

#[test]
fn a_model_without_encoders_says_so() {
    let folder = temp();
    let checkpoint = folder.path().join("checkpoint");
    fs::create_dir(&checkpoint).unwrap();
    let plain = Tiny::qwen3_moe(crate::support::tiny::Qwen3Moe::default()).write(&checkpoint);
    let pack = packed(&plain, folder.path());
    for (case, medium) in [("audio-one", "audio"), ("image-lossless", "images")] {
        let run = segpack![
            "validate",
            &pack,
            "--no-digests",
            "--reference",
            trace_of(case)
        ];
        run.exits(3).says(&["takes text alone", medium]);
    }
    // a thinker that was packed without its ears
    let deaf = folder.path().join("deaf");
    segpack![
        "pack",
        tiny_omni(),
        "-o",
        &deaf,
        "--exclude",
        "thinker.audio"
    ]
    .ok();
    let run = segpack!["validate", &deaf, "--reference", trace_of("audio-one")];
    run.exits(3).says(&["it has no thinker.audio"]);
}

#[test]
fn hostile_traces_end_in_an_error() {
    let folder = temp();
    let pack = packed(&tiny_omni(), folder.path());
    let number = |tensors: &mut Vec<Tensor>, name: &str, index: usize, value: i64| {
        tensor(tensors, name).bytes.as_chunks_mut::<8>().0[index] = value.to_le_bytes();
    };
    type Bend = Box<dyn FnOnce(&mut Vec<Tensor>)>;
    let bends: Vec<(&str, Bend, &str)> = vec![
        (
            "audio-one",
            Box::new(move |t| number(t, "audio.lengths", 0, 1 << 60)),
            "holds",
        ),
        (
            "audio-one",
            Box::new(move |t| number(t, "audio.lengths", 0, -1)),
            "holds",
        ),
        (
            "audio-one",
            Box::new(move |t| number(t, "audio.lengths", 0, 50)),
            "placeholder",
        ),
        (
            "mixed",
            Box::new(move |t| number(t, "image.grid", 1, 3)),
            "multiples",
        ),
        (
            "mixed",
            Box::new(move |t| number(t, "video.grid", 0, 1 << 30)),
            "placeholder",
        ),
        (
            "mixed",
            Box::new(move |t| number(t, "input_ids", 3, 298)),
            "placeholder",
        ),
        (
            "mixed",
            Box::new(move |t| number(t, "input_ids", 3, 1 << 20)),
            "embedding",
        ),
        (
            "mixed",
            Box::new(|t| t.retain(|t| t.name != "mm.video.second_per_grid")),
            "seconds",
        ),
    ];
    for (case, bend, words) in bends {
        let trace = bent(case, folder.path(), |tensors, _| bend(tensors));
        let run = segpack!["validate", &pack, "--reference", trace];
        // an id that the model lacks is that of a wrong prompt, as it is for `run`
        let status = if words == "embedding" { 1 } else { 3 };
        run.exits(status).says(&[words]);
    }
}
