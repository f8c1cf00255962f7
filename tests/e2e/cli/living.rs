//! What one asks of packs that one has: `info`, receipts, `ls`, side files.

use std::fs;

use serde_json::Value;

use crate::support::cli::{packed, segpack};
use crate::support::damage::manifest;
use crate::support::folders::temp;
use crate::support::packs::pack_into;
use crate::support::tiny::tiny_full;

fn info_of(pack: &std::path::Path) -> Value {
    segpack!["info", pack, "--json"].ok().json()
}

#[test]
fn info_adds_up_for_every_codec() {
    let folder = temp();
    for codec in ["raw", "zstd", "bf16-rans"] {
        let pack = folder.path().join(codec);
        pack_into(&tiny_full(), &pack, &["--codec", codec]);
        let (info, manifest) = (info_of(&pack), manifest(&pack));
        assert_eq!(info["options"]["codec"], codec);
        assert_eq!(info["counts"], manifest["counts"]);
        let rows = info["components"].as_array().unwrap();
        for key in ["packs", "tensors", "parameters"] {
            let sum: u64 = rows.iter().map(|row| row[key].as_u64().unwrap()).sum();
            assert_eq!(info["counts"][key], sum, "{key}");
        }
        let stored: u64 = rows
            .iter()
            .map(|r| r["stored_bytes"].as_u64().unwrap())
            .sum();
        assert_eq!(info["stored_bytes"], stored);
        let on_disk: u64 = fs::read_dir(pack.join("packs"))
            .unwrap()
            .map(|e| e.unwrap().metadata().unwrap().len())
            .sum();
        assert_eq!(stored, on_disk);
        assert_eq!(info["verified"], Value::Null);
    }
}

#[test]
fn info_reads_no_weights() {
    let folder = temp();
    let pack = packed(&tiny_full(), folder.path());
    let before = info_of(&pack);
    fs::remove_dir_all(pack.join("packs")).unwrap();
    assert_eq!(info_of(&pack), before);
    segpack!["info", folder.path().join("nothing")].exits(1);
    segpack!["info", tiny_full()]
        .exits(3)
        .says(&["is a checkpoint"]);
}

#[test]
fn a_receipt_says_what_was_verified_and_whether_files_changed_since() {
    let folder = temp();
    let pack = packed(&tiny_full(), folder.path());
    let receipt = folder.path().join("receipt.json");
    let said = |receipt: &std::path::Path| {
        let run = segpack!["info", &pack, "--receipt", receipt, "--json"];
        run.ok().json()["verified"].clone()
    };
    let inside = pack.join("receipt.json");
    let run = segpack!["verify", &pack, "--receipt", &inside];
    run.exits(1).says(&["lies inside the input"]);
    let foreign = folder.path().join("notes.txt");
    fs::write(&foreign, "mine").unwrap();
    segpack!["verify", &pack, "--receipt", &foreign].exits(1);
    assert_eq!(fs::read(&foreign).unwrap(), b"mine");
    segpack!["info", &pack, "--receipt", &foreign].exits(3);

    segpack!["verify", &pack, "--quick", "--receipt", &receipt].ok();
    segpack!["verify", &pack, "--receipt", &receipt].ok();
    let verified = said(&receipt);
    assert_eq!(verified["since"], "unchanged");
    assert_eq!(verified["receipt"]["report"]["mode"], "full");
    let time = verified["receipt"]["time"].as_str().unwrap();
    assert!(time.len() == 20 && time.ends_with('Z'), "{time}");

    // the same bytes written again are another time
    let file = pack.join("packs/code2wav.safetensors");
    fs::write(&file, fs::read(&file).unwrap()).unwrap();
    let verified = said(&receipt);
    assert_eq!(verified["since"], "changed");
    assert_eq!(verified["changed"], "packs/code2wav.safetensors");
    let other = folder.path().join("other");
    pack_into(&tiny_full(), &other, &["--codec", "zstd"]);
    let run = segpack!["info", &other, "--receipt", &receipt, "--json"];
    assert_eq!(run.ok().json()["verified"]["since"], "other_pack");
    // a pack holds no times: it is the pack that it was
    segpack!["verify", &pack].ok();
}
