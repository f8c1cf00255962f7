//! `serve`: the model behind OpenAI's interface, asked over HTTP.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::checkpoint::fixtures;
use crate::support::cli::{self, segpack};
use crate::support::folders::temp;
use crate::support::http::{Reply, Server};
use crate::support::tiny::{Qwen3Moe, Tiny, tiny_full, tiny_omni, tiny_text};

const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

fn packed(checkpoint: &Path) -> (TempDir, PathBuf) {
    let folder = temp();
    let pack = cli::packed(checkpoint, folder.path());
    (folder, pack)
}

fn full(options: &[&str]) -> (TempDir, PathBuf, Server) {
    let (folder, pack) = packed(&tiny_full());
    let server = Server::start(&pack, options);
    (folder, pack, server)
}

/// The keys of `more` set in a request.
fn with(mut request: Value, more: &Value) -> Value {
    let keys = more.as_object().unwrap().clone();
    request.as_object_mut().unwrap().extend(keys);
    request
}

/// What OpenAI's interface calls an error.
#[track_caller]
fn refused(reply: &Reply, status: u16) -> Value {
    assert_eq!(reply.status, status, "{reply:?}");
    let error = reply.json()["error"].clone();
    assert!(
        error["message"].is_string() && error["type"].is_string(),
        "{error}"
    );
    error
}

fn texts(chunks: &[Value], pointer: &str) -> String {
    let texts = chunks.iter().filter_map(|c| c.pointer(pointer)?.as_str());
    texts.collect()
}

#[test]
fn a_completion_is_what_run_generates() {
    let (_folder, pack, server) = full(&[]);
    for (options, more) in [
        (&[][..], json!({"temperature": 0})),
        (
            &["--temperature", "0.7", "--seed", "7"],
            json!({"temperature": 0.7, "seed": 7}),
        ),
        (
            &["--temperature", "2", "--top-k", "5", "--top-p", "0.9"],
            json!({"temperature": 2, "top_k": 5, "top_p": 0.9}),
        ),
    ] {
        let mut command = cli::program();
        let fixed = [
            "--prompt",
            "Hi, is the user on?",
            "--max-new-tokens",
            "12",
            "--json",
        ];
        command
            .arg("run")
            .arg(&pack)
            .args(fixed)
            .args(["--top-k-logits", "3"])
            .args(options);
        let (tokens, summary) = cli::Run::of(&mut command).ok().tokens();
        let request = json!({
            "model": "pack", "prompt": "Hi, is the user on?", "max_tokens": 12, "logprobs": 3,
            "return_tokens_as_token_ids": true, "return_token_ids": true
        });
        let answer = server.post(COMPLETIONS, &with(request, &more)).ok();
        let choice = &answer["choices"][0];
        assert_eq!(choice["token_ids"], summary["ids"]);
        assert_eq!(choice["prompt_token_ids"], summary["prompt_ids"]);
        assert_eq!(choice["text"], summary["text"]);
        assert_eq!(answer["usage"]["completion_tokens"], tokens.len());
        for (number, token) in tokens.iter().enumerate() {
            let reported = choice["logprobs"]["top_logprobs"][number]
                .as_object()
                .unwrap();
            for candidate in token["top"].as_array().unwrap() {
                let wanted = candidate["probability"].as_f64().unwrap().ln();
                let name = format!("token_id:{}", candidate["id"]);
                let seen = reported[&name].as_f64().unwrap();
                assert!((wanted - seen).abs() < 1e-9, "{wanted} {seen}");
            }
        }
    }
}

#[test]
fn several_prompts_are_continued_as_one_by_one() {
    let (_folder, pack) = packed(&tiny_text());
    let server = Server::start(&pack, &["--model-name", "tiny"]);
    assert_eq!(server.get("/v1/models").ok()["data"][0]["id"], "tiny");
    let ask = |prompt: Value| {
        let request = json!({"prompt": prompt, "temperature": 0, "return_token_ids": true});
        server
            .post(COMPLETIONS, &with(request, &json!({"max_tokens": 24})))
            .ok()
    };
    let both = ask(json!([[179], [5, 9]]));
    // the public trace of the checkpoint, up to its end-of-text id
    assert_eq!(both["choices"][0]["token_ids"], json!([4, 160, 55, 287]));
    assert_eq!(both["choices"][0]["finish_reason"], "stop");
    let alone = ask(json!([5, 9]));
    assert_eq!(
        both["choices"][1]["token_ids"],
        alone["choices"][0]["token_ids"]
    );
    assert_eq!(both["choices"][1]["index"], 1);
    let without = json!({"prompt": [179], "temperature": 0, "max_tokens": 24, "ignore_eos": true,
        "return_token_ids": true, "stop_token_ids": [55]});
    let choice = server.post(COMPLETIONS, &without).ok()["choices"][0].clone();
    assert_eq!(choice["token_ids"], json!([4, 160, 55]));
    assert_eq!(
        (&choice["finish_reason"], &choice["stop_reason"]),
        (&json!("stop"), &json!(55))
    );
}

#[test]
fn a_chat_is_what_run_answers_whole_or_in_pieces() {
    let (_folder, pack, server) = full(&[]);
    let (_, summary) = segpack![
        "run",
        &pack,
        "--chat",
        "--system",
        "Be brief.",
        "--prompt",
        "Hi",
        "--max-new-tokens",
        "9",
        "--json"
    ]
    .ok()
    .tokens();
    let request = json!({
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
        "temperature": 0, "max_completion_tokens": 9, "return_token_ids": true, "logprobs": true,
        "top_logprobs": 2,
    });
    let whole = server.post(CHAT, &request).ok();
    let choice = &whole["choices"][0];
    assert_eq!(whole["prompt_token_ids"], summary["prompt_ids"]);
    assert_eq!(choice["token_ids"], summary["ids"]);
    assert_eq!(choice["message"]["content"], summary["text"]);
    let content = choice["logprobs"]["content"].as_array().unwrap();
    assert_eq!(content.len(), 9);
    // greedy: the token itself is the best candidate
    for token in content {
        assert_eq!(token["logprob"], token["top_logprobs"][0]["logprob"]);
        assert_eq!(token["top_logprobs"].as_array().unwrap().len(), 2);
    }
    let streamed = json!({"stream": true, "stream_options": {"include_usage": true}});
    let reply = server.post(CHAT, &with(request, &streamed));
    assert_eq!(
        reply.header("content-type"),
        Some("text/event-stream; charset=utf-8")
    );
    let (chunks, is_done) = reply.events();
    assert!(is_done);
    assert_eq!(
        texts(&chunks, "/choices/0/delta/content"),
        summary["text"].as_str().unwrap()
    );
    assert_eq!(chunks.last().unwrap()["usage"], whole["usage"]);
    let pieces = chunks
        .iter()
        .filter_map(|c| c.pointer("/choices/0/logprobs/content")?.as_array());
    assert_eq!(&pieces.flatten().cloned().collect::<Vec<_>>(), content);
    let ids = chunks
        .iter()
        .filter_map(|c| c.pointer("/choices/0/token_ids")?.as_array());
    assert_eq!(Value::from_iter(ids.flatten().cloned()), summary["ids"]);
}

#[test]
fn an_echoed_prompt_has_the_log_probabilities_that_it_was_generated_with() {
    let (_folder, _pack, server) = full(&[]);
    let request = json!({
        "prompt": "Hi, is the user on?", "temperature": 0, "max_tokens": 6, "logprobs": 2,
        "ignore_eos": true, "return_token_ids": true
    });
    let generated = server.post(COMPLETIONS, &request).ok()["choices"][0].clone();
    let mut ids = generated["prompt_token_ids"].as_array().unwrap().clone();
    let before = ids.len();
    ids.extend(generated["token_ids"].as_array().unwrap().iter().cloned());
    for max_tokens in [0, 1] {
        let request = json!({
            "prompt": ids, "echo": true, "max_tokens": max_tokens, "logprobs": 2, "temperature": 0
        });
        let echoed = server.post(COMPLETIONS, &request).ok()["choices"][0].clone();
        let list = |of: &Value, key: &str| of["logprobs"][key].as_array().unwrap().clone();
        for key in ["tokens", "token_logprobs", "top_logprobs"] {
            let all = list(&echoed, key);
            assert_eq!(all.len(), ids.len() + max_tokens);
            assert_eq!(all[before..ids.len()], list(&generated, key)[..], "{key}");
        }
        assert_eq!(list(&echoed, "token_logprobs")[0], Value::Null);
        let text = generated["text"].as_str().unwrap();
        assert!(echoed["text"].as_str().unwrap().contains(text));
        assert_eq!(list(&echoed, "text_offset").len(), ids.len() + max_tokens);
    }
    // one token has nothing before it; without log probabilities nothing has to be run
    for (prompt, more) in [
        (json!([5]), json!({"logprobs": 0})),
        (json!("Hi"), json!({})),
    ] {
        let request = json!({"prompt": prompt, "echo": true, "max_tokens": 0});
        let choice = server.post(COMPLETIONS, &with(request, &more)).ok()["choices"][0].clone();
        assert_eq!(choice["finish_reason"], "length");
    }
}

#[test]
fn a_stop_string_ends_the_text_before_it() {
    let (_folder, _pack, server) = full(&[]);
    let request = json!({
        "prompt": "Hi, is the user on?", "temperature": 0, "max_tokens": 24, "ignore_eos": true
    });
    let text = server.post(COMPLETIONS, &request).ok()["choices"][0]["text"].clone();
    let text = text.as_str().unwrap().to_owned();
    // two characters in the middle of it, where they appear first
    let middle: Vec<char> = text
        .chars()
        .skip(text.chars().count() / 2)
        .take(2)
        .collect();
    let stop: String = middle.into_iter().collect();
    let wanted = &text[..text.find(&stop).unwrap()];
    let request = with(request, &json!({"stop": ["never to be seen", stop]}));
    let choice = server.post(COMPLETIONS, &request).ok()["choices"][0].clone();
    assert_eq!(choice["text"], wanted);
    assert_eq!(
        (&choice["finish_reason"], &choice["stop_reason"]),
        (&json!("stop"), &json!(stop))
    );
    let (chunks, is_done) = server
        .post(COMPLETIONS, &with(request, &json!({"stream": true})))
        .events();
    assert!(is_done);
    assert_eq!(texts(&chunks, "/choices/0/text"), wanted);
    assert_eq!(
        chunks.last().unwrap()["choices"][0]["finish_reason"],
        "stop"
    );
}

#[test]
fn images_and_sounds_are_taken_from_the_request() {
    let (_folder, pack) = packed(&tiny_omni());
    let server = Server::start(&pack, &[]);
    let media = |name: &str| fixtures().join("media").join(name);
    let encoded = |name: &str| STANDARD.encode(fs::read(media(name)).unwrap());
    let image = format!("data:image/png;base64,{}", encoded("photo.png"));
    let sound = json!({"data": encoded("blip_50ms_16k.wav"), "format": "wav"});
    for (option, file, part) in [
        (
            "--image",
            "photo.png",
            json!({"type": "image_url", "image_url": {"url": image}}),
        ),
        (
            "--audio",
            "blip_50ms_16k.wav",
            json!({"type": "input_audio", "input_audio": sound}),
        ),
    ] {
        let (_, summary) = segpack![
            "run",
            &pack,
            "--chat",
            option,
            media(file),
            "--prompt",
            "What is it?",
            "--max-new-tokens",
            "4",
            "--json"
        ]
        .ok()
        .tokens();
        let content = json!([part, {"type": "text", "text": "What is it?"}]);
        let request = json!({
            "messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 4,
            "return_token_ids": true
        });
        let answer = server.post(CHAT, &request).ok();
        assert_eq!(answer["prompt_token_ids"], summary["prompt_ids"]);
        assert_eq!(answer["choices"][0]["token_ids"], summary["ids"]);
    }
    let wrong = json!([{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]);
    let request = json!({"messages": [{"role": "user", "content": wrong}]});
    refused(&server.post(CHAT, &request), 400);
    let file = json!([{"type": "image_url", "image_url": {"url": media("photo.png")}}]);
    let request = json!({"messages": [{"role": "user", "content": file}]});
    let error = refused(&server.post(CHAT, &request), 400);
    assert_eq!(error["param"], "messages[0].content[0]");
}

#[test]
fn what_is_wrong_with_a_request_is_told_in_openais_form() {
    let (_folder, _pack, server) = full(&["--context", "64", "--max-body", "4kB"]);
    let prompt = || json!({"prompt": [5, 9], "max_tokens": 1});
    let cases = [
        (json!({"model": "gpt-4"}), 404, "model", "model_not_found"),
        (json!({"n": 2}), 400, "n", "unsupported_parameter"),
        (
            json!({"tools": [{}]}),
            400,
            "tools",
            "unsupported_parameter",
        ),
        (
            json!({"unheard_of": 1}),
            400,
            "unheard_of",
            "unsupported_parameter",
        ),
        (
            json!({"max_tokens": 64}),
            400,
            "",
            "context_length_exceeded",
        ),
        (json!({"prompt": [320]}), 400, "prompt", ""),
        (json!({"prompt": []}), 400, "prompt", ""),
        (json!({"prompt": ""}), 400, "", ""),
        (
            json!({"prompt": "a ".repeat(3000)}),
            413,
            "",
            "request_too_large",
        ),
    ];
    for (more, status, param, code) in cases {
        for stream in [false, true] {
            let request = with(with(prompt(), &more), &json!({ "stream": stream }));
            let error = refused(&server.post(COMPLETIONS, &request), status);
            assert_eq!(error["param"].as_str().unwrap_or(""), param, "{error}");
            assert_eq!(error["code"].as_str().unwrap_or(""), code, "{error}");
        }
    }
    let harmless = json!({"user": "me", "n": 1, "logit_bias": {}, "suffix": null});
    server.post(COMPLETIONS, &with(prompt(), &harmless)).ok();
    let full = json!({"prompt": [5, 9], "max_tokens": 63, "ignore_eos": true, "temperature": 0});
    let usage = server.post(COMPLETIONS, &full).ok()["usage"].clone();
    assert_eq!(
        usage["completion_tokens"], 63,
        "the last token needs no position"
    );

    refused(
        &Reply::read(server.send("POST /v1/completions HTTP/1.1", "{}")),
        415,
    );
    let json = "POST /v1/completions HTTP/1.1\r\nContent-Type: application/json; charset=utf-8";
    refused(&Reply::read(server.send(json, "{")), 400);
    refused(&Reply::read(server.send(json, "[]")), 400);
    refused(&server.get("/v1/embeddings"), 404);
    let reply = server.get(COMPLETIONS);
    assert_eq!(
        (refused(&reply, 405)["code"].as_str(), reply.header("allow")),
        (Some("method_not_allowed"), Some("POST"))
    );
    refused(&server.get("/v1/models/other"), 404);
    assert_eq!(server.get("/v1/models/pack").ok()["max_model_len"], 64);
    let foreign = "GET /v1/models HTTP/1.1\r\nHost: example.org\r\nConnection: close\r\n\r\n";
    assert_eq!(
        refused(&Reply::read(server.raw(foreign)), 403)["code"],
        "wrong_host"
    );
    let page = server.get("/metrics").body;
    let line = "segpack_requests_total{endpoint=\"/v1/completions\",status=\"413\"} 2";
    assert!(page.lines().any(|l| l == line), "{page}");
    // an answer is complete before its request is dropped
    let began = Instant::now();
    while server.metric("request_bytes") != 0.0 {
        assert!(
            began.elapsed() < Duration::from_secs(10),
            "a request is kept"
        );
        thread::sleep(Duration::from_millis(5));
    }
}

/// A request that goes on until it is stopped.
fn endless() -> Value {
    json!({"prompt": "Hi", "max_tokens": 19_000, "ignore_eos": true, "stream": true})
}

/// Begins one, and waits until the model is at it.
fn begin_endless(server: &Server) -> BufReader<std::net::TcpStream> {
    let mut reader = BufReader::new(server.begin(COMPLETIONS, &endless()));
    let mut line = String::new();
    while !line.starts_with("data: ") {
        line.clear();
        assert!(reader.read_line(&mut line).unwrap() > 0, "no answer");
    }
    reader
}

#[test]
fn more_requests_than_may_wait_are_refused_and_none_is_lost() {
    let memory = 119_000_000;
    let options = [
        "--queue",
        "3",
        "--context",
        "20000",
        "--memory",
        "160MB",
        "--max-body",
        "1MB",
    ];
    let (_folder, _pack, server) = full(&options);
    let running = begin_endless(&server);
    let one = json!({"prompt": "Hi", "max_tokens": 3, "ignore_eos": true});
    let replies: Vec<Reply> = thread::scope(|scope| {
        let clients = (0..12).map(|_| scope.spawn(|| server.post(COMPLETIONS, &one)));
        let clients: Vec<_> = clients.collect();
        server.wait_for("queue_length", 3.0);
        let refusals = "segpack_requests_total{endpoint=\"/v1/completions\",status=\"503\"} 9";
        while !server.get("/metrics").body.contains(refusals) {
            thread::sleep(Duration::from_millis(10));
        }
        // the one that is answered gives way
        drop(running);
        clients
            .into_iter()
            .map(|client| client.join().unwrap())
            .collect()
    });
    let (answered, turned_away): (Vec<_>, Vec<_>) = replies.iter().partition(|r| r.status == 200);
    assert_eq!((answered.len(), turned_away.len()), (3, 9));
    for reply in turned_away {
        assert_eq!(refused(reply, 503)["code"], "server_busy");
        let seconds: u64 = reply.header("retry-after").unwrap().parse().unwrap();
        assert!((1..=600).contains(&seconds));
    }
    for reply in answered {
        assert_eq!(reply.json()["usage"]["completion_tokens"], 3);
    }
    server.wait_for("running", 0.0);
    assert_eq!(server.metric("abandoned_total"), 1.0);
    assert_eq!(
        (
            server.metric("queue_length"),
            server.metric("request_bytes")
        ),
        (0.0, 0.0)
    );
    if cfg!(target_os = "linux") {
        let peak = server.metric("peak_resident_bytes");
        assert!(peak <= f64::from(memory), "{peak} of {memory}");
    }
}

#[test]
fn a_client_that_leaves_during_a_long_prompt_stops_it() {
    let folder = temp();
    let size = Qwen3Moe {
        layers: 2,
        experts: 2,
        hidden: 512,
        width: 4096,
        shards: 1,
    };
    let checkpoint = Tiny::qwen3_moe(size).write(&folder.path().join("checkpoint"));
    let pack = cli::packed(&checkpoint, folder.path());
    let server = Server::start(&pack, &["--threads", "1"]);
    let long = json!({"prompt": vec![7; 4000], "max_tokens": 1});
    for body in [long.clone(), with(long, &json!({"stream": true}))] {
        let connection = server.begin(COMPLETIONS, &body);
        server.wait_for("running", 1.0);
        drop(connection);
        server.wait_for("running", 0.0);
        assert_eq!(
            server.metric("answer_seconds_count"),
            server.metric("abandoned_total")
        );
        assert_eq!(server.metric("request_bytes"), 0.0);
    }
    assert_eq!(
        server.metric("generated_tokens_total"),
        0.0,
        "neither came to its token"
    );
    // the model goes on with another session
    let short = json!({"prompt": [7], "max_tokens": 2, "ignore_eos": true});
    assert_eq!(
        server.post(COMPLETIONS, &short).ok()["usage"]["completion_tokens"],
        2
    );
}

#[test]
fn a_key_is_asked_for_everywhere_but_for_health() {
    let (folder, pack) = packed(&tiny_full());
    let key = folder.path().join("key");
    fs::write(&key, "secret\n").unwrap();
    let server = Server::start(&pack, &["--api-key", key.to_str().unwrap()]);
    assert_eq!(server.started["needs_key"], true);
    assert_eq!(server.get("/health").ok(), json!({"status": "ok"}));
    for path in ["/v1/models", "/metrics", "/nowhere"] {
        let reply = server.get(path);
        assert_eq!(refused(&reply, 401)["code"], "invalid_api_key");
        assert_eq!(reply.header("www-authenticate"), Some("Bearer"));
    }
    for (shown, status) in [
        ("Bearer secret", 200),
        ("bearer secret", 200),
        ("Bearer secre", 401),
        ("Bearer ", 401),
        ("secret", 401),
    ] {
        let head = format!("GET /v1/models HTTP/1.1\r\nAuthorization: {shown}");
        assert_eq!(
            Reply::read(server.send(&head, "")).status,
            status,
            "{shown}"
        );
    }
    fs::write(&key, "two\nlines\n").unwrap();
    segpack!["serve", &pack, "--port", "0", "--api-key", &key]
        .exits(3)
        .says(&["holds no key"]);
}

#[test]
fn an_interrupted_server_lets_the_answer_end() {
    let (_folder, _pack, server) = full(&["--grace", "60", "--context", "20000"]);
    let mut request = endless();
    request["max_tokens"] = 300.into();
    let mut answered = BufReader::new(server.begin(COMPLETIONS, &request));
    let mut line = String::new();
    while !line.starts_with("data: ") {
        line.clear();
        answered.read_line(&mut line).unwrap();
    }
    let waiting = server.begin(COMPLETIONS, &endless());
    server.wait_for("queue_length", 1.0);
    server.interrupt();
    assert_eq!(
        refused(&Reply::read(waiting), 503)["code"],
        "server_stopping"
    );
    let mut rest = String::new();
    answered.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("\"finish_reason\":\"length\"") && rest.contains("[DONE]"));
    assert_eq!(server.end(), (Some(0), String::new()));
}

#[test]
fn an_answer_that_outlasts_the_grace_is_cut_and_says_so() {
    let (_folder, _pack, server) = full(&["--grace", "0", "--context", "20000"]);
    let mut answered = begin_endless(&server);
    server.interrupt();
    let mut rest = String::new();
    answered.read_to_string(&mut rest).unwrap();
    assert!(
        rest.contains("server_stopping") && !rest.contains("[DONE]"),
        "{rest}"
    );
    assert_eq!(server.end().0, Some(0));
}

#[test]
fn addresses_that_others_reach_have_to_be_allowed() {
    let (_folder, pack) = packed(&tiny_full());
    segpack!["serve", &pack, "--host", "0.0.0.0", "--port", "0"]
        .exits(2)
        .says(&["can be reached from other machines", "--allow-remote"]);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    segpack!["serve", &pack, "--port", port]
        .exits(1)
        .says(&["cannot listen at 127.0.0.1", "hint: --port 0"]);
    segpack!["serve", &pack, "--port", "0", "--context", "65537"]
        .exits(2)
        .says(&["wanted 1 to 65536"]);
    segpack!["serve", &pack, "--port", "0", "--memory", "1MB"]
        .exits(1)
        .says(&["the minimum is", "hint: --memory"]);
}
