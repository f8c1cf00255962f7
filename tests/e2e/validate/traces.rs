//! `segpack validate`: the official traces, trimmed and bent ones, and what changes to a checkpoint
//! do.

use std::fs;
use std::path::{Path, PathBuf};

use segpack_formats::io::CancelToken;
use segpack_manifests::Pack;
use segpack_manifests::PackReader;
use segpack_runtime_min::models::decoder::{Decoder, Logits, RunSettings};
use segpack_runtime_min::ops::{Compute, CpuOps};
use segpack_runtime_min::trace;
use segpack_runtime_min::trace::TraceRecorder;
use serde_json::{Map, Value, json};

use crate::support::checkpoint::fixtures;
use crate::support::cli::{FindingKind, Run, packed, segpack};
use crate::support::folders::temp;
use crate::support::tiny::{Qwen3Moe, Tensor, Tiny, shard_bytes, tensors_of, tiny_full, tiny_text};

pub(super) fn trace_of(name: &str) -> PathBuf {
    fixtures()
        .join("traces")
        .join(format!("{name}.safetensors"))
}

/// A trace with other tensors, another description.
pub(super) fn bent(
    name: &str,
    folder: &Path,
    bend: impl FnOnce(&mut Vec<Tensor>, &mut Value),
) -> PathBuf {
    let mut tensors = tensors_of(&fs::read(trace_of(name)).unwrap());
    let mut document =
        serde_json::from_slice(&fs::read(trace_of(name).with_extension("json")).unwrap()).unwrap();
    bend(&mut tensors, &mut document);
    let path = folder.join("bent.safetensors");
    fs::write(&path, shard_bytes(&tensors)).unwrap();
    fs::write(path.with_extension("json"), document.to_string()).unwrap();
    path
}

/// The report, which is what its schema says.
pub(super) fn report(pack: &Path, trace: &Path, status: i32) -> Value {
    let report = segpack!["validate", pack, "--reference", trace, "--json", "-q"]
        .exits(status)
        .json();
    let schema = fixtures().join("../../schemas/validate-report.schema.json");
    let schema: Value = serde_json::from_slice(&fs::read(schema).unwrap()).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    let errors: Vec<String> = validator
        .iter_errors(&report)
        .map(|e| e.to_string())
        .collect();
    assert!(errors.is_empty(), "{errors:#?}");
    report
}

#[test]
fn the_official_traces_are_inside_the_gate() {
    for (name, checkpoint) in [("tiny-text", tiny_text()), ("tiny-full", tiny_full())] {
        let folder = temp();
        let pack = packed(&checkpoint, folder.path());
        let strict = report(&pack, &trace_of(&format!("{name}.float32")), 0);
        assert_eq!(strict["verdict"], "inside");
        assert_eq!(
            (&strict["not_compared"], &strict["first_wrong"]),
            (&json!([]), &Value::Null)
        );
        let stable = report(
            &pack,
            &trace_of(&format!("{name}.bfloat16")).with_extension("json"),
            0,
        );
        assert_eq!(
            (&stable["verdict"], &stable["compute"]),
            (&json!("inside"), &json!("bfloat16"))
        );
        let direct = segpack!["validate", &pack, "--against", &checkpoint, "--json"]
            .ok()
            .json();
        assert_eq!(
            (&direct["verdict"], &direct["reference"]),
            (&json!("inside"), &json!("checkpoint"))
        );
        // the numbers do not depend on what is kept in memory
        let trace = trace_of(&format!("{name}.float32"));
        let one = segpack![
            "validate",
            &pack,
            "--reference",
            trace,
            "--expert-cache",
            "1",
            "--json"
        ]
        .ok();
        assert_eq!(one.json()["values"], strict["values"]);
    }
}

#[test]
fn the_table_and_the_verdict_are_for_people() {
    let folder = temp();
    let pack = packed(&tiny_full(), folder.path());
    let run = segpack![
        "validate",
        &pack,
        "--reference",
        trace_of("tiny-full.float32")
    ]
    .ok();
    for words in [
        "router probabilities",
        "expert sets",
        "greedy tokens",
        "ok, within tolerance",
    ] {
        assert!(run.text().contains(words), "{run}");
    }
    let memory = segpack![
        "validate",
        &pack,
        "--reference",
        trace_of("tiny-full.float32"),
        "--memory",
        "1MB"
    ];
    memory
        .exits(1)
        .says(&["memory budget of", "the minimum is"]);
}

#[test]
fn only_what_was_recorded_is_compared() {
    let folder = temp();
    let pack = packed(&tiny_text(), folder.path());
    let in_logits = |name: &str| {
        name.ends_with(".input_ids") || name.ends_with(".logits") || name.contains(".gen.")
    };
    let in_router = |name: &str| {
        in_logits(name)
            || ["router", "topk", "norm", "position_ids"]
                .iter()
                .any(|part| name.contains(part))
    };
    let missing = |level: &str, keep: &dyn Fn(&str) -> bool| {
        let trace = bent("tiny-text.float32", folder.path(), |tensors, document| {
            tensors.retain(|t| keep(&t.name));
            document["settings"]["level"] = json!(level);
        });
        let printed = segpack!["validate", &pack, "--reference", &trace].ok();
        assert!(printed.text().contains("not in the reference"), "{printed}");
        report(&pack, &trace, 0)["not_compared"]
            .as_array()
            .unwrap()
            .len()
    };
    // embedding, attention, MLP, hidden state
    assert_eq!(missing("router", &in_router), 4);
    // and three of the router, the final norm
    assert_eq!(
        missing("logits", &|name| in_logits(name) && !name.contains("norm")),
        8
    );
    // no tokens were generated
    let trace = bent("tiny-text.float32", folder.path(), |tensors, document| {
        tensors.retain(|t| !t.name.contains(".gen."));
        for prompt in document["prompts"].as_array_mut().unwrap() {
            prompt.as_object_mut().unwrap().remove("generated");
        }
    });
    assert_eq!(
        report(&pack, &trace, 0)["not_compared"],
        json!(["greedy tokens"])
    );
}

#[test]
fn a_trace_of_another_checkpoint_is_foreign() {
    let folder = temp();
    let pack = packed(&tiny_full(), folder.path());
    let trace = bent("tiny-full.float32", folder.path(), |_, document| {
        document["checkpoint"]["model-00002-of-00004.safetensors"]["sha256"] =
            json!("0".repeat(64));
    });
    let run = segpack!["validate", &pack, "--reference", &trace, "--json"].exits(3);
    assert_eq!(run.json()["verdict"], "foreign");
    let [finding] = &run.findings()[..] else {
        panic!("{run}")
    };
    assert_eq!(finding.kind, FindingKind::ForeignTrace);
    assert_eq!(
        finding.file.as_deref(),
        Some("model-00002-of-00004.safetensors")
    );
    segpack!["validate", &pack, "--reference", &trace, "--no-digests"].ok();
    // of another model altogether
    let run = segpack![
        "validate",
        &pack,
        "--reference",
        trace_of("tiny-text.float32")
    ]
    .exits(3);
    assert!(run.text().contains("another checkpoint"), "{run}");
    segpack![
        "validate",
        &pack,
        "--reference",
        trace_of("tiny-text.float32"),
        "--no-digests"
    ]
    .exits(3);
    let other = segpack!["validate", &pack, "--against", tiny_text()].exits(3);
    assert!(other.text().contains("another checkpoint"), "{other}");
    // one that does not say
    let trace = bent("tiny-full.float32", folder.path(), |_, document| {
        document["checkpoint"] = json!({});
    });
    let run = segpack!["validate", &pack, "--reference", &trace, "--json"].ok();
    assert_eq!(run.findings()[0].kind, FindingKind::UnidentifiedTrace);
}

/// What a server would tell of an official trace: tokens, and log-probabilities of the best
/// `count`. One token is generated: of later steps the trace has not all logits.
fn as_from_a_server(
    folder: &Path,
    dtype: &str,
    bend: impl FnOnce(&mut [Told], &mut Value),
) -> PathBuf {
    bent("tiny-text.float32", folder, |tensors, document| {
        let vocab = 320;
        let floats = |t: &Tensor| -> Vec<f32> {
            t.bytes
                .as_chunks::<4>()
                .0
                .iter()
                .map(|b| f32::from_le_bytes(*b))
                .collect()
        };
        let mut reported: Vec<Told> = Vec::new();
        for (i, prompt) in document["prompts"]
            .as_array_mut()
            .unwrap()
            .iter_mut()
            .enumerate()
        {
            prompt["generated"] = json!([prompt["generated"][0]]);
            let logits = tensors
                .iter()
                .find(|t| t.name == format!("p{i:02}.logits"))
                .unwrap();
            let rows = floats(logits).chunks_exact(vocab).map(best_of).collect();
            reported.push(Told {
                rows,
                next: prompt["generated"][0].as_i64().unwrap(),
            });
        }
        document["settings"] =
            json!({"dtype": dtype, "level": "logits", "values": "log_probabilities"});
        bend(&mut reported, document);
        tensors.retain(|t| t.name.ends_with(".input_ids"));
        for (i, reported) in reported.iter().enumerate() {
            tensors.push(reported.next_tensor(i));
            let (last, before) = reported.rows.split_last().unwrap();
            tensors.extend(ranked_tensors(
                &format!("p{i:02}.gen"),
                std::slice::from_ref(last),
            ));
            tensors.extend(ranked_tensors(&format!("p{i:02}.prompt"), before));
        }
    })
}

/// What a server tells of a prompt: of every position, the best tokens with their
/// log-probabilities.
struct Told {
    rows: Vec<Vec<(i64, f32)>>,
    next: i64,
}

impl Told {
    fn next_tensor(&self, prompt: usize) -> Tensor {
        let name = format!("p{prompt:02}.gen.ids");
        Tensor {
            name,
            dtype: "I64".to_owned(),
            shape: vec![1],
            bytes: self.next.to_le_bytes().to_vec(),
        }
    }
}

/// Five, by log-softmax.
fn best_of(logits: &[f32]) -> Vec<(i64, f32)> {
    let sum: f64 = logits.iter().map(|x| f64::from(*x).exp()).sum();
    let mut all: Vec<(i64, f32)> = (0..)
        .zip(logits)
        .map(|(id, x)| (id, (f64::from(*x) - sum.ln()) as f32))
        .collect();
    all.sort_by(|a, b| b.1.total_cmp(&a.1));
    all.truncate(5);
    all
}

fn ranked_tensors(kind: &str, rows: &[Vec<(i64, f32)>]) -> Vec<Tensor> {
    let tensor = |name: &str, dtype: &str, bytes: Vec<u8>| Tensor {
        name: format!("{kind}.{name}"),
        dtype: dtype.to_owned(),
        shape: vec![rows.len() as u64, 5],
        bytes,
    };
    vec![
        tensor(
            "top_ids",
            "I64",
            rows.iter()
                .flatten()
                .flat_map(|(id, _)| id.to_le_bytes())
                .collect(),
        ),
        tensor(
            "top_logprobs",
            "F32",
            rows.iter()
                .flatten()
                .flat_map(|(_, x)| x.to_le_bytes())
                .collect(),
        ),
    ]
}

#[test]
fn tokens_and_log_probabilities_of_a_server_are_judged() {
    let folder = temp();
    let pack = packed(&tiny_text(), folder.path());
    let trace = as_from_a_server(folder.path(), "float32", |_, _| {});
    let inside = report(&pack, &trace, 0);
    assert_eq!(
        (&inside["verdict"], &inside["reference_dtype"]),
        (&json!("inside"), &json!("float32"))
    );
    assert_eq!(inside["tolerance"], 6e-4);
    let values = inside["values"].as_array().unwrap();
    assert!(
        values
            .iter()
            .all(|row| row["quantity"] == "log_probabilities"),
        "{inside}"
    );
    let choices: Vec<_> = inside["choices"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| &row["choice"])
        .collect();
    assert_eq!(choices, ["top_tokens", "greedy_tokens", "token_ranks"]);
    let missing = inside["not_compared"].as_array().unwrap();
    assert!(
        missing.contains(&json!("logits")) && missing.contains(&json!("expert sets")),
        "{inside}"
    );
    let run = segpack!["validate", &pack, "--reference", &trace].ok();
    assert!(
        run.text()
            .contains("(float32, 5 prompts, log-probabilities within 6.0e-4)"),
        "{run}"
    );

    type Bend = fn(&mut [Told], &mut Value);
    let outside = |what: &str, bend: Bend| {
        let trace = as_from_a_server(folder.path(), "float32", bend);
        let outside = report(&pack, &trace, 3);
        assert_eq!(outside["verdict"], "outside", "{what}");
        outside["findings"].to_string()
    };
    let seen = outside("another token", |reported, document| {
        reported[0].next = (reported[0].next + 1) % 320;
        document["prompts"][0]["generated"] = json!([reported[0].next]);
    });
    assert!(
        seen.contains("next token") && !seen.contains("in their order"),
        "{seen}"
    );
    let seen = outside(
        "two ranks exchanged, with the same log-probabilities",
        |reported, _| {
            let row = reported[1]
                .rows
                .iter_mut()
                .find(|row| row[1].1 - row[2].1 > 0.1)
                .unwrap();
            (row[1].0, row[2].0) = (row[2].0, row[1].0);
        },
    );
    assert!(
        seen.contains("best tokens in their order") && seen.contains("log-probabilities differ"),
        "{seen}"
    );
    let seen = outside("a token that is not among the best", |reported, _| {
        let row = &mut reported[2].rows[0];
        row[3].0 = (0..)
            .find(|id| row.iter().all(|(other, _)| other != id))
            .unwrap();
    });
    assert!(seen.contains("best tokens in their order"), "{seen}");
    let seen = outside("a log-probability", |reported, _| {
        reported[3].rows[0][4].1 -= 2.5e-3;
    });
    assert!(
        seen.contains("log-probabilities differ by up to 2.") && !seen.contains("order"),
        "{seen}"
    );
    outside("a token that the vocabulary has not", |reported, _| {
        reported[0].rows[0][4].0 = 400;
    });
    // a token that the server did not name is not compared, and a row may be short
    let trace = as_from_a_server(folder.path(), "float32", |reported, _| {
        reported[0].rows[0][1].0 = -1;
        reported[1].rows[0][4] = (-1, f32::NAN);
    });
    assert_eq!(report(&pack, &trace, 0)["verdict"], "inside");
    // tokens alone
    let trace = bent("tiny-text.float32", folder.path(), |tensors, document| {
        tensors.retain(|t| t.name.ends_with(".input_ids") || t.name.ends_with("gen.ids"));
        document["settings"] = json!({"dtype": "float32", "values": "log_probabilities"});
    });
    let alone = report(&pack, &trace, 0);
    assert_eq!(
        (&alone["verdict"], &alone["choices"][0]["compared"]),
        (&json!("inside"), &json!(5 * 24))
    );
    let trace = bent("tiny-text.float32", folder.path(), |tensors, document| {
        tensors.retain(|t| t.name.ends_with(".input_ids") || t.name.ends_with("gen.ids"));
        let ids = tensors
            .iter_mut()
            .find(|t| t.name == "p03.gen.ids")
            .unwrap();
        ids.bytes[..8].copy_from_slice(&5_u64.to_le_bytes());
        document["prompts"][3]["generated"][0] = json!(5);
        document["settings"] = json!({"dtype": "float32", "values": "log_probabilities"});
    });
    assert_eq!(report(&pack, &trace, 3)["verdict"], "outside");
}

/// Recorded from llama-cpp-python 0.3.36 by runtime-min/reference, of the tiny checkpoint with a
/// tokenizer for the purpose.
#[test]
fn a_trace_of_the_llama_cpp_server_is_inside_the_gate() {
    let folder = temp();
    let pack = packed(&tiny_text(), folder.path());
    let trace = trace_of("tiny-text.llama-cpp.float32");
    let run = segpack![
        "validate",
        &pack,
        "--reference",
        &trace,
        "--no-digests",
        "--json"
    ]
    .ok()
    .json();
    assert_eq!(
        (&run["verdict"], &run["choices"][1]["compared"]),
        (&json!("inside"), &json!(4 * 24))
    );
    assert!(
        run["values"][0]["max_abs"].as_f64().unwrap() < 1e-4,
        "{run}"
    );
    // the tokenizer was not packed
    assert_eq!(report(&pack, &trace, 3)["verdict"], "foreign");
}

#[test]
fn other_precisions_of_servers_are_judged_by_a_tolerance() {
    let folder = temp();
    let pack = packed(&tiny_text(), folder.path());
    let trace = as_from_a_server(folder.path(), "q8_0", |reported, _| {
        reported
            .iter_mut()
            .flat_map(|reported| &mut reported.rows)
            .flatten()
            .for_each(|(_, x)| *x -= 0.05);
    });
    let reported = report(&pack, &trace, 0);
    assert_eq!(
        (&reported["verdict"], &reported["tolerance"]),
        (&json!("not_judged"), &Value::Null)
    );
    assert!(
        reported["findings"][0]["seen"]
            .as_str()
            .unwrap()
            .contains("q8_0"),
        "{reported}"
    );
    assert!(
        reported["prompts"][0]["max_abs_logits"].as_f64().unwrap() > 0.04,
        "{reported}"
    );
    let judged = |tolerance: &str, status| {
        segpack![
            "validate",
            &pack,
            "--reference",
            &trace,
            "--tolerance",
            tolerance,
            "--json"
        ]
        .exits(status)
        .json()
    };
    assert_eq!(judged("0.06", 0)["verdict"], "inside");
    assert_eq!(judged("0.04", 3)["verdict"], "outside");
    segpack![
        "validate",
        &pack,
        "--reference",
        &trace,
        "--tolerance",
        "-1"
    ]
    .exits(2);
    segpack![
        "validate",
        &pack,
        "--reference",
        &trace,
        "--tolerance",
        "nan"
    ]
    .exits(2);
    let official = trace_of("tiny-text.float32");
    segpack![
        "validate",
        &pack,
        "--reference",
        official,
        "--tolerance",
        "9"
    ]
    .exits(2)
    .says(&[
        "tolerance is fixed",
        "hint: --tolerance is for traces of log-probabilities",
    ]);
}

#[test]
fn malformed_or_foreign_traces_of_servers_are_refused() {
    let folder = temp();
    let pack = packed(&tiny_text(), folder.path());
    let refused = |words: &[&str], bend: &dyn Fn(&mut [Told], &mut Value)| {
        let trace = as_from_a_server(folder.path(), "float32", |reported, document| {
            bend(reported, document);
        });
        segpack!["validate", &pack, "--reference", &trace]
            .exits(3)
            .says(words);
    };
    let trace = as_from_a_server(folder.path(), "float32", |_, document| {
        document["checkpoint"]["config.json"]["sha256"] = json!("0".repeat(64));
    });
    assert_eq!(report(&pack, &trace, 3)["verdict"], "foreign");
    refused(
        &["p01.prompt.top_logprobs", "best first"],
        &|reported, _| {
            reported[1].rows[0].swap(0, 4);
        },
    );
    refused(&["p00.gen.top_logprobs", "best first"], &|reported, _| {
        reported[0].rows.last_mut().unwrap()[1].1 = f32::NAN;
    });
    refused(&["p00.gen.top_logprobs", "logarithms"], &|reported, _| {
        reported[0].rows.last_mut().unwrap()[0].1 = 0.5;
    });
    refused(&["p00.gen.top_ids", "no id"], &|reported, _| {
        reported[0].rows.last_mut().unwrap()[0].0 = -2;
    });
    refused(&["unknown variant"], &|_, document| {
        document["settings"]["values"] = json!("words");
    });
    let without = |part: &str| {
        let trace = as_from_a_server(folder.path(), "float32", |_, _| {});
        let mut tensors = tensors_of(&fs::read(&trace).unwrap());
        tensors.retain(|t| !t.name.contains(part));
        fs::write(&trace, shard_bytes(&tensors)).unwrap();
        segpack!["validate", &pack, "--reference", &trace].exits(3)
    };
    without("p01.gen.top_ids").says(&["has no tensor", "p01.gen.top_ids"]);
    let trace = as_from_a_server(folder.path(), "float32", |_, _| {});
    let mut document: Value =
        serde_json::from_slice(&fs::read(trace.with_extension("json")).unwrap()).unwrap();
    document["prompts"][0]["generated"] = json!([]);
    fs::write(trace.with_extension("json"), document.to_string()).unwrap();
    let mut tensors = tensors_of(&fs::read(&trace).unwrap());
    tensors.retain(|t| !t.name.starts_with("p00.") || t.name.ends_with("input_ids"));
    fs::write(&trace, shard_bytes(&tensors)).unwrap();
    segpack!["validate", &pack, "--reference", &trace]
        .exits(3)
        .says(&["has nothing that follows prompt 0", "prompt 0"]);
}

#[test]
fn malformed_traces_are_clear_errors() {
    let folder = temp();
    let pack = packed(&tiny_full(), folder.path());
    let refused = |words: &[&str], bend: &dyn Fn(&mut Vec<Tensor>, &mut Value)| {
        let trace = bent("tiny-full.float32", folder.path(), |tensors, document| {
            bend(tensors, document);
        });
        segpack!["validate", &pack, "--reference", &trace]
            .exits(3)
            .says(words);
    };
    let find = |tensors: &mut Vec<Tensor>, name: &str| {
        tensors.iter().position(|t| t.name == name).unwrap()
    };
    refused(&["its format is neither"], &|tensors, _| {
        tensors
            .iter_mut()
            .for_each(|t| t.name = t.name.replace("p00.", "mm."));
    });
    refused(&["format", "qwen3-omni-thinker-trace-1"], &|_, document| {
        document["format"] = json!("other");
    });
    refused(&["settings.dtype", "float16"], &|_, document| {
        document["settings"]["dtype"] = json!("float16");
    });
    refused(&["lists no prompt"], &|_, document| {
        document["prompts"] = json!([]);
    });
    refused(&["p01.logits"], &|tensors, _| {
        tensors.retain(|t| t.name != "p01.logits");
    });
    refused(&["p00.gen.ids"], &|_, document| {
        document["prompts"][0]["generated"][0] = json!(1);
    });
    refused(&["p00.embed", "wanted [5, 48]"], &|tensors, _| {
        let at = find(tensors, "p00.embed");
        tensors[at].shape = vec![48, 5];
    });
    refused(&["p00.position_ids", "no id"], &|tensors, _| {
        let at = find(tensors, "p00.position_ids");
        tensors[at].bytes[7] = 0xff;
    });
    refused(&["positions"], &|tensors, _| {
        let at = find(tensors, "p00.position_ids");
        tensors[at].bytes[8] = 7;
    });
    refused(
        &["p00.norm", "dtype is I32", "wanted BF16, F16 or F32"],
        &|tensors, _| {
            let at = find(tensors, "p00.norm");
            tensors[at].dtype = "I32".to_owned();
        },
    );
    fs::write(
        folder.path().join("alone.safetensors"),
        fs::read(trace_of("tiny-full.float32")).unwrap(),
    )
    .unwrap();
    segpack![
        "validate",
        &pack,
        "--reference",
        folder.path().join("alone.safetensors")
    ]
    .exits(1);
    segpack!["validate", &pack, "--reference", folder.path()]
        .exits(3)
        .says(&["is no trace"]);
    segpack!["validate", &pack].exits(2);
}

#[test]
fn bf16_is_judged_only_where_the_official_code_agrees_with_itself() {
    let folder = temp();
    let pack = packed(&tiny_full(), folder.path());
    let wrong_token = |stable: bool| {
        bent("tiny-full.bfloat16", folder.path(), |tensors, document| {
            let ids = tensors
                .iter_mut()
                .find(|t| t.name == "p00.gen.ids")
                .unwrap();
            let last = ids.bytes.len() - 8;
            ids.bytes[last] ^= 1;
            let id = u64::from_le_bytes(ids.bytes[last..].try_into().unwrap());
            let generated = document["prompts"][0]["generated"].as_array_mut().unwrap();
            *generated.last_mut().unwrap() = json!(id);
            for prompt in document["prompts"].as_array_mut().unwrap() {
                prompt["bf16_stable"] = json!(stable);
            }
        })
    };
    let outside = report(&pack, &wrong_token(true), 3);
    assert_eq!(
        (&outside["verdict"], &outside["findings"][0]["kind"]),
        (&json!("outside"), &json!("differs_from_reference"))
    );
    assert_eq!(
        report(&pack, &wrong_token(false), 0)["verdict"],
        "not_judged"
    );
}

/// Also dense layers, biases, a tied head, un-normalised routers, stacked experts.
#[test]
fn packs_are_compared_with_a_direct_calculation() {
    let folder = temp();
    let tiny = Tiny::qwen3_moe(Qwen3Moe::default());
    let mut plain = tiny.clone();
    plain.config["norm_topk_prob"] = json!(false);
    for (name, tiny) in [("plain", plain), ("stacked", tiny.stacked())] {
        let checkpoint = tiny.write(&folder.path().join(name));
        let pack = packed(&checkpoint, folder.path());
        let run = segpack!["validate", &pack, "--against", &checkpoint].ok();
        assert!(run.text().contains("computed directly"), "{run}");
        // the checkpoint changes after it was packed
        let mut changed = Tiny::read(&checkpoint);
        changed
            .tensors_mut()
            .find(|t| t.name.ends_with("2.self_attn.o_proj.weight"))
            .unwrap()
            .bytes[1] ^= 0x40;
        changed.write(&checkpoint);
        let run = segpack!["validate", &pack, "--against", &checkpoint, "--json"].exits(3);
        let kinds: Vec<_> = run.findings().iter().map(|f| f.kind).collect();
        assert!(kinds.contains(&FindingKind::DiffersFromCheckpoint), "{run}");
        assert!(kinds.contains(&FindingKind::DiffersFromReference), "{run}");
        assert_eq!(run.json()["first_wrong"]["layer"], 2);
    }
}

#[test]
fn a_recorded_trace_validates_itself() {
    for compute in [Compute::F32, Compute::Bf16] {
        let folder = temp();
        let path = packed(&tiny_full(), folder.path());
        let pack = Pack::open(&path).unwrap();
        let trace = folder.path().join("own.safetensors");
        record(&pack, compute, &trace);
        let report = report(&path, &trace, 0);
        assert_eq!(report["not_compared"], json!([]));
        let exact = |row: &Value| row["max_abs"] == 0.0 && row["not_finite"] == 0;
        assert!(
            report["values"].as_array().unwrap().iter().all(exact),
            "{report}"
        );
        let equal = |row: &Value| row["equal"] == row["compared"];
        assert!(
            report["choices"].as_array().unwrap().iter().all(equal),
            "{report}"
        );
        let stock = fs::read(&trace).unwrap();
        assert!(
            tensors_of(&stock)
                .iter()
                .any(|t| t.name == "p01.gen.layer.2.topk_ids" && t.shape == [2, 3])
        );
    }
}

/// Two prompts and three tokens after each.
fn record(pack: &Pack, compute: Compute, path: &Path) {
    let (source, stop) = (PackReader::new(pack), CancelToken::default());
    let settings = RunSettings::new(16, 4);
    let mut thinker = Decoder::new(&source, CpuOps::new(compute), settings, &stop).unwrap();
    let facts = thinker.facts().clone();
    let mut recorder = TraceRecorder::new(compute, &facts);
    for ids in [&[5_u32, 6, 7][..], &[100, 2]] {
        thinker.reset();
        recorder.begin(ids);
        let logits = thinker.forward(ids, Logits::All, &mut recorder).unwrap();
        recorder.logits(&logits);
        let mut last = logits[logits.len() - facts.vocab as usize..].to_vec();
        for step in 0..3 {
            let best = last
                .iter()
                .enumerate()
                .max_by(|a, b| a.1.total_cmp(b.1))
                .unwrap()
                .0 as u32;
            recorder.token(best, &last);
            if step < 2 {
                last = thinker
                    .forward(&[best], Logits::Last, &mut recorder)
                    .unwrap();
            }
        }
        recorder.end(Map::from_iter([("bf16_stable".to_owned(), json!(true))]));
    }
    let sources = pack.manifest().source_files.iter();
    let files = sources.map(|f| {
        (
            f.path.clone(),
            trace::RecordedFile {
                size: f.length,
                sha256: f.sha256,
            },
        )
    });
    recorder.write(path, Map::new(), &files.collect()).unwrap();
}

/// Changes to a checkpoint that leave it complete and well-formed.
type Mutation = (&'static str, fn(&mut Tiny));

const MUTATIONS: &[Mutation] = &[
    ("rms_norm_eps x 10", |t| {
        text(t)["rms_norm_eps"] = json!(1e-5);
    }),
    ("rope_theta", |t| text(t)["rope_theta"] = json!(10_000)),
    ("one expert fewer per token", |t| {
        text(t)["num_experts_per_tok"] = json!(3);
    }),
    ("one expert more per token", |t| {
        text(t)["num_experts_per_tok"] = json!(5);
    }),
    ("norm_topk_prob", |t| {
        text(t)["norm_topk_prob"] = json!(false);
    }),
    ("twice as many heads, half as wide", |t| {
        text(t)["num_attention_heads"] = json!(8);
        text(t)["num_key_value_heads"] = json!(4);
        text(t)["head_dim"] = json!(16);
        for layer in 0..3 {
            for norm in ["q_norm", "k_norm"] {
                let norm = t.tensor(&at(layer, &format!("self_attn.{norm}")));
                norm.shape = vec![16];
                norm.bytes.truncate(32);
            }
        }
    }),
    ("tied head", |t| {
        let head = t.tensor("thinker.model.embed_tokens.weight").bytes.clone();
        t.tensor("thinker.lm_head.weight").bytes = head;
    }),
    ("two experts swapped", |t| {
        for matrix in ["gate_proj", "up_proj", "down_proj"] {
            swap(t, &expert(1, 2, matrix), &expert(1, 7, matrix));
        }
    }),
    ("gate and up swapped", |t| {
        (0..12).for_each(|e| swap(t, &expert(2, e, "gate_proj"), &expert(2, e, "up_proj")));
    }),
    ("k and v swapped", |t| {
        swap(t, &at(0, "self_attn.k_proj"), &at(0, "self_attn.v_proj"));
    }),
    ("q_norm and k_norm swapped", |t| {
        swap(t, &at(1, "self_attn.q_norm"), &at(1, "self_attn.k_norm"));
    }),
    ("a norm zeroed", |t| {
        t.tensor(&at(1, "post_attention_layernorm")).bytes.fill(0);
    }),
    ("final norm zeroed", |t| {
        t.tensor("thinker.model.norm.weight").bytes.fill(0);
    }),
    ("a router row moved", |t| {
        t.tensor(&at(0, "mlp.gate")).bytes[..10 * 128].rotate_left(128);
    }),
    ("the highest exponent bit of one weight", |t| {
        t.tensor(&at(0, "self_attn.q_proj")).bytes[1001] ^= 0x40;
    }),
    ("the sign of one weight", |t| {
        t.tensor(&at(2, "self_attn.o_proj")).bytes[2001] ^= 0x80;
    }),
    ("one exponent bit of an expert", |t| {
        t.tensor(&expert(1, 3, "down_proj")).bytes[301] ^= 0x02;
    }),
    ("two rows of the head swapped", |t| {
        let head = &mut t.tensor("thinker.lm_head.weight").bytes;
        let (first, second) = head.split_at_mut(128);
        first.swap_with_slice(&mut second[..128]);
    }),
    ("a query head in another's place", |t| {
        let q = &mut t.tensor(&at(1, "self_attn.q_proj")).bytes;
        q[..3 * 32 * 128].rotate_left(32 * 128);
    }),
];

fn text(tiny: &mut Tiny) -> &mut Value {
    &mut tiny.config["thinker_config"]["text_config"]
}

fn at(layer: usize, rest: &str) -> String {
    format!("thinker.model.layers.{layer}.{rest}.weight")
}

fn expert(layer: usize, expert: usize, matrix: &str) -> String {
    at(layer, &format!("mlp.experts.{expert}.{matrix}"))
}

fn swap(tiny: &mut Tiny, first: &str, second: &str) {
    let bytes = tiny.tensor(first).bytes.clone();
    let other = std::mem::replace(&mut tiny.tensor(second).bytes, bytes);
    tiny.tensor(first).bytes = other;
}

#[test]
fn every_mutation_of_a_checkpoint_is_caught() {
    let folder = temp();
    let trace = trace_of("tiny-text.float32");
    let mut missed = Vec::new();
    for (what, mutate) in MUTATIONS {
        let mut tiny = Tiny::text();
        mutate(&mut tiny);
        let checkpoint = tiny.write(&folder.path().join("checkpoint"));
        let pack = packed(&checkpoint, folder.path());
        let run = segpack![
            "validate",
            &pack,
            "--reference",
            &trace,
            "--no-digests",
            "--json",
            "-q"
        ];
        if !is_caught(&run) {
            missed.push(format!("{what}: {run}"));
        }
        // the packs are what the mutated checkpoint gives
        if *what == "two experts swapped" {
            segpack!["validate", &pack, "--against", &checkpoint].ok();
        }
    }
    assert!(MUTATIONS.len() >= 10 && missed.is_empty(), "{missed:#?}");
}

/// By the numbers, not by an error.
fn is_caught(run: &Run) -> bool {
    run.status == Some(3) && run.json()["verdict"] == "outside"
}

/// Not-a-number and infinity in every intermediate, on either side.
#[test]
fn nothing_that_is_not_finite_is_inside_a_gate() {
    let folder = temp();
    let pack = packed(&tiny_text(), folder.path());
    let nan = |tensor: &mut Tensor, value: f32| {
        let last = tensor.bytes.len() - 4;
        tensor.bytes[last..].copy_from_slice(&value.to_le_bytes());
    };
    for (name, words, value) in [
        (
            "p00.embed",
            "embedding that are not finite: 1 of the reference",
            f32::NAN,
        ),
        (
            "p00.layer.1.attn_out",
            "attention output of layer 1",
            f32::INFINITY,
        ),
        ("p00.layer.2.mlp_out", "MoE/MLP output of layer 2", f32::NAN),
        (
            "p01.layer.0.hidden",
            "hidden state of layer 0",
            f32::NEG_INFINITY,
        ),
        (
            "p00.layer.1.router_logits",
            "router logits of layer 1",
            f32::NAN,
        ),
        (
            "p00.layer.1.router_probs",
            "router probabilities of layer 1",
            f32::NAN,
        ),
        (
            "p00.layer.0.topk_weights",
            "expert weights of layer 0",
            f32::NAN,
        ),
        ("p00.norm", "final norm", f32::NAN),
        (
            "p00.logits",
            "logits that are not finite: 1 of the reference",
            f32::NAN,
        ),
    ] {
        let trace = bent("tiny-text.float32", folder.path(), |tensors, _| {
            let at = tensors.iter().position(|t| t.name == name).unwrap();
            assert_eq!(tensors[at].dtype, "F32", "{name}");
            nan(&mut tensors[at], value);
        });
        let run = segpack!["validate", &pack, "--reference", &trace];
        let run = run.exits(3);
        assert!(run.text().contains(words), "{run}");
        assert_eq!(report(&pack, &trace, 3)["verdict"], "outside", "{name}");
    }
    // the run's, also where the reference has nothing to compare with, or the same
    let mut broken = Tiny::text();
    let weight = &mut broken.tensor(&expert(1, 3, "down_proj")).bytes;
    weight[..2].copy_from_slice(&0x7fc0_u16.to_le_bytes());
    let checkpoint = broken.write(&folder.path().join("broken"));
    let out = folder.path().join("broken.segpack");
    segpack!["pack", &checkpoint, "-o", &out].ok();
    let trace = bent("tiny-text.float32", folder.path(), |tensors, document| {
        let is_kept = |name: &str| {
            name.contains(".gen.") || name.ends_with(".input_ids") || name.ends_with(".logits")
        };
        tensors.retain(|t| is_kept(&t.name));
        document["settings"]["level"] = json!("logits");
    });
    for reference in [&trace, &trace_of("tiny-text.bfloat16")] {
        let run = segpack!["validate", &out, "--reference", reference, "--no-digests"];
        let run = run.exits(3);
        let text = run.text();
        let is_told = text.contains("that are not finite") && text.contains("of this run");
        assert!(is_told, "{run}");
    }
    let run = segpack!["validate", &out, "--against", &checkpoint];
    let text = run.exits(3).text().to_owned();
    assert!(text.contains("of this run") && text.contains("of the reference"));
}
