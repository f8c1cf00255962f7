//! What the program says, word for word. `INSTA_UPDATE=always` writes the snapshots anew.

use std::path::Path;

use crate::support::cli::{Run, program, segpack};
use crate::support::folders::temp;
use crate::support::tiny::{Qwen3Moe, Tiny, tiny_full, tiny_text};

/// Compares with a snapshot; folders of this run and digests get names that are always the same.
fn assert_text(name: &str, text: &str, folder: Option<&Path>) {
    let text = folder.map_or(text.to_owned(), |f| {
        text.replace(&f.display().to_string(), "FOLDER")
    });
    let is_digest = |word: &str| word.len() == 64 && word.bytes().all(|b| b.is_ascii_hexdigit());
    let words = text.split_inclusive([' ', '\n']);
    let text: String = words
        .map(|w| {
            if is_digest(w.trim_end()) {
                w.replace(w.trim_end(), "DIGEST")
            } else {
                w.to_owned()
            }
        })
        .collect();
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path("../../snapshots");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| insta::assert_snapshot!(name, text));
}

/// Terminals differ in width; this one has 100 columns.
fn help(command: &[&str]) -> String {
    Run::of(program().env("COLUMNS", "100").args(command))
        .ok()
        .text()
        .to_owned()
}

#[test]
fn every_command_explains_itself() {
    assert_text("help", &help(&["--help"]), None);
    for command in [
        "scan",
        "pack",
        "join",
        "verify",
        "sign",
        "info",
        "report",
        "diff",
        "ls",
        "cat",
        "unpack",
        "repack",
        "repair",
        "update",
        "export",
        "run",
        "serve",
        "validate",
        "bench",
        "demo",
        "devices",
        "completions",
        "man",
    ] {
        let long = help(&[command, "--help"]);
        assert!(
            long.contains("Examples:") && long.contains("Exit status:"),
            "{command}"
        );
        assert_text(&format!("help-{command}"), &long, None);
        assert!(!help(&[command, "-h"]).is_empty());
    }
    assert!(help(&["--version"]).starts_with("segpack 0."));
    assert!(help(&["scan", "--version"]).contains("segpack"));
}

#[test]
fn tables_and_verdicts() {
    let folder = temp();
    let place = Some(folder.path());
    let run = |name: &str, run: Run| assert_text(name, run.ok().text(), place);
    let at = |name: &str| folder.path().join(name);
    let checkpoint = Tiny::qwen3_moe(Qwen3Moe::default()).write(&at("checkpoint"));
    run("scan", segpack!["scan", &checkpoint]);
    run(
        "plan",
        segpack!["pack", &checkpoint, "-o", at("pack"), "--dry-run"],
    );
    run(
        "pack",
        segpack!["pack", &checkpoint, "-o", at("pack"), "--no-provenance"],
    );
    run("verify", segpack!["verify", at("pack")]);
    run("info", segpack!["info", at("pack")]);
    run(
        "ls",
        segpack!["ls", at("pack"), "*.layers.2.*", "text.embed_tokens"],
    );
    run(
        "ls-tensors",
        segpack!["ls", at("pack"), "--tensors", "*.layers.2.*"],
    );
    let other = Tiny::qwen3_moe(Qwen3Moe {
        layers: 3,
        ..Qwen3Moe::default()
    })
    .write(&at("other"));
    let differ = segpack!["diff", at("pack"), &other, "--stat"].exits(3);
    assert_text("diff", differ.text(), place);
    run(
        "ls-sum",
        segpack!["ls", at("pack"), "*.layers.2.*", "--sort", "size", "--sum"],
    );
    run("unpack", segpack!["unpack", at("pack"), "-o", at("back")]);
    assert_text(
        "unpack-some",
        segpack!["unpack", at("pack"), "-o", at("some"), "--include", "*.txt"]
            .ok()
            .text(),
        place,
    );
}

#[test]
fn errors_say_what_where_and_what_to_do() {
    let folder = temp();
    let at = |name: &str| folder.path().join(name);
    let printed = |name: &str, run: Run| assert_text(name, &run.stderr, Some(folder.path()));
    printed("error-no-such-command", segpack!["dance"].exits(2));
    printed("error-no-output", segpack!["pack", tiny_text()].exits(2));
    printed(
        "error-bad-codec",
        segpack!["pack", tiny_text(), "-o", at("x"), "--codec", "zip"].exits(2),
    );
    printed(
        "error-level-of-raw",
        segpack!["pack", tiny_text(), "-o", at("x"), "--level", "3"].exits(2),
    );
    printed(
        "error-no-such-component",
        segpack!["pack", tiny_full(), "-o", at("x"), "--include", "brain"].exits(2),
    );
    printed(
        "error-no-such-checkpoint",
        segpack!["scan", at("nothing")].exits(1),
    );
    printed("error-not-a-pack", segpack!["ls", folder.path()].exits(3));
    let mut tiny = Tiny::text();
    tiny.remove("thinker.model.layers.1.mlp.experts.7.up_proj.weight");
    tiny.tensor("thinker.model.norm.weight").shape = vec![8, 8];
    let checkpoint = tiny.write(&at("checkpoint"));
    printed(
        "error-incomplete",
        segpack!["pack", &checkpoint, "-o", at("x")].exits(3),
    );
    let scanned = segpack!["scan", &checkpoint].exits(3);
    let verdict = scanned
        .text()
        .split_once("NOT")
        .map(|(_, rest)| rest.to_owned())
        .unwrap_or_default();
    assert!(
        verdict.contains("layers.1.mlp.experts.7.up_proj"),
        "{scanned}"
    );
    segpack!["pack", tiny_text(), "-o", at("pack")].ok();
    printed(
        "error-output-exists",
        segpack!["pack", tiny_text(), "-o", at("pack")].exits(1),
    );
    printed(
        "error-no-such-tensor",
        segpack!["cat", at("pack"), "thinker.model.norm"].exits(3),
    );
    printed(
        "error-rows",
        segpack!["cat", at("pack"), "thinker.lm_head.weight", "--rows", "5-9"].exits(2),
    );
}
