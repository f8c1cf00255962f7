//! A thinker saved without the rest of its model, and weights that lie beside a checkpoint.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::support::cli::{FindingKind, packed, segpack};
use crate::support::folders::{assert_same, temp};
use crate::support::tiny::{Qwen3Moe, Tiny, shard_bytes, write_file};

/// The thinker of the tiny model, as `Qwen3OmniMoeThinkerForConditionalGeneration.save_pretrained`
/// writes it: its own configuration, names without `thinker.`.
pub(crate) fn thinker() -> Tiny {
    let mut tiny = Tiny::full();
    for (_, tensors) in &mut tiny.shards {
        tensors.retain(|t| t.name.starts_with("thinker."));
        for tensor in tensors {
            tensor.name = tensor.name.replacen("thinker.", "", 1);
        }
    }
    tiny.shards.retain(|(_, tensors)| !tensors.is_empty());
    tiny.config = tiny.config["thinker_config"].take();
    tiny.config["model_type"] = json!("qwen3_omni_moe_thinker");
    tiny.config["architectures"] = json!(["Qwen3OmniMoeThinkerForConditionalGeneration"]);
    tiny
}

fn write(tiny: &Tiny, folder: &Path, name: &str) -> PathBuf {
    tiny.write(&folder.join(name))
}

fn generated(pack: &Path) -> Vec<Value> {
    let run = segpack![
        "run",
        pack,
        "--prompt-ids",
        "5,6,7,8",
        "--max-new-tokens",
        "6",
        "--json"
    ];
    let (tokens, _) = run.ok().tokens();
    tokens.iter().map(|t| t["id"].clone()).collect()
}

#[test]
fn a_thinker_saved_alone_is_the_thinker_of_the_model() {
    let folder = temp();
    let checkpoint = write(&thinker(), folder.path(), "thinker");
    let inventory = segpack!["scan", &checkpoint, "--json"].ok().json();
    assert_eq!(
        (&inventory["audited"], &inventory["findings"]),
        (&json!(true), &json!([]))
    );
    let classes = inventory["classes"].as_array().unwrap();
    let mut components: Vec<_> = classes.iter().map(|c| &c["component"]).collect();
    components.dedup();
    assert_eq!(
        components,
        ["thinker.text", "thinker.audio", "thinker.vision"]
    );

    let pack = packed(&checkpoint, folder.path());
    segpack!["verify", &pack].ok();
    let back = folder.path().join("back");
    segpack!["unpack", &pack, "-o", &back].ok();
    assert_same(&back, &checkpoint);

    let whole = folder.path().join("whole");
    fs::create_dir(&whole).unwrap();
    segpack![
        "pack",
        Tiny::full().write(&folder.path().join("full")),
        "-o",
        &whole
    ]
    .ok();
    assert_eq!(generated(&pack), generated(&whole));
}

#[test]
fn a_norm_that_a_thinker_saved_alone_lacks_is_missed() {
    let (folder, mut tiny) = (temp(), thinker());
    let name = "model.layers.1.input_layernorm.weight";
    tiny.remove(name);
    let run = segpack!["scan", write(&tiny, folder.path(), "thinker"), "--json"].exits(3);
    let found = run.findings();
    assert_eq!(found.len(), 1, "{run}");
    assert_eq!(found[0].kind, FindingKind::MissingTensor);
    assert_eq!(found[0].tensor.as_deref(), Some(name));
}

#[test]
fn the_decoder_of_a_thinker_saved_alone_is_complete_and_runs() {
    let (folder, mut tiny) = (temp(), thinker());
    for (_, tensors) in &mut tiny.shards {
        tensors.retain(|t| t.name.starts_with("model.") || t.name.starts_with("lm_head."));
    }
    tiny.shards.retain(|(_, tensors)| !tensors.is_empty());
    tiny.config = tiny.config["text_config"].take();
    tiny.config["model_type"] = json!("qwen3_omni_moe_text");
    let checkpoint = write(&tiny, folder.path(), "text");
    let inventory = segpack!["scan", &checkpoint, "--json"].ok().json();
    assert_eq!(
        (&inventory["audited"], &inventory["findings"]),
        (&json!(true), &json!([]))
    );
    let pack = packed(&checkpoint, folder.path());
    segpack!["verify", &pack].ok();
    assert_eq!(generated(&pack).len(), 6);
}

/// As `Qwen3OmniMoeThinkerTextModel` (transformers 5.23) saves itself, and as `Qwen3OmniMoeThinkerModel`
/// does: the names inside the model, and no head.
fn without_heads() -> [Tiny; 2] {
    let (mut decoder, mut model) = (thinker(), thinker());
    for (tiny, inner) in [(&mut decoder, ""), (&mut model, "language_model.")] {
        for (_, tensors) in &mut tiny.shards {
            tensors.retain(|t| !t.name.starts_with("lm_head."));
            for tensor in tensors {
                tensor.name = tensor.name.replacen("model.", inner, 1);
            }
        }
    }
    for (_, tensors) in &mut decoder.shards {
        tensors.retain(|t| !t.name.starts_with("audio_tower.") && !t.name.starts_with("visual."));
    }
    decoder.shards.retain(|(_, tensors)| !tensors.is_empty());
    decoder.config = decoder.config["text_config"].take();
    decoder.config["model_type"] = json!("qwen3_omni_moe_text");
    decoder.config["architectures"] = json!(["Qwen3OmniMoeThinkerTextModel"]);
    model.config["architectures"] = json!(["Qwen3OmniMoeThinkerModel"]);
    [decoder, model]
}

/// The names are those of another model, and that is all there is to say.
fn assert_one_finding_says(checkpoint: &Path, words: &str) {
    let run = segpack!["scan", checkpoint, "--json"].exits(3);
    let findings = run.findings();
    let [finding] = &findings[..] else {
        panic!("{run}")
    };
    assert_eq!(finding.kind, FindingKind::OtherNames);
    assert!(finding.to_string().contains(words), "{run}");
}

#[test]
fn a_decoder_saved_without_its_head_is_one_finding() {
    for tiny in without_heads() {
        let folder = temp();
        let checkpoint = write(&tiny, folder.path(), "inner");
        assert_one_finding_says(&checkpoint, "saved without its head");
    }
}

#[test]
fn a_thinker_saved_alone_beside_the_whole_models_configuration_is_one_finding_with_a_way_on() {
    let folder = temp();
    let mut tiny = thinker();
    tiny.config = Tiny::full().config;
    let checkpoint = write(&tiny, folder.path(), "thinker");
    assert_one_finding_says(&checkpoint, "config.json describes the whole model");
    segpack!["pack", &checkpoint, "-o", folder.path().join("none")]
        .exits(3)
        .says(&["enable_audio_output", "--config FILE"]);

    // both ways that it names; what is packed is the thinker of the model
    let whole = packed(
        &Tiny::full().write(&folder.path().join("full")),
        folder.path(),
    );
    let mut silent = tiny.config.clone();
    silent["enable_audio_output"] = json!(false);
    for (number, config) in [silent, thinker().config].into_iter().enumerate() {
        let file = folder.path().join(format!("config-{number}.json"));
        fs::write(&file, config.to_string()).unwrap();
        segpack!["scan", &checkpoint, "--config", &file].ok();
        let pack = folder.path().join(format!("pack-{number}"));
        segpack!["pack", &checkpoint, "-o", &pack, "--config", &file].ok();
        segpack!["verify", &pack].ok();
        assert_eq!(generated(&pack), generated(&whole));
        let back = folder.path().join(format!("back-{number}"));
        segpack!["unpack", &pack, "-o", &back].ok();
        assert_same(&back, &checkpoint);
    }
    // one that lacks a weight, too, says that as well
    tiny.remove("model.layers.1.input_layernorm.weight");
    let checkpoint = write(&tiny, folder.path(), "lacking");
    let findings = segpack!["scan", &checkpoint, "--json"].exits(3).findings();
    let kinds: Vec<_> = findings.iter().map(|f| f.kind).collect();
    assert!(kinds.contains(&FindingKind::OtherNames), "{findings:?}");
    assert!(kinds.contains(&FindingKind::MissingTensor), "{findings:?}");
    assert_eq!(kinds.len(), 2, "{findings:?}");
}

/// A checkpoint with its first shard once more in `original/`, and a file of another format.
fn with_copies(folder: &Path) -> (PathBuf, u64) {
    let tiny = Tiny::qwen3_moe(Qwen3Moe::default());
    let checkpoint = tiny.write(&folder.join("checkpoint"));
    let copy = shard_bytes(&tiny.shards[0].1);
    write_file(&checkpoint.join("original/a.safetensors"), &copy);
    write_file(&checkpoint.join("metal/model.bin"), b"weights");
    (checkpoint, copy.len() as u64)
}

#[test]
fn other_weights_are_named_with_their_size_and_compared_with_the_checkpoint() {
    let folder = temp();
    let (checkpoint, length) = with_copies(folder.path());
    let run = segpack!["scan", &checkpoint, "--json"].exits(3);
    let found = run.findings();
    let files: Vec<_> = found.iter().map(|f| f.file.as_deref().unwrap()).collect();
    assert_eq!(files, ["metal/model.bin", "original/a.safetensors"]);
    assert!(found.iter().all(|f| f.kind == FindingKind::UnlistedShard));
    let seen = found[1].seen.as_deref().unwrap();
    for words in [
        &format!("{length} bytes"),
        "a second copy of the same weights",
    ] {
        assert!(seen.contains(words), "{seen}");
    }
    let text = segpack!["scan", &checkpoint].exits(3);
    assert!(text.text().contains("complete, but beside other weights"));
    segpack!["pack", &checkpoint, "-o", folder.path().join("pack")]
        .exits(3)
        .says(&["metal/model.bin", "--extra keep", "--extra leave"]);
}

#[test]
fn other_weights_are_kept_byte_for_byte_or_left_out_and_recorded() {
    let folder = temp();
    let (checkpoint, _) = with_copies(folder.path());
    let at = |name: &str| folder.path().join(name);
    segpack!["pack", &checkpoint, "-o", at("kept"), "--extra", "keep"].ok();
    segpack!["verify", at("kept"), "--against", &checkpoint].ok();
    segpack!["unpack", at("kept"), "-o", at("all")].ok();
    assert_same(&at("all"), &checkpoint);

    segpack!["pack", &checkpoint, "-o", at("left"), "--extra", "leave"].ok();
    segpack!["verify", at("left"), "--against", &checkpoint].ok();
    segpack!["unpack", at("left"), "-o", at("own")].ok();
    std::fs::remove_dir_all(checkpoint.join("original")).unwrap();
    std::fs::remove_dir_all(checkpoint.join("metal")).unwrap();
    assert_same(&at("own"), &checkpoint);
    // the weights that were there are on record
    let manifest = crate::support::damage::manifest(&at("left"));
    let left: Vec<_> = manifest["left_out"].as_array().unwrap().iter().collect();
    let paths: Vec<_> = left.iter().map(|l| &l["path"]).collect();
    assert_eq!(paths, ["metal/model.bin", "original/a.safetensors"]);
}
