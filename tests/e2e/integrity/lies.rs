//! Packs that agree with themselves and lie: the manifest was edited, packs and kept files were
//! written again, and every digest, length and count was made right. `verify` derives what the
//! manifest has to be, and finds each of them, even with `--quick`; `repack` and `export` refuse
//! them before they write.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::support::checkpoint::Random;
use crate::support::cli::{Finding, FindingKind, segpack};
use crate::support::damage::{edit_manifest, list};
use crate::support::folders::{copy, temp};
use crate::support::liar::{Liar, Listed, name_of};
use crate::support::packs::pack_into;
use crate::support::tiny::{INDEX, Qwen3Moe, Tiny, tiny_full, tiny_text};

/// What is told, the finding that names it, and how it is told.
type Lie = (&'static str, FindingKind, fn(&mut Liar));

const NORM: &str = "thinker.model.layers.1.self_attn.q_norm.weight";
const Q: &str = "thinker.model.layers.0.self_attn.q_proj.weight";
const O: &str = "thinker.model.layers.0.self_attn.o_proj.weight";
const K: &str = "thinker.model.layers.0.self_attn.k_proj.weight";
const V: &str = "thinker.model.layers.0.self_attn.v_proj.weight";
const EXPERT: &str = "thinker.model.layers.1.mlp.experts.2.";
const LAYER: &str = "thinker.model.layers.2.";
const HEAD: &str = "thinker.lm_head.weight";

/// Takes tensors out of packs, manifest and kept headers.
fn lose(liar: &mut Liar, part: &str) {
    liar.drop_tensors(part);
    liar.edit_headers(|tensors| tensors.retain(|t| !t.name.contains(part)));
}

/// And out of the index.
fn lose_all(liar: &mut Liar, part: &str) {
    lose(liar, part);
    liar.fit_index();
}

fn text_config(config: &mut Value) -> &mut Value {
    &mut config["thinker_config"]["text_config"]
}

fn set(liar: &mut Liar, tensor: &str, key: &str, value: Value) {
    liar.tensor(tensor)[key] = value;
}

fn number_of_the_model(liar: &mut Liar, key: &str, value: Value) {
    liar.document["model"]["text"][key] = value;
}

/// Moves a segment, with its tensors, to another id.
fn rename_segment(liar: &mut Liar, from: &str, to: &str) {
    for segment in liar.entries("segments") {
        if segment["id"] == from {
            segment["id"] = json!(to);
        }
    }
    for tensor in liar.entries("tensors") {
        if tensor["segment"] == from {
            tensor["segment"] = json!(to);
        }
    }
}

fn rename_pack(liar: &mut Liar, from: &str, to: &str) {
    for pack in liar.entries("packs") {
        if pack["path"] == from {
            pack["path"] = json!(to);
        }
    }
    for segment in liar.entries("segments") {
        if segment["pack"] == from {
            segment["pack"] = json!(to);
        }
    }
}

fn drop_shard(liar: &mut Liar, path: &str) {
    liar.entries("tensors")
        .retain(|t| t["source"]["file"] != path);
    liar.drop_kept(path);
}

fn is_of(component: &'static str) -> impl Fn(&Value) -> bool {
    move |entry| entry["component"] == component
}

const SHARD: &str = "model-00002-of-00004.safetensors";

#[rustfmt::skip]
const LIES: &[Lie] = &[
    // what is missing from the manifest and the packs
    ("a norm is not packed", FindingKind::NotInPack, |l| l.drop_tensors(NORM)),
    ("an expert is not packed", FindingKind::NotInPack, |l| l.drop_tensors(EXPERT)),
    ("a layer is not packed", FindingKind::NotInPack, |l| l.drop_tensors(LAYER)),
    ("the head is not packed", FindingKind::NotInPack, |l| l.drop_tensors(HEAD)),
    ("all experts of a layer are not packed", FindingKind::NotInPack, |l| l.drop_tensors("thinker.model.layers.1.mlp.experts.")),
    ("a component is not packed, nor excluded", FindingKind::NotInPack, |l| l.entries("tensors").retain(|t| !is_of("code2wav")(t))),
    // and from the kept headers
    ("a norm is gone, headers too", FindingKind::MissingTensor, |l| lose(l, NORM)),
    ("an expert is gone, headers too", FindingKind::MissingTensor, |l| lose(l, EXPERT)),
    ("a layer is gone, headers too", FindingKind::MissingTensor, |l| lose(l, LAYER)),
    ("the index still names what is gone", FindingKind::NotInShard, |l| lose(l, NORM)),
    // and from the index
    ("a norm is gone, index too", FindingKind::MissingTensor, |l| lose_all(l, NORM)),
    ("an expert is gone, index too", FindingKind::MissingTensor, |l| lose_all(l, EXPERT)),
    ("a layer is gone, index too", FindingKind::MissingTensor, |l| lose_all(l, LAYER)),
    ("the head is gone, index too", FindingKind::MissingTensor, |l| lose_all(l, HEAD)),
    ("the talker is gone, index too", FindingKind::MissingTensor, |l| lose_all(l, "talker.")),
    ("a bias of a tower is gone", FindingKind::MissingTensor, |l| lose_all(l, "thinker.audio_tower.conv2d1.bias")),
    ("a layer is gone, config.json too", FindingKind::WrongModelFacts, |l| {
        lose_all(l, LAYER);
        l.edit_kept("config.json", |c| text_config(c)["num_hidden_layers"] = json!(2));
    }),
    ("a shard is gone", FindingKind::MissingShard, |l| drop_shard(l, SHARD)),
    ("a shard is gone, index too", FindingKind::MissingTensor, |l| { drop_shard(l, SHARD); l.fit_index(); }),
    ("the index is gone", FindingKind::MalformedIndex, |l| l.drop_kept(INDEX)),
    ("a shard and the index are gone", FindingKind::MissingTensor, |l| { drop_shard(l, SHARD); l.drop_kept(INDEX); }),
    ("config.json is gone", FindingKind::NotAudited, |l| l.drop_kept("config.json")),
    // what config.json says
    ("config.json has a layer less", FindingKind::ExtraTensor, |l| {
        l.edit_kept("config.json", |c| text_config(c)["num_hidden_layers"] = json!(2));
        number_of_the_model(l, "layers", json!(2));
        number_of_the_model(l, "moe_layers", json!(2));
    }),
    ("config.json has a layer more", FindingKind::MissingTensor, |l| {
        l.edit_kept("config.json", |c| text_config(c)["num_hidden_layers"] = json!(4));
    }),
    ("config.json has an expert more", FindingKind::OtherSizes, |l| {
        l.edit_kept("config.json", |c| text_config(c)["num_experts"] = json!(9));
    }),
    ("config.json has other heads", FindingKind::MisshapedTensor, |l| {
        l.edit_kept("config.json", |c| text_config(c)["num_attention_heads"] = json!(2));
    }),
    ("config.json has another dtype", FindingKind::WrongDtype, |l| {
        l.edit_kept("config.json", |c| c["dtype"] = json!("float16"));
    }),
    ("config.json chooses other experts", FindingKind::WrongModelFacts, |l| {
        l.edit_kept("config.json", |c| text_config(c)["num_experts_per_tok"] = json!(1));
    }),
    ("config.json is no JSON", FindingKind::BadConfig, |l| l.edit_kept("config.json", |c| *c = json!([]))),
    ("config.json is of nobody's family", FindingKind::NotAudited, |l| {
        l.edit_kept("config.json", |c| { c["model_type"] = json!("x"); c["architectures"] = json!([]); });
    }),
    // what the index says
    ("the index has another sum", FindingKind::WrongTotalSize, |l| {
        l.edit_kept(INDEX, |i| i["metadata"]["total_size"] = json!(1));
    }),
    ("the index has a tensor elsewhere", FindingKind::NotInShard, |l| {
        l.edit_kept(INDEX, |i| i["weight_map"][HEAD] = json!("model-00001-of-00004.safetensors"));
    }),
    ("the index lacks a tensor", FindingKind::NotInIndex, |l| {
        l.edit_kept(INDEX, |i| { i["weight_map"].as_object_mut().unwrap().remove(HEAD); });
    }),
    // what kept headers say
    ("a header has another dtype", FindingKind::WrongDtype, |l| {
        l.edit_headers(|all| for t in all.iter_mut().filter(|t| t.name == NORM) { t.dtype = "F16".to_owned(); });
        set(l, NORM, "dtype", json!("F16"));
    }),
    ("a header has another shape", FindingKind::MisshapedTensor, |l| {
        l.edit_headers(|all| for t in all.iter_mut().filter(|t| t.name == Q) { t.shape.reverse(); });
        l.tensor(Q)["shape"].as_array_mut().unwrap().reverse();
    }),
    ("a header has a tensor under another name", FindingKind::MissingTensor, |l| {
        l.tensor(NORM)["source"]["tensor"] = json!("mystery");
        l.edit_headers(|all| for t in all.iter_mut().filter(|t| t.name == NORM) { t.name = "mystery".to_owned(); });
        l.fit_index();
    }),
    // what the manifest calls a tensor
    ("another role", FindingKind::WrongClassification, |l| set(l, Q, "role", json!("attention_k"))),
    ("a role that nobody knows", FindingKind::WrongClassification, |l| set(l, Q, "role", json!("attention_temperature"))),
    ("a role that nobody knows, by a newer program", FindingKind::WrongClassification, |l| {
        l.document["generator"] = json!("segpack 9.9.9");
        set(l, Q, "role", json!("attention_temperature"));
    }),
    ("gate and up change roles", FindingKind::WrongClassification, |l| {
        l.swap("role", &format!("{EXPERT}gate_proj"), &format!("{EXPERT}up_proj"));
    }),
    ("another part", FindingKind::WrongClassification, |l| set(l, Q, "part", json!("bias"))),
    ("another layer", FindingKind::WrongClassification, |l| set(l, NORM, "layer", json!(0))),
    ("no layer", FindingKind::WrongClassification, |l| { l.tensor(NORM).as_object_mut().unwrap().remove("layer"); }),
    ("another expert", FindingKind::WrongClassification, |l| set(l, EXPERT, "expert", json!(3))),
    ("another component", FindingKind::WrongClassification, |l| set(l, HEAD, "component", json!("talker.text"))),
    ("a component that nobody knows", FindingKind::WrongClassification, |l| set(l, HEAD, "component", json!("later"))),
    ("another name", FindingKind::NotInCheckpoint, |l| l.rename(NORM, "thinker.model.layers.1.self_attn.z_norm.weight")),
    ("a name of the next layer", FindingKind::NotInCheckpoint, |l| l.rename(NORM, "thinker.model.layers.9.self_attn.q_norm.weight")),
    ("two tensors change names", FindingKind::WrongSource, |l| { l.rename(K, "x"); l.rename(V, K); l.rename("x", V); }),
    // where it lies
    ("another segment", FindingKind::WrongPlacement, |l| {
        set(l, NORM, "segment", json!("thinker.text.layers.0.attention"));
        let tensors = l.entries("tensors");
        let at = tensors.iter().position(|t| name_of(t) == NORM).unwrap();
        let norm = tensors.remove(at);
        let to = tensors.iter().rposition(|t| t["segment"] == norm["segment"]).unwrap();
        tensors.insert(to + 1, norm);
    }),
    ("two tensors of a segment change places", FindingKind::WrongPlacement, |l| {
        let tensors = l.entries("tensors");
        let at = tensors.iter().position(|t| name_of(t) == Q).unwrap();
        tensors.swap(at, at + 1);
    }),
    ("two experts change places", FindingKind::WrongPlacement, |l| {
        let tensors = l.entries("tensors");
        let segments: Vec<Value> = tensors.iter().map(|t| t["segment"].clone()).collect();
        let first = segments.iter().position(|s| s.as_str().unwrap().contains("experts.0")).unwrap();
        for tensor in &mut tensors[first..first + 3] { tensor["segment"] = segments[first + 3].clone(); }
        for tensor in &mut tensors[first + 3..first + 6] { tensor["segment"] = segments[first].clone(); }
    }),
    ("two segments of a pack in another order", FindingKind::WrongPlacement, |l| l.entries("segments").swap(1, 2)),
    ("two packs in another order", FindingKind::WrongPlacement, |l| l.entries("packs").swap(0, 1)),
    ("another segment id", FindingKind::WrongPlacement, |l| {
        rename_segment(l, "thinker.text.layers.0.attention", "thinker.text.layers.0.attn");
    }),
    ("another pack path", FindingKind::WrongPlacement, |l| {
        rename_pack(l, "packs/thinker.text.experts.01.safetensors", "packs/thinker.text.experts.1.safetensors");
    }),
    ("another component of a pack", FindingKind::WrongPlacement, |l| l.entries("packs")[0]["component"] = json!("text")),
    ("an expert in the pack of another layer", FindingKind::WrongPlacement, |l| {
        let segments = l.entries("segments");
        let at = segments.iter().rposition(|s| s["pack"] == "packs/thinker.text.experts.01.safetensors").unwrap();
        segments[at]["pack"] = json!("packs/thinker.text.experts.02.safetensors");
    }),
    // where it was in the checkpoint
    ("another place in the shard", FindingKind::WrongSource, |l| l.swap("source", K, V)),
    ("another tensor of the shard", FindingKind::WrongSource, |l| l.tensor(K)["source"]["tensor"] = json!(V)),
    ("another shard", FindingKind::WrongSource, |l| {
        let other = l.tensor(HEAD)["source"]["file"].clone();
        let files: Vec<Value> = l.entries("source_files").iter().filter(|f| f["kind"] == "shard").map(|f| f["path"].clone()).collect();
        let file = files.into_iter().find(|f| *f != other).unwrap();
        // a tensor of one shard said to be of another, over the bytes of one that is said to be gone
        let taken = l.entries("tensors").iter().position(|t| t["source"]["file"] == file).unwrap();
        let source = l.entries("tensors").remove(taken)["source"].clone();
        let length = source["length"].clone();
        let at = l.entries("tensors").iter().position(|t| t["length"] == length && t["source"]["file"] == other);
        if let Some(at) = at { l.entries("tensors")[at]["source"] = source; }
        else { let t = l.tensor(HEAD); t["source"]["tensor"] = json!("x"); }
    }),
    ("another dtype", FindingKind::WrongSource, |l| set(l, NORM, "dtype", json!("F16"))),
    ("a transposed shape", FindingKind::WrongSource, |l| l.tensor(Q)["shape"].as_array_mut().unwrap().reverse()),
    ("a flat shape", FindingKind::WrongSource, |l| {
        let values: u64 = l.tensor(O)["shape"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).product();
        set(l, O, "shape", json!([values]));
    }),
    // the model's numbers
    ("hidden size", FindingKind::WrongModelFacts, |l| number_of_the_model(l, "hidden_size", json!(96))),
    ("layers", FindingKind::WrongModelFacts, |l| number_of_the_model(l, "layers", json!(2))),
    ("layers with experts", FindingKind::WrongModelFacts, |l| number_of_the_model(l, "moe_layers", json!(2))),
    ("experts", FindingKind::WrongModelFacts, |l| number_of_the_model(l, "experts", json!(7))),
    ("experts per token", FindingKind::WrongModelFacts, |l| number_of_the_model(l, "experts_per_token", json!(1))),
    ("vocabulary", FindingKind::WrongModelFacts, |l| number_of_the_model(l, "vocab", json!(300))),
    ("heads", FindingKind::WrongModelFacts, |l| number_of_the_model(l, "heads", json!(2))),
    ("epsilon", FindingKind::WrongModelFacts, |l| number_of_the_model(l, "rms_norm_eps", json!(1e-5))),
    ("theta", FindingKind::WrongModelFacts, |l| number_of_the_model(l, "rope_theta", json!(10000.0))),
    ("normed probabilities", FindingKind::WrongModelFacts, |l| number_of_the_model(l, "norm_topk_prob", json!(false))),
    ("a tied head", FindingKind::WrongModelFacts, |l| number_of_the_model(l, "tie_word_embeddings", json!(true))),
    ("another family", FindingKind::WrongModelFacts, |l| l.document["model"]["family"] = json!("qwen3_moe")),
    ("no family", FindingKind::WrongModelFacts, |l| l.document["model"]["family"] = json!(null)),
    ("a family that nobody knows", FindingKind::WrongModelFacts, |l| l.document["model"]["family"] = json!("foo_moe")),
    ("a family that nobody knows, by a newer program", FindingKind::NotAudited, |l| {
        l.document["generator"] = json!("segpack 9.9.9");
        l.document["model"]["family"] = json!("foo_moe");
    }),
    ("the same, and a norm is not packed", FindingKind::NotInPack, |l| {
        l.document["generator"] = json!("segpack 9.9.9");
        l.document["model"]["family"] = json!("foo_moe");
        l.drop_tensors(NORM);
    }),
    ("no numbers", FindingKind::WrongModelFacts, |l| { l.document["model"].as_object_mut().unwrap().remove("text"); }),
    // what was excluded
    ("what is packed is said to be excluded", FindingKind::WrongExcluded, |l| {
        l.document["excluded"] = json!([{"component": "code2wav", "tensors": 1, "bytes": 2}]);
    }),
    ("what is not packed is said to be excluded, against the options", FindingKind::NotInPack, |l| {
        l.entries("tensors").retain(|t| !is_of("code2wav")(t));
        l.document["excluded"] = json!([{"component": "code2wav", "tensors": 1, "bytes": 2}]);
    }),
    ("options exclude what is packed", FindingKind::NotInCheckpoint, |l| {
        l.document["options"]["exclude"] = json!(["code2wav"]);
    }),
    ("options exclude what there is not", FindingKind::WrongExcluded, |l| {
        l.document["options"]["exclude"] = json!(["later"]);
    }),
    // the rest
    ("a shard without a digest", FindingKind::WrongRecord, |l| {
        for file in l.entries("source_files") { if file["path"] == SHARD { file["sha256"] = json!(null); } }
    }),
    ("options without source digests", FindingKind::WrongRecord, |l| l.document["options"]["source_digests"] = json!(false)),
    ("a level without a codec that has one", FindingKind::WrongRecord, |l| l.document["options"]["level"] = json!(3)),
    ("a published checkpoint", FindingKind::WrongRecord, |l| {
        l.document["known"] = json!({"repo": "Qwen/Qwen3-Omni-30B-A3B-Instruct", "revision": "x", "identical": true});
    }),
    ("source files in another order", FindingKind::WrongRecord, |l| l.entries("source_files").swap(0, 1)),
    ("a file is kept under another name", FindingKind::WrongRecord, |l| l.keep_as("merges.txt", "source/other.txt")),
    ("a second index", FindingKind::MalformedIndex, |l| l.copy_kept(INDEX, "other.safetensors.index.json")),
    ("a header is longer than it says", FindingKind::MalformedShard, |l| l.pad_header(SHARD)),
    ("a tensor is in two shards", FindingKind::DuplicateTensor, |l| {
        let norm = l.tensor(NORM).clone();
        l.edit_headers(|all| if !all.iter().any(|t| t.name == NORM) {
            let shape = serde_json::from_value(norm["shape"].clone()).unwrap();
            let dtype = norm["dtype"].as_str().unwrap().to_owned();
            all.push(Listed { name: NORM.to_owned(), dtype, shape, length: norm["length"].as_u64().unwrap() });
        });
    }),
];

/// A fresh copy of a pack, and what is told of it.
fn tell(good: &Path, to: &Path, lie: impl FnOnce(&mut Liar)) -> PathBuf {
    copy(good, to);
    let mut liar = Liar::open(to);
    lie(&mut liar);
    liar.seal();
    to.to_owned()
}

/// `verify` finds it, quick and full; nothing is written from it.
#[track_caller]
fn assert_found(pack: &Path, what: &str, kind: FindingKind) {
    for how in ["--quick", "--sums"] {
        let run = segpack!["verify", pack, how, "--json"].exits(3);
        let found = run.findings();
        assert!(
            found.iter().any(|f| f.kind == kind),
            "{what} {how}: no {kind:?} in {run}"
        );
        assert!(
            found.iter().all(|f| f.kind != FindingKind::BadManifest
                && f.kind != FindingKind::DamagedFile
                && f.kind != FindingKind::WrongSums),
            "{what} {how}: the lie contradicts itself: {run}"
        );
        assert_ne!(run.json()["ok"], json!(true));
    }
    let out = pack.with_extension("out");
    // of a model that nobody knows, only what holds without knowing it is refused
    if kind != FindingKind::NotAudited {
        segpack!["repack", pack, "--codec", "zstd", "-o", &out].exits(3);
        segpack!["export", pack, "--to", "npy", "-o", &out].exits(3);
    }
    assert!(!out.exists(), "{what}");
}

#[test]
fn every_lie_is_found() {
    let folder = temp();
    let good = folder.path().join("good");
    pack_into(&tiny_full(), &good, &[]);
    for (number, (what, kind, lie)) in LIES.iter().enumerate() {
        let pack = tell(&good, &folder.path().join(number.to_string()), lie);
        assert_found(&pack, what, *kind);
        fs::remove_dir_all(pack).unwrap();
    }
}

/// A pack from which components were excluded lists them in its kept headers still.
#[test]
fn lies_about_what_was_excluded() {
    let folder = temp();
    let good = folder.path().join("good");
    pack_into(&tiny_full(), &good, &["--exclude", "talker"]);
    let lies: [Lie; 8] = [
        ("in another order", FindingKind::WrongExcluded, |l| {
            l.entries("excluded").swap(0, 1);
        }),
        ("one of them twice", FindingKind::WrongExcluded, |l| {
            let first = l.document["excluded"][0].clone();
            l.entries("excluded").push(first);
        }),
        ("nothing was excluded", FindingKind::WrongExcluded, |l| {
            l.document["excluded"] = json!([]);
        }),
        ("less was excluded", FindingKind::WrongExcluded, |l| {
            l.document["excluded"][0]["tensors"] = json!(1);
        }),
        (
            "other bytes were excluded",
            FindingKind::WrongExcluded,
            |l| {
                l.document["excluded"][0]["bytes"] = json!(2);
            },
        ),
        (
            "something else was excluded",
            FindingKind::WrongExcluded,
            |l| {
                l.document["excluded"][0]["component"] = json!("code2wav");
            },
        ),
        ("options exclude nothing", FindingKind::NotInPack, |l| {
            l.document["options"]
                .as_object_mut()
                .unwrap()
                .remove("exclude");
        }),
        (
            "a norm of what was not excluded",
            FindingKind::NotInPack,
            |l| l.drop_tensors(NORM),
        ),
    ];
    for (number, (what, kind, lie)) in lies.iter().enumerate() {
        let pack = tell(&good, &folder.path().join(number.to_string()), lie);
        assert_found(&pack, what, *kind);
    }
}

/// One thing is in the place of another: what is missing is named, and so is what is too much.
#[test]
fn what_is_missing_and_what_is_too_much_are_both_named() {
    const OLD: &str = "thinker.text.layers.0.attention";
    const NEW: &str = "thinker.text.layers.0.attn";
    const PACK: &str = "packs/thinker.text.experts.01.safetensors";
    const OTHER: &str = "packs/thinker.text.experts.1.safetensors";
    let folder = temp();
    let good = folder.path().join("good");
    pack_into(&tiny_full(), &good, &[]);
    let found = |lie: fn(&mut Liar)| {
        let pack = tell(&good, &folder.path().join("lie"), lie);
        let run = segpack!["verify", &pack, "--quick", "--json"].exits(3);
        fs::remove_dir_all(pack).unwrap();
        run.findings()
    };
    // of which segment or pack, and of no tensor
    let names = |all: &[Finding], name: &str| {
        let of_it = |f: &&Finding| {
            let named = f.segment.as_deref() == Some(name) || f.file.as_deref() == Some(name);
            f.kind == FindingKind::WrongPlacement && f.tensor.is_none() && named
        };
        all.iter().filter(of_it).count()
    };
    let all = found(|l| rename_segment(l, OLD, NEW));
    assert_eq!((names(&all, OLD), names(&all, NEW)), (1, 1), "{all:?}");
    let all = found(|l| rename_pack(l, PACK, OTHER));
    assert_eq!((names(&all, PACK), names(&all, OTHER)), (1, 1), "{all:?}");
    // a segment in another pack, a shorter one, and a tensor in another segment
    let all = found(|l| {
        let segments = l.entries("segments");
        let at = segments.iter().rposition(|s| s["pack"] == PACK).unwrap();
        segments[at]["pack"] = json!("packs/thinker.text.experts.02.safetensors");
    });
    let moved = all
        .iter()
        .find(|f| f.segment.is_some() && f.tensor.is_none());
    assert!(moved.is_some(), "{all:?}");
    let all = found(|l| l.drop_tensors("thinker.model.layers.0.self_attn.q_norm.weight"));
    assert_eq!(names(&all, OLD), 1, "{all:?}");
    let all = found(|l| l.drop_tensors("thinker.model.layers.1.mlp.experts."));
    assert_eq!(names(&all, PACK), 1, "{all:?}");
    assert_eq!(names(&all, "thinker.text.layers.1.experts.0"), 1, "{all:?}");
}

/// What holds of a model that nobody knows: the kept headers say which tensors there are.
#[test]
fn lies_about_a_model_that_nobody_knows() {
    let folder = temp();
    let good = folder.path().join("good");
    pack_into(&tiny_full(), &good, &[]);
    edit_manifest(&good, |m| {
        m["generator"] = json!("segpack 9.9.9");
        m["model"]["family"] = json!("foo_moe");
    });
    assert_honest(&good, "not_known");
    // by the rules of the family that this program takes it for a layer would be missing
    let later = tell(&good, &folder.path().join("later"), |l| {
        l.edit_kept("config.json", |c| {
            text_config(c)["num_hidden_layers"] = json!(4);
        });
    });
    assert_honest(&later, "not_known");
    let lies: [Lie; 9] = [
        ("a norm is not packed", FindingKind::NotInPack, |l| {
            l.drop_tensors(NORM);
        }),
        (
            "a tensor that no header has",
            FindingKind::NotInCheckpoint,
            |l| l.tensor(K)["source"]["tensor"] = json!("mystery"),
        ),
        ("another dtype", FindingKind::WrongSource, |l| {
            set(l, NORM, "dtype", json!("F16"));
        }),
        ("a transposed shape", FindingKind::WrongSource, |l| {
            l.tensor(Q)["shape"].as_array_mut().unwrap().reverse();
        }),
        ("two places change", FindingKind::WrongSource, |l| {
            let all = l.entries("tensors");
            let like = |t: &Value| [t["source"]["file"].clone(), t["length"].clone()];
            let pairs = (0..all.len()).flat_map(|b| (0..b).map(move |a| (a, b)));
            let mut pairs = pairs.filter(|(a, b)| like(&all[*a]) == like(&all[*b]));
            let (a, b) = pairs.next().unwrap();
            let before = all[a]["source"]["offset"].clone();
            all[a]["source"]["offset"] = all[b]["source"]["offset"].clone();
            all[b]["source"]["offset"] = before;
        }),
        ("another component", FindingKind::WrongClassification, |l| {
            set(l, HEAD, "component", json!("later"));
        }),
        ("excluded, but packed", FindingKind::WrongExcluded, |l| {
            l.document["excluded"] = json!([{"component": "later", "tensors": 1, "bytes": 2}]);
        }),
        ("more than was excluded", FindingKind::WrongExcluded, |l| {
            l.drop_tensors(NORM);
            l.document["excluded"] = json!([{"component": "later", "tensors": 1, "bytes": 2}]);
        }),
        (
            "the index has another sum",
            FindingKind::WrongTotalSize,
            |l| {
                l.edit_kept(INDEX, |i| i["metadata"]["total_size"] = json!(1));
            },
        ),
    ];
    for (number, (what, kind, lie)) in lies.iter().enumerate() {
        let pack = tell(&good, &folder.path().join(number.to_string()), lie);
        assert_found(&pack, what, *kind);
    }
}

/// A program that did not know the family packed all of it unclassified: one that knows it now takes
/// the pack for what it is.
#[test]
fn a_model_that_its_packer_did_not_know_is_still_what_it_packed() {
    let folder = temp();
    let mut unknown = Tiny::qwen3_moe(Qwen3Moe::default());
    let known = ["model_type", "architectures"].map(|key| unknown.config[key].clone());
    unknown.config["model_type"] = json!("later_moe");
    unknown.config["architectures"] = json!([]);
    let checkpoint = unknown.write(&folder.path().join("checkpoint"));
    let good = folder.path().join("good");
    pack_into(&checkpoint, &good, &["--allow-unaudited"]);
    assert_honest(&good, "not_known");
    let pack = folder.path().join("pack");
    copy(&good, &pack);
    let liar = Liar::open(&pack);
    liar.edit_kept("config.json", |c| {
        let [model_type, architectures] = known;
        c["model_type"] = model_type;
        c["architectures"] = architectures;
    });
    liar.seal();
    assert_honest(&pack, "not_known");
}

/// What is wrong, and what then is said of completeness.
type Completeness = (&'static str, &'static str, fn(&mut Liar));

#[test]
fn completeness_says_whether_tensors_are_missing() {
    let folder = temp();
    let good = folder.path().join("good");
    pack_into(&tiny_full(), &good, &[]);
    let lies: [Completeness; 5] = [
        ("a norm is not packed", "incomplete", |l| {
            l.drop_tensors(NORM);
        }),
        ("a norm is gone, index too", "incomplete", |l| {
            lose_all(l, NORM);
        }),
        ("another role", "complete", |l| {
            set(l, Q, "role", json!("attention_k"));
        }),
        ("theta", "complete", |l| {
            number_of_the_model(l, "rope_theta", json!(10000.0));
        }),
        ("config.json is gone", "not_known", |l| {
            l.drop_kept("config.json");
        }),
    ];
    for (number, (what, wanted, lie)) in lies.into_iter().enumerate() {
        let pack = tell(&good, &folder.path().join(number.to_string()), lie);
        let run = segpack!["verify", &pack, "--quick", "--json"].exits(3);
        assert_eq!(run.json()["completeness"], wanted, "{what}: {run}");
    }
}

/// What a newer program knows of published checkpoints, this one need not.
#[test]
fn a_published_checkpoint_that_only_a_newer_program_knows_is_no_lie() {
    let folder = temp();
    let pack = folder.path().join("pack");
    pack_into(&tiny_full(), &pack, &[]);
    edit_manifest(&pack, |m| {
        m["known"] = json!({"repo": "later/model", "revision": "x", "identical": true});
        m["generator"] = json!("segpack 9.9.9");
    });
    assert_honest(&pack, "complete");
}

/// Every segment is of the codec that the options name, or raw.
#[test]
fn a_segment_of_another_codec_than_that_of_the_options_is_found() {
    let folder = temp();
    let pack = folder.path().join("pack");
    pack_into(&tiny_full(), &pack, &["--codec", "bf16-zstd"]);
    edit_manifest(&pack, |m| m["options"]["codec"] = json!("zstd"));
    let run = segpack!["verify", &pack, "--quick", "--json"].exits(3);
    let found = run.findings();
    let wrong = |f: &Finding| f.kind == FindingKind::WrongRecord && f.segment.is_some();
    assert!(found.iter().any(wrong), "{run}");
}

/// A file that is too long for what it is kept for is not read.
#[test]
fn a_kept_file_over_the_limit_is_not_read() {
    const LENGTH: u64 = 100_000_009;
    let folder = temp();
    let pack = folder.path().join("pack");
    pack_into(&tiny_full(), &pack, &[]);
    let config = fs::File::options()
        .write(true)
        .open(pack.join("source/config.json"))
        .unwrap();
    config.set_len(LENGTH).unwrap();
    edit_manifest(&pack, |m| {
        let mut files = list(m, "source_files").iter_mut();
        let file = files.find(|f| f["path"] == "config.json").unwrap();
        (file["length"], file["stored_length"]) = (json!(LENGTH), json!(LENGTH));
    });
    let run = segpack!["verify", &pack, "--quick", "--json"].exits(3);
    let found = run.findings();
    assert!(
        found.iter().any(|f| f.kind == FindingKind::WrongLength),
        "{run}"
    );
    assert!(run.text().contains("over the limit of 100000008"), "{run}");
}

/// What is told, the file that the finding names, and how it is told.
type ToldByTheCheckpoint = (&'static str, &'static str, fn(&mut Liar));

/// What only the checkpoint itself can tell.
#[test]
fn lies_that_only_the_checkpoint_tells() {
    let folder = temp();
    let checkpoint = folder.path().join("checkpoint");
    let revision = "0123456789abcdef0123456789abcdef01234567";
    Tiny::text().write_download(&checkpoint, revision);
    let good = folder.path().join("good");
    segpack!["pack", &checkpoint, "-o", &good].ok();
    segpack!["verify", &good, "--against", &checkpoint].ok();
    let lies: [ToldByTheCheckpoint; 5] = [
        (
            "another digest of a shard",
            "model-00002-of-00004.safetensors",
            |l| {
                for file in l.entries("source_files") {
                    if file["path"] == SHARD {
                        file["sha256"] = json!("ab".repeat(32));
                    }
                }
            },
        ),
        ("another revision", "manifest.json", |l| {
            l.document["provenance"]["revision"] = json!("f".repeat(40));
        }),
        ("another number, config.json too", "manifest.json", |l| {
            l.edit_kept("config.json", |c| {
                text_config(c)["num_experts_per_tok"] = json!(1);
            });
            number_of_the_model(l, "experts_per_token", json!(1));
        }),
        ("another header", "model-00001-of-00004.safetensors", |l| {
            l.edit_headers(|tensors| tensors.reverse());
        }),
        ("a side file is gone", "generation_config.json", |l| {
            l.drop_kept("generation_config.json");
        }),
    ];
    for (number, (what, file, lie)) in lies.into_iter().enumerate() {
        let pack = tell(&good, &folder.path().join(number.to_string()), lie);
        segpack!["verify", &pack, "--quick"].ok();
        let run = segpack![
            "verify",
            &pack,
            "--quick",
            "--against",
            &checkpoint,
            "--json"
        ]
        .exits(3);
        let found = run.findings();
        let named = |f: &crate::support::cli::Finding| f.file.as_deref() == Some(file);
        assert!(found.iter().any(named), "{what}: {run}");
    }
}

/// What the liar does besides lying is not found.
#[test]
fn a_pack_that_is_only_sealed_again_is_honest() {
    let folder = temp();
    let good = folder.path().join("good");
    pack_into(&tiny_full(), &good, &[]);
    let sealed = tell(&good, &folder.path().join("sealed"), |_| {});
    assert_honest(&sealed, "complete");
    let again = tell(&good, &folder.path().join("headers"), |l| {
        l.edit_headers(|_| {});
        l.fit_index();
    });
    // other headers than those of the originals are not what the recorded digests are of
    let run = segpack!["verify", &again, "--json"].exits(3);
    let all = run.findings();
    assert!(!all.is_empty(), "{run}");
    assert!(
        all.iter().all(|f| f.kind == FindingKind::NotRestorable),
        "{run}"
    );
    assert_honest_but(&again, "complete", "--no-restorable");
}

fn assert_honest(pack: &Path, completeness: &str) {
    assert_honest_but(pack, completeness, "--color=auto");
}

fn assert_honest_but(pack: &Path, completeness: &str, option: &str) {
    let run = segpack!["verify", pack, "--allow-unaudited", "--json", option].ok();
    assert_eq!(run.json()["completeness"], completeness, "{run}");
    let wrong = run
        .findings()
        .into_iter()
        .filter(|f| f.kind != FindingKind::NotAudited);
    assert_eq!(wrong.collect::<Vec<_>>(), [], "{run}");
}

/// Every kind of honest pack: nothing is found.
#[test]
fn honest_packs_give_no_finding() {
    let folder = temp();
    let full = tiny_full();
    let text = tiny_text();
    let write = |name: &str, tiny: &Tiny| tiny.write(&folder.path().join(name));
    let moe = Tiny::qwen3_moe(Qwen3Moe::default());
    let stacked = write("stacked", &moe.clone().stacked());
    let single = write("single", &Tiny::text().single());
    let wide = write("wide", &Tiny::text().converted("F32"));
    let fp8 = write(
        "fp8",
        &Tiny::qwen3_moe(Qwen3Moe::default()).fp8([16, 16], &[]),
    );
    let plain = write("plain", &moe);
    let file = single.join("model.safetensors");
    let bare = write(
        "bare",
        &Tiny {
            config: Value::Null,
            ..Tiny::text().single()
        },
    );
    let mut unknown = Tiny::qwen3_moe(Qwen3Moe::default());
    unknown.config["model_type"] = json!("later_moe");
    unknown.config["architectures"] = json!([]);
    let unknown = write("unknown", &unknown);
    for (checkpoint, options, completeness) in [
        (&full, &["--codec", "raw"][..], "complete"),
        (&full, &["--codec", "zstd", "--level", "1"], "complete"),
        (&full, &["--codec", "bf16-rans"], "complete"),
        (&full, &["--codec", "bf16-zstd", "--no-sums"], "complete"),
        (
            &full,
            &["--exclude", "talker", "--exclude", "code2wav"],
            "complete",
        ),
        (&full, &["--include", "thinker.vision"], "complete"),
        (
            &full,
            &["--no-source-digests", "--no-provenance"],
            "complete",
        ),
        (&text, &["--include", "thinker"], "complete"),
        (&stacked, &[], "complete"),
        (&single, &[], "complete"),
        (&file, &[], "complete"),
        (&wide, &[], "complete"),
        (&fp8, &["--codec", "zstd"], "complete"),
        (&plain, &[], "complete"),
        (&bare, &["--allow-unaudited"], "not_known"),
        (&unknown, &["--allow-unaudited"], "not_known"),
    ] {
        let pack = folder.path().join("pack");
        pack_into(checkpoint, &pack, options);
        assert_honest(&pack, completeness);
        let other = folder.path().join("repacked");
        segpack!["repack", &pack, "--codec", "zstd", "-o", &other, "--force"].ok();
        assert_honest(&other, completeness);
    }
}

/// Changes some leaf of the manifest that follows from what the pack keeps.
fn change_at_random(document: &mut Value, random: &mut Random) -> Option<String> {
    const KEYS: [(&str, &[&str]); 4] = [
        (
            "tensors",
            &[
                "dtype",
                "shape",
                "segment",
                "component",
                "role",
                "part",
                "layer",
                "expert",
                "name",
            ],
        ),
        ("segments", &["id", "pack"]),
        ("packs", &["component", "path"]),
        ("source_files", &["path"]),
    ];
    let mut pick = |n: usize| (random.next() % n as u64) as usize;
    let (list, keys) = KEYS[pick(KEYS.len())];
    let key = keys[pick(keys.len())];
    let entries = document[list].as_array()?;
    let (at, from) = (pick(entries.len()), pick(entries.len()));
    let (before, other) = (
        entries[at].get(key).cloned(),
        entries[from].get(key).cloned(),
    );
    if before == other || (list == "source_files" && entries[at]["kind"] != "shard") {
        return None;
    }
    let entry = document[list][at].as_object_mut()?;
    match other {
        Some(other) => drop(entry.insert(key.to_owned(), other)),
        None => drop(entry.remove(key)),
    }
    Some(format!("{list}[{at}].{key}: {before:?}"))
}

/// Lies told at random: each is found, or the manifest contradicts itself.
fn sweep(seed: u64, count: u64) {
    let folder = temp();
    let good = folder.path().join("good");
    pack_into(&tiny_full(), &good, &[]);
    let mut random = Random(seed);
    let mut reported = 0;
    while reported < count {
        let pack = folder.path().join("lie");
        let _ = fs::remove_dir_all(&pack);
        copy(&good, &pack);
        let mut document = crate::support::damage::manifest(&pack);
        let Some(what) = change_at_random(&mut document, &mut random) else {
            continue;
        };
        reported += 1;
        crate::support::damage::edit_manifest(&pack, |m| *m = document);
        let run = segpack!["verify", &pack, "--quick", "--json"];
        assert_eq!(
            run.status,
            Some(3),
            "seed {seed}, lie {reported}, {what}: {run}"
        );
    }
}

#[test]
fn lies_told_at_random_are_found() {
    sweep(1, 60);
}

#[test]
#[ignore = "takes a minute"]
fn many_lies_told_at_random_are_found() {
    for seed in 2..22 {
        sweep(seed, 200);
    }
    eprintln!("20 seeds, 2 to 21, 200 lies each");
}
