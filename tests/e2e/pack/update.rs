//! `update`: byte for byte what packing the changed checkpoint anew would give, and what did not
//! change stays.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::support::cli::{Run, segpack};
use crate::support::damage::{flip, manifest};
use crate::support::folders::{assert_same, contents, copy, temp};
use crate::support::tiny::{Qwen3Moe, Tensor, Tiny};

const SIZE: Qwen3Moe = Qwen3Moe {
    layers: 4,
    experts: 6,
    hidden: 48,
    width: 20,
    shards: 3,
};

/// A change of a checkpoint that has a name.
type Change = (&'static str, fn(&mut Tiny));

const CHANGES: [Change; 8] = [
    ("nothing", |_| {}),
    ("README", |t| t.files[0].1.extend(b"more")),
    ("a new file", |t| {
        t.files
            .push(("deep/er/new.txt".to_owned(), b"new".to_vec()));
    }),
    ("a file less", |t| {
        t.files.pop();
    }),
    ("an expert", |t| {
        t.tensor("model.layers.2.mlp.experts.3.up_proj.weight")
            .bytes[9] ^= 1;
    }),
    ("a norm", |t| {
        t.tensor("model.layers.0.input_layernorm.weight").bytes[0] ^= 1;
    }),
    ("other shards", |t| *t = t.clone().cut(5)),
    ("config.json", |t| {
        t.config["transformers_version"] = "9.9".into();
    }),
];

fn write(tiny: &Tiny, folder: &Path) -> PathBuf {
    if folder.exists() {
        fs::remove_dir_all(folder).unwrap();
    }
    tiny.write(folder)
}

fn update(pack: &Path, from: &Path) -> Run {
    segpack!["update", pack, "--from", from, "--json"]
}

fn hidden(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).unwrap();
    let names = names.map(|e| e.unwrap().file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with('.')).collect()
}

#[test]
fn the_result_is_what_packing_anew_gives() {
    let folder = temp();
    let at = |name: &str| folder.path().join(name);
    let tiny = Tiny::qwen3_moe(SIZE);
    for options in [
        &["--codec", "raw"][..],
        &["--codec", "bf16-rans", "--no-sums"],
    ] {
        let pack = |checkpoint: &Path, out: &Path| {
            let mut command = vec!["pack".into(), checkpoint.into(), "-o".into(), out.into()];
            command.extend(options.iter().map(std::ffi::OsString::from));
            command.extend(["-q".into(), "--force".into()]);
            crate::support::cli::run(&command).ok();
        };
        pack(&write(&tiny, &at("before")), &at("old"));
        for (name, change) in CHANGES {
            let mut changed = tiny.clone();
            change(&mut changed);
            let checkpoint = write(&changed, &at("checkpoint"));
            pack(&checkpoint, &at("wanted"));
            let updated = at("updated");
            if updated.exists() {
                fs::remove_dir_all(&updated).unwrap();
            }
            copy(&at("old"), &updated);
            let report = update(&updated, &checkpoint).ok().json();
            assert_same(&updated, &at("wanted"));
            assert_eq!(report["changed"], name != "nothing", "{name}");
            assert_eq!(hidden(folder.path()), [""; 0], "{name}");
            let written = report["written_packs"].as_array().unwrap().len();
            let wanted = match name {
                "an expert" | "a norm" => 1,
                _ => 0,
            };
            assert_eq!(written, wanted, "{name}: {report}");
        }
    }
}

#[cfg(unix)]
#[test]
fn packs_that_did_not_change_are_the_files_that_were_there() {
    use std::os::unix::fs::MetadataExt;
    let folder = temp();
    let at = |name: &str| folder.path().join(name);
    let mut tiny = Tiny::qwen3_moe(SIZE);
    segpack!["pack", write(&tiny, &at("checkpoint")), "-o", at("pack")].ok();
    let inodes = || -> Vec<(String, u64)> {
        let packs = manifest(&at("pack"))["packs"].clone();
        let paths = packs.as_array().unwrap().iter();
        let paths = paths.map(|p| p["path"].as_str().unwrap().to_owned());
        let inode = |p: String| (at("pack").join(&p).metadata().unwrap().ino(), p);
        paths
            .map(inode)
            .map(|(inode, path)| (path, inode))
            .collect()
    };
    let before = inodes();
    tiny.tensor("model.layers.2.mlp.experts.3.up_proj.weight")
        .bytes[9] ^= 1;
    let report = update(&at("pack"), &write(&tiny, &at("checkpoint")))
        .ok()
        .json();
    let written = &report["written_packs"];
    assert_eq!(
        *written,
        serde_json::json!(["packs/text.experts.02.safetensors"])
    );
    for ((path, was), (_, is)) in before.iter().zip(inodes()) {
        assert_eq!(
            *was == is,
            path != "packs/text.experts.02.safetensors",
            "{path}"
        );
    }
    let files = report["files"].as_array().unwrap();
    let shards: Vec<&Value> = files.iter().map(|f| &f["path"]).collect();
    assert_eq!(shards.len(), 1, "one shard: {files:?}");
}

#[test]
fn a_pack_that_is_damaged_or_a_checkpoint_that_is_not_whole_changes_nothing() {
    let folder = temp();
    let at = |name: &str| folder.path().join(name);
    let mut tiny = Tiny::qwen3_moe(SIZE);
    let checkpoint = write(&tiny, &at("checkpoint"));
    segpack![
        "pack",
        &checkpoint,
        "-o",
        at("pack"),
        "--exclude",
        "nothing"
    ]
    .exits(2);
    segpack!["pack", &checkpoint, "-o", at("pack")].ok();
    let refused = |from: &Path, status: i32, words: &[&str]| {
        let before = contents(&at("pack"));
        update(&at("pack"), from).exits(status).says(words);
        assert!(contents(&at("pack")) == before, "{words:?}");
        assert_eq!(hidden(folder.path()), [""; 0]);
    };
    tiny.remove("model.layers.1.mlp.experts.3.up_proj.weight");
    refused(&write(&tiny, &at("lacking")), 3, &["missing tensor"]);
    refused(&at("nothing"), 1, &["no such file"]);
    // a lie that agrees with itself: the manifest says what the new checkpoint has
    flip(&at("pack").join("packs/text.experts.02.safetensors"), -3);
    refused(&checkpoint, 3, &["damaged tensor", "nothing was updated"]);
}

#[test]
fn tolerated_tensors_and_files_need_the_same_options_again() {
    let folder = temp();
    let at = |name: &str| folder.path().join(name);
    let mut tiny = Tiny::qwen3_moe(SIZE);
    tiny.shards[0].1.push(Tensor::noise("extra", &[4]));
    let checkpoint = write(&tiny, &at("checkpoint"));
    let pack = at("pack");
    segpack!["pack", &checkpoint, "-o", &pack, "--allow-unclassified"].ok();
    update(&pack, &checkpoint)
        .exits(3)
        .says(&["--allow-unclassified"]);
    segpack![
        "update",
        &pack,
        "--from",
        &checkpoint,
        "--allow-unclassified"
    ]
    .ok();
}

/// At whatever moment a run is killed, the pack is the old or the new one.
fn kill_after(tenths: &[u64]) {
    let folder = temp();
    let at = |name: &str| folder.path().join(name);
    let mut tiny = Tiny::qwen3_moe(Qwen3Moe {
        hidden: 128,
        width: 128,
        ..SIZE
    });
    segpack![
        "pack",
        write(&tiny, &at("checkpoint")),
        "-o",
        at("old"),
        "--codec",
        "zstd"
    ]
    .ok();
    tiny.tensor("model.layers.2.mlp.experts.3.up_proj.weight")
        .bytes[9] ^= 1;
    tiny.files[0].1.push(b'!');
    let checkpoint = write(&tiny, &at("checkpoint"));
    segpack!["pack", &checkpoint, "-o", at("new"), "--codec", "zstd"].ok();
    let (old, new) = (contents(&at("old")), contents(&at("new")));
    for wait in tenths {
        let pack = at("pack");
        if pack.exists() {
            fs::remove_dir_all(&pack).unwrap();
        }
        copy(&at("old"), &pack);
        let arguments = [
            "update".into(),
            (&pack).into(),
            "--from".into(),
            (&checkpoint).into(),
        ];
        let mut child = crate::support::cli::start(&arguments);
        std::thread::sleep(std::time::Duration::from_micros(wait * 100));
        child.kill().unwrap();
        child.wait().unwrap();
        let now = contents(&pack);
        assert!(now == old || now == new, "after {wait}");
        update(&pack, &checkpoint).ok();
        assert_same(&pack, &at("new"));
        assert_eq!(hidden(folder.path()), [""; 0]);
    }
}

#[cfg(unix)]
#[test]
fn a_killed_update_leaves_the_old_or_the_new_pack() {
    kill_after(&[20, 120, 200, 300, 400]);
}

#[cfg(unix)]
#[test]
#[ignore = "kills at every tenth of a millisecond"]
fn an_update_killed_at_every_moment() {
    let moments: Vec<u64> = (0..500).collect();
    kill_after(&moments);
}
