//! Checkpoints that are not what they should be: one clear error each, and nothing written.

use std::fs;
use std::path::{Path, PathBuf};

use segpack_formats::digest::Sha256;
use serde_json::{Value, json};

use crate::support::cli::{Finding, FindingKind, Run, segpack};
use crate::support::damage::{flip, resize};
use crate::support::folders::{contents, temp};
use crate::support::tiny::{
    INDEX, Qwen3Moe, Tiny, bf16_bytes, shard_bytes, shard_with_header, tensors_of, tiny_full,
    write_file,
};

const FIRST: &str = "model-00001-of-00003.safetensors";
const SECOND: &str = "model-00002-of-00003.safetensors";

fn tiny() -> Tiny {
    Tiny::qwen3_moe(Qwen3Moe {
        layers: 3,
        experts: 4,
        ..Qwen3Moe::default()
    })
}

/// `scan` and `pack` refuse it with exit status 3 and this finding; nothing is written, nothing
/// changed.
#[track_caller]
fn assert_refused(folder: &Path, kind: FindingKind, words: &[&str]) -> Vec<Finding> {
    let run = segpack!["scan", folder, "--json"].exits(3);
    let findings = run.findings();
    // standard error has nothing but the hint
    let says = |f: &Finding| {
        let text = format!("{f}\n{}", run.stderr);
        words.iter().all(|word| text.contains(word))
    };
    assert!(
        findings.iter().any(|f| f.kind == kind && says(f)),
        "no {kind:?} with {words:?}\n{run}"
    );
    let before = contents(folder);
    let parent = temp();
    for out in [
        parent.path().join("out"),
        parent.path().join("not/there/yet"),
    ] {
        segpack!["pack", folder, "-o", &out].exits(3).says(words);
        segpack!["pack", folder, "-o", &out, "--dry-run"]
            .exits(3)
            .says(words);
    }
    assert_eq!(
        contents(parent.path()).into_keys().collect::<Vec<_>>(),
        [""],
        "something was written"
    );
    assert!(contents(folder) == before, "the checkpoint was changed");
    findings
}

/// What a weight file may hold instead of tensors.
fn shard_cases() -> Vec<(&'static str, Vec<u8>)> {
    let one = |dtype: &str, shape: &str, offsets: &str| {
        format!(r#"{{"t":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#)
            .into_bytes()
    };
    let two = |a: &str, b: &str| {
        let entry = |offsets| format!(r#"{{"dtype":"U8","shape":[4],"data_offsets":{offsets}}}"#);
        format!(r#"{{"a":{},"b":{}}}"#, entry(a), entry(b)).into_bytes()
    };
    let named = |name: &str| {
        format!(r#"{{"{name}":{{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}}}"#).into_bytes()
    };
    let raw = shard_with_header;
    vec![
        ("has 0 bytes", Vec::new()),
        ("has 7 bytes", b"1234567".to_vec()),
        ("header length (byte 0) is 0", vec![0; 64]),
        (
            "only 56 bytes follow",
            [&1000_u64.to_le_bytes()[..], &[b' '; 56]].concat(),
        ),
        (
            "is 18446744073709551615",
            [&[255; 8][..], &[b' '; 56]].concat(),
        ),
        ("not UTF-8", raw(b"{\"\xff\":1}", 0)),
        ("must be a JSON object", raw(b"[1,2]", 0)),
        ("must be a JSON object", raw("\u{feff}{}".as_bytes(), 0)),
        ("not a valid tensor table", raw(b"{\"a\":", 0)),
        (
            "bytes follow the last tensor",
            raw(&one("U8", "[4]", "[0,4]"), 5),
        ),
        ("is cut off", raw(&one("U8", "[4]", "[0,4]"), 3)),
        ("appears twice", raw(&two("[0,4]", "[4,8]").replace_b(), 8)),
        ("ranges overlap", raw(&two("[0,4]", "[3,7]"), 7)),
        ("ranges overlap", raw(&two("[0,4]", "[0,4]"), 4)),
        ("belong to no tensor", raw(&two("[0,4]", "[5,9]"), 9)),
        ("end before they begin", raw(&one("U8", "[4]", "[4,0]"), 4)),
        ("invalid value", raw(&one("U8", "[4]", "[-1,3]"), 4)),
        ("takes 16", raw(&one("F32", "[4]", "[0,4]"), 4)),
        (
            "overflows 64 bits",
            raw(&one("BF16", "[2,9223372036854775808]", "[0,4]"), 4),
        ),
        ("unknown dtype \"Q4\"", raw(&one("Q4", "[4]", "[0,4]"), 4)),
        ("empty name", raw(&named(""), 1)),
        ("control character", raw(&named("a\\u0000"), 1)),
        ("control character", raw(&named("a\\nb"), 1)),
        ("control character", raw(&named("\\u001b[2J"), 1)),
        ("path component", raw(&named("../../etc/passwd"), 1)),
        (
            "git-lfs pointer",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n".to_vec(),
        ),
        (
            "web page",
            b"<!DOCTYPE html><html><body>401 Unauthorized</body></html>".to_vec(),
        ),
        (
            "web page",
            b"\n  <html lang=en><head><title>Sign in</title></head></html>".to_vec(),
        ),
    ]
}

trait Twice {
    fn replace_b(self) -> Vec<u8>;
}

impl Twice for Vec<u8> {
    /// The second name becomes the first one, spelt with an escape.
    fn replace_b(self) -> Vec<u8> {
        String::from_utf8(self)
            .unwrap()
            .replace("\"b\"", "\"\\u0061\"")
            .into_bytes()
    }
}

#[test]
fn every_kind_of_malformed_shard_is_named() {
    let folder = temp();
    tiny().write(folder.path());
    for (words, bytes) in shard_cases() {
        fs::write(folder.path().join(SECOND), bytes).unwrap();
        let findings = assert_refused(folder.path(), FindingKind::MalformedShard, &[SECOND, words]);
        // what the shard should hold is not reported too; of files that can be read, what they lack
        // still is
        assert!(
            findings
                .iter()
                .all(|f| f.kind != FindingKind::MissingTensor),
            "{findings:?}"
        );
    }
}

#[test]
fn a_shard_that_cannot_be_read_does_not_hide_what_others_lack() {
    let (folder, mut tiny) = (temp(), tiny().stacked());
    tiny.remove(NORM);
    tiny.write(folder.path());
    resize(&folder.path().join(SECOND), -1);
    let findings = assert_refused(folder.path(), FindingKind::MissingTensor, &[NORM]);
    let kinds: Vec<_> = findings.iter().map(|f| f.kind).collect();
    assert_eq!(
        kinds,
        [FindingKind::MalformedShard, FindingKind::MissingTensor],
        "{findings:?}"
    );
    // the only shard, without an index
    let folder = temp();
    self::tiny().single().write(folder.path());
    resize(&folder.path().join("model.safetensors"), -1);
    let findings = assert_refused(folder.path(), FindingKind::MalformedShard, &["cut off"]);
    assert_eq!(findings.len(), 1, "{findings:?}");
}

#[test]
fn one_shard_of_several_is_told_so() {
    let folder = temp();
    tiny().write(folder.path());
    let shard = folder.path().join(FIRST);
    let words = [
        FIRST,
        "is one shard of several (an index lies beside it)",
        "the folder",
    ];
    let run = segpack!["pack", &shard, "-o", folder.path().join("out")]
        .exits(3)
        .says(&words);
    assert!(!run.stderr.contains("config.json"), "{run}");
    let run = segpack!["scan", &shard].exits(3);
    assert!(words.iter().all(|word| run.text().contains(word)), "{run}");
    segpack!["scan", &shard, "--allow-unclassified"].exits(3);
    segpack!["scan", &shard, "--allow-unaudited"].ok();
}

#[test]
fn a_header_over_the_limit_is_not_read() {
    let folder = temp();
    tiny().write(folder.path());
    let path = folder.path().join(SECOND);
    fs::write(&path, 100_000_001_u64.to_le_bytes()).unwrap();
    fs::File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(1 << 40)
        .unwrap();
    let run = segpack!["scan", folder.path(), "--json"].exits(3);
    assert!(
        run.text().contains("over the limit of 100000000 bytes"),
        "{run}"
    );
}

/// What was done to a checkpoint (or its files), the finding, and words of it.
type Case<T> = (fn(&mut T), FindingKind, &'static [&'static str]);

fn edit_index(folder: &Path, edit: impl FnOnce(&mut Value)) {
    let mut index: Value = serde_json::from_slice(&fs::read(folder.join(INDEX)).unwrap()).unwrap();
    edit(&mut index);
    fs::write(folder.join(INDEX), index.to_string()).unwrap();
}

const NORM: &str = "model.norm.weight";

#[test]
fn files_that_do_not_fit_together_are_named() {
    let cases: [Case<PathBuf>; 21] = [
        (
            |at| fs::remove_file(at.join(SECOND)).unwrap(),
            FindingKind::MissingShard,
            &[SECOND, "is not there"],
        ),
        (
            |at| fs::rename(at.join(SECOND), at.join(SECOND.to_owned() + ".incomplete")).unwrap(),
            FindingKind::MissingShard,
            &[SECOND, ".incomplete", "did not finish"],
        ),
        (
            |at| resize(&at.join(SECOND), -1),
            FindingKind::MalformedShard,
            &[SECOND, "cut off"],
        ),
        (
            |at| edit_index(at, |i| i["weight_map"][NORM] = json!(FIRST)),
            FindingKind::NotInShard,
            &[NORM, FIRST, "it is in model-00003"],
        ),
        (
            |at| edit_index(at, |i| i["weight_map"]["model.more.weight"] = json!(FIRST)),
            FindingKind::NotInShard,
            &["model.more.weight", "no shard holds it"],
        ),
        (|at| forget(at, NORM), FindingKind::NotInIndex, &[NORM]),
        (
            |at| {
                let copy = tensors_of(&fs::read(at.join(FIRST)).unwrap()).remove(0);
                let mut tensors = tensors_of(&fs::read(at.join(SECOND)).unwrap());
                tensors.push(copy);
                fs::write(at.join(SECOND), shard_bytes(&tensors)).unwrap();
            },
            FindingKind::DuplicateTensor,
            &["model.embed_tokens.weight", FIRST, SECOND],
        ),
        (
            |at| edit_index(at, |i| i["metadata"]["total_size"] = json!(17)),
            FindingKind::WrongTotalSize,
            &["total_size is 17"],
        ),
        (
            |at| edit_index(at, |i| i["metadata"]["total_size"] = json!(-1)),
            FindingKind::MalformedIndex,
            &["total_size is -1"],
        ),
        (
            |at| edit_index(at, |i| i["weight_map"][NORM] = json!("/etc/passwd")),
            FindingKind::MalformedIndex,
            &[NORM, "/etc/passwd", "leaves its folder"],
        ),
        (
            |at| edit_index(at, |i| i["weight_map"][NORM] = json!("../x.safetensors")),
            FindingKind::MalformedIndex,
            &[NORM, "../x.safetensors", "leaves its folder"],
        ),
        (
            |at| fs::write(at.join(INDEX), "{").unwrap(),
            FindingKind::MalformedIndex,
            &[INDEX],
        ),
        (
            |at| fs::write(at.join(INDEX), r#"{"weight_map":{"a":"x","a":"y"}}"#).unwrap(),
            FindingKind::MalformedIndex,
            &["appears twice"],
        ),
        (
            |at| fs::remove_file(at.join(INDEX)).unwrap(),
            FindingKind::MalformedIndex,
            &["3 weight files"],
        ),
        (
            |at| {
                fs::copy(at.join(INDEX), at.join("other.safetensors.index.json"))
                    .map(drop)
                    .unwrap();
            },
            FindingKind::MalformedIndex,
            &["one of 2 indexes"],
        ),
        (
            |at| {
                write_file(
                    &at.join("adapter.safetensors"),
                    &shard_with_header(b"{}", 0),
                );
            },
            FindingKind::UnlistedShard,
            &["adapter.safetensors", "--extra keep"],
        ),
        (
            |at| write_file(&at.join("old/pytorch_model.bin"), b"PK"),
            FindingKind::UnlistedShard,
            &["old/pytorch_model.bin"],
        ),
        (
            |at| fs::write(at.join("config.json"), "{").unwrap(),
            FindingKind::BadConfig,
            &["config.json"],
        ),
        (
            |at| fs::write(at.join("config.json"), r#"{"model_type":"mamba"}"#).unwrap(),
            FindingKind::UnknownFamily,
            &["mamba", "this version knows", "--allow-unclassified"],
        ),
        (
            |at| {
                fs::write(
                    at.join("config.json"),
                    r#"{"model_type":"qwen3_moe","model_type":"x"}"#,
                )
                .unwrap();
            },
            FindingKind::BadConfig,
            &["appears twice"],
        ),
        (
            |at| {
                let pointer =
                    b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 11\n";
                write_file(&at.join("merges.txt"), pointer);
            },
            FindingKind::GitLfsPointer,
            &["merges.txt", "git lfs pull"],
        ),
    ];
    for (change, kind, words) in cases {
        let folder = temp();
        tiny().write(folder.path());
        change(&mut folder.path().to_owned());
        assert_refused(folder.path(), kind, words);
    }
}

const EMBEDDING: &str = "model.embed_tokens.weight";

fn forget(folder: &Path, name: &str) {
    edit_index(folder, |i| {
        drop(i["weight_map"].as_object_mut().unwrap().remove(name));
    });
}

/// Writes the embedding, which is in the first shard, into the second, too.
fn repeat_embedding(folder: &Path) {
    let copy = tensors_of(&fs::read(folder.join(FIRST)).unwrap()).remove(0);
    assert_eq!(copy.name, EMBEDDING);
    let length = copy.bytes.len() as u64;
    let mut tensors = tensors_of(&fs::read(folder.join(SECOND)).unwrap());
    tensors.push(copy);
    fs::write(folder.join(SECOND), shard_bytes(&tensors)).unwrap();
    edit_index(folder, |i| {
        let total = i["metadata"]["total_size"].as_u64().unwrap();
        i["metadata"]["total_size"] = json!(total + length);
    });
}

fn kinds(run: &Run) -> Vec<FindingKind> {
    let mut kinds: Vec<_> = run.findings().iter().map(|f| f.kind).collect();
    kinds.sort();
    kinds
}

/// What is done to a checkpoint, and the kinds of all findings.
type Found = (fn(&Path), &'static [FindingKind]);

#[test]
fn a_name_that_the_index_lacks_or_that_is_there_twice_is_told_once() {
    let cases: [Found; 3] = [
        (|at| forget(at, NORM), &[FindingKind::NotInIndex]),
        (
            repeat_embedding,
            &[FindingKind::NotInShard, FindingKind::DuplicateTensor],
        ),
        (
            |at| {
                repeat_embedding(at);
                forget(at, EMBEDDING);
            },
            &[FindingKind::NotInIndex, FindingKind::DuplicateTensor],
        ),
    ];
    for (change, wanted) in cases {
        let folder = temp();
        tiny().write(folder.path());
        change(folder.path());
        let run = segpack!["scan", folder.path(), "--json"].exits(3);
        assert_eq!(kinds(&run), wanted, "{run}");
    }
}

#[test]
fn a_model_that_nobody_knows_is_not_told_of_each_of_its_tensors() {
    let (folder, mut tiny) = (temp(), tiny());
    tiny.config["model_type"] = json!("later_moe");
    tiny.config["architectures"] = json!([]);
    let run = segpack!["scan", tiny.write(folder.path()), "--json"].exits(3);
    let wanted = [FindingKind::UnknownFamily, FindingKind::NotAudited];
    assert_eq!(kinds(&run), wanted, "{run}");
}

#[test]
fn a_name_that_no_rule_knows_is_told_unless_it_is_allowed_or_nothing_is_known() {
    let (folder, mut known) = (temp(), tiny());
    let mut mystery = known.tensor(NORM).clone();
    "mystery.weight".clone_into(&mut mystery.name);
    known.shards[0].1.push(mystery);
    let mut guessed = known.clone();
    guessed.config = Value::Null;
    for (number, (tiny, flag, is_told)) in [
        (&known, "-q", true),
        (&known, "--allow-unaudited", true),
        (&known, "--allow-unclassified", false),
        (&guessed, "-q", true),
        (&guessed, "--allow-unaudited", false),
    ]
    .into_iter()
    .enumerate()
    {
        let checkpoint = tiny.write(&folder.path().join(number.to_string()));
        let run = segpack!["scan", checkpoint, "--json", flag];
        let told = kinds(&run).contains(&FindingKind::UnclassifiedTensor);
        assert_eq!(told, is_told, "{flag}: {run}");
    }
}

#[test]
fn a_config_that_asks_for_too_much_is_an_error_not_a_hang() {
    for (key, value) in [
        ("num_hidden_layers", json!(u64::MAX)),
        ("num_hidden_layers", json!(65_536)),
        ("num_experts", json!(-3)),
        ("hidden_size", json!(1e300)),
        ("head_dim", json!("wide")),
        ("mlp_only_layers", json!([0.5])),
    ] {
        let folder = temp();
        let mut tiny = tiny();
        tiny.config[key] = value;
        tiny.write(folder.path());
        let run = segpack!["scan", folder.path(), "--json"].exits(3);
        assert!(
            run.findings()
                .iter()
                .any(|f| f.file.as_deref() == Some("config.json"))
                || key.ends_with("layers")
        );
    }
}

#[test]
fn tensors_that_are_not_what_the_config_says_are_named() {
    let cases: [Case<Tiny>; 7] = [
        (
            |tiny| {
                // 3 of 4 experts
                for part in ["gate", "up", "down"] {
                    tiny.remove(&format!("model.layers.2.mlp.experts.3.{part}_proj.weight"));
                }
            },
            FindingKind::MissingTensor,
            &["model.layers.2.mlp.experts.3.up_proj.weight"],
        ),
        (
            |tiny| drop(tiny.remove(NORM)),
            FindingKind::MissingTensor,
            &[NORM, "[48]"],
        ),
        (
            |tiny| {
                let name = "model.layers.1.mlp.gate.weight";
                tiny.tensor(name).shape.reverse();
            },
            FindingKind::MisshapedTensor,
            &["model.layers.1.mlp.gate.weight", "[48, 4]", "[4, 48]"],
        ),
        (
            |tiny| "F16".clone_into(&mut tiny.tensor(NORM).dtype),
            FindingKind::WrongDtype,
            &[NORM, "F16", "BF16"],
        ),
        (
            |tiny| tiny.config["num_experts"] = json!(3),
            FindingKind::OtherSizes,
            &["num_experts 3", "4 experts"],
        ),
        (
            |tiny| tiny.config["num_hidden_layers"] = json!(2),
            FindingKind::ExtraTensor,
            &["model.layers.2.input_layernorm.weight"],
        ),
        (
            |tiny| "mystery.weight".clone_into(&mut tiny.tensor(NORM).name),
            FindingKind::UnclassifiedTensor,
            &["mystery.weight", "--allow-unclassified"],
        ),
    ];
    for (bend, kind, words) in cases {
        let (folder, mut tiny) = (temp(), tiny());
        bend(&mut tiny);
        tiny.write(folder.path());
        assert_refused(folder.path(), kind, words);
    }
}

#[test]
fn every_problem_is_named_not_the_first() {
    let (folder, mut tiny) = (temp(), tiny());
    let gone: Vec<String> = (0..4)
        .map(|e| format!("model.layers.1.mlp.experts.{e}.down_proj.weight"))
        .collect();
    for name in &gone {
        tiny.remove(name);
    }
    tiny.write(folder.path());
    write_file(
        &folder.path().join("extra.safetensors"),
        &shard_with_header(b"{}", 0),
    );
    let findings = assert_refused(
        folder.path(),
        FindingKind::UnlistedShard,
        &["extra.safetensors"],
    );
    let missing: Vec<_> = findings
        .iter()
        .filter(|f| f.kind == FindingKind::MissingTensor)
        .filter_map(|f| f.tensor.clone())
        .collect();
    assert_eq!(missing, gone);
    assert_eq!(findings.len(), 5, "{findings:?}");
}

#[test]
fn stacked_experts_that_cannot_be_taken_apart() {
    let (folder, mut tiny) = (temp(), tiny().stacked());
    let name = "model.layers.1.mlp.experts.gate_up_proj";
    tiny.tensor(name).shape.swap(1, 2);
    tiny.write(folder.path());
    assert_refused(folder.path(), FindingKind::MisshapedTensor, &[name]);
    // one half of a layer stacked, the other not
    let (folder, mut tiny) = (temp(), self::tiny().stacked());
    let down = "model.layers.1.mlp.experts.down_proj";
    tiny.remove(down);
    tiny.write(folder.path());
    assert_refused(folder.path(), FindingKind::MissingTensor, &[down]);
}

#[test]
fn zeros_and_numbers_that_are_none_are_named_but_packed() {
    let (folder, mut tiny) = (temp(), tiny());
    let zeros = "model.layers.1.mlp.experts.2.up_proj.weight";
    tiny.tensor(zeros).bytes.fill(0);
    let nan = "model.layers.2.input_layernorm.weight";
    tiny.tensor(nan).bytes[10..12].copy_from_slice(&bf16_bytes(f64::NAN));
    let infinite = "model.layers.1.self_attn.o_proj.bias";
    tiny.tensor(infinite).bytes[..2].copy_from_slice(&bf16_bytes(f64::INFINITY));
    let checkpoint = tiny.write(&folder.path().join("checkpoint"));
    for codec in ["raw", "zstd"] {
        let out = folder.path().join(codec);
        let run = segpack!["pack", &checkpoint, "-o", &out, "--codec", codec, "--json"].ok();
        let warnings: Vec<Finding> =
            serde_json::from_value(run.json()["warnings"].clone()).unwrap();
        let mut found: Vec<_> = warnings
            .into_iter()
            .map(|f| (f.tensor.unwrap(), f.kind))
            .collect();
        found.sort();
        let wanted = [
            (zeros.to_owned(), FindingKind::AllZero),
            (infinite.to_owned(), FindingKind::NotFinite),
            (nan.to_owned(), FindingKind::NotFinite),
        ];
        let mut wanted = wanted.to_vec();
        wanted.sort();
        assert_eq!(found, wanted);
        segpack!["verify", &out].ok();
    }
    let run = segpack!["pack", &checkpoint, "-o", folder.path().join("text")].ok();
    let printed = format!("{}{}", run.text(), run.stderr);
    assert!(
        [zeros, nan, infinite]
            .iter()
            .all(|name| printed.contains(name)),
        "{run}"
    );
}

#[test]
fn what_is_tolerated_on_request_comes_back_too() {
    let (folder, mut tiny) = (temp(), tiny());
    "mystery.weight".clone_into(&mut tiny.tensor(NORM).name);
    let checkpoint = tiny.write(&folder.path().join("checkpoint"));
    write_file(
        &checkpoint.join("extra/adapter.safetensors"),
        &shard_with_header(b"{}", 0),
    );
    write_file(&checkpoint.join("model.gguf"), b"GGUF");
    let out = folder.path().join("pack");
    segpack!["pack", &checkpoint, "-o", &out, "--extra", "keep"]
        .exits(3)
        .says(&["mystery.weight"]);
    segpack!["pack", &checkpoint, "-o", &out, "--allow-unclassified"]
        .exits(3)
        .says(&["model.gguf"]);
    assert!(!out.exists());
    // a name that is known is still missed
    let both = ["--extra", "keep", "--allow-unclassified"];
    segpack!["pack", &checkpoint, "-o", &out, both[0], both[1], both[2]]
        .exits(3)
        .says(&[NORM]);
    let mut with_norm = Tiny::read(&checkpoint);
    let mut norm = with_norm.tensor("mystery.weight").clone();
    NORM.clone_into(&mut norm.name);
    with_norm.shards.last_mut().unwrap().1.push(norm);
    with_norm.write(&checkpoint);
    segpack!["pack", &checkpoint, "-o", &out, both[0], both[1], both[2]].ok();
    assert!(out.join("packs/unclassified.safetensors").exists());
    assert!(out.join("source/extra/adapter.safetensors").exists());
    segpack!["verify", &out].ok();
    let back = folder.path().join("back");
    segpack!["unpack", &out, "-o", &back].ok();
    assert!(contents(&back) == contents(&checkpoint));
}

#[test]
fn without_a_config_nobody_knows_whether_all_is_there() {
    let (folder, mut tiny) = (temp(), tiny());
    tiny.config = Value::Null;
    let checkpoint = tiny.write(&folder.path().join("checkpoint"));
    let run = segpack!["scan", &checkpoint]
        .exits(3)
        .says(&["--allow-unaudited"]);
    assert!(run.text().contains("completeness: not known"), "{run}");
    let json = segpack!["scan", &checkpoint, "--allow-unaudited", "--json"].ok();
    assert_eq!(json.json()["completeness"], "not_known");
    let out = folder.path().join("pack");
    segpack!["pack", &checkpoint, "-o", &out].exits(3).says(&[
        "config.json",
        "--allow-unaudited",
        "--allow-unclassified",
    ]);
    assert!(!out.exists());
    // whoever packs has said once that it may be so; whoever verifies is told again
    for flag in ["--allow-unaudited", "--allow-unclassified"] {
        segpack!["pack", &checkpoint, "-o", &out, flag, "--force"].ok();
        let run = segpack!["verify", &out, "--sums"]
            .exits(3)
            .says(&["--allow-unaudited"]);
        assert!(
            run.text().starts_with("completeness: not known"),
            "{flag}: {run}"
        );
        let run = segpack!["verify", &out, "--sums", "--allow-unaudited", "--json"].ok();
        assert_eq!(run.json()["completeness"], "not_known", "{flag}");
    }
}

#[test]
fn of_an_unknown_family_nobody_knows_whether_all_is_there() {
    let (folder, mut tiny) = (temp(), tiny());
    tiny.config["model_type"] = json!("later_moe");
    tiny.config["architectures"] = json!(["LaterMoeForCausalLM"]);
    let checkpoint = tiny.write(&folder.path().join("checkpoint"));
    for flags in [&[][..], &["--allow-unclassified"]] {
        let mut arguments = vec!["scan".into(), checkpoint.clone().into_os_string()];
        arguments.extend(flags.iter().map(std::ffi::OsString::from));
        let run = crate::support::cli::run(&arguments).exits(3);
        assert!(run.text().contains("completeness: not known"), "{run}");
    }
    segpack!["scan", &checkpoint, "--allow-unaudited"].ok();
    let out = folder.path().join("pack");
    segpack!["pack", &checkpoint, "-o", &out].exits(3);
    segpack!["pack", &checkpoint, "-o", &out, "--allow-unaudited"].ok();
    assert!(out.join("packs/unclassified.safetensors").exists());
    segpack!["verify", &out, "--quick"].exits(3);
    let run = segpack!["verify", &out, "--allow-unaudited", "--json"].ok();
    assert_eq!(run.json()["completeness"], "not_known");
    assert_eq!(run.findings().len(), 1, "{run}");
}

#[test]
fn the_output_is_never_inside_the_input_nor_over_anything() {
    let folder = temp();
    let checkpoint = tiny().write(&folder.path().join("checkpoint"));
    let before = contents(&checkpoint);
    for inside in [
        "pack",
        "deep/er/pack",
        ".",
        "../checkpoint/pack",
        "new/../pack",
    ] {
        let run = segpack!["pack", &checkpoint, "-o", checkpoint.join(inside)].exits(1);
        assert!(
            run.stderr.contains("inside") || run.stderr.contains("exists"),
            "{run}"
        );
    }
    assert!(contents(&checkpoint) == before);
    write_file(&folder.path().join("file"), b"x");
    segpack!["pack", &checkpoint, "-o", folder.path().join("file")]
        .exits(1)
        .says(&["not a folder"]);
    segpack!["pack", &checkpoint, "-o", folder.path().join("file/below")].exits(1);
    #[cfg(unix)]
    {
        // through a link that leads back into the input
        std::os::unix::fs::symlink(&checkpoint, folder.path().join("link")).unwrap();
        segpack!["pack", &checkpoint, "-o", folder.path().join("link/pack")]
            .exits(1)
            .says(&["inside"]);
        assert!(contents(&checkpoint) == before);
    }
}

#[cfg(unix)]
#[test]
fn a_shard_that_the_hub_publishes_otherwise_is_named() {
    let (folder, revision) = (temp(), "0123456789abcdef0123456789abcdef01234567");
    let snapshot = tiny().write_hub(folder.path(), "Qwen/Tiny", revision);
    let shard = fs::canonicalize(snapshot.join(SECOND)).unwrap();
    let published = shard.file_name().unwrap().to_string_lossy().into_owned();
    flip(&shard, -1);
    let seen = Sha256::of(&fs::read(&shard).unwrap()).to_string();
    for jobs in ["1", "4"] {
        let out = folder.path().join("out");
        segpack!["pack", &snapshot, "-o", &out, "--jobs", jobs]
            .exits(3)
            .says(&[SECOND, &seen, &published]);
        assert!(!out.exists(), "something was left");
        // an empty folder that was there before stays, empty
        fs::create_dir(&out).unwrap();
        segpack!["pack", &snapshot, "-o", &out, "--jobs", jobs].exits(3);
        assert_eq!(contents(&out).into_keys().collect::<Vec<_>>(), [""]);
        fs::remove_dir(&out).unwrap();
    }
    let out = folder.path().join("unchecked");
    segpack!["pack", &snapshot, "-o", &out, "--no-source-digests"].ok();
}

#[test]
fn things_that_are_no_checkpoints() {
    let folder = temp();
    let scan = |path: &Path| segpack!["scan", path];
    scan(&folder.path().join("nothing"))
        .exits(1)
        .says(&["no such file"]);
    scan(folder.path()).exits(3);
    write_file(&folder.path().join("notes.txt"), b"x");
    scan(&folder.path().join("notes.txt"))
        .exits(3)
        .says(&["not a checkpoint"]);
    // a pack is no checkpoint either
    let out = folder.path().join("pack");
    segpack!["pack", tiny_full(), "-o", &out].ok();
    scan(&out).exits(3);
    let before = contents(&out);
    segpack!["pack", &out, "-o", folder.path().join("again")].exits(3);
    assert!(contents(&out) == before && !folder.path().join("again").exists());
}

#[cfg(unix)]
#[test]
fn odd_files_in_a_checkpoint() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::symlink;
    let folder = temp();
    let checkpoint = tiny().write(&folder.path().join("checkpoint"));
    symlink("nowhere", checkpoint.join("broken")).unwrap();
    assert_refused_files(&checkpoint, "broken");
    fs::remove_file(checkpoint.join("broken")).unwrap();
    symlink(".", checkpoint.join("loop")).unwrap();
    assert_refused_files(&checkpoint, "loop");
    fs::remove_file(checkpoint.join("loop")).unwrap();
    let not_utf8 = checkpoint.join(OsStr::from_bytes(b"caf\xe9"));
    fs::write(&not_utf8, b"x").unwrap();
    assert_refused_files(&checkpoint, "not UTF-8");
    fs::remove_file(not_utf8).unwrap();
    assert!(
        std::process::Command::new("mkfifo")
            .arg(checkpoint.join("pipe"))
            .status()
            .unwrap()
            .success()
    );
    assert_refused_files(&checkpoint, "pipe");
    // what a terminal would obey
    write_file(&checkpoint.join("a\x1b[2Jb"), b"x");
    assert_refused_files(&checkpoint, "a\\u{1b}[2Jb");
    fs::remove_file(checkpoint.join("a\x1b[2Jb")).unwrap();
    fs::remove_file(checkpoint.join("pipe")).unwrap();
    // names that are only unusual
    write_file(&checkpoint.join("with space/naïve ☃.txt"), b"x");
    let out = folder.path().join("pack");
    segpack!["pack", &checkpoint, "-o", &out].ok();
    let back = folder.path().join("back");
    segpack!["unpack", &out, "-o", &back].ok();
    assert!(contents(&back) == contents(&checkpoint));
}

#[cfg(unix)]
fn assert_refused_files(checkpoint: &Path, words: &str) {
    let out = temp();
    segpack!["pack", checkpoint, "-o", out.path().join("out")]
        .exits(3)
        .says(&[words]);
    assert!(!out.path().join("out").exists());
}
