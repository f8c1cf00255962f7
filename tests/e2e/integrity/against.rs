//! `verify --against`: what differs between a pack and a checkpoint is named once, and nothing else
//! is.

use std::fs;
use std::path::PathBuf;

use serde_json::json;
use tempfile::TempDir;

use crate::support::cli::{Finding, FindingKind, Run, segpack};
use crate::support::damage::{edit_manifest, list, resize};
use crate::support::folders::temp;
use crate::support::liar::Liar;
use crate::support::packs::pack_into;
use crate::support::tiny::{INDEX, Qwen3Moe, Tiny};

const FIRST: &str = "model-00001-of-00003.safetensors";
const SECOND: &str = "model-00002-of-00003.safetensors";
const LAST: &str = "model-00003-of-00003.safetensors";

/// A pack, and checkpoints to compare it with.
struct Scene {
    folder: TempDir,
}

impl Scene {
    /// Packs a checkpoint.
    fn of(tiny: &Tiny, options: &[&str]) -> Self {
        let scene = Self { folder: temp() };
        tiny.write(&scene.checkpoint());
        pack_into(&scene.checkpoint(), &scene.pack(), options);
        scene
    }

    fn pack(&self) -> PathBuf {
        self.folder.path().join("pack")
    }

    fn checkpoint(&self) -> PathBuf {
        self.folder.path().join("checkpoint")
    }

    /// Puts another checkpoint in the place of that which was packed.
    fn replace(&self, tiny: &Tiny) {
        fs::remove_dir_all(self.checkpoint()).unwrap();
        tiny.write(&self.checkpoint());
    }

    fn verify(&self) -> Run {
        let (pack, checkpoint) = (self.pack(), self.checkpoint());
        let flags = ["--against", "--json", "--allow-unaudited"];
        segpack!["verify", &pack, flags[0], &checkpoint, flags[1], flags[2]]
    }

    /// What differs: the kind, and the tensor or the file.
    fn differing(&self) -> Vec<(FindingKind, String)> {
        let found = self.verify().exits(3).findings();
        let differs = |f: &Finding| f.kind != FindingKind::NotAudited;
        found.into_iter().filter(differs).map(named).collect()
    }

    /// The first finding of this tensor or file.
    fn about(&self, name: &str) -> Finding {
        let mut found = self.verify().exits(3).findings().into_iter();
        found.find(|f| named(f.clone()).1 == name).unwrap()
    }
}

fn named(finding: Finding) -> (FindingKind, String) {
    let name = finding.tensor.or(finding.file);
    (finding.kind, name.unwrap_or_default())
}

fn differs(name: &str) -> (FindingKind, String) {
    (FindingKind::DiffersFromCheckpoint, name.to_owned())
}

fn not_in_pack(name: &str) -> (FindingKind, String) {
    (FindingKind::NotInPack, name.to_owned())
}

fn not_in_checkpoint(name: &str) -> (FindingKind, String) {
    (FindingKind::NotInCheckpoint, name.to_owned())
}

fn sorted<T: Ord>(mut all: Vec<T>) -> Vec<T> {
    all.sort();
    all
}

fn make_unknown(tiny: &mut Tiny) {
    tiny.config["model_type"] = json!("later_moe");
    tiny.config["architectures"] = json!([]);
}

/// Makes pack and checkpoint those of a family that this build does not know.
fn of_an_unknown_family(scene: &Scene, tiny: &mut Tiny) {
    make_unknown(tiny);
    let liar = Liar::open(&scene.pack());
    liar.edit_kept("config.json", |config| *config = tiny.config.clone());
    liar.seal();
    edit_manifest(&scene.pack(), |m| {
        m["generator"] = json!("segpack 9.9.9");
        m["model"] = json!({"family": "later_moe"});
    });
    scene.replace(tiny);
}

fn tiny() -> Tiny {
    Tiny::qwen3_moe(Qwen3Moe {
        layers: 2,
        experts: 4,
        ..Qwen3Moe::default()
    })
}

#[test]
fn a_shard_with_another_header_is_one_finding_of_that_shard() {
    let mut tiny = tiny();
    let scene = Scene::of(&tiny, &[]);
    scene.verify().ok();
    // of the same length, and with the same tensors
    let last = &mut tiny.shards[2].1;
    let [first, second] = NORMS.map(|name| last.iter().position(|t| t.name == name).unwrap());
    last.swap(first, second);
    scene.replace(&tiny);
    assert_eq!(scene.differing(), [differs(LAST)]);
}

#[test]
fn a_shard_of_another_name_is_one_finding_on_each_side() {
    let mut tiny = tiny();
    let scene = Scene::of(&tiny, &[]);
    tiny.shards[0].0 = "renamed.safetensors".to_owned();
    scene.replace(&tiny);
    let wanted = [
        differs(INDEX),
        not_in_checkpoint(FIRST),
        not_in_pack("renamed.safetensors"),
    ];
    assert_eq!(sorted(scene.differing()), sorted(wanted.to_vec()));
}

#[test]
fn a_shard_that_is_lost_is_one_finding_not_one_of_each_of_its_tensors() {
    let scene = Scene::of(&tiny(), &[]);
    let first = scene.checkpoint().join(FIRST);
    resize(&first, -1);
    let malformed = (FindingKind::MalformedShard, FIRST.to_owned());
    assert_eq!(scene.differing(), [malformed]);
    fs::remove_file(&first).unwrap();
    let missing = (FindingKind::MissingShard, FIRST.to_owned());
    assert_eq!(scene.differing(), [missing]);
}

#[test]
fn a_shard_that_is_lost_hides_nothing_of_another() {
    let mut tiny = tiny();
    let scene = Scene::of(&tiny, &[]);
    let norm = "model.norm.weight";
    tiny.remove(norm);
    tiny.shards[1].0 = "renamed.safetensors".to_owned();
    scene.replace(&tiny);
    fs::remove_file(scene.checkpoint().join(FIRST)).unwrap();
    let found = scene.differing();
    for other in [not_in_checkpoint(norm), not_in_checkpoint(SECOND)] {
        assert!(found.contains(&other), "{found:?}");
    }
}

const STACKED: &str = "model.layers.1.mlp.experts.down_proj";

#[test]
fn experts_that_a_newer_program_cut_are_found_in_the_checkpoint() {
    let mut tiny = tiny().stacked();
    let scene = Scene::of(&tiny, &[]);
    of_an_unknown_family(&scene, &mut tiny);
    scene.verify().ok();
    // the first byte of expert 2 of 4
    let mut other = tiny.clone();
    let stacked = &mut other.tensor(STACKED).bytes;
    let middle = stacked.len() / 2;
    stacked[middle] ^= 1;
    scene.replace(&other);
    let expert = "model.layers.1.mlp.experts.2.down_proj.weight";
    let found = scene.differing();
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found.contains(&differs(expert)), "{found:?}");
    let [start, end] = scene.about(expert).bytes.unwrap();
    assert_eq!(end - start, middle as u64 / 2);
}

#[test]
fn a_stack_that_is_not_what_was_cut_is_not_taken_apart() {
    let mut tiny = tiny().stacked();
    let scene = Scene::of(&tiny, &[]);
    of_an_unknown_family(&scene, &mut tiny);
    let stacked = tiny.tensor(STACKED);
    let one = stacked.bytes.len() / 4;
    stacked.shape[0] += 1;
    stacked.bytes.extend_from_within(..one);
    scene.replace(&tiny);
    let found = scene.differing();
    assert!(found.contains(&not_in_pack(STACKED)), "{found:?}");
    for expert in 0..4 {
        let name = format!("model.layers.1.mlp.experts.{expert}.down_proj.weight");
        assert!(found.contains(&not_in_checkpoint(&name)), "{found:?}");
    }
}

#[test]
fn what_tensors_are_is_compared_only_where_both_sides_know_the_family() {
    let known = tiny();
    let mut unknown = known.clone();
    make_unknown(&mut unknown);
    for (packed, other) in [(&known, &unknown), (&unknown, &known)] {
        let scene = Scene::of(packed, &["--allow-unaudited"]);
        scene.replace(other);
        let wanted = [differs("config.json"), differs("manifest.json")];
        assert_eq!(sorted(scene.differing()), wanted);
    }
}

/// Two tensors of one length in one shard.
const NORMS: [&str; 2] = [
    "model.layers.1.self_attn.k_norm.weight",
    "model.layers.1.self_attn.q_norm.weight",
];

#[test]
fn what_a_tensor_is_and_where_it_lies_are_those_of_the_checkpoint() {
    let scene = Scene::of(&tiny(), &[]);
    edit_manifest(&scene.pack(), |m| {
        let norm = &mut list(m, "tensors").iter_mut();
        let norm = norm.find(|t| t["name"] == NORMS[0]).unwrap();
        norm["role"] = json!("input_norm");
    });
    let found = scene.differing();
    assert!(found.contains(&differs(NORMS[0])), "{found:?}");
    assert!(!found.contains(&differs(NORMS[1])), "{found:?}");

    let scene = Scene::of(&tiny(), &[]);
    let mut liar = Liar::open(&scene.pack());
    liar.swap("source", NORMS[0], NORMS[1]);
    liar.seal();
    let found = scene.differing();
    for name in NORMS {
        assert!(found.contains(&differs(name)), "{found:?}");
    }
}

#[test]
fn what_was_excluded_is_not_missed_and_what_is_new_is_named() {
    let mut tiny = Tiny::full();
    let scene = Scene::of(&tiny, &["--exclude", "talker"]);
    scene.verify().ok();
    let mut new = tiny.shards[0].1[0].clone();
    new.name = "thinker.model.layers.9.self_attn.k_norm.weight".to_owned();
    tiny.shards[0].1.push(new.clone());
    scene.replace(&tiny);
    let found = scene.differing();
    let missed = found.iter().filter(|f| f.0 == FindingKind::NotInPack);
    assert_eq!(missed.collect::<Vec<_>>(), [&not_in_pack(&new.name)]);
}

#[test]
fn what_was_excluded_of_an_unknown_family_is_not_missed() {
    let mut tiny = Tiny::full();
    let scene = Scene::of(&tiny, &["--exclude", "talker"]);
    of_an_unknown_family(&scene, &mut tiny);
    scene.verify().ok();
}
