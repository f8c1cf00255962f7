//! Checkpoints whose weights are quantised: a weight is several tensors of several dtypes.

use std::path::Path;

use serde_json::{Value, json};

use crate::support::cli::{FindingKind, segpack};
use crate::support::damage::{list, manifest};
use crate::support::folders::{contents, temp};
use crate::support::tiny::{Qwen3Moe, Tensor, Tiny};

const KEPT: &str = "model.layers.2.self_attn.o_proj";
const EXPERT: &str = "model.layers.1.mlp.experts.3";

/// Blocks that do not divide the matrices; one module stays as it is.
fn fp8() -> Tiny {
    Tiny::qwen3_moe(Qwen3Moe::default()).fp8([16, 32], &[KEPT])
}

/// What `scan` finds, with the exit status of an error.
fn findings(tiny: &Tiny, at: &Path) -> Vec<(FindingKind, Option<String>, String)> {
    let checkpoint = tiny.write(at);
    let run = segpack!["scan", &checkpoint, "--json"].exits(3);
    let findings = run.findings();
    let reported = findings
        .into_iter()
        .map(|f| (f.kind, f.tensor.clone(), f.to_string()));
    reported.collect()
}

#[test]
fn an_fp8_checkpoint_comes_back_byte_for_byte() {
    let folder = temp();
    let checkpoint = fp8().write(&folder.path().join("checkpoint"));
    let scan = segpack!["scan", &checkpoint, "--json"].ok().json();
    assert_eq!(
        (&scan["audited"], &scan["findings"]),
        (&json!(true), &json!([]))
    );
    for codec in ["raw", "zstd", "bf16-rans"] {
        let pack = folder.path().join(codec);
        let back = folder.path().join(format!("{codec}-back"));
        segpack!["pack", &checkpoint, "-o", &pack, "--codec", codec].ok();
        let report = segpack![
            "verify",
            &pack,
            "--sums",
            "--against",
            &checkpoint,
            "--json"
        ];
        assert_eq!(report.ok().json()["findings"], json!([]), "{codec}");
        segpack!["unpack", &pack, "-o", &back].ok();
        assert!(contents(&back) == contents(&checkpoint), "{codec}");
    }
}

#[test]
fn all_parts_of_an_expert_lie_in_its_segment() {
    let folder = temp();
    let tiny = fp8();
    let checkpoint = tiny.write(&folder.path().join("checkpoint"));
    let pack = folder.path().join("pack");
    segpack!["pack", &checkpoint, "-o", &pack].ok();
    let mut document = manifest(&pack);
    let tensors = list(&mut document, "tensors");
    let of_expert = |t: &&Value| t["segment"] == "text.layers.1.experts.3";
    let reported = |t: &Value| format!("{} {} {} {}", t["name"], t["dtype"], t["role"], t["part"]);
    let expert: Vec<String> = tensors.iter().filter(of_expert).map(reported).collect();
    let wanted = ["gate", "up", "down"].map(|m| {
        [
            ("weight", "F8_E4M3", "null"),
            ("weight_scale_inv", "F32", "\"scale\""),
        ]
        .map(|(what, dtype, part)| {
            format!("\"{EXPERT}.{m}_proj.{what}\" \"{dtype}\" \"expert_{m}\" {part}")
        })
    });
    assert_eq!(expert, wanted.concat());
    let bias = tensors
        .iter()
        .find(|t| t["name"] == "model.layers.1.self_attn.q_proj.bias");
    assert_eq!(bias.unwrap()["part"], "bias");
    // the scale is shown, and read
    let scale = format!("{EXPERT}.up_proj.weight_scale_inv");
    let line = segpack!["ls", &pack, "--tensors", "--json", &scale]
        .ok()
        .json();
    assert_eq!(
        (&line["part"], &line["shape"]),
        (&json!("scale"), &json!([2, 2]))
    );
    let bytes = segpack!["cat", &pack, &scale].ok().stdout;
    assert!(bytes == tiny.by_name()[scale.as_str()].bytes);
}

#[test]
fn what_is_wrong_with_a_scale_is_named() {
    let folder = temp();
    let scale = format!("{EXPERT}.down_proj.weight_scale_inv");
    let mut missing = fp8();
    missing.remove(&scale);
    let found = findings(&missing, &folder.path().join("missing"));
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(
        (found[0].0, found[0].1.as_ref()),
        (FindingKind::MissingTensor, Some(&scale))
    );
    assert!(
        found[0]
            .2
            .contains("wanted the scale of a quantised weight, shape [3, 1]")
    );

    let mut misshaped = fp8();
    misshaped.tensor(&scale).shape = vec![1, 3];
    let found = findings(&misshaped, &folder.path().join("misshaped"));
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(
        (found[0].0, found[0].1.as_ref()),
        (FindingKind::MisshapedTensor, Some(&scale))
    );

    let mut unexpected = fp8();
    let extra = format!("{KEPT}.weight_scale_inv");
    unexpected.shards[0].1.push(Tensor::noise(&extra, &[3, 2]));
    let found = findings(&unexpected, &folder.path().join("unexpected"));
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(
        (found[0].0, found[0].1.as_ref()),
        (FindingKind::ExtraTensor, Some(&extra))
    );
    assert!(
        found[0].2.contains("no quantised weight with this scale"),
        "{found:?}"
    );

    let mut plain = fp8();
    let weight = format!("{EXPERT}.up_proj.weight");
    let shape = plain.tensor(&weight).shape.clone();
    *plain.tensor(&weight) = Tensor::noise(&weight, &shape);
    let found = findings(&plain, &folder.path().join("plain"));
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(
        (found[0].0, found[0].1.as_ref()),
        (FindingKind::WrongDtype, Some(&weight))
    );
    assert!(found[0].2.contains("BF16; wanted F8_E4M3"), "{found:?}");
}

#[test]
fn an_unknown_method_is_refused_by_name() {
    let folder = temp();
    let mut tiny = fp8();
    tiny.config["quantization_config"]["quant_method"] = json!("hqq");
    let found = findings(&tiny, &folder.path().join("checkpoint"));
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].0, FindingKind::BadConfig);
    assert!(
        found[0].2.contains("quant_method is \"hqq\", wanted fp8"),
        "{found:?}"
    );
    // packed as it is, on demand, and restored
    let (checkpoint, pack) = (folder.path().join("checkpoint"), folder.path().join("pack"));
    let back = folder.path().join("back");
    segpack!["pack", &checkpoint, "-o", &pack].exits(3);
    segpack!["pack", &checkpoint, "-o", &pack, "--allow-unclassified"].ok();
    segpack!["unpack", &pack, "-o", &back].ok();
    assert!(contents(&back) == contents(&checkpoint));
}
