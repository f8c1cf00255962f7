//! Every family and every quantisation: tiny checkpoints with the names, dtypes and shapes that the
//! hub's have (`fixtures/families/checkpoints.jsonl.gz`, one document a line).

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;
use segpack_formats::safetensors::TensorInfo;
use segpack_manifests::audit::{Audit, AuditOptions, Described, ShardTensors, audit};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::support::cli::{Finding, FindingKind, segpack};
use crate::support::damage::manifest;
use crate::support::folders::{assert_same, temp};
use crate::support::tiny::{Tensor, Tiny};

/// A checkpoint, and what is to be found in it.
#[derive(Clone, Deserialize)]
pub(crate) struct Checkpoint {
    pub(crate) name: String,
    family: String,
    pub(crate) config: Value,
    /// Stored tensors, tensors once the experts of a layer are stacked, bytes.
    tensors: u64,
    logical: u64,
    bytes: u64,
    /// Segments of experts that a pack of it has.
    expert_segments: usize,
    /// Name, dtype and shape.
    pub(crate) stored: Vec<(String, String, Vec<u64>)>,
    /// Files beside the shards and `config.json`.
    #[serde(skip)]
    pub(crate) files: Vec<(String, Vec<u8>)>,
}

pub(crate) fn all() -> Vec<Checkpoint> {
    listed("checkpoints.jsonl.gz")
}

fn listed(file: &str) -> Vec<Checkpoint> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/families");
    let path = path.join(file);
    let lines = BufReader::new(GzDecoder::new(File::open(path).unwrap())).lines();
    lines
        .map(|line| serde_json::from_str(&line.unwrap()).unwrap())
        .collect()
}

fn width(dtype: &str) -> u64 {
    match dtype {
        "F32" | "I32" => 4,
        "BF16" | "F16" => 2,
        "U8" | "I8" | "F8_E4M3" => 1,
        other => panic!("{other}"),
    }
}

impl Checkpoint {
    /// What the headers of one shard would say, without the tensor of this number.
    fn entries(&self, without: Option<usize>) -> Vec<TensorInfo> {
        let mut offset = 8;
        let mut entries = Vec::new();
        for (number, (name, dtype, shape)) in self.stored.iter().enumerate() {
            let length = width(dtype) * shape.iter().product::<u64>();
            if Some(number) != without {
                entries.push(TensorInfo {
                    name: name.clone(),
                    dtype: serde_json::from_value(json!(dtype)).unwrap(),
                    shape: shape.clone(),
                    offset,
                    length,
                });
            }
            offset += length;
        }
        entries
    }

    /// Whether it is a part that all weights have or none, and the only one of the checkpoint.
    fn is_only_of_its_kind(&self, name: &str) -> bool {
        let ending = name.rsplit_once('.').map_or(name, |(_, ending)| ending);
        let alike = self
            .stored
            .iter()
            .filter(|(other, ..)| other.ends_with(ending));
        ending.ends_with("input_scale") && alike.count() == 1
    }

    /// Whether findings say no more than that layers are not stored which the configuration announces:
    /// a model is whole without them, and no class saves them.
    fn is_whole_with(&self, findings: &[Finding]) -> bool {
        let endings = ["-nomtp", "-memory", "-saved"];
        let may_lack = endings.iter().any(|end| self.name.ends_with(end));
        let mut kinds = findings.iter().map(|f| f.kind);
        kinds.all(|kind| kind == FindingKind::LaterLayersNotStored && may_lack)
    }

    pub(crate) fn audit(&self, without: Option<usize>) -> Audit {
        let tensors = self.entries(without);
        let path = "model.safetensors";
        let described = Described {
            config: Some(&self.config),
            shards: vec![ShardTensors {
                path,
                tensors: &tensors,
            }],
            ..Described::default()
        };
        audit(&described, AuditOptions::new())
    }

    pub(crate) fn write(&self, folder: &Path) -> PathBuf {
        let tensors = self.stored.iter().map(|(name, dtype, shape)| {
            let length = width(dtype) * shape.iter().product::<u64>();
            Tensor {
                name: name.clone(),
                dtype: dtype.clone(),
                shape: shape.clone(),
                bytes: bytes_of(name, length),
            }
        });
        let tiny = Tiny {
            config: self.config.clone(),
            shards: vec![("model.safetensors".to_owned(), tensors.collect())],
            files: self.files.clone(),
            index: false,
        };
        tiny.cut(3).write(folder)
    }
}

/// Bytes that differ from tensor to tensor, and are finite numbers of any dtype.
fn bytes_of(name: &str, length: u64) -> Vec<u8> {
    let seed = name
        .bytes()
        .fold(7_u64, |n, b| n.wrapping_mul(31) + u64::from(b));
    let next = |n: u64| (seed.wrapping_add(n)).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 58;
    (0..length).map(|n| next(n) as u8).collect()
}

#[test]
fn every_family_and_quantisation_is_audited() {
    let all = all();
    assert_eq!(all.len(), 163);
    all.iter().for_each(assert_audited);
}

/// What `save_pretrained` of transformers 5.23 writes, and what its classes have in memory, which
/// other programs save: experts stacked, some under other names. With the configuration that it
/// writes.
#[test]
fn spellings_of_transformers_5_are_audited_and_come_back() {
    let all = listed("transformers5.jsonl.gz");
    assert_eq!(all.len(), 52);
    all.iter().for_each(assert_audited);
    for checkpoint in &all {
        for number in (checkpoint.name.len() % 9..checkpoint.stored.len()).step_by(9) {
            assert_dropped(checkpoint, number);
        }
    }
    let sample = ["mixtral-memory", "minimax_m2-memory", "nemotron_h-saved"];
    let sample = all.iter().filter(|c| sample.contains(&c.name.as_str()));
    sample.for_each(assert_comes_back);
}

fn assert_audited(checkpoint: &Checkpoint) {
    let name = &checkpoint.name;
    let found = checkpoint.audit(None);
    assert_eq!(
        found.family.map(|f| f.as_str()),
        Some(checkpoint.family.as_str())
    );
    let is_whole = checkpoint.is_whole_with(&found.findings);
    assert!(found.complete && is_whole, "{name}: {:#?}", found.findings);
    let counts = &found.counts;
    let counts = [
        counts.stored_tensors,
        counts.logical_parameters,
        counts.tensor_bytes,
    ];
    let wanted = [checkpoint.tensors, checkpoint.logical, checkpoint.bytes];
    assert_eq!(counts, wanted, "{name}");
}

/// Names each tensor that is dropped; every ninth of all.
#[test]
fn a_dropped_tensor_is_found_by_its_name() {
    for checkpoint in all() {
        for number in (checkpoint.name.len() % 9..checkpoint.stored.len()).step_by(9) {
            assert_dropped(&checkpoint, number);
        }
    }
}

#[test]
#[ignore = "minutes; the sampled one is above"]
fn every_dropped_tensor_is_found_by_its_name() {
    let mut tried = 0;
    for checkpoint in all() {
        for number in 0..checkpoint.stored.len() {
            assert_dropped(&checkpoint, number);
            tried += 1;
        }
    }
    eprintln!("{tried} dropped tensors");
}

pub(crate) fn assert_dropped(checkpoint: &Checkpoint, number: usize) {
    let name = &checkpoint.stored[number].0;
    // which tensor is missing is told where the rest says that it belongs there
    let is_told =
        |f: &Finding| f.kind == FindingKind::MissingTensor && f.tensor.as_ref() == Some(name);
    let found = checkpoint.audit(Some(number));
    let optional = name.ends_with("lm_head.weight")
        && checkpoint.config["tie_word_embeddings"] == json!(true)
        || name.ends_with("inv_freq")
        || checkpoint.is_only_of_its_kind(name);
    assert!(
        optional || found.findings.iter().any(is_told),
        "{}: {name}: {:#?}",
        checkpoint.name,
        found.findings
    );
}

#[test]
fn some_come_back_byte_for_byte() {
    let sample = [
        "gpt_oss-base-mxfp4",
        "dbrx-base",
        "deepseek_v3-base-fp8-block",
        "qwen3_5_moe-odd",
        "nemotron_h-base-gptq",
    ];
    for checkpoint in all() {
        if sample.contains(&checkpoint.name.as_str()) {
            assert_comes_back(&checkpoint);
        }
    }
}

#[test]
#[ignore = "minutes; some are above"]
fn all_come_back_byte_for_byte() {
    let all = all();
    all.iter().for_each(assert_comes_back);
    eprintln!("{} checkpoints", all.len());
}

/// Scan, pack, verify, unpack, repack, export: nothing is lost, and each expert has its segment.
pub(crate) fn assert_comes_back(checkpoint: &Checkpoint) {
    let (name, folder) = (&checkpoint.name, temp());
    let at = |path: &str| folder.path().join(path);
    let source = checkpoint.write(&at("checkpoint"));
    let scan = segpack!["scan", &source, "--json"].ok();
    assert!(checkpoint.is_whole_with(&scan.findings()), "{name}: {scan}");
    segpack!["pack", &source, "-o", at("pack")].ok();
    let segments = manifest(&at("pack"))["segments"].clone();
    let segments = segments.as_array().unwrap().iter();
    let of_experts = segments.filter(|s| s["id"].as_str().unwrap().contains(".experts."));
    assert_eq!(of_experts.count(), checkpoint.expert_segments, "{name}");
    segpack!["verify", at("pack"), "--against", &source].ok();
    segpack!["unpack", at("pack"), "-o", at("back")].ok();
    assert_same(&at("back"), &source);
    segpack!["repack", at("pack"), "-o", at("coded"), "--codec", "zstd"].ok();
    segpack!["verify", at("coded")].ok();
    segpack!["export", at("coded"), "--to", "hf", "-o", at("hf")].ok();
}

/// A checkpoint with a layer that predicts later tokens, and how many layers the model has.
fn with_later_layer() -> (Checkpoint, String) {
    let mut all = all().into_iter();
    let checkpoint = all.find(|c| c.name == "deepseek_v3-base").unwrap();
    let layers = checkpoint.config["num_hidden_layers"].as_u64().unwrap();
    let prefix = format!("model.layers.{layers}.");
    assert!(
        checkpoint
            .stored
            .iter()
            .any(|(name, ..)| name.starts_with(&prefix))
    );
    (checkpoint, prefix)
}

#[test]
fn later_layers_that_are_announced_and_not_stored_are_one_warning() {
    let (mut checkpoint, prefix) = with_later_layer();
    checkpoint
        .stored
        .retain(|(name, ..)| !name.starts_with(&prefix));
    let found = checkpoint.audit(None);
    let [finding] = &found.findings[..] else {
        panic!("{:#?}", found.findings)
    };
    assert_eq!(finding.kind, FindingKind::LaterLayersNotStored);
    assert!(found.complete);
}

#[test]
fn later_layers_that_are_stored_and_not_announced_are_one_finding() {
    let (mut checkpoint, prefix) = with_later_layer();
    checkpoint.config["num_nextn_predict_layers"] = json!(0);
    let found = checkpoint.audit(None);
    let [finding] = &found.findings[..] else {
        panic!("{:#?}", found.findings)
    };
    assert_eq!(finding.kind, FindingKind::ExtraTensor);
    assert!(finding.tensor.as_ref().unwrap().starts_with(&prefix));
    assert!(finding.seen.as_ref().unwrap().contains("does not announce"));
}
