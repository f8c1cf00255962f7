//! `run`: text from a pack, as a user asks for it.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::Value;
use tempfile::TempDir;

use crate::support::cli::{Run, program, segpack};
use crate::support::damage::flip;
use crate::support::folders::temp;
use crate::support::tiny::{Qwen3Moe, Tiny, tiny_full, tiny_text};

fn packed(checkpoint: &Path) -> (TempDir, PathBuf) {
    let folder = temp();
    let out = folder.path().join("pack");
    segpack!["pack", checkpoint, "-o", &out].ok();
    (folder, out)
}

/// The objects of `--json`, the summary last.
fn lines(run: &Run) -> (Vec<Value>, Value) {
    let mut objects: Vec<Value> = run.text().lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let summary = objects.pop().unwrap();
    (objects, summary)
}

fn piped(pack: &Path, arguments: &[&str], input: &str) -> Run {
    let mut command = program();
    command.arg("run").arg(pack).args(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    Run::from_output(arguments.join(" "), child.wait_with_output().unwrap())
}

/// The first prompt of the public trace of tiny-text, and its official continuation up to the end-of-text id.
const OFFICIAL: (&str, [u64; 4]) = ("179", [4, 160, 55, 287]);

#[test]
fn ids_continue_as_officially_recorded_and_stop_at_the_checkpoints_eos() {
    let (_folder, pack) = packed(&tiny_text());
    let run = segpack!["run", &pack, "--prompt-ids", OFFICIAL.0, "--max-new-tokens", "24", "--json"].ok();
    let (tokens, summary) = lines(&run);
    let ids: Vec<u64> = tokens.iter().map(|t| t["id"].as_u64().unwrap()).collect();
    assert_eq!(ids, OFFICIAL.1);
    assert_eq!((&summary["stop_reason"], &tokens[3]["stop"]), (&"stop_id".into(), &true.into()));
    assert!(summary["expert_misses"].as_u64() > Some(0) && summary["peak_rss"].as_u64() > Some(0));
}

#[test]
fn a_text_comes_from_argument_or_standard_input_and_as_a_chat() {
    let (_folder, pack) = packed(&tiny_full());
    let text = "Hi, is the user on?";
    let options = ["--max-new-tokens", "8"];
    let argument = segpack!["run", &pack, "--prompt", text, options[0], options[1]].ok();
    assert_eq!(piped(&pack, &options, text).ok().stdout, argument.stdout);
    argument.says(&["10 tokens", "8 tokens (max new tokens)", "peak memory"]);
    let chat = segpack![
        "run",
        &pack,
        "--chat",
        "--prompt",
        text,
        "--system",
        "Be brief.",
        "--max-new-tokens",
        "2",
        "--json"
    ]
    .ok();
    let (_, summary) = lines(&chat);
    // the toy template: <|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n…<|im_end|>\n<|im_start|>assistant\n
    let ids: Vec<u64> =
        summary["prompt_ids"].as_array().unwrap().iter().map(|i| i.as_u64().unwrap()).collect();
    assert_eq!(ids.iter().filter(|i| **i == 286).count(), 3, "three turns begin");
    assert_eq!(ids.iter().filter(|i| **i == 287).count(), 2, "two turns end");
}

#[test]
fn candidates_ranks_and_sampling_are_as_asked() {
    let (_folder, pack) = packed(&tiny_full());
    let run = segpack![
        "run",
        &pack,
        "--prompt",
        "Hi",
        "--max-new-tokens",
        "3",
        "--top-k-logits",
        "4",
        "--rank",
        " the",
        "--json"
    ];
    let (tokens, summary) = lines(&run.ok());
    for token in &tokens {
        let top = token["top"].as_array().unwrap();
        assert_eq!((top.len(), &top[0]["id"]), (4, &token["id"]), "greedy takes the best");
        assert!(top.windows(2).all(|pair| pair[0]["logit"].as_f64() >= pair[1]["logit"].as_f64()));
    }
    let rank = summary["rank"]["rank"].as_u64().unwrap();
    assert!((1..=320).contains(&rank));
    let sample = |seed: &str| {
        let run = segpack![
            "run",
            &pack,
            "--prompt",
            "Hi",
            "--max-new-tokens",
            "12",
            "--temperature",
            "2",
            "--seed",
            seed
        ];
        run.ok().stdout
    };
    assert_eq!(sample("7"), sample("7"));
    assert_ne!(sample("7"), sample("8"));
}

#[test]
fn too_little_memory_says_how_much_works_and_that_works() {
    let (_folder, pack) = packed(&tiny_text());
    let run = |memory: &str| {
        segpack![
            "run",
            &pack,
            "--prompt-ids",
            OFFICIAL.0,
            "--max-new-tokens",
            "24",
            "--json",
            "--memory",
            memory
        ]
    };
    let refused = run("1MB").exits(1).says(&["are too little for this model and prompt", "bytes work"]);
    let words: Vec<&str> = refused.stderr.split_whitespace().collect();
    let least = words[words.iter().position(|w| *w == "work").unwrap() - 2];
    let (tokens, summary) = lines(&run(least).ok());
    assert_eq!(tokens.last().unwrap()["id"], 287);
    assert_eq!((&summary["expert_slots"], &summary["dense_resident"]), (&1.into(), &false.into()));
    assert!(summary["peak_rss"].as_u64() <= least.parse().ok(), "{least} {summary}");
}

#[test]
fn a_cache_of_one_gives_the_same_tokens() {
    let (_folder, pack) = packed(&tiny_full());
    let run = |cache: &str| {
        segpack![
            "run",
            &pack,
            "--prompt-ids",
            "5,9,200,31",
            "--max-new-tokens",
            "12",
            "--expert-cache",
            cache,
            "--json"
        ]
        .ok()
    };
    let (one, all) = (lines(&run("1")), lines(&run("24")));
    assert_eq!(one.0, all.0);
    assert!(one.1["bytes_read"].as_u64() > all.1["bytes_read"].as_u64());
    segpack!["run", &pack, "--prompt-ids", "5", "--expert-cache", "0"]
        .exits(2)
        .says(&["at least one expert"]);
}

#[test]
fn damage_and_what_is_missing_are_errors_before_or_at_the_load() {
    let (_folder, pack) = packed(&tiny_full());
    let run =
        |pack: &Path, more: &str| segpack!["run", pack, "--prompt-ids", "5,9", "--max-new-tokens", "4", more];
    for expert in 0..8 {
        // whichever expert comes first, its digest is compared
        let path = pack.join("packs/thinker.text.experts.00.safetensors");
        flip(&path, 4096 + expert * 6912 + 100);
    }
    run(&pack, "--json").exits(3).says(&["segment \"thinker.text.layers.0.experts.", "is damaged: BLAKE3"]);
    run(&pack, "--check=never").ok();

    let folder = temp();
    let partial = folder.path().join("towers");
    segpack!["pack", tiny_full(), "-o", &partial, "--exclude", "thinker.text"].ok();
    run(&partial, "--json").exits(3).says(&["the pack cannot be run"]);
    let thinker = folder.path().join("thinker");
    segpack!["pack", tiny_full(), "-o", &thinker, "--include", "thinker.text"].ok();
    run(&thinker, "--json").ok();
}

#[test]
fn ids_and_tokenizers_outside_the_embedding_are_refused() {
    let (_folder, pack) = packed(&tiny_full());
    segpack!["run", &pack, "--prompt-ids", "5,320"].exits(3).says(&["token id 320", "vocabulary of 320"]);
    let (_folder, pack) = packed(&tiny_text());
    segpack!["run", &pack, "--prompt", "hi"].exits(3).says(&["no tokenizer", "vocab.json"]);
    segpack!["run", &pack, "--prompt-ids", "5", "--trace", "x.json"]
        .exits(2)
        .says(&["does not end in .safetensors"]);
}

#[test]
fn plain_qwen3_moe_checkpoints_run_too() {
    let folder = temp();
    let checkpoint = Tiny::qwen3_moe(Qwen3Moe::default()).write(&folder.path().join("model"));
    let (_folder, pack) = packed(&checkpoint);
    let run = segpack!["run", &pack, "--prompt-ids", "1,2,3", "--max-new-tokens", "4", "--json"].ok();
    assert_eq!(lines(&run).0.len(), 4);
}
