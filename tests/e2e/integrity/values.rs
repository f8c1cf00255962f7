//! `verify --values`: statistics of values, and what no trained tensor looks like.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::support::cli::{FindingKind, Run, segpack};
use crate::support::damage::flip;
use crate::support::folders::temp;
use crate::support::packs::pack_into;
use crate::support::tiny::{Qwen3Moe, Tensor, Tiny, bf16_bytes, tiny_full, tiny_text};

fn verify(pack: &Path) -> Run {
    segpack!["verify", pack, "--values", "--json"]
}

fn pack(tiny: &Tiny, folder: &Path, codec: &str) -> PathBuf {
    let checkpoint = folder.join("checkpoint");
    tiny.write(&checkpoint);
    let out = folder.join(codec);
    segpack!["pack", &checkpoint, "-o", &out, "--codec", codec].ok();
    out
}

fn odd(run: &Run) -> Vec<(FindingKind, String)> {
    let findings = run.findings().into_iter();
    findings
        .map(|f| (f.kind, f.tensor.unwrap_or_default()))
        .collect()
}

#[test]
fn official_and_made_up_checkpoints_give_no_alarm() {
    let folder = temp();
    for checkpoint in [tiny_full(), tiny_text()] {
        let out = folder.path().join("pack");
        pack_into(&checkpoint, &out, &[]);
        let run = verify(&out).ok();
        assert_eq!(odd(&run), [], "{run}");
    }
    let made_up = Tiny::qwen3_moe(Qwen3Moe::default());
    for tiny in [
        made_up.clone(),
        made_up.clone().fp8([16, 16], &[]),
        made_up.converted("F32"),
    ] {
        let inner = temp();
        let run = verify(&pack(&tiny, inner.path(), "raw")).ok();
        assert_eq!(odd(&run), [], "{run}");
    }
}

#[test]
fn statistics_are_the_same_from_every_codec_and_at_any_number_of_threads() {
    let folder = temp();
    let mut reports = Vec::new();
    for codec in ["raw", "zstd", "bf16-rans"] {
        let out = folder.path().join(codec);
        pack_into(&tiny_full(), &out, &["--codec", codec]);
        for jobs in ["1", "7"] {
            let run = segpack!["verify", &out, "--values", "--json", "--jobs", jobs];
            reports.push(run.ok().json()["values"].clone());
        }
    }
    assert_eq!(reports[0]["tensors"].as_array().unwrap().len(), 414);
    for report in &reports[1..] {
        assert_eq!(*report, reports[0]);
    }
}

#[test]
fn numbers_are_right() {
    let folder = temp();
    let mut tiny = Tiny::qwen3_moe(Qwen3Moe::default());
    let name = "model.norm.weight";
    let values = [1.0, -2.0, 0.0, f64::NAN, f64::INFINITY];
    let bytes = values.iter().chain([&4.0; 43]).flat_map(|v| bf16_bytes(*v));
    tiny.tensor(name).bytes = bytes.collect();
    let run = verify(&pack(&tiny, folder.path(), "raw")).ok();
    let report = run.json();
    assert_eq!(report["values"]["unknown"], serde_json::json!([]));
    let all = report["values"]["tensors"].as_array().unwrap();
    let seen: &Value = all.iter().find(|t| t["name"] == name).unwrap();
    for (key, wanted) in [("values", 48), ("nan", 1), ("infinite", 1), ("zero", 1)] {
        assert_eq!(seen[key], wanted, "{key}");
    }
    assert_eq!(
        (seen["min"].as_f64(), seen["max"].as_f64()),
        (Some(-2.0), Some(4.0))
    );
    let mean = (43.0 * 4.0 - 1.0) / 46.0;
    assert!((seen["mean"].as_f64().unwrap() - mean).abs() < 1e-12);
    let squares = 43.0 * 16.0 + 1.0 + 4.0;
    let std = (squares / 46.0 - mean * mean).sqrt();
    assert!((seen["std"].as_f64().unwrap() - std).abs() < 1e-12);
    assert_eq!(odd(&run), [(FindingKind::NotFinite, name.to_owned())]);
}

#[test]
fn tensors_whose_values_are_not_known_are_listed() {
    let folder = temp();
    let mut tiny = Tiny::qwen3_moe(Qwen3Moe::default());
    let name = "mystery.weight";
    tiny.shards[0].1.push(Tensor {
        name: name.to_owned(),
        dtype: "F6_E2M3".to_owned(),
        shape: vec![4, 8],
        bytes: vec![1; 24],
    });
    let checkpoint = tiny.write(&folder.path().join("checkpoint"));
    let pack = folder.path().join("pack");
    segpack!["pack", &checkpoint, "-o", &pack, "--allow-unclassified"].ok();
    let report = verify(&pack).ok().json();
    assert_eq!(report["values"]["unknown"], serde_json::json!([name]));
}

/// What was done to a tensor, and what has to be found.
type Fault = (&'static str, FindingKind, fn(&mut Vec<u8>));

#[test]
fn every_fault_is_found_and_named() {
    const FAULTS: [Fault; 5] = [
        (
            "model.layers.2.mlp.experts.4.down_proj.weight",
            FindingKind::OutlierValues,
            |bytes| {
                (0..18)
                    .for_each(|i| bytes[i * 40..i * 40 + 2].copy_from_slice(&bf16_bytes(1000.0)));
            },
        ),
        (
            "model.layers.1.self_attn.o_proj.weight",
            FindingKind::OutlierValues,
            |bytes| bytes[100..102].copy_from_slice(&bf16_bytes(-3000.0)),
        ),
        (
            "model.layers.1.mlp.experts.0.up_proj.weight",
            FindingKind::ZeroRows,
            |bytes| bytes[96 * 3..96 * 5].fill(0),
        ),
        (
            "model.layers.3.mlp.gate.weight",
            FindingKind::AllZero,
            |bytes| bytes.fill(0),
        ),
        (
            "model.layers.0.self_attn.v_proj.weight",
            FindingKind::NotFinite,
            |bytes| bytes[2..4].copy_from_slice(&bf16_bytes(f64::NAN)),
        ),
    ];
    for codec in ["raw", "bf16-rans"] {
        for (name, kind, fault) in FAULTS {
            let folder = temp();
            let mut tiny = Tiny::qwen3_moe(Qwen3Moe::default());
            fault(&mut tiny.tensor(name).bytes);
            let out = pack(&tiny, folder.path(), codec);
            let run = verify(&out).ok();
            assert_eq!(odd(&run), [(kind, name.to_owned())], "{run}");
            let text = segpack!["verify", &out, "--values"].ok();
            assert!(
                text.text()
                    .contains(&format!("warning: {}", run.findings()[0])),
                "{text}"
            );
        }
    }
    // a copy of another expert
    let folder = temp();
    let mut tiny = Tiny::qwen3_moe(Qwen3Moe::default());
    let name = |expert: u8| format!("model.layers.1.mlp.experts.{expert}.gate_proj.weight");
    let copied = tiny.tensor(&name(2)).bytes.clone();
    tiny.tensor(&name(5)).bytes = copied;
    let out = pack(&tiny, folder.path(), "zstd");
    assert_eq!(
        odd(&verify(&out).ok()),
        [(FindingKind::EqualTensors, name(5))]
    );
    segpack!["verify", &out].ok();

    // damage is an error as ever
    flip(&out.join("packs/text.safetensors"), -5000);
    verify(&out).exits(3);
    segpack!["verify", &out, "--values", "--quick"].exits(2);
}

#[test]
fn odd_tensors_do_not_hide_each_other() {
    let folder = temp();
    let size = Qwen3Moe {
        layers: 6,
        ..Qwen3Moe::default()
    };
    let mut tiny = Tiny::qwen3_moe(size);
    // outliers of its own in one, of its peers in another
    let (own, of_peers) = (
        "model.layers.2.self_attn.o_proj.weight",
        "model.layers.4.input_layernorm.weight",
    );
    tiny.tensor(own).bytes[100..102].copy_from_slice(&bf16_bytes(-3000.0));
    let large = bf16_bytes(30_000.0).into_iter().cycle();
    let bytes = &mut tiny.tensor(of_peers).bytes;
    *bytes = large.take(bytes.len()).collect();
    // tensors of zeros say nothing about the only other one
    let zeros = (0..5).map(|layer| format!("model.layers.{layer}.self_attn.q_norm.weight"));
    let zeros: Vec<String> = zeros.collect();
    for name in &zeros {
        tiny.tensor(name).bytes.fill(0);
    }
    let run = verify(&pack(&tiny, folder.path(), "raw")).ok();
    let mut wanted: Vec<_> = zeros
        .into_iter()
        .map(|n| (FindingKind::AllZero, n))
        .collect();
    wanted.extend([own, of_peers].map(|n| (FindingKind::OutlierValues, n.to_owned())));
    let mut found = odd(&run);
    found.sort();
    wanted.sort();
    assert_eq!(found, wanted, "{run}");
}
