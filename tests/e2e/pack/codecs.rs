//! The codecs for weights, as a user meets them: every command gives what it gives from a raw pack;
//! `repack`.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::cli::{FindingKind, run, segpack};
use crate::support::damage::{flip, manifest, range_of};
use crate::support::folders::{assert_same, contents, copy, temp};
use crate::support::tiny::{Qwen3Moe, Tiny, tiny_full, tiny_text, write_file};

/// Options of `pack` and `repack` for every codec.
const CODECS: [&[&str]; 5] = [
    &["--codec", "raw"],
    &["--codec", "zstd"],
    &["--codec", "zstd", "--level", "9"],
    &["--codec", "bf16-zstd"],
    &["--codec", "bf16-rans"],
];

fn with(arguments: &[OsString], options: &[&str]) -> Vec<OsString> {
    arguments
        .iter()
        .cloned()
        .chain(options.iter().map(OsString::from))
        .collect()
}

fn pack_into(checkpoint: &Path, out: &Path, options: &[&str]) {
    run(&with(
        &["pack".into(), checkpoint.into(), "-o".into(), out.into()],
        options,
    ))
    .ok();
}

fn repack_into(pack: &Path, out: &Path, options: &[&str]) {
    run(&with(
        &["repack".into(), pack.into(), "-o".into(), out.into()],
        options,
    ))
    .ok();
}

/// Packs of [`wide`]: two layers of experts, and the rest.
const PACKS: usize = 3;

/// A checkpoint whose experts are long enough for every codec; those of the official tiny ones fit
/// into two pages.
fn wide() -> Tiny {
    Tiny::qwen3_moe(Qwen3Moe {
        layers: 3,
        experts: 4,
        hidden: 256,
        width: 192,
        shards: 2,
    })
}

/// One checkpoint under every codec, in the order of [`CODECS`].
fn packs(checkpoint: &Path) -> (TempDir, Vec<PathBuf>) {
    let folder = temp();
    let made = CODECS.iter().enumerate().map(|(i, options)| {
        let out = folder.path().join(i.to_string());
        pack_into(checkpoint, &out, options);
        out
    });
    let made = made.collect();
    (folder, made)
}

fn codecs_of(pack: &Path) -> BTreeSet<String> {
    let document = manifest(pack);
    let segments = document["segments"].as_array().unwrap();
    segments
        .iter()
        .map(|s| s["codec"].as_str().unwrap().to_owned())
        .collect()
}

fn stored_bytes(pack: &Path) -> u64 {
    let document = manifest(pack);
    document["segments"]
        .as_array()
        .unwrap()
        .iter()
        .map(|s| s["stored_length"].as_u64().unwrap())
        .sum()
}

#[test]
fn every_command_gives_the_same_from_every_codec() {
    let folder = temp();
    let checkpoint = wide().write(&folder.path().join("checkpoint"));
    let (_packs, packs) = packs(&checkpoint);
    let raw = manifest(&packs[0]);
    let names = |key: &str, name: &str| -> Vec<OsString> {
        raw[key]
            .as_array()
            .unwrap()
            .iter()
            .map(|t| t[name].as_str().unwrap().into())
            .collect()
    };
    let cat = |pack: &Path, names: &[OsString]| {
        run(&[&["cat".into(), pack.into()], names].concat())
            .ok()
            .stdout
    };
    let (tensors, segments) = (names("tensors", "name"), names("segments", "id"));
    let (all_tensors, all_segments) = (cat(&packs[0], &tensors), cat(&packs[0], &segments));
    let rows = ["cat", "PACK", "model.embed_tokens.weight", "--rows", "3..9"];
    for (pack, options) in packs.iter().zip(CODECS) {
        assert!(
            codecs_of(pack).contains(options[1]),
            "{options:?}: {:?}",
            codecs_of(pack)
        );
        for how in ["--quick", "--sums", "--jobs=3"] {
            assert_eq!(
                segpack!["verify", pack, how, "--json"].ok().json()["findings"],
                json!([]),
                "{options:?}"
            );
        }
        segpack!["verify", pack, "--against", &checkpoint].ok();
        assert!(
            cat(pack, &tensors) == all_tensors && cat(pack, &segments) == all_segments,
            "{options:?}"
        );
        let some = segpack![rows[0], pack, rows[2], rows[3], rows[4]]
            .ok()
            .stdout;
        assert!(
            some == segpack![rows[0], &packs[0], rows[2], rows[3], rows[4]]
                .ok()
                .stdout
        );
        let back = folder.path().join("back");
        segpack!["unpack", pack, "-o", &back].ok();
        assert_same(&checkpoint, &back);
        fs::remove_dir_all(&back).unwrap();
        let listed = segpack!["ls", pack, "--json"].ok().text().lines().count();
        assert_eq!(listed, segments.len());
    }
    assert!(stored_bytes(&packs[4]) < stored_bytes(&packs[3]));
    assert!(stored_bytes(&packs[3]) < stored_bytes(&packs[1]));
    assert!(stored_bytes(&packs[4]) < stored_bytes(&packs[0]) * 70 / 100);
}

/// Everything that `run` and its trace say, but for times, memory and what was read.
fn printed(pack: &Path, folder: &Path, more: &[&str]) -> (Vec<Value>, Vec<u8>) {
    let trace = folder.join("trace.safetensors");
    let arguments = with(
        &[
            "run".into(),
            pack.into(),
            "--prompt-ids".into(),
            "5,9,17".into(),
            "--trace".into(),
            (&trace).into(),
        ],
        &["--max-new-tokens", "6", "--top-k-logits", "5", "--json"],
    );
    let run = run(&with(&arguments, more)).ok();
    let mut objects: Vec<Value> = run
        .text()
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    objects.pop();
    for object in &mut objects {
        let keep = [
            "id",
            "logits",
            "top_logits",
            "top",
            "logprob",
            "text",
            "stop",
        ];
        object
            .as_object_mut()
            .unwrap()
            .retain(|key, _| keep.contains(&key.as_str()));
    }
    (objects, fs::read(trace).unwrap())
}

#[test]
fn runs_are_the_same_bits_from_every_codec() {
    let folder = temp();
    for checkpoint in [tiny_full(), wide().write(&folder.path().join("checkpoint"))] {
        let (_packs, packs) = packs(&checkpoint);
        let wanted = printed(&packs[0], folder.path(), &[]);
        assert!(!wanted.0.is_empty() && !wanted.1.is_empty());
        for pack in &packs[1..] {
            assert!(
                printed(pack, folder.path(), &[]) == wanted,
                "{}",
                pack.display()
            );
            assert!(
                printed(
                    pack,
                    folder.path(),
                    &["--expert-cache", "3", "--threads", "1"]
                ) == wanted
            );
        }
    }
    let (_packs, packs) = packs(&tiny_full());
    let reference = crate::support::checkpoint::fixtures().join("traces/tiny-full.float32.json");
    segpack!["validate", &packs[4], "--reference", reference].ok();
}

#[test]
fn other_dtypes_come_back_from_every_codec() {
    let folder = temp();
    for dtype in ["F32", "F16"] {
        let checkpoint = wide().converted(dtype).write(&folder.path().join(dtype));
        let (_packs, packs) = packs(&checkpoint);
        for pack in &packs {
            let back = folder.path().join("back");
            segpack!["unpack", pack, "-o", &back].ok();
            assert_same(&checkpoint, &back);
            fs::remove_dir_all(&back).unwrap();
        }
        assert!(
            stored_bytes(&packs[4]) < stored_bytes(&packs[0]) * 9 / 10,
            "{dtype}"
        );
    }
}

#[test]
fn repack_gives_what_pack_would_have() {
    for (checkpoint, more) in [
        (tiny_full(), &[][..]),
        (tiny_text(), &["--no-source-digests", "--no-sums"]),
    ] {
        let folder = temp();
        let at = |kind: &str, i: usize| folder.path().join(format!("{kind}{i}"));
        for (i, options) in CODECS.iter().enumerate() {
            pack_into(&checkpoint, &at("packed", i), &[options, more].concat());
        }
        for from in 0..CODECS.len() {
            for (to, options) in CODECS.iter().enumerate() {
                let out = at("repacked", to);
                let jobs = ["1", "2", "5"][(from + to) % 3];
                repack_into(
                    &at("packed", from),
                    &out,
                    &[options, &["--jobs", jobs][..]].concat(),
                );
                assert_same(&out, &at("packed", to));
                fs::remove_dir_all(&out).unwrap();
            }
        }
    }
    let folder = temp();
    let checkpoint = wide().stacked().write(&folder.path().join("checkpoint"));
    let at = |name: &str| folder.path().join(name);
    pack_into(&checkpoint, &at("raw"), &[]);
    pack_into(&checkpoint, &at("coded"), CODECS[4]);
    repack_into(&at("raw"), &at("again"), CODECS[4]);
    assert_same(&at("again"), &at("coded"));
    segpack!["verify", at("again"), "--against", &checkpoint].ok();
}

#[test]
fn repack_shows_its_plan_and_its_summary() {
    let folder = temp();
    let at = |name: &str| folder.path().join(name);
    let checkpoint = wide().write(&at("checkpoint"));
    pack_into(&checkpoint, &at("raw"), &[]);
    let plan = segpack![
        "repack",
        at("raw"),
        "-o",
        at("new"),
        "--codec",
        "bf16-rans",
        "--dry-run",
        "--json"
    ]
    .ok();
    let packed = segpack![
        "pack",
        &checkpoint,
        "-o",
        at("new"),
        "--codec",
        "bf16-rans",
        "--dry-run",
        "--json"
    ]
    .ok();
    assert_eq!(plan.json(), packed.json());
    assert!(!at("new").exists());
    segpack![
        "repack",
        at("raw"),
        "-o",
        at("new"),
        "--codec",
        "bf16-rans",
        "--dry-run"
    ]
    .ok();
    let summary = segpack![
        "repack",
        at("raw"),
        "-o",
        at("new"),
        "--codec",
        "bf16-rans",
        "--json"
    ]
    .ok()
    .json();
    let packed = segpack![
        "pack",
        &checkpoint,
        "-o",
        at("packed"),
        "--codec",
        "bf16-rans",
        "--json"
    ]
    .ok()
    .json();
    assert_eq!(summary, packed);
    segpack![
        "repack",
        at("raw"),
        "-o",
        at("x"),
        "--codec",
        "bf16-rans",
        "--level",
        "3"
    ]
    .exits(2)
    .says(&["--level"]);
    segpack!["repack", at("raw"), "-o", at("x")]
        .exits(2)
        .says(&["--codec"]);
}

#[test]
fn repack_refuses_what_would_destroy_something() {
    let folder = temp();
    let at = |name: &str| folder.path().join(name);
    pack_into(&tiny_text(), &at("raw"), &[]);
    let before = contents(folder.path());
    let to = |out: &Path, how: &str| {
        segpack!["repack", at("raw"), "-o", out, "--codec", "bf16-rans", how]
    };
    to(&at("raw"), "--force").exits(1).says(&["inside"]);
    to(&at("raw/packs/new"), "-q").exits(1).says(&["inside"]);
    to(folder.path(), "--force").exits(1).says(&["inside"]);
    segpack!["repack", at("none"), "-o", at("new"), "--codec", "raw"].exits(1);
    segpack!["repack", tiny_text(), "-o", at("new"), "--codec", "raw"].exits(3);
    assert!(contents(folder.path()) == before);
    write_file(&at("other/thesis.txt"), b"years of work");
    to(&at("other"), "--force").exits(1).says(&["thesis.txt"]);
    to(&at("other"), "-q").exits(1).says(&["not empty"]);
    to(&at("new"), "-q").ok();
    to(&at("new"), "-q").exits(1).says(&["--force"]);
    to(&at("new"), "--force").ok();
    segpack!["verify", at("new")].ok();
}

/// As a run that was killed leaves it: some packs in place, no manifest, the journal.
fn interrupted(whole: &Path, source: &Path, out: &Path, options: &[&str], keep: usize) {
    copy(whole, out);
    fs::remove_file(out.join("manifest.json")).unwrap();
    fs::remove_file(out.join("SHA256SUMS")).unwrap();
    let document = manifest(whole);
    let run = run_of(source, options);
    let mut journal = journal_line(&run, &json!("begun"));
    for (i, pack) in document["packs"].as_array().unwrap().iter().enumerate() {
        let of_pack = |key: &str, name: &str, value: &Value| -> Vec<Value> {
            document[key]
                .as_array()
                .unwrap()
                .iter()
                .filter(|e| e[name] == *value)
                .cloned()
                .collect()
        };
        if i >= keep {
            fs::remove_file(out.join(pack["path"].as_str().unwrap())).unwrap();
            continue;
        }
        let segments = of_pack("segments", "pack", &pack["path"]);
        let tensors = segments
            .iter()
            .flat_map(|s| of_pack("tensors", "segment", &s["id"]));
        let digests: Vec<Value> = tensors.map(|t| t["sha256"].clone()).collect();
        let stored = segments.iter().map(|s| {
            json!({"offset": s["offset"], "stored_length": s["stored_length"], "raw_length": s["raw_length"],
                   "codec": s["codec"], "blake3": s["blake3"]})
        });
        let written = json!({"length": pack["length"], "sha256": pack["sha256"],
                             "segments": stored.collect::<Vec<_>>(), "tensors": digests});
        let record = json!({"pack": {"path": pack["path"], "written": written, "warnings": []}});
        journal += &journal_line(&run, &record);
    }
    write_file(&out.join(".partial/lock"), b"");
    write_file(&out.join(".partial/journal.jsonl"), journal.as_bytes());
}

/// A line of a journal, with its checksum.
fn journal_line(run: &str, record: &Value) -> String {
    let content = format!("{{\"run\":\"{run}\",\"record\":{record}");
    let checksum = segpack_formats::digest::Blake3::of(content.as_bytes());
    format!("{content},\"blake3\":\"{checksum}\"}}\n")
}

/// The fingerprint of such a run.
fn run_of(source: &Path, options: &[&str]) -> String {
    let identity =
        segpack_formats::digest::Sha256::of(&fs::read(source.join("manifest.json")).unwrap());
    let generator = manifest(source)["generator"].as_str().unwrap().to_owned();
    assert_eq!(options, ["--codec", "bf16-rans"]);
    let text = format!("{generator} repack {identity} Bf16Rans");
    segpack_formats::digest::Sha256::of(text.as_bytes()).to_string()
}

#[test]
fn repack_goes_on_where_it_stopped() {
    let folder = temp();
    let at = |name: &str| folder.path().join(name);
    let checkpoint = wide().write(&at("checkpoint"));
    pack_into(&checkpoint, &at("raw"), &[]);
    repack_into(&at("raw"), &at("whole"), CODECS[4]);
    for keep in 0..=PACKS {
        let out = at(&format!("out{keep}"));
        interrupted(&at("whole"), &at("raw"), &out, CODECS[4], keep);
        let resume = |codec: &str| {
            segpack![
                "repack",
                at("raw"),
                "-o",
                &out,
                "--codec",
                codec,
                "--resume",
                "--json"
            ]
        };
        segpack!["repack", at("raw"), "-o", &out, "--codec", "bf16-rans"]
            .exits(1)
            .says(&["--resume"]);
        resume("zstd").exits(1).says(&["other options"]);
        let summary = resume("bf16-rans").ok().json();
        assert_eq!(summary["resumed_packs"], keep);
        assert_same(&out, &at("whole"));
        // complete now: checked, and left as it is
        assert_eq!(resume("bf16-rans").ok().json()["resumed_packs"], PACKS);
        resume("zstd").exits(1).says(&["other options"]);
        assert_same(&out, &at("whole"));
    }
    let damaged = at("damaged");
    interrupted(&at("whole"), &at("raw"), &damaged, CODECS[4], PACKS);
    flip(&damaged.join("packs/text.safetensors"), -1);
    segpack![
        "repack",
        at("raw"),
        "-o",
        &damaged,
        "--codec",
        "bf16-rans",
        "--resume"
    ]
    .ok()
    .says(&["writing it again"]);
    assert_same(&damaged, &at("whole"));
    segpack![
        "repack",
        at("whole"),
        "-o",
        &damaged,
        "--codec",
        "bf16-rans",
        "--resume"
    ]
    .ok();
    flip(&damaged.join("packs/text.safetensors"), -5000);
    segpack![
        "repack",
        at("raw"),
        "-o",
        &damaged,
        "--codec",
        "bf16-rans",
        "--resume"
    ]
    .exits(1)
    .says(&["damaged"]);
}

#[test]
fn repack_refuses_damage_and_leaves_nothing() {
    let folder = temp();
    let at = |name: &str| folder.path().join(name);
    let checkpoint = wide().write(&at("checkpoint"));
    for options in [CODECS[0], CODECS[3], CODECS[4]] {
        let good = at(options[1]);
        pack_into(&checkpoint, &good, options);
        let document = manifest(&good);
        let segment = document["segments"]
            .as_array()
            .unwrap()
            .iter()
            .find(|s| s["id"] == "text.layers.1.experts.2");
        let range = range_of(segment.unwrap(), "stored_length");
        for (file, place) in [
            (
                "packs/text.experts.01.safetensors",
                (range.start + 200) as i64,
            ),
            ("source/config.json", 3),
            (
                "source/.shard-headers/model-00001-of-00002.safetensors.header",
                40,
            ),
        ] {
            let bad = at("bad");
            copy(&good, &bad);
            flip(&bad.join(file), place);
            let found = segpack![
                "repack",
                &bad,
                "-o",
                at("out"),
                "--codec",
                "bf16-zstd",
                "--json"
            ]
            .exits(3);
            assert!(
                found.stderr.contains(file) || found.stderr.contains("text.layers.1"),
                "{found}"
            );
            assert!(!at("out").exists(), "{file}: something was left");
            fs::remove_dir_all(&bad).unwrap();
        }
    }
}

/// Any flipped bit of a coded segment is found, and named.
#[test]
fn damage_to_coded_segments_is_found() {
    let folder = temp();
    let at = |name: &str| folder.path().join(name);
    let checkpoint = wide().write(&at("checkpoint"));
    for options in [CODECS[3], CODECS[4]] {
        let good = at(options[1]);
        pack_into(&checkpoint, &good, options);
        let document = manifest(&good);
        let id = "text.layers.1.experts.2";
        let segment = document["segments"]
            .as_array()
            .unwrap()
            .iter()
            .find(|s| s["id"] == id)
            .unwrap();
        assert_eq!(segment["codec"], options[1]);
        let range = range_of(segment, "stored_length");
        let file = good.join(segment["pack"].as_str().unwrap());
        let image = fs::read(&file).unwrap();
        // prefix, table, head of a chunk, middle, last bytes before the padding, padding
        for place in [
            0,
            9,
            25,
            40,
            110,
            150,
            4000,
            range.len() / 2,
            range.len() - 1,
        ] {
            let mut bad = image.clone();
            bad[range.start + place] ^= 4;
            fs::write(&file, &bad).unwrap();
            let report = segpack!["verify", &good, "--json"].exits(3);
            let kinds: BTreeSet<FindingKind> = report.findings().iter().map(|f| f.kind).collect();
            assert!(
                kinds.contains(&FindingKind::DamagedSegment),
                "byte {place}: {kinds:?}"
            );
            assert!(
                report
                    .findings()
                    .iter()
                    .all(|f| f.segment.as_deref() == Some(id)),
                "{report}"
            );
            segpack![
                "run",
                &good,
                "--prompt-ids",
                "1,2,3,4,5,6,7",
                "--max-new-tokens",
                "1",
                "--expert-cache",
                "1"
            ]
            .exits(3)
            .says(&["text.experts.01.safetensors"]);
        }
        fs::write(&file, &image).unwrap();
        segpack!["verify", &good].ok();
    }
}
