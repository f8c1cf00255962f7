//! What one asks of packs that one has: `info`, receipts, `ls`, side files.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde_json::Value;

use crate::support::cli::{packed, run, segpack};
use crate::support::damage::{flip, manifest, resize};
use crate::support::folders::temp;
use crate::support::packs::pack_into;
use crate::support::tiny::{Qwen3Moe, Tensor, Tiny, tiny_full};

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
    let printed = |receipt: &std::path::Path| {
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
    let verified = printed(&receipt);
    assert_eq!(verified["since"], "unchanged");
    #[cfg(unix)]
    {
        // others may read it as any file of the user
        use std::os::unix::fs::PermissionsExt;
        let mode = |path| fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode(&receipt), mode(&foreign));
    }
    assert_eq!(verified["receipt"]["report"]["mode"], "full");
    let time = verified["receipt"]["time"].as_str().unwrap();
    assert!(time.len() == 20 && time.ends_with('Z'), "{time}");

    // the same bytes written again are another time
    let file = pack.join("packs/code2wav.safetensors");
    fs::write(&file, fs::read(&file).unwrap()).unwrap();
    let verified = printed(&receipt);
    assert_eq!(verified["since"], "changed");
    assert_eq!(verified["changed"], "packs/code2wav.safetensors");
    let other = folder.path().join("other");
    pack_into(&tiny_full(), &other, &["--codec", "zstd"]);
    let run = segpack!["info", &other, "--receipt", &receipt, "--json"];
    assert_eq!(run.ok().json()["verified"]["since"], "other_pack");
    // a pack holds no times: it is the pack that it was
    segpack!["verify", &pack].ok();
}

/// What `info` says of a receipt: whether files changed since, and the first of them.
fn since(pack: &Path, receipt: &Path) -> (String, Option<String>) {
    let run = segpack!["info", pack, "--receipt", receipt, "--json"];
    let verified = run.ok().json()["verified"].clone();
    let text = |value: &Value| value.as_str().map(str::to_owned);
    (
        text(&verified["since"]).unwrap(),
        text(&verified["changed"]),
    )
}

#[track_caller]
fn assert_changed(pack: &Path, receipt: &Path, path: &str) {
    let wanted = ("changed".to_owned(), Some(path.to_owned()));
    assert_eq!(since(pack, receipt), wanted, "{path}");
}

fn modified(path: &Path) -> SystemTime {
    fs::metadata(path).unwrap().modified().unwrap()
}

fn set_modified(path: &Path, time: SystemTime) {
    let file = File::options().write(true).open(path).unwrap();
    file.set_modified(time).unwrap();
}

/// A pack with sums, and a receipt of it.
fn with_receipt(folder: &Path) -> (PathBuf, PathBuf) {
    let (pack, receipt) = (folder.join("pack"), folder.join("receipt.json"));
    pack_into(&tiny_full(), &pack, &[]);
    segpack!["verify", &pack, "--receipt", &receipt].ok();
    (pack, receipt)
}

#[test]
fn a_receipt_names_the_file_whose_time_length_or_presence_changed() {
    const FILE: &str = "packs/thinker.vision.safetensors";
    let folder = temp();
    let (pack, receipt) = with_receipt(folder.path());
    let unchanged = ("unchanged".to_owned(), None);
    for path in [FILE, "source/config.json", "manifest.json", "SHA256SUMS"] {
        let file = pack.join(path);
        let before = modified(&file);
        set_modified(&file, before + Duration::from_nanos(1000));
        assert_changed(&pack, &receipt, path);
        set_modified(&file, before);
        assert_eq!(since(&pack, &receipt), unchanged, "{path}");
    }
    // another length at the same time
    let file = pack.join(FILE);
    let (bytes, before) = (fs::read(&file).unwrap(), modified(&file));
    resize(&file, 1);
    set_modified(&file, before);
    assert_changed(&pack, &receipt, FILE);
    fs::write(&file, bytes).unwrap();
    set_modified(&file, before);
    assert_eq!(since(&pack, &receipt), unchanged);
    // gone
    let elsewhere = folder.path().join("elsewhere");
    fs::rename(&file, &elsewhere).unwrap();
    assert_changed(&pack, &receipt, FILE);
    // a link is not the file that was verified, whatever it leads to
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(&elsewhere, &file).unwrap();
        assert_changed(&pack, &receipt, FILE);
        fs::remove_file(&file).unwrap();
    }
    // there again, after a verification that missed it
    segpack!["verify", &pack, "--receipt", &receipt].exits(3);
    assert_eq!(since(&pack, &receipt), unchanged);
    fs::rename(&elsewhere, &file).unwrap();
    assert_changed(&pack, &receipt, FILE);
}

#[test]
fn a_receipt_has_no_values_and_is_read_only_if_it_is_one() {
    let folder = temp();
    let (pack, receipt) = with_receipt(folder.path());
    segpack!["verify", &pack, "--values", "--receipt", &receipt].ok();
    let mut document: Value = serde_json::from_slice(&fs::read(&receipt).unwrap()).unwrap();
    let report = &document["report"];
    assert!(report["ok"] == true && report.get("values").is_none());
    let refused = |word: &str| {
        segpack!["info", &pack, "--receipt", &receipt]
            .exits(3)
            .says(&["receipt.json", word]);
        // what cannot be read is not replaced
        let before = fs::metadata(&receipt).unwrap().len();
        segpack!["verify", &pack, "--quick", "--receipt", &receipt].exits(1);
        assert_eq!(fs::metadata(&receipt).unwrap().len(), before);
    };
    document["format_version"] = "99.0".into();
    fs::write(&receipt, document.to_string()).unwrap();
    refused("99.0");
    // a hole, which takes no room: more than a receipt of any pack
    File::options()
        .write(true)
        .open(&receipt)
        .unwrap()
        .set_len((256 << 20) + 1)
        .unwrap();
    refused("over the limit");
}

#[test]
fn cat_writes_the_files_of_the_checkpoint() {
    let folder = temp();
    let pack = packed(&tiny_full(), folder.path());
    let cat = |name: &str| segpack!["cat", &pack, name];
    for name in ["config.json", "./config.json", "merges.txt"] {
        let file = tiny_full().join(name);
        assert_eq!(cat(name).ok().stdout, fs::read(file).unwrap(), "{name}");
    }
    let both = segpack!["cat", &pack, "config.json", "thinker.lm_head.weight"].ok();
    let head = cat("thinker.lm_head.weight").ok().stdout;
    assert!(both.stdout.ends_with(&head) && both.stdout.starts_with(b"{"));
    for (name, status, words) in [
        ("nothing.json", 3, "no tensor, segment or file named"),
        (
            "./thinker.lm_head.weight",
            3,
            "no tensor, segment or file named",
        ),
        ("../manifest.json", 3, "no tensor, segment or file named"),
        ("manifest.json", 3, "no tensor, segment or file named"),
        ("model-00001-of-00004.safetensors", 3, "unpack --include"),
    ] {
        cat(name).exits(status).says(&[words]);
    }
    let rows = segpack!["cat", &pack, "config.json", "--rows", "0..1"];
    rows.exits(2).says(&["rows are taken from a tensor"]);
    flip(&pack.join("source/config.json"), 5);
    cat("config.json").exits(3).says(&["is damaged"]);
}

/// A tensor that has the name of a file comes first; `./` is always the file.
#[test]
fn a_tensor_that_is_named_like_a_file() {
    let folder = temp();
    let mut tiny = Tiny::qwen3_moe(Qwen3Moe::default());
    tiny.shards[0].1.push(Tensor::noise("notes.txt", &[4]));
    tiny.files
        .push(("notes.txt".to_owned(), b"a file".to_vec()));
    let checkpoint = tiny.write(&folder.path().join("checkpoint"));
    let pack = folder.path().join("pack");
    segpack!["pack", &checkpoint, "-o", &pack, "--allow-unclassified"].ok();
    let cat = |name: &str| segpack!["cat", &pack, name].ok().stdout;
    assert_eq!(cat("notes.txt").len(), 8);
    assert_eq!(cat("./notes.txt"), b"a file");
}

#[test]
fn ls_sorts_sums_and_shows_sizes() {
    let folder = temp();
    let pack = folder.path().join("pack");
    pack_into(&tiny_full(), &pack, &["--codec", "zstd"]);
    let lines = |options: &[&str]| -> Vec<String> {
        let mut arguments: Vec<std::ffi::OsString> = vec!["ls".into(), (&pack).into()];
        arguments.extend(options.iter().map(Into::into));
        let run = run(&arguments).ok();
        run.text().lines().map(str::to_owned).collect()
    };
    let sizes = |lines: &[String]| -> Vec<u64> {
        let first = |line: &String| line.split_whitespace().next().unwrap().parse().unwrap();
        lines.iter().map(first).collect()
    };
    let all = lines(&["--bytes"]);
    let mut by_size = lines(&["--bytes", "--sort", "size"]);
    assert!(sizes(&by_size).is_sorted_by(|a, b| a >= b));
    let reversed = lines(&["--bytes", "--sort", "size", "--reverse"]);
    by_size.reverse();
    assert_eq!(by_size, reversed);
    let mut sorted = all.clone();
    sorted.sort();
    by_size.sort();
    assert_eq!(sorted, by_size, "the same lines in another order");

    let summed = lines(&["--bytes", "--sum"]);
    let (total, rest) = summed.split_last().unwrap();
    assert_eq!(rest, all);
    let sum: u64 = sizes(&all).iter().sum();
    let count = all.len();
    assert!(
        total.contains(&format!("{sum}  total of {count} segments (")),
        "{total}"
    );
    let experts = lines(&["thinker.*.layers.1.experts.*", "--sort", "layer"]);
    let ends: Vec<&str> = experts
        .iter()
        .map(|l| l.rsplit('.').next().unwrap())
        .collect();
    assert_eq!(ends[..3], ["0", "1", "2"]);
    assert!(lines(&[])[0].contains("kB"), "human sizes by default");
    segpack!["ls", &pack, "--sum", "--json"].exits(2);
}

/// Every command that takes `--json`, failing.
#[test]
fn a_command_that_fails_prints_a_document_with_json() {
    let folder = temp();
    let nothing = folder.path().join("nothing");
    let pack = packed(&tiny_full(), folder.path());
    flip(&pack.join("packs/code2wav.safetensors"), -3);
    let out = folder.path().join("out");
    let of = |words: &[&str]| -> Value {
        let mut arguments: Vec<std::ffi::OsString> = Vec::new();
        for word in words {
            arguments.push(match *word {
                "PACK" => (&pack).into(),
                "NOTHING" => (&nothing).into(),
                "OUT" => (&out).into(),
                word => word.into(),
            });
        }
        arguments.push("--json".into());
        let run = run(&arguments);
        let document = run.json();
        assert_eq!(document["error"], true, "{run}");
        assert_eq!(
            document["exit_status"].as_i64(),
            run.status.map(i64::from),
            "{run}"
        );
        let message = document["message"].as_str().unwrap();
        assert!(run.stderr.contains(message), "{run}");
        document
    };
    for words in [
        &["scan", "NOTHING"][..],
        &["pack", "NOTHING", "-o", "OUT"],
        &["pack", "NOTHING", "-o", "OUT", "--dry-run"],
        &["verify", "NOTHING"],
        &["info", "NOTHING"],
        &["ls", "NOTHING"],
        &["diff", "NOTHING", "PACK"],
        &["unpack", "NOTHING", "-o", "OUT"],
        &["repack", "NOTHING", "--codec", "zstd", "-o", "OUT"],
        &["repair", "NOTHING", "--from", "PACK"],
        &["update", "NOTHING", "--from", "PACK"],
        &["export", "NOTHING", "--to", "npy", "-o", "OUT"],
        &["run", "NOTHING", "--prompt", "x"],
        &["bench", "NOTHING"],
        &["validate", "NOTHING", "--reference", "x.json"],
    ] {
        let document = of(words);
        assert!(
            ["environment", "input"].contains(&document["kind"].as_str().unwrap()),
            "{words:?}"
        );
    }
    let damaged = of(&["unpack", "PACK", "-o", "OUT"]);
    assert_eq!(
        (&damaged["kind"], &damaged["exit_status"]),
        (&"input".into(), &3.into())
    );
    assert!(!damaged["findings"].as_array().unwrap().is_empty());
    // wrong command lines, of options and of values
    let usage = of(&["scan", "--nonsense"]);
    assert_eq!(usage["kind"], "usage");
    let level = of(&["pack", "NOTHING", "-o", "OUT", "--level", "3"]);
    assert_eq!(
        (&level["kind"], level["hint"].is_string()),
        (&"usage".into(), true)
    );
    assert_eq!(of(&["nonsense"])["kind"], "usage");
    // without --json nothing is on standard output
    assert!(segpack!["scan", &nothing].exits(1).stdout.is_empty());
}

/// A log says at once what goes on; a quiet run says nothing.
#[test]
fn a_log_begins_with_what_is_done() {
    let folder = temp();
    let pack = packed(&tiny_full(), folder.path());
    let loud = segpack!["verify", &pack].ok();
    assert!(loud.stderr.starts_with("verifying: "), "{loud}");
    let quiet = segpack!["verify", &pack, "-q"].ok();
    assert_eq!(quiet.stderr, "");
}
