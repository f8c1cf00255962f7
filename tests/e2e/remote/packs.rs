//! Packs on servers, read as those of a folder are.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::place;
use crate::support::cli::{Run, interruptible, segpack};
use crate::support::damage::flip;
use crate::support::folders::{assert_same, contents, copy, temp};
use crate::support::hub::{Faults, Hub};
use crate::support::packs::pack_into;
use crate::support::tiny::{Qwen3Moe, Tiny, tiny_text};

/// A pack in a folder, and a server that has it.
struct Scene {
    folder: TempDir,
    hub: Hub,
}

impl Scene {
    fn of(checkpoint: &Path, options: &[&str], faults: Faults) -> Self {
        let folder = temp();
        let pack = folder.path().join("pack");
        pack_into(checkpoint, &pack, options);
        let hub = Hub::of(&pack, faults);
        Self { folder, hub }
    }

    /// A raw pack of a model that runs.
    fn small(faults: Faults) -> Self {
        Self::of(&tiny_text(), &[], faults)
    }

    /// A pack of some MB, with segments of some 200 kB.
    fn large(faults: Faults) -> Self {
        let folder = temp();
        let size = Qwen3Moe {
            layers: 3,
            experts: 4,
            hidden: 256,
            width: 128,
            shards: 3,
        };
        let checkpoint = Tiny::qwen3_moe(size).write(&folder.path().join("checkpoint"));
        Self::of(&checkpoint, &["--codec", "bf16-rans"], faults)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn local(&self, command: &str, options: &str) -> Run {
        segpack_words(&mut self.hub.program(), command, &self.at("pack"), options)
    }

    fn remote(&self, command: &str, address: &str, options: &str) -> Run {
        segpack_words(
            &mut self.hub.program(),
            command,
            Path::new(address),
            options,
        )
    }

    fn addresses(&self) -> [String; 2] {
        [place(), self.hub.folder()]
    }
}

fn segpack_words(program: &mut Command, command: &str, pack: &Path, options: &str) -> Run {
    program.arg(command).arg(pack);
    Run::of(program.args(options.split_whitespace()))
}

/// The requests that ask for bytes of packs.
fn of_packs(log: &[String]) -> Vec<&String> {
    let is_of_pack = |line: &&String| line.starts_with("GET") && line.contains("/packs/");
    log.iter().filter(is_of_pack).collect()
}

#[test]
fn every_command_says_of_a_pack_on_a_server_what_it_says_of_the_folder() {
    let scene = Scene::small(Faults::default());
    let cat = "model.layers.0.mlp.gate.weight config.json";
    let commands = [
        ("info", "--json"),
        ("ls", "--tensors --json"),
        ("cat", cat),
        ("verify", "--json"),
        ("verify", "--sums --json"),
    ];
    for address in scene.addresses() {
        for (command, options) in commands {
            let local = scene.local(command, options).ok();
            let remote = scene.remote(command, &address, options).ok();
            assert!(
                local.stdout == remote.stdout,
                "{command} {address}: {remote}"
            );
        }
        let tokens = |run: Run| {
            let (tokens, _) = run.ok().tokens();
            let id = |t: &serde_json::Value| t["id"].as_u64().unwrap();
            tokens.iter().map(id).collect::<Vec<_>>()
        };
        let options = "--prompt-ids 179 --max-new-tokens 24 --json";
        // the official continuation
        let seen = tokens(scene.remote("run", &address, options));
        assert_eq!(seen, [4, 160, 55, 287]);
        let out = scene.at("restored");
        let unpacked = format!("-o {} --force", out.display());
        scene.remote("unpack", &address, &unpacked).ok();
        assert_same(&out, &tiny_text());
        let exported = [scene.at("local.export"), scene.at("remote.export")];
        let options = exported
            .each_ref()
            .map(|out| format!("--to hf -o {} --force", out.display()));
        scene.local("export", &options[0]).ok();
        scene.remote("export", &address, &options[1]).ok();
        assert_same(&exported[0], &exported[1]);
        scene
            .remote("diff", &address, &scene.at("pack").display().to_string())
            .ok();
    }
    let repacked = format!("-o {} --codec zstd", scene.at("repacked").display());
    scene.remote("repack", &place(), &repacked).ok();
    segpack!["diff", &scene.at("repacked"), &scene.at("pack")].ok();
}

#[test]
fn listing_a_pack_reads_its_manifest_and_a_prompt_nothing_but_the_segments_that_it_uses() {
    let scene = Scene::large(Faults::default());
    for address in scene.addresses() {
        let before = scene.hub.log().len();
        scene.remote("ls", &address, "").ok();
        scene.remote("info", &address, "").ok();
        let log = scene.hub.log();
        assert!(of_packs(&log[before..]).is_empty(), "{log:?}");
        assert!(log.len() - before <= 8, "{log:?}");
    }
    let packs = scene.at("pack/packs");
    let files = contents(&packs);
    let all: usize = files.values().map(Vec::len).sum();
    let before = scene.hub.sent("");
    let options = "--prompt-ids 5 --max-new-tokens 1 --json";
    let (_, summary) = scene.remote("run", &place(), options).ok().tokens();
    let sent = scene.hub.sent("") - before;
    assert!(sent < all as u64 / 2, "{sent} of {all}: {summary}");
}

#[test]
fn a_pack_is_pinned_by_its_manifest_and_what_changes_on_the_server_is_an_error() {
    let scene = Scene::large(Faults {
        change_after: Some(3),
        ..Faults::default()
    });
    scene
        .remote(
            "info",
            &place(),
            &format!("--manifest-sha256 {}", "0".repeat(64)),
        )
        .exits(3)
        .says(&["as given"]);
    scene
        .remote("verify", &place(), "")
        .exits(3)
        .says(&["has changed since this run began"]);
}

#[test]
fn connections_that_break_off_are_taken_up_where_they_were() {
    let scene = Scene::of(
        &tiny_text(),
        &[],
        Faults {
            drop_after: Some((5_000, 6)),
            ..Faults::default()
        },
    );
    let verified = scene.remote("verify", &place(), "").ok();
    assert!(verified.stderr.contains("trying again"), "{verified}");
}

#[test]
fn what_is_damaged_on_the_server_is_found() {
    let scene = Scene::small(Faults::default());
    let other = scene.at("other");
    copy(&scene.at("pack"), &other);
    let packs: Vec<PathBuf> = std::fs::read_dir(other.join("packs"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    flip(&packs[0], -3);
    std::fs::write(other.join("packs/unlisted"), b"x").unwrap();
    let hub = Hub::of(&other, Faults::default());
    let run = segpack_words(&mut hub.program(), "verify", Path::new(&place()), "--json").exits(3);
    let kinds: Vec<String> = run
        .findings()
        .iter()
        .map(|f| format!("{:?}", f.kind))
        .collect();
    assert!(kinds.contains(&"DamagedTensor".to_owned()), "{kinds:?}");
    assert!(kinds.contains(&"UnlistedFile".to_owned()), "{kinds:?}");
    // a web server lists nothing: what the manifest does not name is not seen
    let run = segpack_words(
        &mut hub.program(),
        "verify",
        Path::new(&hub.folder()),
        "--json",
    )
    .exits(3);
    assert!(!format!("{run}").contains("packs/unlisted"));
}

#[test]
fn commands_that_write_into_a_pack_refuse_one_on_a_server() {
    let scene = Scene::small(Faults::default());
    let from = format!("--from {}", tiny_text().display());
    for (command, options) in [
        ("repair", &*from),
        ("update", &*from),
        ("verify", "--receipt receipt"),
        ("info", "--receipt receipt"),
        ("bench", ""),
    ] {
        scene
            .remote(command, &place(), options)
            .exits(2)
            .says(&["hf://owner/model: "]);
    }
    assert!(scene.hub.log().is_empty());
}

#[test]
fn a_place_without_a_pack_is_none() {
    let hub = Hub::of(&tiny_text(), Faults::default());
    for address in [place(), hub.folder()] {
        segpack_words(&mut hub.program(), "ls", Path::new(&address), "")
            .exits(3)
            .says(&["is a checkpoint, not a pack"]);
    }
    segpack_words(
        hub.program().env("HF_HUB_OFFLINE", "1"),
        "ls",
        Path::new(&place()),
        "",
    )
    .exits(1)
    .says(&["HF_HUB_OFFLINE is set"]);
}

#[test]
fn ctrl_c_ends_a_read_that_waits_for_the_server() {
    let scene = Scene::large(Faults {
        stall: Some((Duration::from_secs(20), 100)),
        ..Faults::default()
    });
    let mut command = interruptible();
    command
        .env("HF_ENDPOINT", scene.hub.endpoint())
        .args(["verify", &place()])
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    let began = Instant::now();
    while !scene.hub.is_stalled() {
        assert!(
            began.elapsed() < Duration::from_secs(20),
            "nothing was asked"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    let asked = Instant::now();
    let id = child.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-INT", &id])
            .status()
            .unwrap()
            .success()
    );
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(
        asked.elapsed() < Duration::from_secs(3),
        "{:?}",
        asked.elapsed()
    );
}
