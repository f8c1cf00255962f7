//! Ctrl-C while a server does not answer, or stops in the middle of an answer: every command ends at once, and what
//! is whole by then counts.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::{checkpoint, place};
use crate::support::cli::{Run, interruptible, press_ctrl_c};
use crate::support::folders::{assert_same, copy, temp};
use crate::support::hub::{self, Hub};
use crate::support::packs::pack_into;
use crate::support::store::{self, BUCKET, Store};
use crate::support::tiny::tiny_text;

/// Where a server stops.
#[derive(Debug, Clone, Copy)]
enum Stop {
    /// It never answers requests whose path has this in it.
    Silent(&'static str),
    /// In the middle of a body.
    Hangs,
}

impl Stop {
    fn faults(self) -> hub::Faults {
        match self {
            Self::Silent(part) => hub::Faults {
                silent: Some(part),
                ..hub::Faults::default()
            },
            Self::Hangs => hub::Faults {
                hang_after: Some(1),
                ..hub::Faults::default()
            },
        }
    }
}

/// What a hub has that stops.
#[derive(Debug, Clone, Copy)]
enum Served {
    Checkpoint,
    /// A pack of a model that runs.
    Pack,
}

const LIST: Stop = Stop::Silent("/api/models/");
const HEADER: Stop = Stop::Silent("/cdn/");

/// Commands, what of theirs is on the server (`PLACE`), and where it stops.
const COMMANDS: [(&str, Served, Stop); 20] = [
    ("scan PLACE", Served::Checkpoint, LIST),
    ("scan PLACE", Served::Checkpoint, HEADER),
    ("pack PLACE -o OUT", Served::Checkpoint, LIST),
    ("pack PLACE -o OUT", Served::Checkpoint, HEADER),
    ("pack PLACE -o OUT", Served::Checkpoint, Stop::Hangs),
    ("verify PACK --against PLACE", Served::Checkpoint, HEADER),
    (
        "verify PACK --against PLACE",
        Served::Checkpoint,
        Stop::Hangs,
    ),
    ("diff PACK PLACE", Served::Checkpoint, Stop::Hangs),
    (
        "repair BROKEN --from PLACE",
        Served::Checkpoint,
        Stop::Hangs,
    ),
    ("ls PLACE", Served::Pack, LIST),
    ("ls PLACE", Served::Pack, Stop::Silent("manifest.json")),
    ("info PLACE", Served::Pack, Stop::Silent("manifest.json")),
    ("cat PLACE thinker.lm_head.weight", Served::Pack, HEADER),
    (
        "cat PLACE thinker.lm_head.weight",
        Served::Pack,
        Stop::Hangs,
    ),
    ("verify PLACE", Served::Pack, HEADER),
    ("verify PLACE", Served::Pack, Stop::Hangs),
    ("unpack PLACE -o OUT", Served::Pack, Stop::Hangs),
    (
        "repack PLACE -o OUT --codec zstd",
        Served::Pack,
        Stop::Hangs,
    ),
    ("run PLACE --prompt-ids 179", Served::Pack, HEADER),
    ("run PLACE --prompt-ids 179", Served::Pack, Stop::Hangs),
];

/// Local packs of both kinds of sources.
struct Scene {
    folder: TempDir,
}

impl Scene {
    fn new() -> Self {
        let folder = temp();
        let of = |name: &str| folder.path().join(name);
        checkpoint(&of("checkpoint"));
        pack_into(&of("checkpoint"), &of("pack"), &[]);
        copy(&of("pack"), &of("broken"));
        let packs = of("broken/packs");
        let first = std::fs::read_dir(packs).unwrap().flatten().next().unwrap();
        crate::support::damage::flip(&first.path(), -1);
        pack_into(&tiny_text(), &of("tiny"), &[]);
        Self { folder }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn hub(&self, served: Served, stop: Stop) -> Hub {
        let name = match served {
            Served::Checkpoint => "checkpoint",
            Served::Pack => "tiny",
        };
        Hub::of(&self.at(name), stop.faults())
    }

    fn command(&self, words: &str, hub: &Hub) -> Command {
        let mut command = interruptible();
        command
            .env("HF_ENDPOINT", hub.endpoint())
            .env("NO_PROXY", "*");
        for word in words.split_whitespace() {
            match word {
                "PLACE" => command.arg(place()),
                "PACK" => command.arg(self.at("pack")),
                "BROKEN" => command.arg(self.at("broken")),
                "OUT" => command.arg(self.at("out")),
                word => command.arg(word),
            };
        }
        command
    }
}

/// Starts a command, presses Ctrl-C once the server keeps it waiting, and says how long its end took.
fn stopped(command: &mut Command, is_stalled: impl Fn() -> bool) -> (Run, Duration) {
    let mut child = command
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let began = Instant::now();
    while !is_stalled() {
        let ended = child.try_wait().unwrap();
        let is_late = began.elapsed() > Duration::from_secs(60);
        if ended.is_some() || is_late {
            let _ = child.kill();
            let output = child.wait_with_output().unwrap();
            panic!(
                "nothing waited: {}",
                Run::from_output(format!("{command:?}"), output)
            );
        }
        thread::sleep(Duration::from_millis(10));
    }
    thread::sleep(Duration::from_millis(100)); // what has come is on its way
    let pressed = Instant::now();
    press_ctrl_c(&child);
    let output = child.wait_with_output().unwrap();
    (
        Run::from_output(format!("{command:?}"), output),
        pressed.elapsed(),
    )
}

/// Far more than the 0.2 s that it takes on a machine that does nothing else, and far less than the 30 s of a
/// connection.
const SOON: Duration = Duration::from_secs(4);

#[test]
fn ctrl_c_ends_every_command_that_waits_for_a_server() {
    let scene = Scene::new();
    for (words, served, stop) in COMMANDS {
        let hub = scene.hub(served, stop);
        let mut command = scene.command(words, &hub);
        let (run, took) = stopped(&mut command, || hub.is_stalled());
        println!("{words:40} {stop:?}: {} ms", took.as_millis());
        assert!(took < SOON, "{words} {stop:?}: {took:?}");
        run.exits(130).says(&["stopping…"]);
        assert!(!scene.at("out/manifest.json").exists());
        let _ = std::fs::remove_dir_all(scene.at("out"));
    }
}

/// `pack` into a store that keeps requests waiting whose path has this in it.
fn upload(stall: store::Slow) -> (TempDir, Store, Command) {
    let folder = temp();
    checkpoint(&folder.path().join("checkpoint"));
    let faults = store::Faults {
        slow: Some(stall),
        ..store::Faults::default()
    };
    let store = Store::of(&folder.path().join("store"), faults);
    let mut command = interruptible();
    let with = store.program();
    command.envs(with.get_envs().filter_map(|(k, v)| Some((k, v?))));
    command.arg("pack").arg(folder.path().join("checkpoint"));
    command.args(["-o", "s3://models/packs/tiny", "--no-provenance"]);
    command
        .current_dir(folder.path())
        .env("SEGPACK_PART_SIZE", "100000");
    (folder, store, command)
}

fn is_published(folder: &Path) -> bool {
    let objects = folder.join("store").join(BUCKET).join("packs/tiny");
    objects.join("manifest.json").exists()
}

#[test]
fn ctrl_c_ends_an_upload_that_waits_and_a_pack_that_is_whole_is_one() {
    for (part, before, after) in [
        ("uploadId", 600, 0),
        ("SHA256SUMS", 600, 0),
        ("manifest.json", 600, 0),
    ] {
        let slow = store::Slow {
            part,
            before: Duration::from_secs(before),
            after: Duration::from_secs(after),
        };
        let (folder, store, mut command) = upload(slow);
        let (run, took) = stopped(&mut command, || store.is_stalled());
        println!(
            "{:40} {part} waits: {} ms",
            "pack … -o s3://…",
            took.as_millis()
        );
        assert!(took < SOON, "{part}: {took:?}");
        run.exits(130);
        assert!(!is_published(folder.path()));
    }
    // the answer to the manifest comes within the time that is given to it
    let slow = store::Slow {
        part: "manifest.json",
        before: Duration::ZERO,
        after: Duration::from_millis(700),
    };
    let (folder, store, mut command) = upload(slow);
    let (run, _) = stopped(&mut command, || store.is_stalled());
    run.ok();
    assert!(is_published(folder.path()));
    let local = folder.path().join("local");
    pack_into(
        &folder.path().join("checkpoint"),
        &local,
        &["--no-provenance"],
    );
    assert_same(
        &local,
        &folder.path().join("store").join(BUCKET).join("packs/tiny"),
    );
}
