//! What the environment keeps from being read is not damaged: exit status 1, and advice. What the
//! drive cannot read is: 3.

#![cfg(target_os = "linux")]

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

use crate::support::cli::{Finding, FindingKind, Run, program};
use crate::support::damage::flip;
use crate::support::faults::{Fault, faulty};
use crate::support::folders::{copy, temp};
use crate::support::packs::pack_into;
use crate::support::tiny::tiny_text;

/// EPERM, EAGAIN, ENOMEM, EACCES, ENOTDIR, ENFILE, EMFILE, ETXTBSY.
const ENVIRONMENT: [i32; 8] = [1, 11, 12, 13, 20, 23, 24, 26];
const EIO: i32 = 5;

struct Scene {
    _folder: tempfile::TempDir,
    words: Vec<Vec<OsString>>,
}

/// Commands, and the ends of the paths of two files that each of them reads.
const READ: [[&str; 2]; 6] = [
    ["text.safetensors", "manifest.json"],
    ["text.safetensors", "manifest.json"],
    ["text.safetensors", "manifest.json"],
    ["text.safetensors", "manifest.json"],
    ["config.json", "model-00001-of-00004.safetensors"],
    ["config.json", "model-00001-of-00004.safetensors"],
];

impl Scene {
    fn new() -> Self {
        let folder = temp();
        let (pack, out) = (folder.path().join("pack"), folder.path().join("out"));
        pack_into(&tiny_text(), &pack, &[]);
        let words = |words: &[&str]| -> Vec<OsString> {
            let word = |word: &&str| match *word {
                "PACK" => pack.clone().into(),
                "OUT" => out.clone().into(),
                "CKPT" => tiny_text().into(),
                word => word.into(),
            };
            words.iter().map(word).collect()
        };
        let words = vec![
            words(&["verify", "PACK"]),
            words(&["unpack", "PACK", "-o", "OUT"]),
            words(&["repack", "PACK", "-o", "OUT", "--codec", "zstd"]),
            words(&["export", "PACK", "--to", "npy", "-o", "OUT"]),
            words(&["scan", "CKPT"]),
            words(&["pack", "CKPT", "-o", "OUT"]),
        ];
        Self {
            _folder: folder,
            words,
        }
    }

    fn clear(&self) {
        let _ = std::fs::remove_dir_all(self._folder.path().join("out"));
    }
}

#[test]
fn what_cannot_be_opened_is_not_damaged() {
    let scene = Scene::new();
    for (number, (words, files)) in scene.words.iter().zip(READ).enumerate() {
        for file in files {
            for (at, error) in ENVIRONMENT.into_iter().enumerate() {
                if (number + at) % 3 != 0 && error != 13 {
                    continue; // each with two others
                }
                let done = Run::of(faulty(Fault::Open(file, error)).args(words));
                assert_eq!(done.status, Some(1), "{file}, error {error}: {done}");
                if error == 13 {
                    assert!(done.stderr.contains("nothing is wrong with it"), "{done}");
                }
                scene.clear();
            }
        }
    }
}

/// Where something is damaged, that is told, and what was not checked beside it.
#[test]
fn what_cannot_be_opened_does_not_hide_what_is_damaged() {
    let folder = temp();
    let pack = folder.path().join("pack");
    pack_into(&tiny_text(), &pack, &[]);
    flip(&pack.join("source/generation_config.json"), 0);
    let words = [OsString::from("verify"), "--json".into(), pack.into()];
    let done = Run::of(faulty(Fault::Open("text.safetensors", 13)).args(&words)).exits(3);
    let found = done.findings();
    let is_told = |f: &Finding| f.file.as_deref() == Some("source/generation_config.json");
    assert!(found.iter().all(is_told) && !found.is_empty(), "{done}");
    done.says(&["not checked: packs/", "text.safetensors"]);
}

#[test]
fn what_the_drive_cannot_read_is_damaged() {
    let scene = Scene::new();
    for words in &scene.words {
        let done = Run::of(faulty(Fault::Reads(8, EIO)).args(words));
        assert_eq!(done.status, Some(3), "{done}");
        scene.clear();
    }
}

#[test]
fn a_read_that_works_when_tried_again_is_a_warning() {
    let scene = Scene::new();
    let mut words = scene.words[0].clone();
    words.push("--json".into());
    let mut warned = 0;
    for n in (1..120).step_by(7) {
        let done = Run::of(faulty(Fault::Read(n, EIO)).args(&words)).ok();
        let findings = done.findings();
        let is_warning = |f: &Finding| {
            f.kind == FindingKind::Unreadable
                && f.file.is_some()
                && f.bytes.is_some()
                && f.seen
                    .as_deref()
                    .is_some_and(|seen| seen.contains("tried again"))
        };
        assert!(findings.iter().all(is_warning), "{done}");
        warned += findings.len();
    }
    assert!(warned > 3, "{warned}");
    for words in &scene.words[1..] {
        Run::of(faulty(Fault::Read(9, EIO)).args(words)).ok();
        scene.clear();
    }
}

#[test]
fn few_descriptors_are_enough() {
    let scene = Scene::new();
    for words in &scene.words {
        let mut command = Command::new("sh");
        let program = program();
        command
            .args(["-c", "ulimit -n 32; exec \"$@\"", "sh"])
            .arg(program.get_program())
            .args(words);
        Run::of(&mut command).ok();
        scene.clear();
    }
}

/// Its index and the records of its download are read, too, before anything is known of it.
#[test]
fn a_checkpoint_whose_records_cannot_be_opened_is_not_damaged() {
    let folder = temp();
    let checkpoint = folder.path().join("checkpoint");
    copy(&tiny_text(), &checkpoint);
    let records = checkpoint.join(".cache/huggingface/download");
    std::fs::create_dir_all(&records).unwrap();
    std::fs::write(records.join("config.json.metadata"), "0\n0\n0\n").unwrap();
    let scan = [OsString::from("scan"), checkpoint.clone().into()];
    Run::of(program().args(&scan)).ok();
    for file in ["index.json", "config.json.metadata", "config.json"] {
        for error in ENVIRONMENT.into_iter().filter(|e| *e != 20) {
            let done = Run::of(faulty(Fault::Open(file, error)).args(&scan));
            assert_eq!(done.status, Some(1), "{file}, error {error}: {done}");
        }
        let done = Run::of(faulty(Fault::Open(file, EIO)).args(&scan));
        assert_eq!(done.status, Some(3), "{file}: {done}");
    }
}

#[test]
fn too_few_descriptors_are_not_damage() {
    let scene = Scene::new();
    let script = "ulimit -n \"$0\"; exec \"$@\"";
    for (words, count) in scene
        .words
        .iter()
        .flat_map(|w| (5..12).map(move |n| (w, n)))
    {
        let mut command = Command::new("sh");
        command
            .args(["-c", script, &count.to_string()])
            .arg(program().get_program())
            .args(words);
        let done = Run::of(&mut command);
        let advises = done.status == Some(1) && done.stderr.contains("hint: ");
        assert!(done.status == Some(0) || advises, "{count}: {done}");
        scene.clear();
    }
}

/// Nor a model whose files cannot be opened while it runs.
#[test]
fn a_model_that_cannot_be_opened_is_not_damaged() {
    let folder = temp();
    let pack = folder.path().join("pack");
    pack_into(&tiny_text(), &pack, &[]);
    let mut words = vec![OsString::from("run"), pack.into()];
    words.extend(["--prompt-ids", "1,2", "--max-new-tokens", "1", "--greedy"].map(OsString::from));
    Run::of(program().args(&words)).ok();
    for file in ["text.safetensors", "config.json", "manifest.json"] {
        for error in [12, 13, 24] {
            let done = Run::of(faulty(Fault::Open(file, error)).args(&words));
            assert_eq!(done.status, Some(1), "{file}, error {error}: {done}");
            assert!(
                done.stderr.contains("hint: "),
                "{file}, error {error}: {done}"
            );
        }
    }
}

/// Nor a signature.
#[test]
fn a_signature_that_cannot_be_opened_is_not_wrong() {
    let folder = temp();
    let pack = folder.path().join("pack");
    pack_into(&tiny_text(), &pack, &[]);
    let key =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/signing/test-key.pub.pem");
    let words = ["verify", "--quick", "--signature", "--public-key"].map(OsString::from);
    std::fs::write(pack.join("model.sig"), "{}").unwrap();
    let run = |error| {
        let mut command = faulty(Fault::Open("model.sig", error));
        Run::of(command.args(&words).args([&key, &pack]))
    };
    run(13).exits(1);
    run(EIO).exits(3);
}
