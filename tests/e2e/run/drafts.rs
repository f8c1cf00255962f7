//! `--draft-lookup`: drafts change how many forward passes a text takes, and nothing of it.

use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::TempDir;

use crate::support::cli::{self, Run, segpack};
use crate::support::folders::temp;
use crate::support::tiny::{tiny_full, tiny_text};

fn packed(checkpoint: &Path) -> (TempDir, PathBuf) {
    let folder = temp();
    let pack = cli::packed(checkpoint, folder.path());
    (folder, pack)
}

/// A prompt that repeats itself, so that there is something to look up from the first token on.
const PROMPT: &str = "5,9,200,31,5,9,200,31,5,9,200,31,5,9";

fn run(pack: &Path, options: &[&str]) -> Run {
    let mut arguments = vec!["run".into(), pack.into()];
    let all = ["--prompt-ids", PROMPT, "--max-new-tokens", "48", "--json"];
    arguments.extend(all.iter().chain(options).map(Into::into));
    cli::run(&arguments)
}

/// The tokens as they were told, and the summary.
fn told(pack: &Path, options: &[&str]) -> (Vec<Value>, Value) {
    run(pack, options).ok().tokens()
}

#[test]
fn the_text_is_the_same_however_tokens_are_chosen_and_whatever_the_memory() {
    let (_folder, pack) = packed(&tiny_text());
    let coded = temp();
    let coded = coded.path().join("coded");
    segpack!["repack", &pack, "-o", &coded, "--codec", "bf16-rans"].ok();
    let mut accepted = 0;
    for how in [
        &[][..],
        &["--top-k-logits", "3"],
        &["--temperature", "0.7", "--seed", "3"],
        &["--compute", "bf16", "--threads", "1"],
        &["--expert-cache", "1"],
    ] {
        let (wanted, without) = told(&pack, how);
        assert!(without.get("drafts").is_none());
        for (pack, most) in [(&pack, "1"), (&pack, "7"), (&coded, "64")] {
            let options = [how, &["--draft-lookup", most]].concat();
            let (tokens, summary) = told(pack, &options);
            assert_eq!(tokens, wanted, "{options:?}");
            for same in ["ids", "text", "stop_reason"] {
                assert_eq!(summary[same], without[same], "{options:?}");
            }
            let drafts = &summary["drafts"];
            accepted += drafts["accepted"].as_u64().unwrap_or(0);
        }
    }
    assert!(accepted > 0, "no draft ever came true");
}

#[test]
fn a_text_that_repeats_itself_takes_fewer_passes_and_says_so() {
    let (_folder, pack) = packed(&tiny_full());
    let repeated = ["--draft-lookup", "8", "--experts", "0-2"];
    let (_, summary) = told(&pack, &repeated);
    let count = |of: &str| summary["drafts"][of].as_u64().unwrap();
    let [passes, drafted, accepted] = ["passes", "drafted", "accepted"].map(count);
    assert!(accepted > 0 && accepted <= drafted && passes <= drafted);
    let mut arguments = vec!["run".into(), pack.clone().into()];
    let all = ["--prompt-ids", PROMPT, "--max-new-tokens", "48"];
    arguments.extend(all.iter().chain(&repeated).map(Into::into));
    let wanted = format!("({accepted} of {drafted} tokens, forward passes: {passes})");
    cli::run(&arguments).ok().says(&["drafts: ", &wanted]);
}

#[test]
fn a_conversation_drafts_from_all_that_was_said() {
    use std::io::Write;
    let (_folder, pack) = packed(&tiny_full());
    let answers = |options: &[&str]| {
        let mut arguments = vec!["chat".into(), pack.clone().into()];
        arguments.extend(
            ["--max-new-tokens", "12"]
                .iter()
                .chain(options)
                .map(Into::into),
        );
        let mut child = cli::start(&arguments);
        let mut input = child.stdin.take().unwrap();
        input
            .write_all(b"Name three rivers.\nAgain.\nAgain.\n")
            .unwrap();
        drop(input);
        let run = Run::from_output("chat".to_owned(), child.wait_with_output().unwrap());
        run.ok().stdout
    };
    let wanted = answers(&[]);
    assert!(wanted.len() > 3, "{wanted:?}");
    assert_eq!(answers(&["--draft-lookup", "6"]), wanted);
}

#[test]
fn drafts_that_cannot_be_made_are_refused() {
    let (folder, pack) = packed(&tiny_full());
    for (length, what) in [("0", "1 to 64"), ("65", "1 to 64"), ("x", "1 to 64")] {
        run(&pack, &["--draft-lookup", length])
            .exits(2)
            .says(&[what]);
    }
    let trace = folder.path().join("t.safetensors");
    let trace = trace.to_str().unwrap();
    run(&pack, &["--draft-lookup", "4", "--trace", trace])
        .exits(2)
        .says(&["cannot be used with"]);
}
