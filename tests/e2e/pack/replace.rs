//! `--force`: of a pack that is replaced and the one that replaces it, one is whole at every moment.

#![cfg(target_os = "linux")]

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use crate::support::cli::{FindingKind, Run, segpack};
use crate::support::damage::{flip, resize};
use crate::support::faults::{Fault, count_writes, faulty};
use crate::support::folders::{contents, temp, write_contents};
use crate::support::packs::pack_into;
use crate::support::tiny::{tiny_text, write_file};

type Files = BTreeMap<String, Vec<u8>>;

/// A pack that another one is to replace.
struct Scene {
    folder: tempfile::TempDir,
    out: PathBuf,
    old: Files,
    new: Files,
}

/// What `--force` is tried with: the codec of the new pack tells it from the old one.
const CODEC: &str = "zstd";

impl Scene {
    fn make() -> Self {
        let folder = temp();
        let (out, other) = (folder.path().join("out"), folder.path().join("other"));
        pack_into(&tiny_text(), &out, &[]);
        pack_into(&tiny_text(), &other, &["--codec", CODEC]);
        let (old, new) = (contents(&out), contents(&other));
        fs::remove_dir_all(other).unwrap();
        assert!(old != new);
        Self {
            folder,
            out,
            old,
            new,
        }
    }

    /// The old pack again, and nothing else.
    fn reset(&self) {
        for entry in fs::read_dir(self.folder.path()).unwrap() {
            fs::remove_dir_all(entry.unwrap().path()).unwrap();
        }
        write_contents(&self.out, &self.old);
    }

    fn arguments(&self, more: &[&str]) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = vec!["pack".into(), tiny_text().into()];
        arguments.extend(["-o".into(), self.out.clone().into()]);
        arguments.extend(["--codec", CODEC, "--jobs", "2", "--force"].map(OsString::from));
        arguments.extend(more.iter().map(OsString::from));
        arguments
    }

    fn run(&self, fault: Fault<'_>, more: &[&str]) -> Run {
        Run::of(faulty(fault).args(self.arguments(more)))
    }

    fn again(&self, more: &[&str]) -> Run {
        crate::support::cli::run(&self.arguments(more))
    }

    /// Everything beside the pack.
    fn beside(&self) -> Vec<String> {
        let entries = fs::read_dir(self.folder.path()).unwrap();
        let names = entries.map(|e| e.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name != "out").collect()
    }

    /// One of the two is whole at its path; `false` where it is neither, but both are beside it and
    /// the program says how to go on.
    fn check_whole(&self, what: &str) -> bool {
        if !self.out.exists() {
            segpack!["verify", &self.out]
                .exits(1)
                .says(&["are whole in", "--resume"]);
            return false;
        }
        let seen = contents(&self.out);
        assert!(seen == self.old || seen == self.new, "{what}: neither");
        true
    }

    fn check_new(&self, what: &str) {
        assert!(contents(&self.out) == self.new, "{what}: not the new pack");
        assert_eq!(self.beside(), [""; 0], "{what}");
    }
}

/// Kills a replacement before one of its writing calls, and goes on in the way that is asked for.
fn kill_at(scene: &Scene, n: u64, more: &[&str], without: Option<&str>) {
    let what = format!("killed before call {n}, then {more:?}");
    scene.reset();
    let mut command = faulty(Fault::Kill(n));
    if let Some(never) = without {
        command.env("FAULT_NEVER", never);
    }
    let done = Run::of(command.args(scene.arguments(&[])));
    assert_eq!(done.status, None, "{what}: {done}");
    let is_there = scene.check_whole(&what);
    assert!(is_there || without.is_some(), "{what}: nothing is there");
    scene.again(more).ok();
    scene.check_new(&what);
}

/// Kills at one of `step` of the writing calls; how many.
fn sweep(step: u64) -> u64 {
    let scene = Scene::make();
    let mut tried = 0;
    // ENOSYS: a kernel, EINVAL: a file system that cannot exchange
    for without in [None, Some("renameat2:22"), Some("renameat2:38")] {
        if step > 1 && without == Some("renameat2:38") {
            continue; // differs only in how the step before ends
        }
        scene.reset();
        let count = count_writes(&scene.arguments(&[]));
        scene.check_new("not killed");
        assert!(count > 100, "{count}");
        // the exchange is near the end: none of these is left out
        let near_end =
            |n: u64| n + 24 > count && (step == 1 || n % 2 == u64::from(without.is_some()));
        let sampled = (1..=count).filter(|n| n % step == 0 || near_end(*n));
        for n in sampled {
            let more: &[&str] = if n % 4 < 2 { &["--resume"] } else { &[] };
            kill_at(&scene, n, more, without);
            tried += 1;
        }
    }
    tried
}

#[test]
fn a_replacement_that_is_killed_leaves_one_pack_whole() {
    assert!(sweep(101) > 20);
}

#[test]
#[ignore = "takes minutes"]
fn a_replacement_that_is_killed_anywhere_leaves_one_pack_whole() {
    eprintln!("{} kills", sweep(1));
}

#[test]
fn a_replacement_that_fails_leaves_the_old_pack() {
    let scene = Scene::make();
    let count = count_writes(&scene.arguments(&[]));
    let (no_space, io, access) = (28, 5, 13);
    for n in (3..count - 30).step_by(79) {
        for error in [no_space, io, access] {
            scene.reset();
            let what = format!("call {n} fails with {error}");
            let done = scene.run(Fault::Full(n, error), &[]);
            assert_eq!(done.status, Some(1), "{what}: {done}");
            assert!(contents(&scene.out) == scene.old, "{what}");
        }
    }
}

#[test]
fn a_good_pack_outlives_a_source_that_rotted() {
    let scene = Scene::make();
    let checkpoint = scene.folder.path().join("rotten");
    write_contents(&checkpoint, &contents(&tiny_text()));
    let shard = fs::read_dir(&checkpoint)
        .unwrap()
        .map(|e| e.unwrap().path())
        .find(|p| p.extension().is_some_and(|e| e == "safetensors"))
        .unwrap();
    resize(&shard, -1);
    for how in [&["--force"][..], &["--force", "--in-place"]] {
        let mut arguments: Vec<OsString> = vec!["pack".into(), checkpoint.clone().into()];
        arguments.extend(["-o".into(), scene.out.clone().into()]);
        arguments.extend(how.iter().map(OsString::from));
        crate::support::cli::run(&arguments).exits(3);
        assert!(contents(&scene.out) == scene.old);
    }
    // a pack whose tensors rotted
    let bad = scene.folder.path().join("bad");
    write_contents(&bad, &scene.old);
    let packs = fs::read_dir(bad.join("packs")).unwrap();
    flip(&packs.map(|e| e.unwrap().path()).min().unwrap(), -1);
    for how in [&["--force"][..], &["--force", "--in-place"]] {
        let mut arguments: Vec<OsString> = vec!["repack".into(), bad.clone().into()];
        arguments.extend(["-o".into(), scene.out.clone().into()]);
        arguments.extend(["--codec", "bf16-rans"].map(OsString::from));
        arguments.extend(how.iter().map(OsString::from));
        crate::support::cli::run(&arguments).exits(3);
        assert!(contents(&scene.out) == scene.old, "{how:?}");
    }
}

#[test]
fn in_place_says_what_it_gives_up() {
    let scene = Scene::make();
    let printed = scene.again(&["--in-place"]).ok();
    assert!(printed.stderr.contains("neither is there"), "{printed}");
    scene.check_new("in place");
    segpack!["pack", tiny_text(), "-o", &scene.out, "--in-place"].exits(2);
}

#[test]
fn what_is_not_ours_is_not_touched() {
    let scene = Scene::make();
    let room = scene.folder.path().join(".out.partial");
    write_file(&room.join("new/thesis.txt"), b"years of work");
    scene
        .again(&[])
        .exits(1)
        .says(&[".out.partial", "in the way"]);
    assert!(contents(&scene.out) == scene.old);
    assert_eq!(contents(&room).len(), 1);
    // a pack without its manifest has nothing to lose; a user's file beside it has
    fs::remove_dir_all(&room).unwrap();
    write_file(&scene.out.join("thesis.txt"), b"years of work");
    scene.again(&[]).exits(1).says(&["thesis.txt"]);
    assert!(!room.exists());
    assert!(is_old_and(&scene, "thesis.txt"));
}

fn is_old_and(scene: &Scene, name: &str) -> bool {
    let mut seen = contents(&scene.out);
    seen.remove(name).is_some() && seen == scene.old
}

#[test]
fn a_pack_behind_a_link_is_replaced_where_it_is() {
    let scene = Scene::make();
    let real: &Path = &scene.folder.path().join("elsewhere/real");
    fs::create_dir(real.parent().unwrap()).unwrap();
    fs::rename(&scene.out, real).unwrap();
    std::os::unix::fs::symlink(real, &scene.out).unwrap();
    scene.again(&[]).ok();
    assert!(contents(real) == scene.new);
    assert!(scene.out.symlink_metadata().unwrap().is_symlink());
    assert_eq!(fs::read_dir(real.parent().unwrap()).unwrap().count(), 1);
}

#[test]
fn a_signature_in_the_pack_is_no_damage_and_goes_with_what_it_signed() {
    let scene = Scene::make();
    let signature = scene.out.join("model.sig");
    write_file(&signature, b"{}");
    let printed = segpack!["verify", &scene.out].ok();
    assert!(
        printed.text().contains("unchecked signature: model.sig"),
        "{printed}"
    );
    let run = segpack!["verify", &scene.out, "--json"].ok();
    let kinds: Vec<_> = run.findings().iter().map(|f| f.kind).collect();
    assert_eq!(kinds, [FindingKind::UncheckedSignature]);
    // under that name and in that place alone
    write_file(&scene.out.join("packs/model.sig"), b"{}");
    segpack!["verify", &scene.out, "--quick"].exits(3);
    fs::remove_file(scene.out.join("packs/model.sig")).unwrap();
    for how in [&[][..], &["--in-place"]] {
        write_file(&signature, b"{}");
        scene.again(how).ok();
        assert!(!signature.exists(), "{how:?}: it is of the pack before");
    }
}
