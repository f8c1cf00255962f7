//! `--experts` and `--expert-mask`: routers that may choose among some experts only.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::cli::{self, Run, segpack};
use crate::support::folders::temp;
use crate::support::tiny::tiny_full;

fn packed() -> (TempDir, PathBuf) {
    let folder = temp();
    let pack = cli::packed(&tiny_full(), folder.path());
    (folder, pack)
}

fn run(pack: &Path, options: &[&str]) -> Run {
    let mut arguments = vec!["run".into(), pack.into()];
    let all = ["--prompt-ids", "5,9,200,31", "--max-new-tokens", "8"];
    arguments.extend(all.iter().chain(options).map(Into::into));
    cli::run(&arguments)
}

/// The experts of each layer that a run used.
fn used(summary: &Value) -> Vec<Vec<usize>> {
    let layers = summary["experts"].as_array().unwrap();
    let of = |layer: &Value| {
        let uses = layer["uses"].as_array().unwrap();
        (0..uses.len()).filter(|e| uses[*e] != 0).collect()
    };
    layers.iter().map(of).collect()
}

#[test]
fn only_the_chosen_experts_are_used_and_everything_says_so() {
    let (folder, pack) = packed();
    let report = folder.path().join("experts.json");
    let heat_map = folder.path().join("experts.svg");
    let to_report = format!("--experts-report={}", report.display());
    let restricted = run(&pack, &["--experts", "1-3,6", "--json", &to_report]).ok();
    restricted.says(&["not the model", "restricted to 4 experts"]);
    let restricted = run(&pack, &["--experts", "1-3,6", "--json", &to_report, "-q"]).ok();
    let (tokens, summary) = restricted.says(&["not the model"]).tokens();
    assert!(tokens.iter().all(|token| token["restricted"] == true));
    assert_eq!(summary["restricted_experts"]["0"], json!([1, 2, 3, 6]));
    for layer in used(&summary) {
        assert!(layer.iter().all(|e| [1, 2, 3, 6].contains(e)), "{layer:?}");
    }
    let document: Value = serde_json::from_slice(&fs::read(&report).unwrap()).unwrap();
    assert_eq!(
        document["restricted_experts"],
        summary["restricted_experts"]
    );
    let page = folder.path().join("page.html");
    segpack!["report", &pack, "-o", &page, "--experts", &report].ok();
    let page = fs::read_to_string(&page).unwrap();
    assert!(page.contains("\"restricted_experts\""));
    let to_map = format!("--experts-report={}", heat_map.display());
    run(&pack, &["--experts", "1-3,6", &to_map]).ok();
    assert!(
        fs::read_to_string(&heat_map)
            .unwrap()
            .contains("not the model")
    );
    // without, nothing says it
    let whole = run(&pack, &["--json"]).ok();
    assert!(!whole.stderr.contains("not the model"));
    let (tokens, summary) = whole.tokens();
    assert!(tokens[0].get("restricted").is_none());
    assert!(summary.get("restricted_experts").is_none());
}

#[test]
fn all_experts_are_no_restriction_and_a_mask_is_by_layer() {
    let (folder, pack) = packed();
    let ids = |options: &[&str]| {
        let options = [options, &["--json"]].concat();
        let (_, summary) = run(&pack, &options).ok().tokens();
        (summary["ids"].clone(), used(&summary))
    };
    assert_eq!(ids(&["--experts", "0-7"]), ids(&[]));
    let file = folder.path().join("mask.json");
    let mask = |text: &str| {
        fs::write(&file, text).unwrap();
        ids(&["--expert-mask", file.to_str().unwrap()])
    };
    let named = mask(r#"{"layers": {"0": [0, 3, 7]}}"#);
    assert_eq!(named.1[0], [0, 3, 7]);
    assert!(named.1[1..].iter().any(|layer| layer.len() > 3));
    assert_eq!(mask(r#"{"layers": [[0, 3, 7]]}"#), named);
    assert_eq!(mask(r#"{"layers": [null, null]}"#), ids(&[]));
}

#[test]
fn a_batch_is_restricted_too() {
    let (folder, pack) = packed();
    let file = folder.path().join("prompts.jsonl");
    fs::write(
        &file,
        "{\"prompt_ids\": [5, 9, 200, 31], \"max_tokens\": 8}\n",
    )
    .unwrap();
    let run_batch = segpack![
        "run",
        &pack,
        "--prompts",
        &file,
        "--experts",
        "1-3,6",
        "--json"
    ];
    let run_batch = run_batch.ok().says(&["not the model"]);
    let mut lines = run_batch.text().lines();
    let line: Value = serde_json::from_str(lines.next().unwrap()).unwrap();
    assert_eq!(line["restricted"], true);
    let summary: Value = serde_json::from_str(lines.next().unwrap()).unwrap();
    assert_eq!(summary["restricted_experts"]["1"], json!([1, 2, 3, 6]));
    let (_, alone) = run(&pack, &["--experts", "1-3,6", "--json"]).ok().tokens();
    assert_eq!(line["ids"], alone["ids"]);
}

#[test]
fn what_cannot_be_restricted_is_refused_and_nothing_is_judged() {
    let (folder, pack) = packed();
    let run = |options: &[&str]| run(&pack, options);
    run(&["--experts", "0-8"])
        .exits(2)
        .says(&["expert 8 is chosen for layer 0, which has experts 0 to 7"]);
    run(&["--experts", "3"])
        .exits(2)
        .says(&["1 experts are chosen for layer 0, whose router sends each token to 3"]);
    run(&["--experts", "a-b"])
        .exits(2)
        .says(&["such as 0-7,12"]);
    let file = folder.path().join("mask.json");
    let mask = file.to_str().unwrap();
    for (text, status, words) in [
        (r#"{"layers": {"99": [0, 1]}}"#, 2, "layer 99"),
        (
            r#"{"layers": {"x": [0, 1]}}"#,
            3,
            "\"x\" is no number of a layer",
        ),
        (r#"{"layer": {}}"#, 3, "not a mask of experts"),
        ("[", 3, "not a mask of experts"),
    ] {
        fs::write(&file, text).unwrap();
        run(&["--expert-mask", mask]).exits(status).says(&[words]);
    }
    // a trace of a restricted run is none of the model
    let trace = folder.path().join("trace.safetensors");
    run(&["--experts", "0-3", "--trace", trace.to_str().unwrap()]).ok();
    let run = segpack!["validate", &pack, "--reference", &trace].exits(3);
    run.says(&["none of the model"]);
    segpack!["validate", &pack, "--reference", &trace, "--experts", "0-3"].exits(2);
}
