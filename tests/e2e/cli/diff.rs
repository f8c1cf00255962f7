//! `diff` between packs and checkpoints.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::support::cli::{Run, segpack};
use crate::support::damage::flip;
use crate::support::folders::temp;
use crate::support::packs::pack_into;
use crate::support::tiny::{Qwen3Moe, Tensor, Tiny, tiny_full};

fn diff(a: &Path, b: &Path) -> Run {
    segpack!["diff", a, b, "--tensors", "--json"]
}

fn names(report: &Value, change: &str) -> Vec<String> {
    let all = report["changed_tensors"].as_array().unwrap();
    let chosen = all.iter().filter(|t| t["change"] == change);
    chosen
        .map(|t| t["name"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn what_holds_the_same_tensors_is_equal_whatever_holds_them() {
    let folder = temp();
    let tiny = Tiny::qwen3_moe(Qwen3Moe::default());
    let checkpoint = tiny.write(&folder.path().join("checkpoint"));
    let [raw, coded] = ["raw", "bf16-rans"].map(|codec| {
        let out = folder.path().join(codec);
        segpack!["pack", &checkpoint, "-o", &out, "--codec", codec].ok();
        out
    });
    for (a, b) in [
        (&raw, &coded),
        (&raw, &checkpoint),
        (&checkpoint, &coded),
        (&raw, &raw),
    ] {
        let report = diff(a, b).ok().json();
        assert_eq!(report["equal"], true);
        assert_eq!(report["groups"], json!([]));
    }
    // stacked experts are the same experts; only the index and the headers are others
    let stacked = tiny.clone().stacked().write(&folder.path().join("stacked"));
    let report = diff(&raw, &stacked).exits(3).json();
    assert_eq!(report["tensors"]["changed"], 0);
    assert_eq!(
        report["changed_files"][0]["path"],
        "model.safetensors.index.json"
    );
    let text = segpack!["diff", &raw, &coded].ok();
    assert!(text.text().contains("equal: 110 tensors and"), "{text}");
}

/// A checkpoint beside one in which a value, a shape, a dtype, a name and a file differ.
fn two(folder: &Path) -> (PathBuf, PathBuf) {
    let a = Tiny::qwen3_moe(Qwen3Moe::default());
    let mut b = a.clone();
    b.tensor("model.layers.1.mlp.experts.2.up_proj.weight")
        .bytes[7] ^= 0x40;
    let norm = b.tensor("model.norm.weight");
    norm.shape = vec![6, 8];
    let router = b.tensor("model.layers.2.mlp.gate.weight");
    router.dtype = "F16".to_owned();
    b.remove("model.layers.3.mlp.experts.5.down_proj.weight");
    b.shards[0].1.push(Tensor::noise("model.extra", &[3]));
    b.files.push(("NEW.md".to_owned(), b"new".to_vec()));
    b.files[0].1.push(b'!');
    (a.write(&folder.join("a")), b.write(&folder.join("b")))
}

#[test]
fn every_difference_is_named() {
    let folder = temp();
    let (a, b) = two(folder.path());
    let report = diff(&a, &b).exits(3).json();
    assert_eq!(report["equal"], false);
    assert_eq!(names(&report, "added"), ["model.extra"]);
    assert_eq!(
        names(&report, "removed"),
        ["model.layers.3.mlp.experts.5.down_proj.weight"]
    );
    assert_eq!(
        names(&report, "changed"),
        [
            "model.layers.1.mlp.experts.2.up_proj.weight",
            "model.layers.2.mlp.gate.weight",
            "model.norm.weight",
        ]
    );
    assert_eq!(report["tensors"]["equal"], 106);
    let group = json!({"component": "text", "layer": 1, "role": "expert_up",
        "tensors": {"equal": 5, "added": 0, "removed": 0, "changed": 1}});
    assert!(report["groups"].as_array().unwrap().contains(&group));
    let files: Vec<(&str, &str)> = report["changed_files"]
        .as_array()
        .unwrap()
        .iter()
        .map(|f| (f["path"].as_str().unwrap(), f["change"].as_str().unwrap()))
        .collect();
    assert!(files.contains(&("NEW.md", "added")), "{files:?}");
    assert!(files.iter().any(|f| f.1 == "changed"), "{files:?}");

    // the other way round, and from a pack
    let pack = folder.path().join("pack");
    segpack!["pack", &a, "-o", &pack, "--codec", "bf16-rans"].ok();
    let back = diff(&b, &pack).exits(3).json();
    assert_eq!(names(&back, "removed"), ["model.extra"]);
    assert_eq!(names(&back, "changed"), names(&report, "changed"));
    let text = segpack!["diff", &a, &b].exits(3);
    assert!(text.text().contains("different: 1 tensors added"), "{text}");
}

#[test]
fn stat_says_how_much_values_moved() {
    let folder = temp();
    let mut tiny = Tiny::qwen3_moe(Qwen3Moe::default());
    let name = "model.layers.0.self_attn.q_proj.weight";
    // 1.0 and 2.0 in turn
    let count = tiny.tensor(name).bytes.len() / 4;
    tiny.tensor(name).bytes = [0x80, 0x3f, 0x00, 0x40].repeat(count);
    let a = tiny.write(&folder.path().join("a"));
    // the first 2.0 becomes 4.0, a 1.0 NaN
    tiny.tensor(name).bytes[2..4].copy_from_slice(&[0x80, 0x40]);
    tiny.tensor(name).bytes[4..6].copy_from_slice(&[0xc0, 0x7f]);
    let b = tiny.write(&folder.path().join("b"));
    let pack = folder.path().join("pack");
    segpack!["pack", &b, "-o", &pack, "--codec", "zstd"].ok();
    for other in [&b, &pack] {
        let run = segpack!["diff", &a, other, "--stat", "--tensors", "--json"];
        let report = run.exits(3).json();
        let moved = &report["changed_tensors"][0]["moved"];
        let expected = (2.0_f64 * 2.0 / (count as f64 * 5.0 - 1.0)).sqrt();
        assert_eq!(moved["values"], 2 * count);
        assert_eq!(
            (&moved["changed"], &moved["not_finite"]),
            (&json!(2), &json!(1))
        );
        assert_eq!(moved["max_abs"], 2.0);
        let seen = moved["relative_rms"].as_f64().unwrap();
        assert!((seen - expected).abs() < 1e-12, "{seen} {expected}");
        assert_eq!(report["groups"][0]["moved"], *moved);
    }
    // another dtype, the same values
    let wide = tiny
        .clone()
        .converted("F32")
        .write(&folder.path().join("wide"));
    let run = segpack!["diff", &b, &wide, "--stat", "--json"];
    let report = run.exits(3).json();
    for group in report["groups"].as_array().unwrap() {
        assert_eq!(group["moved"]["max_abs"], 0.0, "{group}");
    }
}

#[test]
fn a_model_that_differs_everywhere_is_summed_up() {
    let folder = temp();
    let a = Tiny::qwen3_moe(Qwen3Moe {
        layers: 9,
        ..Qwen3Moe::default()
    });
    let mut b = a.clone();
    for (_, tensors) in &mut b.shards {
        tensors.iter_mut().for_each(|t| t.bytes[0] ^= 1);
    }
    let (a, b) = (
        a.write(&folder.path().join("a")),
        b.write(&folder.path().join("b")),
    );
    let run = segpack!["diff", &a, &b, "--stat"].exits(3);
    let lines = run.text().lines().count();
    assert!(
        lines < 70 && run.text().contains("more groups (--json has all)"),
        "{run}"
    );
}

#[test]
fn what_cannot_be_read_is_an_error_and_not_a_difference() {
    let folder = temp();
    let (a, b) = (folder.path().join("a"), folder.path().join("b"));
    pack_into(&tiny_full(), &a, &["--codec", "zstd"]);
    Tiny::full().write(&b);
    segpack!["diff", &a, folder.path().join("nothing")].exits(1);
    let shard = b.join("model-00002-of-00004.safetensors");
    std::fs::remove_file(&shard).unwrap();
    segpack!["diff", &a, &b].exits(3).says(&["missing shard"]);
    flip(&a.join("manifest.json"), 30);
    segpack!["diff", &a, &a].exits(3).says(&["manifest.json"]);
}
