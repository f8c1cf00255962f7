//! Packs that no writer of ours makes: refused with a reason, never followed, never a panic.

use std::fs;
use std::path::{Path, PathBuf};

use segpack_formats::digest::Blake3;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::cli::{FindingKind, segpack};
use crate::support::damage::{edit_manifest, list, manifest, range_of, reseal};
use crate::support::folders::{contents, copy, temp};
use crate::support::packs::pack_into;
use crate::support::tiny::{tiny_full, tiny_text, write_file};

/// Words of the error, and what is changed.
type Change<T> = (&'static str, fn(&mut T));

fn packed(codec: &str) -> (TempDir, PathBuf) {
    let folder = temp();
    let out = folder.path().join("pack");
    pack_into(&tiny_full(), &out, &["--codec", codec]);
    (folder, out)
}

/// Every command that reads a pack refuses it, saying this; nothing is written.
fn assert_refused(pack: &Path, words: &[&str]) {
    let back = pack.with_extension("back");
    segpack!["ls", pack].exits(3).says(words);
    segpack!["cat", pack, "thinker.lm_head.weight"]
        .exits(3)
        .says(words);
    segpack!["unpack", pack, "-o", &back].exits(3).says(words);
    assert!(!back.exists());
    for how in ["--quick", "--sums"] {
        let run = segpack!["verify", pack, how, "--json"].exits(3);
        let findings = run.findings();
        assert_eq!(
            (findings.len(), findings[0].kind),
            (1, FindingKind::BadManifest),
            "{run}"
        );
        let text = findings[0].to_string();
        assert!(
            words.iter().all(|word| text.contains(word)),
            "{words:?} are not in {text:?}"
        );
    }
}

#[test]
fn paths_that_leave_the_folder_are_never_followed() {
    let (folder, pack) = packed("raw");
    let whole = manifest(&pack);
    write_file(&folder.path().join("victim"), b"untouched");
    let escapes = [
        "../victim",
        "/etc/passwd",
        "packs/../../victim",
        "packs/./x",
        "packs//x",
        "..",
        "",
        "packs\\..\\x",
        "C:x",
        "packs/a\nb",
    ];
    for escape in escapes {
        for (list, key) in [
            ("packs", "path"),
            ("source_files", "path"),
            ("source_files", "stored_as"),
        ] {
            edit_manifest(&pack, |m| m[list][0][key] = json!(escape));
            assert_refused(&pack, &["manifest.json", "path"]);
        }
        edit_manifest(&pack, |m| m.clone_from(&whole));
    }
    // inside, but not where packs and source files are
    edit_manifest(&pack, |m| {
        m["source_files"][0]["stored_as"] = json!("manifest.json");
    });
    assert_refused(&pack, &["neither in packs/ nor in source/"]);
    assert_eq!(
        fs::read(folder.path().join("victim")).unwrap(),
        b"untouched"
    );
}

#[test]
fn manifests_of_another_time_or_kind() {
    let (_folder, pack) = packed("raw");
    let whole = manifest(&pack);
    let cases: [Change<Value>; 9] = [
        ("newer than", |m| m["format_version"] = json!("2.0")),
        ("newer than", |m| {
            *m = json!({"format_version": "7.1", "all": "different"});
        }),
        ("never written", |m| m["format_version"] = json!("0.9")),
        ("not MAJOR.MINOR", |m| m["format_version"] = json!("one")),
        ("unknown codec", |m| {
            m["segments"][0]["codec"] = json!("entropy9");
        }),
        ("unknown variant", |m| {
            m["segments"][0]["layout"] = json!("tiled");
        }),
        ("64 lower-case hex digits", |m| {
            m["tensors"][0]["sha256"] = json!("ABC");
        }),
        ("missing field `packs`", |m| {
            drop(m.as_object_mut().unwrap().remove("packs"));
        }),
        ("invalid type", |m| m["tensors"] = json!({})),
    ];
    for (words, edit) in cases {
        edit_manifest(&pack, edit);
        assert_refused(&pack, &["manifest.json", words]);
        edit_manifest(&pack, |m| m.clone_from(&whole));
    }
    // a newer minor version adds what an old reader does not know
    edit_manifest(&pack, |m| {
        m["format_version"] = json!("1.9");
        m["novelty"] = json!([1, 2]);
    });
    segpack!["verify", &pack].ok();
    segpack!["unpack", &pack, "-o", pack.with_extension("back")].ok();
}

#[test]
fn manifests_that_are_cut_or_no_json() {
    let (_folder, pack) = packed("raw");
    let text = fs::read(pack.join("manifest.json")).unwrap();
    for length in [0, 1, 100, text.len() / 2, text.len() - 3] {
        fs::write(pack.join("manifest.json"), &text[..length]).unwrap();
        assert_refused(&pack, &["manifest.json", "is not a valid manifest"]);
    }
    for nonsense in [
        &b"null"[..],
        b"[]",
        b"\xff\xfe",
        b"{}",
        b"<html>",
        &b"[".repeat(100_000),
    ] {
        fs::write(pack.join("manifest.json"), nonsense).unwrap();
        assert_refused(&pack, &["manifest.json"]);
    }
}

#[test]
fn folders_that_are_no_packs() {
    let folder = temp();
    let nothing = folder.path().join("nothing");
    segpack!["ls", &nothing]
        .exits(1)
        .says(&["cannot open", "No such file"]);
    segpack!["verify", &nothing]
        .exits(1)
        .says(&["cannot open", "No such file"]);
    segpack!["ls", folder.path()]
        .exits(3)
        .says(&["is not a pack", "manifest.json"]);
    segpack!["ls", tiny_text()]
        .exits(3)
        .says(&["is a checkpoint, not a pack", "segpack pack"]);
    segpack!["verify", tiny_text()].exits(3);
    segpack!["verify", tiny_text().join("config.json")]
        .exits(3)
        .says(&["config.json", "is not a folder"]);
    segpack!["unpack", tiny_text(), "-o", &nothing].exits(3);
    assert!(!nothing.exists());
}

#[test]
fn nothing_is_unpacked_over_anything() {
    let (folder, pack) = packed("raw");
    let out = folder.path().join("out");
    write_file(&out.join("thesis.txt"), b"years of work");
    segpack!["unpack", &pack, "-o", &out]
        .exits(1)
        .says(&["not empty"]);
    segpack!["unpack", &pack, "-o", out.join("thesis.txt")]
        .exits(1)
        .says(&["not a folder"]);
    segpack!["unpack", &pack, "-o", out.join("thesis.txt/below")].exits(1);
    segpack!["unpack", &pack, "-o", pack.join("source/back")]
        .exits(1)
        .says(&["inside"]);
    segpack!["unpack", &pack, "-o", &out, "--include", "no*such"]
        .exits(3)
        .says(&["no*such"]);
    assert_eq!(contents(&out).len(), 1);
    segpack!["verify", &pack].ok();
}

/// The head of a coded segment and its chunks, to bend; digests are made to fit afterwards.
struct Coded {
    bytes: Vec<u8>,
}

const PREFIX: usize = 32;
const ENTRY: usize = 24;

impl Coded {
    fn count(&self) -> usize {
        u32::from_le_bytes(self.bytes[8..12].try_into().unwrap()) as usize
    }

    /// Stored bytes of the first chunk.
    fn first_chunk(&mut self) -> &mut [u8] {
        let start = PREFIX + ENTRY * self.count();
        let length =
            u32::from_le_bytes(self.bytes[PREFIX + 4..PREFIX + 8].try_into().unwrap()) as usize;
        &mut self.bytes[start..start + length]
    }

    fn set32(&mut self, at: usize, value: u32) {
        self.bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }

    fn get32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.bytes[at..at + 4].try_into().unwrap())
    }

    fn seal_chunk(&mut self) {
        let check = Blake3::of(self.first_chunk()).0;
        self.bytes[PREFIX + 16..PREFIX + 24].copy_from_slice(&check[..8]);
    }

    fn seal_table(&mut self) {
        let end = (PREFIX + ENTRY * self.count()).min(self.bytes.len());
        let head = [&self.bytes[..24], &self.bytes[32..end]].concat();
        let check = Blake3::of(&head).0;
        self.bytes[24..32].copy_from_slice(&check[..8]);
    }
}

#[test]
fn coded_streams_that_lie_are_caught_though_every_digest_fits() {
    let (folder, good) = packed("zstd");
    let lies: [Change<Coded>; 15] = [
        ("chunk table is damaged", |c| c.bytes[PREFIX + 20] ^= 1),
        ("begins with", |c| c.bytes[0] = b'X'),
        ("begins with", |c| c.bytes[7] = 2),
        ("after the segment's", |c| c.set32(8, u32::MAX)),
        ("", |c| c.set32(8, 0)),
        ("shared", |c| c.set32(12, 1)),
        ("raw bytes", |c| c.bytes[16] ^= 1),
        ("raw bytes", |c| c.bytes[16..24].fill(255)),
        ("chunk 0", |c| c.set32(PREFIX, u32::MAX)),
        ("chunk", |c| c.set32(PREFIX + 4, u32::MAX)),
        ("chunk", |c| c.set32(PREFIX + 4, 0)),
        ("chunk 0", |c| c.bytes[PREFIX + 8] = 9),
        ("chunk 0", |c| c.bytes[PREFIX + 9] = 1),
        ("zstd", |c| {
            c.first_chunk().reverse();
            c.seal_chunk();
        }),
        ("wanted", |c| {
            // two chunks share their raw bytes differently
            let (first, second) = (c.get32(PREFIX), c.get32(PREFIX + ENTRY));
            c.set32(PREFIX, first + 2);
            c.set32(PREFIX + ENTRY, second - 2);
        }),
    ];
    for (number, (words, lie)) in lies.into_iter().enumerate() {
        let pack = folder.path().join(number.to_string());
        copy(&good, &pack);
        let mut document = manifest(&pack);
        let several = list(&mut document, "segments").iter().find(|s| {
            let bytes = fs::read(pack.join(s["pack"].as_str().unwrap())).unwrap();
            s["codec"] == "zstd" && bytes[range_of(s, "stored_length")][8] > 1
        });
        let segment = several.expect("a coded segment of several chunks").clone();
        let (file, id) = (
            pack.join(segment["pack"].as_str().unwrap()),
            segment["id"].as_str().unwrap(),
        );
        let mut bytes = fs::read(&file).unwrap();
        let range = range_of(&segment, "stored_length");
        let mut coded = Coded {
            bytes: bytes[range.clone()].to_vec(),
        };
        lie(&mut coded);
        if words != "chunk table is damaged" {
            coded.seal_table();
        }
        bytes[range].copy_from_slice(&coded.bytes);
        fs::write(&file, bytes).unwrap();
        reseal(&pack);

        segpack!["verify", &pack, "--quick"].ok();
        let run = segpack!["verify", &pack, "--sums", "--json"].exits(3);
        let findings = run.findings();
        assert!(!findings.is_empty());
        for finding in &findings {
            assert!(
                matches!(
                    finding.kind,
                    FindingKind::DamagedSegment | FindingKind::DamagedTensor
                ),
                "lie {number}: {run}"
            );
            assert_eq!(finding.segment.as_deref(), Some(id), "lie {number}: {run}");
        }
        let printed = findings[0].to_string();
        assert!(
            printed.contains(words),
            "lie {number}: {words:?} is not in {printed:?}"
        );
        segpack!["cat", &pack, id].exits(3);
        let back = pack.with_extension("back");
        segpack!["unpack", &pack, "-o", &back].exits(3);
        segpack!["verify", &pack].exits(3);
    }
}
