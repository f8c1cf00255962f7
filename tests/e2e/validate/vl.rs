//! `segpack validate` of Qwen3-VL-MoE with images: the trace of the official class, and what changes to
//! the checkpoint, its configuration and the trace do, each at its stage.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::stages::{bent, validate, wrong_stages};
use crate::support::checkpoint::fixtures;
use crate::support::cli::{packed, segpack};
use crate::support::folders::temp;
use crate::support::tiny::{Tiny, tiny_vl};

fn trace() -> PathBuf {
    fixtures().join("traces/tiny-vl.media.images.float32.safetensors")
}

/// A pack of the checkpoint after a change.
fn changed(folder: &Path, change: impl FnOnce(&mut Tiny)) -> PathBuf {
    let mut checkpoint = Tiny::read(&tiny_vl());
    change(&mut checkpoint);
    let source = folder.join("checkpoint");
    fs::create_dir(&source).unwrap();
    packed(&checkpoint.write(&source), folder)
}

/// The report of a pack that is not the recorded one, and the first stage out of its gate.
fn compared(pack: &Path, trace: &Path, status: i32) -> (Value, String) {
    let report = validate(pack, trace, &["--no-digests"], status);
    let first = wrong_stages(&report).into_iter().next();
    (report, first.unwrap_or_default())
}

#[test]
fn three_images_are_inside_the_gates_of_the_official_class() {
    let folder = temp();
    let raw = packed(&tiny_vl(), folder.path());
    let coded = folder.path().join("coded");
    segpack!["pack", tiny_vl(), "-o", &coded, "--codec", "bf16-rans"].ok();
    let wanted = validate(&raw, &trace(), &["--threads", "1"], 0);
    assert_eq!(wanted["verdict"], "inside");
    let stages: Vec<&str> = wanted["stages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row["stage"].as_str().unwrap())
        .collect();
    for stage in [
        "image_input",
        "image_layer",
        "image_deepstack",
        "image_rows",
        "positions",
        "rope_delta",
        "embeddings",
    ] {
        assert!(stages.contains(&stage), "{stages:?}");
    }
    for (pack, more) in [
        (&raw, ["--threads", "3"]),
        (&raw, ["--expert-cache", "1"]),
        (&coded, ["--threads", "2"]),
    ] {
        let seen = validate(pack, &trace(), &more, 0);
        assert_eq!(seen["stages"], wanted["stages"], "{more:?}");
        assert_eq!(seen["values"], wanted["values"], "{more:?}");
    }
}

#[test]
fn a_changed_tower_is_caught_at_its_stage() {
    for (name, stage) in [
        ("patch_embed.proj.weight", "image_input"),
        ("pos_embed.weight", "image_input"),
        ("blocks.1.attn.qkv.weight", "image_layer"),
        ("blocks.2.mlp.linear_fc2.bias", "image_layer"),
        (
            "deepstack_merger_list.1.linear_fc1.weight",
            "image_deepstack",
        ),
        ("merger.norm.weight", "image_rows"),
    ] {
        let folder = temp();
        let pack = changed(folder.path(), |checkpoint| {
            let tensor = checkpoint.tensor(&format!("model.visual.{name}"));
            for value in tensor.bytes.as_chunks_mut::<2>().0 {
                value[1] ^= 0x80; // the sign of a bf16
            }
        });
        assert_eq!(compared(&pack, &trace(), 3).1, stage, "{name}");
    }
    // the mergers of deepstack, one in the place of the other
    let folder = temp();
    let pack = changed(folder.path(), |checkpoint| {
        for part in ["norm", "linear_fc1", "linear_fc2"].map(|part| format!("{part}.weight")) {
            let name = |k| format!("model.visual.deepstack_merger_list.{k}.{part}");
            let first = checkpoint.tensor(&name(0)).bytes.clone();
            let second = std::mem::replace(&mut checkpoint.tensor(&name(1)).bytes, first);
            checkpoint.tensor(&name(0)).bytes = second;
        }
    });
    assert_eq!(compared(&pack, &trace(), 3).1, "image_deepstack");
}

/// Stages before the decoder have the same values: the decoder alone is at fault.
#[test]
fn positions_that_go_by_time_alone_are_seen_in_the_decoder() {
    let folder = temp();
    let pack = changed(folder.path(), |checkpoint| {
        checkpoint.config["text_config"]["rope_scaling"]["mrope_section"] = json!([8, 0, 0]);
    });
    let (report, first) = compared(&pack, &trace(), 3);
    assert_eq!(
        (first.as_str(), &report["verdict"]),
        ("", &json!("outside"))
    );
    assert_eq!(report["first_wrong"]["layer"], 0, "{report:#}");
}

#[test]
fn what_deepstack_adds_is_seen_in_the_decoder() {
    let folder = temp();
    let pack = packed(&tiny_vl(), folder.path());
    let without = bent(&trace(), folder.path(), |tensors, _| {
        let name = "mm.image.deepstack.0";
        let tensor = tensors.iter_mut().find(|t| t.name == name).unwrap();
        tensor.bytes.fill(0);
    });
    let (report, first) = compared(&pack, &without, 3);
    assert_eq!(first, "image_deepstack");
    // the decoder gets the recorded rows, so that it goes on without what was added after layer 0
    let layer = report["first_wrong"]["layer"].as_u64();
    assert!(layer.is_some_and(|layer| layer <= 1), "{report:#}");
}

/// transformers 5 writes `rope_parameters`, with the base inside.
#[test]
fn both_spellings_of_the_configuration_are_the_same_model() {
    let folder = temp();
    let pack = changed(folder.path(), |checkpoint| {
        let text = checkpoint.config["text_config"].as_object_mut().unwrap();
        let mut rope = text.remove("rope_scaling").unwrap();
        rope["rope_theta"] = text.remove("rope_theta").unwrap();
        text.insert("rope_parameters".to_owned(), rope);
        checkpoint.config["vision_config"]["rope_parameters"] =
            json!({"rope_type": "axial", "rope_theta": 10000.0});
    });
    compared(&pack, &trace(), 0);
    let folder = temp();
    let pack = changed(folder.path(), |checkpoint| {
        checkpoint.config["vision_config"]["rope_parameters"] = json!({"rope_theta": 5000.0});
    });
    let run = segpack!["validate", &pack, "--no-digests", "--reference", trace()];
    run.exits(3)
        .says(&["vision_config.rope_parameters.rope_theta", "10000"]);
}

#[test]
fn a_trace_of_other_media_and_a_pack_without_its_tower_say_so() {
    let folder = temp();
    let pack = packed(&tiny_vl(), folder.path());
    let other = |case: &str| fixtures().join(format!("traces/tiny-omni.media.{case}.float32.json"));
    for (case, medium) in [("audio-one", "audio"), ("video-gif", "videos")] {
        let run = segpack![
            "validate",
            &pack,
            "--no-digests",
            "--reference",
            other(case)
        ];
        run.exits(3).says(&[medium, "images alone are taken"]);
    }
    let blind = folder.path().join("blind");
    segpack!["pack", tiny_vl(), "-o", &blind, "--exclude", "vision"].ok();
    let run = segpack!["validate", &blind, "--reference", trace()];
    run.exits(3).says(&["it has no vision"]);
    let run = segpack!["validate", &pack, "--against", tiny_vl()];
    run.exits(3)
        .says(&["qwen3_vl_moe", "recorded traces alone"]);
}
