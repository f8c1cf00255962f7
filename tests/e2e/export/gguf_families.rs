//! GGUF files of families other than Qwen3-MoE: what llama.cpp's own converter makes of the same
//! checkpoints (`tests/tools/record_gguf_converter.py` recorded it).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use segpack_formats::digest::Sha256;
use segpack_formats::gguf::{Array, Value};
use serde_json::{Value as Json, json};

use super::gguf::{Gguf, export, printed};
use crate::support::checkpoint::fixtures;
use crate::support::cli::{Run, packed};
use crate::support::damage::flip;
use crate::support::folders::{contents, temp};
use crate::support::packs::pack_into;

/// What was recorded, and the checkpoint that it was recorded of.
const FAMILIES: [(&str, &str); 6] = [
    ("mixtral", "gguf/mixtral"),
    ("olmoe", "gguf/olmoe"),
    ("qwen2_moe", "gguf/qwen2_moe"),
    ("glm4_moe", "gguf/glm4_moe"),
    ("gpt_oss", "gguf/gpt_oss"),
    ("gpt_oss_mxfp4", "decoders/gpt_oss_mxfp4"),
];

pub(super) fn recorded(name: &str) -> Json {
    let path = fixtures().join("gguf").join(format!("{name}.json"));
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// A value of metadata as it was recorded: its type, and itself.
fn as_recorded(value: &Value) -> Json {
    match value {
        Value::U32(number) => json!(["UINT32", number]),
        Value::F32(number) => json!(["FLOAT32", f64::from(*number)]),
        Value::Bool(flag) => json!(["BOOL", flag]),
        Value::Text(text) => json!(["STRING", text]),
        Value::Array(Array::Text(texts)) => json!(["ARRAY", "STRING", texts]),
        Value::Array(Array::F32(numbers)) => {
            let numbers = numbers.iter().copied().map(f64::from);
            json!(["ARRAY", "FLOAT32", numbers.collect::<Vec<_>>()])
        }
        Value::Array(Array::I32(numbers)) => json!(["ARRAY", "INT32", numbers]),
        Value::Array(Array::Bool(flags)) => json!(["ARRAY", "BOOL", flags]),
        other => panic!("{other:?}: nothing of this kind was recorded"),
    }
}

pub(super) fn metadata(gguf: &Gguf) -> BTreeMap<String, Json> {
    let entries = gguf.header.metadata.iter();
    entries
        .map(|(key, value)| (key.clone(), as_recorded(value)))
        .collect()
}

/// Type, shape and digest of each tensor, by name.
pub(super) fn tensors(gguf: &Gguf) -> BTreeMap<String, Json> {
    let tensors = gguf.header.tensors.iter();
    tensors
        .map(|tensor| {
            let digest = Sha256::of(gguf.data(&tensor.name)).to_string();
            let described = json!([tensor.kind.to_string(), tensor.shape, digest]);
            (tensor.name.clone(), described)
        })
        .collect()
}

pub(super) fn by_key(json: &Json) -> BTreeMap<String, Json> {
    serde_json::from_value(json.clone()).unwrap()
}

/// Keys whose values differ, or that one side alone has.
pub(super) fn differing(
    one: &BTreeMap<String, Json>,
    other: &BTreeMap<String, Json>,
) -> Vec<String> {
    let mut keys: Vec<&String> = one.keys().chain(other.keys()).collect();
    keys.sort();
    keys.dedup();
    let differs = |key: &&&String| one.get(**key) != other.get(**key);
    keys.iter()
        .filter(differs)
        .map(ToString::to_string)
        .collect()
}

#[test]
fn a_file_is_what_llama_cpps_converter_makes_of_the_same_checkpoint() {
    for (name, checkpoint) in FAMILIES {
        let (recorded, folder) = (recorded(name), temp());
        let pack = packed(&fixtures().join(checkpoint), folder.path());
        for dtype in ["bf16", "f16", "f32", "q8_0"] {
            let out = folder.path().join(format!("{dtype}.gguf"));
            printed(
                export(&pack, &out, &["--dtype", dtype]),
                &["read back and equal"],
            );
            let gguf = Gguf::read(&out);
            let wanted = by_key(&recorded[dtype]["tensors"]);
            let differing_tensors = differing(&tensors(&gguf), &wanted);
            assert_eq!(differing_tensors, [""; 0], "{name} {dtype}");
            let (seen, wanted) = (metadata(&gguf), by_key(&recorded[dtype]["metadata"]));
            // of a checkpoint without a tokenizer the converter itself makes nothing
            let mut own = vec!["segpack.manifest_sha256".to_owned()];
            let architecture = wanted["general.architecture"][1].as_str().unwrap();
            let rows = format!("{architecture}.vocab_size");
            if wanted["tokenizer.ggml.model"][1] == "none" && !wanted.contains_key(&rows) {
                own.insert(0, rows);
            }
            assert_eq!(differing(&seen, &wanted), own, "{name} {dtype}: {seen:?}");
        }
    }
}

#[test]
fn without_a_dtype_tensors_stay_as_they_are_from_any_pack() {
    for (name, checkpoint) in FAMILIES {
        let folder = temp();
        let mut files = Vec::new();
        for codec in ["raw", "bf16-rans"] {
            let pack = folder.path().join(codec);
            pack_into(&fixtures().join(checkpoint), &pack, &["--codec", codec]);
            let out = folder.path().join(format!("{codec}.gguf"));
            export(&pack, &out, &[]).ok();
            files.push(tensors(&Gguf::read(&out)));
        }
        let wanted = by_key(&recorded(name)["bf16"]["tensors"]);
        assert_eq!(differing(&files[0], &wanted), [""; 0], "{name}");
        assert_eq!(files[0], files[1], "{name}");
    }
}

#[test]
fn every_mix_of_blocks_is_written_of_floats_and_refused_of_mxfp4() {
    let folder = temp();
    for (name, checkpoint) in FAMILIES {
        let at = folder.path().join(name);
        fs::create_dir(&at).unwrap();
        let pack = packed(&fixtures().join(checkpoint), &at);
        for dtype in ["q4_0", "q4_k_m", "q5_k_s", "q6_k"] {
            let out = at.join(format!("{dtype}.gguf"));
            let run = export(&pack, &out, &["--dtype", dtype]);
            if name == "gpt_oss_mxfp4" {
                run.exits(3)
                    .says(&["the experts are MXFP4 already", "--dtype q8_0"]);
                assert!(!out.exists());
            } else {
                printed(run, &["read back and equal"]);
            }
        }
    }
}

/// A checkpoint of the fixtures with another configuration, packed.
fn changed(checkpoint: &str, folder: &Path, changes: &Json) -> PathBuf {
    let (from, to) = (fixtures().join(checkpoint), folder.join("checkpoint"));
    fs::create_dir(&to).unwrap();
    fs::copy(from.join("model.safetensors"), to.join("model.safetensors")).unwrap();
    let mut config: Json =
        serde_json::from_slice(&fs::read(from.join("config.json")).unwrap()).unwrap();
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    fs::write(to.join("config.json"), config.to_string()).unwrap();
    packed(&to, folder)
}

#[track_caller]
fn refused(run: Run, folder: &Path, words: &[&str]) {
    run.exits(3).says(words);
    let left = contents(folder);
    let left: Vec<_> = left.keys().filter(|name| name.contains("gguf")).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn families_and_settings_that_llama_cpp_computes_otherwise_are_refused_by_name() {
    for (checkpoint, changes, words) in [
        (
            "decoders/granitemoe",
            json!({}),
            &["not for granitemoe", "--to hf"][..],
        ),
        ("decoders/dots1", json!({}), &["not for dots1"]),
        (
            "decoders/qwen3_vl_moe",
            json!({}),
            &["not for qwen3_vl_moe"],
        ),
        (
            "decoders/mixtral",
            json!({}),
            &["llama.cpp's llama attends to everything", "--to hf"],
        ),
        (
            "decoders/olmoe",
            json!({}),
            &["llama.cpp's olmoe has as many key heads"],
        ),
        (
            "gguf/qwen2_moe",
            json!({"norm_topk_prob": true}),
            &["qwen2moe takes the chosen experts' weights"],
        ),
        ("decoders/glm4_moe", json!({}), &["glm4moe gets no groups"]),
        (
            "decoders/gpt_oss",
            json!({"swiglu_limit": 6.0}),
            &["gpt-oss computes SwiGLU"],
        ),
        (
            "decoders/qwen3_moe_fp8",
            json!({}),
            &["the scale of a quantised weight", "qwen3moe"],
        ),
    ] {
        let folder = temp();
        let pack = changed(checkpoint, folder.path(), &changes);
        let run = export(&pack, &folder.path().join("model.gguf"), &[]);
        refused(run, folder.path(), words);
    }
}

#[test]
fn layers_that_predict_later_tokens_may_be_left_out() {
    let folder = temp();
    let (from, to) = (
        fixtures().join("gguf/glm4_moe"),
        folder.path().join("checkpoint"),
    );
    fs::create_dir(&to).unwrap();
    fs::copy(from.join("config.json"), to.join("config.json")).unwrap();
    let bytes = fs::read(from.join("model.safetensors")).unwrap();
    fs::write(
        to.join("model.safetensors"),
        without(&bytes, "model.layers.2."),
    )
    .unwrap();
    let out = folder.path().join("model.gguf");
    export(&packed(&to, folder.path()), &out, &[]).ok();
    let gguf = Gguf::read(&out);
    // the file tells of the layer, which is how llama.cpp knows that it may look for it
    let is =
        |key: &str, value: u32| assert_eq!(gguf.header.get(key), Some(&Value::U32(value)), "{key}");
    is("glm4moe.block_count", 3);
    is("glm4moe.nextn_predict_layers", 1);
    let wanted = by_key(&recorded("glm4_moe")["bf16"]["tensors"]);
    let left_out = differing(&tensors(&gguf), &wanted);
    assert_eq!(left_out.len(), 25);
    assert!(
        left_out.iter().all(|name| name.starts_with("blk.2.")),
        "{left_out:?}"
    );
}

/// A safetensors file without the tensors whose names begin so.
fn without(file: &[u8], prefix: &str) -> Vec<u8> {
    let length = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let (header, data) = file[8..].split_at(length);
    let listed: BTreeMap<String, Json> = serde_json::from_slice(header).unwrap();
    let (mut kept, mut bytes) = (serde_json::Map::new(), Vec::<u8>::new());
    for (name, mut entry) in listed {
        if name.starts_with(prefix) || name == "__metadata__" {
            continue;
        }
        let at = |n: usize| entry["data_offsets"][n].as_u64().unwrap() as usize;
        let (start, own) = (bytes.len(), &data[at(0)..at(1)]);
        bytes.extend(own);
        entry["data_offsets"] = json!([start, bytes.len()]);
        kept.insert(name, entry);
    }
    let header = Json::Object(kept).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.into_bytes());
    file.extend(bytes);
    file
}

#[test]
fn damage_of_scales_beside_their_blocks_is_found_and_nothing_is_published() {
    for options in [&[][..], &["--no-check"]] {
        let folder = temp();
        let pack = packed(&fixtures().join("decoders/gpt_oss_mxfp4"), folder.path());
        // the scales are the last bytes of the last expert's segment but one bias
        let file = pack.join("packs/text.experts.01.safetensors");
        let manifest: Json =
            serde_json::from_slice(&fs::read(pack.join("manifest.json")).unwrap()).unwrap();
        let tensors = manifest["tensors"].as_array().unwrap();
        let name = "model.layers.1.mlp.experts.3.down_proj_scales";
        let scales = tensors.iter().find(|t| t["name"] == name).unwrap();
        let segments = manifest["segments"].as_array().unwrap();
        let segment = segments
            .iter()
            .find(|s| s["id"] == scales["segment"])
            .unwrap();
        let at = segment["offset"].as_i64().unwrap() + scales["offset"].as_i64().unwrap_or(0);
        flip(&file, at);
        let run = export(&pack, &folder.path().join("model.gguf"), options);
        refused(run, folder.path(), &[name]);
    }
}
