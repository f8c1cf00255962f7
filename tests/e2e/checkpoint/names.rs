//! Names, sizes and layers that are not those of `config.json`: one finding each, and how to go on.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::support::cli::{Finding, FindingKind, Run, packed, segpack};
use crate::support::damage::manifest;
use crate::support::folders::{assert_same, temp};
use crate::support::tiny::{Qwen3Moe, Tensor, Tiny};

const SIZE: Qwen3Moe = Qwen3Moe {
    layers: 3,
    experts: 6,
    hidden: 48,
    width: 20,
    shards: 2,
};

/// Experts that stay.
const LEFT: u64 = 4;

/// Experts 4 and 5 of each layer pruned, with their rows of the router; the configuration is as
/// before.
fn pruned() -> Tiny {
    let mut tiny = Tiny::qwen3_moe(SIZE);
    for (_, tensors) in &mut tiny.shards {
        let gone = [".experts.4.", ".experts.5."];
        tensors.retain(|t| !gone.iter().any(|part| t.name.contains(part)));
        for router in tensors
            .iter_mut()
            .filter(|t| t.name.ends_with("mlp.gate.weight"))
        {
            router.shape[0] = LEFT;
            router.bytes.truncate((LEFT * SIZE.hidden * 2) as usize);
        }
    }
    tiny
}

fn the_only(run: &Run) -> Finding {
    let mut findings = run.findings();
    assert_eq!(findings.len(), 1, "{run}");
    findings.remove(0)
}

fn generated(pack: &Path) -> Vec<Value> {
    let run = segpack![
        "run",
        pack,
        "--prompt-ids",
        "5,6,7",
        "--max-new-tokens",
        "5",
        "--json"
    ];
    let (tokens, _) = run.ok().tokens();
    tokens.iter().map(|t| t["id"].clone()).collect()
}

#[test]
fn pruned_experts_are_one_finding_and_a_corrected_configuration_goes_on() {
    let (folder, mut tiny) = (temp(), pruned());
    let at = |name: &str| folder.path().join(name);
    let checkpoint = tiny.write(&at("checkpoint"));
    let finding = the_only(&segpack!["scan", &checkpoint, "--json"].exits(3));
    assert_eq!(finding.kind, FindingKind::OtherSizes);
    let seen = finding.seen.unwrap();
    assert!(
        seen.contains("num_experts 6") && seen.contains("4 experts"),
        "{seen}"
    );
    segpack!["pack", &checkpoint, "-o", at("pack")]
        .exits(3)
        .says(&["--config"]);

    let mut config = tiny.config.clone();
    config["num_experts"] = json!(LEFT);
    fs::write(at("config.json"), config.to_string()).unwrap();
    segpack!["scan", &checkpoint, "--config", at("config.json")].ok();
    segpack![
        "pack",
        &checkpoint,
        "-o",
        at("pack"),
        "--config",
        at("config.json")
    ]
    .ok();
    assert_eq!(manifest(&at("pack"))["options"]["config"], config);
    segpack!["verify", at("pack"), "--against", &checkpoint].ok();
    segpack!["repack", at("pack"), "-o", at("coded"), "--codec", "zstd"].ok();
    segpack!["verify", at("coded")].ok();
    segpack!["unpack", at("coded"), "-o", at("back")].ok();
    assert_same(&at("back"), &checkpoint);
    // it runs as one whose own configuration is the corrected one
    tiny.config = config;
    let own = packed(&tiny.write(&at("corrected")), folder.path());
    assert_eq!(generated(&at("pack")), generated(&own));
}

/// Fourteen tensors are missing or misshaped for want of two experts: four more are a quarter of what
/// is left to explain, five are not.
#[test]
fn pruned_experts_do_not_hide_what_they_do_not_explain() {
    for (more, is_explained) in [(4, true), (5, false)] {
        let (folder, mut tiny) = (temp(), pruned());
        let norms = ["input_layernorm", "post_attention_layernorm"];
        let norms = norms.iter().flat_map(|norm| (0..3).map(move |n| (n, norm)));
        for (layer, norm) in norms.take(more) {
            tiny.remove(&format!("model.layers.{layer}.{norm}.weight"));
        }
        let run = segpack!["scan", tiny.write(folder.path()), "--json"].exits(3);
        let wanted = if is_explained { more + 1 } else { more + 14 };
        assert_eq!(run.findings().len(), wanted, "{run}");
    }
}

#[test]
fn routers_that_keep_the_rows_of_pruned_experts_do_not_hide_them() {
    let (folder, mut tiny) = (temp(), Tiny::qwen3_moe(SIZE));
    for (_, tensors) in &mut tiny.shards {
        tensors.retain(|t| !t.name.contains(".experts.5."));
    }
    let run = segpack!["scan", tiny.write(folder.path()), "--json"].exits(3);
    let findings = run.findings();
    assert!(
        findings
            .iter()
            .all(|f| f.kind == FindingKind::MissingTensor)
    );
    assert_eq!(findings.len(), 6); // two layers of experts, three matrices each
}

#[test]
fn names_of_another_family_are_one_finding_and_go_on_as_that_family() {
    let (folder, mut tiny) = (temp(), Tiny::qwen3_moe(SIZE).stacked());
    for tensor in tiny.tensors_mut() {
        tensor.name = tensor.name.replacen("model.", "model.language_model.", 1);
    }
    let at = |name: &str| folder.path().join(name);
    let checkpoint = tiny.write(&at("checkpoint"));
    let finding = the_only(&segpack!["scan", &checkpoint, "--json"].exits(3));
    assert_eq!(finding.kind, FindingKind::OtherNames);
    let seen = finding.seen.unwrap();
    for words in [
        "are those of qwen3_vl_moe",
        "config.json describes qwen3_moe",
    ] {
        assert!(seen.contains(words), "{seen}");
    }
    segpack!["pack", &checkpoint, "-o", at("pack")]
        .exits(3)
        .says(&["--as FAMILY"]);

    let inventory = segpack!["scan", &checkpoint, "--as", "qwen3_vl_moe", "--json"]
        .ok()
        .json();
    assert_eq!(inventory["audited"], json!(true));
    segpack![
        "pack",
        &checkpoint,
        "-o",
        at("pack"),
        "--as",
        "qwen3_vl_moe"
    ]
    .ok();
    assert_eq!(manifest(&at("pack"))["options"]["family"], "qwen3_vl_moe");
    segpack!["verify", at("pack"), "--against", &checkpoint].ok();
    segpack!["unpack", at("pack"), "-o", at("back")].ok();
    assert_same(&at("back"), &checkpoint);
    segpack!["scan", &checkpoint, "--as", "qwen9"]
        .exits(2)
        .says(&["qwen3_vl_moe"]);
}

#[test]
fn adapters_and_wrapped_models_of_peft_are_named_with_what_to_do() {
    let merge = "merge_and_unload";
    let (folder, mut wrapped) = (temp(), Tiny::qwen3_moe(SIZE));
    for tensor in wrapped.tensors_mut() {
        tensor.name = format!("base_model.model.{}", tensor.name);
    }
    let checkpoint = wrapped.write(&folder.path().join("wrapped"));
    let run = segpack!["scan", &checkpoint, "--json"]
        .exits(3)
        .says(&[merge]);
    let finding = run
        .findings()
        .into_iter()
        .find(|f| f.kind == FindingKind::Adapter);
    assert!(finding.unwrap().seen.unwrap().contains("base_model.model."));

    let name = "base_model.model.model.layers.0.self_attn.q_proj";
    let tensors =
        ["A", "B"].map(|part| Tensor::noise(&format!("{name}.lora_{part}.weight"), &[8, 8]));
    let adapter = Tiny {
        config: Value::Null,
        shards: vec![("adapter_model.safetensors".to_owned(), tensors.to_vec())],
        files: vec![("adapter_config.json".to_owned(), b"{}".to_vec())],
        index: false,
    };
    let checkpoint = adapter.write(&folder.path().join("adapter"));
    let run = segpack!["pack", &checkpoint, "-o", folder.path().join("pack")];
    run.exits(3)
        .says(&["2 of 2 tensors are parts of an adapter", merge]);
}
