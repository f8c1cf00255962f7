//! Traces of the official classes of other families than Qwen3-MoE's, each recorded of a tiny
//! checkpoint (`fixtures/decoders`).

use std::fs;
use std::path::{Path, PathBuf};

use segpack_formats::io::CancelToken;
use segpack_runtime_min::ops::{Attending, Compute, CpuOps, Heads, Ops, ScalarOps};
use serde_json::{Value, json};

use super::traces::{bent, report, trace_of};
use crate::support::checkpoint::fixtures;
use crate::support::cli::{packed, segpack};
use crate::support::folders::temp;
use crate::support::packs::pack_into;

/// Families that are run beside Qwen3's.
const FAMILIES: [&str; 10] = [
    "mixtral",
    "olmoe",
    "qwen2_moe",
    "qwen3_vl_moe",
    "glm4_moe",
    "dots1",
    "hunyuan_v1_moe",
    "ernie4_5_moe",
    "granitemoe",
    "gpt_oss",
];

pub(super) fn checkpoint_of(family: &str) -> PathBuf {
    fixtures().join("decoders").join(family)
}

/// The configuration of a family's checkpoint with another value, and its tensors.
fn changed(family: &str, folder: &Path, key: &str, value: Value) -> PathBuf {
    let out = folder.join(family);
    fs::create_dir(&out).unwrap();
    let from = checkpoint_of(family);
    fs::copy(
        from.join("model.safetensors"),
        out.join("model.safetensors"),
    )
    .unwrap();
    let mut config: Value =
        serde_json::from_slice(&fs::read(from.join("config.json")).unwrap()).unwrap();
    config[key] = value;
    fs::write(out.join("config.json"), config.to_string()).unwrap();
    out
}

/// The trace, which does not say of which checkpoint it is.
pub(super) fn of_any_checkpoint(family: &str, folder: &Path) -> PathBuf {
    bent(&format!("{family}.float32"), folder, |_, document| {
        document["checkpoint"] = json!({});
    })
}

pub(super) fn packed_as(checkpoint: &Path, folder: &Path, codec: &str) -> PathBuf {
    let pack = folder.join(codec);
    pack_into(checkpoint, &pack, &["--codec", codec, "--no-sums"]);
    pack
}

/// A checkpoint of the fixtures is inside the gate of its official class, and not a bit depends on
/// how the pack stores its weights, nor on what is kept in memory.
pub(super) fn assert_inside_however_packed(name: &str) {
    let trace = trace_of(&format!("{name}.float32"));
    let mut seen: Vec<Value> = Vec::new();
    for codec in ["raw", "bf16-rans"] {
        let folder = temp();
        let pack = packed_as(&checkpoint_of(name), folder.path(), codec);
        let all = report(&pack, &trace, 0);
        assert_eq!(all["verdict"], "inside", "{name} {codec}: {all}");
        assert_eq!(all["not_compared"], json!([]), "{name}");
        let one = segpack![
            "validate",
            &pack,
            "--reference",
            &trace,
            "--expert-cache",
            "1",
            "--json"
        ];
        seen.extend([all["values"].clone(), one.ok().json()["values"].clone()]);
    }
    assert!(seen.windows(2).all(|two| two[0] == two[1]), "{name}");
}

#[test]
fn every_family_that_is_run_is_inside_the_gate_of_its_official_class() {
    for family in FAMILIES {
        assert_inside_however_packed(family);
    }
}

/// Each value is one that the configuration of the official class could have, and changes what it
/// computes: it is seen in the trace.
#[test]
fn a_switch_that_is_read_otherwise_is_outside_the_gate() {
    for (family, key, value) in [
        ("mixtral", "sliding_window", Value::Null),
        ("mixtral", "rope_theta", json!(1e4)),
        ("mixtral", "rms_norm_eps", json!(1e-2)),
        ("olmoe", "norm_topk_prob", json!(true)),
        ("qwen2_moe", "norm_topk_prob", json!(true)),
        ("glm4_moe", "partial_rotary_factor", json!(1.0)),
        ("glm4_moe", "n_group", json!(1)),
        ("glm4_moe", "routed_scaling_factor", json!(1.0)),
        ("dots1", "norm_topk_prob", json!(false)),
        ("hunyuan_v1_moe", "rope_scaling", Value::Null),
        ("ernie4_5_moe", "moe_norm_min", json!(1.0)),
        ("granitemoe", "embedding_multiplier", json!(1.0)),
        ("granitemoe", "residual_multiplier", json!(1.0)),
        ("granitemoe", "attention_multiplier", json!(1.0)),
        ("granitemoe", "logits_scaling", json!(1.0)),
        ("gpt_oss", "sliding_window", json!(7)),
        ("gpt_oss", "rope_scaling", json!({"rope_type": "default"})),
        ("gpt_oss", "swiglu_limit", json!(0.5)),
    ] {
        let folder = temp();
        let checkpoint = changed(family, folder.path(), key, value);
        let pack = packed(&checkpoint, folder.path());
        let trace = of_any_checkpoint(family, folder.path());
        let run = segpack!["validate", &pack, "--reference", trace, "--json", "-q"].exits(3);
        assert_eq!(run.json()["verdict"], "outside", "{family} {key}");
    }
}

#[test]
fn what_a_family_could_ask_for_and_is_not_computed_is_refused_by_name() {
    for (family, key, value, reported) in [
        (
            "olmoe",
            "clip_qkv",
            json!(8.0),
            "clip_qkv is 8.0, wanted null",
        ),
        (
            "mixtral",
            "hidden_act",
            json!("gelu"),
            "hidden_act is \"gelu\"",
        ),
        (
            "mixtral",
            "rope_scaling",
            json!({"rope_type": "llama3", "factor": 8.0}),
            "rope_scaling.rope_type is \"llama3\", wanted \"default\" or \"yarn\"",
        ),
        (
            "qwen2_moe",
            "use_sliding_window",
            json!(true),
            "use_sliding_window is true, wanted false",
        ),
        (
            "mixtral",
            "num_experts_per_tok",
            json!(6),
            "from 1 to the 5 experts",
        ),
    ] {
        let folder = temp();
        let checkpoint = changed(family, folder.path(), key, value);
        let pack = packed(&checkpoint, folder.path());
        let run = segpack!["run", &pack, "--prompt-ids", "1,2", "--max-new-tokens", "1"];
        run.exits(3).says(&[reported]);
    }
}

#[test]
fn other_decoders_than_qwen3_moes_are_refused_where_only_that_is_known() {
    let folder = temp();
    let checkpoint = checkpoint_of("mixtral");
    let pack = packed(&checkpoint, folder.path());
    for (target, out, why) in [
        ("qwen3-moe", "causal", "and mixtral does not"),
        (
            "gguf",
            "mixtral.gguf",
            "the last 6 positions (sliding_window)",
        ),
    ] {
        let out = folder.path().join(out);
        let run = segpack!["export", &pack, "--to", target, "-o", out];
        run.exits(3).says(&[why]);
    }
    let run = segpack!["validate", &pack, "--against", &checkpoint];
    run.exits(3).says(&["family \"mixtral\" is compared with"]);
}

/// `count` numbers from -1 to 1, others for each seed.
fn numbers(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        f32::from(u16::try_from(state >> 16).unwrap()) / 32_768.0 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// Queries of the last tokens attend to all positions: one pass, and one behind the other.
#[test]
fn windows_and_sinks_are_the_same_in_plain_loops_and_however_tokens_are_cut() {
    let heads = Heads {
        query: 4,
        key_value: 2,
        width: 8,
    };
    let (row, kv_row, tokens) = (32, 16, 40);
    let sinks = numbers(4, 4);
    let [q, keys, values] =
        [(row, 1), (kv_row, 2), (kv_row, 3)].map(|(n, s)| numbers(n * tokens, s));
    let stop = CancelToken::default();
    for (window, sinks) in [
        (7, None),
        (7, Some(&sinks[..])),
        (usize::MAX, Some(&sinks[..])),
    ] {
        let how = Attending {
            window,
            sinks,
            ..Attending::to_all(heads)
        };
        let [mut plain, mut whole, mut parts] = [(); 3].map(|()| vec![0.0; row * tokens]);
        let scalar = ScalarOps::default();
        let cpu = CpuOps::new(Compute::F32);
        scalar
            .attend_until([&q, &keys, &values], heads, how, &mut plain, &stop)
            .unwrap();
        cpu.attend_until([&q, &keys, &values], heads, how, &mut whole, &stop)
            .unwrap();
        // the first part ends within the window, the second begins there
        for (from, to) in [(0, 5), (5, 13), (13, 14), (14, 40)] {
            let (seen, rows) = (to * kv_row, from * row..to * row);
            let qkv = [&q[rows.clone()], &keys[..seen], &values[..seen]];
            cpu.attend_until(qkv, heads, how, &mut parts[rows], &stop)
                .unwrap();
        }
        assert_eq!(whole, parts, "{window} {sinks:?}");
        let far = plain
            .iter()
            .zip(&whole)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f32::max);
        assert!(far < 1e-5, "{window} {sinks:?}: {far}");
    }
}
