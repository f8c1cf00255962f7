//! The program among other programs: streams, colours, closed pipes, quiet runs, bounded memory.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::json;
use tempfile::TempDir;

use crate::support::checkpoint::{self, Options};
#[cfg(target_os = "linux")]
use crate::support::cli::peak_memory;
use crate::support::cli::{Run, program, segpack};
use crate::support::folders::{assert_same, temp};
use crate::support::packs::pack_into;
use crate::support::tiny::{Qwen3Moe, Tiny, tiny_full};

fn packed() -> (TempDir, PathBuf) {
    let folder = temp();
    let out = folder.path().join("pack");
    pack_into(&tiny_full(), &out, &["--codec", "raw"]);
    (folder, out)
}

#[test]
fn a_quiet_run_says_nothing_but_results() {
    let folder = temp();
    let out = folder.path().join("pack");
    let printed = [
        segpack!["--quiet", "pack", tiny_full(), "-o", &out]
            .ok()
            .stderr,
        segpack!["verify", &out, "-q"].ok().stderr,
        segpack!["unpack", "--quiet", &out, "-o", folder.path().join("back")]
            .ok()
            .stderr,
        segpack!["scan", "-q", tiny_full()].ok().stderr,
        segpack!["ls", &out].ok().stderr,
    ];
    assert!(printed.iter().all(String::is_empty), "{printed:?}");
    // errors are said even then
    segpack!["pack", "-q", tiny_full(), "-o", &out]
        .exits(1)
        .says(&["error:", "exists"]);
}

#[test]
fn results_go_to_stdout_and_everything_else_to_stderr() {
    let (folder, pack) = packed();
    let out = folder.path().join("again");
    // --json: one document, nothing else
    segpack!["pack", tiny_full(), "-o", &out, "--json"]
        .ok()
        .json();
    segpack!["verify", &out, "--json"].ok().json();
    segpack!["unpack", &out, "-o", folder.path().join("back"), "--json"]
        .ok()
        .json();
    // the identity of a pack is printed by those who know it
    let identity =
        segpack_formats::digest::Sha256::of(&fs::read(out.join("manifest.json")).unwrap())
            .to_string();
    let verified = segpack!["verify", &out].ok();
    assert!(verified.text().contains(&identity), "{verified}");
    let packed = segpack!["pack", tiny_full(), "-o", folder.path().join("third")].ok();
    assert!(packed.text().contains(&identity), "{packed}");
    // failures print nothing on stdout
    for run in [
        segpack!["ls", folder.path()].exits(3),
        segpack!["cat", &pack, "nothing"].exits(3),
        segpack!["pack", tiny_full(), "-o", &pack].exits(1),
        segpack!["scan", folder.path().join("nothing")].exits(1),
        segpack!["nonsense"].exits(2),
        segpack![].exits(2),
    ] {
        assert!(run.stdout.is_empty() && !run.stderr.is_empty(), "{run}");
    }
}

/// Reads one line (or nothing) of stdout and closes it.
fn with_closed_pipe(arguments: &[&std::ffi::OsStr], lines: usize) -> Run {
    let mut child = program()
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    for _ in 0..lines {
        stdout.read_line(&mut String::new()).unwrap();
    }
    drop(stdout);
    Run::from_output(
        format!("{arguments:?} | head"),
        child.wait_with_output().unwrap(),
    )
}

#[test]
fn a_closed_pipe_is_silent() {
    let (_folder, pack) = packed();
    let pack = pack.as_os_str();
    let checkpoint = tiny_full();
    let checkpoint = checkpoint.as_os_str();
    let all: [&[&std::ffi::OsStr]; 7] = [
        &["ls".as_ref(), pack],
        &["ls".as_ref(), pack, "--tensors".as_ref(), "--json".as_ref()],
        &[
            "cat".as_ref(),
            pack,
            "thinker.text.lm_head".as_ref(),
            "thinker.text.embed_tokens".as_ref(),
        ],
        &["scan".as_ref(), checkpoint, "--json".as_ref()],
        // progress is not what a closed pipe is silent about
        &["verify".as_ref(), pack, "--json".as_ref(), "-q".as_ref()],
        &["completions".as_ref(), "bash".as_ref()],
        &["--help".as_ref()],
    ];
    for arguments in all {
        for lines in [0, 1] {
            let run =
                with_closed_pipe(arguments, if arguments[0] == "cat" { 0 } else { lines }).ok();
            assert!(run.stderr.is_empty(), "{run}");
        }
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_stdout_is_an_error() {
    let (_folder, pack) = packed();
    for arguments in [&["ls", "--json"][..], &["verify", "--json"]] {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let mut command = program();
        command
            .arg(arguments[0])
            .arg(&pack)
            .args(&arguments[1..])
            .stdout(full)
            .stderr(Stdio::piped());
        let output = command.spawn().unwrap().wait_with_output().unwrap();
        Run::from_output(arguments.join(" "), output)
            .exits(1)
            .says(&["standard output", "No space left"]);
    }
}

#[test]
fn colours_are_a_matter_of_choice() {
    let run = |set: &[(&str, &str)], arguments: &[&str]| {
        let mut command = program();
        command
            .envs(set.iter().copied())
            .args(arguments)
            .args(["ls", "/nothing/here"]);
        Run::of(&mut command).exits(1).stderr
    };
    let escape = '\u{1b}';
    assert!(run(&[], &["--color", "always"]).contains(escape));
    for plain in [
        run(&[], &[]),
        run(&[("NO_COLOR", "1")], &[]),
        run(&[], &["--color", "never"]),
        run(&[("NO_COLOR", "1")], &["--color", "auto"]),
    ] {
        assert!(!plain.contains(escape), "{plain:?}");
    }
    segpack!["--color", "sometimes", "ls", "x"].exits(2);
}

/// On a terminal: colours and bars on stderr only, and no tensors.
#[cfg(target_os = "linux")]
#[test]
fn a_terminal_gets_no_binary() {
    let (folder, pack) = packed();
    let script = |set: &[(&str, &str)], line: &str| {
        let mut command = Command::new("script");
        command
            .args(["--quiet", "--return", "--command", line, "/dev/null"])
            .current_dir(folder.path());
        command.env_remove("NO_COLOR").envs(set.iter().copied());
        command.stdin(Stdio::null()).output().ok()
    };
    let segpack = env!("CARGO_BIN_EXE_segpack");
    let pack = pack.display();
    let Some(output) = script(&[], &format!("{segpack} cat {pack} thinker.text.lm_head")) else {
        eprintln!("not tested: script is not on the PATH");
        return;
    };
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(1), "{printed}");
    assert!(
        printed.contains("terminal") && printed.contains('\u{1b}'),
        "{printed:?}"
    );
    let plain = script(
        &[("NO_COLOR", "1")],
        &format!("{segpack} cat {pack} thinker.text.lm_head"),
    )
    .unwrap();
    assert!(!String::from_utf8_lossy(&plain.stdout).contains('\u{1b}'));
}

#[test]
fn scripts_and_manuals_are_made_for_every_command() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = segpack!["completions", shell].ok();
        assert!(script.text().contains("no-source-digests"), "{shell}");
    }
    segpack!["completions", "tcsh"].exits(2).says(&["bash"]);
    for command in [
        "",
        "scan",
        "pack",
        "verify",
        "ls",
        "cat",
        "unpack",
        "demo",
        "completions",
        "man",
    ] {
        let page = if command.is_empty() {
            segpack!["man"]
        } else {
            segpack!["man", command]
        }
        .ok();
        assert!(
            page.text().contains(".TH") && page.text().contains("Exit status"),
            "{command}: {page}"
        );
    }
    segpack!["man", "dance"].exits(2).says(&["dance"]);
}

/// Coders of the highest level take 38 MiB each; nine packs would keep nine of them busy.
#[cfg(target_os = "linux")]
#[test]
#[ignore = "takes half a minute"]
fn many_coders_share_the_memory() {
    let folder = TempDir::new().unwrap();
    let size = Qwen3Moe {
        layers: 9,
        experts: 1,
        hidden: 1024,
        width: 1024,
        shards: 1,
    };
    let mut tiny = Tiny::qwen3_moe(size);
    tiny.config["num_experts_per_tok"] = json!(1);
    let checkpoint = tiny.write(&folder.path().join("checkpoint"));
    let (out, again) = (folder.path().join("many"), folder.path().join("one"));
    let pack = |out: &Path, level: &str, jobs: &str| {
        let mut pack = program();
        pack.arg("pack").arg(&checkpoint).arg("-o").arg(out);
        pack.args(["--codec", "zstd", "--level", level, "--jobs", jobs]);
        let peak = peak_memory(&mut pack);
        eprintln!("level {level}, {jobs} jobs: {} MiB", peak >> 20);
        assert!(peak < 256 << 20, "{pack:?} took {peak} bytes");
    };
    pack(&out, "22", "9");
    pack(&again, "22", "1");
    assert_same(&out, &again);
}

/// Full-width tensors, 600 MB of them, through little memory, and back.
#[cfg(target_os = "linux")]
#[test]
#[ignore = "takes a minute and 2.4 GB of disk"]
fn memory_does_not_grow_with_the_model() {
    const LIMIT: u64 = 256 << 20;
    let folder = TempDir::new().unwrap();
    let options = Options {
        layers: Some(1),
        talker_layers: Some(1),
        tower_layers: Some(3),
        thinker_only: true,
        noise: Some(1),
        limit: 400_000_000,
    };
    let checkpoint = folder.path().join("checkpoint");
    checkpoint::write(&checkpoint, &options).unwrap();
    for codec in ["raw", "zstd"] {
        let (out, back) = (folder.path().join("pack"), folder.path().join("back"));
        let mut pack = program();
        pack.arg("pack")
            .arg(&checkpoint)
            .arg("-o")
            .arg(&out)
            .args(["--codec", codec]);
        let mut verify = program();
        verify.arg("verify").arg(&out).arg("--sums");
        let mut unpack = program();
        unpack.arg("unpack").arg(&out).arg("-o").arg(&back);
        for command in [&mut pack, &mut verify, &mut unpack] {
            let peak = peak_memory(command);
            eprintln!(
                "{codec} {:?}: {} MiB",
                command.get_args().next().unwrap(),
                peak >> 20
            );
            assert!(peak < LIMIT, "{command:?} took {peak} bytes");
        }
        assert_same(&checkpoint, &back);
        fs::remove_dir_all(&out).unwrap();
        fs::remove_dir_all(&back).unwrap();
    }
}
