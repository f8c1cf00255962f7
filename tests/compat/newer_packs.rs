//! Packs that newer programs may write: words and keys that this one does not know are carried
//! through, shown and verified, never called damage.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::checkpoint::fixtures;
use crate::support::cli::{FindingKind, Run, segpack};
use crate::support::damage::{edit_manifest, list, manifest};
use crate::support::folders::{contents, copy, temp};

/// The pack of version 1.1 whose family, component, a role and a part no build knows.
fn unknown_words() -> (TempDir, PathBuf) {
    let folder = temp();
    let pack = folder.path().join("pack");
    copy(&fixtures().join("packs/v1.1-words/raw"), &pack);
    (folder, pack)
}

/// How the words come into a pack: what a newer writer would have written.
pub fn with_unknown_words(pack: &Path) {
    edit_manifest(pack, |m| {
        m["generator"] = json!("segpack 9.9.9");
        m["model"] = json!({"family": "foo_moe", "text": {"latent_rank": 8}});
        for entry in list(m, "packs") {
            entry["component"] = json!("later.text");
        }
        for tensor in list(m, "tensors") {
            tensor["component"] = json!("later.text");
            if tensor["role"] == "attention_q" {
                tensor["role"] = json!("latent_q");
            }
            if tensor["part"] == "bias" {
                tensor["part"] = json!("codebook");
            }
        }
    });
}

#[test]
fn unknown_words_are_shown_verified_and_restored() {
    let (folder, pack) = unknown_words();
    // what nobody here can audit is said to be so, and nothing else is wrong with it
    let run = segpack!["verify", &pack, "--sums"].exits(3);
    assert!(run.text().starts_with("completeness: not known"), "{run}");
    let run = segpack!["verify", &pack, "--sums", "--allow-unaudited", "--json"].ok();
    assert_only_unaudited(&run);
    let lines = segpack!["ls", &pack, "--tensors", "--json"].ok();
    for word in ["later.text", "latent_q", "codebook"] {
        assert!(lines.text().contains(&format!("\"{word}\"")), "{word}");
    }
    segpack!["ls", &pack].ok();
    let name = "model.layers.1.self_attn.q_proj.bias";
    assert_eq!(segpack!["cat", &pack, name].ok().stdout.len(), 128);
    let back = folder.path().join("back");
    segpack!["unpack", &pack, "-o", &back].ok();
    // the checkpoint is known by another name here, and still the same
    assert_only_unaudited(
        &segpack![
            "verify",
            &pack,
            "--against",
            &back,
            "--allow-unaudited",
            "--json"
        ]
        .ok(),
    );
}

/// Of a family that no build knows, completeness is not known; nothing else is found.
pub fn assert_only_unaudited(run: &Run) {
    assert_eq!(run.json()["completeness"], "not_known", "{run}");
    let kinds: Vec<FindingKind> = run.findings().iter().map(|f| f.kind).collect();
    assert_eq!(kinds, [FindingKind::NotAudited], "{run}");
}

/// A family's name is no way around the audit: no release so far wrote another word for this
/// model.
#[test]
fn a_word_that_its_writer_did_not_know_is_a_lie() {
    let folder = temp();
    let pack = folder.path().join("pack");
    copy(&fixtures().join("packs/v1.1/raw"), &pack);
    edit_manifest(&pack, |m| m["model"] = json!({"family": "foo_moe"}));
    for flags in [&["--quick"][..], &["--quick", "--allow-unaudited"]] {
        let mut arguments = vec![
            "verify".into(),
            pack.clone().into_os_string(),
            "--json".into(),
        ];
        arguments.extend(flags.iter().map(std::ffi::OsString::from));
        let run = crate::support::cli::run(&arguments).exits(3);
        let found = run.findings();
        assert!(
            found.iter().any(|f| f.kind == FindingKind::WrongModelFacts),
            "{run}"
        );
    }
}

#[test]
fn repacking_carries_words_through() {
    let (folder, pack) = unknown_words();
    let coded = folder.path().join("coded");
    segpack!["repack", &pack, "-o", &coded, "--codec", "zstd"].ok();
    segpack!["verify", &coded, "--allow-unaudited"].ok();
    let (before, after) = (manifest(&pack), manifest(&coded));
    assert_eq!(before["model"], after["model"]);
    let words = |m: &Value| {
        let tensors = m["tensors"].as_array().unwrap().iter();
        let words = tensors.map(|t| ["name", "component", "role", "part"].map(|k| t[k].clone()));
        words.collect::<Vec<_>>()
    };
    assert_eq!(words(&before), words(&after));
}

#[test]
fn only_what_must_understand_the_model_refuses_by_name() {
    let (folder, pack) = unknown_words();
    let words = [
        "family \"foo_moe\" is not one that this build can run",
        "known: qwen3_omni_moe, dots1",
    ];
    segpack!["run", &pack, "--prompt-ids", "1"]
        .exits(3)
        .says(&words);
    let out = folder.path().join("out");
    segpack!["export", &pack, "--to", "qwen3-moe", "-o", &out]
        .exits(3)
        .says(&words);
    assert!(!out.exists());
    // the original layout needs no understanding
    segpack!["export", &pack, "--to", "hf", "-o", &out].ok();
}

#[test]
fn a_known_family_with_an_unknown_role_is_not_run() {
    let folder = temp();
    let pack = folder.path().join("pack");
    copy(&fixtures().join("packs/v1.1/raw"), &pack);
    edit_manifest(&pack, |m| {
        let tensor = &mut list(m, "tensors")[1];
        tensor["role"] = json!("attention_temperature");
    });
    // the rules of the family name this tensor, and call it something else
    let run = segpack!["verify", &pack, "--json"].exits(3);
    assert_eq!(
        run.findings()[0].kind,
        FindingKind::WrongClassification,
        "{run}"
    );
    let run = segpack!["run", &pack, "--prompt-ids", "1"].exits(3);
    run.says(&["attention_temperature", "does not know"]);
}

#[test]
fn what_is_no_word_is_damage() {
    let (_folder, pack) = unknown_words();
    let whole = manifest(&pack);
    for (list, key, bad) in [
        ("packs", "component", "../text"),
        ("tensors", "role", "Two Words"),
        ("tensors", "part", ""),
    ] {
        edit_manifest(&pack, |m| m[list][0][key] = json!(bad));
        segpack!["ls", &pack].exits(3).says(&["is not a word"]);
        edit_manifest(&pack, |m| m.clone_from(&whole));
    }
}

/// Two builds with one vocabulary write the same words.
#[test]
fn the_fixture_is_what_a_newer_writer_would_write() {
    let folder = temp();
    let (known, unknown) = (
        folder.path().join("known"),
        fixtures().join("packs/v1.1-words/raw"),
    );
    copy(&fixtures().join("packs/v1.1/raw"), &known);
    with_unknown_words(&known);
    assert!(contents(&known) == contents(&unknown));
}
