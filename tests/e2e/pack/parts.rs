//! `pack --part K/N` on many machines, and `join`: the same bytes as on one.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::cli::{FindingKind, Run, run, segpack};
use crate::support::damage::{flip, resize};
#[cfg(target_os = "linux")]
use crate::support::faults::{Fault, count_writes_without, faulty};
use crate::support::folders::{assert_same, contents, temp, write_contents};
use crate::support::tiny::{Qwen3Moe, Tiny};

/// A checkpoint of three layers in three shards, and room for packs.
struct Scene {
    folder: TempDir,
}

fn tiny() -> Tiny {
    Tiny::qwen3_moe(Qwen3Moe {
        layers: 3,
        experts: 4,
        hidden: 64,
        width: 32,
        shards: 3,
    })
}

impl Scene {
    fn new() -> Self {
        Self::of(&tiny())
    }

    fn of(tiny: &Tiny) -> Self {
        let folder = temp();
        tiny.write(&folder.path().join("checkpoint"));
        Self { folder }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn pack(&self, name: &str, options: &[&str]) -> Run {
        let mut arguments: Vec<OsString> = vec!["pack".into(), self.at("checkpoint").into()];
        arguments.extend(["-o".into(), self.at(name).into()]);
        arguments.extend(options.iter().map(OsString::from));
        run(&arguments)
    }

    /// All parts, in the order of their numbers.
    fn parts(&self, of: u64, options: &[&str]) -> Vec<PathBuf> {
        let pack = |part| {
            let (name, share) = (format!("part-{part}-of-{of}"), format!("{part}/{of}"));
            self.pack(&name, &[options, &["--part", &share]].concat())
                .ok();
            self.at(&name)
        };
        (1..=of).map(pack).collect()
    }

    fn join(&self, parts: &[PathBuf], options: &[&str]) -> Run {
        run(&self.to_join(parts, options))
    }

    fn to_join(&self, parts: &[PathBuf], options: &[&str]) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = vec!["join".into()];
        arguments.extend(parts.iter().map(OsString::from));
        arguments.extend(["-o".into(), self.at("joined").into()]);
        arguments.extend(options.iter().map(OsString::from));
        arguments
    }

    /// Joining is refused with these words, and nothing is left.
    #[track_caller]
    fn refused(&self, parts: &[PathBuf], words: &[&str]) {
        let before: Vec<_> = parts.iter().map(|part| contents(part)).collect();
        self.join(parts, &[]).exits(3).says(words);
        assert!(!self.at("joined").exists());
        let after: Vec<_> = parts.iter().map(|part| contents(part)).collect();
        assert!(before == after, "the parts have changed");
    }
}

fn document(part: &Path) -> Value {
    serde_json::from_slice(&fs::read(part.join("part.json")).unwrap()).unwrap()
}

/// Changes the document of a part, and its line in SHA256SUMS.
fn edit_document(part: &Path, edit: impl FnOnce(&mut Value)) {
    let mut changed = document(part);
    edit(&mut changed);
    fs::write(part.join("part.json"), changed.to_string()).unwrap();
    let sums = fs::read_to_string(part.join("SHA256SUMS")).unwrap();
    let digest = segpack_formats::digest::Sha256::of(changed.to_string().as_bytes());
    let lines = sums.lines().map(|line| match line.split_once("  ") {
        Some((_, "part.json")) => format!("{digest}  part.json\n"),
        _ => format!("{line}\n"),
    });
    let sums: String = lines.collect();
    fs::write(part.join("SHA256SUMS"), sums).unwrap();
}

#[test]
fn parts_that_are_joined_are_the_pack_of_one_machine_byte_for_byte() {
    for (codec, of) in [("raw", 1), ("raw", 3), ("bf16-rans", 2), ("bf16-rans", 7)] {
        let scene = Scene::new();
        scene.pack("whole", &["--codec", codec]).ok();
        let mut parts = scene.parts(of, &["--codec", codec]);
        parts.reverse(); // in any order
        let summary = scene.join(&parts, &["--json"]).ok().json();
        assert_eq!(summary["joined_parts"], of);
        assert_same(&scene.at("whole"), &scene.at("joined"));
        segpack!["verify", scene.at("joined"), "--sums"].ok();
    }
}

#[test]
fn parts_of_every_kind_of_pack_are_joined_to_the_same_bytes() {
    let checkpoints: [(Tiny, &[&str]); 4] = [
        (tiny().stacked(), &[]),
        (
            tiny(),
            &["--no-source-digests", "--no-sums", "--no-provenance"],
        ),
        (Tiny::full(), &["--exclude", "talker"]),
        (
            Tiny::full(),
            &["--include", "thinker", "--codec", "zstd", "--level", "3"],
        ),
    ];
    for (tiny, options) in checkpoints {
        let scene = Scene::of(&tiny);
        scene.pack("whole", options).ok();
        let parts = scene.parts(2, options);
        scene.join(&parts, &[]).ok();
        assert_same(&scene.at("whole"), &scene.at("joined"));
    }
}

#[test]
fn every_shard_is_digested_by_exactly_one_part_and_every_pack_is_in_one() {
    let scene = Scene::new();
    let parts = scene.parts(3, &[]);
    let documents: Vec<Value> = parts.iter().map(|part| document(part)).collect();
    let shares = &documents[0]["share"];
    let mut bytes = [0; 3];
    for pack in shares["packs"].as_array().unwrap() {
        let path = pack["path"].as_str().unwrap();
        let holders: Vec<_> = parts.iter().filter(|p| p.join(path).exists()).collect();
        let part = pack["part"].as_u64().unwrap() as usize;
        assert_eq!(holders, [&parts[part - 1]]);
        bytes[part - 1] += pack["raw_length"].as_u64().unwrap();
    }
    assert!(bytes.iter().all(|b| *b > 0), "{bytes:?}");
    for shard in 0..3 {
        let digests = documents.iter().filter(|d| {
            let files = d["manifest"]["source_files"].as_array().unwrap();
            let shards: Vec<_> = files.iter().filter(|f| f["kind"] == "shard").collect();
            !shards[shard]["sha256"].is_null()
        });
        assert_eq!(digests.count(), 1);
    }
    let plan = |options: &[&str]| {
        let plan = scene.pack("none", &[&["--dry-run", "--json"], options].concat());
        let plan = plan.ok().json();
        let packs = plan["packs"].as_array().unwrap().clone();
        packs.iter().map(|p| p["path"].clone()).collect::<Vec<_>>()
    };
    let of_parts = ["1/3", "2/3", "3/3"].map(|part| plan(&["--part", part]));
    assert_eq!(of_parts.concat(), plan(&[]));
}

#[test]
fn a_missing_duplicate_or_foreign_part_has_an_error_of_its_own() {
    let scene = Scene::new();
    let parts = scene.parts(3, &["--no-provenance"]);
    scene.refused(&parts[..2], &["part 3 is missing of 3"]);
    scene.refused(&parts[2..], &["parts 1 and 2 are missing of 3"]);
    let one = scene.at("one-of-many");
    scene.pack("one-of-many", &["--part", "1/65536"]).ok();
    let words = "65535 parts, part 2 the first of them, are missing of 65536";
    scene.refused(&[one], &[words]);
    scene.pack("more", &["--part", "1/65537"]).exits(2);
    let copy = scene.at("copy");
    crate::support::folders::copy(&parts[1], &copy);
    let twice = [&parts[..], std::slice::from_ref(&copy)].concat();
    scene.refused(&twice, &["both part 2 of 3", "copy"]);

    let two = scene.parts(2, &["--no-provenance"]);
    let mixed = [parts[0].clone(), two[1].clone()];
    scene.refused(&mixed, &["is part 2 of 2, but", "is one of 3"]);

    // other options
    for (options, words) in [
        (
            &["--codec", "bf16-rans"][..],
            ["the codec bf16-rans", "with raw"],
        ),
        (
            &["--no-source-digests"],
            ["source digests: false", "with true"],
        ),
    ] {
        let all = [&["--no-provenance", "--part", "2/3", "--force"], options].concat();
        scene.pack("copy", &all).ok();
        let mixed = [parts[0].clone(), copy.clone(), parts[2].clone()];
        scene.refused(&mixed, &words);
    }

    // another version, other shares
    crate::support::folders::copy(&parts[1], &scene.at("other"));
    let other = [parts[0].clone(), scene.at("other"), parts[2].clone()];
    edit_document(&other[1], |d| {
        d["manifest"]["generator"] = json!("segpack 0.0.9");
    });
    scene.refused(&other, &["was packed by segpack 0.0.9"]);
    edit_document(&other[1], |d| {
        d["manifest"]["generator"] = document(&parts[0])["generator"].clone();
        d["share"]["packs"][0]["raw_length"] = json!(1);
    });
    scene.refused(&other, &["divide the packs in different ways"]);

    // what is no part
    scene.pack("whole", &[]).ok();
    scene.refused(&[scene.at("whole")], &["is a whole pack, not a part"]);
    scene.refused(&[scene.at("checkpoint")], &["is a checkpoint, not a pack"]);
}

#[test]
fn parts_of_different_checkpoints_are_not_joined() {
    let other = |change: &dyn Fn(&mut Tiny)| {
        let scene = Scene::new();
        let first = scene.parts(2, &["--no-provenance"]);
        fs::remove_dir_all(scene.at("checkpoint")).unwrap();
        let mut changed = tiny();
        change(&mut changed);
        changed.write(&scene.at("checkpoint"));
        let options = ["--no-provenance", "--part", "2/2", "--force"];
        scene.pack("part-2-of-2", &options).ok();
        (scene, first)
    };
    let (scene, parts) = other(&|tiny| tiny.config["rope_theta"] = json!(5));
    scene.refused(&parts, &["is of another checkpoint", "config.json differs"]);
    // the same headers: what one part read as a whole, another packed with other bytes
    let (scene, parts) = other(&|tiny| {
        for tensor in tiny.tensors_mut() {
            tensor.bytes[0] ^= 1;
        }
    });
    scene.refused(
        &parts,
        &[
            "are of checkpoints with different bytes",
            "when it was packed",
        ],
    );
}

#[test]
fn a_damaged_part_is_named_and_not_joined() {
    let scene = Scene::new();
    let parts = scene.parts(2, &[]);
    let pack = fs::read_dir(parts[1].join("packs")).unwrap();
    let pack = pack.flatten().next().unwrap().path();

    flip(&pack, -1);
    scene.refused(
        &parts,
        &["are damaged", "as its part says", pack.to_str().unwrap()],
    );
    let again = ["--part K/N -o PART --force` packs that part again"];
    let printed = scene.join(&parts, &[]).says(&again);
    assert!(!printed.stderr.contains("repair"), "{printed}");
    let printed = segpack!["verify", &parts[1]].exits(3).says(&again);
    assert!(!printed.stderr.contains("repair"), "{printed}");
    // its length is right, and nobody asked
    scene.join(&parts, &["--no-verify"]).ok();
    segpack!["verify", scene.at("joined")].exits(3);
    fs::remove_dir_all(scene.at("joined")).unwrap();
    flip(&pack, -1);

    resize(&pack, -1);
    scene.refused(&parts, &["are damaged", "bytes, as its part says"]);
    fs::remove_file(&pack).unwrap();
    scene.refused(&parts, &["are damaged", "No such file"]);

    flip(&parts[0].join("part.json"), 200);
    scene.refused(&parts, &["part.json has SHA-256", "as SHA256SUMS says"]);
}

#[test]
fn what_a_join_that_was_killed_has_left_is_started_over() {
    let scene = Scene::new();
    scene.pack("whole", &[]).ok();
    let parts = scene.parts(2, &[]);
    // as it is then
    fs::create_dir_all(scene.at("joined/.partial/files")).unwrap();
    fs::write(scene.at("joined/.partial/lock"), b"").unwrap();
    let printed = scene.join(&parts, &[]).exits(1);
    assert!(!printed.stderr.contains("--resume"), "{printed}");
    printed.says(&["--force starts over"]);
    scene.join(&parts, &["--force"]).ok();
    assert_same(&scene.at("whole"), &scene.at("joined"));
}

/// A way to join: its options, and what the file system cannot do.
#[cfg(target_os = "linux")]
#[derive(Debug, Clone, Copy)]
struct Joining {
    options: &'static [&'static str],
    never: &'static str,
    /// Whether a pack of other options is there before.
    replaces: bool,
}

#[cfg(target_os = "linux")]
const WAYS: [Joining; 4] = [
    Joining {
        options: &[],
        never: "",
        replaces: false,
    },
    Joining {
        options: &[],
        never: "linkat:18", // on another disk: everything is copied
        replaces: false,
    },
    Joining {
        options: &["--move"],
        never: "",
        replaces: false,
    },
    Joining {
        options: &["--force", "--move"],
        never: "linkat:18",
        replaces: true,
    },
];

#[cfg(target_os = "linux")]
type Files = std::collections::BTreeMap<String, Vec<u8>>;

/// Two parts, what they are joined to, and what is there before.
#[cfg(target_os = "linux")]
struct Killed {
    scene: Scene,
    way: Joining,
    parts: Vec<PathBuf>,
    saved: Vec<Files>,
    whole: Files,
    before: Option<Files>,
}

#[cfg(target_os = "linux")]
impl Killed {
    fn new(way: Joining) -> Self {
        let scene = Scene::new();
        scene.pack("whole", &[]).ok();
        scene.pack("old", &["--codec", "bf16-rans"]).ok();
        let parts = scene.parts(2, &[]);
        let saved = parts.iter().map(|part| contents(part)).collect();
        let whole = contents(&scene.at("whole"));
        let before = way.replaces.then(|| contents(&scene.at("old")));
        Self {
            scene,
            way,
            parts,
            saved,
            whole,
            before,
        }
    }

    fn reset(&self) {
        for entry in fs::read_dir(self.scene.folder.path()).unwrap().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.contains("joined") || name.starts_with("part-") {
                fs::remove_dir_all(entry.path()).unwrap();
            }
        }
        for (part, files) in self.parts.iter().zip(&self.saved) {
            write_contents(part, files);
        }
        if let Some(before) = &self.before {
            write_contents(&self.scene.at("joined"), before);
        }
    }

    fn arguments(&self) -> Vec<OsString> {
        self.scene.to_join(&self.parts, self.way.options)
    }

    /// What is at the place of the output, but for what a run keeps there for itself.
    fn joined(&self) -> Option<Files> {
        let joined = self.scene.at("joined");
        let mut files = joined.exists().then(|| contents(&joined))?;
        files.retain(|name, _| !name.starts_with(".partial"));
        Some(files)
    }

    /// Nothing is lost of the parts, and what is no pack does not look like one.
    fn check(&self, what: &str) {
        let joined = self.joined();
        let is_whole = joined.as_ref() == Some(&self.whole);
        for (part, saved) in self.parts.iter().zip(&self.saved) {
            let is_there = part.exists() && contents(part) == *saved;
            assert!(is_there || is_whole, "{what}: a part is lost");
        }
        if is_whole || joined == self.before {
            return;
        }
        let joined = joined.unwrap_or_default();
        assert!(!joined.contains_key("manifest.json"), "{what}");
        let verified = segpack!["verify", self.scene.at("joined")];
        assert_ne!(verified.status, Some(0), "{what}: {verified}");
    }

    /// The same command again; where it says something else to do, that.
    fn go_on(&self, what: &str) {
        let mut again = run(&self.arguments());
        if again.status != Some(0) && self.joined().as_ref() != Some(&self.whole) {
            again.exits(1).says(&["--force starts over"]);
            let options = [self.way.options, &["--force"]].concat();
            again = self.scene.join(&self.parts, &options);
        }
        if again.status != Some(0) {
            // all is joined, and is there; where another pack could have been, that cannot be known
            let is_said = again.stderr.contains("parts were joined before");
            let is_there = ["exists and holds a pack", "--force starts over"];
            let is_there = is_there.iter().any(|words| again.stderr.contains(words));
            assert!(is_said || is_there || self.way.replaces, "{what}: {again}");
        }
        let joined = self.joined();
        assert!(joined.as_ref() == Some(&self.whole), "{what}: {again}");
        let verified = segpack!["verify", self.scene.at("joined"), "--sums"];
        if verified.status != Some(0) {
            let left = ".partial: is what an interrupted run left behind";
            let only_left = [left, "NOT ok: 1 finding"];
            let verified = verified.exits(3);
            assert!(
                only_left
                    .iter()
                    .all(|words| verified.text().contains(words)),
                "{verified}"
            );
        }
    }
}

/// Kills every way of joining before one of `step` of its writing calls, and before more at its end.
#[cfg(target_os = "linux")]
fn kill_joins(step: u64) -> u64 {
    let mut tried = 0;
    for (number, way) in (0..).zip(WAYS) {
        let killed = Killed::new(way);
        killed.reset();
        let count = count_writes_without(way.never, &killed.arguments());
        for n in
            (1..=count).filter(|n| (n + number).is_multiple_of(step) || (step > 1 && n + 3 > count))
        {
            killed.reset();
            let what = format!("{way:?}: killed before call {n} of {count}");
            let mut command = faulty(Fault::Kill(n));
            command.env("FAULT_NEVER", way.never);
            let done = Run::of(command.args(killed.arguments()));
            killed.check(&what);
            // threads do not always make the same number of calls
            if done.status.is_none() {
                killed.go_on(&what);
                tried += 1;
            }
        }
    }
    tried
}

#[test]
#[cfg(target_os = "linux")]
fn a_join_that_is_killed_loses_nothing_and_says_what_to_do() {
    assert!(kill_joins(17) > 15);
}

#[test]
#[ignore = "takes minutes"]
#[cfg(target_os = "linux")]
fn a_join_that_is_killed_anywhere_loses_nothing() {
    eprintln!("{} kills", kill_joins(1));
}

#[test]
fn verify_says_that_it_is_a_part_and_checks_what_is_there() {
    let scene = Scene::new();
    let parts = scene.parts(2, &[]);
    for how in ["--quick", "--sums", "--json"] {
        segpack!["verify", &parts[0], how].ok();
    }
    let printed = segpack!["verify", &parts[1]].ok();
    assert!(
        printed.text().contains("part 2 of 2 of a pack"),
        "{printed}"
    );
    let report = segpack!["verify", &parts[1], "--json"].ok().json();
    assert_eq!(report["part"], json!([2, 2]));

    let pack = fs::read_dir(parts[0].join("packs")).unwrap();
    flip(&pack.flatten().next().unwrap().path(), -1);
    fs::write(parts[0].join("packs/mine"), b"x").unwrap();
    let found = segpack!["verify", &parts[0], "--json"].exits(3).findings();
    let kinds: Vec<_> = found.iter().map(|f| f.kind).collect();
    assert!(kinds.contains(&FindingKind::DamagedTensor), "{kinds:?}");
    assert!(kinds.contains(&FindingKind::UnlistedFile), "{kinds:?}");
    flip(&parts[1].join("part.json"), 200);
    let found = segpack!["verify", &parts[1], "--json"].exits(3).findings();
    assert_eq!(found[0].kind, FindingKind::WrongIdentity);
    segpack!["verify", scene.at("none")].exits(1);
}

#[test]
fn a_part_is_refused_by_name_wherever_a_pack_is_wanted() {
    let scene = Scene::new();
    let part = &scene.parts(2, &[])[0];
    let words = ["is a part of a pack, not a pack", "segpack join"];
    let out = scene.at("out");
    segpack!["unpack", part, "-o", &out].exits(3).says(&words);
    segpack!["run", part, "--prompt-ids", "1"]
        .exits(3)
        .says(&words);
    segpack!["export", part, "--to", "hf", "-o", &out]
        .exits(3)
        .says(&words);
    segpack!["info", part].exits(3).says(&words);
    segpack!["report", part, "-o", &out].exits(3).says(&words);
    segpack!["diff", part, part].exits(3).says(&words);
    segpack!["repack", part, "--codec", "zstd", "-o", &out]
        .exits(3)
        .says(&words);
    segpack!["verify", part, "--against", scene.at("checkpoint")]
        .exits(3)
        .says(&["only the whole is compared"]);
}

#[test]
fn joining_replaces_only_a_pack_and_only_when_told_to() {
    let scene = Scene::new();
    scene.pack("whole", &[]).ok();
    let parts = scene.parts(2, &[]);
    scene.pack("joined", &["--codec", "bf16-rans"]).ok();
    scene
        .join(&parts, &[])
        .exits(1)
        .says(&["exists and holds a pack"]);
    let linked = scene.join(&parts, &["--force", "--move"]).ok();
    assert!(linked.text().contains("joined of 2 parts"), "{linked}");
    assert_same(&scene.at("whole"), &scene.at("joined"));
    assert!(parts.iter().all(|part| !part.exists()));

    let parts = scene.parts(2, &[]);
    fs::write(parts[0].join("mine"), b"x").unwrap();
    fs::write(scene.at("joined/mine"), b"x").unwrap();
    scene.join(&parts, &["--force"]).exits(1);
    fs::remove_file(scene.at("joined/mine")).unwrap();
    scene.join(&parts, &["--force", "--move"]).ok();
    // what is not the part's own stays
    assert_eq!(
        contents(&parts[0]).into_keys().collect::<Vec<_>>(),
        ["mine"]
    );
    let inside = parts[0].join("joined");
    segpack!["join", &parts[0], "-o", &inside].exits(1);
}

#[test]
fn a_part_that_was_killed_goes_on_and_one_that_is_finished_is_recognised() {
    let scene = Scene::new();
    scene.pack("whole", &["--codec", "bf16-rans"]).ok();
    let options = ["--codec", "bf16-rans", "--part", "2/2"];
    let parts = scene.parts(2, &options[..2]);
    let wanted = contents(&parts[1]);

    // finished: nothing to do; of another share: not this one
    let again = scene.pack("part-2-of-2", &[&options[..], &["--resume"]].concat());
    assert!(again.ok().text().contains("part 2 of 2"));
    let other = ["--codec", "bf16-rans", "--part", "1/2", "--resume"];
    scene
        .pack("part-2-of-2", &other)
        .exits(1)
        .says(&["other options"]);
    scene
        .pack("part-2-of-2", &options)
        .exits(1)
        .says(&["holds a pack"]);

    // killed wherever it was
    for milliseconds in [5, 20, 60] {
        fs::remove_dir_all(&parts[1]).unwrap();
        let mut command = crate::support::cli::program();
        command
            .arg("pack")
            .arg(scene.at("checkpoint"))
            .arg("-o")
            .arg(&parts[1]);
        let mut child = Command::args(&mut command, options)
            .arg("-q")
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(std::time::Duration::from_millis(milliseconds));
        let _ = child.kill();
        child.wait().unwrap();
        scene
            .pack("part-2-of-2", &[&options[..], &["--resume"]].concat())
            .ok();
        assert!(contents(&parts[1]) == wanted);
    }
    scene.join(&parts, &[]).ok();
    assert_same(&scene.at("whole"), &scene.at("joined"));
}

#[test]
fn parts_on_another_file_system_are_copied() {
    // the tests' own folders are in memory where that is possible
    let elsewhere = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let scene = Scene::new();
    scene.pack("whole", &[]).ok();
    let mut parts = scene.parts(2, &[]);
    let first = contents(&parts[0]);
    let moved = elsewhere.path().join("part");
    crate::support::folders::copy(&parts[1], &moved);
    parts[1] = moved;
    scene.join(&parts, &["--no-verify"]).ok();
    assert_same(&scene.at("whole"), &scene.at("joined"));
    // a copy is read in any case
    fs::remove_dir_all(scene.at("joined")).unwrap();
    let pack = fs::read_dir(parts[1].join("packs")).unwrap();
    flip(&pack.flatten().next().unwrap().path(), -1);
    if is_elsewhere(&parts[1], &parts[0]) {
        scene.join(&parts, &["--no-verify"]).exits(3);
        assert!(!scene.at("joined").exists());
    }
    assert!(contents(&parts[0]) == first);
}

#[cfg(unix)]
fn is_elsewhere(a: &Path, b: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let device = |path: &Path| path.metadata().unwrap().dev();
    device(a) != device(b)
}

#[cfg(not(unix))]
fn is_elsewhere(_: &Path, _: &Path) -> bool {
    false
}
