//! `pack --consume`: whatever happens, nothing is gone that is not in a pack, and the next run goes on.

#![cfg(target_os = "linux")]

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::support::checkpoint::{self, Options};
use crate::support::cli::{Run, segpack};
use crate::support::damage::flip;
use crate::support::faults::{Fault, count_writes, faulty};
use crate::support::folders::{assert_same, contents, temp, write_contents};
use crate::support::packs::pack_into;
use crate::support::tiny::{Qwen3Moe, Tiny, tiny_text, write_file};

/// A checkpoint of several shards that can be made again, its pack, and a place for another one.
struct Scene {
    folder: TempDir,
    files: BTreeMap<String, Vec<u8>>,
    options: &'static [&'static str],
}

impl Scene {
    fn make(options: &'static [&'static str]) -> Self {
        let folder = temp();
        let size = Qwen3Moe {
            layers: 3,
            experts: 2,
            hidden: 32,
            width: 16,
            shards: 3,
        };
        let checkpoint = Tiny::qwen3_moe(size).write(&folder.path().join("checkpoint"));
        let files = contents(&checkpoint);
        let scene = Self {
            folder,
            files,
            options,
        };
        pack_into(&checkpoint, &scene.at("whole"), options);
        scene
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The checkpoint again, and no pack.
    fn reset(&self) {
        for name in ["checkpoint", "out", "restored"] {
            let _ = fs::remove_dir_all(self.at(name));
        }
        write_contents(&self.at("checkpoint"), &self.files);
    }

    fn arguments(&self, more: &[&str]) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = vec!["pack".into(), self.at("checkpoint").into()];
        arguments.extend(["-o".into(), self.at("out").into()]);
        arguments.extend(["--jobs", "1"].map(OsString::from));
        arguments.extend(self.options.iter().map(OsString::from));
        arguments.extend(more.iter().map(OsString::from));
        arguments
    }

    fn run(&self, more: &[&str]) -> Run {
        crate::support::cli::run(&self.arguments(more))
    }

    fn consume(&self) -> Vec<OsString> {
        self.arguments(&["--consume", "--yes"])
    }

    /// Names of the shards that are left.
    fn shards(&self) -> Vec<String> {
        let entries = fs::read_dir(self.at("checkpoint")).unwrap();
        let names = entries.map(|e| e.unwrap().file_name().into_string().unwrap());
        let mut shards: Vec<_> = names.filter(|n| n.ends_with(".safetensors")).collect();
        shards.sort();
        shards
    }

    /// The pack is what it would be without all this, the shards are gone, and all comes back.
    fn check_done(&self, what: &str) {
        let (out, whole) = (contents(&self.at("out")), contents(&self.at("whole")));
        assert!(out == whole, "{what}: another pack");
        assert_eq!(self.shards(), [""; 0], "{what}");
    }

    fn check_restores(&self) {
        segpack!["unpack", self.at("out"), "-o", self.at("restored")].ok();
        assert!(contents(&self.at("restored")) == self.files);
    }

    /// A shard that is gone has all its bytes in finished packs.
    fn check_nothing_lost(&self, what: &str) {
        let left = self.shards();
        for (name, bytes) in &self.files {
            let is_gone = name.ends_with(".safetensors") && !left.contains(name);
            if is_gone {
                continue;
            }
            let now = fs::read(self.at("checkpoint").join(name)).ok();
            assert!(
                now.as_ref() == Some(bytes),
                "{what}: {name} is not as it was"
            );
        }
        if left.len() < 3 {
            let whole = contents(&self.at("whole"));
            let out = contents(&self.at("out"));
            let whole_packs = out
                .iter()
                .filter(|(n, b)| n.starts_with("packs/") && whole.get(*n) == Some(*b));
            assert!(whole_packs.count() > 0, "{what}");
            let headers = out.keys().filter(|n| n.ends_with(".header")).count();
            assert_eq!(headers, 3, "{what}");
        }
    }

    /// Kills the run before a call, and goes on.
    fn kill_at(&self, n: u64) {
        let what = format!("killed before call {n}");
        self.reset();
        let killed = Run::of(faulty(Fault::Kill(n)).args(self.consume()));
        assert_eq!(killed.status, None, "{what}: {killed}");
        self.check_nothing_lost(&what);
        // in turn: at once, after a start that is refused, after another kill
        if n % 3 == 1 && self.shards().len() < 3 && !self.at("out/manifest.json").exists() {
            self.run(&["--force"]).exits(3); // the checkpoint is not whole
            write_contents(&self.at("checkpoint"), &self.files);
            self.run(&["--force"])
                .exits(1)
                .says(&["only copy", "--resume"]);
            for shard in self.files.keys().filter(|n| n.ends_with(".safetensors")) {
                fs::remove_file(self.at("checkpoint").join(shard)).unwrap();
            }
            return;
        }
        if n % 3 == 2 {
            let mut again = self.consume();
            again.push("--resume".into());
            Run::of(faulty(Fault::Kill(n / 2)).args(again));
            self.check_nothing_lost(&what);
        }
        self.run(&["--consume", "--yes", "--resume"]).ok();
        self.check_done(&what);
    }

    /// Lets a call fail, and all after it, and goes on.
    fn fail_at(&self, n: u64, error: i32) {
        let what = format!("call {n} fails with {error}");
        self.reset();
        let failed = Run::of(faulty(Fault::Full(n, error)).args(self.consume()));
        assert!(failed.status == Some(1), "{what}: {failed}");
        self.check_nothing_lost(&what);
        self.run(&["--consume", "--yes", "--resume"]).ok();
        self.check_done(&what);
    }
}

const CODED: &[&str] = &["--codec", "bf16-rans"];

#[test]
fn the_pack_is_the_same_and_the_shards_are_gone() {
    for options in [&[][..], CODED] {
        let scene = Scene::make(options);
        let plan = scene.run(&["--consume", "--dry-run", "--json"]).ok().json();
        assert_eq!(plan["consume"]["removed_files"], 3);
        assert_eq!(scene.shards().len(), 3);
        let done = scene.run(&["--consume", "--yes", "--json"]).ok().json();
        assert_eq!(done["removed_shards"], 3);
        scene.check_done("not killed");
        scene.check_restores();
        segpack!["verify", scene.at("out")].ok();
        // it is complete, and says so again
        scene.run(&["--consume", "--yes", "--resume"]).ok();
        scene.check_done("again");
    }
}

#[test]
fn nothing_is_deleted_without_a_yes() {
    let scene = Scene::make(&[]);
    scene
        .run(&["--consume"])
        .exits(2)
        .says(&["deleted", "--yes"]);
    assert!(!scene.at("out").exists());
    for more in [
        &["--force"][..],
        &["--force", "--in-place"],
        &["--no-source-digests"],
    ] {
        let more = [&["--consume", "--yes"], more].concat();
        scene.run(&more).exits(2);
    }
    scene.run(&["--yes"]).exits(2);
    assert!(!scene.at("out").exists());
    assert_same(&scene.at("checkpoint"), &scene.at("checkpoint"));
    assert_eq!(contents(&scene.at("checkpoint")), scene.files);
}

#[test]
fn what_is_not_all_packed_or_shared_stays() {
    let scene = Scene::make(&[]);
    let shard = scene.at("checkpoint").join(&scene.shards()[0]);
    // a hard link: nothing would be free
    fs::hard_link(&shard, scene.at("other-name")).unwrap();
    scene
        .run(&["--consume", "--yes"])
        .exits(1)
        .says(&["hard link", "without --consume"]);
    fs::remove_file(scene.at("other-name")).unwrap();
    // a link to somewhere else
    fs::rename(&shard, scene.at("elsewhere")).unwrap();
    symlink(scene.at("elsewhere"), &shard).unwrap();
    scene
        .run(&["--consume", "--yes"])
        .exits(1)
        .says(&["not one of a hub cache"]);
    assert!(!scene.at("out").exists());
    assert!(scene.at("elsewhere").exists());
    // components that are left out
    let talker = crate::support::tiny::tiny_full();
    let copy = scene.at("full");
    write_contents(&copy, &contents(&talker));
    segpack![
        "pack",
        &copy,
        "-o",
        scene.at("out"),
        "--include",
        "thinker",
        "--consume",
        "--yes"
    ]
    .exits(1)
    .says(&["not packed"]);
    assert!(contents(&copy) == contents(&talker));
    assert!(!scene.at("out").exists());
}

/// Lays a checkpoint out as the hub's cache does.
fn hub_cache(scene: &Scene) -> (PathBuf, PathBuf) {
    let repo = scene.at("hub/models--a--b");
    let snapshot = repo.join("snapshots/0123");
    for (n, (name, bytes)) in scene.files.iter().enumerate() {
        let blob = repo.join("blobs").join(format!("blob{n}"));
        write_file(&blob, bytes);
        let link = snapshot.join(name);
        fs::create_dir_all(link.parent().unwrap()).unwrap();
        let up = "../".repeat(2 + Path::new(name).components().count() - 1);
        symlink(format!("{up}blobs/blob{n}"), link).unwrap();
    }
    (repo, snapshot)
}

#[test]
fn a_blob_of_the_hub_cache_goes_with_its_link() {
    let scene = Scene::make(&["--no-provenance"]);
    let (repo, snapshot) = hub_cache(&scene);
    let blobs = || fs::read_dir(repo.join("blobs")).unwrap().count();
    let all = blobs();
    let pack = |more: &[&str]| {
        let mut arguments: Vec<OsString> = vec!["pack".into(), snapshot.clone().into()];
        arguments.extend(["-o".into(), scene.at("out").into()]);
        arguments.extend(["--no-provenance", "--consume", "--yes"].map(OsString::from));
        arguments.extend(more.iter().map(OsString::from));
        crate::support::cli::run(&arguments)
    };
    // another snapshot has the same blob
    let shard = scene.shards()[0].clone();
    let other = repo.join("snapshots/4567");
    fs::create_dir_all(&other).unwrap();
    let target = fs::read_link(snapshot.join(&shard)).unwrap();
    symlink(target, other.join(&shard)).unwrap();
    pack(&[]).exits(1).says(&["link to the same file"]);
    assert_eq!(blobs(), all);
    fs::remove_dir_all(&other).unwrap();
    // killed between the removal of a blob and that of its link
    pack(&[]).ok();
    assert_eq!(blobs(), all - 3);
    assert!(!snapshot.join(&shard).is_symlink());
    assert!(contents(&scene.at("out")) == contents(&scene.at("whole")));
}

#[test]
fn what_stands_for_a_removed_shard_is_checked() {
    let scene = Scene::make(&[]);
    let count = count_writes(&scene.consume());
    // a moment at which some shards are gone, and some are not
    let middle = (1..20).map(|i| i * count / 20).find(|n| {
        scene.reset();
        Run::of(faulty(Fault::Kill(*n)).args(scene.consume()));
        (1..3).contains(&scene.shards().len())
    });
    let middle = middle.expect("a moment in the middle");
    let kill = || {
        scene.reset();
        Run::of(faulty(Fault::Kill(middle)).args(scene.consume()));
    };
    let resume = || scene.run(&["--consume", "--yes", "--resume"]);
    let left = scene.shards();

    // either journal is enough, and so are two that are damaged in different lines
    for name in ["journal.jsonl", "consumed.jsonl"] {
        kill();
        fs::remove_file(scene.at("out/.partial").join(name)).unwrap();
        resume().ok();
        scene.check_done(name);
        kill();
        flip(&scene.at("out/.partial").join(name), 300);
        resume().ok();
        scene.check_done(name);
    }
    // no other command takes the folder over
    kill();
    for (command, more) in [
        ("unpack", &["--resume"][..]),
        ("repack", &["--codec", "zstd", "--force"]),
    ] {
        let mut arguments: Vec<OsString> = vec![command.into(), scene.at("whole").into()];
        arguments.extend(["-o".into(), scene.at("out").into()]);
        arguments.extend(more.iter().map(OsString::from));
        crate::support::cli::run(&arguments).exits(1);
        assert!(scene.at("out/.partial/consumed.jsonl").exists());
    }
    // without --consume it goes on, and deletes no more
    scene.run(&["--resume"]).ok();
    assert!(contents(&scene.at("out")) == contents(&scene.at("whole")));
    assert_eq!(scene.shards(), left);
    scene.run(&["--consume", "--yes", "--resume"]).ok();
    scene.check_done("deleted afterwards");

    // a damaged pack, or header, of a shard that is gone: an error, and everything stays
    for folder in ["packs", "source/.shard-headers"] {
        kill();
        let out = scene.at("out").join(folder);
        let files = contents(&out);
        let victim = files
            .keys()
            .find(|name| !left.iter().any(|l| name.contains(l.as_str())));
        flip(&out.join(victim.unwrap()), -1);
        let before = contents(&scene.at("out"));
        resume().exits(3).says(&["damaged"]);
        let after = contents(&scene.at("out"));
        for name in before.keys().filter(|n| n.starts_with("packs/")) {
            assert!(before[name] == after[name], "{name}");
        }
        assert_eq!(scene.shards(), left);
    }
    // a shard that changed since is not deleted
    kill();
    flip(&scene.at("checkpoint").join(&left[0]), -1);
    resume().exits(1).says(&["another source"]);
    assert_eq!(scene.shards(), left);
}

/// The dense weights of all layers lie in one pack: what a shard has of them is kept when it goes.
#[test]
fn what_many_shards_share_is_kept_until_its_pack_is_written() {
    let scene = Scene::make(&[]);
    let kept = || {
        let files = fs::read_dir(scene.at("out/.partial/kept"));
        files.map_or(Vec::new(), |files| {
            files.map(|file| file.unwrap().path()).collect()
        })
    };
    scene.reset();
    let count = count_writes(&scene.consume());
    // a moment at which a shard is gone, and the pack of the dense weights is not there
    let kill_at = |n: u64| {
        scene.reset();
        Run::of(faulty(Fault::Kill(n)).args(scene.consume()));
    };
    let dense = scene.at("out/packs/text.safetensors");
    let moment = (1..40).map(|i| i * count / 40).find(|n| {
        kill_at(*n);
        scene.shards().len() < 3 && !dense.exists()
    });
    let moment = moment.expect("a shard that goes before the dense weights are packed");
    assert!(!kept().is_empty());
    let resume = || scene.run(&["--consume", "--yes", "--resume"]);
    resume().ok();
    scene.check_done("goes on from what was kept");
    scene.check_restores();

    // without --consume, too
    kill_at(moment);
    scene.run(&["--resume"]).ok();
    assert!(contents(&scene.at("out")) == contents(&scene.at("whole")));

    // damaged, cut off or gone: an error, and everything stays
    let harm: [fn(&Path); 3] = [
        |file| flip(file, 7),
        |file| fs::write(file, b"short").unwrap(),
        |file| fs::remove_file(file).unwrap(),
    ];
    for harm in harm {
        kill_at(moment);
        kept().iter().for_each(|file| harm(file));
        let (left, before) = (scene.shards(), contents(&scene.at("out")));
        let refused = resume()
            .exits(3)
            .says(&["is damaged, and its source is gone"]);
        // repairing needs the shards
        assert!(!refused.stderr.contains("repair"), "{refused}");
        let after = contents(&scene.at("out"));
        let packs = before.keys().filter(|name| name.starts_with("packs/"));
        packs.for_each(|name| assert!(before[name] == after[name], "{name}"));
        assert_eq!(scene.shards(), left);
    }
}

/// The estimate of what is still to be written needs no byte of a shard that is gone.
#[test]
fn where_space_is_short_a_coded_run_goes_on_by_an_estimate() {
    let scene = Scene::make(CODED);
    scene.reset();
    let count = count_writes(&scene.consume());
    let middle = (1..40).map(|i| i * count / 40).find(|n| {
        scene.reset();
        Run::of(faulty(Fault::Kill(*n)).args(scene.consume()));
        (1..3).contains(&scene.shards().len())
    });
    assert!(middle.is_some());
    let mut again = scene.consume();
    again.push("--resume".into());
    // too little for the raw size, so that the estimate is asked
    Run::of(faulty(Fault::Free("0,1000000000")).args(again)).ok();
    scene.check_done("by an estimate");
}

/// The published layout: 15 shards of 5 GB, of which 13 hold dense weights of the thinker.
#[test]
fn the_published_checkpoint_needs_little_more_than_a_shard() {
    let folder = temp();
    let full = folder.path().join("full");
    checkpoint::write(&full, &Options::default()).unwrap();
    let out = folder.path().join("out");
    let plan = segpack!["pack", &full, "-o", out, "--consume", "--dry-run", "--json"];
    let plan = plan.ok().json();
    let peak = plan["consume"]["peak_bytes"].as_u64().unwrap();
    assert!(peak < 5_600_000_000, "{peak}");
}

#[test]
fn an_error_of_the_source_takes_nothing_back_once_shards_are_gone() {
    let scene = Scene::make(&[]);
    scene.reset();
    let reads = (1..400).rev().step_by(7);
    let mut gone = 0;
    for n in reads {
        scene.reset();
        let failed = Run::of(faulty(Fault::Reads(n, 5)).args(scene.consume()));
        scene.check_nothing_lost(&format!("read {n} fails: {failed}"));
        if scene.shards().len() < 3 && failed.status != Some(0) {
            gone += 1;
            scene.run(&["--consume", "--yes", "--resume"]).ok();
            scene.check_done(&format!("read {n}"));
        }
    }
    assert!(gone > 0);
}

/// Kills at one of `step` of the writing calls, and fails some of them; how many of each.
fn sweep(scene: &Scene, step: u64) -> [u64; 2] {
    let (mut kills, mut failures) = (0, 0);
    scene.reset();
    let count = count_writes(&scene.consume());
    scene.check_done("not killed");
    assert!(count > 80, "{count}");
    for n in (1..=count).filter(|n| n % step == 0) {
        scene.kill_at(n);
        kills += 1;
    }
    for n in (1..=count).filter(|n| n % (step + step / 2 + 1) == 1) {
        for error in [28, 5, 13] {
            scene.fail_at(n, error);
            failures += 1;
        }
    }
    [kills, failures]
}

#[test]
fn a_run_that_is_killed_or_fails_goes_on_and_loses_nothing() {
    let scene = Scene::make(&[]);
    let [kills, failures] = sweep(&scene, 13);
    assert!(kills > 5 && failures > 5, "{kills} {failures}");
    scene.check_restores();
}

/// All moments.
#[test]
#[ignore = "takes minutes"]
fn a_run_that_is_killed_at_any_call_goes_on_and_loses_nothing() {
    for options in [&[][..], CODED] {
        let scene = Scene::make(options);
        let [kills, failures] = sweep(&scene, 1);
        eprintln!("{options:?}: {kills} kills, {failures} failures");
        scene.check_restores();
    }
}

#[test]
fn a_single_file_and_no_index_can_be_consumed() {
    let scene = Scene::make(&[]);
    let text = contents(&tiny_text());
    let single = scene.at("single");
    write_contents(&single, &text);
    let shards: Vec<_> = text
        .keys()
        .filter(|n| n.ends_with(".safetensors"))
        .collect();
    if shards.len() != 1 {
        return; // the fixture has an index
    }
    let file = single.join(shards[0]);
    segpack!["pack", &file, "-o", scene.at("one"), "--consume", "--yes"].ok();
    assert!(!file.exists());
    segpack![
        "pack",
        &file,
        "-o",
        scene.at("one"),
        "--consume",
        "--yes",
        "--resume"
    ]
    .ok();
}
