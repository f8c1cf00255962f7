//! Links where no link may be: nothing is read, written or removed through one.

#![cfg(unix)]

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::support::cli::{Run, run, segpack};
use crate::support::folders::{contents, hidden_beside, temp};
use crate::support::packs::pack_into;
use crate::support::tiny::{tiny_full, write_file};

/// A pack, and room beside it for outputs and for what links lead to.
struct Scene {
    folder: tempfile::TempDir,
    pack: PathBuf,
}

impl Scene {
    fn new() -> Self {
        let folder = temp();
        let pack = folder.path().join("pack");
        pack_into(&tiny_full(), &pack, &[]);
        Self { folder, pack }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn out(&self) -> PathBuf {
        self.path("out")
    }

    fn run(&self, words: &[&str]) -> Run {
        run(&self.arguments(words))
    }

    fn arguments(&self, words: &[&str]) -> Vec<OsString> {
        words
            .iter()
            .map(|word| match *word {
                "CKPT" => tiny_full().into(),
                "PACK" => self.pack.clone().into(),
                "OUT" => self.out().into(),
                "FILE" => self.path("out.safetensors").into(),
                word => word.into(),
            })
            .collect()
    }
}

const TENSOR: &str = "thinker.model.embed_tokens.weight";

/// Commands that read a pack, and a part of the path of everything that they read of it.
const READERS: &[(&[&str], &[&str])] = &[
    (&["ls", "PACK"], &["manifest.json"]),
    (
        &["cat", "PACK", TENSOR],
        &["manifest.json", "packs/thinker.text.safetensors"],
    ),
    (
        &["cat", "PACK", TENSOR, "--rows", "0..1"],
        &["manifest.json", "packs/thinker.text.safetensors"],
    ),
    (
        &["unpack", "PACK", "-o", "OUT"],
        &["manifest.json", "packs", "source"],
    ),
    (
        &["repack", "PACK", "-o", "OUT", "--codec", "zstd"],
        &["manifest.json", "packs", "source"],
    ),
    (
        &["export", "PACK", "--to", "npy", "-o", "OUT"],
        &["manifest.json", "packs"],
    ),
    (
        &["export", "PACK", "--to", "hf", "-o", "OUT"],
        &["manifest.json", "packs", "source/config.json"],
    ),
    (
        &["export", "PACK", "--to", "safetensors", "-o", "FILE"],
        &["manifest.json", "packs"],
    ),
    (
        &["verify", "PACK"],
        &["manifest.json", "SHA256SUMS", "packs", "source"],
    ),
    (
        &["verify", "PACK", "--quick"],
        &["manifest.json", "SHA256SUMS", "packs", "source"],
    ),
    (
        &[
            "run",
            "PACK",
            "--prompt-ids",
            "1,2",
            "--greedy",
            "--max-new-tokens",
            "1",
        ],
        &["manifest.json", "packs/thinker.text", "source/config.json"],
    ),
];

/// Every file and folder of a pack.
fn positions(pack: &Path) -> Vec<String> {
    let mut found: Vec<String> = contents(pack).into_keys().collect();
    found.extend(["packs", "source", "source/.shard-headers"].map(str::to_owned));
    found
}

#[test]
fn no_command_reads_a_pack_through_a_link() {
    let scene = Scene::new();
    let (mut tried, mut refused) = (0, 0);
    for (number, position) in positions(&scene.pack).into_iter().enumerate() {
        let place = scene.pack.join(&position);
        let elsewhere = scene.path("elsewhere");
        fs::rename(&place, &elsewhere).unwrap();
        symlink(&elsewhere, &place).unwrap();
        for (at, (words, reads)) in READERS.iter().enumerate() {
            if (number + at) % 2 != 0 {
                continue; // every other one: files of one kind lie side by side
            }
            // a link in place of a whole folder is met by whoever reads a file in it
            let needed = reads.iter().any(|read| {
                position.starts_with(read) || read.starts_with(&format!("{position}/"))
            });
            let done = scene.run(words);
            let (status, printed) = (done.status, format!("{done}"));
            tried += 1;
            if status == Some(0) {
                assert!(!needed || words[0] == "run", "{position}: {printed}");
            } else {
                refused += 1;
                assert_eq!(status, Some(3), "{position}: {printed}");
                assert!(printed.contains("link"), "{position}: {printed}");
            }
            if words[0] == "verify" {
                assert_ne!(status, Some(0), "{position}: {printed}");
            }
            let _ = fs::remove_dir_all(scene.out());
            let _ = fs::remove_file(scene.path("out.safetensors"));
        }
        fs::remove_file(&place).unwrap();
        fs::rename(&elsewhere, &place).unwrap();
    }
    segpack!["verify", &scene.pack].ok();
    assert!(tried > 100 && refused > 30, "{refused} of {tried}");
}

/// Commands that write a folder, in every way that they can begin.
const WRITERS: &[&[&str]] = &[
    &["pack", "CKPT", "-o", "OUT"],
    &["pack", "CKPT", "-o", "OUT", "--resume"],
    &["pack", "CKPT", "-o", "OUT", "--force"],
    &["repack", "PACK", "-o", "OUT", "--codec", "zstd"],
    &["repack", "PACK", "-o", "OUT", "--codec", "zstd", "--resume"],
    &["repack", "PACK", "-o", "OUT", "--codec", "zstd", "--force"],
    &["unpack", "PACK", "-o", "OUT"],
    &["unpack", "PACK", "-o", "OUT", "--resume"],
    &["unpack", "PACK", "-o", "OUT", "--force"],
    &["export", "PACK", "--to", "npy", "-o", "OUT"],
    &["export", "PACK", "--to", "hf", "-o", "OUT", "--resume"],
    &["export", "PACK", "--to", "hf", "-o", "OUT", "--force"],
    &["export", "PACK", "--to", "hf", "-o", "OUT"],
];

/// Links in an output folder, with what they lead to: a folder or a file.
const PLANTED: &[(&str, bool)] = &[
    (".partial", true),
    (".partial/files", true),
    (".partial/files/packs", true),
    (".partial/files/source", true),
    (".partial/lock", false),
    (".partial/journal.jsonl", false),
    (".partial/journal.new", false),
    (".partial/files/config.json", false),
    ("packs", true),
    ("packs/thinker.text.safetensors", false),
    ("source", true),
    ("source/config.json", false),
    ("source/.shard-headers", true),
    ("manifest.json", false),
    ("SHA256SUMS", false),
    ("config.json", false),
    ("model-00001-of-00004.safetensors", false),
];

/// What must not change: files under the names that the program uses itself.
fn victim(scene: &Scene) -> BTreeMap<String, Vec<u8>> {
    let victim = scene.path("victim");
    for name in [
        "precious",
        "lock",
        "journal.jsonl",
        "files/precious",
        "config.json",
        "thinker.text.safetensors",
        "source/config.json",
    ] {
        write_file(&victim.join(name), b"precious");
    }
    contents(&victim)
}

#[test]
fn no_command_writes_or_removes_through_a_link() {
    assert!(every_writer(3) > 200);
}

#[test]
#[ignore = "takes half a minute"]
fn no_command_ever_writes_or_removes_through_a_link() {
    eprintln!("{} links", every_writer(1));
}

/// One of `step` of all cases; how many these are.
fn every_writer(step: usize) -> usize {
    let (mut number, mut tried) = (0, 0);
    let scene = Scene::new();
    let before = victim(&scene);
    let good = contents(&scene.pack);
    for (position, is_folder) in PLANTED {
        for words in WRITERS {
            let out = scene.out();
            // an unfinished folder of our own, a pack, and an empty place
            for kind in ["unfinished", "pack", "nothing"] {
                number += 1;
                // 13 commands and 3 kinds: each case of both comes up
                if (number + number / 39) % step != 0 {
                    continue;
                }
                tried += 1;
                let _ = fs::remove_dir_all(&out);
                match kind {
                    "unfinished" => write_file(&out.join(".partial/lock"), b""),
                    "pack" => pack_into(&tiny_full(), &out, &[]),
                    _ => fs::create_dir(&out).unwrap(),
                }
                let place = out.join(position);
                fs::create_dir_all(place.parent().unwrap()).unwrap();
                if place.is_dir() {
                    fs::remove_dir_all(&place).unwrap();
                } else if place.exists() {
                    fs::remove_file(&place).unwrap();
                }
                let target = scene.path("victim");
                let target = if *is_folder {
                    target
                } else {
                    target.join("precious")
                };
                symlink(target, &place).unwrap();
                let done = scene.run(words);
                assert!(
                    contents(&scene.path("victim")) == before,
                    "{position} in {kind}: {done}"
                );
                assert_ne!(done.status, Some(3), "{position} in {kind}: {done}");
                // a pack that came out whole has no link left in it
                if done.status == Some(0) && words[0].ends_with("pack") && words[0] != "unpack" {
                    assert!(!has_link(&out), "{position} in {kind}: {done}");
                }
            }
        }
    }
    assert!(contents(&scene.pack) == good);
    tried
}

fn has_link(folder: &Path) -> bool {
    fs::read_dir(folder).unwrap().any(|entry| {
        let entry = entry.unwrap();
        let kind = entry.file_type().unwrap();
        kind.is_symlink() || kind.is_dir() && has_link(&entry.path())
    })
}

#[test]
fn a_hidden_folder_beside_a_file_is_no_link_either() {
    let scene = Scene::new();
    let before = victim(&scene);
    symlink(scene.path("victim"), scene.path(".out.safetensors.partial")).unwrap();
    let export = ["export", "PACK", "--to", "safetensors", "-o", "FILE"];
    scene.run(&export).exits(1).says(&["is a link"]);
    assert!(contents(&scene.path("victim")) == before);
}

/// What an interrupted run left has links in it since: the next one goes on, or refuses.
#[test]
#[cfg(target_os = "linux")]
fn what_was_left_has_links_in_it_now() {
    let scene = Scene::new();
    let before = victim(&scene);
    let commands: [&[&str]; 3] = [
        &["unpack", "PACK", "-o", "OUT"],
        &["export", "PACK", "--to", "hf", "-o", "OUT"],
        &["export", "PACK", "--to", "safetensors", "-o", "FILE"],
    ];
    let (mut refused, mut done) = (0, 0);
    for words in commands {
        let out = if words.contains(&"FILE") {
            scene.path("out.safetensors")
        } else {
            scene.out()
        };
        let hidden = hidden_beside(&out);
        let whole = whole_output(&scene, words, &out);
        for (position, is_folder) in [
            ("", true),
            ("lock", false),
            ("replacing.json", false),
            ("replacing.new", false),
            ("old", true),
            ("new", true),
            ("new/.partial", true),
            ("new/.partial/lock", false),
            ("new/.partial/files", true),
            ("new/config.json", false),
        ] {
            for how in ["--resume", "--force"] {
                leave_unfinished(&scene, words, &hidden);
                let place = if position.is_empty() {
                    hidden.clone()
                } else {
                    hidden.join(position)
                };
                let _ = fs::remove_dir_all(&place).or_else(|_| fs::remove_file(&place));
                fs::create_dir_all(place.parent().unwrap()).unwrap();
                let victim = scene.path("victim");
                symlink(
                    if is_folder {
                        victim
                    } else {
                        victim.join("config.json")
                    },
                    &place,
                )
                .unwrap();
                let run = scene.run(&[words, &[how]].concat());
                let what = format!("{position:?}: {run}");
                assert!(contents(&scene.path("victim")) == before, "{what}");
                match run.status {
                    Some(0) => {
                        done += 1;
                        assert!(out_files(&out) == whole && !hidden.exists(), "{what}");
                    }
                    _ => {
                        refused += 1;
                        run.exits(1);
                        assert!(!out.exists(), "{what}");
                    }
                }
                let _ = fs::remove_dir_all(&out).or_else(|_| fs::remove_file(&out));
                let _ = fs::remove_file(&hidden).or_else(|_| fs::remove_dir_all(&hidden));
            }
        }
    }
    assert!(refused > 20 && done > 10, "{refused} refused, {done} done");
}

fn out_files(out: &Path) -> BTreeMap<String, Vec<u8>> {
    match out.is_dir() {
        true => contents(out),
        false => BTreeMap::from([(String::new(), fs::read(out).unwrap())]),
    }
}

fn whole_output(scene: &Scene, words: &[&str], out: &Path) -> BTreeMap<String, Vec<u8>> {
    scene.run(words).ok();
    let whole = out_files(out);
    let _ = fs::remove_dir_all(out).or_else(|_| fs::remove_file(out));
    whole
}

/// Kills the command once it has finished something, or has begun.
#[cfg(target_os = "linux")]
fn leave_unfinished(scene: &Scene, words: &[&str], hidden: &Path) {
    use crate::support::faults::{Fault, faulty};
    let arguments = scene.arguments(words);
    for n in [60, 40, 20, 12] {
        let status = Run::of(faulty(Fault::Kill(n)).args(&arguments)).status;
        if status.is_none() && hidden.join("new").exists() {
            return;
        }
        assert!(status.is_none() || status == Some(0) || status == Some(1));
        let _ = fs::remove_dir_all(scene.out());
        let _ = fs::remove_file(scene.path("out.safetensors"));
        let _ = fs::remove_dir_all(hidden);
    }
    panic!("{words:?} was never killed in between");
}

#[test]
fn the_users_own_paths_may_be_links() {
    let scene = Scene::new();
    let (pack, real, out) = (scene.path("link"), scene.path("real"), scene.path("to"));
    symlink("pack", &pack).unwrap();
    fs::create_dir(&real).unwrap();
    symlink("real", &out).unwrap();
    segpack!["verify", &pack].ok();
    segpack!["unpack", &pack, "-o", &out].ok();
    assert!(real.join("config.json").is_file());
    // a checkpoint of links, as the hub's cache has them
    let linked = scene.path("linked");
    fs::create_dir(&linked).unwrap();
    for name in contents(&real).into_keys() {
        let place = linked.join(&name);
        fs::create_dir_all(place.parent().unwrap()).unwrap();
        symlink(real.join(&name), place).unwrap();
    }
    let again = scene.path("again");
    segpack!["pack", &linked, "-o", &again].ok();
    segpack!["verify", &again, "--against", &real].ok();
}
