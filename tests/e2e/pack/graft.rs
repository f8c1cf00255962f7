//! `graft`: a fine-tuned thinker in the place of the original one, everything else as it was.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::checkpoint::alone::thinker;
use crate::support::cli::{FindingKind, Run, segpack};
use crate::support::damage::{flip, manifest};
use crate::support::folders::{assert_same, contents, temp};
use crate::support::packs::pack_into;
use crate::support::tiny::Tiny;

/// Tensors that fine-tuning changed.
const TUNED: [&str; 3] = [
    "model.layers.1.mlp.experts.3.up_proj.weight",
    "model.layers.0.mlp.gate.weight",
    "audio_tower.ln_post.weight",
];

/// The thinker with other values.
fn tuned() -> Tiny {
    let mut tiny = thinker();
    for name in TUNED {
        tiny.tensor(name).bytes[1] ^= 1;
    }
    tiny
}

/// The whole model with that thinker in it.
fn merged() -> Tiny {
    let mut tiny = Tiny::full();
    for name in TUNED {
        tiny.tensor(&format!("thinker.{name}")).bytes[1] ^= 1;
    }
    tiny
}

fn packed(tiny: &Tiny, folder: &Path, name: &str, options: &[&str]) -> PathBuf {
    let checkpoint = tiny.write(&folder.join(format!("{name}-checkpoint")));
    let pack = folder.join(name);
    pack_into(&checkpoint, &pack, options);
    pack
}

fn graft(thinker: &Path, onto: &Path, out: &Path) -> Run {
    segpack!["graft", thinker, "--onto", onto, "-o", out, "--json"]
}

fn generated(pack: &Path) -> Vec<Value> {
    let ids = ["--prompt-ids", "5,6,7,8", "--max-new-tokens", "6", "--json"];
    let (tokens, _) = segpack!["run", pack, ids[0], ids[1], ids[2], ids[3], ids[4]]
        .ok()
        .tokens();
    tokens.iter().map(|t| t["id"].clone()).collect()
}

#[test]
fn a_grafted_pack_is_the_pack_of_the_merged_checkpoint() {
    for options in [&[][..], &["--codec", "bf16-rans"]] {
        let folder = temp();
        let whole = packed(&Tiny::full(), folder.path(), "whole", options);
        let wanted = packed(&merged(), folder.path(), "wanted", options);
        // the thinker may be coded otherwise, or not be packed at all
        let thinker = packed(&tuned(), folder.path(), "thinker", &["--codec", "zstd"]);
        for (name, from) in [
            ("of-pack", thinker),
            ("of-checkpoint", folder.path().join("thinker-checkpoint")),
        ] {
            let out = folder.path().join(name);
            let report = graft(&from, &whole, &out).ok().json();
            assert_eq!(report["changed_tensors"], json!(TUNED.len()));
            assert!(report["kept_packs"].as_u64().unwrap() > 0, "{report}");
            assert_eq!(
                contents(&out.join("packs")),
                contents(&wanted.join("packs"))
            );
            segpack![
                "verify",
                &out,
                "--against",
                folder.path().join("wanted-checkpoint")
            ]
            .ok();
            let back = folder.path().join(format!("{name}-back"));
            segpack!["unpack", &out, "-o", &back].ok();
            assert_same(&back, &folder.path().join("wanted-checkpoint"));
            let sources = &manifest(&out)["graft"];
            let digest = segpack!["info", &whole, "--json"].ok().json()["manifest_sha256"].clone();
            assert_eq!(sources["onto"]["manifest_sha256"], digest);
            assert_eq!(
                sources["thinker"]["manifest_sha256"],
                report["thinker_sha256"]
            );
        }
        assert_eq!(
            generated(&folder.path().join("of-pack")),
            generated(&wanted)
        );
    }
}

#[test]
fn another_codec_of_a_grafted_pack_keeps_where_it_came_from() {
    let folder = temp();
    let whole = packed(&Tiny::full(), folder.path(), "whole", &[]);
    let thinker = tuned().write(&folder.path().join("thinker"));
    let (out, coded) = (folder.path().join("out"), folder.path().join("coded"));
    graft(&thinker, &whole, &out).ok();
    segpack!["repack", &out, "-o", &coded, "--codec", "zstd"].ok();
    assert_eq!(manifest(&coded)["graft"], manifest(&out)["graft"]);
    segpack!["verify", &coded].ok();
}

/// What is refused leaves nothing.
fn refused(thinker: &Tiny, onto: &Path, folder: &Path) -> Run {
    let thinker = thinker.write(&folder.join("thinker"));
    let out = folder.join("out");
    let run = graft(&thinker, onto, &out).exits(3);
    assert!(!out.exists(), "{run}");
    run
}

#[test]
fn a_thinker_of_another_model_is_refused_by_name_and_number() {
    let whole_folder = temp();
    let whole = packed(&Tiny::full(), whole_folder.path(), "whole", &[]);

    let (folder, mut other) = (temp(), tuned());
    other.config["text_config"]["rms_norm_eps"] = json!(0.5);
    refused(&other, &whole, folder.path()).says(&["config.json", "0.5"]);

    // a model with a layer less, complete as its own configuration says
    let (folder, mut less) = (temp(), tuned());
    let layers = less.config["text_config"]["num_hidden_layers"]
        .as_u64()
        .unwrap();
    less.config["text_config"]["num_hidden_layers"] = json!(layers - 1);
    let last = format!("model.layers.{}.", layers - 1);
    for (_, tensors) in &mut less.shards {
        tensors.retain(|t| !t.name.starts_with(&last));
    }
    refused(&less, &whole, folder.path()).says(&["sizes"]);

    // an incomplete one
    let (folder, mut lacking) = (temp(), tuned());
    lacking.remove("model.norm.weight");
    let run = refused(&lacking, &whole, folder.path());
    assert_eq!(run.findings()[0].kind, FindingKind::MissingTensor);
}

#[test]
fn a_thinker_is_put_into_a_whole_and_sound_model_only() {
    let folder = temp();
    let only = packed(
        &Tiny::full(),
        folder.path(),
        "only",
        &["--include", "thinker"],
    );
    refused(&tuned(), &only, folder.path()).says(&["lacks components"]);
    let folder = temp();
    let alone = packed(&thinker(), folder.path(), "alone", &[]);
    refused(&tuned(), &alone, folder.path()).says(&["talker"]);
    let folder = temp();
    let damaged = packed(&Tiny::full(), folder.path(), "damaged", &[]);
    flip(&damaged.join("packs/code2wav.safetensors"), 5000);
    refused(&tuned(), &damaged, folder.path()).says(&["damaged"]);
}
