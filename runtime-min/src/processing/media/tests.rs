//! Official prompts: from the rendered chat to token ids, given what was made of the files.

#![cfg(feature = "text")]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "test data is small"
)]

use std::path::Path;

use serde_json::{Value, json};

use super::testing::{MediaTrace, files_of, fixture};
use super::*;
use crate::processing::audio_tokens;
use crate::processing::text::tokenizer::Tokenizer;

/// What was made of the media of a conversation.
struct Recorded {
    conversation: Value,
    prompt: String,
    lengths: Vec<usize>,
    image_grids: Vec<[usize; 3]>,
    video_grids: Vec<[usize; 3]>,
}

const CASES: [&str; 15] = [
    "audio-one",
    "audio-short",
    "audio-batch",
    "audio-window",
    "audio-lossy",
    "image-lossless",
    "image-shapes",
    "image-lossy",
    "video-silent",
    "video-gif",
    "audio-in-video",
    "audio-in-video-wide",
    "mixed",
    "readme-image",
    "readme-video",
];

impl Recorded {
    /// The replacements, as the conversation's parts and keywords give them.
    fn replacements(&self) -> Vec<(MediaKind, Replacement)> {
        let mut messages = self.conversation["messages"].clone();
        let references = References {
            folder: Path::new(""),
            fetch: None,
        };
        let parts = find_parts(&mut messages, references).unwrap().media;
        let sound = self.conversation["use_audio_in_video"] == true;
        let fps = match self.conversation["recipe"] == "readme" {
            true => 1.0,
            false => self.conversation["fps"].as_f64().unwrap_or(2.0),
        };
        let mut lengths = self.lengths.iter();
        let mut images = self.image_grids.iter();
        let mut videos = self.video_grids.iter();
        let visual = |grid: &[usize; 3]| grid.iter().product::<usize>() / 4;
        let mut replacement = |part: &MediaPart| match part.kind {
            MediaKind::Audio => Replacement::Tokens(audio_tokens(*lengths.next().unwrap())),
            MediaKind::Image => Replacement::Tokens(visual(images.next().unwrap())),
            MediaKind::Video if sound => {
                let grid = videos.next().unwrap();
                Replacement::Interleaved {
                    tokens_per_patch: visual(grid) / grid[0],
                    patches: grid[0],
                    seconds: 2.0 / fps,
                    audio: audio_tokens(*lengths.next().unwrap()),
                }
            }
            MediaKind::Video => Replacement::Tokens(visual(videos.next().unwrap())),
        };
        parts
            .iter()
            .map(|part| (part.kind, replacement(part)))
            .collect()
    }

    fn ids(&self, placeholders: &Placeholders, tokenizer: &Tokenizer) -> Vec<i64> {
        let text = placeholders
            .expand(&self.prompt, &self.replacements())
            .unwrap();
        let ids = tokenizer.encode_bare(&text).unwrap();
        ids.into_iter().map(i64::from).collect()
    }
}

fn grids(numbers: &[i64]) -> Vec<[usize; 3]> {
    let grids = numbers.chunks_exact(3);
    grids
        .map(|g| [g[0] as usize, g[1] as usize, g[2] as usize])
        .collect()
}

fn tokenizer(folder: &Path) -> (Tokenizer, Placeholders) {
    let files = files_of(folder);
    let config = files("tokenizer_config.json").unwrap().unwrap();
    let config: Value = serde_json::from_slice(&config).unwrap();
    let placeholders = Placeholders::of(&config).unwrap().unwrap();
    (Tokenizer::load(&files).unwrap(), placeholders)
}

#[test]
fn prompts_have_the_official_ids() {
    let (tokenizer, placeholders) = tokenizer(&fixture("tiny-omni"));
    for case in CASES {
        let trace = MediaTrace::open(case);
        let numbers = |name: &str| trace.integers(&format!("mm.{name}")).unwrap_or_default();
        let recorded = Recorded {
            conversation: trace.document["conversation"].clone(),
            prompt: trace.document["prompt"].as_str().unwrap().to_owned(),
            lengths: numbers("audio.lengths")
                .iter()
                .map(|n| *n as usize)
                .collect(),
            image_grids: grids(&numbers("image.grid")),
            video_grids: grids(&numbers("video.grid")),
        };
        assert_eq!(
            recorded.ids(&placeholders, &tokenizer),
            numbers("input_ids"),
            "{case}"
        );
    }
}

fn read(file: &str) -> Value {
    serde_json::from_slice(&std::fs::read(fixture(file)).unwrap()).unwrap()
}

fn flat(v: &Value) -> Vec<i64> {
    match v.as_array() {
        Some(inner) => inner.iter().map(|n| n.as_i64().unwrap()).collect(),
        None => vec![v.as_i64().unwrap()],
    }
}

/// `SEGPACK_QWEN_TOKENIZER=FOLDER cargo test -- --ignored qwen`, FOLDER holding the tokenizer files of
/// Qwen3-Omni-30B-A3B.
#[test]
#[ignore = "needs Qwen3-Omni's vocabulary: SEGPACK_QWEN_TOKENIZER=FOLDER"]
fn prompts_have_the_official_ids_with_qwens_tokenizer() {
    let folder = std::env::var("SEGPACK_QWEN_TOKENIZER").unwrap();
    let (tokenizer, placeholders) = tokenizer(folder.as_ref());
    let summary = read("traces/real-processor.media.json");
    let conversations = read("media.tiny-omni.json");
    for case in summary["cases"].as_array().unwrap() {
        let name = &case["case"];
        let conversation = conversations.as_array().unwrap().iter();
        let numbers = |key: &str| -> Vec<i64> {
            case[key]
                .as_array()
                .map(|list| list.iter().flat_map(flat).collect())
                .unwrap_or_default()
        };
        let recorded = Recorded {
            conversation: conversation
                .clone()
                .find(|c| c["case"] == *name)
                .unwrap()
                .clone(),
            prompt: case["prompt"].as_str().unwrap().to_owned(),
            lengths: numbers("mm.audio.lengths")
                .iter()
                .map(|n| *n as usize)
                .collect(),
            image_grids: grids(&numbers("mm.image.grid")),
            video_grids: grids(&numbers("mm.video.grid")),
        };
        let mut runs: Vec<[i64; 2]> = Vec::new();
        for id in recorded.ids(&placeholders, &tokenizer) {
            match runs.last_mut() {
                Some([last, repeats]) if *last == id => *repeats += 1,
                _ => runs.push([id, 1]),
            }
        }
        assert_eq!(json!(runs), case["ids_runs"], "{name}");
    }
}
