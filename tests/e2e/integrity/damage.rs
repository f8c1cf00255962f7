//! Every kind of damage, everywhere: found, named, all of it, with exit status 3.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use segpack::steps::verify::VerifySettings;
use segpack::work::Progress;
use segpack_formats::io::CancelToken;
use segpack_manifests::documents::VerifyMode;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::cli::{Finding, FindingKind, Run, segpack};
use crate::support::damage::{
    edit_manifest, flip, list, manifest, range_of, reseal, reseal_sums, resize, swap_ranges,
};
use crate::support::folders::{contents, copy, hidden_beside, temp};
use crate::support::packs::pack_into;
use crate::support::tiny::{Qwen3Moe, Tiny, tiny_full, write_file};

/// Packs to spoil copies of, one for each codec.
struct Good {
    folder: TempDir,
    copies: usize,
}

impl Good {
    fn new() -> Self {
        let folder = temp();
        for codec in ["raw", "zstd"] {
            pack_into(
                &tiny_full(),
                &folder.path().join(codec),
                &["--codec", codec],
            );
        }
        Self { folder, copies: 0 }
    }

    fn copy(&mut self, codec: &str) -> PathBuf {
        self.copies += 1;
        let to = self.folder.path().join(self.copies.to_string());
        copy(&self.folder.path().join(codec), &to);
        to
    }
}

fn verify(pack: &Path, how: &str) -> Run {
    match how {
        "" => segpack!["verify", pack, "--json"],
        how => segpack!["verify", pack, "--json", how],
    }
}

/// Asserts that a finding of this kind names this file, and that the text report does too.
#[track_caller]
fn assert_found(pack: &Path, how: &str, kind: FindingKind, file: &str) -> Vec<Finding> {
    let run = verify(pack, how).exits(3);
    let findings = run.findings();
    let found = |f: &Finding| f.kind == kind && f.file.as_deref() == Some(file);
    assert!(findings.iter().any(found), "no {kind:?} in {file}\n{run}");
    assert_eq!(run.json()["ok"], json!(false));
    let text = match how {
        "" => segpack!["verify", pack].exits(3),
        how => segpack!["verify", pack, how].exits(3),
    };
    assert!(
        text.text().contains(file) && text.text().contains("NOT ok"),
        "{text}"
    );
    findings
}

const EXPERTS: &str = "packs/thinker.text.experts.01.safetensors";

/// The stored bytes of the segments of a pack.
fn segments(pack: &Path, path: &str) -> Vec<(Value, std::ops::Range<usize>)> {
    let mut document = manifest(pack);
    let all = list(&mut document, "segments")
        .iter()
        .filter(|s| s["pack"] == path);
    all.map(|s| (s.clone(), range_of(s, "stored_length")))
        .collect()
}

#[test]
fn one_bit_in_every_region_of_every_pack() {
    let mut good = Good::new();
    for codec in ["raw", "zstd"] {
        let pack = good.copy(codec);
        for entry in list(&mut manifest(&pack), "packs") {
            let path = entry["path"].as_str().unwrap();
            let file = pack.join(path);
            let data = entry["data_offset"].as_i64().unwrap();
            // the length field, the text of the header, its padding
            for at in [0, 1, 7, 8, 20, data / 2, data - 1] {
                flip(&file, at);
                let findings = assert_found(&pack, "--quick", FindingKind::WrongHeader, path);
                assert_eq!(findings[0].bytes, Some([at as u64, at as u64 + 1]));
                let byte = fs::read(&file).unwrap()[at as usize];
                let said = format!("byte {byte:#04x}");
                assert_eq!(findings[0].seen.as_ref(), Some(&said));
                assert_eq!(findings.len(), 1);
                flip(&file, at);
            }
            let segments = segments(&pack, path);
            for (segment, range) in [
                &segments[0],
                &segments[segments.len() / 2],
                &segments[segments.len() - 1],
            ] {
                for at in [range.start, range.start + range.len() / 2, range.end - 1] {
                    flip(&file, at as i64);
                    let run = verify(&pack, "").exits(3);
                    let findings = run.findings();
                    assert!(!findings.is_empty());
                    for finding in findings {
                        assert!(
                            matches!(
                                finding.kind,
                                FindingKind::DamagedTensor | FindingKind::DamagedSegment
                            ),
                            "{run}"
                        );
                        assert_eq!(finding.file.as_deref(), Some(path), "{run}");
                        assert_eq!(finding.segment.as_deref(), segment["id"].as_str(), "{run}");
                    }
                    verify(&pack, "--quick").ok();
                    flip(&file, at as i64);
                }
            }
        }
        verify(&pack, "--sums").ok();
    }
}

#[test]
fn one_bit_in_a_raw_tensor_names_the_tensor_and_nothing_else() {
    let mut good = Good::new();
    let pack = good.copy("raw");
    let mut document = manifest(&pack);
    let tensors = list(&mut document, "tensors").clone();
    for tensor in tensors.iter().step_by(41) {
        let segment = document["segments"]
            .as_array()
            .unwrap()
            .iter()
            .find(|s| s["id"] == tensor["segment"])
            .unwrap();
        let start = segment["offset"].as_i64().unwrap() + tensor["offset"].as_i64().unwrap();
        let file = pack.join(segment["pack"].as_str().unwrap());
        for at in [start, start + tensor["length"].as_i64().unwrap() - 1] {
            flip(&file, at);
            let findings = verify(&pack, "").exits(3).findings();
            let names: Vec<_> = findings
                .iter()
                .map(|f| (f.kind, f.tensor.as_deref().unwrap()))
                .collect();
            assert_eq!(
                names,
                [(FindingKind::DamagedTensor, tensor["name"].as_str().unwrap())]
            );
            // the whole file's digest finds it too
            let path = segment["pack"].as_str().unwrap();
            assert_found(&pack, "--sums", FindingKind::DamagedFile, path);
            assert_found(&pack, "--sums", FindingKind::DamagedSegment, path);
            let printed = segpack!["cat", &pack, tensor["name"].as_str().unwrap()].exits(3);
            assert!(
                printed.stderr.contains(tensor["name"].as_str().unwrap()),
                "{printed}"
            );
            flip(&file, at);
        }
    }
}

/// Tensors are digested a piece of 64 KiB at a time, many side by side.
/// Of raw segments only with `--sums`: their tensors have digests of their own.
#[test]
fn a_wrong_digest_of_a_stored_segment_is_found_once() {
    let mut good = Good::new();
    for codec in ["raw", "zstd"] {
        let pack = good.copy(codec);
        edit_manifest(&pack, |m| {
            for segment in list(m, "segments")
                .iter_mut()
                .filter(|s| s["codec"] == codec)
            {
                segment["blake3"] = json!("00".repeat(32));
            }
        });
        let run = verify(&pack, "--sums").exits(3);
        let found = run.findings();
        let mut document = manifest(&pack);
        let segments = list(&mut document, "segments").iter();
        let count = segments.filter(|s| s["codec"] == codec).count();
        assert_eq!(found.len(), count, "{codec}: {run}");
        assert!(found.iter().all(|f| f.kind == FindingKind::DamagedSegment));
    }
}

#[test]
fn one_bit_in_any_piece_of_a_long_tensor_is_found() {
    let folder = temp();
    let size = Qwen3Moe {
        layers: 2,
        experts: 3,
        hidden: 256,
        width: 300,
        shards: 2,
    };
    let checkpoint = Tiny::qwen3_moe(size).write(&folder.path().join("checkpoint"));
    let pack = folder.path().join("pack");
    pack_into(&checkpoint, &pack, &["--codec", "raw"]);
    verify(&pack, "").ok();
    let mut document = manifest(&pack);
    let name = "model.layers.1.mlp.experts.1.down_proj.weight";
    let tensor = list(&mut document, "tensors")
        .iter()
        .find(|t| t["name"] == name);
    let tensor = tensor.unwrap().clone();
    let mut segments = list(&mut document, "segments").iter();
    let segment = segments.find(|s| s["id"] == tensor["segment"]).unwrap();
    let file = pack.join(segment["pack"].as_str().unwrap());
    let start = segment["offset"].as_i64().unwrap() + tensor["offset"].as_i64().unwrap();
    let length = tensor["length"].as_i64().unwrap();
    assert!(length > 2 << 16, "{length}");
    for at in [0, (1 << 16) - 1, 1 << 16, (2 << 16) + 1, length - 1] {
        flip(&file, start + at);
        let findings = verify(&pack, "").exits(3).findings();
        let named: Vec<_> = findings
            .iter()
            .map(|f| (f.kind, f.tensor.as_deref()))
            .collect();
        assert_eq!(
            named,
            [(FindingKind::DamagedTensor, Some(name))],
            "byte {at}"
        );
        flip(&file, start + at);
    }
}

#[test]
fn coded_segments_are_checked_where_nothing_is_proved_and_in_parts() {
    let folder = temp();
    let pack = folder.path().join("pack");
    pack_into(&tiny_full(), &pack, &["--codec", "bf16-rans"]);
    let run = |how: [&str; 2]| segpack!["verify", &pack, "--json", how[0], how[1]];
    let ways = [
        ["--no-restorable", "--jobs=2"],
        ["--subset", "1/2"],
        ["--subset", "2/2"],
    ];
    let whole = verify(&pack, "").ok().json()["checked"].clone();
    assert_eq!(run(ways[0]).ok().json()["checked"], whole);

    let mut document = manifest(&pack);
    let mut segments = list(&mut document, "segments").iter().rev();
    let segment = segments.find(|s| s["codec"] != "raw").unwrap();
    let range = range_of(segment, "stored_length");
    let file = pack.join(segment["pack"].as_str().unwrap());
    flip(&file, (range.start + range.len() / 2) as i64);
    let found = ways.map(|how| {
        let findings = run(how).findings();
        for finding in &findings {
            assert_eq!(finding.segment.as_deref(), segment["id"].as_str());
            let bytes = [range.start as u64, range.end as u64];
            assert_eq!(finding.bytes, Some(bytes), "{finding}");
        }
        let of_segment = |f: &&Finding| f.kind == FindingKind::DamagedSegment && f.tensor.is_none();
        findings.iter().filter(of_segment).count()
    });
    assert_eq!((found[0], found[1] + found[2]), (1, 1), "{found:?}");
}

#[test]
fn one_bit_in_the_other_files() {
    let mut good = Good::new();
    let pack = good.copy("raw");
    // any bit of the digest list
    let sums = pack.join("SHA256SUMS");
    let length = fs::metadata(&sums).unwrap().len() as i64;
    for at in [0, 64, 70, length / 2, length - 1] {
        flip(&sums, at);
        assert_found(&pack, "--quick", FindingKind::WrongSums, "SHA256SUMS");
        flip(&sums, at);
    }
    // source files and shard headers
    let mut document = manifest(&pack);
    for entry in list(&mut document, "source_files") {
        let stored = entry["stored_as"].as_str().unwrap();
        let length = entry["stored_length"].as_i64().unwrap();
        for at in [0, length / 2, length - 1] {
            flip(&pack.join(stored), at);
            let findings = assert_found(&pack, "", FindingKind::DamagedFile, stored);
            assert_eq!(findings.len(), 1);
            flip(&pack.join(stored), at);
        }
    }
    verify(&pack, "--sums").ok();
    // the manifest: whatever the bit, its digest is another
    let file = pack.join("manifest.json");
    let length = fs::metadata(&file).unwrap().len() as i64;
    for i in 0..40 {
        let at = i * (length - 1) / 39;
        flip(&file, at);
        let run = verify(&pack, "--quick").exits(3);
        let named = |f: &Finding| matches!(f.file.as_deref(), Some("manifest.json" | "SHA256SUMS"));
        assert!(run.findings().iter().any(named), "byte {at}: {run}");
        flip(&file, at);
    }
    verify(&pack, "--quick").ok();
}

#[test]
fn files_that_are_longer_shorter_gone_or_too_many() {
    let mut good = Good::new();
    for codec in ["raw", "zstd"] {
        let pack = good.copy(codec);
        for (file, kind) in [
            (EXPERTS, FindingKind::WrongLength),
            ("source/vocab.json", FindingKind::WrongLength),
        ] {
            for by in [-1, 1, -1000, 4096] {
                resize(&pack.join(file), by);
                assert_found(&pack, "--quick", kind, file);
                assert_found(&pack, "", kind, file);
                resize(&pack.join(file), -by);
                if by < 0 {
                    fs::copy(good.folder.path().join(codec).join(file), pack.join(file)).unwrap();
                }
            }
            fs::remove_file(pack.join(file)).unwrap();
            for how in ["--quick", "--sums"] {
                assert_found(&pack, how, FindingKind::MissingFile, file);
            }
            fs::create_dir(pack.join(file)).unwrap();
            let findings = verify(&pack, "--quick").exits(3).findings();
            assert!(findings.iter().any(|f| f.kind == FindingKind::UnlistedFile));
            fs::remove_dir(pack.join(file)).unwrap();
            fs::copy(good.folder.path().join(codec).join(file), pack.join(file)).unwrap();
        }
        fs::remove_file(pack.join("SHA256SUMS")).unwrap();
        assert_found(&pack, "--quick", FindingKind::MissingFile, "SHA256SUMS");
    }
    let pack = good.copy("raw");
    for extra in [
        "note",
        "packs/extra.safetensors",
        "source/.shard-headers/x",
        "source/deep/er/x",
        "other/x",
    ] {
        write_file(&pack.join(extra), b"x");
        let listed = if extra.starts_with("other") || extra.contains("deep") {
            extra.rsplit_once('/').unwrap().0.trim_end_matches("/er")
        } else {
            extra
        };
        assert_found(&pack, "--quick", FindingKind::UnlistedFile, listed);
        fs::remove_file(pack.join(extra)).unwrap();
        let _ = fs::remove_dir(pack.join("source/deep/er"));
        let _ = fs::remove_dir(pack.join("source/deep"));
        let _ = fs::remove_dir(pack.join("other"));
    }
    fs::create_dir(pack.join("packs/empty")).unwrap();
    assert_found(&pack, "--quick", FindingKind::UnlistedFile, "packs/empty");
}

#[cfg(unix)]
#[test]
fn links_and_pipes_are_no_files() {
    use std::os::unix::fs::symlink;
    let mut good = Good::new();
    let pack = good.copy("raw");
    symlink("/etc/hostname", pack.join("source/link")).unwrap();
    assert_found(&pack, "--quick", FindingKind::UnlistedFile, "source/link");
    fs::remove_file(pack.join("source/link")).unwrap();
    symlink("nowhere", pack.join("packs/broken")).unwrap();
    assert_found(&pack, "--quick", FindingKind::UnlistedFile, "packs/broken");
    fs::remove_file(pack.join("packs/broken")).unwrap();
    // a listed file, moved out of the folder
    fs::rename(pack.join(EXPERTS), good.folder.path().join("elsewhere")).unwrap();
    symlink("../../elsewhere", pack.join(EXPERTS)).unwrap();
    let findings = assert_found(&pack, "--quick", FindingKind::UnlistedFile, EXPERTS);
    assert_eq!(findings.len(), 1, "{findings:?}");
    fs::remove_file(pack.join(EXPERTS)).unwrap();
    let made = std::process::Command::new("mkfifo")
        .arg(pack.join(EXPERTS))
        .status()
        .unwrap();
    assert!(made.success());
    for how in ["--quick", "", "--sums"] {
        assert_found(&pack, how, FindingKind::UnlistedFile, EXPERTS);
    }
}

#[test]
fn all_of_it_is_reported_not_the_first() {
    let mut good = Good::new();
    let pack = good.copy("raw");
    let harmed = segments(&pack, EXPERTS);
    for (_, range) in &harmed {
        flip(&pack.join(EXPERTS), range.start as i64);
    }
    flip(&pack.join("packs/code2wav.safetensors"), 9);
    flip(&pack.join("source/config.json"), 100);
    fs::remove_file(pack.join("source/merges.txt")).unwrap();
    write_file(&pack.join("note"), b"x");
    resize(&pack.join("packs/talker.text.safetensors"), 1);
    let found: Vec<_> = verify(&pack, "")
        .exits(3)
        .findings()
        .into_iter()
        .map(|f| (f.kind, f.file.unwrap()))
        .collect();
    let count = |kind, file: &str| {
        found
            .iter()
            .filter(|f| **f == (kind, file.to_owned()))
            .count()
    };
    assert_eq!(count(FindingKind::DamagedTensor, EXPERTS), harmed.len());
    assert_eq!(
        count(FindingKind::WrongHeader, "packs/code2wav.safetensors"),
        1
    );
    assert_eq!(count(FindingKind::DamagedFile, "source/config.json"), 1);
    assert_eq!(count(FindingKind::MissingFile, "source/merges.txt"), 1);
    assert_eq!(count(FindingKind::UnlistedFile, "note"), 1);
    assert_eq!(
        count(FindingKind::WrongLength, "packs/talker.text.safetensors"),
        1
    );
    assert_eq!(found.len(), harmed.len() + 5, "{found:?}");
    // in an order that does not depend on chance
    let again = verify(&pack, "").stdout;
    assert!((0..5).all(|_| verify(&pack, "").stdout == again));
}

#[test]
fn things_in_each_others_place() {
    let mut good = Good::new();
    for codec in ["raw", "zstd"] {
        // two experts of one length within a pack
        let pack = good.copy(codec);
        let segments = segments(&pack, EXPERTS);
        let [(first, a), .., (second, b)] = &segments[..] else {
            panic!("only one segment")
        };
        assert_eq!(a.len(), b.len());
        swap_ranges(&pack.join(EXPERTS), a.start, b.start, a.len());
        let findings = verify(&pack, "").exits(3).findings();
        for id in [first, second].map(|s| s["id"].as_str()) {
            assert!(
                findings.iter().any(|f| f.segment.as_deref() == id),
                "{findings:?}"
            );
        }
        // with all digests of files and stored bytes made to fit, those of tensors remain
        reseal(&pack);
        let findings = verify(&pack, "").exits(3).findings();
        assert!(
            findings
                .iter()
                .all(|f| f.kind == FindingKind::DamagedTensor),
            "{findings:?}"
        );
        assert_eq!(findings.len(), 6);
        verify(&pack, "--quick").ok();
        segpack!["unpack", &pack, "-o", pack.join("../back"), "--jobs", "1"]
            .exits(3)
            .says(&["experts.0"]);
        assert!(!pack.join("../back").exists());

        // two packs
        let pack = good.copy(codec);
        let (a, b) = (
            pack.join(EXPERTS),
            pack.join("packs/thinker.text.experts.02.safetensors"),
        );
        fs::rename(&a, pack.join("x")).unwrap();
        fs::rename(&b, &a).unwrap();
        fs::rename(pack.join("x"), &b).unwrap();
        let kinds: Vec<_> = verify(&pack, "--quick")
            .exits(3)
            .findings()
            .into_iter()
            .map(|f| f.kind)
            .collect();
        let structural =
            |k: &FindingKind| matches!(k, FindingKind::WrongHeader | FindingKind::WrongLength);
        assert!(
            kinds.len() == 2 && kinds.iter().all(structural),
            "{kinds:?}"
        );
    }
}

/// Cuts a file off once lengths have been compared and the reading begins.
pub struct Cut<'a> {
    pub file: &'a Path,
    pub by: usize,
}

impl Progress for Cut<'_> {
    fn start(&self, phase: &'static str, _: u64) {
        assert_eq!(phase, "verifying");
        resize(self.file, -(self.by as i64));
    }
    fn start_counting(&self, _: &'static str, _: u64, _: &'static str) {}
    fn advance(&self, _: u64) {}
    fn finish(&self) {}
    fn note(&self, _: &str) {}
}

#[test]
fn a_file_that_cannot_be_read_to_its_end_is_a_finding() {
    let mut good = Good::new();
    for (file, mode) in [
        ("source/merges.txt", VerifyMode::Full),
        ("packs/code2wav.safetensors", VerifyMode::Sums),
    ] {
        let pack = good.copy("raw");
        let cut = Cut {
            file: &pack.join(file),
            by: 1,
        };
        let settings = VerifySettings::new(mode, 1);
        let report =
            segpack::steps::verify::verify(&pack, &settings, &CancelToken::default(), &cut)
                .unwrap();
        let mut unreadable = report.findings.iter();
        let is_told = |f: &Finding| {
            f.kind == FindingKind::Unreadable
                && f.file.as_deref() == Some(file)
                && f.tensor.is_none()
        };
        assert!(unreadable.any(is_told), "{:?}", report.findings);
    }
}

#[test]
fn what_cannot_be_read_hides_nothing_else() {
    let mut good = Good::new();
    for jobs in [1, 3] {
        let pack = good.copy("raw");
        let whole = verify(&pack, "").ok().json();
        // all of the last expert, and the last byte of the one before
        let harmed = segments(&pack, EXPERTS);
        let [.., (before, _), (last, range)] = &harmed[..] else {
            panic!("only one segment")
        };
        let cut = Cut {
            file: &pack.join(EXPERTS),
            by: range.len() + 1,
        };
        let settings = VerifySettings::new(VerifyMode::Full, jobs);
        let report =
            segpack::steps::verify::verify(&pack, &settings, &CancelToken::default(), &cut)
                .unwrap();
        let mut document = manifest(&pack);
        let tensors = list(&mut document, "tensors");
        let of = |segment: &Value| {
            tensors
                .iter()
                .filter(|t| t["segment"] == segment["id"])
                .collect::<Vec<_>>()
        };
        let (mut lost, of_last) = (vec![of(before).pop().unwrap()], of(last));
        lost.extend(of_last);
        for (finding, tensor) in report.findings.iter().zip(&lost) {
            assert_eq!(finding.kind, FindingKind::Unreadable, "{finding}");
            assert_eq!(
                (finding.file.as_deref(), finding.tensor.as_deref()),
                (Some(EXPERTS), tensor["name"].as_str())
            );
            assert!(
                finding.seen.as_ref().unwrap().contains("ends before byte"),
                "{finding}"
            );
        }
        assert_eq!(report.findings.len(), lost.len());
        // what shared a batch with them was digested all the same, and counted once
        let bytes: u64 = lost.iter().map(|t| t["length"].as_u64().unwrap()).sum();
        assert_eq!(
            whole["checked"]["tensors"],
            report.checked.tensors + lost.len() as u64
        );
        assert_eq!(whole["checked"]["bytes"], report.checked.bytes + bytes);
    }
}

#[test]
fn damage_is_not_unpacked() {
    let mut good = Good::new();
    for codec in ["raw", "zstd"] {
        let pack = good.copy(codec);
        let (_, range) = &segments(&pack, EXPERTS)[0];
        flip(&pack.join(EXPERTS), (range.start + 50) as i64);
        flip(&pack.join("source/vocab.json"), 5);
        let back = pack.with_extension("back");
        let run = segpack!["unpack", &pack, "-o", &back].exits(3);
        assert!(run.stderr.contains("vocab.json"), "{run}");
        assert!(
            run.stderr.contains("experts.0") || run.stderr.contains(EXPERTS),
            "{run}"
        );
        // all or nothing; who wants the rest asks for it
        assert!(!back.exists() && !hidden_beside(&back).exists());
        segpack!["unpack", &pack, "-o", &back, "--include", "config.json"].ok();
        assert_eq!(contents(&back).len(), 1);

        // without digests of whole files those of tensors and headers count
        let pack = good.folder.path().join(format!("{codec}-without"));
        segpack![
            "pack",
            tiny_full(),
            "-o",
            &pack,
            "--codec",
            codec,
            "--no-source-digests"
        ]
        .ok();
        for (file, at) in [
            (EXPERTS, segments(&pack, EXPERTS)[0].1.start as i64 + 50),
            (
                "source/.shard-headers/model-00002-of-00004.safetensors.header",
                -1,
            ),
        ] {
            flip(&pack.join(file), at);
            let back = pack.with_extension("back");
            let run = segpack!["unpack", &pack, "-o", &back].exits(3);
            assert!(run.stderr.contains("model-0000"), "{run}");
            assert!(!back.exists() && !hidden_beside(&back).exists());
            assert!(
                segpack!["verify", &pack, "--json"]
                    .exits(3)
                    .findings()
                    .iter()
                    .any(|f| f.file.as_deref() == Some(file))
            );
            flip(&pack.join(file), at);
        }
    }
}

#[test]
fn a_pack_is_compared_with_another_checkpoint() {
    let (folder, mut good) = (temp(), Good::new());
    let pack = good.copy("raw");
    let name = "thinker.model.layers.0.self_attn.k_proj.weight";
    let against = |tiny: &Tiny| {
        let checkpoint = folder.path().join("other");
        let _ = fs::remove_dir_all(&checkpoint);
        tiny.write(&checkpoint);
        let run = segpack!["verify", &pack, "--against", &checkpoint, "--json"].exits(3);
        let about = |f: Finding| (f.kind, f.tensor.or(f.file).unwrap());
        let found: Vec<_> = run.findings().into_iter().map(about).collect();
        // written again, so JSON files and headers of shards are spelt differently
        let spelling = ["config.json", "model.safetensors.index.json"];
        let is_spelling = |what: &str| spelling.contains(&what) || what.ends_with(".safetensors");
        found
            .into_iter()
            .filter(|(_, what)| !is_spelling(what))
            .collect::<Vec<_>>()
    };
    let mut tiny = Tiny::full();
    assert_eq!(against(&tiny), []);
    tiny.tensor(name).bytes[3] ^= 1;
    assert_eq!(
        against(&tiny),
        [(FindingKind::DiffersFromCheckpoint, name.to_owned())]
    );
    let mut tiny = Tiny::full();
    tiny.tensor(name).shape.reverse();
    assert_eq!(
        against(&tiny),
        [(FindingKind::DiffersFromCheckpoint, name.to_owned())]
    );
    let mut tiny = Tiny::full();
    tiny.remove(name);
    tiny.files.push(("new.txt".to_owned(), b"new".to_vec()));
    tiny.files.retain(|(file, _)| file != "merges.txt");
    let mut found = against(&tiny);
    found.sort_by(|a, b| a.1.cmp(&b.1));
    let wanted = [
        (FindingKind::NotInCheckpoint, "merges.txt".to_owned()),
        (FindingKind::NotInPack, "new.txt".to_owned()),
        (FindingKind::NotInCheckpoint, name.to_owned()),
    ];
    assert_eq!(found, wanted);
    let mut tiny = Tiny::full();
    let mut extra = tiny.tensor(name).clone();
    extra.name = "thinker.model.layers.9.self_attn.k_proj.weight".to_owned();
    tiny.shards[0].1.push(extra.clone());
    assert_eq!(against(&tiny), [(FindingKind::NotInPack, extra.name)]);
}

#[test]
fn parts_of_a_comparison_find_every_difference_once() {
    let (folder, mut good) = (temp(), Good::new());
    let (pack, checkpoint) = (good.copy("raw"), folder.path().join("other"));
    let mut tiny = Tiny::full();
    tiny.tensors_mut().for_each(|tensor| tensor.bytes[0] ^= 1);
    tiny.write(&checkpoint);
    let mut wanted: Vec<String> = tiny.tensors().map(|tensor| tensor.name.clone()).collect();
    wanted.sort();
    let (mut found, mut parts) = (Vec::new(), Vec::new());
    for part in ["1/3", "2/3", "3/3"] {
        let run = segpack![
            "verify",
            &pack,
            "--against",
            &checkpoint,
            "--subset",
            part,
            "--json"
        ]
        .exits(3);
        let differ = run.findings().into_iter();
        let differ = differ.filter(|f| f.kind == FindingKind::DiffersFromCheckpoint);
        let before = found.len();
        found.extend(differ.filter_map(|finding| finding.tensor));
        parts.push(found.len() - before);
    }
    found.sort();
    assert_eq!(found, wanted);
    assert!(
        parts
            .iter()
            .all(|part| part.abs_diff(wanted.len() / 3) <= 1),
        "{parts:?}"
    );
}

#[test]
fn the_report_counts_what_was_checked() {
    let mut good = Good::new();
    for codec in ["raw", "zstd"] {
        let pack = good.copy(codec);
        let mut document = manifest(&pack);
        let mut count = |key: &str| list(&mut document, key).len();
        let (packs, segments, tensors) = (count("packs"), count("segments"), count("tensors"));
        let files = count("source_files");
        let mut sum = |key: &str| {
            let lengths = list(&mut document, key)
                .iter()
                .map(|entry| &entry["stored_length"]);
            lengths.map(|length| length.as_u64().unwrap()).sum::<u64>()
        };
        let bytes = sum("segments") + sum("source_files");
        assert_eq!(
            verify(&pack, "").ok().json()["checked"],
            json!({"packs": packs, "segments": segments, "tensors": tensors, "files": files, "bytes": bytes}),
            "{codec}"
        );
        assert_eq!(
            verify(&pack, "--quick").ok().json()["checked"],
            json!({"packs": packs, "segments": 0, "tensors": 0, "files": 0, "bytes": 0}),
            "{codec}"
        );
        // a part of one: the first segment
        let first = segpack!["verify", &pack, "--subset", "1/1000", "--json"]
            .ok()
            .json();
        let checked = &first["checked"];
        assert_eq!(
            (&checked["segments"], &checked["files"]),
            (&json!(1), &json!(0)),
            "{codec}"
        );
    }
}

/// Adds up what it is told.
#[derive(Default)]
struct Sums {
    promised: AtomicU64,
    done: AtomicU64,
}

impl Progress for Sums {
    fn start(&self, _: &'static str, total: u64) {
        self.promised.fetch_add(total, Ordering::Relaxed);
    }
    fn start_counting(&self, _: &'static str, _: u64, _: &'static str) {}
    fn advance(&self, by: u64) {
        self.done.fetch_add(by, Ordering::Relaxed);
    }
    fn finish(&self) {}
    fn note(&self, _: &str) {}
}

#[test]
fn progress_ends_at_what_it_promised() {
    let mut good = Good::new();
    for codec in ["raw", "zstd"] {
        let settings = VerifySettings::new(VerifyMode::Full, 2);
        let (pack, sums) = (good.copy(codec), Sums::default());
        segpack::steps::verify::verify(&pack, &settings, &CancelToken::default(), &sums).unwrap();
        assert_eq!(
            sums.promised.into_inner(),
            sums.done.into_inner(),
            "{codec}"
        );
    }
}

#[test]
fn the_first_wrong_line_of_the_sums_is_shown() {
    let mut good = Good::new();
    let pack = good.copy("raw");
    let text = fs::read_to_string(pack.join("SHA256SUMS")).unwrap();
    let line = text.lines().nth(2).unwrap();
    let at = text.find(line).unwrap() + 7;
    flip(&pack.join("SHA256SUMS"), at as i64);
    let findings = verify(&pack, "--quick").exits(3).findings();
    let [finding] = &findings[..] else {
        panic!("{findings:?}")
    };
    assert_eq!(finding.kind, FindingKind::WrongSums);
    assert_eq!(finding.bytes, Some([at as u64, at as u64 + 1]));
    let now = fs::read_to_string(pack.join("SHA256SUMS")).unwrap();
    assert_eq!(finding.seen.as_deref(), now.lines().nth(2));
    assert!(
        finding.wanted.as_deref().unwrap().contains(line),
        "{finding}"
    );
}

#[test]
fn what_an_interrupted_run_left_is_called_that() {
    let mut good = Good::new();
    let pack = good.copy("raw");
    for (folder, is_left_behind) in [(".partial", true), ("packs/more", false)] {
        fs::create_dir(pack.join(folder)).unwrap();
        let findings = verify(&pack, "--quick").exits(3).findings();
        let [finding] = &findings[..] else {
            panic!("{findings:?}")
        };
        assert_eq!(finding.kind, FindingKind::UnlistedFile);
        assert_eq!(finding.file.as_deref(), Some(folder));
        let seen = finding.seen.as_deref().unwrap();
        assert_eq!(seen.contains("interrupted"), is_left_behind, "{seen}");
        fs::remove_dir(pack.join(folder)).unwrap();
    }
}

#[test]
fn comparing_takes_what_packing_tolerated_and_says_what_was_compared() {
    let folder = temp();
    let checkpoint = Tiny::text().write(&folder.path().join("checkpoint"));
    write_file(&checkpoint.join("model.gguf"), b"GGUF");
    let pack = folder.path().join("pack");
    segpack!["pack", &checkpoint, "-o", &pack, "--extra", "keep"].ok();
    let run = segpack!["verify", &pack, "--against", &checkpoint].ok();
    assert!(run.text().contains("ok, equal to the checkpoint"), "{run}");
    let run = segpack!["verify", &pack, "--against", &checkpoint, "--quick"].ok();
    assert!(
        run.text()
            .contains("ok; the manifest matches the checkpoint (no weights of the pack"),
        "{run}"
    );
    // a mistyped path is told first, not after the pack's findings
    let run = segpack!["verify", &pack, "--against", folder.path().join("typo")].exits(1);
    assert!(run.says(&["no such file or folder"]).stdout.is_empty());
}

/// A pack so small that every single bit of it can be tried.
#[test]
#[ignore = "takes minutes"]
fn every_bit_counts() {
    let mut tried = 0;
    let folder = temp();
    let size = Qwen3Moe {
        layers: 2,
        experts: 2,
        hidden: 8,
        width: 4,
        shards: 1,
    };
    let checkpoint = Tiny::qwen3_moe(size).write(&folder.path().join("checkpoint"));
    for codec in ["raw", "zstd"] {
        let pack = folder.path().join(codec);
        segpack!["pack", &checkpoint, "-o", &pack, "--codec", codec].ok();
        let mut document = manifest(&pack);
        let packs: Vec<String> = list(&mut document, "packs")
            .iter()
            .map(|p| p["path"].as_str().unwrap().to_owned())
            .collect();
        let files = packs
            .into_iter()
            .chain(["SHA256SUMS".to_owned(), "source/merges.txt".to_owned()]);
        for file in files {
            let file = pack.join(file);
            for at in (0..fs::metadata(&file).unwrap().len() as i64).step_by(7) {
                flip(&file, at);
                verify(&pack, "").exits(3);
                flip(&file, at);
                tried += 1;
            }
        }
        reseal_sums(&pack);
        verify(&pack, "--sums").ok();
    }
    eprintln!("{tried} flipped bits");
}

/// What a liar changes in a manifest whose digests then all fit.
#[test]
fn a_manifest_that_lies_is_caught() {
    type Lie = fn(&mut Value);
    let lies: [(&str, Lie); 22] = [
        ("begins at byte", |m| {
            let offset = m["segments"][1]["offset"].as_u64().unwrap();
            m["segments"][1]["offset"] = json!(offset + 2);
        }),
        ("for", |m| m["segments"][0]["raw_length"] = json!(2)),
        ("", |m| m["segments"][0]["stored_length"] = json!(u64::MAX)),
        ("end at byte", |m| {
            m["packs"][0]["length"] = json!(1_u64 << 40);
        }),
        ("no multiple of 4096", |m| {
            m["packs"][0]["data_offset"] = json!(8);
        }),
        ("listed twice", |m| {
            m["segments"][1]["id"] = m["segments"][0]["id"].clone();
        }),
        ("listed twice", |m| {
            m["tensors"][1]["name"] = m["tensors"][0]["name"].clone();
        }),
        ("listed twice", |m| {
            m["packs"][1]["path"] = m["packs"][0]["path"].clone();
        }),
        ("wanted", |m| m["tensors"][0]["shape"] = json!([1, 2, 3])),
        ("overflows", |m| {
            m["tensors"][0]["shape"] = json!([u64::MAX, u64::MAX]);
        }),
        ("not listed", |m| {
            m["tensors"][0]["source"]["file"] = json!("elsewhere");
        }),
        ("outside its source", |m| {
            m["tensors"][0]["source"]["offset"] = json!(u64::MAX);
        }),
        ("accounted for", |m| {
            m["source_files"][3]["excluded_bytes"] = json!(7);
        }),
        ("counts are", |m| m["counts"]["tensors"] = json!(1)),
        ("tensors end at byte 0", |m| {
            m["tensors"][0]["segment"] = json!("nowhere");
        }),
        ("not listed there", |m| {
            let mut stray = m["tensors"][0].clone();
            (stray["name"], stray["segment"]) = (json!("stray"), json!("nowhere"));
            list(m, "tensors").push(stray);
        }),
        ("kept verbatim", |m| {
            m["source_files"][0]["length"] = json!(1);
        }),
        ("kept verbatim", |m| {
            m["source_files"][0]["sha256"] = json!(null);
        }),
        ("kept verbatim", |m| {
            m["source_files"][0]["excluded_bytes"] = json!(1);
        }),
        ("both a file and a folder", |m| {
            let below = format!("{}/evil", m["source_files"][1]["path"].as_str().unwrap());
            m["source_files"][0]["path"] = json!(below);
        }),
        ("both a file and a folder", |m| {
            let below = format!(
                "{}/evil",
                m["source_files"][1]["stored_as"].as_str().unwrap()
            );
            m["source_files"][0]["stored_as"] = json!(below);
        }),
        ("control characters", |m| {
            m["tensors"][0]["name"] = json!("a\nb");
        }),
    ];
    let mut good = Good::new();
    let pack = good.copy("raw");
    let whole = manifest(&pack);
    for (words, lie) in lies {
        edit_manifest(&pack, lie);
        let findings = assert_found(&pack, "--quick", FindingKind::BadManifest, "manifest.json");
        let printed = findings[0].seen.clone().unwrap();
        assert!(printed.contains(words), "{words:?} is not in {printed:?}");
        segpack!["ls", &pack].exits(3).says(&["manifest.json"]);
        segpack!["unpack", &pack, "-o", pack.with_extension("back")].exits(3);
        edit_manifest(&pack, |m| m.clone_from(&whole));
    }
    // lies that only the files betray
    let quiet: [(FindingKind, Lie); 4] = [
        (FindingKind::WrongHeader, |m| {
            m["tensors"][0]["name"] = json!("another.name");
        }),
        (FindingKind::DamagedTensor, |m| {
            let digest = m["tensors"][1]["sha256"].clone();
            m["tensors"][0]["sha256"] = digest;
        }),
        (FindingKind::DamagedFile, |m| {
            let digest = m["tensors"][1]["sha256"].clone();
            m["source_files"][0]["stored_sha256"] = digest.clone();
            m["source_files"][0]["sha256"] = digest;
        }),
        (FindingKind::WrongHeader, |m| {
            m["tensors"][0]["dtype"] = json!("F16");
        }),
    ];
    for (kind, lie) in quiet {
        edit_manifest(&pack, lie);
        let run = verify(&pack, "").exits(3);
        assert!(
            run.findings().iter().any(|f| f.kind == kind),
            "{kind:?}\n{run}"
        );
        edit_manifest(&pack, |m| m.clone_from(&whole));
    }
}
