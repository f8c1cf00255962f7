//! Qwen3-VL-MoE with images: prompts, features and answers are those of the official processor and
//! class; what is not taken is refused by name.

use std::fs;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use segpack_formats::safetensors::Shard;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::checkpoint::fixtures;
use crate::support::cli::{Run, packed, run, segpack};
use crate::support::folders::temp;
#[cfg(all(unix, feature = "serve"))]
use crate::support::http::Server;
use crate::support::tiny::{Tiny, tiny_vl};

fn vl() -> (TempDir, PathBuf) {
    let folder = temp();
    let pack = packed(&tiny_vl(), folder.path());
    (folder, pack)
}

fn media(file: &str) -> PathBuf {
    fixtures().join("media").join(file)
}

fn trace() -> PathBuf {
    fixtures().join("traces/tiny-vl.media.images.float32.safetensors")
}

/// The messages of the trace with whole paths, and its document.
fn conversation(folder: &Path) -> (PathBuf, Value) {
    let document = fs::read(trace().with_extension("json")).unwrap();
    let document: Value = serde_json::from_slice(&document).unwrap();
    let mut messages = document["conversation"]["messages"].clone();
    for message in messages.as_array_mut().unwrap() {
        for part in message["content"].as_array_mut().unwrap() {
            if let Some(path) = part["image"].as_str() {
                part["image"] = json!(fixtures().join(path));
            }
        }
    }
    let file = folder.join("chat.json");
    fs::write(&file, messages.to_string()).unwrap();
    (file, document)
}

fn tensor(path: &Path, name: &str) -> Vec<u8> {
    let shard = Shard::open(path).unwrap();
    let tensor = shard.tensor(name).unwrap();
    let range = tensor.offset..tensor.offset + tensor.length;
    shard.input.read_range(range).unwrap()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    let values = bytes.as_chunks::<4>().0.iter();
    values.map(|b| f32::from_le_bytes(*b)).collect()
}

/// `segpack run PACK` with these arguments behind it.
fn asked(pack: &Path, arguments: &[&str]) -> Run {
    let mut all = vec!["run".into(), pack.as_os_str().to_owned()];
    all.extend(arguments.iter().map(Into::into));
    run(&all)
}

#[test]
fn prompts_with_images_have_the_official_ids_grids_and_pixels() {
    let (folder, pack) = vl();
    let (chat, _) = conversation(folder.path());
    // transformers 5 writes one file for all processors
    let nested = folder.path().join("nested");
    fs::create_dir(&nested).unwrap();
    let mut checkpoint = Tiny::read(&tiny_vl());
    for (file, key) in [
        ("preprocessor_config.json", "image_processor"),
        ("video_preprocessor_config.json", "video_processor"),
    ] {
        let place = checkpoint.files.iter().position(|(name, _)| name == file);
        let (_, bytes) = checkpoint.files.remove(place.unwrap());
        if key == "image_processor" {
            let object: Value = serde_json::from_slice(&bytes).unwrap();
            let all = json!({"processor_class": "Qwen3VLProcessor", key: object});
            let name = "processor_config.json".to_owned();
            checkpoint.files.push((name, all.to_string().into_bytes()));
        }
    }
    let source = folder.path().join("source");
    fs::create_dir(&source).unwrap();
    let of_5 = packed(&checkpoint.write(&source), &nested);
    let features = folder.path().join("features.safetensors");
    for pack in [&pack, &of_5] {
        let (chat, to) = (chat.to_str().unwrap(), features.to_str().unwrap());
        let options = ["--messages", chat, "--print-prompt", "--dump-features", to];
        asked(pack, &options).ok();
        for name in ["mm.input_ids", "mm.image.grid"] {
            assert_eq!(tensor(&features, name), tensor(&trace(), name), "{name}");
        }
        let [seen, wanted] = [&features, &trace()].map(|p| floats(&tensor(p, "mm.image.pixels")));
        assert_eq!(seen.len(), wanted.len());
        let far = seen.iter().zip(&wanted).map(|(s, w)| (s - w).abs());
        let far = far.fold(0.0, f32::max);
        assert!(far <= 1e-6, "{far:e}");
        fs::remove_file(&features).unwrap();
    }
}

#[test]
fn answers_to_images_are_those_of_the_official_class() {
    let (folder, pack) = vl();
    let (chat, document) = conversation(folder.path());
    let options = ["--json", "--max-new-tokens", "12"];
    let chat = ["--messages", chat.to_str().unwrap()];
    let (_, summary) = asked(&pack, &[&chat[..], &options].concat()).ok().tokens();
    assert_eq!(summary["ids"], document["generated"]);
}

#[test]
fn a_recorded_trace_of_images_is_compared_stage_by_stage() {
    let (folder, pack) = vl();
    let own = folder.path().join("own.safetensors");
    let (photo, thin) = (media("photo.png"), media("exif6.jpg"));
    segpack![
        "run",
        &pack,
        "--chat",
        "--image",
        &photo,
        "--image",
        &thin,
        "--prompt",
        "What?",
        "--max-new-tokens",
        "4",
        "--trace",
        &own
    ]
    .ok();
    let report = segpack!["validate", &pack, "--reference", &own, "--json"].ok();
    let report = report.json();
    let stages = report["stages"].as_array().unwrap();
    for wanted in ["image_rows", "image_deepstack", "positions", "embeddings"] {
        let row = stages.iter().find(|row| row["stage"] == wanted).unwrap();
        assert_eq!(row["max_abs"], 0.0, "{wanted}");
    }
}

/// Which frequency goes by which axis is of no matter where all axes have the same position.
#[test]
fn text_alone_has_the_same_bits_however_its_frequencies_are_shared() {
    let (folder, pack) = vl();
    let mut plain = Tiny::read(&tiny_vl());
    plain.config["text_config"]["rope_scaling"]["mrope_section"] = json!([8, 0, 0]);
    let [source, out] = ["source", "plain"].map(|name| folder.path().join(name));
    for folder in [&source, &out] {
        fs::create_dir(folder).unwrap();
    }
    let plain = packed(&plain.write(&source), &out);
    let options = "--prompt-ids 5,9,77,200,31,8 --max-new-tokens 6 --top-k-logits 320 --json";
    let options: Vec<&str> = options.split(' ').collect();
    let tops = |pack: &Path| -> Vec<Value> {
        let tokens = asked(pack, &options).ok().tokens().0;
        tokens.iter().map(|token| token["top"].clone()).collect()
    };
    let seen = tops(&pack);
    assert_eq!(seen.len(), 6);
    assert_eq!(seen[0].as_array().unwrap().len(), 320);
    assert_eq!(seen, tops(&plain));
}

#[test]
fn other_media_and_other_recipes_are_refused_by_name() {
    let (folder, pack) = vl();
    let paths = ["blip_50ms_16k.wav", "anim_7frames.gif", "photo.png"].map(media);
    let [sound, film, photo] = paths.each_ref().map(|path| path.to_str().unwrap());
    let printed = |pack: &Path, more: &[&str]| {
        let chat = ["--chat", "--prompt", "x", "--print-prompt"];
        asked(pack, &[&chat[..], more].concat())
    };
    for (option, file, words) in [
        ("--audio", sound, "cannot use audio"),
        ("--video", film, "cannot use video"),
    ] {
        printed(&pack, &["--image", photo, option, file])
            .exits(3)
            .says(&[words, file, "images alone are taken"]);
    }
    printed(&pack, &["--image", photo, "--media-recipe", "model-card"])
        .exits(2)
        .says(&["qwen-omni-utils", "loads images by transformers"]);
    let words = ["--chat", "--print-prompt", "--prompt"];
    for (text, problem) in [
        ("a <|image_pad|>", "has 1 <|image_pad|> and 0 image"),
        ("a <|video_pad|>", "has 1 <|video_pad|> and 0 video"),
    ] {
        asked(&pack, &[&words[..], &[text]].concat())
            .exits(3)
            .says(&[problem]);
    }
    let blind = folder.path().join("blind");
    segpack!["pack", tiny_vl(), "-o", &blind, "--exclude", "vision"].ok();
    printed(&blind, &["--image", photo])
        .exits(3)
        .says(&["the pack has no encoder of image", photo]);
}

#[test]
fn a_tokenizer_that_names_its_placeholders_is_believed() {
    let folder = temp();
    let mut checkpoint = Tiny::read(&tiny_vl());
    let config = "tokenizer_config.json";
    let found = checkpoint.files.iter_mut().find(|(name, _)| name == config);
    let (_, bytes) = found.unwrap();
    let mut tokenizer: Value = serde_json::from_slice(bytes).unwrap();
    // what the template writes is then no placeholder
    tokenizer["image_token"] = json!("<|vision_pad|>");
    *bytes = tokenizer.to_string().into_bytes();
    let source = folder.path().join("source");
    fs::create_dir(&source).unwrap();
    let pack = packed(&checkpoint.write(&source), folder.path());
    let photo = media("photo.png");
    let chat = ["--chat", "--prompt", "x", "--print-prompt", "--image"];
    asked(&pack, &[&chat[..], &[photo.to_str().unwrap()]].concat())
        .exits(3)
        .says(&["has 0 <|vision_pad|> and 1 image"]);
}

#[cfg(all(unix, feature = "serve"))]
#[test]
fn images_are_taken_from_requests() {
    let (_folder, pack) = vl();
    let photo = media("photo.png");
    let options = "--chat --prompt x --max-new-tokens 4 --json --image";
    let options: Vec<&str> = options.split(' ').collect();
    let one = [&options[..], &[photo.to_str().unwrap()]].concat();
    let (_, summary) = asked(&pack, &one).ok().tokens();
    let server = Server::start(&pack, &[]);
    let request = |kind: &str, file: &str, mime: &str| {
        let bytes = STANDARD.encode(fs::read(media(file)).unwrap());
        let part = json!({"type": kind, kind: {"url": format!("data:{mime};base64,{bytes}")}});
        let content = json!([part, {"type": "text", "text": "x"}]);
        json!({
            "messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 4,
            "return_token_ids": true
        })
    };
    let chat = "/v1/chat/completions";
    let answer = server.post(chat, &request("image_url", "photo.png", "image/png"));
    let answer = answer.ok();
    assert_eq!(answer["prompt_token_ids"], summary["prompt_ids"]);
    assert_eq!(answer["choices"][0]["token_ids"], summary["ids"]);
    let video = server.post(chat, &request("video_url", "anim_7frames.gif", "image/gif"));
    assert_eq!(video.status, 400, "{video:?}");
    let reported = video.json()["error"]["message"].clone();
    assert!(
        reported
            .as_str()
            .unwrap()
            .contains("images alone are taken"),
        "{reported}"
    );
}
