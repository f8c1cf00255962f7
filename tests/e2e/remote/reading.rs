//! What is read without packing: `scan`, `verify --against`, `diff`.

use std::fs::File;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant, UNIX_EPOCH};

use serde_json::Value;

use super::{Scene, place, without_provenance};
use crate::support::cli::{FindingKind, Run, interruptible, press_ctrl_c, segpack};
use crate::support::folders::contents;
use crate::support::hub::{Faults, Hub, REPO, TOKEN};

#[test]
fn scan_takes_the_same_inventory_from_a_hub_as_from_a_folder_and_downloads_no_weights() {
    let scene = Scene::with(Faults::default());
    let local = segpack!["scan", &scene.at("checkpoint"), "--json"].ok();
    let remote = scene.run(&[&"scan", &place(), &"--json"]).ok();
    assert_eq!(without_provenance(&local), without_provenance(&remote));
    let json = remote.json();
    assert_eq!(json["provenance"]["repo"], REPO);
    assert_eq!(json["provenance"]["revision"], Value::from(Hub::commit()));
    assert!(json["shards"][0]["hub_sha256"].is_string());
    // one range of each shard
    assert_eq!(scene.hub.sent(".safetensors"), 3 * (256 << 10));
}

#[test]
fn a_folder_of_a_web_server_is_scanned_by_its_index() {
    let scene = Scene::with(Faults::default());
    let local = segpack!["scan", &scene.at("checkpoint"), "--json"].ok();
    let remote = scene.run(&[&"scan", &scene.hub.folder(), &"--json"]).ok();
    let (local, remote) = (without_provenance(&local), without_provenance(&remote));
    // which other files there are no web server says
    let fields = local.as_object().unwrap().iter();
    for (name, value) in fields.filter(|(name, _)| *name != "files") {
        assert_eq!(*value, remote[name], "{name}");
    }
    scene
        .run(&[&"scan", &format!("{}/nothing", scene.hub.endpoint())])
        .exits(3)
        .says(&["has neither model.safetensors.index.json nor model.safetensors"]);
}

#[test]
fn a_pack_is_verified_against_a_hub_and_compared_with_it() {
    let scene = Scene::with(Faults::default());
    let pack = scene.local_pack(&["--no-provenance"]);
    scene.run(&[&"verify", &pack, &"--against", &place()]).ok();
    scene.run(&[&"diff", &pack, &place()]).ok();

    let shard = scene.at("checkpoint/model-00002-of-00003.safetensors");
    crate::support::damage::flip(&shard, -10);
    let other = Hub::of(&scene.at("checkpoint"), Faults::default());
    let mut verify = other.program();
    verify
        .args(["verify", "--json", "--against", &place()])
        .arg(&pack);
    let verified = Run::of(&mut verify).exits(3);
    let found = verified.findings();
    assert!(
        found
            .iter()
            .all(|f| f.kind == FindingKind::DiffersFromCheckpoint),
        "{verified}"
    );
    assert!(!found.is_empty());
}

#[test]
fn what_is_damaged_in_a_pack_comes_from_a_hub() {
    let scene = Scene::with(Faults::default());
    let pack = scene.local_pack(&["--no-provenance"]);
    let whole = contents(&pack);
    let header = "source/.shard-headers/model-00002-of-00003.safetensors.header";
    for path in whole.keys().filter(|p| p.starts_with("packs/")).take(1) {
        crate::support::damage::flip(&pack.join(path), -10);
    }
    crate::support::damage::flip(&pack.join(header), 20);
    scene.run(&[&"verify", &pack]).exits(3);
    scene.run(&[&"repair", &pack, &"--from", &place()]).ok();
    assert!(contents(&pack) == whole);
}

#[test]
fn a_token_opens_a_private_repository_and_goes_to_no_other_host() {
    let scene = Scene::with(Faults {
        private: true,
        ..Faults::default()
    });
    scene
        .run(&[&"scan", &place()])
        .exits(1)
        .says(&["does not let this user read owner/model (401)", "HF_TOKEN"]);
    let run = Run::of(
        scene
            .hub
            .program()
            .args(["scan", &place()])
            .env("HF_TOKEN", TOKEN),
    )
    .ok();
    assert!(!run.stderr.contains(TOKEN) && !run.text().contains(TOKEN));

    let file = scene.at("token");
    std::fs::write(&file, format!("{TOKEN}\n")).unwrap();
    let mut command = scene.hub.program();
    Run::of(command.args(["scan", &place()]).env("HF_TOKEN_PATH", &file)).ok();
    assert!(!scene.hub.has_leaked(), "the content network got the token");
}

#[test]
fn what_is_not_there_is_told_apart() {
    let scene = Scene::with(Faults::default());
    scene
        .run(&[&"scan", &"hf://owner/other"])
        .exits(3)
        .says(&["has no repository owner/other"]);
    scene
        .run(&[&"scan", &format!("{}@v9", place())])
        .exits(3)
        .says(&["owner/model has no revision \"v9\""]);
    for bad in [
        "hf://owner",
        "s3://bucket//model",
        "https://name:pass@host/",
    ] {
        scene.run(&[&"scan", &bad]).exits(2);
    }
    assert!(!scene.hub.log().is_empty());
}

#[test]
fn nothing_is_contacted_offline_or_unless_it_is_named() {
    let scene = Scene::with(Faults::default());
    let mut command = scene.hub.program();
    command.args(["scan", &place()]).env("HF_HUB_OFFLINE", "1");
    Run::of(&mut command).exits(3).says(&["hub cache"]);
    let mut command = scene.hub.program();
    command.args(["scan", &scene.hub.folder()]);
    command.env("HF_HUB_OFFLINE", "true");
    Run::of(&mut command)
        .exits(1)
        .says(&["HF_HUB_OFFLINE is set"]);
    // a repo id is of the cache, as ever
    scene.run(&[&"scan", &REPO]).exits(3);
    assert_eq!(scene.hub.log(), [""; 0]);
}

/// A receipt speaks of the files as they were before the first of them was read.
#[test]
fn a_file_that_changes_while_it_is_verified_has_changed_since_its_receipt() {
    let scene = Scene::with(Faults {
        stall: Some((Duration::from_millis(300), 1)),
        ..Faults::default()
    });
    let pack = scene.local_pack(&["--no-provenance"]);
    let receipt = scene.at("receipt.json");
    let mut command = scene.hub.program();
    command.arg("verify").arg(&pack).arg("--receipt");
    command.arg(&receipt).args(["--against", &place()]);
    let mut child = command.stdout(Stdio::null()).spawn().unwrap();
    while !scene.hub.is_stalled() {
        assert!(child.try_wait().unwrap().is_none(), "ended too early");
        thread::sleep(Duration::from_millis(1));
    }
    let file = File::options()
        .write(true)
        .open(pack.join("source/config.json"))
        .unwrap();
    file.set_modified(UNIX_EPOCH).unwrap();
    assert!(child.wait().unwrap().success());
    let info = segpack!["info", &pack, "--receipt", &receipt, "--json"].ok();
    let verified = &info.json()["verified"];
    assert_eq!(verified["since"], "changed");
    assert_eq!(verified["changed"], "source/config.json");
}

#[test]
fn ctrl_c_ends_a_command_that_waits_for_a_list_or_a_header() {
    let reading: [(&str, &[&str]); 4] = [
        ("/api/models/", &["scan"]),
        ("/resolve/", &["scan"]),
        ("/cdn/", &["pack", "--dry-run", "-o", "never"]),
        ("/api/models/", &["ls"]),
    ];
    for (silent, arguments) in reading {
        let scene = Scene::with(Faults {
            silent: Some(silent),
            ..Faults::default()
        });
        let mut command = interruptible();
        command
            .env("HF_ENDPOINT", scene.hub.endpoint())
            .env("NO_PROXY", "*")
            .arg(arguments[0])
            .arg(place())
            .args(&arguments[1..])
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let child = command.spawn().unwrap();
        while !scene.hub.is_stalled() {
            thread::sleep(Duration::from_millis(10));
        }
        let requested = Instant::now();
        press_ctrl_c(&child);
        let ended = child.wait_with_output().unwrap();
        // that of a request is 30 s, and is tried six times
        let took = requested.elapsed();
        assert!(took < Duration::from_secs(5), "{silent}: {took:?}");
        let run = Run::from_output(format!("{arguments:?} {silent}"), ended);
        run.exits(130).says(&["stopping…"]);
    }
}

#[test]
fn a_server_that_falls_silent_is_given_up_sooner_than_others_and_each_wait_is_a_line() {
    for faults in [
        Faults {
            silent: Some("/cdn/"),
            ..Faults::default()
        },
        Faults {
            hang_after: Some(0), // a byte would count
            ..Faults::default()
        },
    ] {
        let scene = Scene::with(faults);
        let pack = scene.local_pack(&[]);
        let mut command = scene.hub.program();
        command
            .arg("verify")
            .arg(pack)
            .args(["--against", &place()]);
        let run = Run::of(command.env("HF_HUB_DOWNLOAD_TIMEOUT", "0.5"));
        assert_ne!(run.status, Some(0), "{run}");
        let waits = run.stderr.matches("trying again").count();
        assert!(waits >= 2, "{run}");
        let all = format!("{}{}", run.text(), run.stderr);
        assert!(all.contains("3 times in a row"), "{run}");
    }
}

#[test]
fn a_shard_that_is_not_the_listed_one_is_an_error() {
    let other = Scene::with(Faults {
        other_length: true,
        ..Faults::default()
    });
    let run = other.run(&[&"scan", &place()]).exits(3);
    assert!(
        run.text().contains("has changed since this run began"),
        "{run}"
    );
    let circle = Scene::with(Faults {
        circle: true,
        ..Faults::default()
    });
    let run = circle.run(&[&"scan", &place()]).exits(3);
    assert!(run.text().contains("more than 8 redirects"), "{run}");
}

#[test]
fn headers_come_through_failures_and_expired_links() {
    for faults in [
        Faults {
            fail_every: Some((2, 503)),
            ..Faults::default()
        },
        Faults {
            drop_after: Some((1000, 3)),
            ..Faults::default()
        },
        Faults {
            no_range: true,
            ..Faults::default()
        },
    ] {
        let scene = Scene::with(faults.clone());
        let mut run = scene.hub.program();
        let run = Run::of(run.args(["scan", &place(), "--json"]));
        assert_eq!(run.status, Some(0), "{faults:?}\n{run}");
    }
    let scene = Scene::with(Faults {
        fail_every: Some((1, 503)),
        ..Faults::default()
    });
    scene
        .run(&[&"scan", &place()])
        .exits(1)
        .says(&["status 503, 6 times in a row"]);
}
