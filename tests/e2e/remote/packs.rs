//! Packs on servers, read as those of a folder are.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::place;
use crate::support::checkpoint::fixtures;
use crate::support::cli::{Run, interruptible, press_ctrl_c, segpack};
use crate::support::damage::flip;
use crate::support::folders::{assert_same, contents, copy, temp};
use crate::support::hub::{Faults, Hub};
use crate::support::packs::pack_into;
use crate::support::signing::keys;
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
    let cat = "thinker.model.layers.0.mlp.gate.weight config.json";
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
    let options = "--prompt-ids 5 --max-new-tokens 1 --json";
    let (_, summary) = scene.remote("run", &place(), options).ok().tokens();
    let (sent, used) = (
        scene.hub.sent(".safetensors"),
        summary["bytes_read"].as_u64().unwrap(),
    );
    // whole segments and nothing else, two of four experts in each layer
    assert!(sent < all as u64 * 3 / 4, "{sent} of {all}: {summary}");
    assert!(sent < used + used / 20, "{sent} for {used}: {summary}");
}

#[test]
fn a_pack_is_pinned_by_its_manifest_and_what_changes_on_the_server_is_an_error() {
    let scene = Scene::large(Faults {
        change_after: Some(1),
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
    let run = scene.remote("verify", &place(), "").exits(3);
    assert!(
        run.text().contains("has changed since this run began"),
        "{run}"
    );
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
fn a_server_that_ends_its_answers_early_each_time_is_not_asked_for_long() {
    let scene = Scene::of(
        &tiny_text(),
        &[],
        Faults {
            short: Some("packs/thinker.text.safetensors"),
            ..Faults::default()
        },
    );
    let before = scene.hub.log().len();
    for (command, options) in [("verify", ""), ("run", "--prompt-ids 5,9")] {
        let run = scene.remote(command, &place(), options).exits(1);
        run.says(&[
            "packs/thinker.text.safetensors",
            "answer ended early, 1 byte before its end, 3 times in a row",
        ]);
    }
    assert!(scene.hub.log().len() > before);
}

#[test]
fn a_pack_on_a_server_is_validated_as_that_of_a_folder_is() {
    let scene = Scene::small(Faults {
        drop_after: Some((5_000, 3)),
        ..Faults::default()
    });
    let trace = fixtures().join("traces/tiny-text.float32.safetensors");
    let options = format!("--reference {} --json", trace.display());
    let local = scene.local("validate", &options).ok();
    for address in scene.addresses() {
        let remote = scene.remote("validate", &address, &options).ok();
        assert!(local.stdout == remote.stdout, "{address}: {remote}");
    }
    let against = format!("--against {} --json", tiny_text().display());
    let remote = scene.remote("validate", &place(), &against).ok();
    assert_eq!(remote.json()["verdict"], local.json()["verdict"]);
}

#[test]
fn a_signed_pack_on_a_server_is_verified_and_demanded_as_that_of_a_folder_is() {
    let folder = temp();
    let pack = folder.path().join("pack");
    pack_into(&tiny_text(), &pack, &[]);
    let [(private, public), (_, other), ..] = keys(folder.path());
    segpack!["sign", &pack, "--key", &private].ok();
    let hub = Hub::of(&pack, Faults::default());
    let run = |command: &str, address: &str, options: &str, key: &Path| {
        let options = format!("{options} --public-key {}", key.display());
        segpack_words(&mut hub.program(), command, Path::new(address), &options)
    };
    for address in [place(), hub.folder()] {
        let verified = run("verify", &address, "--signature", &public).ok();
        assert!(verified.text().contains("signature: of all"), "{verified}");
        run("verify", &address, "--signature", &other).exits(3);
        run("cat", &address, "config.json --require-signature", &public).ok();
        run("cat", &address, "config.json --require-signature", &other).exits(3);
        let file = format!("--require-signature={}", pack.join("model.sig").display());
        run("cat", &address, &format!("config.json {file}"), &public).ok();
    }
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
        .args([
            "cat",
            &place(),
            "model.layers.2.mlp.experts.3.down_proj.weight",
        ])
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
    let requested = Instant::now();
    press_ctrl_c(&child);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(
        requested.elapsed() < Duration::from_secs(3),
        "{:?}",
        requested.elapsed()
    );
}

/// `run` with a cache, and the requests of packs' bytes that it made.
fn run_cached(scene: &Scene, cache: &str) -> (Run, usize) {
    let before = scene.hub.log().len();
    let options = format!("--prompt-ids 5,9 --max-new-tokens 3 --json --segment-cache {cache}");
    let run = scene.remote("run", &scene.hub.folder(), &options).ok();
    let requested = of_packs(&scene.hub.log()[before..]).len();
    (run, requested)
}

/// Token ids of a run.
fn ids(run: &Run) -> Vec<u64> {
    let (tokens, _) = run.tokens();
    tokens.iter().map(|t| t["id"].as_u64().unwrap()).collect()
}

/// The segments that a cache holds.
fn kept(cache: &Path) -> Vec<PathBuf> {
    let files = contents(cache);
    let is_segment = |path: &&String| path.contains('-');
    files
        .keys()
        .filter(is_segment)
        .map(|path| cache.join(path))
        .collect()
}

#[test]
fn a_second_run_takes_all_segments_from_the_cache() {
    let scene = Scene::large(Faults::default());
    let cache = scene.at("cache");
    let (first, requested) = run_cached(&scene, &cache.display().to_string());
    assert!(requested > 0 && !kept(&cache).is_empty());
    let (second, requested) = run_cached(&scene, &cache.display().to_string());
    assert_eq!(requested, 0, "{:?}", scene.hub.log());
    let local = scene
        .local("run", "--prompt-ids 5,9 --max-new-tokens 3 --json")
        .ok();
    assert_eq!(ids(&first), ids(&local));
    assert_eq!(ids(&second), ids(&local));
}

#[test]
fn what_is_damaged_or_foreign_in_a_cache_is_thrown_away_and_fetched_again() {
    let scene = Scene::large(Faults::default());
    let cache = scene.at("cache");
    let (first, _) = run_cached(&scene, &cache.display().to_string());
    let segments = kept(&cache);
    flip(&segments[0], 7);
    std::fs::write(&segments[1], b"something else").unwrap();
    std::fs::remove_file(&segments[2]).unwrap();
    std::os::unix::fs::symlink("/dev/zero", &segments[2]).unwrap();
    let (second, requested) = run_cached(&scene, &cache.display().to_string());
    assert_eq!(requested, 3, "{:?}", scene.hub.log());
    assert_eq!(ids(&first), ids(&second));
    assert_eq!(
        second
            .stderr
            .matches("is thrown away and fetched again")
            .count(),
        3,
        "{second}"
    );
    let (_, requested) = run_cached(&scene, &cache.display().to_string());
    assert_eq!(requested, 0);
}

#[test]
fn a_cache_stays_under_its_limit_and_what_was_not_used_for_longest_goes_first() {
    let scene = Scene::large(Faults::default());
    let cache = scene.at("cache");
    let whole = scene.at("whole");
    run_cached(&scene, &whole.display().to_string());
    let all: u64 = contents(&whole)
        .values()
        .map(|bytes| bytes.len() as u64)
        .sum();
    let limit = all / 2;
    let options = format!("{} --segment-cache-size {limit}", cache.display());
    let (first, _) = run_cached(&scene, &options);
    let (second, requested) = run_cached(&scene, &options);
    assert!(requested > 0);
    assert_eq!(ids(&first), ids(&second));
    let held = |cache: &Path| -> u64 {
        let files = contents(cache);
        let segments = files.iter().filter(|(path, _)| path.contains('-'));
        segments.map(|(_, bytes)| bytes.len() as u64).sum()
    };
    assert!(
        held(&cache) <= limit && held(&cache) > 0,
        "{}",
        held(&cache)
    );
    // one whose limit is less than any segment keeps nothing
    let none = scene.at("none");
    let (third, _) = run_cached(
        &scene,
        &format!("{} --segment-cache-size 1kB", none.display()),
    );
    assert_eq!(ids(&first), ids(&third));
    assert!(held(&none) <= 1000);
}

#[test]
fn two_processes_share_a_cache() {
    let scene = Scene::large(Faults::default());
    let cache = scene.at("cache").display().to_string();
    let runs: Vec<Run> = std::thread::scope(|scope| {
        let start = || scope.spawn(|| run_cached(&scene, &cache).0);
        let started = [start(), start(), start()];
        started.map(|run| run.join().unwrap()).into()
    });
    assert_eq!(ids(&runs[0]), ids(&runs[1]));
    assert_eq!(ids(&runs[0]), ids(&runs[2]));
    assert_eq!(run_cached(&scene, &cache).1, 0);
}

#[test]
fn a_folder_with_something_else_is_no_cache() {
    let scene = Scene::small(Faults::default());
    let options = format!(
        "--prompt-ids 5 --segment-cache {}",
        scene.at("pack").display()
    );
    let pack = contents(&scene.at("pack"));
    scene
        .remote("run", &place(), &options)
        .exits(1)
        .says(&["is no cache of segments"]);
    assert!(contents(&scene.at("pack")) == pack);
}

#[test]
fn a_segment_that_is_damaged_on_the_server_is_not_kept() {
    let scene = Scene::large(Faults::default());
    let other = scene.at("other");
    copy(&scene.at("pack"), &other);
    for path in contents(&other).keys().filter(|p| p.starts_with("packs/")) {
        flip(&other.join(path), -100);
    }
    let hub = Hub::of(&other, Faults::default());
    let cache = scene.at("cache");
    let options = format!("--segment-cache {} --prompt-ids 5,9", cache.display());
    segpack_words(&mut hub.program(), "run", Path::new(&place()), &options)
        .exits(3)
        .says(&["a segment of it is damaged: BLAKE3"]);
}
