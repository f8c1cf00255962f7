//! `verify` proves that `unpack` gives the originals back: not only that the manifest agrees with
//! the packs.

use std::fs;
use std::path::{Path, PathBuf};

use segpack::steps::verify::VerifySettings;
use segpack_formats::digest::Sha256;
use segpack_formats::io::CancelToken;
use segpack_manifests::documents::{Restorable, VerifyMode};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::damage::Cut;
use crate::support::cli::{FindingKind, Run, segpack};
use crate::support::damage::{edit_manifest, flip, list, manifest, range_of, reseal, resize};
use crate::support::folders::{copy, temp};
use crate::support::packs::pack_into;
use crate::support::tiny::{Qwen3Moe, Tiny, tiny_full};

/// A tensor of a raw pack gets other bytes, and every digest but that of its shard is made right
/// again. Returns the shard.
fn lie(pack: &Path) -> String {
    let mut document = manifest(pack);
    let tensor = list(&mut document, "tensors")[7].clone();
    let is_its = |s: &&Value| s["id"] == tensor["segment"];
    let segment = list(&mut document, "segments").iter().find(is_its);
    let segment = segment.unwrap().clone();
    let file = pack.join(segment["pack"].as_str().unwrap());
    let mut bytes = fs::read(&file).unwrap();
    let start = range_of(&segment, "stored_length").start;
    let start = start + tensor["offset"].as_u64().unwrap() as usize;
    let own = start..start + tensor["length"].as_u64().unwrap() as usize;
    bytes[own.start] ^= 1;
    let sha256 = Sha256::of(&bytes[own]).to_string();
    fs::write(&file, bytes).unwrap();
    edit_manifest(pack, |m| list(m, "tensors")[7]["sha256"] = json!(sha256));
    reseal(pack);
    tensor["source"]["file"].as_str().unwrap().to_owned()
}

fn results(run: &Run) -> Vec<(String, String)> {
    let text = |v: &Value| v.as_str().unwrap().to_owned();
    let report = run.json();
    let files = report["files"].as_array().unwrap().iter();
    files
        .map(|f| (text(&f["path"]), text(&f["restorable"])))
        .collect()
}

/// How many files of the report have each result.
fn count(run: &Run, result: &str) -> usize {
    results(run).iter().filter(|(_, r)| r == result).count()
}

#[test]
fn a_changed_weight_whose_digests_were_made_right_again_is_found() {
    let folder = temp();
    let good = folder.path().join("good");
    pack_into(&tiny_full(), &good, &[]);
    let files = list(&mut manifest(&good), "source_files").len();
    let run = segpack!["verify", &good, "--json"].ok();
    assert_eq!(count(&run, "yes"), files);

    let pack = folder.path().join("lie");
    copy(&good, &pack);
    let shard = lie(&pack);
    for jobs in ["1", "3"] {
        let run = segpack!["verify", &pack, "--json", "--jobs", jobs].exits(3);
        let report = run.json();
        let finding = &report["findings"][0];
        assert_eq!(report["findings"].as_array().unwrap().len(), 1, "{run}");
        assert_eq!(finding["kind"], "not_restorable", "{run}");
        assert_eq!(finding["file"], shard);
        let mut document = manifest(&good);
        let sources = list(&mut document, "source_files");
        let source = sources.iter().find(|f| f["path"] == shard).unwrap();
        assert_eq!(finding["wanted"], source["sha256"]);
        assert!(finding["seen"].as_str().unwrap().contains("SHA-256 "));
        assert_eq!((count(&run, "no"), count(&run, "yes")), (1, files - 1));
        assert!(results(&run).contains(&(shard.clone(), "no".to_owned())));
    }
    // what the tensors' own digests say was never wrong
    let run = segpack!["verify", &pack, "--no-restorable", "--json"].ok();
    assert_eq!(count(&run, "not_checked"), files);
    let run = segpack!["verify", &pack, "--quick", "--json"].ok();
    assert_eq!(count(&run, "yes"), 0);

    // under another codec it is the same lie
    let coded = folder.path().join("coded");
    segpack!["repack", &pack, "-o", &coded, "--codec", "bf16-rans"].ok();
    let run = segpack!["verify", &coded, "--json"].exits(3);
    assert_eq!(run.json()["findings"][0]["kind"], "not_restorable", "{run}");
    assert_eq!((count(&run, "no"), count(&run, "yes")), (1, files - 1));
}

#[test]
fn what_cannot_be_proved_is_said() {
    let folder = temp();
    let out = folder.path().join("undigested");
    pack_into(&tiny_full(), &out, &["--no-source-digests"]);
    let run = segpack!["verify", &out, "--json"].ok();
    assert!(count(&run, "not_recorded") > 0 && count(&run, "yes") > 0);
    let text = segpack!["verify", &out].ok();
    assert!(text.text().contains("SHA-256 was not recorded"), "{text}");

    let out = folder.path().join("excluded");
    pack_into(&tiny_full(), &out, &["--include", "thinker"]);
    let run = segpack!["verify", &out, "--json"].ok();
    assert!(count(&run, "excluded") > 0 && count(&run, "no") == 0);

    let run = segpack!["verify", &out, "--json", "--subset", "1/2"].ok();
    assert_eq!(count(&run, "yes"), 0, "a part proves nothing of a shard");
}

#[test]
fn a_damaged_side_file_cannot_be_restored() {
    let folder = temp();
    let pack = folder.path().join("pack");
    pack_into(&tiny_full(), &pack, &[]);
    flip(&pack.join("source/merges.txt"), 0);
    let run = segpack!["verify", &pack, "--json"].exits(3);
    let wanted = ("merges.txt".to_owned(), "no".to_owned());
    assert!(results(&run).contains(&wanted), "{run}");
    assert_eq!(count(&run, "no"), 1, "{run}");
}

/// A shard that is long enough to have midstates, and its raw and its coded pack.
fn long() -> (TempDir, [PathBuf; 2]) {
    let folder = temp();
    let size = Qwen3Moe {
        layers: 2,
        experts: 4,
        hidden: 1024,
        width: 1024,
        shards: 1,
    };
    let checkpoint = Tiny::qwen3_moe(size).write(&folder.path().join("checkpoint"));
    let packs = ["raw", "zstd"].map(|codec| {
        let out = folder.path().join(codec);
        segpack!["pack", &checkpoint, "-o", &out, "--codec", codec].ok();
        out
    });
    (folder, packs)
}

#[test]
fn midstates_cut_a_shard_into_parts_and_need_not_be_believed() {
    let (folder, packs) = long();
    for good in packs {
        let mut document = manifest(&good);
        let shard = list(&mut document, "source_files")
            .iter()
            .position(|f| f["midstates"].is_array())
            .unwrap();
        let edit = |m: &mut Value, with: &dyn Fn(&mut Vec<Value>)| {
            let file = &mut list(m, "source_files")[shard];
            with(file["midstates"].as_array_mut().unwrap());
        };
        let files = list(&mut document, "source_files").len();
        let run = segpack!["verify", &good, "--json"].ok();
        assert_eq!(count(&run, "yes"), files);
        // long tensors by themselves, piece by piece
        segpack!["verify", &good, "--no-restorable"].ok();

        // none, one that is out of place: the shard is proved all the same
        let pack = folder.path().join("edited");
        let other = |with: &dyn Fn(&mut Vec<Value>)| {
            let _ = fs::remove_dir_all(&pack);
            copy(&good, &pack);
            edit_manifest(&pack, |m| edit(m, with));
            segpack!["verify", &pack, "--json"]
        };
        let run = other(&|m| m.clear()).ok();
        assert_eq!(count(&run, "yes"), files);
        let run = other(&|m| m[0]["offset"] = json!(m[0]["offset"].as_u64().unwrap() + 64));
        let run = run.ok();
        assert_eq!(count(&run, "yes"), files, "a state that no tensor follows");
        // a wrong one is found, and the shard is proved by its whole
        let run = other(&|m| m[0]["state"] = json!("00".repeat(32))).exits(3);
        assert_eq!(run.json()["findings"][0]["kind"], "bad_manifest", "{run}");
        assert_eq!(count(&run, "yes"), files);
        let run = other(&|m| m[0]["offset"] = json!(63)).exits(3);
        assert_eq!(run.json()["findings"][0]["kind"], "bad_manifest", "{run}");
    }
    // and a lie in a shard with midstates
    let pack = folder.path().join("raw");
    let shard = lie(&pack);
    let run = segpack!["verify", &pack, "--json"].exits(3);
    assert_eq!(run.json()["findings"][0]["kind"], "not_restorable", "{run}");
    assert!(results(&run).contains(&(shard, "no".to_owned())));
}

/// The pack whose last byte is of a tensor of another shard than this one, and the shard of that.
fn last_of_another(pack: &Path, shard: &str) -> (PathBuf, String) {
    let mut document = manifest(pack);
    let segments = list(&mut document, "segments").clone();
    let tensors = list(&mut document, "tensors");
    let last_shard = |segment: &Value| {
        let own = tensors.iter().filter(|t| t["segment"] == segment["id"]);
        let last = own.max_by_key(|t| t["offset"].as_u64())?;
        Some(last["source"]["file"].as_str()?.to_owned())
    };
    let mut ends = segments
        .iter()
        .rev()
        .filter_map(|s| Some((s, last_shard(s)?)));
    let (segment, other) = ends.find(|(_, other)| other != shard).unwrap();
    (pack.join(segment["pack"].as_str().unwrap()), other)
}

#[test]
fn a_shard_beside_one_that_cannot_be_read_is_proved_by_its_whole() {
    let folder = temp();
    let good = folder.path().join("good");
    pack_into(&tiny_full(), &good, &[]);
    for lies in [false, true] {
        let pack = folder.path().join(lies.to_string());
        copy(&good, &pack);
        let liar = lies.then(|| lie(&pack));
        let (file, unread) = last_of_another(&pack, liar.as_deref().unwrap_or_default());
        let cut = Cut { file: &file, by: 1 };
        let settings = VerifySettings::new(VerifyMode::Full, 1);
        let stop = CancelToken::default();
        let report = segpack::steps::verify::verify(&pack, &settings, &stop, &cut).unwrap();
        let mut kinds: Vec<FindingKind> = report.findings.iter().map(|f| f.kind).collect();
        let mut wanted = vec![FindingKind::Unreadable];
        wanted.extend(lies.then_some(FindingKind::NotRestorable));
        kinds.sort();
        wanted.sort();
        assert_eq!(kinds, wanted);
        for file in &report.files {
            let lost = file.path == unread || Some(&file.path) == liar.as_ref();
            let wanted = if lost {
                Restorable::No
            } else {
                Restorable::Yes
            };
            assert_eq!(file.restorable, wanted, "{}", file.path);
        }
    }
}

#[test]
fn what_shares_a_segment_with_a_proved_shard_is_checked_though_its_own_is_not() {
    let folder = temp();
    let pack = folder.path().join("pack");
    pack_into(&tiny_full(), &pack, &["--codec", "zstd"]);
    let mut document = manifest(&pack);
    let tensors = list(&mut document, "tensors").clone();
    let shares = |a: &Value, b: &Value| {
        a["segment"] == b["segment"] && a["source"]["file"] != b["source"]["file"]
    };
    let shared = |t: &&Value| tensors.iter().any(|other| shares(t, other));
    let tensor = tensors.iter().find(shared).unwrap();
    let number = tensors.iter().position(|t| t == tensor).unwrap();
    let sources = list(&mut document, "source_files");
    let shard = sources
        .iter()
        .find(|f| f["path"] == tensor["source"]["file"]);
    // a header that is too short: its shard cannot be proved
    resize(
        &pack.join(shard.unwrap()["stored_as"].as_str().unwrap()),
        -1,
    );
    edit_manifest(&pack, |m| {
        list(m, "tensors")[number]["sha256"] = json!("00".repeat(32));
    });
    let findings = segpack!["verify", &pack, "--json"].exits(3).findings();
    let found = |f: &crate::support::cli::Finding| {
        f.kind == FindingKind::DamagedTensor && f.tensor.as_deref() == tensor["name"].as_str()
    };
    assert_eq!(
        findings.iter().filter(|f| found(f)).count(),
        1,
        "{findings:?}"
    );
}

#[test]
fn a_shard_of_which_a_pack_is_gone_cannot_be_restored() {
    const GONE: &str = "packs/thinker.text.experts.01.safetensors";
    let folder = temp();
    let pack = folder.path().join("pack");
    pack_into(&tiny_full(), &pack, &[]);
    fs::remove_file(pack.join(GONE)).unwrap();
    let mut document = manifest(&pack);
    let tensors = list(&mut document, "tensors").clone();
    let segments = list(&mut document, "segments");
    segments.retain(|s| s["pack"] == GONE);
    let is_gone = |t: &&Value| segments.iter().any(|s| s["id"] == t["segment"]);
    let lost = tensors.iter().filter(is_gone).map(|t| &t["source"]["file"]);
    let lost: Vec<&Value> = lost.collect();
    let run = segpack!["verify", &pack, "--json"].exits(3);
    for (path, result) in results(&run) {
        let wanted = if lost.contains(&&json!(path)) {
            "no"
        } else {
            "yes"
        };
        assert_eq!(result, wanted, "{path}");
    }
    // and is said once
    let run = segpack!["verify", &pack, "--sums", "--json"].exits(3);
    let kinds: Vec<FindingKind> = run.findings().iter().map(|f| f.kind).collect();
    assert_eq!(kinds, [FindingKind::MissingFile], "{run}");
}
