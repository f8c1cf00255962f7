//! File systems that lack what others have, and manners of FUSE and NFS.

#![cfg(target_os = "linux")]

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::cli::{Run, run, segpack};
use crate::support::faults::{Fault, faulty};
use crate::support::folders::{assert_same, contents, temp, write_contents};
use crate::support::packs::pack_into;
use crate::support::tiny::{tiny_text, write_file};

/// What a file system or a kernel may lack, as `faults.c` takes it.
const LACKING: [&str; 8] = [
    // ENOLCK, ENOSYS, EOPNOTSUPP: no locks
    "flock:37",
    "flock:38",
    "flock:95",
    // EINVAL: no sync of folders, or of anything
    "fsync_folder:22",
    "fsync:22,fsync_folder:22",
    // EINVAL: no direct I/O; no exchange of folders
    "open_direct:22",
    "renameat2:22",
    "renameat2:38,flock:95,fsync_folder:22,open_direct:22",
];

fn words(list: &[&str], pack: &Path, out: &Path) -> Vec<OsString> {
    let word = |word: &&str| match *word {
        "CKPT" => tiny_text().into(),
        "PACK" => pack.into(),
        "OUT" => out.into(),
        "OUT.gguf" => out.with_extension("gguf").into(),
        word => word.into(),
    };
    list.iter().map(word).collect()
}

/// Commands that write, in the order in which they can be run in one place.
const WRITERS: [&[&str]; 5] = [
    &["pack", "CKPT", "-o", "OUT"],
    &["pack", "CKPT", "-o", "OUT", "--resume"],
    &["pack", "CKPT", "-o", "OUT", "--force", "--codec", "zstd"],
    &[
        "repack",
        "PACK",
        "-o",
        "OUT",
        "--codec",
        "bf16-rans",
        "--force",
    ],
    &[
        "repack",
        "PACK",
        "-o",
        "OUT",
        "--codec",
        "bf16-rans",
        "--resume",
    ],
];

/// Those that write what is no pack, each in three ways.
const EXITS: [&[&str]; 6] = [
    &["unpack", "PACK", "-o", "OUT"],
    &["export", "PACK", "--to", "npy", "*.layers.0.*", "-o", "OUT"],
    &[
        "export", "PACK", "--to", "hf", "--dtype", "f32", "-o", "OUT",
    ],
    &["export", "PACK", "--to", "qwen3-moe", "-o", "OUT"],
    &["export", "PACK", "--to", "safetensors", "-o", "OUT"],
    &["export", "PACK", "--to", "gguf", "-o", "OUT.gguf"],
];

/// Runs every command in a folder, and compares what it writes with what it writes elsewhere.
fn run_all(there: &Path, elsewhere: &Path, mut run: impl FnMut(Vec<OsString>) -> Run) {
    let pack = elsewhere.join("pack");
    pack_into(&tiny_text(), &pack, &[]);
    let (out, same) = (there.join("out"), elsewhere.join("out"));
    for list in WRITERS {
        run(words(list, &pack, &out)).ok();
        crate::support::cli::run(&words(list, &pack, &same)).ok();
        assert_same(&out, &same);
        segpack!["verify", &out].ok();
    }
    for (number, list) in EXITS.into_iter().enumerate() {
        let (out, same) = (
            there.join(format!("exit{number}")),
            elsewhere.join(format!("exit{number}")),
        );
        for how in [None, Some("--resume"), Some("--force")] {
            let mut words = words(list, &pack, &out);
            words.extend(how.map(OsString::from));
            run(words).ok();
        }
        crate::support::cli::run(&words(list, &pack, &same)).ok();
    }
    let exits = |folder: &Path| {
        let mut files = contents(folder);
        files.retain(|name, _| name.starts_with("exit"));
        files
    };
    assert!(exits(there) == exits(elsewhere));
    // nothing hidden is left
    let names: Vec<PathBuf> = fs::read_dir(there)
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.file_name().unwrap().to_string_lossy().starts_with('.'))
        .collect();
    assert_eq!(names, Vec::<PathBuf>::new());
}

/// FAT and exFAT by their numbers; both refuse, by name, what they cannot hold, before anything is
/// written.
#[test]
fn what_a_file_system_cannot_hold_is_refused_before() {
    let folder = temp();
    let (fat, exfat) = ("0x4d44", "0x2011bab0");
    let checkpoint = folder.path().join("checkpoint");
    write_contents(&checkpoint, &contents(&tiny_text()));
    let pack = folder.path().join("pack");
    let out = folder.path().join("out");
    let cases = [
        ("README.md", "Readme.md", "has the same name"),
        ("sub/a", "Sub/b", "has the same name"),
        ("fine", "what?.txt", "is not allowed there"),
        ("fine", "a|b/c", "is not allowed there"),
    ];
    for (one, other, why) in cases {
        for name in [one, other] {
            write_file(&checkpoint.join(name), name.as_bytes());
        }
        pack_into(&checkpoint, &pack, &[]);
        let from = checkpoint.to_str().unwrap();
        for list in [
            &["pack", from, "-o", "OUT"][..],
            &["unpack", "PACK", "-o", "OUT"],
            &["export", "PACK", "--to", "hf", "-o", "OUT"],
            &["repack", "PACK", "--codec", "zstd", "-o", "OUT"],
        ] {
            for kind in [fat, exfat] {
                let words = words(list, &pack, &out);
                let printed = Run::of(faulty(Fault::FileSystem(kind)).args(&words));
                let printed = printed.exits(1).says(&[why, "hint: "]);
                assert!(
                    [one, other]
                        .iter()
                        .any(|name| printed.stderr.contains(name)),
                    "{printed}"
                );
                let left: Vec<_> = fs::read_dir(folder.path()).unwrap().collect();
                assert_eq!(left.len(), 2, "{list:?}: {left:?}");
            }
            run(&words(list, &pack, &out)).ok();
            fs::remove_dir_all(&out).unwrap();
        }
        for name in [one, other] {
            let top = name.split('/').next().unwrap();
            let path = checkpoint.join(top);
            let _ = fs::remove_dir_all(&path).or_else(|_| fs::remove_file(&path));
        }
    }
}

#[test]
fn what_a_file_system_lacks_is_done_without() {
    for lacking in LACKING {
        let (there, elsewhere) = (temp(), temp());
        run_all(there.path(), elsewhere.path(), |words| {
            Run::of(faulty(Fault::Never(lacking)).args(words))
        });
    }
}

/// A folder that FUSE shows another one in, while it lives.
struct Mounted {
    at: tempfile::TempDir,
    _real: tempfile::TempDir,
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.at.path()).status();
    }
}

/// `None`, and a word about it, where this machine has no FUSE.
fn mount() -> Option<Mounted> {
    let (at, real) = (temp(), temp());
    let status = Command::new("bindfs")
        .arg(real.path())
        .arg(at.path())
        .status();
    if status.is_ok_and(|s| s.success()) {
        return Some(Mounted { at, _real: real });
    }
    let required = std::env::var_os("SEGPACK_REQUIRE_FUSE").is_some();
    assert!(
        !required,
        "bindfs cannot mount, and SEGPACK_REQUIRE_FUSE is set"
    );
    eprintln!("SKIPPED: there is no bindfs, or it cannot mount here: nothing was tried on FUSE");
    None
}

#[test]
fn fuse_is_a_file_system_like_others() {
    let Some(mounted) = mount() else { return };
    let elsewhere = temp();
    run_all(mounted.at.path(), elsewhere.path(), |words| run(&words));
    assert!(!contents(mounted.at.path()).is_empty());
}
