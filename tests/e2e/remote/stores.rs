//! Checkpoints in object stores: the same as on the disk, and what is said where they are not there.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use super::{checkpoint, without_provenance};
use crate::support::cli::{Run, interruptible, press_ctrl_c, segpack};
use crate::support::folders::{assert_same, contents, copy, temp};
use crate::support::packs::pack_into;
use crate::support::store::{BUCKET, Faults, KEY_ID, SECRET, Store};
use crate::support::tiny::tiny_text;
use tempfile::TempDir;

const PLACE: &str = "s3://models/tiny/one";

/// A checkpoint of three shards, and a store that has it beside others.
struct Scene {
    folder: TempDir,
    store: Store,
}

impl Scene {
    fn with(faults: Faults) -> Self {
        let folder = temp();
        let local = checkpoint(&folder.path().join("checkpoint"));
        let stored = folder.path().join("store").join(BUCKET).join("tiny/one");
        copy(&local, &stored);
        // begins alike, and is another
        let other = stored.with_file_name("one-more");
        fs::create_dir(&other).unwrap();
        fs::write(other.join("config.json"), "{}").unwrap();
        let store = Store::of(&folder.path().join("store"), faults);
        Self { folder, store }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn run(&self, arguments: &[&dyn AsRef<OsStr>]) -> Run {
        let mut command = self.store.program();
        command.args(arguments.iter().map(|a| a.as_ref()));
        Run::of(&mut command)
    }

    /// Small parts, so that a shard has many.
    fn pack(&self, out: &Path) -> Command {
        let mut command = self.store.program();
        command
            .args(["pack", PLACE, "--no-provenance", "-o"])
            .arg(out);
        command.env("SEGPACK_PART_SIZE", "100000");
        command
    }

    fn local_pack(&self) -> PathBuf {
        let pack = self.at("local.segpack");
        pack_into(&self.at("checkpoint"), &pack, &["--no-provenance"]);
        pack
    }
}

#[test]
fn scan_takes_the_same_inventory_from_an_object_store_as_from_a_folder() {
    let scene = Scene::with(Faults::default());
    let local = segpack!["scan", &scene.at("checkpoint"), "--json"].ok();
    let local = without_provenance(&local);
    let remote = scene.run(&[&"scan", &PLACE, &"--json"]).ok();
    assert_eq!(local, without_provenance(&remote));
    // one range of each shard
    assert_eq!(scene.store.sent(".safetensors"), 3 * (256 << 10));
    let pages = scene.store.log();
    let pages = pages.iter().filter(|line| line.contains("list-type=2"));
    assert!(pages.count() > 1, "the list was to come in pages");

    let hosted = Scene::with(Faults {
        virtual_host: true,
        ..Faults::default()
    });
    let remote = hosted.run(&[&"scan", &format!("{PLACE}/"), &"--json"]).ok();
    assert_eq!(local, without_provenance(&remote));
    let log = hosted.store.log();
    assert!(log.iter().all(|line| !line.contains("/models/")), "{log:?}");
}

#[test]
fn a_pack_is_verified_against_an_object_store_and_compared_with_it() {
    let scene = Scene::with(Faults::default());
    let pack = scene.local_pack();
    scene.run(&[&"verify", &pack, &"--against", &PLACE]).ok();
    scene.run(&[&"diff", &pack, &PLACE]).ok();
}

#[test]
fn a_pack_from_an_object_store_is_that_of_the_local_checkpoint_whatever_goes_wrong() {
    let all = [
        Faults::default(),
        Faults {
            fail_every: Some((2, 503)),
            ..Faults::default()
        },
        Faults {
            drop_after: Some((70_000, usize::MAX)),
            ..Faults::default()
        },
        Faults {
            stall: Some((Duration::from_millis(600), 1)),
            ..Faults::default()
        },
    ];
    for faults in all {
        let scene = Scene::with(faults.clone());
        let out = scene.at("remote.segpack");
        let mut command = scene.pack(&out);
        command.arg("--json");
        let is_slow = faults.stall.is_some();
        if is_slow {
            command.env("HF_HUB_DOWNLOAD_TIMEOUT", "0.2");
        }
        // which of several connections a failure meets is chance
        command.env("SEGPACK_RETRIES", "50");
        let run = Run::of(&mut command);
        assert_eq!(run.status, Some(0), "{faults:?}\n{run}");
        assert_same(&scene.local_pack(), &out);
        let from = &run.json()["packed_from"];
        assert_eq!(from["place"], PLACE);
        // a busy machine may be slow by itself
        assert!(is_slow || from["requests"] == scene.store.log().len() as u64);
        let failed = is_slow || faults.fail_every.is_some() || faults.drop_after.is_some();
        assert_eq!(from["retries"].as_u64().unwrap() > 0, failed, "{run}");
    }
}

#[test]
fn an_interrupted_run_stops_at_once_and_goes_on_in_the_middle_of_a_shard() {
    let stalls = Faults {
        stall: Some((Duration::from_secs(20), 1)),
        ..Faults::default()
    };
    let scene = Scene::with(stalls);
    let out = scene.at("remote.segpack");
    let mut command = interruptible();
    let with = scene.pack(&out);
    command.envs(with.get_envs().filter_map(|(k, v)| Some((k, v?))));
    let mut child = command.args(with.get_args()).arg("-q").spawn().unwrap();
    while !scene.store.is_stalled() {
        thread::sleep(Duration::from_millis(10));
    }
    // the other connections go on
    let enough = 3 * (256 << 10) + 600_000;
    while scene.store.sent(".safetensors") < enough {
        thread::sleep(Duration::from_millis(10));
    }
    thread::sleep(Duration::from_millis(200));
    let began = Instant::now();
    press_ctrl_c(&child);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(began.elapsed() < Duration::from_secs(5));
    let before = scene.store.sent(".safetensors");
    Run::of(scene.pack(&out).arg("--resume")).ok();
    assert_same(&scene.local_pack(), &out);
    let again = scene.store.sent(".safetensors") - before;
    let all: u64 = fs::read_dir(scene.at("checkpoint"))
        .unwrap()
        .flatten()
        .filter(|e| e.path().extension().is_some_and(|x| x == "safetensors"))
        .map(|e| e.metadata().unwrap().len())
        .sum();
    let headers = 3 * (256 << 10);
    assert!(
        again <= all + headers - 400_000,
        "{again} of {all} bytes again"
    );
}

#[test]
fn objects_that_change_on_the_way_are_an_error() {
    let scene = Scene::with(Faults {
        change_after: Some(6),
        ..Faults::default()
    });
    let out = scene.at("remote.segpack");
    Run::of(&mut scene.pack(&out)).exits(3).says(&[
        "another version of the file",
        "has changed since this run began",
    ]);
    assert!(!out.join("manifest.json").exists());
}

/// What a run with other credentials says. The real ones are in none of it.
fn refused(scene: &Scene, place: &str, environment: &[(&str, Option<&str>)]) -> Run {
    let mut command = scene.store.program();
    for (name, value) in environment {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let run = Run::of(command.args(["scan", place]));
    assert!(
        !run.stderr.contains(SECRET) && !run.text().contains(SECRET),
        "{run}"
    );
    run
}

#[test]
fn wrong_credentials_buckets_keys_and_endpoints_are_told_apart() {
    let scene = Scene::with(Faults::default());
    let secret = [("AWS_SECRET_ACCESS_KEY", Some("wrong-secret"))];
    let run = refused(&scene, PLACE, &secret).exits(1);
    run.says(&["s3://models does not open", "SignatureDoesNotMatch"]);
    let run = refused(&scene, PLACE, &[("AWS_ACCESS_KEY_ID", Some("AKIDOTHER"))]).exits(1);
    run.says(&["s3://models does not open", "AWS_ACCESS_KEY_ID"]);
    let run = refused(&scene, PLACE, &[("AWS_SKIP_SIGNATURE", Some("true"))]).exits(1);
    run.says(&["AccessDenied"]);
    let run = refused(&scene, PLACE, &[("AWS_SECRET_ACCESS_KEY", None)]).exits(1);
    run.says(&[
        "no credentials for s3://models/tiny/one",
        "AWS_SECRET_ACCESS_KEY",
    ]);

    let run = refused(&scene, "s3://nobody/tiny/one", &[]).exits(3);
    run.says(&["there is no s3://nobody"]);
    let run = refused(&scene, "s3://models/tiny/two", &[]).exits(3);
    run.says(&["s3://models/tiny/two: holds no objects"]);
    let before = scene.store.log().len();
    let run = refused(&scene, PLACE, &[("AWS_ALLOW_HTTP", None)]).exits(1);
    run.says(&["AWS_ALLOW_HTTP: is not true"]);
    let run = refused(&scene, PLACE, &[("HF_HUB_OFFLINE", Some("1"))]).exits(1);
    run.says(&["HF_HUB_OFFLINE is set"]);
    let run = refused(&scene, "s3://key:secret@models/x", &[]).exits(2);
    run.says(&["wanted BUCKET/PREFIX"]);
    assert_eq!(scene.store.log().len(), before, "nothing was to be asked");
    assert!(!KEY_ID.is_empty());
}

#[test]
fn stores_of_others_want_their_own_credentials() {
    let scene = Scene::with(Faults::default());
    let run = refused(&scene, "az://container/model", &[]).exits(1);
    run.says(&[
        "no credentials for az://container/model",
        "AZURE_STORAGE_ACCOUNT_NAME",
    ]);
    let key = [("GOOGLE_SERVICE_ACCOUNT_KEY", Some("[\"private\"]"))];
    let run = refused(&scene, "gs://bucket/model", &key).exits(1);
    let run = run.says(&[
        "no credentials for gs://bucket/model",
        "GOOGLE_APPLICATION_CREDENTIALS",
    ]);
    assert!(!run.text().contains("private") && !run.stderr.contains("private"));
    assert_eq!(scene.store.log(), [""; 0]);
}

/// A store without a checkpoint, and the command that packs one into it.
struct Upload {
    folder: TempDir,
    store: Store,
}

const OUT: &str = "s3://models/packs/tiny";

impl Upload {
    fn with(faults: Faults) -> Self {
        let folder = temp();
        checkpoint(&folder.path().join("checkpoint"));
        let store = Store::of(&folder.path().join("store"), faults);
        Self { folder, store }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Small parts, so that a pack has several.
    fn pack(&self, options: &[&str]) -> Command {
        let mut command = self.store.program();
        command.arg("pack").arg(self.at("checkpoint"));
        command.args(["-o", OUT, "--no-provenance"]).args(options);
        command.current_dir(self.folder.path());
        command.env("SEGPACK_PART_SIZE", "100000");
        command
    }

    /// The objects of the pack, as files.
    fn objects(&self) -> PathBuf {
        self.store.folder().join("packs/tiny")
    }

    fn assert_whole(&self) {
        let local = self.at("local.segpack");
        let _ = fs::remove_dir_all(&local);
        pack_into(&self.at("checkpoint"), &local, &["--no-provenance"]);
        assert_same(&local, &self.objects());
        assert!(!self.at("tiny.spool").exists(), "the spool is left");
        self.assert_no_uploads();
    }

    /// `s3s-fs` keeps unfinished uploads beside the buckets.
    fn assert_no_uploads(&self) {
        let entries = self.at("store").read_dir().unwrap().flatten();
        let names = entries.map(|e| e.file_name().to_string_lossy().into_owned());
        let left: Vec<String> = names.filter(|n| n.contains("upload")).collect();
        assert_eq!(left, [""; 0], "parts of unfinished uploads are left");
    }
}

#[test]
fn a_pack_is_written_into_an_object_store_with_its_manifest_last() {
    for faults in [
        Faults::default(),
        Faults {
            fail_every: Some((3, 503)),
            ..Faults::default()
        },
    ] {
        let upload = Upload::with(faults);
        Run::of(upload.pack(&[]).env("SEGPACK_RETRIES", "50")).ok();
        upload.assert_whole();
        let log = upload.store.log();
        let writes: Vec<&String> = log.iter().filter(|l| !l.starts_with("GET")).collect();
        let [.., sums, manifest] = &writes[..] else {
            panic!("{writes:?}");
        };
        assert!(manifest.contains("packs/tiny/manifest.json"), "{manifest}");
        assert!(sums.contains("packs/tiny/SHA256SUMS"), "{sums}");
        assert!(
            log.iter().any(|l| l.contains("partNumber=2")),
            "one part only"
        );
        // what is there is not replaced
        let again = Run::of(&mut upload.pack(&["--resume"])).exits(1);
        again.says(&["there is a pack already"]);
    }
}

#[test]
fn the_summary_says_what_was_sent_and_the_rate_is_kept() {
    let upload = Upload::with(Faults {
        fail_every: Some((3, 503)),
        ..Faults::default()
    });
    let began = Instant::now();
    let mut command = upload.pack(&["--json", "--limit-rate", "8MB", "--connections", "8"]);
    let run = Run::of(command.env("SEGPACK_RETRIES", "50")).ok();
    let seconds = began.elapsed().as_secs_f64();
    upload.assert_whole();
    let to = &run.json()["uploaded_to"];
    assert_eq!(to["place"], OUT);
    let log = upload.store.log();
    assert_eq!(to["requests"], log.len() as u64, "{run}");
    assert!(to["retries"].as_u64().unwrap() > 0, "{run}");
    let files = contents(&upload.objects());
    assert_eq!(to["objects"], files.len() as u64);
    let bytes: u64 = files.values().map(|bytes| bytes.len() as u64).sum();
    let sent = to["sent_bytes"].as_u64().unwrap();
    assert!(sent > bytes, "{sent} of {bytes}: what failed was sent, too");
    assert!(seconds > bytes as f64 / 8e6 * 0.9, "{seconds} s");
    let large = files.values().filter(|bytes| bytes.len() > 100_000);
    let parts: usize = large.map(|bytes| bytes.len().div_ceil(100_000)).sum();
    assert_eq!(to["parts"], parts as u64);
    // nothing was sent to anybody else, and nothing where nothing is uploaded
    let local = segpack![
        "pack",
        upload.at("checkpoint"),
        "-o",
        upload.at("x"),
        "--json"
    ];
    assert_eq!(local.ok().json()["uploaded_to"], serde_json::Value::Null);
}

/// A pack of a model that runs in a store, and in a folder.
fn stored_pack(faults: Faults) -> (TempDir, Store) {
    let folder = temp();
    let pack = folder.path().join("pack");
    pack_into(&tiny_text(), &pack, &[]);
    let root = folder.path().join("store");
    copy(&pack, &root.join(BUCKET).join("packs/tiny"));
    let store = Store::of(&root, faults);
    (folder, store)
}

#[test]
fn a_pack_in_a_store_is_read_as_that_of_a_folder_is_whatever_goes_wrong() {
    let all = [
        Faults::default(),
        Faults {
            fail_every: Some((3, 503)),
            ..Faults::default()
        },
        Faults {
            drop_after: Some((40_000, usize::MAX)),
            ..Faults::default()
        },
    ];
    for faults in all {
        let (folder, store) = stored_pack(faults.clone());
        let pack = folder.path().join("pack");
        let run = |place: &OsStr, words: &str| {
            let mut words = words.split_whitespace();
            let mut command = store.program();
            command.arg(words.next().unwrap()).arg(place).args(words);
            Run::of(command.env("SEGPACK_RETRIES", "50")).ok()
        };
        for words in [
            "verify --json",
            "verify --sums --json",
            "ls --tensors --json",
            "info --json",
            "cat thinker.model.layers.0.mlp.gate.weight config.json",
        ] {
            let [here, there] = [pack.as_os_str(), OUT.as_ref()].map(|at| run(at, words));
            assert!(here.stdout == there.stdout, "{words} {faults:?}: {there}");
        }
        let tokens = |run: Run| -> Vec<u64> {
            let (tokens, _) = run.tokens();
            tokens.iter().map(|t| t["id"].as_u64().unwrap()).collect()
        };
        let prompt = "run --prompt-ids 179 --max-new-tokens 24 --json";
        assert_eq!(tokens(run(OUT.as_ref(), prompt)), [4, 160, 55, 287]);
        let out = folder.path().join("restored");
        run(OUT.as_ref(), &format!("unpack -o {}", out.display()));
        assert_same(&out, &tiny_text());
        let log = store.log();
        assert!(log.iter().all(|line| line.starts_with("GET ")), "{log:?}");
    }
}

#[test]
fn a_pack_in_a_store_that_changes_or_that_nobody_may_read_is_an_error() {
    let (_folder, store) = stored_pack(Faults {
        change_after: Some(2),
        ..Faults::default()
    });
    let run = Run::of(store.program().args(["verify", OUT])).exits(3);
    let why = "another version of the file: what is published there has changed";
    assert!(run.text().contains(why), "{run}");
    let mut stranger = store.program();
    stranger.env("AWS_SECRET_ACCESS_KEY", "wrong");
    Run::of(stranger.args(["ls", OUT]))
        .exits(1)
        .says(&["does not open", "SignatureDoesNotMatch"]);
    for (command, options) in [
        ("repair", &["--from", "x"][..]),
        ("update", &["--from", "x"]),
    ] {
        let mut program = store.program();
        let run = Run::of(program.args([command, OUT]).args(options));
        run.exits(2).says(&["s3://models/packs/tiny: "]);
    }
}

#[test]
fn a_store_that_fails_leaves_nothing_that_looks_like_a_pack_and_resume_goes_on() {
    let upload = Upload::with(Faults {
        refuse_after: Some(12),
        ..Faults::default()
    });
    Run::of(&mut upload.pack(&[])).exits(1).says(&[
        "cannot upload to s3://models/packs/tiny/packs/",
        "status 503, 6 times in a row",
    ]);
    upload.assert_no_uploads();
    assert!(!upload.objects().join("manifest.json").exists());
    let before = fs::read_dir(upload.objects().join("packs"))
        .unwrap()
        .count();
    assert!(before > 0, "some packs were to be there");
    // without --resume, or with another option, nothing is mixed
    upload.store.recover();
    Run::of(&mut upload.pack(&[]))
        .exits(1)
        .says(&["objects of an unfinished pack"]);
    Run::of(&mut upload.pack(&["--resume", "--codec", "bf16-rans"])).exits(1);
    let log = upload.store.log().len();
    let run = Run::of(&mut upload.pack(&["--resume", "--json"])).ok();
    assert!(run.json()["resumed_packs"].as_u64().unwrap() > 0, "{run}");
    assert!(upload.store.log().len() > log);
    upload.assert_whole();
}

#[test]
fn an_upload_is_refused_where_it_cannot_be_right() {
    let upload = Upload::with(Faults::default());
    for option in [
        &["--force"][..],
        &["--consume", "--yes"],
        &["--part", "1/2"],
    ] {
        let run = Run::of(&mut upload.pack(option)).exits(2);
        run.says(&[option[0]]);
    }
    let place = upload.objects();
    fs::create_dir_all(&place).unwrap();
    fs::write(place.join("notes.txt"), "mine").unwrap();
    Run::of(&mut upload.pack(&["--resume"]))
        .exits(1)
        .says(&["\"notes.txt\""]);
    let mut command = upload.store.program();
    command.arg("pack").arg(upload.at("checkpoint"));
    let run = Run::of(command.args(["-o", "s3://nobody/x"])).exits(1);
    run.says(&["there is no s3://nobody"]);
    let mut command = upload.store.program();
    command.arg("pack").arg(upload.at("checkpoint"));
    Run::of(command.args(["-o", "gs://bucket/x"]))
        .exits(2)
        .says(&["folders, to s3:// and to az:// only"]);
    assert_eq!(fs::read_dir(&place).unwrap().count(), 1);
}
