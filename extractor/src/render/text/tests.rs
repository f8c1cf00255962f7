//! Fixed documents and the text that they become, word for word: `tests/snapshots/text-*.snap`.
//! `INSTA_UPDATE=always` writes the snapshots anew.

use segpack_manifests::documents::{RunSummary, RunToken};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// Compares with a snapshot.
fn assert_text(name: &str, text: &str) {
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path("../../../../tests/snapshots");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| insta::assert_snapshot!(format!("text-{name}"), text));
}

/// A document, from its keys and the two that all documents have.
fn document<T: DeserializeOwned>(mut keys: Value) -> T {
    keys["format_version"] = json!("1.0");
    keys["generator"] = json!("segpack");
    serde_json::from_value(keys).unwrap()
}

fn run() -> Value {
    json!({
        "device": "cpu", "prompt_tokens": 10, "prompt_ids": [1, 2, 3], "ids": [4, 5, 6, 7],
        "text": "four", "stop_reason": "max_new_tokens", "notes": [],
        "time_to_first_token": 2.5, "generation_seconds": 1.5,
        "bytes_read": 1_234_567_890, "expert_hits": 1027, "expert_misses": 801, "expert_slots": 24,
        "dense_resident": true, "peak_rss": 5_900_000_000_u64,
        "rank": {
            "text": " Paris", "tokens": 2, "rank": 3,
            "first": {"id": 12095, "text": " Par", "logit": 17.25, "probability": 0.125}
        },
        "costs": {
            "bytes_direct": 1_200_000_000, "bytes_cached": 34_567_890, "bytes_decoded": 0,
            "bytes_copied": 0, "bytes_read_per_token": 37_748_736.0, "forward": 3.9,
            "waiting": 1.4, "reading": 5.25, "checking": 0.5, "decoding": 0.0
        },
        "experts": [
            {"layer": 0, "hits": 3, "misses": 1, "uses": [0, 1, 3, 0]},
            {"layer": 11, "hits": 0, "misses": 4, "uses": [0, 2, 0, 2]}
        ]
    })
}

#[test]
fn figures_of_a_run() {
    let summary: RunSummary = document(run());
    let rank = super::rank(summary.rank.as_ref().unwrap());
    let experts = super::experts(&summary.experts);
    assert_text("run", &(rank + &super::figures(&summary) + &experts));
}

#[test]
fn figures_of_a_run_on_a_gpu_without_a_second_token() {
    let mut keys = run();
    keys["device"] = json!("cuda:0 NVIDIA H100");
    keys["ids"] = json!([4]);
    keys["stop_reason"] = json!("stop_id");
    keys["dense_resident"] = json!(false);
    keys["peak_rss"] = Value::Null;
    keys["costs"]["bytes_direct"] = json!(0);
    keys["costs"]["bytes_copied"] = json!(3_100_000);
    assert_text("run-gpu", &super::figures(&document(keys)));
}

#[test]
fn candidates_of_a_token() {
    let token: RunToken = serde_json::from_value(json!({
        "index": 0, "id": 279, "text": " is", "stop": false,
        "top": [
            {"id": 279, "text": " is", "logit": 18.26, "probability": 0.75},
            {"id": 105_024, "text": "\n", "logit": -3.5, "probability": 0.0001}
        ]
    }))
    .unwrap();
    assert_text("candidates", &super::candidates(&token));
}

fn value(quantity: &str, layer: Option<u32>, max_abs: f64, wrong: bool) -> Value {
    json!({
        "quantity": quantity, "layer": layer, "values": 100, "not_finite": 0, "max_abs": max_abs,
        "mean_abs": max_abs / 10.0, "relative": max_abs / 2.0, "cosine": 0.999_999_9,
        "worst": [0, 3], "wrong": wrong
    })
}

fn choice(choice: &str, layer: Option<u32>, excused: u64, first: Option<[u64; 2]>) -> Value {
    json!({
        "choice": choice, "layer": layer, "compared": 1500,
        "equal": 1500 - excused - u64::from(first.is_some()), "excused": excused, "first": first
    })
}

fn validation() -> Value {
    let prompt = json!({
        "tokens": 5, "generated": 24, "bf16_stable": true, "max_abs_logits": 2e-5,
        "top_tokens_differ": 0, "greedy_tokens_differ": 0, "expert_sets_differ": 0
    });
    json!({
        "reference": "trace", "reference_name": "tiny.float32.json", "level": "full",
        "reference_dtype": null, "compute": "float32", "ok": true, "verdict": "inside",
        "tolerance": 3e-4, "threads": 1, "memory": null, "device": "cpu",
        "manifest_sha256": "0".repeat(64), "layers": 2,
        "prompts": [prompt, prompt],
        "values": [
            value("embedding", None, 0.0, false),
            value("router_logits", Some(0), 1e-6, false),
            value("router_logits", Some(1), 2e-6, false),
            value("logits", None, 2e-5, false)
        ],
        "choices": [
            choice("expert_sets", Some(0), 2, None),
            choice("expert_sets", Some(1), 0, None),
            choice("top_tokens", None, 0, None)
        ],
        "not_compared": [], "first_wrong": null, "findings": []
    })
}

#[test]
fn a_validation_within_tolerance() {
    assert_text(
        "validate",
        &super::validate(&document(validation()), "omni.segpack"),
    );
}

#[test]
fn a_validation_outside_tolerance() {
    let mut keys = validation();
    (keys["ok"], keys["verdict"]) = (json!(false), json!("outside"));
    keys["values"][2] = value("router_logits", Some(1), 0.3, true);
    keys["values"][3]["not_finite"] = json!(1234);
    keys["choices"][1] = choice("expert_sets", Some(1), 0, Some([1, 4]));
    keys["first_wrong"] = json!({"quantity": "router_logits", "layer": 1, "relative": 0.15});
    keys["not_compared"] = json!(["attention output", "final norm"]);
    assert_text(
        "validate-outside",
        &super::validate(&document(keys), "omni.segpack"),
    );
}

fn rate(tokens_per_second: f64, share_of_limit: f64) -> Value {
    json!({
        "tokens_per_second": tokens_per_second, "share_of_limit": share_of_limit,
        "share_of_highest_limit": share_of_limit - 0.25
    })
}

fn resident(threads: u64) -> Value {
    json!({
        "threads": threads, "decode": rate(11.25, 0.89), "bytes_per_token": 6_100_000_000_u64,
        "prefill": [{"tokens": 128, "rate": rate(151.5, 0.58)}]
    })
}

#[test]
fn a_bench() {
    let keys = json!({
        "instruction_set": "avx512", "repeats": 3, "checked": true, "drive_rate": 2.9e9,
        "blake3_rate": 5.8e9,
        "limits": [
            {
                "threads": 1, "read_bandwidth": 12.5e9, "highest_read_bandwidth": 13e9,
                "fma_peak": 110e9, "highest_fma_peak": 112e9
            },
            {
                "threads": 16, "read_bandwidth": 68.75e9, "highest_read_bandwidth": 100e9,
                "fma_peak": 1530e9, "highest_fma_peak": 1550e9
            }
        ],
        "resident": [resident(1), resident(16)],
        "on_demand": [{
            "memory": 4_000_000_000_u64, "threads": 16, "expert_slots": 200,
            "dense_resident": true, "hit_rate": 0.125, "bytes_read_per_token": 2.4e9,
            "decode": rate(0.91, 0.93), "waiting": 0.87
        }],
        "forecast": {
            "layers": 48, "weights": 60_000_000_000_u64, "bytes_per_token": 6_100_000_000_u64,
            "least_memory": 1_500_000_000, "resident_tokens_per_second": 11.25,
            "budgets": [{
                "memory": 8_000_000_000_u64, "hit_rate": 0.0625, "bytes_read_per_token": 3.2e9,
                "tokens_per_second": 0.75
            }]
        }
    });
    assert_text("bench", &super::bench(&document(keys)));
}

#[test]
fn a_bench_of_a_gpu() {
    let keys = json!({
        "device": "cuda:0 NVIDIA H100", "compute": "bfloat16", "repeats": 3, "checked": true,
        "host_memory": null, "bytes_per_token": 6_100_000_000_u64, "operations_per_token": 6.1e9,
        "weights": 60_000_000_000_u64,
        "resident": {
            "load_seconds": 21.5, "decode_tokens_per_second": 151.5,
            "greedy_tokens_per_second": 160.25,
            "prefill": [{"tokens": 512, "tokens_per_second": 9000.5}]
        },
        "on_demand": [{
            "device_memory": 16_000_000_000_u64, "expert_slots": 1500, "dense_resident": true,
            "hit_rate": 0.25, "bytes_copied_per_token": 1.5e9, "bytes_read_per_token": 2e6,
            "decode_tokens_per_second": 12.5
        }]
    });
    assert_text("bench-gpu", &super::gpu_bench(&document(keys)));
}

fn gpu(number: u32, supported: bool) -> Value {
    json!({
        "number": number, "name": "NVIDIA H100", "compute_capability": "9.0",
        "multiprocessors": 132, "memory": 85_000_000_000_u64, "supported": supported
    })
}

#[test]
fn devices() {
    let keys = json!({
        "driver_cuda_version": "12.8", "problem": null,
        "devices": [gpu(0, true), gpu(1, false)], "auto": "cuda:0"
    });
    assert_text("devices", &super::devices(&document(keys)));
}

#[test]
fn a_source_that_resembles_a_published_checkpoint() {
    let keys = json!({
        "manifest_sha256": "0".repeat(64), "packs": 51, "resumed_packs": 1, "segments": 6293,
        "tensors": 28010, "tensor_bytes": 70_519_637_090_u64, "stored_bytes": 46_200_000_000_u64,
        "known": {
            "repo": "Qwen/Qwen3-Omni-30B-A3B-Instruct", "revision": "26291f793822fb6be9555850f06dfe95f2d7e695",
            "identical": false, "differs": ["config.json: SHA-256"], "not_compared": ["a", "b"]
        },
        "hub_digests_compared": 13, "warnings": []
    });
    assert_text("pack", &super::pack(&document(keys), "omni.segpack"));
}
