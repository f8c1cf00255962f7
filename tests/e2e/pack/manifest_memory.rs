//! How much memory an open manifest takes: that of the whole published model.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::Stdio;

use segpack_formats::digest::{Blake3, Sha256};
use serde_json::{Value, json};

use crate::support::checkpoint::{Options, write};
use crate::support::cli::{program, segpack};
use crate::support::folders::temp;

/// Memory of the program that opens nothing, at most.
const PROGRAM: u64 = 12 << 20;

/// The manifest that packing the whole checkpoint would give, but for its digests.
fn manifest(checkpoint: &Path) -> Value {
    let out = checkpoint.join("../none");
    let run = segpack!["pack", checkpoint, "-o", out, "--dry-run", "--json"];
    let plan = run.ok().json();
    let (mut packs, mut segments, mut tensors) = (Vec::new(), Vec::new(), Vec::new());
    let mut parameters = 0;
    let mut experts = std::collections::BTreeSet::new();
    for pack in plan["packs"].as_array().unwrap() {
        packs.push(json!({
            "path": pack["path"], "component": pack["component"], "length": pack["length"],
            "data_offset": pack["data_offset"], "sha256": digest(&pack["path"]),
        }));
        let mut at = pack["data_offset"].as_u64().unwrap();
        for segment in pack["segments"].as_array().unwrap() {
            segments.push(json!({
                "id": segment["id"], "pack": pack["path"], "offset": at,
                "stored_length": segment["raw_length"], "raw_length": segment["raw_length"],
                "codec": "raw", "layout": "row_major",
                "blake3": Blake3::of(segment["id"].as_str().unwrap().as_bytes()).to_string(),
            }));
            at += segment["raw_length"].as_u64().unwrap();
            let mut offset = 0;
            for planned in segment["tensors"].as_array().unwrap() {
                let mut tensor = planned.clone();
                let length = planned["source"]["length"].as_u64().unwrap();
                tensor["segment"] = segment["id"].clone();
                tensor["component"] = pack["component"].clone();
                tensor["offset"] = json!(offset);
                tensor["length"] = json!(length);
                tensor["sha256"] = digest(&planned["name"]);
                if let Some(expert) = planned["expert"].as_u64() {
                    experts.insert((pack["path"].to_string(), planned["layer"].as_u64(), expert));
                }
                offset += length;
                parameters += length / 2;
                tensors.push(tensor);
            }
        }
    }
    let counts = json!({
        "packs": packs.len(), "segments": segments.len(), "tensors": tensors.len(),
        "parameters": parameters, "tensor_bytes": 2 * parameters, "experts": experts.len(),
    });
    json!({
        "format_version": "1.1", "generator": plan["generator"], "model": {"family": "qwen3_omni_moe"}, "counts": counts,
        "options": {"codec": "raw", "source_digests": false, "sums": false},
        "excluded": [], "left_out": [], "source_files": shards(checkpoint),
        "packs": packs, "segments": segments, "tensors": tensors,
    })
}

fn digest(name: &Value) -> Value {
    json!(Sha256::of(name.as_str().unwrap().as_bytes()).to_string())
}

fn shards(checkpoint: &Path) -> Vec<Value> {
    let entries = fs::read_dir(checkpoint).unwrap();
    let mut shards = Vec::new();
    for path in entries.map(|e| e.unwrap().path()) {
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if !name.ends_with(".safetensors") {
            continue;
        }
        let mut length = [0; 8];
        let mut file = fs::File::open(&path).unwrap();
        file.read_exact(&mut length).unwrap();
        shards.push(json!({
            "path": name, "kind": "shard", "length": file.metadata().unwrap().len(),
            "sha256": null, "stored_as": format!("source/.shard-headers/{name}.header"),
            "stored_length": 8 + u64::from_le_bytes(length), "excluded_bytes": 0,
            "stored_sha256": digest(&json!(name)),
        }));
    }
    shards
}

/// What the pack keeps of the checkpoint.
fn keep(checkpoint: &Path, pack: &Path, manifest: &mut Value) {
    let headers = pack.join("source/.shard-headers");
    fs::create_dir_all(&headers).unwrap();
    for shard in manifest["source_files"].as_array_mut().unwrap() {
        let length = shard["stored_length"].as_u64().unwrap();
        let mut header = Vec::new();
        let file = fs::File::open(checkpoint.join(shard["path"].as_str().unwrap())).unwrap();
        file.take(length).read_to_end(&mut header).unwrap();
        shard["stored_sha256"] = json!(Sha256::of(&header).to_string());
        fs::write(pack.join(shard["stored_as"].as_str().unwrap()), header).unwrap();
    }
    for name in ["config.json", "model.safetensors.index.json"] {
        let bytes = fs::read(checkpoint.join(name)).unwrap();
        let digest = Sha256::of(&bytes).to_string();
        let stored_as = format!("source/{name}");
        fs::write(pack.join(&stored_as), &bytes).unwrap();
        let files = manifest["source_files"].as_array_mut().unwrap();
        files.push(json!({
            "path": name, "kind": "file", "length": bytes.len(), "sha256": digest,
            "stored_as": stored_as, "stored_length": bytes.len(), "stored_sha256": digest,
        }));
    }
}

/// What a command takes at its peak, in bytes. What it prints is longer than a pipe holds.
#[cfg(target_os = "linux")]
fn peak(words: &[&str], pack: &Path) -> u64 {
    let mut command = program();
    command.args(words).arg(pack);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    // its list is longer than a pipe holds, so now it waits
    let mut out = child.stdout.take().unwrap();
    out.read_exact(&mut [0; 1000]).unwrap();
    let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    out.read_to_end(&mut Vec::new()).unwrap();
    child.wait().unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    let kibibytes = line.unwrap().trim().strip_suffix(" kB").unwrap();
    kibibytes.trim().parse::<u64>().unwrap() << 10
}

#[cfg(target_os = "linux")]
#[test]
fn a_manifest_takes_at_most_three_times_its_size() {
    let folder = temp();
    let checkpoint = folder.path().join("checkpoint");
    write(&checkpoint, &Options::default()).unwrap();
    let pack = folder.path().join("pack");
    fs::create_dir(&pack).unwrap();
    let mut manifest = manifest(&checkpoint);
    keep(&checkpoint, &pack, &mut manifest);
    let text = manifest.to_string();
    fs::write(pack.join("manifest.json"), &text).unwrap();
    for number in 0..1000 {
        fs::write(pack.join(format!("unlisted-{number}")), "").unwrap(); // a long report
    }
    let size = text.len() as u64;
    assert!(size > 10 << 20);
    for words in [&["ls", "--tensors"][..], &["verify", "--quick", "--json"]] {
        let peak = peak(words, &pack);
        assert!(peak < PROGRAM + 3 * size, "{words:?}: {peak} for {size}");
    }
}
