//! What an export says of where it comes from, and what other runtimes need of its configuration.

use std::fs;
use std::path::{Path, PathBuf};

use segpack_manifests::Pack;
use serde_json::{Value, json};

use super::targets::json_of;
use crate::support::checkpoint::fixtures;
use crate::support::cli::{FindingKind, packed, segpack};
use crate::support::folders::temp;
use crate::support::tiny::{Qwen3Moe, Tiny, tiny_full};

/// Keys without which mistral.rs 0.9.5 and candle refuse a `qwen3_moe` configuration: the fields of
/// their `Config` structs that have no default.
const REQUIRED: [&str; 22] = [
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_theta",
    "sliding_window",
    "max_window_layers",
    "use_sliding_window",
    "tie_word_embeddings",
    "attention_bias",
    "moe_intermediate_size",
    "num_experts",
    "num_experts_per_tok",
    "mlp_only_layers",
    "decoder_sparse_step",
    "norm_topk_prob",
];

/// `__metadata__` of a safetensors file.
fn metadata(path: &Path) -> Value {
    let bytes = fs::read(path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    header["__metadata__"].clone()
}

fn manifest_sha256(pack: &Path) -> String {
    Pack::open(pack).unwrap().manifest_sha256().to_string()
}

#[test]
fn the_configuration_has_every_key_that_mistral_rs_and_candle_demand() {
    let folder = temp();
    let mut plain = Tiny::qwen3_moe(Qwen3Moe::default());
    let config = plain.config.as_object_mut().unwrap();
    // transformers leaves out what is the class's default
    for key in ["max_window_layers", "use_sliding_window"] {
        config.remove(key);
    }
    let plain = plain.write(&folder.path().join("plain"));
    for (number, checkpoint) in [tiny_full(), plain].iter().enumerate() {
        let pack = packed(checkpoint, &folder.path().join(number.to_string()));
        let out = folder.path().join(format!("out{number}"));
        segpack!["export", &pack, "--to", "qwen3-moe", "-o", &out].ok();
        let config = json_of(&out.join("config.json"));
        for key in REQUIRED {
            assert!(config.get(key).is_some(), "{checkpoint:?} {key}");
        }
        assert_eq!(config["max_window_layers"], config["num_hidden_layers"]);
    }
}

#[test]
fn every_file_of_weights_names_the_pack_and_whose_share_it_is() {
    let folder = temp();
    let pack = packed(&tiny_full(), folder.path());
    let identity = manifest_sha256(&pack);
    for target in ["hf", "qwen3-moe"] {
        let out = folder.path().join(target);
        segpack![
            "export",
            &pack,
            "--to",
            target,
            "-o",
            &out,
            "--max-shard-size",
            "200kB"
        ]
        .ok();
        let shards = shards_of(&out);
        assert!(shards.len() > 1, "{target}");
        for shard in shards {
            let wanted = json!({"format": "pt", "segpack.manifest_sha256": identity});
            assert_eq!(metadata(&shard), wanted, "{shard:?}");
        }
    }
    let out = folder.path().join("share");
    segpack![
        "export",
        &pack,
        "--to",
        "qwen3-moe",
        "-o",
        &out,
        "--expert-parallel",
        "1/3"
    ]
    .ok();
    for shard in shards_of(&out) {
        let metadata = metadata(&shard);
        let rank = &metadata["segpack.expert_parallel_rank"];
        let ranks = &metadata["segpack.expert_parallel_ranks"];
        assert_eq!((rank, ranks), (&json!("1"), &json!("3")));
        assert_eq!(metadata["segpack.manifest_sha256"], identity);
    }
    let out = folder.path().join("one.safetensors");
    segpack!["export", &pack, "*norm*", "--to", "safetensors", "-o", &out].ok();
    assert_eq!(metadata(&out)["segpack.manifest_sha256"], identity);
    let out = folder.path().join("text.gguf");
    segpack!["export", &pack, "--to", "gguf", "-o", &out].ok();
    let bytes = fs::read(&out).unwrap();
    // key, type 8 (text), length, text: docs/gguf.md of ggml
    let mut wanted = b"segpack.manifest_sha256\x08\0\0\0".to_vec();
    wanted.extend(64_u64.to_le_bytes());
    wanted.extend(identity.as_bytes());
    assert!(bytes.windows(wanted.len()).any(|w| w == wanted));
}

fn shards_of(folder: &Path) -> Vec<PathBuf> {
    let paths = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path());
    paths
        .filter(|p| p.extension().is_some_and(|e| e == "safetensors"))
        .collect()
}

/// A trace of tiny-full as a recorder writes it that loaded an export of this pack: other files, and
/// the pack's identity.
fn trace_of_export(folder: &Path, identity: &str) -> PathBuf {
    let trace = fixtures().join("traces/tiny-full.float32.safetensors");
    let mut document = json_of(&trace.with_extension("json"));
    document["checkpoint"] = json!({
        "config.json": {"size": 7, "sha256": null}, "model.safetensors": {"size": 9, "sha256": null},
    });
    document["exported_from"] = json!(identity);
    document["trace"] = json!("t.safetensors");
    fs::copy(&trace, folder.join("t.safetensors")).unwrap();
    fs::write(folder.join("t.json"), document.to_string()).unwrap();
    folder.join("t.safetensors")
}

#[test]
fn a_trace_of_an_export_belongs_to_its_pack_and_to_no_other() {
    let folder = temp();
    let pack = packed(&tiny_full(), folder.path());
    let trace = trace_of_export(folder.path(), &manifest_sha256(&pack));
    let printed = segpack!["validate", &pack, "--reference", &trace].ok();
    let words = "recorded from an export of this pack";
    assert!(printed.text().contains(words), "{printed}");
    let report = segpack!["validate", &pack, "--reference", &trace, "--json"].ok();
    assert_eq!(report.json()["is_of_export"], true);

    let trace = trace_of_export(folder.path(), &"0".repeat(64));
    let run = segpack!["validate", &pack, "--reference", &trace, "--json"].exits(3);
    assert_eq!(run.json()["verdict"], "foreign");
    let [finding] = &run.findings()[..] else {
        panic!("{run}")
    };
    assert_eq!(finding.kind, FindingKind::ForeignTrace);
    assert_eq!(
        finding.wanted.as_deref(),
        Some(format!("{}, this pack's", manifest_sha256(&pack)).as_str())
    );
}

#[test]
fn biases_that_runtimes_leave_out_are_named_with_their_versions() {
    let folder = temp();
    let with_biases = Tiny::qwen3_moe(Qwen3Moe::default()).write(&folder.path().join("biases"));
    for (number, (checkpoint, has_bias)) in [(tiny_full(), false), (with_biases, true)]
        .iter()
        .enumerate()
    {
        let pack = packed(checkpoint, &folder.path().join(number.to_string()));
        let out = folder.path().join(format!("out{number}"));
        let printed = segpack!["export", &pack, "--to", "qwen3-moe", "-o", &out].ok();
        let is_said = printed.text().contains("vLLM 0.32 leaves out the biases");
        assert_eq!(is_said, *has_bias, "{printed}");
    }
}
