//! The published schemas: generated from the types, true of real documents, false of bad ones.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use jsonschema::Validator;
use schemars::{JsonSchema, Schema};
use segpack_manifests::documents::schema::schema_of;
use segpack_manifests::documents::{
    BatchSummary, BenchReport, DemoReport, DevicesReport, DiffReport, Document, ErrorReport,
    ExpertMask, ExpertParallelMap, ExpertsReport, ExportSummary, GpuBenchReport, GraftReport,
    InfoReport, Inventory, Manifest, PackSummary, PartManifest, Plan, PromptResult, RepairReport,
    ReportData, RunPrompt, RunSummary, RunToken, ServeStarted, ShareReport, SignSummary,
    SpeakSummary, UnpackSummary, UpdateReport, ValidateReport, VerifyReceipt, VerifyReport,
    VocodeSummary,
};
use serde_json::{Value, json};

use crate::support::cli::{Run, packed, program, run, segpack};
use crate::support::damage::{flip, manifest};
use crate::support::folders::temp;
use crate::support::tiny::{Qwen3Moe, Tiny, tiny_full};

fn schemas() -> [(&'static str, Schema); 34] {
    [
        schema::<Inventory>(),
        schema::<Plan>(),
        schema::<Manifest>(),
        schema::<PartManifest>(),
        schema::<VerifyReport>(),
        schema::<ValidateReport>(),
        schema::<PackSummary>(),
        schema::<UnpackSummary>(),
        schema::<RunToken>(),
        schema::<RunSummary>(),
        schema::<RunPrompt>(),
        schema::<PromptResult>(),
        schema::<ExpertMask>(),
        schema::<BatchSummary>(),
        schema::<DemoReport>(),
        schema::<BenchReport>(),
        schema::<GpuBenchReport>(),
        schema::<DevicesReport>(),
        schema::<ExpertsReport>(),
        schema::<ExportSummary>(),
        schema::<ExpertParallelMap>(),
        schema::<InfoReport>(),
        schema::<RepairReport>(),
        schema::<UpdateReport>(),
        schema::<GraftReport>(),
        schema::<ReportData>(),
        schema::<ErrorReport>(),
        schema::<DiffReport>(),
        schema::<VerifyReceipt>(),
        schema::<ServeStarted>(),
        schema::<ShareReport>(),
        schema::<SignSummary>(),
        schema::<SpeakSummary>(),
        schema::<VocodeSummary>(),
    ]
}

fn schema<D: Document + JsonSchema>() -> (&'static str, Schema) {
    (D::NAME, schema_of::<D>())
}

fn path_of(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../schemas")
        .join(format!("{name}.schema.json"))
}

/// What is committed, not what is generated.
fn validator(name: &str) -> Validator {
    let schema: Value = serde_json::from_slice(&fs::read(path_of(name)).unwrap()).unwrap();
    jsonschema::validator_for(&schema).unwrap()
}

#[track_caller]
fn assert_valid(validator: &Validator, document: &Value) {
    let errors: Vec<_> = validator
        .iter_errors(document)
        .map(|e| format!("{}: {e}", e.instance_path()))
        .take(5)
        .collect();
    assert!(errors.is_empty(), "{errors:#?}");
}

#[test]
fn the_committed_schemas_are_those_of_the_types() {
    for (name, schema) in schemas() {
        let wanted = format!("{}\n", serde_json::to_string_pretty(&schema).unwrap());
        if std::env::var_os("BLESS").is_some() {
            fs::write(path_of(name), &wanted).unwrap();
        }
        let committed = fs::read_to_string(path_of(name)).unwrap_or_default();
        assert!(
            committed == wanted,
            "schemas/{name}.schema.json is out of date: run the tests with BLESS=1"
        );
        assert!(
            wanted.contains("\"description\""),
            "{name} describes nothing"
        );
    }
    let committed = fs::read_dir(path_of("x").parent().unwrap())
        .unwrap()
        .count();
    assert_eq!(
        committed,
        schemas().len(),
        "schemas/ holds something that is not generated"
    );
}

#[test]
fn real_documents_are_valid() {
    let folder = temp();
    let stacked = Tiny::qwen3_moe(Qwen3Moe::default())
        .stacked()
        .write(&folder.path().join("stacked"));
    let plain = Tiny::text().single();
    let unaudited = Tiny {
        config: Value::Null,
        ..plain.clone()
    };
    let unaudited = unaudited
        .write(&folder.path().join("unaudited"))
        .join("model.safetensors");
    let download = folder.path().join("download");
    plain.write_download(&download, "0123456789abcdef0123456789abcdef01234567");
    for checkpoint in [&tiny_full(), &stacked, &unaudited, &download] {
        assert_valid(
            &validator("inventory"),
            &segpack!["scan", checkpoint, "--allow-unaudited", "--json"]
                .ok()
                .json(),
        );
    }
    let mut broken = Tiny::text();
    broken.remove("thinker.lm_head.weight");
    let broken = broken.write(&folder.path().join("broken"));
    let report = segpack!["diff", &stacked, &broken, "--tensors", "--stat", "--json"].exits(3);
    assert_valid(&validator("diff-report"), &report.json());
    assert_valid(
        &validator("inventory"),
        &segpack!["scan", &broken, "--json"].exits(3).json(),
    );

    for (number, (checkpoint, options)) in [
        (&tiny_full(), ["--codec", "raw"]),
        (&stacked, ["--codec", "zstd"]),
        (&tiny_full(), ["--exclude", "talker"]),
        (&download, ["--no-source-digests", "--no-sums"]),
    ]
    .into_iter()
    .enumerate()
    {
        let out = folder.path().join(format!("pack-{number}"));
        let [first, second] = options;
        let plan = segpack![
            "pack",
            checkpoint,
            "-o",
            &out,
            "--dry-run",
            "--json",
            first,
            second
        ]
        .ok();
        assert_valid(&validator("plan"), &plan.json());
        let summary = segpack!["pack", checkpoint, "-o", &out, "--json", first, second].ok();
        assert_valid(&validator("pack-summary"), &summary.json());
        assert_valid(&validator("manifest"), &manifest(&out));
        let part = out.with_extension("part");
        let share = ["--part", "1/2", "--json", first, second];
        let summary = Run::of(
            program()
                .arg("pack")
                .arg(checkpoint)
                .arg("-o")
                .arg(&part)
                .args(share),
        )
        .ok();
        assert_valid(&validator("pack-summary"), &summary.json());
        let document = fs::read(part.join("part.json")).unwrap();
        assert_valid(
            &validator("part-manifest"),
            &serde_json::from_slice(&document).unwrap(),
        );
        assert_valid(
            &validator("verify-report"),
            &segpack!["verify", &part, "--json"].ok().json(),
        );
        let page = segpack!["report", &out, "--json"].ok();
        assert_valid(&validator("report-data"), &page.json());
        let back = out.with_extension("back");
        let report = segpack!["unpack", &out, "-o", &back, "--include", "*.json", "--json"].ok();
        assert_valid(&validator("unpack-summary"), &report.json());
        let exported = out.with_extension("exported");
        let options = ["--to", "qwen3-moe", "--expert-parallel", "1/3", "--json"];
        let summary = Run::of(
            program()
                .arg("export")
                .arg(&out)
                .arg("-o")
                .arg(&exported)
                .args(options),
        )
        .ok();
        assert_valid(&validator("export-summary"), &summary.json());
        let map = fs::read(exported.join("expert_parallel.json")).unwrap();
        assert_valid(
            &validator("expert-parallel"),
            &serde_json::from_slice(&map).unwrap(),
        );
        for how in ["--quick", "--sums", "--values"] {
            assert_valid(
                &validator("verify-report"),
                &segpack!["verify", &out, how, "--json"].ok().json(),
            );
        }
        let receipt = out.with_extension("receipt");
        segpack!["verify", &out, "--quick", "--receipt", &receipt].ok();
        let receipt_document = serde_json::from_slice(&fs::read(&receipt).unwrap()).unwrap();
        assert_valid(&validator("verify-receipt"), &receipt_document);
        let info = segpack!["info", &out, "--receipt", &receipt, "--json"].ok();
        assert_valid(&validator("info-report"), &info.json());
        let updated = segpack![
            "update",
            &out,
            "--from",
            checkpoint,
            "--allow-unclassified",
            "--json"
        ]
        .ok();
        assert_valid(&validator("update-report"), &updated.json());
        flip(&out.join("source/config.json"), 3);
        let repaired = segpack!["repair", &out, "--from", checkpoint, "--json"].ok();
        assert_valid(&validator("repair-report"), &repaired.json());
        let failed = segpack!["repair", &out, "--from", &out, "--json"].exits(3);
        assert_valid(&validator("error-report"), &failed.json());
        flip(&out.join("manifest.json"), -3);
        let report = segpack!["verify", &out, "--json"].exits(3).json();
        assert_valid(&validator("verify-report"), &report);
    }
}

#[test]
fn what_run_and_demo_print_is_valid() {
    let folder = temp();
    let out = packed(&tiny_full(), folder.path());
    let requested = [
        "--top-k-logits",
        "3",
        "--rank",
        " the",
        "--max-new-tokens",
        "5",
    ];
    for options in [&[][..], &requested[..]] {
        let mut arguments: Vec<OsString> =
            ["run", "--prompt", "Hi", "--json"].map(Into::into).into();
        arguments.push(out.clone().into());
        arguments.extend(options.iter().map(Into::into));
        let (tokens, summary) = run(&arguments).ok().tokens();
        tokens
            .iter()
            .for_each(|token| assert_valid(&validator("run-token"), token));
        assert_valid(&validator("run-summary"), &summary);
    }
    for prompt in [["--prompt", "Hi"], ["--prompt-ids", "5,6"]] {
        let printed = segpack![
            "run",
            &out,
            prompt[0],
            prompt[1],
            "--print-prompt",
            "--json"
        ]
        .ok();
        assert_valid(&validator("run-prompt"), &printed.json());
    }
    let report = folder.path().join("experts.json");
    segpack![
        "run",
        &out,
        "--prompt",
        "Hi",
        format!("--experts-report={}", report.display())
    ]
    .ok();
    let report: Value = serde_json::from_slice(&fs::read(report).unwrap()).unwrap();
    assert_valid(&validator("experts-report"), &report);
    let bench = segpack![
        "bench",
        &out,
        "--memory",
        "100MB",
        "--tokens",
        "2",
        "--repeats",
        "1",
        "--prompt",
        "4",
        "--json"
    ];
    assert_valid(&validator("bench-report"), &bench.ok().json());
    assert_valid(
        &validator("devices-report"),
        &segpack!["devices", "--json"].ok().json(),
    );
    let demo = segpack!["demo", "--json"].ok().json();
    assert_valid(&validator("demo-report"), &demo);
    let steps = demo["steps"].as_array().unwrap();
    let verdicts = steps.iter().map(|step| &step["validation"]["verdict"]);
    let verdicts: Vec<_> = verdicts.filter(|verdict| !verdict.is_null()).collect();
    assert_eq!(verdicts, ["inside"]);
    // the last one compares the spoken answer with the official one
    let spoken = steps.last().unwrap();
    assert_eq!(spoken["ok"], true);
    assert!(
        spoken["outcome"]
            .as_str()
            .unwrap()
            .contains("0 of 76 codes differ")
    );
}

/// Every change of a good document that must be noticed.
fn assert_all_bad(name: &str, good: &Value, changes: &[(&str, Value)]) {
    let validator = validator(name);
    assert_valid(&validator, good);
    for key in good.as_object().unwrap().keys() {
        let mut bad = good.clone();
        bad.as_object_mut().unwrap().remove(key);
        let is_optional = [
            "provenance",
            "known",
            "subset",
            "manifest_sha256",
            "family",
            "peak_rss",
            "rank",
            "top",
            "files",
        ]
        .contains(&key.as_str());
        assert!(
            is_optional || !validator.is_valid(&bad),
            "{name} without {key:?} is valid"
        );
        bad[key] = json!(-1.5);
        assert!(
            !validator.is_valid(&bad),
            "{name} with a number for {key:?} is valid"
        );
    }
    for (pointer, value) in changes {
        let mut bad = good.clone();
        *bad.pointer_mut(pointer)
            .unwrap_or_else(|| panic!("{name} has no {pointer}")) = value.clone();
        assert!(
            !validator.is_valid(&bad),
            "{name} with {value} at {pointer} is valid"
        );
    }
}

/// A newer build may have words that this one does not know.
#[test]
fn unknown_words_are_valid() {
    let folder = temp();
    let out = folder.path().join("pack");
    segpack!["pack", tiny_full(), "-o", &out].ok();
    let mut newer = manifest(&out);
    newer["packs"][0]["component"] = json!("later.tower");
    newer["tensors"][0]["role"] = json!("latent_q");
    newer["tensors"][0]["part"] = json!("codebook");
    newer["model"]["family"] = json!("later_moe");
    newer["model"]["text"] = json!({"latent_rank": 8});
    assert_valid(&validator("manifest"), &newer);
}

#[test]
fn bad_documents_are_not_valid() {
    let folder = temp();
    let out = folder.path().join("pack");
    let plan = segpack!["pack", tiny_full(), "-o", &out, "--dry-run", "--json"]
        .ok()
        .json();
    let summary = segpack!["pack", tiny_full(), "-o", &out, "--json"]
        .ok()
        .json();
    let digest = "0123456789abcdef".repeat(4);
    assert_all_bad(
        "manifest",
        &manifest(&out),
        &[
            ("/format_version", json!("1")),
            ("/format_version", json!("01.0")),
            ("/packs/0/sha256", json!(digest.to_uppercase())),
            ("/packs/0/sha256", json!(digest[1..])),
            ("/packs/0/length", json!(-1)),
            ("/packs/0/component", json!("../engine")),
            ("/segments/0/blake3", json!("x")),
            ("/segments/0/codec", json!("entropy9")),
            ("/segments/0/layout", json!("tiled")),
            ("/segments/0/offset", json!("0")),
            ("/tensors/0/dtype", json!("bf16!")),
            ("/tensors/0/shape", json!([1.5])),
            ("/tensors/0/role", json!("Ornament")),
            ("/tensors/0/source", json!(null)),
            ("/source_files/0/kind", json!("folder")),
            ("/counts/tensors", json!(null)),
        ],
    );
    assert_all_bad(
        "plan",
        &plan,
        &[
            ("/packs/0/segments/0/id", json!(7)),
            ("/codec", json!("zip")),
        ],
    );
    assert_all_bad(
        "pack-summary",
        &summary,
        &[("/manifest_sha256", json!("0")), ("/packs", json!(-1))],
    );
    let inventory = segpack!["scan", tiny_full(), "--json"].ok().json();
    assert_all_bad(
        "inventory",
        &inventory,
        &[
            ("/tensors/0/role", json!("Ornament")),
            ("/counts/parameters", json!("many")),
            ("/family", json!("mamba/2")),
        ],
    );
    flip(&out.join("packs/code2wav.safetensors"), 3);
    let report = segpack!["verify", &out, "--json"].exits(3).json();
    assert_all_bad(
        "verify-report",
        &report,
        &[
            ("/findings/0/kind", json!("mood")),
            ("/findings/0/bytes", json!([1])),
            ("/mode", json!("lazy")),
        ],
    );
    let pack = packed(&tiny_full(), folder.path());
    let run = segpack![
        "run",
        &pack,
        "--prompt",
        "Hi",
        "--top-k-logits",
        "1",
        "--json"
    ]
    .ok();
    let (tokens, summary) = run.tokens();
    assert_all_bad(
        "run-token",
        &tokens[0],
        &[("/top/0/id", json!("x")), ("/top/0/logit", json!("1"))],
    );
    assert_all_bad(
        "run-summary",
        &summary,
        &[
            ("/stop_reason", json!("tired")),
            ("/ids", json!([-1])),
            ("/experts/0/layer", json!(null)),
        ],
    );
    let back = folder.path().join("back");
    let unpacked = segpack!["unpack", &out, "-o", &back, "--include", "*.json", "--json"]
        .ok()
        .json();
    assert_all_bad(
        "unpack-summary",
        &unpacked,
        &[("/files", json!(1.5)), ("/not_restored", json!({}))],
    );
}
