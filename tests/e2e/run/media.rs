//! Audio, images and videos in prompts, against official traces.

use std::fs;
use std::path::{Path, PathBuf};

use segpack_formats::safetensors::Shard;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::checkpoint::fixtures;
use crate::support::cli::{packed, segpack};
use crate::support::folders::temp;
use crate::support::tiny::tiny_omni;

fn omni() -> (TempDir, PathBuf) {
    let folder = temp();
    let pack = packed(&tiny_omni(), folder.path());
    (folder, pack)
}

fn media(file: &str) -> PathBuf {
    fixtures().join("media").join(file)
}

/// A tensor of a trace, or of features that were written.
fn tensor(path: &Path, name: &str) -> Option<Vec<u8>> {
    let shard = Shard::open(path).unwrap();
    let tensor = shard.tensor(name)?;
    let range = tensor.offset..tensor.offset + tensor.length;
    Some(shard.input.read_range(range).unwrap())
}

fn integers(bytes: &[u8]) -> Vec<i64> {
    let chunks = bytes.chunks_exact(8);
    chunks
        .map(|c| i64::from_le_bytes(c.try_into().unwrap()))
        .collect()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    let chunks = bytes.chunks_exact(4);
    chunks
        .map(|c| f32::from_le_bytes(c.try_into().unwrap()))
        .collect()
}

/// The conversation of a trace as a file of messages, whose paths are relative to it.
fn messages_of(case: &str, folder: &Path) -> (PathBuf, Value, PathBuf) {
    let trace = fixtures().join(format!("traces/tiny-omni.media.{case}.float32.safetensors"));
    let document = fs::read(trace.with_extension("json")).unwrap();
    let document: Value = serde_json::from_slice(&document).unwrap();
    let file = folder.join("chat.json");
    fs::write(&file, document["conversation"]["messages"].to_string()).unwrap();
    let link = folder.join("media");
    if !link.exists() {
        let files = fs::read_dir(media("")).unwrap();
        fs::create_dir(&link).unwrap();
        for entry in files.map(Result::unwrap) {
            fs::copy(entry.path(), link.join(entry.file_name())).unwrap();
        }
    }
    (file, document, trace)
}

#[test]
fn prompts_with_audio_have_the_official_ids_and_features() {
    let (folder, pack) = omni();
    let features = folder.path().join("features.safetensors");
    for case in [
        "audio-one",
        "audio-short",
        "audio-batch",
        "audio-window",
        "audio-lossy",
    ] {
        let (chat, document, trace) = messages_of(case, folder.path());
        let printed = segpack![
            "run",
            &pack,
            "--messages",
            &chat,
            "--print-prompt",
            "--json",
            "--dump-features",
            &features
        ]
        .ok()
        .json();
        let wanted = |name| tensor(&trace, name).unwrap();
        let seen = |name| tensor(&features, name).unwrap();
        assert_eq!(
            printed["ids"].as_array().unwrap().len(),
            document["tokens"].as_u64().unwrap() as usize
        );
        assert_eq!(seen("mm.input_ids"), wanted("mm.input_ids"), "{case}");
        assert_eq!(
            seen("mm.audio.lengths"),
            wanted("mm.audio.lengths"),
            "{case}"
        );
        let ids = printed["ids"]
            .as_array()
            .unwrap()
            .iter()
            .map(|id| id.as_i64().unwrap());
        assert_eq!(ids.collect::<Vec<_>>(), integers(&wanted("mm.input_ids")));
        // lossless at 16 kHz: as close as the extractor; else as close as resamplers and decoders are
        let gate = if ["audio-batch", "audio-lossy"].contains(&case) {
            0.3
        } else {
            3e-4
        };
        let (seen, wanted) = (
            floats(&seen("mm.audio.features")),
            floats(&wanted("mm.audio.features")),
        );
        assert_eq!(seen.len(), wanted.len());
        let most = seen
            .iter()
            .zip(&wanted)
            .map(|(s, w)| (s - w).abs())
            .fold(0.0, f32::max);
        assert!(most <= gate, "{case}: {most:e}");
    }
}

#[test]
fn prompts_with_images_have_the_official_ids_grids_and_pixels() {
    let (folder, pack) = omni();
    let features = folder.path().join("features.safetensors");
    for (case, recipe) in [
        ("image-lossless", "transformers"),
        ("image-shapes", "transformers"),
        ("image-lossy", "transformers"),
        ("readme-image", "model-card"),
    ] {
        let (chat, document, trace) = messages_of(case, folder.path());
        let mut arguments: Vec<std::ffi::OsString> = vec!["run".into(), (&pack).into()];
        arguments.extend(["--messages".into(), (&chat).into(), "--print-prompt".into()]);
        arguments.extend(["--media-recipe", recipe].map(Into::into));
        arguments.extend(["--dump-features".into(), (&features).into()]);
        if document["conversation"]["enable_thinking"] == false {
            arguments.extend(["--enable-thinking", "false"].map(Into::into));
        }
        crate::support::cli::run(&arguments).ok();
        for name in ["mm.input_ids", "mm.image.grid"] {
            assert_eq!(
                tensor(&features, name),
                tensor(&trace, name),
                "{case} {name}"
            );
        }
        let seen = floats(&tensor(&features, "mm.image.pixels").unwrap());
        // what loses nothing is kept as numbers of 8 bits
        let wanted = match tensor(&trace, "mm.image.pixels") {
            Some(bytes) => floats(&bytes),
            None => {
                let patches = tensor(&trace, "mm.image.patches").unwrap();
                patches
                    .iter()
                    .map(|v| (f32::from(*v) - 127.5) / 127.5)
                    .collect()
            }
        };
        assert_eq!(seen.len(), wanted.len(), "{case}");
        let most = seen
            .iter()
            .zip(&wanted)
            .map(|(s, w)| (s - w).abs())
            .fold(0.0, f32::max);
        assert!(most <= 1e-6, "{case}: {most:e}");
    }
}

/// Videos with the options of their conversations; only the animation is decoded without ffmpeg.
#[test]
fn prompts_with_videos_have_the_official_ids_and_grids() {
    let (folder, pack) = omni();
    let features = folder.path().join("features.safetensors");
    let has_ffmpeg = ["ffmpeg", "ffprobe"].iter().all(|program| {
        std::process::Command::new(program)
            .arg("-version")
            .output()
            .is_ok()
    });
    for (case, options) in [
        ("video-gif", "--fps 3 --min-pixels 2048 --max-pixels 4096"),
        ("video-silent", "--min-pixels 4096 --max-pixels 6144"),
        (
            "audio-in-video",
            "--use-audio-in-video --min-pixels 3072 --max-pixels 4096",
        ),
        (
            "audio-in-video-wide",
            "--use-audio-in-video --fps 8 --min-pixels 4096 --max-pixels 8192",
        ),
        (
            "readme-video",
            "--use-audio-in-video --media-recipe model-card --min-pixels 2048 --max-pixels 4096",
        ),
    ] {
        if case != "video-gif" && !has_ffmpeg {
            continue;
        }
        let (chat, _, trace) = messages_of(case, folder.path());
        let mut arguments: Vec<std::ffi::OsString> = vec!["run".into(), (&pack).into()];
        arguments.extend(["--messages".into(), (&chat).into(), "--print-prompt".into()]);
        arguments.extend(options.split_whitespace().map(Into::into));
        arguments.extend(["--dump-features".into(), (&features).into()]);
        crate::support::cli::run(&arguments).ok();
        for name in [
            "input_ids",
            "video.grid",
            "video.second_per_grid",
            "audio.lengths",
        ] {
            let name = format!("mm.{name}");
            assert_eq!(
                tensor(&features, &name),
                tensor(&trace, &name),
                "{case} {name}"
            );
        }
    }
}

#[test]
fn answers_to_media_are_those_of_the_official_class() {
    let (folder, pack) = omni();
    for case in [
        "audio-one",
        "audio-short",
        "audio-window",
        "image-lossless",
        "image-shapes",
    ] {
        let (chat, document, _) = messages_of(case, folder.path());
        let thinking = match document["conversation"]["enable_thinking"] == false {
            true => "--enable-thinking=false",
            false => "--quiet",
        };
        let run = segpack![
            "run",
            &pack,
            "--messages",
            &chat,
            "--json",
            "--max-new-tokens",
            "12",
            thinking
        ];
        let run = run.ok();
        let summary: Value = serde_json::from_str(run.text().lines().last().unwrap()).unwrap();
        let (seen, wanted) = (
            summary["ids"].as_array().unwrap(),
            document["generated"].as_array().unwrap(),
        );
        assert!(!seen.is_empty(), "{case}");
        assert_eq!(seen[..], wanted[..seen.len().min(wanted.len())], "{case}");
    }
}

/// A pack's own trace of a prompt with media is one that `validate` takes, stage by stage; of
/// another checkpoint it is found where the two part.
#[test]
fn a_recorded_trace_of_media_is_compared_stage_by_stage() {
    let (folder, pack) = omni();
    let (picture, film) = (media("photo.png"), media("anim_7frames.gif"));
    let speech = media("speech_s16_16k.wav");
    let trace = folder.path().join("own.safetensors");
    segpack![
        "run",
        &pack,
        "--chat",
        "--image",
        &picture,
        "--audio",
        &speech,
        "--video",
        &film,
        "--fps",
        "3",
        "--max-pixels",
        "4096",
        "--min-pixels",
        "2048",
        "--prompt",
        "What?",
        "--max-new-tokens",
        "5",
        "--trace",
        &trace
    ]
    .ok();
    let document = fs::read(trace.with_extension("json")).unwrap();
    let document: Value = serde_json::from_slice(&document).unwrap();
    assert_eq!(document["format"], "qwen3-omni-media-trace-1");
    assert_eq!(document["conversation"]["recipe"], "transformers");
    assert_eq!(
        document["conversation"]["media"].as_array().unwrap().len(),
        3
    );
    let report = segpack!["validate", &pack, "--reference", &trace, "--json"].ok();
    let report = report.json();
    assert_eq!(report["verdict"], "inside");
    let stages = report["stages"].as_array().unwrap();
    for wanted in [
        "audio_input",
        "audio_layer",
        "audio_rows",
        "image_input",
        "image_layer",
        "image_deepstack",
        "image_rows",
        "video_input",
        "video_rows",
        "positions",
        "rope_delta",
        "embeddings",
    ] {
        let row = stages.iter().find(|row| row["stage"] == wanted);
        let row = row.unwrap_or_else(|| panic!("no stage {wanted}"));
        assert_eq!(row["max_abs"], 0.0, "{wanted}");
    }

    // a value that is changed is found at its stage
    let mut bytes = fs::read(&trace).unwrap();
    let shard = Shard::open(&trace).unwrap();
    let place = shard.tensor("mm.image.layer.1").unwrap().offset as usize;
    bytes[place + 3] ^= 0x20;
    drop(shard);
    fs::write(&trace, bytes).unwrap();
    let report = segpack!["validate", &pack, "--reference", &trace, "--json"].exits(3);
    let wrong = report.json();
    let wrong = wrong["stages"].as_array().unwrap().iter();
    let wrong: Vec<_> = wrong.filter(|row| row["ok"] == false).collect();
    assert!(
        wrong.len() == 1 && wrong[0]["stage"] == "image_layer" && wrong[0]["number"] == 1,
        "{wrong:?}"
    );
}

#[test]
fn the_prompt_says_what_each_clip_takes() {
    let (_folder, pack) = omni();
    let speech = media("speech_s16_16k.wav");
    let printed = segpack![
        "run",
        &pack,
        "--chat",
        "--audio",
        &speech,
        "--prompt",
        "What?",
        "--print-prompt"
    ];
    let wanted = format!(
        "<|im_start|>user\n<|audio_start|><|audio_pad|> × 15<|audio_end|>What?<|im_end|>\n\
         <|im_start|>assistant\n\n\
         audio {}: 15 tokens, 1.13 s of sound (113 frames)\nprompt: 26 tokens\n",
        speech.display()
    );
    let printed = printed.ok();
    let printed = printed.text();
    let head = |text: &str| text.split("prompt: ").next().unwrap().to_owned();
    assert_eq!(head(printed), head(&wanted), "{printed}");
}

#[test]
fn clips_keep_the_order_of_the_command_line_and_stand_before_the_text() {
    let (_folder, pack) = omni();
    let names = |printed: &Value| -> Vec<String> {
        let media = printed["media"].as_array().unwrap().iter();
        let name = |m: &Value| {
            Path::new(m["name"].as_str().unwrap())
                .file_name()
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned()
        };
        media.map(name).collect()
    };
    let (first, second) = (media("blip_50ms_16k.wav"), media("speech_s16_16k.wav"));
    for (a, b) in [(&first, &second), (&second, &first)] {
        let printed = segpack![
            "run",
            &pack,
            "--audio",
            a,
            "--prompt",
            "x",
            "--chat",
            "--audio",
            b,
            "--print-prompt",
            "--json"
        ]
        .ok()
        .json();
        assert_eq!(
            names(&printed),
            [a, b].map(|p| p.file_name().unwrap().to_str().unwrap())
        );
        let text = printed["text"].as_str().unwrap();
        assert!(
            text.contains("<|audio_end|><|audio_start|>")
                && text.contains("<|audio_end|>x<|im_end|>")
        );
    }
}

#[test]
fn media_that_cannot_be_used_are_named() {
    let (folder, pack) = omni();
    let chat = folder.path().join("chat.json");
    let text = folder.path().join("text.wav");
    fs::write(&text, "no sound").unwrap();
    let print = |arguments: &[&str]| {
        let mut all = vec!["run".into(), (&pack).into(), "--print-prompt".into()];
        all.extend(arguments.iter().map(std::ffi::OsString::from));
        crate::support::cli::run(&all)
    };
    let text = text.to_str().unwrap();
    print(&["--chat", "--prompt", "x", "--audio", text])
        .exits(3)
        .says(&[
            "cannot use audio",
            "text.wav",
            "not an audio file of a known format",
        ]);
    print(&["--chat", "--prompt", "x", "--audio", "/no/such.wav"])
        .exits(1)
        .says(&["cannot use audio /no/such.wav: cannot be read: No such file"]);
    print(&[
        "--chat",
        "--prompt",
        "x",
        "--audio",
        "https://example.org/a.wav",
    ])
    .exits(3)
    .says(&["https://example.org/a.wav would have to be fetched"]);
    print(&["--prompt", "x", "--audio", text]).exits(2);
    fs::write(
        &chat,
        json!([{"role": "user", "content": [{"type": "audio", "audio": "gone.wav"}]}]).to_string(),
    )
    .unwrap();
    let missing = folder.path().join("gone.wav");
    print(&["--messages", chat.to_str().unwrap()])
        .exits(1)
        .says(&[missing.to_str().unwrap(), "No such file"]);
}

#[test]
fn the_words_of_a_placeholder_in_a_text_are_refused() {
    let (_folder, pack) = omni();
    let speech = media("blip_50ms_16k.wav");
    segpack![
        "run",
        &pack,
        "--chat",
        "--prompt",
        "say <|audio_pad|>",
        "--print-prompt"
    ]
    .exits(3)
    .says(&["has 1 <|audio_pad|> and 0 audio"]);
    segpack![
        "run",
        &pack,
        "--chat",
        "--prompt",
        "say <|audio_pad|>",
        "--audio",
        &speech,
        "--print-prompt"
    ]
    .exits(3)
    .says(&["has 2 <|audio_pad|> and 1 audio"]);
    segpack![
        "run",
        &pack,
        "--prompt",
        "<|image_pad|>",
        "--max-new-tokens",
        "1"
    ]
    .exits(3)
    .says(&["has 1 <|image_pad|> and 0 image"]);
}

#[test]
fn media_inside_a_chat_are_read() {
    let (folder, pack) = omni();
    let bytes = fs::read(media("blip_50ms_16k.wav")).unwrap();
    let base64 = base64(&bytes);
    let file = format!(
        "file://{}",
        fs::canonicalize(media("blip_50ms_16k.wav"))
            .unwrap()
            .display()
    );
    let chat = folder.path().join("chat.json");
    for part in [
        json!({"type": "audio", "audio": format!("data:audio/wav;base64,{base64}")}),
        json!({"type": "audio_url", "audio_url": {"url": file}}),
    ] {
        let messages =
            json!([{"role": "user", "content": [part, {"type": "text", "text": "Hm?"}]}]);
        fs::write(&chat, messages.to_string()).unwrap();
        let printed = segpack![
            "run",
            &pack,
            "--messages",
            &chat,
            "--print-prompt",
            "--json"
        ]
        .ok()
        .json();
        assert_eq!(printed["media"][0]["audio_frames"], 5);
        assert_eq!(
            printed["text"]
                .as_str()
                .unwrap()
                .matches("<|audio_pad|>")
                .count(),
            1
        );
    }
}

/// In the alphabet of RFC 4648.
fn base64(bytes: &[u8]) -> String {
    let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let word = chunk.iter().enumerate().fold(0u32, |word, (n, byte)| {
            word | u32::from(*byte) << (16 - 8 * n)
        });
        for n in 0..4 {
            let digit = alphabet[(word >> (18 - 6 * n) & 63) as usize] as char;
            text.push(if n <= chunk.len() { digit } else { '=' });
        }
    }
    text
}

#[test]
fn a_model_without_encoders_refuses_media() {
    let speech = media("blip_50ms_16k.wav");
    let (folder, _) = omni();
    let thinker = folder.path().join("text-only");
    segpack![
        "pack",
        &tiny_omni(),
        "-o",
        &thinker,
        "--exclude",
        "thinker.audio",
        "-q"
    ]
    .ok();
    segpack![
        "run",
        &thinker,
        "--chat",
        "--prompt",
        "x",
        "--audio",
        &speech,
        "--print-prompt"
    ]
    .exits(3)
    .says(&["the pack has no encoder of audio", "blip_50ms_16k.wav"]);
}

#[test]
fn settings_that_are_missing_are_named() {
    let folder = temp();
    let checkpoint = folder.path().join("checkpoint");
    fs::create_dir(&checkpoint).unwrap();
    for entry in fs::read_dir(tiny_omni()).unwrap().map(Result::unwrap) {
        fs::copy(entry.path(), checkpoint.join(entry.file_name())).unwrap();
    }
    let settings = checkpoint.join("preprocessor_config.json");
    let speech = media("blip_50ms_16k.wav");
    let mut value: Value = serde_json::from_slice(&fs::read(&settings).unwrap()).unwrap();
    value.as_object_mut().unwrap().remove("feature_size");
    fs::write(&settings, value.to_string()).unwrap();
    let pack = folder.path().join("one");
    segpack!["pack", &checkpoint, "-o", &pack, "-q"].ok();
    segpack!["run", &pack, "--chat", "--prompt", "x", "--audio", &speech]
        .exits(3)
        .says(&["preprocessor_config.json: feature_size is missing"]);
    fs::remove_file(&settings).unwrap();
    let pack = folder.path().join("two");
    segpack!["pack", &checkpoint, "-o", &pack, "-q"].ok();
    segpack!["run", &pack, "--chat", "--prompt", "x", "--audio", &speech]
        .exits(3)
        .says(&["no settings for audio: preprocessor_config.json is missing"]);
    segpack![
        "run",
        &pack,
        "--chat",
        "--prompt",
        "x",
        "--max-new-tokens",
        "1"
    ]
    .ok();
}

#[cfg(target_os = "linux")]
fn printed_prompt(clip: &Path, pack: &Path) -> std::process::Command {
    let words = ["run", "--chat", "--prompt", "x", "--print-prompt", "--json"];
    let mut command = crate::support::cli::program();
    command.args(words).arg("--audio").args([clip, pack]);
    command
}

/// 38 MB of samples, 31 MB of features, and the program.
#[cfg(target_os = "linux")]
#[test]
fn ten_minutes_of_audio_take_bounded_memory() {
    let (folder, pack) = omni();
    let clip = folder.path().join("long.wav");
    let samples: Vec<u8> = (0..8000 * 600u32)
        .map(|n| (n.wrapping_mul(n) / 4096) as u8)
        .collect();
    let mut bytes = b"RIFF\xff\xff\xff\xffWAVEfmt \x10\0\0\0\x01\0\x01\0".to_vec();
    bytes.extend(8000u32.to_le_bytes().repeat(2)); // samples and bytes of a second
    bytes.extend(b"\x01\0\x08\0data\xff\xff\xff\xff");
    bytes.extend(samples);
    fs::write(&clip, bytes).unwrap();
    let peak = crate::support::cli::peak_memory(&mut printed_prompt(&clip, &pack));
    assert!(peak < 150 << 20, "{peak} bytes");
    let printed = crate::support::cli::Run::of(&mut printed_prompt(&clip, &pack))
        .ok()
        .json();
    assert_eq!(printed["media"][0]["audio_frames"], 60_000);
    assert_eq!(printed["media"][0]["tokens"], 7_800);
}
