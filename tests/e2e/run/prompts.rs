//! `run --prompts`: many prompts, JSON lines in and out.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::cli::{self, Run, segpack};
use crate::support::folders::temp;
use crate::support::tiny::{tiny_full, tiny_text};

fn packed(checkpoint: &Path) -> (TempDir, PathBuf) {
    let folder = temp();
    let pack = cli::packed(checkpoint, folder.path());
    (folder, pack)
}

fn lines(run: &Run) -> Vec<Value> {
    let lines = run.text().lines();
    lines.map(|l| serde_json::from_str(l).unwrap()).collect()
}

/// The file's prompts, continued.
fn continued(pack: &Path, file: &Path, options: &[&str]) -> Run {
    let mut arguments = vec!["run".into(), pack.into(), "--prompts".into(), file.into()];
    arguments.extend(options.iter().map(Into::into));
    cli::run(&arguments)
}

const PROMPTS: &str = r#"{"id": "a", "prompt": "Hi, is the user on?"}
{"prompt_ids": [5, 9, 200, 4], "max_tokens": 3}

{"id": 7, "messages": [{"role": "user", "content": "Name three rivers."}], "max_tokens": 12}
{"prompt": "Once upon a time", "seed": 4}
"#;

/// What one line asks for, of a run by itself.
const ALONE: [&[&str]; 4] = [
    &["--prompt", "Hi, is the user on?", "--max-new-tokens", "8"],
    &["--prompt-ids", "5,9,200,4", "--max-new-tokens", "3"],
    &[
        "--chat",
        "--prompt",
        "Name three rivers.",
        "--max-new-tokens",
        "12",
    ],
    &[
        "--prompt",
        "Once upon a time",
        "--seed",
        "4",
        "--max-new-tokens",
        "8",
    ],
];

#[test]
fn prompts_are_continued_as_they_are_one_by_one_whatever_the_memory() {
    let (folder, pack) = packed(&tiny_full());
    let file = folder.path().join("prompts.jsonl");
    fs::write(&file, PROMPTS).unwrap();
    let options = ["--max-new-tokens", "8", "--json"];
    let mut all = lines(&continued(&pack, &file, &options).ok());
    let summary = all.pop().unwrap();
    assert_eq!(summary["most_sequences"], 4);
    assert_eq!(
        summary["passes"], 12,
        "as many as the longest text has tokens"
    );
    let numbers: Vec<_> = all.iter().map(|l| (&l["line"], &l["id"])).collect();
    let wanted = [json!(1), json!(2), json!(4), json!(5)];
    let ids = [json!("a"), Value::Null, json!(7), Value::Null];
    assert_eq!(numbers, wanted.iter().zip(&ids).collect::<Vec<_>>());
    for (line, options) in all.iter().zip(ALONE) {
        let mut arguments = vec!["run".into(), pack.clone().into(), "--json".into()];
        arguments.extend(options.iter().map(Into::into));
        let (_, alone) = cli::run(&arguments).ok().tokens();
        for key in ["ids", "text", "stop_reason", "prompt_tokens"] {
            assert_eq!(line[key], alone[key], "{key} of {options:?}");
        }
    }
    // the least memory that works: fewer at a time, the same texts
    let refused = continued(&pack, &file, &["--max-new-tokens", "8", "--memory", "1MB"]);
    let refused = refused.exits(1);
    let least = refused.stderr.split("--memory ").nth(1).unwrap();
    let least = least.split_whitespace().next().unwrap();
    let options = [
        "--max-new-tokens",
        "8",
        "--json",
        "--memory",
        least,
        "-t",
        "1",
    ];
    let mut little = lines(&continued(&pack, &file, &options).ok());
    let summary = little.pop().unwrap();
    assert!(summary["most_sequences"].as_u64() < Some(4), "{summary}");
    assert_eq!(little, all);
}

#[test]
fn standard_input_is_a_file_too_and_a_chat_a_template() {
    let (folder, pack) = packed(&tiny_full());
    let file = folder.path().join("prompts.jsonl");
    fs::write(&file, "{\"prompt\": \"Name three rivers.\"}\n").unwrap();
    let options = ["--chat", "--max-new-tokens", "4"];
    let from_file = continued(&pack, &file, &options).ok();
    let mut arguments = vec![
        "run".into(),
        pack.clone().into(),
        "--prompts".into(),
        "-".into(),
    ];
    arguments.extend(options.iter().map(Into::into));
    let mut child = cli::start(&arguments);
    let mut input = child.stdin.take().unwrap();
    std::io::Write::write_all(&mut input, &fs::read(&file).unwrap()).unwrap();
    drop(input);
    let from_stdin = Run::from_output("-".to_owned(), child.wait_with_output().unwrap()).ok();
    assert_eq!(from_stdin.stdout, from_file.stdout);
    let options = ["run", "--chat", "--prompt", "Name three rivers.", "--json"];
    let mut arguments = vec![options[0].into(), pack.into()];
    arguments.extend(options[1..].iter().map(Into::into));
    arguments.extend(["--max-new-tokens", "4"].map(Into::into));
    let (_, alone) = cli::run(&arguments).ok().tokens();
    assert_eq!(lines(&from_file)[0]["ids"], alone["ids"]);
}

#[test]
fn a_bad_line_is_named_before_anything_is_computed() {
    let (folder, pack) = packed(&tiny_text());
    let file = folder.path().join("prompts.jsonl");
    let good = "{\"prompt_ids\": [1, 2]}\n";
    for (bad, words) in [
        ("{\"prompt\": \"a\"", "not a JSON object"),
        (
            "{\"prompt\": \"a\", \"temprature\": 1}",
            "unknown field `temprature`",
        ),
        ("{\"max_tokens\": 3}", "has 0 of `prompt`"),
        (
            "{\"prompt\": \"a\", \"prompt_ids\": [1]}",
            "has 2 of `prompt`",
        ),
        ("{\"prompt_ids\": []}", "no tokens"),
        ("{\"prompt_ids\": [99999999]}", "outside the vocabulary"),
        (
            "{\"prompt_ids\": [1], \"max_tokens\": 0}",
            "not a JSON object",
        ),
        ("{\"prompt\": \"a\"}", "no tokenizer"),
    ] {
        fs::write(&file, format!("{good}{bad}\n{good}")).unwrap();
        let run = continued(&pack, &file, &[]).exits(3);
        let run = run.says(&["prompts.jsonl, line 2", words]);
        assert!(run.stdout.is_empty(), "{run}");
    }
    fs::write(&file, "\n \n").unwrap();
    let run = continued(&pack, &file, &[]).exits(3);
    run.says(&["prompts.jsonl: has no prompts"]);
    segpack!["run", &pack, "--prompts", folder.path().join("none.jsonl")].exits(1);
}

/// The text of a run without `--stop`, to cut strings out of.
fn whole_text(pack: &Path, prompt: &str) -> String {
    let run = segpack![
        "run",
        pack,
        "--prompt",
        prompt,
        "--max-new-tokens",
        "24",
        "--json"
    ];
    let (_, summary) = run.ok().tokens();
    summary["text"].as_str().unwrap().to_owned()
}

#[test]
fn a_text_ends_before_a_stop_string_and_none_of_it_is_printed() {
    let (folder, pack) = packed(&tiny_full());
    let prompt = "Hi, is the user on?";
    let whole = whole_text(&pack, prompt);
    // a string over several tokens, none of which is its beginning alone
    let characters: Vec<(usize, char)> = whole.char_indices().collect();
    let (first, end) = (characters[5].0, characters[8].0);
    let stop = &whole[first..end];
    let before = &whole[..whole.find(stop).unwrap()];
    let with_stop = |more: &[&str]| {
        let mut arguments = vec!["run".into(), pack.clone().into()];
        let options = [
            "--prompt",
            prompt,
            "--max-new-tokens",
            "24",
            "--stop",
            "never",
        ];
        arguments.extend(options.iter().chain(more).map(Into::into));
        cli::run(&arguments)
    };
    let printed = with_stop(&["--stop", stop]).ok();
    assert_eq!(printed.text(), format!("{before}\n"));
    let (tokens, summary) = with_stop(&["--stop", stop, "--json"]).ok().tokens();
    let streamed: String = tokens.iter().map(|t| t["text"].as_str().unwrap()).collect();
    assert_eq!(streamed, before);
    assert_eq!(summary["text"], before);
    assert_eq!(summary["stop_reason"], "stop_string");
    assert_eq!(summary["stop_string"], stop);
    assert_eq!(tokens.last().unwrap()["stop"], true);
    // what only could have become one is printed in the end
    let printed = with_stop(&[]).ok();
    assert_eq!(printed.text(), format!("{whole}\n"));
    // the same of a line
    let file = folder.path().join("prompts.jsonl");
    let line = json!({"prompt": prompt, "stop": ["never", stop]});
    fs::write(&file, line.to_string()).unwrap();
    let line = &lines(&continued(&pack, &file, &["--max-new-tokens", "24"]).ok())[0];
    assert_eq!(
        (&line["text"], &line["stop_string"]),
        (&json!(before), &json!(stop))
    );
    with_stop(&["--stop", ""]).exits(2).says(&["not empty"]);
    let (_folder, without) = packed(&tiny_text());
    let run = segpack!["run", &without, "--prompt-ids", "1,2", "--stop", "a"].exits(2);
    run.says(&["stop strings need a tokenizer"]);
}
