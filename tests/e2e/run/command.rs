//! `run`: text from a pack, as a user asks for it.

use std::ffi::OsString;
use std::fs;
use std::io::{Read, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use segpack::steps::run::{RunEvent, RunOptions, print_prompt, run as generate_text};
use segpack::work::Progress;
use segpack_formats::io::CancelToken;
use segpack_manifests::Pack;
use segpack_runtime_min::RunError;
use segpack_runtime_min::processing::{Chat, Prompt};
use segpack_runtime_min::session::{
    DeviceChoice, ExpertCacheSize, GenerationSettings, MemoryLimit, Session, SessionError,
    SessionOptions, Token,
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::cli::{self, Run, press_ctrl_c, segpack, start};
use crate::support::damage::flip;
use crate::support::folders::temp;
use crate::support::gpu;
use crate::support::tiny::{Qwen3Moe, Tiny, tiny_full, tiny_text};

fn packed(checkpoint: &Path) -> (TempDir, PathBuf) {
    let folder = temp();
    let pack = cli::packed(checkpoint, folder.path());
    (folder, pack)
}

fn arguments(pack: &Path, options: &[&str]) -> Vec<OsString> {
    let mut arguments = vec!["run".into(), pack.into()];
    arguments.extend(options.iter().map(OsString::from));
    arguments
}

/// `segpack run PACK`, with options that are separated by spaces.
fn run(pack: &Path, options: &str) -> Run {
    cli::run(&arguments(
        pack,
        &options.split_whitespace().collect::<Vec<_>>(),
    ))
}

fn piped(pack: &Path, options: &[&str], input: &[u8]) -> Run {
    let mut child = start(&arguments(pack, options));
    child.stdin.take().unwrap().write_all(input).unwrap();
    Run::from_output(options.join(" "), child.wait_with_output().unwrap())
}

/// The first prompt of the public trace of tiny-text, and its official continuation up to the
/// end-of-text id.
const OFFICIAL: (&str, [u64; 4]) = ("179", [4, 160, 55, 287]);

#[test]
fn ids_continue_as_officially_recorded_and_stop_at_the_checkpoints_eos() {
    let (_folder, pack) = packed(&tiny_text());
    let options = format!("--prompt-ids {} --max-new-tokens 24 --json", OFFICIAL.0);
    let (tokens, summary) = run(&pack, &options).ok().tokens();
    let ids: Vec<u64> = tokens.iter().map(|t| t["id"].as_u64().unwrap()).collect();
    assert_eq!(ids, OFFICIAL.1);
    assert_eq!(
        (&summary["stop_reason"], &tokens[3]["stop"]),
        (&"stop_id".into(), &true.into())
    );
    assert!(summary["expert_misses"].as_u64() > Some(0) && summary["peak_rss"].as_u64() > Some(0));
}

#[test]
fn a_text_comes_from_argument_or_standard_input_and_as_a_chat() {
    let (_folder, pack) = packed(&tiny_full());
    let text = "Hi, is the user on?";
    let options = ["--max-new-tokens", "8"];
    let argument = segpack!["run", &pack, "--prompt", text, options[0], options[1]].ok();
    for input in [text.to_owned(), format!("{text}\n"), format!("{text}\r\n")] {
        assert_eq!(
            piped(&pack, &options, input.as_bytes()).ok().stdout,
            argument.stdout
        );
    }
    argument.says(&["10 tokens", "8 tokens (max new tokens)", "peak memory"]);
    let chat = [
        "--chat",
        "--system",
        "Be brief.",
        "--max-new-tokens",
        "2",
        "--json",
    ];
    let (_, summary) = piped(&pack, &chat, text.as_bytes()).ok().tokens();
    // the toy template: <|im_start|>system\nBe
    // brief.<|im_end|>\n<|im_start|>user\n…<|im_end|>\n<|im_start|>assistant\n
    let ids: Vec<u64> = summary["prompt_ids"]
        .as_array()
        .unwrap()
        .iter()
        .map(|i| i.as_u64().unwrap())
        .collect();
    assert_eq!(
        ids.iter().filter(|i| **i == 286).count(),
        3,
        "three turns begin"
    );
    assert_eq!(
        ids.iter().filter(|i| **i == 287).count(),
        2,
        "two turns end"
    );
}

#[test]
fn candidates_ranks_and_sampling_are_as_asked() {
    let (_folder, pack) = packed(&tiny_full());
    let requested = [
        "--prompt",
        "Hi",
        "--max-new-tokens",
        "3",
        "--top-k-logits",
        "4",
        "--rank",
        " the",
    ];
    let (tokens, summary) = cli::run(&arguments(&pack, &[&requested[..], &["--json"]].concat()))
        .ok()
        .tokens();
    for token in &tokens {
        let top = token["top"].as_array().unwrap();
        assert_eq!(
            (top.len(), &top[0]["id"]),
            (4, &token["id"]),
            "greedy takes the best"
        );
        assert!(
            top.windows(2)
                .all(|pair| pair[0]["logit"].as_f64() >= pair[1]["logit"].as_f64())
        );
    }
    let rank = summary["rank"]["rank"].as_u64().unwrap();
    assert!((1..=320).contains(&rank));
    // what was asked for is a result, which --quiet does not hide
    let quiet = cli::run(&arguments(
        &pack,
        &[&requested[..], &["--quiet", "--experts-report"]].concat(),
    ))
    .ok();
    assert!(!quiet.stderr.contains("peak memory"), "{quiet}");
    quiet.says(&[&format!("rank of \" the\": {rank}"), "layer   0: "]);
    let sample = |seed: &str| {
        run(
            &pack,
            &format!("--prompt Hi --max-new-tokens 12 --temperature 2 --seed {seed}"),
        )
        .ok()
        .stdout
    };
    assert_eq!(sample("7"), sample("7"));
    assert_ne!(sample("7"), sample("8"));
}

/// The smallest memory budget for a prompt and so many tokens, in bytes.
fn minimum_memory(pack: &Path, prompt: &[u32], max_new_tokens: usize) -> u64 {
    let pack = Pack::open(pack).unwrap();
    let mut options = SessionOptions::default();
    options.memory = MemoryLimit::Bytes(1_000_000);
    let session = Session::open(&pack, &options).unwrap();
    let mut settings = GenerationSettings::default();
    settings.max_new_tokens = max_new_tokens;
    let mut ignore = |_: &Token<'_>| ControlFlow::Continue(());
    let text = session.text().unwrap();
    match session.generate(&text, prompt, &settings, &mut ignore) {
        Err(SessionError::Run(RunError::Memory { minimum, .. })) => minimum,
        other => panic!("{other:?}"),
    }
}

#[test]
fn too_little_memory_says_how_much_works_and_that_works() {
    let (_folder, pack) = packed(&tiny_text());
    let ids = OFFICIAL.0;
    let run = |memory: &str| {
        run(
            &pack,
            &format!("--prompt-ids {ids} --max-new-tokens 24 --json --memory {memory}"),
        )
    };
    let refused = run("1MB").exits(1);
    // the message is rounded, the error is not
    let minimum = minimum_memory(&pack, &[ids.parse().unwrap()], 24);
    #[expect(clippy::cast_precision_loss, reason = "shown with one decimal place")]
    let megabytes = format!("{:.1} MB", minimum as f64 / 1e6);
    refused.says(&[
        "memory budget of 1.0 MB is too small for this model and prompt",
        &format!("the minimum is {megabytes}"),
    ]);
    let (tokens, summary) = run(&minimum.to_string()).ok().tokens();
    assert_eq!(tokens.last().unwrap()["id"], 287);
    assert_eq!(
        (&summary["expert_slots"], &summary["dense_resident"]),
        (&1.into(), &false.into())
    );
    assert!(
        summary["peak_rss"].as_u64() <= Some(minimum),
        "{minimum} {summary}"
    );
}

#[test]
fn a_cache_of_one_gives_the_same_tokens() {
    let (_folder, pack) = packed(&tiny_full());
    let cached = |cache: &str| {
        let options =
            format!("--prompt-ids 5,9,200,31 --max-new-tokens 12 --json --expert-cache {cache}");
        run(&pack, &options).ok().tokens()
    };
    let (one, all) = (cached("1"), cached("24"));
    assert_eq!(one.0, all.0);
    assert!(one.1["bytes_read"].as_u64() > all.1["bytes_read"].as_u64());
    run(&pack, "--prompt-ids 5 --expert-cache 0")
        .exits(2)
        .says(&["at least one expert"]);
}

#[test]
fn damage_and_what_is_missing_are_errors_before_or_at_the_load() {
    let (_folder, pack) = packed(&tiny_full());
    let run =
        |pack: &Path, more: &str| run(pack, &format!("--prompt-ids 5,9 --max-new-tokens 4 {more}"));
    for expert in 0..8 {
        // whichever expert comes first, its digest is compared
        let path = pack.join("packs/thinker.text.experts.00.safetensors");
        flip(&path, 4096 + expert * 6912 + 100);
    }
    run(&pack, "--json").exits(3).says(&[
        "segment \"thinker.text.layers.0.experts.",
        "is damaged: BLAKE3",
    ]);
    run(&pack, "--check=never").ok();

    let folder = temp();
    let partial = folder.path().join("towers");
    segpack![
        "pack",
        tiny_full(),
        "-o",
        &partial,
        "--exclude",
        "thinker.text"
    ]
    .ok();
    run(&partial, "--json")
        .exits(3)
        .says(&["the pack cannot be run"]);
    let thinker = folder.path().join("thinker");
    segpack![
        "pack",
        tiny_full(),
        "-o",
        &thinker,
        "--include",
        "thinker.text"
    ]
    .ok();
    run(&thinker, "--json").ok();
}

#[test]
fn ids_and_tokenizers_outside_the_embedding_are_refused() {
    let (_folder, pack) = packed(&tiny_full());
    run(&pack, "--prompt-ids 5,320")
        .exits(3)
        .says(&["token id 320", "vocabulary of 320"]);
    let (_folder, pack) = packed(&tiny_text());
    run(&pack, "--prompt hi")
        .exits(3)
        .says(&["no tokenizer", "vocab.json"]);
    run(&pack, "--prompt-ids 5 --print-prompt")
        .exits(3)
        .says(&["these token ids have no text"]);
    run(&pack, "--prompt-ids 5 --trace x.json")
        .exits(2)
        .says(&["ends in .safetensors"]);
    run(&pack, "--prompt-ids 5 --trace no/such/x.safetensors")
        .exits(1)
        .says(&["cannot write to no/such"]);
}

/// Before anything is computed, and nothing is left of an output whose run failed.
#[test]
fn outputs_are_opened_before_the_work() {
    let (folder, pack) = packed(&tiny_text());
    let at = |name: &str| folder.path().join(name).display().to_string();
    fs::create_dir(at("taken.safetensors")).unwrap();
    fs::create_dir(at("taken.json")).unwrap();
    // no token of the text comes out before the refusal
    for options in [
        format!("--experts-report={}", at("no/such/x.json")),
        format!("--experts-report={}", at("no/such/x.svg")),
        format!("--experts-report={}", at("taken.json")),
        format!("--trace {}", at("no/such/x.safetensors")),
        format!("--trace {}", at("taken.safetensors")),
    ] {
        let run = run(&pack, &format!("--prompt-ids 5 {options}"));
        let run = run.exits(1).says(&["cannot write"]);
        assert_eq!(run.stdout, b"", "{options}");
    }
    let (trace, report) = (at("x.safetensors"), at("x-experts.json"));
    let outputs = format!("--trace {trace} --experts-report={report}");
    run(&pack, &format!("--prompt-ids 100000 {outputs}")).exits(3);
    let left: Vec<_> = fs::read_dir(folder.path())
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with('x'))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    run(
        &pack,
        &format!("--prompt-ids 5 --max-new-tokens 2 {outputs}"),
    )
    .ok();
    assert!(Path::new(&trace).is_file() && Path::new(&report).is_file());
}

#[test]
fn a_part_of_a_chat_that_is_nothing_known_is_refused() {
    let (folder, pack) = packed(&tiny_full());
    let file = folder.path().join("chat.json");
    for (part, words) in [
        (
            json!({"type": "input_audio", "input_audio": {}}),
            "of type \"input_audio\"",
        ),
        (
            json!({"type": "text", "text": "a", "video": "b.mp4"}),
            "is text, with a key for video",
        ),
        (json!({"type": "thought"}), "of type \"thought\""),
        (json!({}), "an object without \"text\""),
    ] {
        let text = json!({"type": "text", "text": "What is this?"});
        let chat = json!([
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": [text, part]},
        ]);
        fs::write(&file, chat.to_string()).unwrap();
        for print in ["--print-prompt", "--max-new-tokens=1"] {
            segpack!["run", &pack, "--messages", &file, print]
                .exits(3)
                .says(&["part 1 of message 1", words]);
        }
    }
}

#[test]
fn what_is_read_whole_has_a_limit() {
    let (folder, pack) = packed(&tiny_full());
    let chat = folder.path().join("chat.json");
    let holes = |path: &Path| {
        fs::File::create(path).unwrap().set_len(1 << 40).unwrap();
    };
    holes(&chat);
    segpack!["run", &pack, "--messages", &chat]
        .exits(3)
        .says(&["chat.json: has 1099511627776 bytes; at most 67108864 are read of such a file"]);
    holes(&folder.path().join("trace.json"));
    segpack![
        "validate",
        &pack,
        "--reference",
        folder.path().join("trace.json")
    ]
    .exits(3)
    .says(&["trace.json: has 1099511627776 bytes; at most"]);
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        let path = pack.join("source").join(name);
        let whole = fs::read(&path).unwrap();
        holes(&path);
        segpack!["run", &pack, "--prompt", "Hi"]
            .exits(3)
            .says(&[name, "has 1099511627776 bytes; at most"]);
        fs::write(path, whole).unwrap();
    }
    segpack!["run", &pack, "--prompt", "Hi", "--max-new-tokens", "1"].ok();
}

#[test]
fn plain_qwen3_moe_checkpoints_run_too() {
    let folder = temp();
    let checkpoint = Tiny::qwen3_moe(Qwen3Moe::default()).write(&folder.path().join("model"));
    let (_folder, pack) = packed(&checkpoint);
    let run = run(&pack, "--prompt-ids 1,2,3 --max-new-tokens 4 --json").ok();
    assert_eq!(run.tokens().0.len(), 4);
}

#[test]
fn the_prompt_can_be_looked_at() {
    let (_folder, pack) = packed(&tiny_full());
    let rendered = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(
        run(&pack, "--prompt Hi --chat --print-prompt").ok().text(),
        rendered
    );
    let ids = run(&pack, "--prompt Hi --chat --print-prompt --json")
        .ok()
        .json()["ids"]
        .clone();
    let (_, summary) = run(&pack, "--prompt Hi --chat --max-new-tokens 1 --json")
        .ok()
        .tokens();
    assert_eq!(ids, summary["prompt_ids"]);
    let back = ids
        .as_array()
        .unwrap()
        .iter()
        .map(Value::to_string)
        .collect::<Vec<_>>()
        .join(",");
    assert_eq!(
        run(&pack, &format!("--prompt-ids {back} --print-prompt"))
            .ok()
            .text(),
        rendered
    );
}

#[test]
fn a_chat_of_several_turns_comes_from_a_file() {
    let (folder, pack) = packed(&tiny_full());
    let messages = json!([
        {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
        {"role": "assistant", "content": "Ho"},
        {"role": "user", "content": "Hm"},
    ]);
    let rendered = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHo<|im_end|>\n\
                    <|im_start|>user\nHm<|im_end|>\n<|im_start|>assistant\n";
    let file = folder.path().join("chat.json");
    for chat in [
        messages.clone(),
        json!({"messages": messages}),
        json!({"messages": messages, "tools": null}),
    ] {
        std::fs::write(&file, chat.to_string()).unwrap();
        assert_eq!(
            segpack!["run", &pack, "--messages", &file, "--print-prompt"]
                .ok()
                .text(),
            rendered
        );
        let input = chat.to_string();
        let standard = piped(
            &pack,
            &["--messages", "-", "--print-prompt"],
            input.as_bytes(),
        )
        .ok();
        assert_eq!(standard.text(), rendered);
    }
    let refused = |chat: &str, words: &[&str]| {
        piped(&pack, &["--messages", "-"], chat.as_bytes())
            .exits(3)
            .says(words);
    };
    refused(
        "[",
        &[
            "standard input is neither a JSON list of messages",
            "line 1",
        ],
    );
    refused("{\"messages\": [], \"tool\": 1}", &["unknown field `tool`"]);
    refused("{\"messages\": []}", &["an empty list"]);
    refused("3", &["this is a number"]);
    run(&pack, "--messages x.json --prompt Hi").exits(2);
    run(&pack, "--messages no-such.json")
        .exits(1)
        .says(&["no-such.json"]);
}

#[test]
fn odd_prompts_are_taken_or_refused_clearly() {
    let (_folder, pack) = packed(&tiny_full());
    let one = ["--max-new-tokens", "1", "--json"];
    let (_, summary) = piped(&pack, &one, b"a\0b").ok().tokens();
    assert_eq!(summary["prompt_tokens"], 3);
    piped(&pack, &one, b"a\xff")
        .exits(3)
        .says(&["standard input is not UTF-8: invalid utf-8 sequence of 1 bytes from index 1"]);
    for empty in ["", "\n"] {
        piped(&pack, &one, empty.as_bytes())
            .exits(2)
            .says(&["the prompt has no tokens"]);
    }
    for ids in ["5,x", "", "5,,6", "4294967296"] {
        segpack!["run", &pack, "--prompt-ids", ids]
            .exits(2)
            .says(&["expected token ids"]);
    }
    segpack![
        "run",
        &pack,
        "--prompt-ids",
        "5, 6",
        "--max-new-tokens",
        "1"
    ]
    .ok();
    run(&pack, "--prompt Hi --max-new-tokens 0")
        .ok()
        .says(&["generated: 0 tokens (max new tokens)"]);
    run(&pack, "--prompt Hi --temperature 0")
        .exits(2)
        .says(&["the temperature is 0"]);
    segpack!["run", &pack, "--prompt", "Hi", "--rank", ""]
        .exits(2)
        .says(&["the continuation to rank has no tokens"]);
}

/// The config says for how many positions the model was made.
#[test]
fn the_longest_context_ends_the_text() {
    let mut tiny = Tiny::qwen3_moe(Qwen3Moe::default());
    tiny.config["max_position_embeddings"] = json!(6);
    let folder = temp();
    let (_folder, pack) = packed(&tiny.write(&folder.path().join("model")));
    let endless = "--max-new-tokens 99999999999 --json";
    let (tokens, summary) = run(&pack, &format!("--prompt-ids 1,2,3 {endless}"))
        .ok()
        .tokens();
    assert_eq!(
        (tokens.len(), &summary["stop_reason"]),
        (4, &json!("context_full"))
    );
}

#[test]
fn all_text_is_streamed_and_never_half_a_character() {
    let (_folder, pack) = packed(&tiny_full());
    for count in 1..12 {
        let options =
            format!("--prompt Hi --temperature 3 --seed {count} --max-new-tokens {count} --json");
        let (tokens, summary) = run(&pack, &options).ok().tokens();
        let streamed: String = tokens.iter().map(|t| t["text"].as_str().unwrap()).collect();
        assert_eq!(summary["text"], streamed);
        assert!(
            tokens.len() == count || summary["stop_reason"] == "stop_id",
            "{summary}"
        );
    }
}

/// Hears of everything in order.
#[derive(Clone, Default)]
struct Heard(Arc<Mutex<Vec<String>>>);

impl Heard {
    fn push(&self, what: &str) {
        self.0.lock().unwrap().push(what.to_owned());
    }
}

impl Progress for Heard {
    fn start(&self, phase: &'static str, total: u64) {
        self.push(&format!("{phase} {total}"));
    }
    fn start_counting(&self, phase: &'static str, total: u64, unit: &'static str) {
        self.push(&format!("{phase} {total} {unit}"));
    }
    fn advance(&self, more: u64) {
        self.push(&format!("{more}"));
    }
    fn finish(&self) {
        self.push("finish");
    }
    fn note(&self, _: &str) {}
}

fn options() -> RunOptions {
    let mut options = RunOptions::new(Prompt::from("Hi"));
    options.session.threads = Some(1);
    options.generation.max_new_tokens = 2;
    options
}

#[test]
fn progress_counts_layers_and_is_over_before_the_first_token() {
    let (folder, pack) = packed(&tiny_full());
    let opened = Pack::open(&pack).unwrap();
    let trace = Some(folder.path().join("trace.safetensors"));
    for trace in [None, trace] {
        let mut options = options();
        options.trace = trace;
        let heard = Heard::default();
        let mut tell = |event: RunEvent<'_>| {
            if let RunEvent::Token(_) = event {
                heard.push("token");
            }
            Ok(())
        };
        generate_text(
            &opened,
            &options,
            &CancelToken::default(),
            &heard,
            &mut tell,
        )
        .unwrap();
        let wanted = [
            "loading and prefilling 3 layer",
            "1",
            "1",
            "1",
            "finish",
            "token",
            "token",
        ];
        assert_eq!(*heard.0.lock().unwrap(), wanted);
    }
    // damage ends it, too
    for expert in 0..8 {
        flip(
            &pack.join("packs/thinker.text.experts.01.safetensors"),
            4096 + expert * 6912 + 100,
        );
    }
    let heard = Heard::default();
    generate_text(
        &opened,
        &options(),
        &CancelToken::default(),
        &heard,
        &mut |_| Ok(()),
    )
    .unwrap_err();
    assert_eq!(heard.0.lock().unwrap().last().unwrap(), "finish");
}

#[test]
fn progress_counts_all_bytes_that_are_preloaded() {
    gpu::load();
    let (_folder, pack) = packed(&tiny_full());
    let opened = Pack::open(&pack).unwrap();
    let mut totals = Vec::new();
    for device in [DeviceChoice::Cpu, DeviceChoice::Cuda(0)] {
        for experts in [None, Some(ExpertCacheSize::Experts(5))] {
            let mut requested = options();
            requested.generation.preload = true;
            requested.session.device = device;
            requested.session.expert_cache = experts;
            let heard = Heard::default();
            generate_text(
                &opened,
                &requested,
                &CancelToken::default(),
                &heard,
                &mut |_| Ok(()),
            )
            .unwrap();
            let heard = heard.0.lock().unwrap();
            let total: u64 = heard[0].strip_prefix("loading ").unwrap().parse().unwrap();
            let end = heard.iter().position(|h| h == "finish").unwrap();
            let sum: u64 = heard[1..end]
                .iter()
                .map(|h| h.parse::<u64>().unwrap())
                .sum();
            assert_eq!(sum, total, "{device:?} {experts:?}: {heard:?}");
            totals.push(total);
        }
    }
    let [all, some, all_on_gpu, some_on_gpu] = totals[..] else {
        unreachable!()
    };
    assert!(some < all && some_on_gpu == some, "{totals:?}");
    assert!(
        all < all_on_gpu,
        "a GPU with room has the embedding, too: {totals:?}"
    );
}

#[test]
fn a_template_that_does_not_end_is_refused() {
    let checkpoint = temp();
    crate::support::folders::copy(&tiny_full(), checkpoint.path());
    let many = "{% for i in range(100000) %}".repeat(3) + &"{% endfor %}".repeat(3);
    std::fs::write(checkpoint.path().join("chat_template.jinja"), many).unwrap();
    let (_folder, pack) = packed(checkpoint.path());
    run(&pack, "--chat --prompt Hi")
        .exits(3)
        .says(&["chat_template.jinja", "loops for ever, or nearly"]);
    run(&pack, "--prompt Hi --max-new-tokens 1").ok();
    let chat = RunOptions::new(Prompt::from(Chat::turn(None, "Hi")));
    let stop = CancelToken::default();
    print_prompt(&Pack::open(&pack).unwrap(), &chat, &stop).unwrap_err();
}

/// Reads the first text, then interrupts, or hangs up.
#[cfg(unix)]
#[test]
fn an_interrupted_text_ends_its_line_and_a_closed_pipe_is_no_failure() {
    let (_folder, pack) = packed(&tiny_full());
    // the greedy text of these weights repeats itself until the context is full
    let endless = arguments(&pack, &["--prompt", "Hi", "--max-new-tokens", "100000"]);
    let mut child = start(&endless);
    let mut out = child.stdout.take().unwrap();
    out.read_exact(&mut [0]).unwrap();
    press_ctrl_c(&child);
    let mut rest = Vec::new();
    out.read_to_end(&mut rest).unwrap();
    let run = Run::from_output(
        "run, interrupted".to_owned(),
        child.wait_with_output().unwrap(),
    );
    run.exits(130).says(&["error: interrupted"]);
    assert_eq!(rest.last(), Some(&b'\n'));

    let mut child = start(&endless);
    child.stdout.take().unwrap().read_exact(&mut [0]).unwrap();
    let run = Run::from_output("run, hung up".to_owned(), child.wait_with_output().unwrap()).ok();
    assert!(!run.stderr.contains("error"), "{run}");
}

#[test]
fn the_experts_report_is_a_document_or_a_picture() {
    let (folder, pack) = packed(&tiny_full());
    let path = |name: &str| folder.path().join(name);
    let run = |file: &str| {
        let report = format!("--experts-report={}", path(file).display());
        segpack![
            "run",
            &pack,
            "--prompt",
            "Hi",
            "--max-new-tokens",
            "3",
            "--json",
            &report
        ]
    };
    let (_, summary) = run("experts.json").ok().tokens();
    let report: serde_json::Value =
        serde_json::from_slice(&std::fs::read(path("experts.json")).unwrap()).unwrap();
    assert_eq!(report["layers"], summary["experts"]);
    let sum = |key: &str| -> u64 {
        report["layers"]
            .as_array()
            .unwrap()
            .iter()
            .map(|l| l[key].as_u64().unwrap())
            .sum()
    };
    assert_eq!(sum("hits"), summary["expert_hits"]);
    assert_eq!(sum("misses"), summary["expert_misses"]);
    assert_eq!(report["passes"], 3);
    let costs = &summary["costs"];
    assert!(
        costs["forward"].as_f64() >= costs["waiting"].as_f64(),
        "{costs}"
    );
    run("experts.svg").ok();
    let svg = std::fs::read_to_string(path("experts.svg")).unwrap();
    assert!(
        svg.starts_with("<svg") && svg.contains("<title>layer"),
        "{svg}"
    );
    run("experts.png").exits(2).says(&[".json", ".svg"]);
    segpack![
        "run",
        &pack,
        "--prompt",
        "Hi",
        "--experts-report=/none/x.svg"
    ]
    .exits(1)
    .says(&["/none/x.svg"]);
}
