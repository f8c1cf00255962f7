//! Checkpoint → pack → checkpoint: the same bytes, whatever the options, and nothing that depends
//! on chance.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use segpack_formats::digest::Sha256;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::cli::{FindingKind, Run, program, run, segpack};
use crate::support::damage::{list, manifest, range_of};
use crate::support::folders::{assert_same, contents, temp};
use crate::support::tiny::{Qwen3Moe, Tiny, tensors_of, tiny_full, tiny_text};

/// Packs with options, in a folder of its own.
fn pack(checkpoint: &Path, options: &[&str]) -> (TempDir, PathBuf, Value) {
    let folder = temp();
    let out = folder.path().join("pack");
    let mut arguments: Vec<OsString> =
        vec!["pack".into(), checkpoint.into(), "-o".into(), (&out).into()];
    arguments.push("--json".into());
    arguments.extend(options.iter().map(OsString::from));
    let summary = run(&arguments).ok().json();
    (folder, out, summary)
}

/// Packs, verifies in every way, unpacks and compares.
fn round_trip(checkpoint: &Path, options: &[&str]) {
    let (folder, out, summary) = pack(checkpoint, options);
    assert!(!out.join(".partial").exists());
    for how in [&["--quick"][..], &[], &["--sums"], &["--subset", "1/1"]] {
        let mut arguments: Vec<OsString> = vec!["verify".into(), (&out).into(), "--json".into()];
        arguments.extend(how.iter().map(OsString::from));
        let report = run(&arguments).ok().json();
        assert_eq!(
            (&report["ok"], &report["findings"]),
            (&json!(true), &json!([])),
            "{how:?}"
        );
        assert_eq!(report["manifest_sha256"], summary["manifest_sha256"]);
    }
    let report = segpack!["verify", &out, "--against", checkpoint, "--json"]
        .ok()
        .json();
    assert_eq!(
        (&report["ok"], &report["against"]),
        (&json!(true), &json!(true))
    );
    let back = folder.path().join("back");
    let unpacked = segpack!["unpack", &out, "-o", &back, "--json"].ok().json();
    assert_same(checkpoint, &back);
    let files = contents(&back);
    assert_eq!(unpacked["files"], files.len());
    assert_eq!(
        unpacked["bytes"],
        files.values().map(Vec::len).sum::<usize>()
    );
}

#[test]
fn the_official_tiny_checkpoints_come_back() {
    for checkpoint in [tiny_full(), tiny_text()] {
        round_trip(&checkpoint, &[]);
        round_trip(&checkpoint, &["--codec", "zstd"]);
        round_trip(&checkpoint, &["--codec", "bf16-rans"]);
        round_trip(
            &checkpoint,
            &["--codec", "zstd", "--level", "12", "--no-source-digests"],
        );
    }
}

#[test]
fn a_plain_moe_checkpoint_comes_back() {
    let folder = temp();
    let tiny = Tiny::qwen3_moe(Qwen3Moe::default());
    let checkpoint = tiny.write(&folder.path().join("sharded"));
    round_trip(&checkpoint, &[]);
    round_trip(&checkpoint, &["--codec", "zstd", "--jobs", "1"]);
    round_trip(
        &tiny.single().write(&folder.path().join("single")),
        &["--no-source-digests"],
    );
}

#[test]
fn stacked_experts_come_back() {
    let folder = temp();
    for (i, tiny) in [Tiny::full(), Tiny::qwen3_moe(Qwen3Moe::default())]
        .into_iter()
        .enumerate()
    {
        let checkpoint = tiny.stacked().write(&folder.path().join(i.to_string()));
        round_trip(&checkpoint, &[]);
        round_trip(&checkpoint, &["--codec", "zstd"]);
        round_trip(&checkpoint, &["--codec", "bf16-rans"]);
    }
}

#[test]
fn other_dtypes_and_odd_layouts_come_back() {
    let folder = temp();
    round_trip(
        &Tiny::text()
            .converted("F32")
            .write(&folder.path().join("f32")),
        &["--codec", "zstd"],
    );
    round_trip(
        &Tiny::text()
            .converted("F16")
            .write(&folder.path().join("f16")),
        &[],
    );
    // one tensor per shard; tensors in the opposite order of their names; odd lengths before them
    let mut odd = Tiny::qwen3_moe(Qwen3Moe {
        layers: 2,
        experts: 3,
        ..Qwen3Moe::default()
    });
    let count = odd.tensors().count();
    odd = odd.cut(count);
    round_trip(&odd.write(&folder.path().join("many")), &[]);
    odd = odd.cut(2);
    odd.shards
        .iter_mut()
        .for_each(|(_, tensors)| tensors.reverse());
    round_trip(
        &odd.write(&folder.path().join("reversed")),
        &["--codec", "zstd"],
    );
}

/// Packs of the same thing are the same folder.
fn assert_all_same(packs: &[(TempDir, PathBuf, Value)]) {
    for pair in packs.windows(2) {
        assert_same(&pair[0].1, &pair[1].1);
    }
}

#[test]
fn threads_and_time_leave_no_trace() {
    for codec in ["raw", "zstd", "bf16-zstd", "bf16-rans"] {
        let packs = ["1", "2", "8", "1"]
            .map(|jobs| pack(&tiny_full(), &["--codec", codec, "--jobs", jobs]));
        assert_all_same(&packs);
    }
}

#[cfg(unix)]
#[test]
fn without_provenance_the_place_leaves_no_trace() {
    let (folder, tiny) = (temp(), Tiny::text());
    let places = [
        tiny.write_hub(
            folder.path(),
            "Qwen/One",
            "1111111111111111111111111111111111111111",
        ),
        tiny.write_hub(
            folder.path(),
            "Other/Two",
            "2222222222222222222222222222222222222222",
        ),
        tiny.write(&folder.path().join("plain")),
    ];
    let packs: Vec<_> = places
        .iter()
        .map(|place| pack(place, &["--no-provenance"]))
        .collect();
    assert_all_same(&packs);
    assert_eq!(manifest(&packs[0].1).get("provenance"), None);
    let with = pack(&places[0], &[]);
    assert_eq!(manifest(&with.1)["provenance"]["repo"], "Qwen/One");
    assert_eq!(with.2["hub_digests_compared"], 4);
}

/// The tensors of all packs, as the stock reader sees them.
fn stock_tensors(pack: &Path) -> BTreeMap<String, (String, Vec<u64>, Vec<u8>)> {
    let mut tensors = BTreeMap::new();
    for entry in list(&mut manifest(pack), "packs") {
        let bytes = fs::read(pack.join(entry["path"].as_str().unwrap())).unwrap();
        for t in tensors_of(&bytes) {
            let twice = tensors.insert(t.name, (t.dtype, t.shape, t.bytes));
            assert_eq!(twice, None);
        }
    }
    tensors
}

#[test]
fn stock_readers_find_the_same_tensors_in_raw_packs() {
    let (_folder, out, _) = pack(&tiny_full(), &[]);
    let (tiny, found) = (Tiny::full(), stock_tensors(&out));
    let wanted: BTreeMap<_, _> = tiny
        .tensors()
        .map(|t| {
            (
                t.name.clone(),
                (t.dtype.clone(), t.shape.clone(), t.bytes.clone()),
            )
        })
        .collect();
    assert!(found == wanted);
}

#[test]
fn stock_readers_open_coded_packs() {
    let (_folder, out, _) = pack(&tiny_full(), &["--codec", "zstd"]);
    let found = stock_tensors(&out);
    let document = manifest(&out);
    let coded: Vec<_> = document["segments"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|s| s["codec"] == "zstd")
        .collect();
    assert!(!coded.is_empty());
    for segment in coded {
        let (dtype, _, bytes) = &found[segment["id"].as_str().unwrap()];
        assert_eq!((dtype.as_str(), bytes.len() % 4096), ("U8", 0));
        assert_eq!(segment["stored_length"], bytes.len());
    }
}

#[test]
fn a_segment_is_what_one_consumer_loads() {
    let (_folder, out, _) = pack(&tiny_full(), &[]);
    let document = manifest(&out);
    for segment in document["segments"].as_array().unwrap() {
        let id = segment["id"].as_str().unwrap();
        let tensors = document["tensors"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|t| t["segment"] == id);
        let roles: Vec<&str> = tensors.map(|t| t["role"].as_str().unwrap()).collect();
        if id.contains(".experts.") {
            assert_eq!(roles, ["expert_gate", "expert_up", "expert_down"], "{id}");
        }
        let bytes = fs::read(out.join(segment["pack"].as_str().unwrap())).unwrap();
        let digest =
            segpack_formats::digest::Blake3::of(&bytes[range_of(segment, "stored_length")]);
        assert_eq!(segment["blake3"], digest.to_string());
    }
    for pack in document["packs"].as_array().unwrap() {
        assert_eq!(pack["data_offset"].as_u64().unwrap() % 4096, 0);
    }
    let order = |path: &str| -> Vec<&str> {
        let all = document["segments"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|s| s["pack"] == path);
        all.map(|s| s["id"].as_str().unwrap()).collect()
    };
    // as they are read: one row of the embedding is one page, layers follow, the head comes last
    let text = order("packs/thinker.text.safetensors");
    assert_eq!(
        text[..2],
        [
            "thinker.text.embed_tokens",
            "thinker.text.layers.0.attention"
        ]
    );
    assert_eq!(
        text[text.len() - 2..],
        ["thinker.text.final_norm", "thinker.text.lm_head"]
    );
    let experts: Vec<String> = (0..8)
        .map(|e| format!("thinker.text.layers.1.experts.{e}"))
        .collect();
    assert_eq!(order("packs/thinker.text.experts.01.safetensors"), experts);
}

#[cfg(unix)]
#[test]
fn sha256sum_agrees() {
    for codec in ["raw", "zstd"] {
        let (_folder, out, summary) = pack(&tiny_full(), &["--codec", codec]);
        let check = Command::new("sha256sum")
            .args(["--strict", "-c", "SHA256SUMS"])
            .current_dir(&out)
            .output();
        let check = check.expect("sha256sum of the GNU coreutils is on the PATH");
        assert!(
            check.status.success(),
            "{}",
            String::from_utf8_lossy(&check.stderr)
        );
        let listed = String::from_utf8(check.stdout).unwrap().lines().count();
        assert_eq!(
            listed + 1,
            contents(&out).len(),
            "all but SHA256SUMS itself"
        );
        let identity = Sha256::of(&fs::read(out.join("manifest.json")).unwrap());
        assert_eq!(summary["manifest_sha256"], identity.to_string());
    }
    let (_folder, out, _) = pack(&tiny_full(), &["--no-sums"]);
    assert!(!out.join("SHA256SUMS").exists());
    segpack!["verify", &out].ok();
}

#[test]
fn the_manifest_tells_the_original_digests() {
    for (options, is_known) in [(&[][..], true), (&["--no-source-digests"], false)] {
        let (_folder, out, _) = pack(&tiny_full(), options);
        let originals = contents(&tiny_full());
        let document = manifest(&out);
        let files = document["source_files"].as_array().unwrap();
        assert_eq!(files.len(), originals.len());
        for file in files {
            let bytes = &originals[file["path"].as_str().unwrap()];
            assert_eq!(file["length"], bytes.len());
            if is_known || file["kind"] == "file" {
                assert_eq!(file["sha256"], Sha256::of(bytes).to_string());
            } else {
                assert_eq!(file["sha256"], Value::Null);
            }
        }
    }
}

#[test]
fn some_components_alone() {
    let paths = |out: &Path| -> Vec<String> {
        list(&mut manifest(out), "packs")
            .iter()
            .map(|p| p["path"].as_str().unwrap().to_owned())
            .collect()
    };
    let (folder, out, _) = pack(
        &tiny_full(),
        &["--include", "thinker", "--exclude", "thinker.audio"],
    );
    let found = paths(&out);
    assert!(
        found
            .iter()
            .all(|p| p.starts_with("packs/thinker.") && !p.contains("audio")),
        "{found:?}"
    );
    let document = manifest(&out);
    let excluded: Vec<_> = document["excluded"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| &e["component"])
        .collect();
    assert_eq!(
        excluded,
        [
            "thinker.audio",
            "talker.text",
            "talker.code_predictor",
            "code2wav"
        ]
    );
    segpack!["verify", &out, "--sums"].ok();
    segpack!["verify", &out, "--against", tiny_full()].ok();

    // what is not there cannot be restored, and that is said before anything is written
    let back = folder.path().join("back");
    segpack!["unpack", &out, "-o", &back]
        .exits(3)
        .says(&["model-0000", "code2wav", "excluded"]);
    assert!(!back.exists());
    let summary = segpack!["unpack", &out, "-o", &back, "--include", "*.json", "--json"]
        .ok()
        .json();
    let originals = contents(&tiny_full());
    let restored = contents(&back);
    assert!(
        !restored.is_empty()
            && restored
                .iter()
                .all(|(name, bytes)| originals[name] == *bytes)
    );
    assert!(
        restored.keys().all(|name| name.ends_with(".json")),
        "{restored:?}"
    );
    assert!(!summary["not_restored"].as_array().unwrap().is_empty());

    let (_all, all, _) = pack(
        &tiny_full(),
        &["--exclude", "code2wav", "--exclude", "talker"],
    );
    assert!(paths(&all).iter().all(|p| p.starts_with("packs/thinker.")));
    let nowhere = temp();
    let out = nowhere.path().join("out");
    segpack!["pack", tiny_full(), "-o", &out, "--include", "thinkers"]
        .exits(2)
        .says(&["thinkers", "code2wav"]);
    segpack![
        "pack",
        tiny_full(),
        "-o",
        &out,
        "--exclude",
        "thinker",
        "--exclude",
        "talker",
        "--exclude",
        "code2wav"
    ]
    .exits(2);
    assert!(!out.exists());
}

#[test]
fn cat_gives_the_bytes_of_tensors_segments_rows_and_stacks() {
    let tiny = Tiny::full();
    for codec in ["raw", "zstd"] {
        let (_folder, out, _) = pack(&tiny_full(), &["--codec", codec]);
        let by_name = tiny.by_name();
        for name in by_name.keys().step_by(37) {
            assert!(
                segpack!["cat", &out, name].ok().stdout == by_name[name].bytes,
                "{name}"
            );
        }
        let expert = "thinker.model.layers.2.mlp.experts.7";
        let whole: Vec<u8> = ["gate", "up", "down"]
            .iter()
            .flat_map(|part| {
                by_name[&*format!("{expert}.{part}_proj.weight")]
                    .bytes
                    .clone()
            })
            .collect();
        let id = "thinker.text.layers.2.experts.7";
        assert!(segpack!["cat", &out, id].ok().stdout == whole);
        let (gate, up) = (
            format!("{expert}.gate_proj.weight"),
            format!("{expert}.up_proj.weight"),
        );
        assert!(segpack!["cat", &out, &gate, &up].ok().stdout == whole[..whole.len() / 3 * 2]);

        let embedding = by_name["thinker.model.embed_tokens.weight"];
        let row = embedding.bytes.len() / embedding.shape[0] as usize;
        let rows = |rows: &str| segpack!["cat", &out, &embedding.name, "--rows", rows];
        assert!(rows("5..9").ok().stdout == embedding.bytes[5 * row..9 * row]);
        assert!(rows("319").ok().stdout == embedding.bytes[319 * row..320 * row]);
        assert!(rows("0..0").ok().stdout.is_empty());
        rows("319..321").exits(2).says(&["320 rows"]);
        rows("9..5").exits(2);
        rows("x").exits(2);
        segpack!["cat", &out, "no.such.tensor"]
            .exits(3)
            .says(&["no.such.tensor", "segpack ls"]);
        segpack!["cat", &out, "no.such.tensor", "--rows", "0..1"]
            .exits(3)
            .says(&["no.such.tensor"]);
        segpack!["cat", &out, id, "--rows", "0..1"]
            .exits(2)
            .says(&["--rows", id]);
        // all names are known, or nothing is written
        let none = segpack!["cat", &out, &gate, id, "no.such.tensor"]
            .exits(3)
            .says(&["no.such.tensor"]);
        assert!(none.stdout.is_empty());
        let none = segpack!["cat", &out, &embedding.name, &gate, "--rows", "300..310"].exits(2);
        assert!(none.says(&[&gate]).stdout.is_empty());
    }
    let folder = temp();
    let stacked = Tiny::full().stacked();
    let (_folder, out, _) = pack(&stacked.write(folder.path()), &["--codec", "zstd"]);
    for name in [
        "thinker.model.layers.1.mlp.experts.gate_up_proj",
        "talker.model.layers.0.mlp.experts.down_proj",
    ] {
        assert!(
            segpack!["cat", &out, name].ok().stdout == stacked.by_name()[name].bytes,
            "{name}"
        );
    }
    // and each expert by its own name
    let up = "thinker.model.layers.1.mlp.experts.3.up_proj.weight";
    assert!(segpack!["cat", &out, up].ok().stdout == tiny.by_name()[up].bytes);
}

#[test]
fn packs_of_stacked_and_single_experts_hold_the_same_tensors() {
    let folder = temp();
    let stacked = Tiny::full().stacked().write(&folder.path().join("stacked"));
    let (_a, from_stacked, _) = pack(&stacked, &["--no-provenance"]);
    let (_b, from_single, _) = pack(&tiny_full(), &["--no-provenance"]);
    assert_same(&from_stacked.join("packs"), &from_single.join("packs"));
    for (pack, checkpoint) in [(&from_stacked, tiny_full()), (&from_single, stacked)] {
        let run = segpack!["verify", pack, "--against", &checkpoint, "--json"].exits(3);
        // the shards differ as files, and the index; so does the spelling of the config that was
        // written anew
        let files: Vec<_> = run
            .findings()
            .into_iter()
            .map(|f| (f.kind, f.file.unwrap()))
            .collect();
        let shards = (1..5).map(|n| format!("model-{n:05}-of-00004.safetensors"));
        let wanted: Vec<_> = ["config.json".to_owned()]
            .into_iter()
            .chain(shards)
            .chain(["model.safetensors.index.json".to_owned()])
            .map(|file| (FindingKind::DiffersFromCheckpoint, file))
            .collect();
        assert_eq!(files, wanted, "{run}");
    }
}

#[test]
fn ls_has_one_json_object_per_line() {
    let (_folder, out, _) = pack(&tiny_full(), &[]);
    let document = manifest(&out);
    let lines = |run: &Run| -> Vec<Value> {
        run.text()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    };
    assert_eq!(
        json!(lines(&segpack!["ls", &out, "--json"].ok())),
        document["segments"]
    );
    assert_eq!(
        json!(lines(&segpack!["ls", &out, "--tensors", "--json"].ok())),
        document["tensors"]
    );
    let some = lines(&segpack!["ls", &out, "--json", "thinker.text.layers.1.*", "code2wav*"].ok());
    let wanted = |id: &str| id.starts_with("thinker.text.layers.1.") || id.starts_with("code2wav");
    let all = document["segments"].as_array().unwrap();
    assert_eq!(
        some.len(),
        all.iter()
            .filter(|s| wanted(s["id"].as_str().unwrap()))
            .count()
    );
    assert!(some.len() > 8 && some.iter().all(|s| wanted(s["id"].as_str().unwrap())));
    let text = segpack!["ls", &out].ok();
    assert_eq!(text.text().lines().count(), all.len());
    segpack!["ls", &out, "nothing*"]
        .exits(3)
        .says(&["nothing*"]);
    segpack!["ls", &out, "[bad"].exits(2);
}

#[test]
fn a_dry_run_plans_what_is_written_then() {
    let folder = temp();
    let out = folder.path().join("pack");
    let plan = segpack!["pack", tiny_full(), "-o", &out, "--dry-run", "--json"]
        .ok()
        .json();
    assert!(!out.exists());
    let (_other, written, summary) = pack(&tiny_full(), &[]);
    let document = manifest(&written);
    let planned = plan["packs"].as_array().unwrap();
    let packs = document["packs"].as_array().unwrap();
    assert_eq!(planned.len(), packs.len());
    for (plan, pack) in planned.iter().zip(packs) {
        for key in ["path", "component", "data_offset", "length"] {
            assert_eq!(plan[key], pack[key]);
        }
    }
    let segments: Vec<_> = planned
        .iter()
        .flat_map(|p| p["segments"].as_array().unwrap())
        .map(|s| s["id"].clone())
        .collect();
    let ids: Vec<_> = document["segments"]
        .as_array()
        .unwrap()
        .iter()
        .map(|s| s["id"].clone())
        .collect();
    assert_eq!(segments, ids);
    assert_eq!(summary["segments"], segments.len());
    let text = segpack!["pack", tiny_full(), "-o", &out, "--dry-run"].ok();
    assert!(text.text().contains("thinker.text"), "{text}");
    assert!(!out.exists());
}

#[test]
fn parts_of_a_verification_cover_everything_once() {
    let (_folder, out, _) = pack(&tiny_full(), &[]);
    for more in [&[][..], &["--sums"]] {
        let checked = |part: &[&str]| {
            let mut arguments: Vec<OsString> = vec!["verify".into(), (&out).into()];
            arguments.extend(
                ["--json"]
                    .iter()
                    .chain(more)
                    .chain(part)
                    .map(OsString::from),
            );
            run(&arguments).ok().json()["checked"].clone()
        };
        let whole = checked(&[]);
        let mut sums: BTreeMap<&str, u64> = BTreeMap::new();
        for part in ["1/3", "2/3", "3/3"] {
            let checked = checked(&["--subset", part]);
            for key in ["segments", "tensors", "files", "bytes"] {
                *sums.entry(key).or_default() += checked[key].as_u64().unwrap();
            }
        }
        for (key, sum) in sums {
            assert_eq!(whole[key], sum, "{key} {more:?}");
        }
    }
    for bad in ["0/3", "4/3", "1"] {
        segpack!["verify", &out, "--subset", bad].exits(2);
    }
}

#[test]
fn what_the_hub_publishes_is_compared() {
    let (folder, revision) = (temp(), "0123456789abcdef0123456789abcdef01234567");
    let checkpoint = folder.path().join("download");
    Tiny::text().write_download(&checkpoint, revision);
    let (_pack, out, summary) = pack(&checkpoint, &[]);
    assert_eq!(
        summary["hub_digests_compared"],
        contents(&tiny_text()).len()
    );
    let document = manifest(&out);
    assert_eq!(document["provenance"]["revision"], revision);
    assert_eq!(document["left_out"][0]["path"], ".cache");
    // the records of the download are not the checkpoint
    let back = folder.path().join("back");
    segpack!["unpack", &out, "-o", &back].ok();
    assert_eq!(contents(&back).len(), contents(&tiny_text()).len());
}

#[test]
fn the_demo_shows_all_of_it() {
    let folder = temp();
    let kept = folder.path().join("kept");
    let demo = Run::of(
        program()
            .arg("demo")
            .arg("--keep")
            .arg(&kept)
            .current_dir(folder.path()),
    )
    .ok();
    assert!(kept.is_dir());
    // README's first screen promises what is printed here; only by how much logits and sound differ
    // depends on the processor
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
    let readme = fs::read_to_string(readme).unwrap();
    let shown = readme
        .split("```")
        .nth(1)
        .unwrap()
        .lines()
        .filter(|line| line.starts_with("  ok  "));
    let promised: Vec<&str> = shown.collect();
    assert!(promised.len() > 7, "{promised:?}");
    for line in promised {
        let (line, _) = line.split_once("by at most").unwrap_or((line, ""));
        let line = line.trim_end_matches('…');
        assert!(
            demo.text().contains(line),
            "README promises {line:?}: {demo}"
        );
    }
    Run::of(program().arg("demo").current_dir(folder.path())).ok();
}
