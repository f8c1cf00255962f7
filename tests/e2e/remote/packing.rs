//! Packing from a server: the same bytes as from the disk, whatever the network does.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use segpack_formats::digest::Sha256;

use super::{Scene, place};
use crate::support::cli::{Run, press_ctrl_c, segpack};
use crate::support::folders::assert_same;
use crate::support::hub::{Faults, Hub};

const SECOND: &str = "model-00002-of-00003.safetensors";

/// Small parts, so that a shard has many.
fn pack_command(scene: &Scene, from: &str, out: &Path) -> Command {
    let mut command = scene.hub.program();
    command
        .args(["pack", from, "--no-provenance", "-o"])
        .arg(out);
    command.env("SEGPACK_PART_SIZE", "100000");
    command
}

fn pack(scene: &Scene, options: &[&str]) -> Run {
    let mut command = pack_command(scene, &place(), &scene.at("remote.segpack"));
    Run::of(command.args(options))
}

/// Whether a copy of a shard is left anywhere in an output.
fn holds_a_shard(scene: &Scene) -> bool {
    scene
        .at("remote.segpack/.partial/arriving")
        .read_dir()
        .is_ok_and(|mut entries| entries.next().is_some())
}

#[test]
fn a_pack_from_a_hub_is_that_of_the_local_checkpoint_and_every_shard_arrives_once() {
    for options in [&["--codec", "bf16-rans"][..], &[]] {
        let scene = Scene::with(Faults::default());
        let local = scene.local_pack(&[options, &["--no-provenance"]].concat());
        let run = pack(&scene, options).ok();
        assert_same(&local, &scene.at("remote.segpack"));
        assert!(
            run.text()
                .contains("3 source files checked against the hub's")
        );
        assert!(!scene.hub.has_leaked());
        // the header's window beside the shard itself
        let shards: u64 = shards(&scene).iter().sum();
        assert_eq!(scene.hub.sent(".safetensors"), shards + 3 * (256 << 10));
    }
}

fn shards(scene: &Scene) -> Vec<u64> {
    let entries = scene.at("checkpoint").read_dir().unwrap().flatten();
    let entries = entries.filter(|e| e.path().extension().is_some_and(|x| x == "safetensors"));
    entries.map(|e| e.metadata().unwrap().len()).collect()
}

#[test]
fn a_pack_from_a_folder_of_a_web_server_is_that_of_the_local_checkpoint() {
    let scene = Scene::with(Faults::default());
    // no server lists these, and no checkpoint needs them
    fs::remove_dir_all(scene.at("checkpoint/deep")).unwrap();
    fs::remove_file(scene.at("checkpoint/empty")).unwrap();
    let local = scene.local_pack(&["--no-provenance"]);
    let out = scene.at("remote.segpack");
    Run::of(&mut pack_command(&scene, &scene.hub.folder(), &out)).ok();
    assert_same(&local, &out);
}

#[test]
fn the_summary_says_what_was_asked_of_whom() {
    let scene = Scene::with(Faults {
        drop_after: Some((1000, 1)),
        ..Faults::default()
    });
    let summary = pack(&scene, &["--json", "-q"]).ok().json();
    let from = &summary["packed_from"];
    assert_eq!(from["place"], format!("{}@{}", place(), Hub::commit()));
    assert_eq!(from["requests"], scene.hub.log().len() as u64);
    assert_eq!(from["retries"], 1);
    let received = from["received_bytes"].as_u64().unwrap();
    assert!(received > scene.hub.sent(".safetensors"));
    assert_eq!(summary["hub_digests_compared"], 3);
}

#[test]
fn whatever_goes_wrong_on_the_way_the_pack_is_right() {
    let all = [
        Faults {
            drop_after: Some((70_000, usize::MAX)),
            ..Faults::default()
        },
        Faults {
            fail_every: Some((2, 503)),
            ..Faults::default()
        },
        Faults {
            fail_every: Some((3, 429)),
            ..Faults::default()
        },
        Faults {
            no_range: true,
            ..Faults::default()
        },
        Faults {
            no_range: true,
            drop_after: Some((400_000, 2)),
            ..Faults::default()
        },
        Faults {
            expire: Some(1),
            ..Faults::default()
        },
        Faults {
            stall: Some((Duration::from_millis(600), 1)),
            ..Faults::default()
        },
        // once: the shard is fetched again
        Faults {
            corrupt: Some((SECOND, 500_000, 1)),
            ..Faults::default()
        },
    ];
    let scene = Scene::with(Faults::default());
    let local = scene.local_pack(&["--no-provenance"]);
    for faults in all {
        let hub = Hub::of(&scene.at("checkpoint"), faults.clone());
        let out = scene.at("remote.segpack");
        let mut command = pack_command(&scene, &place(), &out);
        command.env("HF_ENDPOINT", hub.endpoint());
        command.env("HF_HUB_DOWNLOAD_TIMEOUT", "0.2");
        command.env("SEGPACK_RETRIES", "50"); // a busy machine may be slow by itself
        let run = Run::of(&mut command);
        assert_eq!(run.status, Some(0), "{faults:?}\n{run}");
        assert_same(&local, &out);
        assert!(!hub.has_leaked(), "{faults:?}");
        fs::remove_dir_all(&out).unwrap();
    }
}

#[test]
fn what_cannot_be_made_good_is_a_clear_error_and_no_pack() {
    let all: [(Faults, i32, &[&str]); 5] = [
        (
            Faults {
                corrupt: Some((SECOND, 500_000, usize::MAX)),
                ..Faults::default()
            },
            3,
            &[
                SECOND,
                "fetching it once again",
                "what arrived is not what is published",
            ],
        ),
        (
            Faults {
                short: Some(SECOND),
                ..Faults::default()
            },
            1,
            &["answer ended early, 1 byte before its end, 3 times in a row"],
        ),
        (
            Faults {
                fail_every: Some((1, 503)),
                ..Faults::default()
            },
            1,
            &["status 503, 6 times in a row"],
        ),
        (
            Faults {
                expire: Some(1),
                change_after: Some(5),
                ..Faults::default()
            },
            3,
            &["is not there any more", "has changed since this run began"],
        ),
        (
            Faults {
                stall: Some((Duration::from_millis(500), usize::MAX)),
                ..Faults::default()
            },
            1,
            &["times in a row"],
        ),
    ];
    for (faults, status, words) in all {
        let scene = Scene::with(faults.clone());
        let mut command = pack_command(&scene, &place(), &scene.at("remote.segpack"));
        command.env("HF_HUB_DOWNLOAD_TIMEOUT", "0.05");
        command.env("SEGPACK_RETRIES", "5");
        let run = Run::of(&mut command);
        assert_eq!(run.status, Some(status), "{faults:?}\n{run}");
        run.says(words);
        assert!(
            !scene.at("remote.segpack/manifest.json").exists(),
            "{faults:?}"
        );
    }
}

#[test]
fn a_run_that_was_killed_anywhere_goes_on_to_the_same_pack() {
    let scene = Scene::with(Faults::default());
    let local = scene.local_pack(&["--no-provenance", "--codec", "bf16-rans"]);
    let out = scene.at("remote.segpack");
    for milliseconds in [60, 150, 300] {
        let _ = fs::remove_dir_all(&out);
        let mut command = pack_command(&scene, &place(), &out);
        command.args(["--codec", "bf16-rans", "--limit-rate", "8MB", "-q"]);
        let mut child = command.spawn().unwrap();
        thread::sleep(Duration::from_millis(milliseconds));
        let _ = child.kill();
        child.wait().unwrap();
        let mut command = pack_command(&scene, &place(), &out);
        Run::of(command.args(["--codec", "bf16-rans", "--resume"])).ok();
        assert_same(&local, &out);
    }
}

#[test]
fn an_interrupted_run_stops_at_once_and_does_not_fetch_again_what_it_has() {
    let stalls = Faults {
        stall: Some((Duration::from_secs(20), 1)),
        ..Faults::default()
    };
    let scene = Scene::with(Faults::default());
    let local = scene.local_pack(&["--no-provenance"]);
    let hub = Hub::of(&scene.at("checkpoint"), stalls);
    let out = scene.at("remote.segpack");
    let mut command = crate::support::cli::interruptible();
    let environment = scene.hub.program();
    command.envs(environment.get_envs().filter_map(|(k, v)| Some((k, v?))));
    command.env("HF_ENDPOINT", hub.endpoint());
    command.env("SEGPACK_PART_SIZE", "100000");
    command.args(["pack", &place(), "--no-provenance", "-q", "-o"]);
    let mut child = command.arg(&out).spawn().unwrap();
    while !hub.is_stalled() {
        thread::sleep(Duration::from_millis(10));
    }
    thread::sleep(Duration::from_millis(200)); // the other connections go on
    let began = Instant::now();
    press_ctrl_c(&child);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(began.elapsed() < Duration::from_secs(5));
    let all: u64 = shards(&scene).iter().sum();
    Run::of(pack_command(&scene, &place(), &out).arg("--resume")).ok();
    assert_same(&local, &out);
    let again = scene.hub.sent(".safetensors") - 3 * (256 << 10);
    assert!(
        again <= all - 400_000,
        "{again} of {all} bytes were fetched again"
    );
}

#[test]
fn shards_are_kept_where_the_user_wants_them_and_not_fetched_again() {
    let scene = Scene::with(Faults::default());
    let keep = scene.at("shards");
    let out = scene.at("remote.segpack");
    let mut command = pack_command(&scene, &place(), &out);
    Run::of(command.arg("--keep-shards").arg(&keep)).ok();
    for entry in keep.read_dir().unwrap().flatten() {
        let original = scene.at("checkpoint").join(entry.file_name());
        assert!(fs::read(entry.path()).unwrap() == fs::read(original).unwrap());
    }
    assert_eq!(keep.read_dir().unwrap().count(), 3);

    let before = scene.hub.sent(".safetensors");
    fs::remove_dir_all(&out).unwrap();
    let mut command = pack_command(&scene, &place(), &out);
    Run::of(command.arg("--keep-shards").arg(&keep)).ok();
    assert_eq!(scene.hub.sent(".safetensors") - before, 3 * (256 << 10));

    // one that is not what is published is fetched
    crate::support::damage::flip(&keep.join(SECOND), -1);
    fs::remove_dir_all(&out).unwrap();
    let mut command = pack_command(&scene, &place(), &out);
    Run::of(command.arg("--keep-shards").arg(&keep))
        .ok()
        .says(&["fetching it once again"]);
    let sums = |folder: &str| Sha256::of(&fs::read(scene.at(folder).join(SECOND)).unwrap());
    assert_eq!(sums("shards"), sums("checkpoint"));
    let inside = out.join("shards");
    fs::remove_dir_all(&out).unwrap();
    fs::create_dir(&out).unwrap();
    let mut command = pack_command(&scene, &place(), &out);
    Run::of(command.arg("--keep-shards").arg(&inside)).exits(1);
}

#[test]
fn a_repository_that_moved_between_two_runs_is_not_mixed() {
    let scene = Scene::with(Faults {
        corrupt: Some((SECOND, 500_000, usize::MAX)),
        ..Faults::default()
    });
    let first = pack(&scene, &[]);
    assert_eq!(first.status, Some(3), "{first}");
    let moved = Hub::of(
        &scene.at("checkpoint"),
        Faults {
            change_after: Some(0),
            ..Faults::default()
        },
    );
    // it has moved once a shard was asked for
    let mut warm = moved.program();
    Run::of(warm.args(["scan", &place()]));
    let mut command = pack_command(&scene, &place(), &scene.at("remote.segpack"));
    command.env("HF_ENDPOINT", moved.endpoint());
    Run::of(command.arg("--resume"))
        .exits(3)
        .says(&["has changed since this run began"]);
}

#[test]
fn a_complete_pack_is_resumed_without_fetching_anything_and_nothing_is_consumed() {
    let scene = Scene::with(Faults::default());
    pack(&scene, &[]).ok();
    let before = scene.hub.sent(".safetensors");
    pack(&scene, &["--resume"]).ok();
    assert_eq!(scene.hub.sent(".safetensors") - before, 3 * (256 << 10));
    assert!(!holds_a_shard(&scene));
    let other = Scene::with(Faults::default());
    pack(&other, &["--consume", "--yes"])
        .exits(2)
        .says(&["it is on a server"]);
    segpack!["verify", &scene.at("remote.segpack")].ok();
}

#[test]
fn the_rate_is_limited() {
    let scene = Scene::with(Faults::default());
    let bytes: u64 = shards(&scene).iter().sum();
    let began = Instant::now();
    pack(&scene, &["--limit-rate", "8MB", "--connections", "8"]).ok();
    let seconds = began.elapsed().as_secs_f64();
    assert!(seconds > bytes as f64 / 8e6 * 0.9, "{seconds} s");
}

#[test]
fn parts_from_a_hub_fetch_only_the_shards_that_they_need_and_are_joined_to_the_same_bytes() {
    let scene = Scene::with(Faults::default());
    let options = ["--codec", "bf16-rans", "--no-provenance"];
    let local = scene.local_pack(&options);
    let mut parts = Vec::new();
    for part in ["1/3", "2/3", "3/3"] {
        let hub = Hub::of(&scene.at("checkpoint"), Faults::default());
        let out = scene.at(&part.replace('/', "-of-"));
        let mut command = pack_command(&scene, &place(), &out);
        command.env("HF_ENDPOINT", hub.endpoint());
        command.args(["--codec", "bf16-rans", "--part", part]);
        Run::of(&mut command).ok();
        // a header's window of each, and those shards whole that have bytes of its packs
        let needed = shards_of(&out);
        let whole: u64 = needed.iter().map(|shard| length(&scene, shard)).sum();
        assert_eq!(hub.sent(".safetensors"), whole + 3 * (256 << 10), "{part}");
        parts.push((out, needed));
    }
    assert!(parts.iter().any(|(_, needed)| needed.len() < 3));
    let out = scene.at("joined");
    let mut command = crate::support::cli::program();
    command.arg("join").args(parts.iter().map(|(part, _)| part));
    Run::of(command.arg("-o").arg(&out)).ok();
    assert_same(&local, &out);
}

fn length(scene: &Scene, shard: &str) -> u64 {
    scene.at("checkpoint").join(shard).metadata().unwrap().len()
}

/// The shards that a part has tensors of.
fn shards_of(part: &Path) -> std::collections::BTreeSet<String> {
    let document = fs::read(part.join("part.json")).unwrap();
    let document: serde_json::Value = serde_json::from_slice(&document).unwrap();
    let tensors = document["manifest"]["tensors"].as_array().unwrap();
    let files = tensors
        .iter()
        .map(|t| t["source"]["file"].as_str().unwrap());
    files.map(str::to_owned).collect()
}

#[test]
fn shards_of_components_that_are_left_out_are_not_fetched() {
    let folder = crate::support::folders::temp();
    let checkpoint = crate::support::tiny::Tiny::full()
        .cut(6)
        .write(&folder.path().join("checkpoint"));
    let hub = Hub::of(&checkpoint, Faults::default());
    let scene = Scene { folder, hub };
    let options = ["--include", "code2wav"];
    let local = scene.local_pack(&[&options[..], &["--no-provenance"]].concat());
    let out = scene.at("remote.segpack");
    Run::of(pack_command(&scene, &place(), &out).args(options)).ok();
    assert_same(&local, &out);
    let all: u64 = shards(&scene).iter().sum();
    // shards this small are sent as a whole for their headers
    let sent = scene.hub.sent(".safetensors");
    assert!(sent > all && sent < 2 * all, "{sent} of {all} bytes");
}
