//! `chat`: a conversation, its commands and its memory.

use std::ffi::OsString;
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use segpack::steps::StepError;
use segpack::steps::chat::{ChatOptions, chat};
use segpack_formats::io::CancelToken;
use segpack_manifests::Pack;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::cli::{self, Run, press_ctrl_c, segpack, start};
use crate::support::folders::temp;
use crate::support::tiny::{tiny_full, tiny_text};

fn packed(checkpoint: &Path) -> (TempDir, PathBuf) {
    let folder = temp();
    let pack = cli::packed(checkpoint, folder.path());
    (folder, pack)
}

fn arguments(pack: &Path, options: &[&str]) -> Vec<OsString> {
    let mut arguments = vec!["chat".into(), pack.into()];
    arguments.extend(options.iter().map(OsString::from));
    arguments
}

/// A conversation of these lines.
fn printed(pack: &Path, options: &[&str], lines: &str) -> Run {
    let mut child = start(&arguments(pack, options));
    let mut input = child.stdin.take().unwrap();
    input.write_all(lines.as_bytes()).unwrap();
    drop(input);
    Run::from_output(lines.to_owned(), child.wait_with_output().unwrap())
}

#[test]
fn a_conversation_remembers_what_was_said() {
    let (folder, pack) = packed(&tiny_full());
    let saved = folder.path().join("chat.json");
    let options = ["--system", "Be brief.", "--max-new-tokens", "6"];
    let lines = format!(
        "Name three rivers.\n\nThe longest?\n/save {}\n",
        saved.display()
    );
    printed(&pack, &options, &lines).ok();
    let document: Value = serde_json::from_slice(&fs::read(&saved).unwrap()).unwrap();
    let messages = document["messages"].as_array().unwrap();
    let roles: Vec<_> = messages
        .iter()
        .map(|m| m["role"].as_str().unwrap())
        .collect();
    assert_eq!(roles, ["system", "user", "assistant", "user", "assistant"]);
    // `run` answers the same messages alike
    let file = folder.path().join("asked.json");
    fs::write(&file, json!({"messages": messages[..4]}).to_string()).unwrap();
    let run = segpack![
        "run",
        &pack,
        "--messages",
        &file,
        "--max-new-tokens",
        "6",
        "--json"
    ];
    let (_, summary) = run.ok().tokens();
    assert_eq!(summary["text"], messages[4]["content"]);
    // what was saved can be gone on with
    let run = printed(&pack, &["--load", saved.to_str().unwrap()], "/show\n").ok();
    assert_eq!(serde_json::from_str::<Value>(run.text()).unwrap(), document);
    let lines = format!("/load {}\n/reset\n/system\n/show\n", saved.display());
    let run = printed(&pack, &[], &lines).ok();
    assert_eq!(
        serde_json::from_str::<Value>(run.text()).unwrap(),
        json!({"messages": []})
    );
}

/// The ids of the answers to these messages, each with how many tokens of its prompt were kept.
fn answers(pack: &Pack, messages: &[&str], loaded: Option<&str>) -> Vec<(Vec<u32>, usize, String)> {
    let mut options = ChatOptions::new();
    options.generation.max_new_tokens = 12;
    let stop = CancelToken::default();
    chat(pack, &options, &stop, |conversation| {
        if let Some(json) = loaded {
            conversation.load("test", json)?;
        }
        let mut all = Vec::new();
        for message in messages {
            let answer = conversation.answer(message, &mut |_| Ok(()))?;
            let history = json!({"messages": conversation.messages()}).to_string();
            all.push((answer.generation.unwrap().ids, answer.kept_tokens, history));
        }
        Ok::<_, StepError>(all)
    })
    .unwrap()
}

#[test]
fn tokens_that_were_run_are_kept_and_change_nothing() {
    let (_folder, pack) = packed(&tiny_full());
    let pack = Pack::open(&pack).unwrap();
    let messages = ["Hi, is the user on?", "Why?", "Name three rivers."];
    let all = answers(&pack, &messages, None);
    assert_eq!(all[0].1, 0);
    for number in 1..messages.len() {
        let (ids, kept, _) = &all[number];
        assert!(*kept > 0, "nothing was kept of turn {number}");
        let before = Some(&all[number - 1].2[..]);
        let fresh = answers(&pack, &messages[number..=number], before);
        assert_eq!((&fresh[0].0, fresh[0].1), (ids, 0));
    }
}

#[test]
fn an_answer_that_is_given_up_leaves_the_conversation_as_it_can_go_on() {
    let (_folder, pack) = packed(&tiny_full());
    let pack = Pack::open(&pack).unwrap();
    let stop = CancelToken::default();
    let mut options = ChatOptions::new();
    options.generation.max_new_tokens = 12;
    let wanted = answers(&pack, &["Why?"], None).remove(0).0;
    let heard = Mutex::new(0);
    let seen = chat(&pack, &options, &stop, |conversation| {
        // stopped in the middle of an answer
        let stopped = conversation.answer("Hi, is the user on?", &mut |_| {
            *heard.lock().unwrap() += 1;
            if *heard.lock().unwrap() == 3 {
                stop.cancel();
            }
            Ok(())
        })?;
        assert!(stopped.is_stopped && stopped.generation.is_none());
        assert_eq!(conversation.messages().len(), 2);
        // before its first token
        stop.cancel();
        let stopped = conversation.answer("And?", &mut |_| Ok(()))?;
        assert!(stopped.is_stopped && stopped.text.is_empty());
        stop.reset();
        conversation.reset();
        Ok::<_, StepError>(conversation.answer("Why?", &mut |_| Ok(()))?.generation)
    });
    assert_eq!(seen.unwrap().unwrap().ids, wanted);
}

#[test]
fn ctrl_c_ends_the_answer_and_not_the_program() {
    let (_folder, pack) = packed(&tiny_full());
    let options = [
        "--max-new-tokens",
        "100000",
        "--context",
        "8000",
        "--stop",
        "never said",
        "-t",
        "1",
    ];
    let mut child = start(&arguments(&pack, &options));
    let mut input = child.stdin.take().unwrap();
    input.write_all(b"Hi, is the user on?\n").unwrap();
    let mut out = child.stdout.take().unwrap();
    let mut byte = [0];
    out.read_exact(&mut byte).unwrap();
    press_ctrl_c(&child);
    input.write_all(b"/show\n").unwrap();
    drop(input);
    let mut rest = Vec::new();
    out.read_to_end(&mut rest).unwrap();
    let run = Run::from_output("chat".to_owned(), child.wait_with_output().unwrap()).ok();
    run.says(&["(stopped)"]);
    let text = String::from_utf8_lossy(&rest);
    assert!(text.contains("\"assistant\""), "{text}");
}

#[test]
fn what_a_conversation_cannot_take_is_an_error() {
    let (folder, pack) = packed(&tiny_full());
    for (lines, words) in [
        ("/nothing\n", "there is no command \"/nothing\""),
        ("/save\n", "/save needs the name of a file"),
        ("/save /no/such/folder/x.json\n", "cannot write"),
        ("/load /no/such/file.json\n", "cannot"),
    ] {
        let run = printed(&pack, &[], lines);
        assert!(run.status.is_some_and(|status| status > 0), "{run}");
        run.says(&[words]);
    }
    let bad = folder.path().join("bad.json");
    fs::write(
        &bad,
        "[{\"role\": \"user\", \"content\": [{\"type\": \"image\"}]}]",
    )
    .unwrap();
    let load = ["--load", bad.to_str().unwrap()];
    printed(&pack, &load, "").exits(3).says(&["of text alone"]);
    let run = printed(&pack, &["--context", "4"], "Hi, is the user on?\n").exits(1);
    run.says(&["the conversation has", "room for 4"]);
    let (_folder, without) = packed(&tiny_text());
    printed(&without, &[], "Hi\n")
        .exits(3)
        .says(&["no tokenizer"]);
    // help, and the end
    let run = printed(&pack, &[], "/help\n/exit\nnot read\n").ok();
    assert!(run.stdout.is_empty());
    run.says(&["/system [TEXT]", "/load FILE"]);
}
