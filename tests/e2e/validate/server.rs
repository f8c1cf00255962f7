//! `validate --server`: what a server generates, judged at once. The server is one on this machine
//! that answers what llama.cpp answered of the tiny checkpoint.

#![cfg(feature = "remote")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::cli::{Run, interruptible, packed, press_ctrl_c, program};
use crate::support::folders::temp;
use crate::support::model_server::{Faults, ModelServer, Speaks, checkpoint_with_words};
use crate::support::tiny::tiny_text;

/// A pack, and a server that runs its model.
struct Scene {
    folder: TempDir,
    pack: PathBuf,
    server: ModelServer,
    kind: &'static str,
}

impl Scene {
    fn of(speaks: Speaks, faults: Faults) -> Self {
        let folder = temp();
        // only words need a tokenizer to become tokens
        let (pack, kind) = match speaks {
            Speaks::LlamaCpp => (packed(&tiny_text(), folder.path()), "llama.cpp"),
            Speaks::Vllm => (packed(&tiny_text(), folder.path()), "vllm"),
            Speaks::OpenAi => {
                let checkpoint = folder.path().join("checkpoint");
                checkpoint_with_words(&checkpoint);
                (packed(&checkpoint, folder.path()), "openai")
            }
        };
        let server = ModelServer::start(speaks, faults);
        Self {
            folder,
            pack,
            server,
            kind,
        }
    }

    /// Asks without prompts.
    fn command(&self, dtype: &str) -> Command {
        self.command_as(program(), dtype)
    }

    fn command_as(&self, mut command: Command, dtype: &str) -> Command {
        command.arg("validate").arg(&self.pack);
        command.args(["--server", self.server.url(), "--server-kind", self.kind]);
        command.args(["--served-dtype", dtype, "--max-new-tokens", "24"]);
        command.env("SEGPACK_RETRY_PAUSE", "0.005");
        command.env("NO_PROXY", "*");
        command
    }

    /// With the prompts that the server knows, as ids.
    fn with_ids(&self, mut command: Command) -> Command {
        for (_, ids) in self.server.prompts() {
            command.args(["--prompt-ids", &ids]);
        }
        command
    }

    fn run(&self, dtype: &str, more: &[&str]) -> Run {
        let mut command = self.with_ids(self.command(dtype));
        Run::of(command.args(more))
    }
}

/// The report, which is what its schema says.
fn checked(run: &Run) -> Value {
    let report = run.json();
    let schema = include_bytes!("../../../schemas/validate-report.schema.json");
    let schema: Value = serde_json::from_slice(schema).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    let errors: Vec<_> = validator
        .iter_errors(&report)
        .map(|e| e.to_string())
        .collect();
    assert!(errors.is_empty(), "{errors:#?}");
    report
}

fn choice<'r>(report: &'r Value, name: &str) -> &'r Value {
    let rows = report["choices"].as_array().unwrap();
    rows.iter().find(|row| row["choice"] == name).unwrap()
}

#[test]
fn a_server_of_each_kind_that_runs_the_model_is_within_tolerance() {
    for speaks in [Speaks::LlamaCpp, Speaks::Vllm, Speaks::OpenAi] {
        let scene = Scene::of(speaks, Faults::default());
        let report = checked(&scene.run("f32", &["--json", "-q"]).ok());
        assert_eq!(
            (
                &report["verdict"],
                &report["reference"],
                &report["reference_dtype"]
            ),
            (&json!("inside"), &json!("server"), &json!("float32")),
            "{speaks:?}"
        );
        assert_eq!(report["reference_name"], scene.server.url());
        let tokens = choice(&report, "greedy_tokens");
        assert_eq!(
            (&tokens["compared"], &tokens["equal"]),
            (&json!(4 * 24), &json!(4 * 24))
        );
        let values = &report["values"][0];
        assert_eq!(values["values"], json!(4 * 24 * 5), "{speaks:?}");
        assert!(values["max_abs"].as_f64().unwrap() < 1e-4);
        // 2 x 3e-4
        assert_eq!(report["tolerance"], json!(6e-4));
    }
}

/// llama.cpp lists nothing of a token whose text ends within a character.
#[test]
fn a_step_that_the_server_lists_nothing_of_is_not_taken_for_the_next_one() {
    let faults = Faults {
        leaves_out: true,
        ..Faults::default()
    };
    let scene = Scene::of(Speaks::LlamaCpp, faults);
    let report = checked(&scene.run("f32", &["--json", "-q"]).ok());
    assert_eq!(report["verdict"], "inside");
    assert_eq!(choice(&report, "greedy_tokens")["equal"], json!(4 * 24));
    let values = report["values"][0]["values"].as_u64().unwrap();
    // 8 of 24 steps have no list; nor is it known of which of two equal neighbours one is
    assert!((4 * 8 * 5..=4 * 16 * 5).contains(&values), "{values}");
    let unlisted = 4 * 24 - values / 5;
    let what = format!("log-probabilities of {unlisted} of 96 tokens");
    let named = report["not_compared"].as_array().unwrap();
    assert!(named.contains(&json!(what)), "{named:?}");
}

#[test]
fn texts_and_chats_are_sent_to_servers_that_tell_words() {
    let scene = Scene::of(Speaks::OpenAi, Faults::default());
    let texts: Vec<String> = scene.server.prompts().into_iter().map(|p| p.0).collect();
    for chat in [&[][..], &["--chat"]] {
        let mut command = scene.command("float32");
        for text in &texts {
            command.args(["--prompt", text]);
        }
        let run = Run::of(command.args(chat)).ok();
        assert!(
            run.text()
                .contains("ok, within tolerance; compared with what http://127"),
            "{run}"
        );
    }
    let requested = scene.server.requests();
    assert_eq!(requested[0]["prompt"], json!(texts[0]));
    assert_eq!(
        requested[4]["messages"],
        json!([{"role": "user", "content": texts[0]}])
    );
    assert_eq!(
        (&requested[4]["logprobs"], &requested[4]["top_logprobs"]),
        (&json!(true), &json!(5))
    );
    // those that tell ids are sent the ids of the rendered chat
    let other = Scene::of(Speaks::Vllm, Faults::default());
    let mut command = other.command_as(program(), "float32");
    command.args(["--prompt", &texts[1]]);
    // tiny-text has no tokenizer
    Run::of(&mut command).exits(3).says(&["tokenizer"]);
}

#[test]
fn without_prompts_fixed_ids_are_asked() {
    let scene = Scene::of(Speaks::Vllm, Faults::default());
    // the server knows none of them
    Run::of(&mut scene.command("float32")).exits(1);
    let requested = scene.server.requests();
    assert_eq!(requested[0]["prompt"], json!([17]));
    assert_eq!(requested[0]["model"], "tiny");
}

#[test]
fn another_model_is_a_finding() {
    for speaks in [Speaks::LlamaCpp, Speaks::Vllm, Speaks::OpenAi] {
        let faults = Faults {
            other_model: true,
            ..Faults::default()
        };
        let run = Scene::of(speaks, faults).run("float32", &["--json", "-q"]);
        let report = checked(&run.exits(3));
        assert_eq!(report["verdict"], "outside", "{speaks:?}");
        let tokens = choice(&report, "greedy_tokens");
        assert!(tokens["equal"].as_u64() < tokens["compared"].as_u64());
    }
}

#[test]
fn small_differences_are_judged_by_the_served_dtype() {
    let faults = Faults {
        drift: -0.01,
        ..Faults::default()
    };
    let scene = Scene::of(Speaks::Vllm, faults);
    scene.run("float32", &[]).exits(3).says(&[]);
    let run = scene.run("bfloat16", &[]).ok();
    assert!(run.text().contains("not judged"), "{run}");
    run.says(&["--tolerance X judges it"]);
    let report = checked(
        &scene
            .run("bfloat16", &["--tolerance", "0.02", "--json", "-q"])
            .ok(),
    );
    assert_eq!(
        (&report["verdict"], &report["tolerance"]),
        (&json!("inside"), &json!(0.02))
    );
    scene.run("bfloat16", &["--tolerance", "0.005"]).exits(3);
}

/// A fault, what it makes of the run, and what is said.
type Case = (Speaks, Faults, i32, &'static [&'static str]);

#[test]
fn what_a_server_does_wrong_is_an_error_that_says_what_to_do() {
    let faults = Faults::default;
    let cases: [Case; 12] = [
        (
            Speaks::Vllm,
            Faults {
                refuses: Some((500, "{\"error\": \"out of\\nmemory\"}")),
                ..faults()
            },
            1,
            &["status 500: out of memory", "its log says why"],
        ),
        (
            Speaks::Vllm,
            Faults {
                refuses: Some((404, "{\"message\": \"no model m\"}")),
                ..faults()
            },
            1,
            &["status 404: no model m", "--server-model"],
        ),
        (
            Speaks::OpenAi,
            Faults {
                refuses: Some((400, "{\"detail\": \"logprobs: at most 1\"}")),
                ..faults()
            },
            1,
            &["status 400: logprobs: at most 1", "--top-logprobs"],
        ),
        (
            Speaks::OpenAi,
            Faults {
                models: Some(json!([{"id": "a"}, {"id": "b"}])),
                ..faults()
            },
            2,
            &[
                "/v1/models: serves a, b; which one",
                "--server-model names it",
            ],
        ),
        (
            Speaks::LlamaCpp,
            Faults {
                moved: true,
                ..faults()
            },
            1,
            &["status 307", "/elsewhere", "give that address as --server"],
        ),
        (
            Speaks::LlamaCpp,
            Faults {
                without_logprobs: true,
                ..faults()
            },
            3,
            &[
                "/completion: the answer to prompt 0 has no log-probabilities",
                "option",
            ],
        ),
        (
            Speaks::OpenAi,
            Faults {
                without_logprobs: true,
                ..faults()
            },
            3,
            &["has no log-probabilities"],
        ),
        (
            Speaks::Vllm,
            Faults {
                samples: true,
                ..faults()
            },
            3,
            &["step 0 is not greedy", "it samples"],
        ),
        (
            Speaks::LlamaCpp,
            Faults {
                counts_more: true,
                ..faults()
            },
            3,
            &["read the prompt as 13 tokens; the pack's tokenizer and template make 12 of it"],
        ),
        (
            Speaks::LlamaCpp,
            Faults {
                cut: true,
                ..faults()
            },
            1,
            &["/completion: the answer broke off"],
        ),
        (
            Speaks::LlamaCpp,
            Faults {
                garbled: true,
                ..faults()
            },
            3,
            &["the answer is no JSON", "<html>welcome</html>"],
        ),
        // more often than it is asked
        (
            Speaks::LlamaCpp,
            Faults {
                busy: 99,
                ..faults()
            },
            1,
            &["status 503: busy", "try again later"],
        ),
    ];
    for (speaks, faults, status, words) in cases {
        let reported = format!("{speaks:?} {faults:?}");
        let run = Scene::of(speaks, faults).run("float32", &[]);
        assert_eq!(run.status, Some(status), "{reported}\n{run}");
        assert!(run.stdout.is_empty(), "{reported}\n{run}");
        run.says(words);
    }
}

#[test]
fn a_server_that_is_busy_is_asked_again() {
    let faults = Faults {
        busy: 3,
        ..Faults::default()
    };
    let scene = Scene::of(Speaks::Vllm, faults);
    let run = scene.run("float32", &[]).ok();
    run.says(&["status 503: busy; trying again"]);
    assert_eq!(scene.server.requests().len(), 4 + 3);
}

#[test]
fn a_key_comes_from_the_environment_or_a_file_and_is_never_printed() {
    const KEY: &str = "sk-very-secret";
    let faults = || Faults {
        key: Some(KEY),
        ..Faults::default()
    };
    let scene = Scene::of(Speaks::OpenAi, faults());
    let file = scene.folder.path().join("key");
    fs::write(&file, format!("{KEY}\n")).unwrap();
    let mut by_file = scene.with_ids(scene.command("float32"));
    Run::of(by_file.arg("--api-key-file").arg(&file)).ok();
    let by_environment = |key: &str| {
        let mut command = scene.with_ids(scene.command("float32"));
        command
            .args(["--api-key-env", "SOME_KEY"])
            .env("SOME_KEY", key);
        Run::of(&mut command)
    };
    by_environment(KEY).ok();
    // the server repeats what it was sent
    let wrong = by_environment("sk-another-secret").exits(1);
    assert!(!wrong.stderr.contains("secret"), "{wrong}");
    wrong.says(&[
        "status 401: the key *** does not open this",
        "--api-key-env",
    ]);
    let not_given = scene.run("float32", &[]).exits(1);
    not_given.says(&["status 401: the key none does"]);
    by_environment("two\nlines-secret")
        .exits(2)
        .says(&["SOME_KEY holds no key"]);
    by_environment("")
        .exits(2)
        .says(&["SOME_KEY is not set, or empty"]);
}

#[test]
fn a_slow_server_is_waited_for_and_told_of() {
    let faults = Faults {
        slow: Some(Duration::from_millis(2300)),
        ..Faults::default()
    };
    let scene = Scene::of(Speaks::LlamaCpp, faults);
    let one = &scene.server.prompts()[0].1;
    let ask = |more: &[&str]| {
        let mut command = scene.command("float32");
        Run::of(command.args(["--prompt-ids", one]).args(more))
    };
    ask(&[])
        .ok()
        .says(&["/completion: no answer yet, after 2 s"]);
    ask(&["--server-timeout", "0.1"])
        .exits(1)
        .says(&["no answer", "--server-timeout"]);
}

#[test]
fn a_server_that_does_not_answer_can_be_left_at_once() {
    let faults = Faults {
        slow: Some(Duration::from_secs(20)),
        ..Faults::default()
    };
    let scene = Scene::of(Speaks::LlamaCpp, faults);
    let mut command = scene.with_ids(scene.command_as(interruptible(), "float32"));
    let mut child = command.spawn().unwrap();
    while scene.server.requests().is_empty() {
        std::thread::sleep(Duration::from_millis(10));
    }
    let began = Instant::now();
    press_ctrl_c(&child);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(began.elapsed() < Duration::from_secs(5));
}

#[test]
fn nobody_who_listens_is_an_error() {
    let folder = temp();
    let pack = packed(&tiny_text(), folder.path());
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", free.local_addr().unwrap());
    drop(free);
    let ask = |url: &str, more: &[&str]| {
        let mut command = program();
        command
            .arg("validate")
            .arg(&pack as &Path)
            .args(["--server", url]);
        command.env("NO_PROXY", "*");
        Run::of(command.args(more))
    };
    let given = ["--server-kind", "llama.cpp", "--served-dtype", "f32"];
    let run = ask(&url, &given).exits(1);
    run.says(&["no answer", "is the server running"]);
    ask("http://user:pass@h", &given)
        .exits(2)
        .says(&["expected an address"]);
    ask(&url, &given[..2]).exits(2).says(&["--served-dtype"]);
    ask(&url, &[&given[..], &["--against", "x"]].concat()).exits(2);
    ask(&url, &[&given[..], &["--prompt-ids", "5,320"]].concat())
        .exits(2)
        .says(&["prompt 0: there is no token 320: the model has 320"]);
}
