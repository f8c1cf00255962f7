//! The space that a pack takes: estimated, compared with what is free, before packing and before each
//! pack.

#![cfg(target_os = "linux")]

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::support::cli::{Run, segpack};
use crate::support::faults::{Fault, faulty};
use crate::support::folders::{assert_same, contents, temp};
use crate::support::packs::pack_into;
use crate::support::tiny::{Qwen3Moe, Tiny, tiny_full};

const CODECS: [&str; 3] = ["zstd", "bf16-zstd", "bf16-rans"];
/// What has to stay free, in bytes.
const SPARE: u64 = 16 << 20;

fn pack_lengths(pack: &Path) -> Vec<u64> {
    let manifest: Value =
        serde_json::from_slice(&fs::read(pack.join("manifest.json")).unwrap()).unwrap();
    let packs = manifest["packs"].as_array().unwrap().iter();
    packs.map(|p| p["length"].as_u64().unwrap()).collect()
}

fn dry_run(checkpoint: &Path, codec: &str) -> Value {
    let options = ["--codec", codec, "--dry-run", "--json"].map(OsString::from);
    let mut arguments: Vec<OsString> = vec!["pack".into(), checkpoint.into(), "-o".into()];
    arguments.push(checkpoint.join("../never-written").into());
    arguments.extend(options);
    crate::support::cli::run(&arguments).ok().json()
}

/// A checkpoint that codes to two thirds.
fn wide(folder: &Path) -> PathBuf {
    let size = Qwen3Moe {
        layers: 3,
        experts: 4,
        hidden: 256,
        width: 384,
        shards: 2,
    };
    Tiny::qwen3_moe(size).write(&folder.join("checkpoint"))
}

#[test]
fn the_estimate_of_a_small_checkpoint_is_exact() {
    let folder = temp();
    for (name, checkpoint) in [("full", tiny_full()), ("wide", wide(folder.path()))] {
        for codec in CODECS {
            let out = folder.path().join(format!("{name}-{codec}"));
            pack_into(&checkpoint, &out, &["--codec", codec]);
            let plan = dry_run(&checkpoint, codec);
            let packs = plan["packs"].as_array().unwrap();
            let estimated: Vec<u64> = packs
                .iter()
                .map(|p| p["estimated_length"].as_u64().unwrap())
                .collect();
            assert_eq!(estimated, pack_lengths(&out), "{name} {codec}");
            let total: u64 = estimated.iter().sum();
            assert_eq!(plan["estimate"]["stored_bytes"], total);
            assert_eq!(plan["estimate"]["exact"], true);
        }
    }
    let raw = dry_run(&tiny_full(), "raw");
    assert!(raw.get("estimate").is_none(), "{raw}");
    let text = segpack![
        "pack",
        wide(folder.path()),
        "-o",
        folder.path().join("x"),
        "--codec",
        "bf16-rans",
        "--dry-run"
    ];
    assert!(text.ok().text().contains(" of tensors (bf16-rans)"));
}

/// Packs where the disk has so much free, in bytes.
fn pack_with(free: &str, checkpoint: &Path, out: &Path, more: &[&str]) -> Run {
    let mut command = faulty(Fault::Free(free));
    command.arg("pack").arg(checkpoint).arg("-o").arg(out);
    Run::of(command.args(more).args(["--jobs", "1"]))
}

#[test]
fn a_disk_that_holds_the_coded_pack_is_large_enough() {
    let folder = temp();
    let checkpoint = wide(folder.path());
    let at = |name: &str| folder.path().join(name);
    pack_into(&checkpoint, &at("whole"), &["--codec", "bf16-rans"]);
    let whole: u64 = contents(&at("whole"))
        .values()
        .map(|b| b.len() as u64)
        .sum();
    let raw: u64 = contents(&checkpoint).values().map(|b| b.len() as u64).sum();
    // documents are counted generously
    let enough = whole + whole / 10 + SPARE;
    assert!(enough < raw + SPARE, "{whole} {raw}");
    let coded = ["--codec", "bf16-rans"];
    pack_with(&enough.to_string(), &checkpoint, &at("out"), &coded).ok();
    assert_same(&at("out"), &at("whole"));

    // raw, it does not fit, and neither does the coded one on a smaller disk
    let few = (whole / 2 + SPARE).to_string();
    for (name, free, options, printed) in [
        ("raw", &enough.to_string(), &[][..], "needs "),
        ("small", &few, &coded, "needs about "),
    ] {
        let refused = pack_with(free, &checkpoint, &at(name), options)
            .exits(1)
            .says(&[printed, "has only", "hint: free some space"]);
        assert!(!refused.stderr.contains("--in-place"), "{refused}");
        assert!(!at(name).exists());
    }
    let unchecked = ["--codec", "bf16-rans", "--no-space-check"];
    pack_with("1", &checkpoint, &at("unchecked"), &unchecked).ok();
    let replaced = ["--codec", "bf16-rans", "--force"];
    pack_with(&few, &checkpoint, &at("out"), &replaced)
        .exits(1)
        .says(&["--in-place"]);
    assert_same(&at("out"), &at("whole"));
}

#[test]
fn a_disk_that_fills_up_meanwhile_ends_the_run_before_the_next_pack() {
    let folder = temp();
    let checkpoint = wide(folder.path());
    let at = |name: &str| folder.path().join(name);
    pack_into(&checkpoint, &at("whole"), &[]);
    let much = 1_u64 << 40;
    // before packing, then before each of two packs
    let free = format!("{much},{much},{much},{SPARE}");
    let stopped = pack_with(&free, &checkpoint, &at("out"), &[]).exits(1);
    let stopped = stopped.says(&["needs ", "--resume continues"]);
    assert!(at("out/.partial").exists(), "{stopped}");
    pack_with(&much.to_string(), &checkpoint, &at("out"), &["--resume"]).ok();
    assert_same(&at("out"), &at("whole"));
}
