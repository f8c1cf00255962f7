//! Packs that earlier versions wrote: every one of them can still be read.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use segpack_formats::digest::Sha256;
use serde_json::json;

use super::newer_packs::{assert_only_unaudited, with_unknown_words};
use crate::support::checkpoint::fixtures;
use crate::support::cli::{Run, segpack};
use crate::support::folders::{contents, copy, temp};
use crate::support::tiny::{Qwen3Moe, Tensor, Tiny};

/// `vN/CODEC` are packs of `vN/checkpoint.sha256`'s files, written when that was the newest format.
/// `v1-weights` has the codecs that came later, and values that look like weights.
fn places() -> Vec<PathBuf> {
    let all = fs::read_dir(fixtures().join("packs")).into_iter().flatten();
    let mut places: Vec<PathBuf> = all.map(|e| e.unwrap().path()).collect();
    places.sort();
    assert!(!places.is_empty());
    places
}

/// The packs of a place, by codec.
fn codecs(place: &Path) -> Vec<String> {
    let entries = fs::read_dir(place).unwrap().map(|e| e.unwrap());
    let folders = entries.filter(|e| e.file_type().unwrap().is_dir());
    let mut names: Vec<String> = folders
        .map(|e| e.file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn digests(folder: &Path) -> String {
    let files = contents(folder);
    files
        .iter()
        .map(|(name, bytes)| format!("{}  {name}\n", Sha256::of(bytes)))
        .collect()
}

#[test]
fn packs_of_every_version_are_verified_and_unpacked() {
    assert_eq!(
        places().iter().map(|p| codecs(p).len()).collect::<Vec<_>>(),
        [2, 2, 2, 1, 2]
    );
    for place in places() {
        let wanted = fs::read_to_string(place.join("checkpoint.sha256")).unwrap();
        let folder = temp();
        for codec in codecs(&place) {
            let (pack, back) = (
                folder.path().join(&codec),
                folder.path().join(format!("{codec}-back")),
            );
            copy(&place.join(&codec), &pack);
            if place.ends_with("v1.1-words") {
                let run = segpack!["verify", &pack, "--sums", "--allow-unaudited", "--json"].ok();
                assert_only_unaudited(&run);
            } else {
                let report = segpack!["verify", &pack, "--sums", "--json"].ok().json();
                assert_eq!(report["findings"], json!([]), "{}", place.display());
                assert_eq!(report["completeness"], "complete", "{}", place.display());
            }
            segpack!["unpack", &pack, "-o", &back].ok();
            assert_eq!(digests(&back), wanted, "{}", place.display());
            let row = segpack!["cat", &pack, "model.embed_tokens.weight", "--rows", "7"]
                .ok()
                .stdout;
            match place.ends_with("v1-weights") {
                true => assert_eq!(row.len(), 64),
                false => assert!(row == [1, 0].repeat(16)),
            }
            assert!(
                segpack!["ls", &pack, "--json"]
                    .ok()
                    .text()
                    .contains(&format!("\"codec\":\"{codec}\""))
            );
        }
    }
}

fn run_of(pack: &Path) -> Run {
    segpack![
        "run",
        pack,
        "--prompt-ids",
        "1,2,3",
        "--max-new-tokens",
        "4",
        "--greedy",
        "--json"
    ]
}

/// One line for each token that a run chose.
fn tokens_of(run: &Run) -> Vec<String> {
    let tokens = run.text().lines().filter(|line| line.contains("\"index\""));
    tokens.map(str::to_owned).collect()
}

/// The same tokens from every pack of a checkpoint, of whatever version and codec.
#[test]
fn packs_of_every_version_are_run() {
    let mut tokens: BTreeMap<String, Vec<Vec<String>>> = BTreeMap::new();
    for place in places() {
        let checkpoint = fs::read_to_string(place.join("checkpoint.sha256")).unwrap();
        for codec in codecs(&place) {
            let run = run_of(&place.join(&codec));
            if place.ends_with("v1.1-words") {
                run.exits(3)
                    .says(&["family \"foo_moe\" is not one that this build can run"]);
            } else {
                let tokens = tokens.entry(checkpoint.clone()).or_default();
                tokens.push(tokens_of(&run.ok()));
            }
        }
    }
    let packs: Vec<usize> = tokens.values().map(Vec::len).collect();
    assert_eq!(packs.iter().sum::<usize>(), 8, "{tokens:?}");
    for packs in tokens.values() {
        assert_eq!(packs[0].len(), 4, "{packs:?}");
        assert!(packs.iter().all(|pack| *pack == packs[0]), "{packs:?}");
    }
}

/// What the fixtures are made of: little, but with a dense and a sparse layer and a segment that
/// shrinks.
fn checkpoint() -> Tiny {
    let size = Qwen3Moe {
        layers: 2,
        experts: 2,
        hidden: 16,
        width: 8,
        shards: 2,
    };
    let mut tiny = Tiny::qwen3_moe(size);
    let rows = 200;
    tiny.config["vocab_size"] = json!(rows);
    *tiny.tensor("model.embed_tokens.weight") = Tensor {
        shape: vec![rows, 16],
        bytes: [1, 0].repeat(rows as usize * 16),
        ..Tensor::noise("model.embed_tokens.weight", &[1])
    };
    tiny
}

/// Little but an embedding of noise like weights, long enough for every method.
fn weights() -> Tiny {
    let mut tiny = Tiny::qwen3_moe(Qwen3Moe {
        layers: 2,
        experts: 2,
        hidden: 32,
        width: 16,
        shards: 1,
    });
    let rows = 1500;
    tiny.config["vocab_size"] = json!(rows);
    *tiny.tensor("model.embed_tokens.weight") =
        Tensor::noise("model.embed_tokens.weight", &[rows, 32]);
    tiny
}

/// Writes the fixtures that are not there yet: once, when their format is settled.
#[test]
#[ignore = "writes tests/fixtures/packs"]
fn write_the_missing_fixtures() {
    write_fixture("v1", &checkpoint(), ["raw", "zstd"]);
    write_fixture("v1-weights", &weights(), ["bf16-zstd", "bf16-rans"]);
    write_fixture("v1.1", &checkpoint(), ["raw", "bf16-rans"]);
    write_fixture("v1.2", &checkpoint(), ["raw", "zstd"]);
    let words = fixtures().join("packs/v1.1-words");
    if !words.exists() {
        copy(&fixtures().join("packs/v1.1/raw"), &words.join("raw"));
        with_unknown_words(&words.join("raw"));
        let digests = fixtures().join("packs/v1.1/checkpoint.sha256");
        fs::copy(digests, words.join("checkpoint.sha256")).unwrap();
    }
}

/// A fixture is never written again: it is what was written then.
fn write_fixture(name: &str, tiny: &Tiny, codecs: [&str; 2]) {
    let place = fixtures().join("packs").join(name);
    if place.exists() {
        return;
    }
    let folder = temp();
    let checkpoint = tiny.write(&folder.path().join("checkpoint"));
    for codec in codecs {
        let out = folder.path().join(codec);
        segpack![
            "pack",
            &checkpoint,
            "-o",
            &out,
            "--codec",
            codec,
            "--no-provenance"
        ]
        .ok();
        let bytes: usize = contents(&out).values().map(Vec::len).sum();
        assert!(
            bytes < 150_000,
            "{bytes} bytes are too many for a repository"
        );
    }
    for codec in codecs {
        copy(&folder.path().join(codec), &place.join(codec));
    }
    fs::write(place.join("checkpoint.sha256"), digests(&checkpoint)).unwrap();
}
